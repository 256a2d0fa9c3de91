"""The server that a backup is restored to, and the databases on it that a restore makes, renames and keeps.

What a restore has made is marked on the server itself, by a setting of the database (`backup_dag.…`,
which PostgreSQL keeps and nothing reads), so that any host can find it, finish it or undo it.
"""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from backup_dag.core.address import Address
from backup_dag.core.errors import DatabaseError, DatabaseUnreachable, GuardRefused
from backup_dag.core.manifest import DatabaseFacts
from backup_dag.core.postgres import Session, connected, literal, quoted

_MAINTENANCE = ("postgres", "template1")
_LOCK = 0x72657374  # beside a hash of the database's name
_LONGEST_NAME = 63  # bytes (NAMEDATALEN - 1)
_PATIENCE = 30.0  # seconds in which sessions that were told to end must have ended
_IN_USE = "55006"  # object_in_use (PostgreSQL's errcodes.txt)
_MARKS = {"restoring": "backup_dag.restoring", "before": "backup_dag.before"}
Role = Literal["restoring", "before"]


@dataclass(frozen=True)
class Made:
    """A database that a restore made or kept: which one it stands in for, and since when (UTC)."""

    name: str
    role: Role
    of: str
    since: datetime
    backup: str


@dataclass(frozen=True)
class Standing:
    """A database as it stands now."""

    oid: int
    owner: str
    encoding: str
    collate: str
    ctype: str
    bytes: int


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
                   AS bytes
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
            with suppress(DatabaseError):
                self.session.row(f"SELECT pg_advisory_unlock{key} AS released")

    def is_locked(self) -> bool:
        """Whether a restore of this database is running now."""
        try:
            with self.locked():
                return False
        except GuardRefused:
            return True

    def made(self, role: Role) -> list[Made]:
        """What restores of this database made and left, or kept; the newest first."""
        rows = self.session.rows(
            f"""
            SELECT d.datname AS name, substr(s, strpos(s, '=') + 1) AS said
            FROM pg_db_role_setting r JOIN pg_database d ON d.oid = r.setdatabase, unnest(r.setconfig) s
            WHERE r.setrole = 0 AND split_part(s, '=', 1) = {literal(_MARKS[role])}
            """
        )
        found = []
        for row in rows:
            with suppress(ValueError, KeyError):
                said = json.loads(row["said"])
                since = datetime.fromisoformat(said["since"])
                found.append(Made(row["name"], role, said["of"], since, said["backup"]))
        return sorted((m for m in found if m.of == self.name), key=lambda m: m.since, reverse=True)

    def aside(self, role: Role, now: datetime) -> str:
        """A free name beside the target's, cut to PostgreSQL's length where it must be."""
        while True:
            ending = f"__{role}_{now:%Y%m%d_%H%M%S}"
            stem = self.name.encode()[: _LONGEST_NAME - len(ending)].decode(errors="ignore")
            if self.standing(f"{stem}{ending}") is None:
                return f"{stem}{ending}"
            now += timedelta(seconds=1)

    def create(self, name: str, facts: DatabaseFacts, backup: str, now: datetime) -> None:
        """An empty database from template0, with that encoding, collation and owner, marked as ours."""
        options = [f"TEMPLATE template0 ENCODING {literal(facts.encoding)}"]
        options += [f"LC_COLLATE {literal(facts.collate)} LC_CTYPE {literal(facts.ctype)}"]
        if facts.locale_provider != "libc" and facts.locale and self.session.server_major >= 15:
            kind = {"icu": "ICU_LOCALE", "builtin": "BUILTIN_LOCALE"}[facts.locale_provider]
            options.append(f"LOCALE_PROVIDER {facts.locale_provider} {kind} {literal(facts.locale)}")
        self.session.rows(f"CREATE DATABASE {quoted(name)} {' '.join(options)}")
        try:
            self._mark(name, "restoring", backup, now)
        except BaseException:
            self.drop(name)
            raise

    def _mark(self, name: str, role: Role, backup: str, now: datetime) -> None:
        said = json.dumps({"of": self.name, "since": now.astimezone(UTC).isoformat(), "backup": backup})
        self.session.rows(f"ALTER DATABASE {quoted(name)} SET {_MARKS[role]} TO {literal(said)}")

    def drop(self, name: str) -> None:
        """Ends a database's sessions, and drops it. One that is not there is no error."""
        self.session.rows(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")

    def sweep(self) -> list[str]:
        """Drops what restores of this database left half-made; to be called with the lock held."""
        left = [made.name for made in self.made("restoring")]
        for name in left:
            self.drop(name)
        return left

    def swap(self, new: str, *, keep_as: str | None, backup: str, now: datetime) -> float:
        """Renames the target to `keep_as` (None: there is none yet) and `new` to the target, or neither.

        Both renames are one transaction, so there is no moment between them, for a crash least of all.
        The first rename holds the target's lock: logins wait for the outcome. Sessions are ended while it
        waits for them. Returns the seconds in which no database answered to the name.

        Raises:
            DatabaseError: sessions did not end in time, or the server refused; nothing has changed.
        """
        statements = [f"ALTER DATABASE {quoted(new)} RESET {_MARKS['restoring']}"]
        if keep_as is not None:
            said = json.dumps({"of": self.name, "since": now.astimezone(UTC).isoformat(), "backup": backup})
            statements += [
                f"ALTER DATABASE {quoted(self.name)} RENAME TO {quoted(keep_as)}",
                f"ALTER DATABASE {quoted(keep_as)} SET {_MARKS['before']} TO {literal(said)}",
            ]
        statements += [
            f"ALTER DATABASE {quoted(new)} RENAME TO {quoted(self.name)}",
            f"ALTER DATABASE {quoted(self.name)} RESET {_MARKS['before']}",
        ]
        ending = [name for name in (self.name, new) if self.standing(name)]
        with connected(self.session.address) as other:
            began = time.monotonic()
            with sessions_ended(other, ending):
                self._all_or_nothing(statements)
                return time.monotonic() - began

    def _all_or_nothing(self, statements: list[str]) -> None:
        """Tried again while sessions are still ending: PostgreSQL itself waits for them for 5 s."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self.session.rows("BEGIN")
                for statement in statements:
                    self.session.rows(statement)
                self.session.rows("COMMIT")
                return
            except DatabaseError as error:
                with suppress(DatabaseError):
                    self.session.rows("ROLLBACK")
                if error.sqlstate != _IN_USE or time.monotonic() > deadline:
                    raise


@contextmanager
def sessions_ended(session: Session, databases: list[str], but: Sequence[int] = ()) -> Iterator[None]:
    """While the block runs, every session in those databases that we may end is told to, and those that
    come after; but not the server processes named."""
    done, names = threading.Event(), ", ".join(map(literal, databases))
    end_them = f"""
        SELECT pg_terminate_backend(a.pid)
        FROM pg_stat_activity a JOIN pg_roles theirs ON theirs.oid = a.usesysid, pg_roles ours
        WHERE a.datname IN ({names}) AND ours.rolname = current_user AND a.backend_type = 'client backend'
          AND (ours.rolsuper OR NOT theirs.rolsuper AND (pg_has_role(theirs.oid, 'USAGE')
                                                         OR pg_has_role('pg_signal_backend', 'USAGE')))
          AND NOT a.pid = ANY (ARRAY[{", ".join(map(str, but))}]::int[])
    """

    def end() -> None:
        with suppress(DatabaseError):
            while True:
                session.rows(end_them)
                if done.wait(0.05):
                    return

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


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
            yield Target(session, address)
        finally:
            opened.__exit__(None, None, None)
        return


def sessions(target: Target) -> dict[str, int]:
    """How many are connected to the target now, by application and user."""
    rows = target.session.rows(
        f"""
        SELECT format('%s (%s)', coalesce(nullif(application_name, ''), 'unnamed'), usename) AS who,
               count(*) AS number
        FROM pg_stat_activity WHERE datname = {literal(target.name)} AND backend_type = 'client backend'
        GROUP BY 1 ORDER BY 2 DESC, 1
        """
    )
    return {row["who"]: row["number"] for row in rows}


def rights(target: Target, owner: str | None) -> dict[str, Any]:
    """What our role may do on that server: superuser, createdb, createrole, signal, owns."""
    owns = f"pg_has_role({literal(owner)}, 'USAGE')" if owner is not None else "true"
    return target.session.row(
        f"""
        SELECT rolname AS name, rolsuper AS superuser, rolsuper OR rolcreatedb AS createdb,
               rolsuper OR rolcreaterole AS createrole, rolsuper OR {owns} AS owns,
               rolsuper OR pg_has_role('pg_signal_backend', 'USAGE') AS signal
        FROM pg_roles WHERE rolname = current_user
        """
    )


def in_the_way_in_place(target: Target) -> dict[str, Any]:
    """What a database holds that one transaction may not be able to drop: subscriptions, owners whose
    objects our role may not drop, and how many relations there are for how many locks."""
    owned = " UNION ".join(
        f"SELECT {column} AS owner FROM {catalog} WHERE oid >= 16384"
        for catalog, column in (
            ("pg_class", "relowner"),
            ("pg_proc", "proowner"),
            ("pg_type", "typowner"),
            ("pg_namespace", "nspowner"),
            ("pg_extension", "extowner"),
            ("pg_event_trigger", "evtowner"),
        )
    )
    with connected(target.address) as session:
        return session.row(
            f"""
            SELECT (SELECT count(*) FROM pg_subscription
                    WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()))
                   AS subscriptions,
                   (SELECT array_agg(rolname::text ORDER BY rolname)
                    FROM (SELECT DISTINCT owner FROM ({owned}) o WHERE NOT pg_has_role(owner, 'USAGE')) w
                    JOIN pg_roles r ON r.oid = owner) AS owners,
                   (SELECT count(*) FROM pg_class WHERE oid >= 16384) AS relations,
                   (SELECT current_setting('max_locks_per_transaction')::int
                           * (current_setting('max_connections')::int
                              + current_setting('max_prepared_transactions')::int)) AS locks
            """
        )
