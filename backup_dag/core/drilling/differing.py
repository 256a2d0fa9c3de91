"""Which rows of a table differ from those that were backed up: the first of them, by their primary keys.

The rows as they were backed up are read from the artifact once more, into a schema beside the restored one,
and the server compares. It is a throw-away database, so anything may be put there.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from backup_dag.core.address import Address
from backup_dag.core.clients import Clients
from backup_dag.core.errors import DatabaseError
from backup_dag.core.postgres import Session, connected
from backup_dag.core.psql import loading
from backup_dag.core.reading import Source
from backup_dag.core.restoring.loading import loading_parameters
from backup_dag.core.restoring.rows import Differing
from backup_dag.core.sql import literal, quoted
from backup_dag.core.stages.fingerprint import Fingerprint
from backup_dag.core.stream import Writer

_SCHEMA = "backup_dag_promised"
_MOST_TABLES, _MOST_KEYS, _LONGEST_KEY = 10, 5, 80


def with_keys(
    source: Source, restored: Address, clients: Clients, server_major: int, tables: Sequence[Differing]
) -> tuple[Differing, ...]:
    """The same, with the first rows that differ, where a table has a primary key and its columns are the
    same.

    Raises what reading the artifact raises. What the server cannot compare has no keys.
    """
    wanted = [each for each in tables if each.expected is not None and each.found is not None][:_MOST_TABLES]
    keyed = {each.table: key for each in wanted if (key := _key_of(restored, each.table))}
    found: dict[str, tuple[str, ...]] = {}
    for name, key in keyed.items():
        with suppress(DatabaseError):
            found[name] = _keys(source, restored, clients, server_major, name, key)
    return tuple(replace(each, keys=found.get(each.table, ())) for each in tables)


def _key_of(restored: Address, table: str) -> list[str]:
    """The columns of its primary key; none where it has none."""
    with connected(restored) as session:
        rows = session.rows(
            f"""
            SELECT attname AS name FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k (number, at)
            JOIN pg_attribute a ON a.attnum = k.number
            WHERE i.indisprimary AND i.indrelid = to_regclass({literal(table)}) AND a.attrelid = i.indrelid
            ORDER BY k.at
            """
        )
    return [row["name"] for row in rows]


def _keys(
    source: Source, restored: Address, clients: Clients, server_major: int, table: str, key: Sequence[str]
) -> tuple[str, ...]:
    with connected(restored) as session:
        session.rows(f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}")
        session.rows(f"DROP TABLE IF EXISTS {_SCHEMA}.t")
        with loading(restored, clients, loading_parameters(server_major)) as psql:
            promised = _Promised(psql, table)
            source.read(Fingerprint(rows=promised.rows_of))
            promised.finish()
        by, columns, now = ", ".join(map(quoted, key)), _columns(session), _only(session, table)
        rows = session.rows(
            f"""
            SELECT {", ".join(f"left({each}::text, {_LONGEST_KEY}) AS {each}" for each in map(quoted, key))},
                   CASE WHEN now IS NULL THEN 'missing' WHEN before IS NULL THEN 'added' ELSE 'changed' END
                   AS "what is it"
            FROM (SELECT {by}, one::text AS before FROM (SELECT {columns} FROM {_SCHEMA}.t) one) p
            FULL JOIN (SELECT {by}, one::text AS now FROM (SELECT {columns} FROM {now}) one) f
            USING ({by}) WHERE before IS DISTINCT FROM now ORDER BY {by} LIMIT {_MOST_KEYS}
            """
        )
        session.rows(f"DROP SCHEMA {_SCHEMA} CASCADE")
    return tuple(f"({', '.join(str(row[name]) for name in key)}) {row['what is it']}" for row in rows)


def _only(session: Session, table: str) -> str:
    """Where its rows are read from: a partitioned table's are its partitions', through it."""
    kind = session.row(f"SELECT relkind FROM pg_class WHERE oid = {literal(table)}::regclass")["relkind"]
    return table if kind == "p" else f"ONLY {table}"


def _columns(session: Session) -> str:
    """Those that were backed up, in their order: the server knows their names in every encoding."""
    rows = session.rows(
        f"SELECT attname FROM pg_attribute WHERE attrelid = '{_SCHEMA}.t'::regclass AND attnum > 0"
        " ORDER BY attnum"
    )
    return ", ".join(quoted(row["attname"]) for row in rows)


@dataclass
class _Promised:
    """Writes one table's rows, as they were backed up, into a table of the same columns."""

    psql: Writer
    table: str

    def rows_of(self, name: str, what: bytes) -> Writer | None:
        if name != self.table:
            return None
        columns = what[what.index(b" (") + 2 : -1]
        made = b"CREATE UNLOGGED TABLE %b.t AS SELECT %b FROM ONLY %b WITH NO DATA;\n"
        schema = _SCHEMA.encode()
        self.psql.write(made % (schema, columns, self.table.encode()))
        self.psql.write(b"COPY %b.t (%b) FROM stdin;\n" % (schema, columns))
        return self.psql

    def finish(self) -> None:
        self.psql.write(b"\\.\n")
