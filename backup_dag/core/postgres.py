"""A session on a server: its snapshot and lock, and the facts that a restore will need."""

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import encodings
from psycopg2.extras import RealDictCursor

from backup_dag.core.address import Address
from backup_dag.core.errors import DatabaseError, DatabaseUnreachable, GuardRefused
from backup_dag.core.looking import advice, cancel, connection_to, first_line, look_at, stood_still
from backup_dag.core.manifest import DatabaseFacts, Server, Setting
from backup_dag.core.sql import AS_PG_DUMP_READS, literal, quoted, setting_sql
from backup_dag.core.stall import Clock, Look, Stalled, allowed, within
from backup_dag.core.stream import Writer

MARK = "backup-dag {"
"""What the comment of a database begins with that a restore made or keeps; `marks.py` reads the rest."""

_LOCK = (0x6261636B, 0x64616721)
"""The advisory lock's key. Such locks belong to one database, so one key serves them all."""

encodings.update(SQL_ASCII="latin-1", SQLASCII="latin-1")  # psycopg2 takes it for ASCII, and fails at more
_CONNECT_SECONDS = 10
_SECONDS_TO_GIVE_UP = 3.0  # in which one that was told to cancel has done so
_SECONDS_TO_LET_GO = 10.0  # for the last words of a session, whose end does the same

_PATIENT = "'statement_timeout', 'lock_timeout', 'idle_session_timeout', 'transaction_timeout',\
 'idle_in_transaction_session_timeout'"


@dataclass(frozen=True)
class Snapshot:
    """A moment of the database that pg_dump is told to dump. `time` is the server's clock, in UTC."""

    name: str
    time: datetime


class Session:
    """A connection to one database, for facts about it and for the snapshot that is dumped."""

    def __init__(self, connection: Connection, address: Address) -> None:
        self._connection, self.address = connection, address
        self._turn = threading.RLock()  # of several threads' questions one is asked at a time, and timed

    def row(self, query: str) -> dict[str, Any]:
        """The first row. Raises DatabaseError."""
        rows = self.rows(query)
        return rows[0]

    def rows(self, query: str) -> list[dict[str, Any]]:
        """All of them. Raises DatabaseError; DatabaseUnreachable where the server stood still over it."""
        return self._rows(query, Clock(self._look))

    def _rows(self, query: str, clock: Clock) -> list[dict[str, Any]]:
        with (
            self._refusals("asking", "see that the server is up, and what this role may do there"),
            self._connection.cursor(cursor_factory=RealDictCursor) as cursor,
        ):
            self._aside(lambda: cursor.execute(query), clock)
            return [dict(row) for row in cursor.fetchall()] if cursor.description else []

    def speak(self, encoding: str) -> None:
        """Has all text come in that encoding. Raises as `rows`."""
        with self._refusals("asking", "see that the server is up"):
            self._aside(lambda: self._connection.set_client_encoding(encoding), Clock(self._look))

    def let_go(self, query: str) -> None:
        """Tells the server to let go of something. One that does not listen does so when the session ends."""
        with suppress(DatabaseError):
            self._rows(query, Clock(allowed=_SECONDS_TO_LET_GO))

    def returns_rows(self, query: str) -> bool:
        """Whether a query returns any. Not more than one is fetched. Raises DatabaseError; so it does where
        it is more than one statement, or none that returns rows."""
        block = (
            f"DECLARE asked refcursor; BEGIN OPEN asked FOR EXECUTE {literal(query)};"
            " MOVE FORWARD 1 FROM asked;"
            " PERFORM pg_catalog.set_config('backup.returned', FOUND::pg_catalog.text, false); END"
        )
        self.rows(f"DO {literal(block)}")
        return bool(self.row("SELECT current_setting('backup.returned')::bool AS found")["found"])

    def copy_out(self, statement: bytes, sink: Writer, encoding: str) -> None:
        """Runs a COPY … TO STDOUT as pg_dump would: its bytes go to `sink`. The session's last use.

        Raises DatabaseError.
        """
        self.rows("; ".join([*AS_PG_DUMP_READS, f"SET client_encoding TO {literal(encoding)}"]))
        with (
            self._refusals("reading from", "see that the server is up, and what this role may read"),
            self._connection.cursor() as cursor,
        ):
            clock = Clock(self._look)
            self._aside(lambda: cursor.copy_expert(statement, _Moving(sink, clock)), clock)

    def _aside(self, work: Callable[[], object], clock: Clock) -> None:
        """In a thread, so that whoever waits for it can be interrupted, and sees when it stands still: libpq
        waits on, whatever comes. Then the server is told to give it up, and where it does not, the connection
        is cut."""
        with self._turn, ThreadPoolExecutor(1) as thread:
            running = thread.submit(work)
            try:
                clock.ends(running)
            except BaseException:
                if not running.done():
                    self._give_up(running)
                raise

    def _give_up(self, running: "Future[object]") -> None:
        """By another connection: libpq's own way of cancelling waits for a server that stands still, and all
        threads of ours with it."""
        with suppress(DatabaseUnreachable, psycopg2.Error, TimeoutError):
            within(_SECONDS_TO_GIVE_UP, partial(cancel, self.address, self._pid))
            wait([running], _SECONDS_TO_GIVE_UP)
        if not running.done():
            with (
                suppress(OSError, psycopg2.Error),
                socket.socket(fileno=os.dup(self._connection.fileno())) as ours,
            ):
                ours.shutdown(socket.SHUT_RDWR)

    @property
    def _pid(self) -> int:
        return int(self._connection.info.backend_pid)

    def _look(self) -> Look:
        return look_at(self.address, f"pid = {self._pid}")

    @contextmanager
    def _refusals(self, doing: str, hint: str) -> Iterator[None]:
        """What the server refuses, in our words."""
        try:
            yield
        except psycopg2.Error as error:
            raise DatabaseError(
                f"{doing} {self.address} failed: {first_line(error)}",
                hint=advice(str(error)) or hint,
                sqlstate=error.pgcode,
            ) from error
        except Stalled as stalled:
            raise stood_still(f"{doing} {self.address}", f"it stood still {stalled}") from None

    @property
    def is_sql_ascii(self) -> bool:
        return self._connection.get_parameter_status("server_encoding") == "SQL_ASCII"

    @property
    def server_major(self) -> int:
        return self._connection.server_version // 10_000

    def now(self) -> datetime:
        """The server's clock, in UTC."""
        time: datetime = self.row("SELECT clock_timestamp() AS time")["time"]
        return time.astimezone(UTC)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds this database's backup lock. Raises GuardRefused where another backup holds it."""
        key = f"({_LOCK[0]}, {_LOCK[1]})"
        if not self.row(f"SELECT pg_try_advisory_lock{key} AS got")["got"]:
            raise GuardRefused(
                f"another backup of {self.address} is running{self._lock_holder()}",
                hint="wait for it to end; one at a time is enough, on all hosts together",
            )
        try:
            yield
        finally:
            self.let_go(f"SELECT pg_advisory_unlock{key}")

    def _lock_holder(self) -> str:
        holders = self.rows(
            f"""
            SELECT a.pid, coalesce(a.client_addr::text, 'a local socket') AS client,
                   to_char(a.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') AS since
            FROM pg_locks l JOIN pg_stat_activity a USING (pid)
            WHERE l.locktype = 'advisory' AND l.granted AND l.classid = {_LOCK[0]} AND l.objid = {_LOCK[1]}
              AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            """
        )
        said = (f"server process {h['pid']} from {h['client']}, since {h['since']} UTC" for h in holders)
        return "".join(f" ({holder})" for holder in said)

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """A snapshot that others may take up while the block runs."""
        self.rows("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        try:
            taken = self.row("SELECT pg_export_snapshot() AS name, clock_timestamp() AS time")
            yield Snapshot(taken["name"], taken["time"])
        finally:
            self.let_go("ROLLBACK")

    def server(self) -> Server:
        said = self.row("SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS standby")
        return Server(**said, system_identifier=self._system_identifier())

    def _system_identifier(self) -> str | None:
        """None where this role may not ask (some hosted servers)."""
        allowed = "SELECT has_function_privilege('pg_catalog.pg_control_system()', 'execute') AS allowed"
        if not self.row(allowed)["allowed"]:
            return None
        return str(self.row("SELECT system_identifier AS id FROM pg_control_system()")["id"])

    def facts(self, of: str | None = None) -> DatabaseFacts:
        """What pg_dump without --create leaves out, and what a restore must bring back.

        `of` is another database of the server: of that one extensions and tablespaces are not known.
        """
        name = of or self.address.dbname
        # to_jsonb, since the columns of pg_database change from version to version
        row = self.row(
            f"""
            SELECT to_jsonb(d) AS d, pg_get_userbyid(d.datdba) AS owner,
                   {"0" if of else "pg_database_size(d.oid)"} AS bytes,
                   pg_encoding_to_char(d.encoding) AS encoding,
                   CASE WHEN NOT starts_with(c.description, {literal(MARK)}) THEN c.description END AS comment
            FROM pg_database d, shobj_description(d.oid, 'pg_database') c (description)
            WHERE d.datname = {literal(name)}
            """
        )
        known = row["d"]
        return DatabaseFacts(
            dbname=name,
            owner=row["owner"],
            encoding=row["encoding"],
            collate=known["datcollate"],
            ctype=known["datctype"],
            locale_provider={"i": "icu", "b": "builtin"}.get(known.get("datlocprovider", "c"), "libc"),
            locale=known.get("datlocale") or known.get("daticulocale"),
            connection_limit=known["datconnlimit"],
            grants=known["datacl"],
            comment=row["comment"],
            settings=[setting.withheld() for setting in self.settings(of)],
            extensions={} if of else self._extensions(),
            tablespaces=[] if of else self.tablespaces(),
            bytes=row["bytes"],
        )

    def _extensions(self) -> dict[str, str]:
        rows = self.rows("SELECT extname, extversion FROM pg_extension ORDER BY 1")
        return {row["extname"]: row["extversion"] for row in rows}

    def settings(self, of: str | None = None) -> list[Setting]:
        """ALTER DATABASE … SET and ALTER ROLE … IN DATABASE … SET, values included (`of`: see `facts`)."""
        name = literal(of or self.address.dbname)
        rows = self.rows(
            f"""
            SELECT r.rolname AS role, split_part(s, '=', 1) AS name, substr(s, strpos(s, '=') + 1) AS value
            FROM pg_db_role_setting d LEFT JOIN pg_roles r ON r.oid = d.setrole, unnest(d.setconfig) s
            WHERE d.setdatabase = (SELECT oid FROM pg_database WHERE datname = {name})
            ORDER BY 1, 2
            """
        )
        return [Setting(**row) for row in rows]

    def properties_sql(self, facts: DatabaseFacts, settings: Sequence[Setting], name: str) -> list[str]:
        """The statements that give a database called `name` these owner, limit, comment and settings.

        Settings whose value is withheld are left out.
        """
        database, owner = quoted(name), quoted(facts.owner)
        said = [
            f"ALTER DATABASE {database} OWNER TO {owner}",
            f"ALTER DATABASE {database} CONNECTION LIMIT {facts.connection_limit}",
        ]
        if facts.comment:
            said.append(f"COMMENT ON DATABASE {database} IS {literal(facts.comment)}")
        return said + self.settings_sql(settings, name)

    def settings_sql(self, settings: Sequence[Setting], name: str) -> list[str]:
        """The statements that give a database called `name` these settings, less those that are withheld."""
        return [setting_sql(setting, name) for setting in settings if setting.value is not None]

    def grants_sql(self, facts: DatabaseFacts, name: str) -> list[str]:
        """The statements that give a database called `name` these grants. Where none were ever made, none."""
        grants = ", ".join(literal(grant) for grant in facts.grants or ())
        rows = self.rows(
            f"""
            WITH d AS (SELECT {literal(name)}::text AS name, ARRAY[{grants}]::aclitem[] AS acl)
            SELECT 1 AS turn, format('REVOKE ALL ON DATABASE %I FROM PUBLIC', name) AS said
            FROM d WHERE cardinality(acl) > 0 UNION ALL
            SELECT 2, format('GRANT %s ON DATABASE %I TO %s%s', a.privilege_type, name,
                             CASE a.grantee WHEN 0 THEN 'PUBLIC'
                                            ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
                             CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
            FROM d, unnest(acl) granted, aclexplode(ARRAY[granted]) a ORDER BY 1, 2
            """
        )
        return [row["said"] for row in rows]

    def tablespaces(self) -> list[str]:
        """Those that this database's objects lie in, without the database's own default."""
        rows = self.rows(
            "SELECT DISTINCT spcname AS name FROM pg_tablespace t JOIN pg_class c ON c.reltablespace = t.oid"
            " WHERE c.relnamespace <> 'pg_catalog'::regnamespace AND t.spcname !~ '^pg_' ORDER BY 1"
        )
        return [row["name"] for row in rows]

    def may_read_password_hashes(self) -> bool:
        return bool(self.row("SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT') AS may")["may"])

    def expected_dump_bytes(self) -> int:
        """A guess at the plain dump's size: the tables and large objects on disk, without indexes."""
        row = self.row(
            """
            SELECT coalesce(sum(pg_table_size(c.oid)), 0) AS bytes FROM pg_class c
            WHERE c.relkind IN ('r', 'm') AND c.relnamespace <> 'information_schema'::regnamespace
              AND (c.relnamespace <> 'pg_catalog'::regnamespace OR c.relname = 'pg_largeobject')
            """
        )
        return int(row["bytes"])


def _safely(session: Session) -> Session:
    """Nothing that a database's owner defined or set may change what our queries mean, run as us, or end
    what we wait for: a session holds its lock and its snapshot as long as a dump or a load takes.

    All text comes as UTF-8; from SQL_ASCII, which is no encoding, as it is, a byte a character.
    """
    session.rows("SELECT pg_catalog.set_config('search_path', '', false)")
    session.rows(f"SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN ({_PATIENT})")
    session.rows("SET default_transaction_read_only TO off")
    session.speak("SQL_ASCII" if session.is_sql_ascii else "UTF8")
    return session


class _Moving:
    """A sink, and a clock that hears of all that comes to it. It may take its time."""

    def __init__(self, sink: Writer, clock: Clock) -> None:
        self._sink, self._clock = sink, clock

    def write(self, data: bytes) -> None:
        with self._clock.elsewhere():
            self._sink.write(data)


@contextmanager
def connected(address: Address) -> Iterator[Session]:
    """A session in autocommit mode, closed whatever happens. Raises DatabaseUnreachable."""
    seconds = int(address.parts.get("connect_timeout", _CONNECT_SECONDS))
    connection = connection_to(address, max(seconds, allowed()), connect_timeout=str(seconds))
    try:
        yield _safely(Session(connection, address))
    finally:
        connection.close()
