"""A session on a server: its snapshot and lock, and the facts that a restore will need."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import encodings
from psycopg2.extras import RealDictCursor

from backup_dag.core.address import Address
from backup_dag.core.errors import DatabaseError, DatabaseUnreachable, GuardRefused
from backup_dag.core.manifest import DatabaseFacts, Server, Setting
from backup_dag.core.stream import Writer

MARK = "backup-dag {"
"""What the comment of a database begins with that a restore made or keeps; `marks.py` reads the rest."""

_LOCK = (0x6261636B, 0x64616721)
"""The advisory lock's key. Such locks belong to one database, so one key serves them all."""

encodings.update(SQL_ASCII="latin-1", SQLASCII="latin-1")  # psycopg2 takes it for ASCII, and fails at more
_CONNECT_SECONDS = 10

DUMPING = {"timezone": "UTC", "bytea_output": "hex", "quote_all_identifiers": "off"}
"""What pg_dump leaves to the session's settings, and changes its text: set for every dump, so that the same
content is the same text wherever and whenever it is dumped."""

AS_PG_DUMP_READS = (
    "SET search_path TO ''",
    "SET DateStyle TO ISO",
    "SET IntervalStyle TO postgres",
    "SET extra_float_digits TO 3",
    "SET row_security TO off",
    "SET synchronize_seqscans TO off",
    *(f"SET {name} TO '{value}'" for name, value in DUMPING.items()),
)
"""What makes COPY write values as our dumps have them (`setup_connection` in pg_dump.c, and DUMPING)."""

_PATIENT = "'statement_timeout', 'lock_timeout', 'idle_session_timeout', 'transaction_timeout',\
 'idle_in_transaction_session_timeout'"

_ELEMENT = re.compile(r'"(?:[^"]|"")*"|[^\s,"]+')
_LIST = re.compile(rf"\s*(?:(?:{_ELEMENT.pattern})\s*(?:,\s*(?:{_ELEMENT.pattern})\s*)*)?")
_QUOTED_LISTS = {
    "local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries",
    "temp_tablespaces", "unix_socket_directories",
}  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """A moment of the database that pg_dump is told to dump. `time` is the server's clock, in UTC."""

    name: str
    time: datetime


class Session:
    """A connection to one database, for facts about it and for the snapshot that is dumped."""

    def __init__(self, connection: Connection, address: Address) -> None:
        self._connection, self.address = connection, address

    def row(self, query: str) -> dict[str, Any]:
        """The first row. Raises DatabaseError."""
        rows = self.rows(query)
        return rows[0]

    def rows(self, query: str) -> list[dict[str, Any]]:
        try:
            with self._connection.cursor(cursor_factory=RealDictCursor) as cursor:
                cursor.execute(query)
                return [dict(row) for row in cursor.fetchall()] if cursor.description else []
        except psycopg2.Error as error:
            raise DatabaseError(
                f"asking {self.address} failed: {_first_line(error)}",
                hint="see that the server is up, and what this role may do there",
                sqlstate=error.pgcode,
            ) from error

    def copy_out(self, statement: bytes, sink: Writer, encoding: str) -> None:
        """Runs a COPY … TO STDOUT as pg_dump would: its bytes go to `sink`. The session's last use.

        Raises DatabaseError.
        """
        self.rows("; ".join([*AS_PG_DUMP_READS, f"SET client_encoding TO {literal(encoding)}"]))
        try:
            with self._connection.cursor() as cursor:
                cursor.copy_expert(statement, sink)
        except psycopg2.Error as error:
            raise DatabaseError(
                f"reading from {self.address} failed: {_first_line(error)}",
                hint="see that the server is up, and what this role may read",
                sqlstate=error.pgcode,
            ) from error

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
            with suppress(DatabaseError):  # a connection that has gone has let go of it
                self.row(f"SELECT pg_advisory_unlock{key} AS released")

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
            with suppress(DatabaseError):
                self.rows("ROLLBACK")

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
        return said + [_setting_sql(setting, name) for setting in settings if setting.value is not None]

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


def _safely(session: Session, connection: Connection) -> Session:
    """Nothing that a database's owner defined or set may change what our queries mean, run as us, or end
    what we wait for: a session holds its lock and its snapshot as long as a dump or a load takes.

    All text comes as UTF-8; from SQL_ASCII, which is no encoding, as it is, a byte a character.
    """
    session.rows("SELECT pg_catalog.set_config('search_path', '', false)")
    session.rows(f"SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN ({_PATIENT})")
    session.rows("SET default_transaction_read_only TO off")
    connection.set_client_encoding("SQL_ASCII" if session.is_sql_ascii else "UTF8")
    return session


def _setting_sql(setting: Setting, dbname: str) -> str:
    database = quoted(dbname)
    whose = f"ROLE {quoted(setting.role)} IN DATABASE {database}" if setting.role else f"DATABASE {database}"
    value = setting.value or ""
    said = _list_sql(value) if setting.name in _QUOTED_LISTS else literal(value)
    name = ".".join(quoted(part) for part in setting.name.split("."))
    return f"ALTER {whose} SET {name} TO {said}"


def _list_sql(value: str) -> str:
    """A list that is stored quoted already (GUC_LIST_QUOTE in PostgreSQL's guc_tables.c), element by element:
    it may come from a manifest, and stands in a statement of ours."""
    if not _LIST.fullmatch(value):
        return literal(value)
    elements = [found[0] for found in _ELEMENT.finditer(value)]
    plain = (each[1:-1].replace('""', '"') if each.startswith('"') else each for each in elements)
    return ", ".join(map(literal, plain)) or "''"


@contextmanager
def connected(address: Address) -> Iterator[Session]:
    """A session in autocommit mode, closed whatever happens. Raises DatabaseUnreachable."""
    timeout = str(address.parts.get("connect_timeout", _CONNECT_SECONDS))
    try:
        connection = psycopg2.connect(
            address.for_argv(connect_timeout=timeout), password=address.parts.get("password")
        )
    except psycopg2.Error as error:
        raise DatabaseUnreachable(
            f"connecting to {address} failed: {_first_line(error)}",
            hint="check that the server runs and is reachable from here, and the user, password and"
            " database name in its url",
        ) from error
    connection.autocommit = True
    try:
        yield _safely(Session(connection, address), connection)
    finally:
        connection.close()


def quoted(identifier: str) -> str:
    """An identifier as SQL text."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(value: str) -> str:
    """A string as an SQL literal, whatever standard_conforming_strings says."""
    text = "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
    return f"E{text}" if "\\" in value else text


def _first_line(error: psycopg2.Error) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
