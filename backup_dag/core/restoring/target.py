"""One database name on a server, which may be there or not: what a restore makes beside it, and the swap."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from backup_dag.core.address import Address
from backup_dag.core.errors import DatabaseError, DatabaseUnreachable, GuardRefused
from backup_dag.core.manifest import DatabaseFacts
from backup_dag.core.postgres import Session, connected
from backup_dag.core.restoring.eviction import sessions_ended
from backup_dag.core.restoring.marks import Made, Role, marked
from backup_dag.core.sql import literal, quoted

_MAINTENANCE = ("postgres", "template1")
_LOCK = 0x72657374  # beside a hash of the database's name
LONGEST_NAME = 63
"""Bytes of a database's name (NAMEDATALEN - 1)."""
_PATIENCE = 30.0  # seconds in which sessions that were told to end must have ended
_IN_USE = "55006"  # object_in_use (PostgreSQL's errcodes.txt)
_RESTORING = "__restoring_[0-9]{8}_[0-9]{6}$"
_FIRST_NORMAL = 16384  # FirstNormalObjectId (PostgreSQL's transam.h)
_HOLDING = ("pg_class", "pg_namespace", "pg_proc", "pg_type", "pg_largeobject_metadata")
_INVALID = -2  # the connection limit of a database whose DROP was cut short (pg_database.h)


@dataclass(frozen=True)
class Standing:
    """A database as it stands now. `tablespace` is None where it is the server's default."""

    oid: int
    owner: str
    encoding: str
    collate: str
    ctype: str
    bytes: int
    tablespace: str | None
    template: bool
    open: bool
    limit: int

    @property
    def invalid(self) -> bool:
        """Half dropped: nothing but dropping it to the end can be done with it."""
        return self.limit == _INVALID


class Target:
    """One database name on a server, which may be there or not; seen from another database."""

    def __init__(self, session: Session, address: Address) -> None:
        self.session, self.address = session, address
        self.name = address.dbname

    def standing(self, name: str | None = None) -> Standing | None:
        """The database of that name (default: the target), None where there is none."""
        rows = self.session.rows(
            f"""
            SELECT oid::bigint AS oid, pg_get_userbyid(datdba) AS owner, datcollate AS collate,
                   pg_encoding_to_char(encoding) AS encoding, datctype AS ctype,
                   CASE WHEN has_database_privilege(oid, 'CONNECT') THEN pg_database_size(oid) ELSE 0 END
                   AS bytes, datistemplate AS template, datallowconn AS open, datconnlimit AS limit,
                   (SELECT spcname FROM pg_tablespace t
                    WHERE t.oid = dattablespace AND spcname <> 'pg_default') AS tablespace
            FROM pg_database WHERE datname = {literal(name or self.name)}
            """
        )
        return Standing(**rows[0]) if rows else None

    def state(self) -> str:
        """A digest that changes when the target does: another database, other objects, rows written."""
        standing = self.standing()
        if standing is None:
            return "there is none"
        try:
            with connected(self.address) as session:
                row = session.row(
                    """
                    SELECT md5(string_agg(format('%s %s', oid, pg_relation_filenode(oid)), ',' ORDER BY oid))
                           AS shape,
                           (SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables) AS writes
                    FROM pg_class WHERE relpersistence <> 't' AND relkind IN ('r', 'm', 'S', 'i')
                    """
                )
        except DatabaseError as error:  # a broken database can be restored too
            row = {"unreadable": error.sqlstate}
        return json.dumps([self.session.server().system_identifier, standing.oid, row], default=str)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds this database's restore lock: one restore at a time, from whatever host.

        Raises GuardRefused where another one holds it.
        """
        key = f"({_LOCK}, hashtext({literal(self.name)}))"
        if not self.session.row(f"SELECT pg_try_advisory_lock{key} AS got")["got"]:
            raise GuardRefused(
                f"another restore of {self.address} is running", hint="wait for it to end, or end it"
            )
        try:
            yield
        finally:
            self.session.let_go(f"SELECT pg_advisory_unlock{key}")

    def is_locked(self) -> bool:
        """Whether a restore of this database is running now."""
        try:
            with self.locked():
                return False
        except GuardRefused:
            return True

    def facts(self) -> DatabaseFacts:
        """The target's own properties; from outside, where it cannot be connected to."""
        try:
            with connected(self.address) as session:
                return session.facts()
        except DatabaseUnreachable:
            return self.session.facts(self.name)

    def made(self, role: Role) -> list[Made]:
        """What restores of this database made and left, or kept; the newest first."""
        return marked(self.session, self.name, role)

    def aside(self, role: Role, now: datetime) -> str:
        """A free name beside the target's, cut to PostgreSQL's length where it must be."""
        while True:
            name = self._beside(f"__{role}_{now:%Y%m%d_%H%M%S}")
            if self.standing(name) is None:
                return name
            now += timedelta(seconds=1)

    def _beside(self, ending: str) -> str:
        stem = self.name.encode()[: LONGEST_NAME - len(ending)].decode(errors="ignore")
        return f"{stem}{ending}"

    def create(self, name: str, facts: DatabaseFacts, backup: str, now: datetime) -> None:
        """An empty database from template0, with that encoding and collation, marked as ours.

        Nobody but its owner and superusers may connect yet: rights on what is in it come last in a dump.
        """
        options = [f"TEMPLATE template0 ENCODING {literal(facts.encoding)}"]
        options += [f"LC_COLLATE {literal(facts.collate)} LC_CTYPE {literal(facts.ctype)}"]
        if facts.locale_provider != "libc" and facts.locale and self.session.server_major >= 15:
            kind = {"icu": "ICU_LOCALE", "builtin": "BUILTIN_LOCALE"}[facts.locale_provider]
            options.append(f"LOCALE_PROVIDER {facts.locale_provider} {kind} {literal(facts.locale)}")
        if (standing := self.standing()) and standing.tablespace:
            options.append(f"TABLESPACE {quoted(standing.tablespace)}")
        self.session.rows(f"CREATE DATABASE {quoted(name)} {' '.join(options)}")
        try:
            made = Made(name, "restoring", self.name, now, backup)
            self.session.rows(f"COMMENT ON DATABASE {quoted(name)} IS {literal(made.mark)}")
            self.session.rows(f"REVOKE ALL ON DATABASE {quoted(name)} FROM PUBLIC")
        except BaseException:
            self.drop(name)
            raise

    def drop(self, name: str) -> None:
        """Ends a database's sessions, and drops it. One that is not there is no error."""
        self.session.rows(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")

    def sweep(self) -> list[str]:
        """Drops what restores of this database left half-made; to be called with the lock held."""
        left = [*(made.name for made in self.made("restoring")), *self._unmarked()]
        for name in left:
            self.drop(name)
        return left

    def _unmarked(self) -> Iterator[str]:
        """What a restore had asked for when it was killed: the server makes it all the same, and nobody is
        left to mark it. Under a name of ours, ours, without a comment, nobody in it, and nothing."""
        rows = self.session.rows(
            f"""
            SELECT datname AS name, substring(datname FROM {literal(_RESTORING)}) AS ending FROM pg_database d
            WHERE datname ~ {literal(_RESTORING)}
              AND datdba = (SELECT oid FROM pg_roles WHERE rolname = current_user)
              AND shobj_description(d.oid, 'pg_database') IS NULL
              AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE datid = d.oid)
            """
        )
        for row in rows:
            if row["name"] == self._beside(row["ending"]) and self._is_empty(row["name"]):
                yield row["name"]

    def _is_empty(self, name: str) -> bool:
        """Whether nobody has made anything in it."""
        made = [f"SELECT FROM {table} WHERE oid >= {_FIRST_NORMAL}" for table in _HOLDING]
        with suppress(DatabaseError), connected(self.address.at(name)) as session:
            row = session.row(f"SELECT EXISTS ({' UNION ALL '.join(made)}) AS filled")
            return not row["filled"]
        return False

    def swap(self, new: str, *, keep: Made | None, grants: Sequence[str] = ()) -> float:
        """Renames the target to `keep` (None: there is none yet) and `new` to the target, or neither.

        Both renames are one transaction, so there is no moment between them, for a crash least of all.
        The first rename holds the target's lock: logins wait for the outcome. Sessions are ended while it
        waits for them. Returns the seconds in which no database answered to the name. What is in the
        target's place has no comment then: that is given from within.

        Raises:
            DatabaseError: sessions did not end in time, or the server refused; nothing has changed.
        """
        standing, statements = self.standing(), [*grants, f"COMMENT ON DATABASE {quoted(new)} IS NULL"]
        if keep is not None:
            statements += [
                f"ALTER DATABASE {quoted(self.name)} RENAME TO {quoted(keep.name)}",
                f"COMMENT ON DATABASE {quoted(keep.name)} IS {literal(keep.mark)}",
            ]
        statements.append(f"ALTER DATABASE {quoted(new)} RENAME TO {quoted(self.name)}")
        if keep is not None and standing and standing.template:
            statements += [
                f"ALTER DATABASE {quoted(keep.name)} IS_TEMPLATE false",
                f"ALTER DATABASE {quoted(self.name)} IS_TEMPLATE true",
            ]
        ending = [name for name in (self.name, new) if self.standing(name)]
        with connected(self.session.address) as other:
            began = time.monotonic()
            with sessions_ended(other, ending):
                self._all_or_nothing(statements)
                return time.monotonic() - began

    def comment(self, text: str | None) -> None:
        """Says from within the target what it is: in its own encoding. That it cannot is no failure."""
        if text:
            with suppress(DatabaseError), connected(self.address) as session:
                session.rows(f"COMMENT ON DATABASE {quoted(self.name)} IS {literal(text)}")

    def _all_or_nothing(self, statements: list[str]) -> None:
        """Tried again while sessions are still ending: PostgreSQL itself waits for them for 5 s."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self.session.rows("BEGIN")
                self.session.rows("SET LOCAL synchronous_commit = on")  # once it is told, no crash undoes it
                for statement in statements:
                    self.session.rows(statement)
                self.session.rows("COMMIT")
                return
            except DatabaseError as error:
                self.session.let_go("ROLLBACK")
                if error.sqlstate != _IN_USE or time.monotonic() > deadline:
                    raise


def _quiet(session: Session) -> dict[str, str]:
    """What every session of ours in the target begins with: an event trigger on login, of a backup's own,
    would write into what is compared. Where this role may not set that, and before PostgreSQL 17, nothing."""
    if session.server_major < 17:
        return {}
    may = session.row("SELECT has_parameter_privilege('event_triggers', 'SET') AS may")["may"]
    return {"event_triggers": "off"} if may else {}


@contextmanager
def target_at(address: Address, *, or_itself: bool = False) -> Iterator[Target]:
    """A target, seen from the server's `postgres` or `template1`. Raises DatabaseUnreachable.

    With `or_itself`, where neither can be reached, from itself: then it cannot be renamed.
    """
    names = [name for name in _MAINTENANCE if name != address.dbname] + [address.dbname] * or_itself
    for name in names:
        try:
            opened = connected(address.at(name))
            session = opened.__enter__()
        except DatabaseUnreachable:
            if name == names[-1]:
                raise
            continue
        try:
            yield Target(session, address.having(_quiet(session)))
        finally:
            opened.__exit__(None, None, None)
        return
