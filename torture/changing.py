"""Tables and what else there is, changed under pg_dump: once it knows of them, before it has their locks.

Left to chance that moment is not met: pg_dump reads the catalog and locks all tables in a few
milliseconds. So the change is made in a transaction that stays open until pg_dump waits for it, and ends
then. The backup's snapshot is from before the change.
"""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import psycopg2

from torture.case import Allowed, Case, NotKept, Unreached
from torture.world import DATABASE, Ended, Running, World

ROWS = 500
_ROWS = f"CREATE TABLE passing.rows AS SELECT n, n::text AS what FROM generate_series(1, {ROWS}) n"
_FIRST = (
    "CREATE SCHEMA passing",
    _ROWS,
    "CREATE INDEX by_n ON passing.rows (n)",
    "CREATE VIEW passing.seen AS SELECT 1 AS one",
    "CREATE MATERIALIZED VIEW passing.kept AS SELECT 1 AS one",
    "CREATE SEQUENCE passing.counter",
    "CREATE TYPE passing.mood AS ENUM ('well', 'ill')",
    "CREATE FUNCTION passing.twice(n int) RETURNS int LANGUAGE sql AS 'SELECT 2 * n'",
    "CREATE FUNCTION passing.same() RETURNS trigger LANGUAGE plpgsql AS 'begin return new; end'",
    "CREATE TRIGGER same BEFORE INSERT ON passing.rows FOR EACH ROW EXECUTE FUNCTION passing.same()",
    "CREATE STATISTICS passing.both ON n, what FROM passing.rows",
    "CREATE TYPE passing.pair AS (first passing.mood, second int)",
)
_TAKES_THE_LOCK = "LOCK TABLE passing.rows IN ACCESS EXCLUSIVE MODE"
_TABLE = "SELECT 'passing.rows'::regclass::oid"
_WAITS = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = {}"
_CHANGES = {
    "a table is dropped": "DROP TABLE passing.rows",
    "a table is renamed": "ALTER TABLE passing.rows RENAME TO others",
    "a table gets a column": "ALTER TABLE passing.rows ADD COLUMN more int",
    "a table loses a column": "ALTER TABLE passing.rows DROP COLUMN what",
    "a table is rewritten": "ALTER TABLE passing.rows ALTER COLUMN n TYPE bigint",
    "a table is emptied": "TRUNCATE passing.rows",
    "a table is moved": "CLUSTER passing.rows USING by_n",
    "a view is dropped": "DROP VIEW passing.seen",
    "a materialized view is dropped": "DROP MATERIALIZED VIEW passing.kept",
    "a sequence is dropped": "DROP SEQUENCE passing.counter",
    "a type is dropped": "DROP TYPE passing.pair; DROP TYPE passing.mood",
    "a table is made again": f"DROP TABLE passing.rows; {_ROWS}",
    "an index is dropped": "DROP INDEX passing.by_n",
    "a trigger is dropped": "DROP TRIGGER same ON passing.rows",
    "statistics are dropped": "DROP STATISTICS passing.both",
    "a function is dropped": "DROP FUNCTION passing.twice",
}


def changing(seed: int) -> Iterator[Case]:
    """Each change once: there is but the one moment, and it is met."""
    for name, statement in _CHANGES.items():
        yield _changed(name, statement)


def _changed(what: str, statement: str) -> Case:
    name = f"database/backup/{what} under pg_dump"

    def strike(world: World) -> tuple[Ended, Allowed]:
        with ExitStack() as stack:
            stack.callback(world.does, "DROP SCHEMA IF EXISTS passing CASCADE", database=DATABASE)
            world.does(*_FIRST, database=DATABASE)
            table = world.asked(_TABLE)
            other = stack.enter_context(closing(psycopg2.connect(world.url, connect_timeout=10)))
            with other.cursor() as cursor:
                cursor.execute(_TAKES_THE_LOCK)
                cursor.execute(statement)
            running = world.start("backup")
            met = _waited_for(world, running, table)
            other.commit()
            ended = running.ended()
        if not met:
            raise Unreached(name)
        if ended.status == 0:
            _must_be_whole(world)
        return ended, frozenset({0, 4})

    return Case("database: changed under pg_dump", name, strike)


def _waited_for(world: World, running: Running, table: int) -> bool:
    """Whether somebody came to wait for the table: by its oid, which nobody else sees renamed or gone."""
    while running.process.is_alive():
        if world.asked(_WAITS.format(table), DATABASE):
            return True
        time.sleep(0.01)
    return False


def _must_be_whole(world: World) -> None:
    """All rows of the snapshot are in the newest backup, and it can be loaded: by a drill, since only a
    server can tell."""
    if (held := rows_of_the_newest(world).get("passing.rows")) != ROWS:
        raise NotKept(f"of {ROWS} rows of the snapshot, {held} are in a backup that ended well")
    drilled = world.run("drill")
    if drilled.status != 0:
        raise NotKept(f"a backup that ended well cannot be restored: {drilled.said[-300:]}")


def rows_of_the_newest(world: World) -> dict[str, int]:
    """How many rows of each table the newest backup in the folder promises."""
    newest = max(path for path in world.backups.glob("backup_*.json") if path.name.count(".") == 1)
    tables = json.loads(newest.read_text())["content"]["tables"]
    return {name: table["rows"] for name, table in tables.items()}
