"""A standby that cancels our queries: it replays what the primary did, and whatever stands in the way goes.

Backups are made of the standby, while on the primary rows that the backup still sees are vacuumed away, or a
table that it reads is dropped. The standby waits for nobody.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import psycopg2

from demo.servers import Standby
from torture.case import Allowed, Case, NotKept, Unreached, drawn
from torture.changing import rows_of_the_newest
from torture.world import DATABASE, Ended, Running, World

CANCELLED = "conflict with recovery"
"""What the standby's log says of each query and each session that it ends."""
_FIRST = (
    "CREATE SCHEMA passing",
    "CREATE TABLE passing.rows AS SELECT n, md5(n::text) AS what FROM generate_series(1, 100000) n",
    "CREATE TABLE passing.few AS SELECT n FROM generate_series(1, 100) n",
)
_TABLES = ("items", "orders", "later")


@dataclass(frozen=True)
class _Conflict:
    """What the primary does, `within` so many seconds `since` the standby answers that with true."""

    statements: tuple[str, ...]
    since: str
    within: float


_OTHERS = (
    "SELECT count(*) > 0 FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE pid <> pg_backend_pid() AND"
)
_CONFLICTS = {
    "rows are vacuumed away": _Conflict(
        ("DELETE FROM passing.few", "VACUUM passing.few"),
        f"{_OTHERS} datname = current_database() AND state = 'idle in transaction'",
        0.3,
    ),
    "a table is dropped": _Conflict(
        ("DROP TABLE passing.rows",), f"{_OTHERS} granted AND relation = 'passing.rows'::regclass", 0.1
    ),
}
_AS_NO_ROOM_NEEDS = {"allow_in_place_tablespaces": "on"}
"""Without it no standby starts where `no_room` has made its tablespace."""
_LONGEST_LAG = 20.0  # seconds

_standbys: dict[World, Standby] = {}


def standing_by(seed: int, *, times: int = 4) -> Iterator[Case]:
    """Each conflict at so many moments of a backup."""
    for conflict in _CONFLICTS:
        for at in range(times):
            yield _cancelled(seed, conflict, at, times)


def standby_of(world: World) -> Standby:
    """A world's only one, made when it is first asked for, which ends with it. It has replayed all."""
    if world not in _standbys:
        standby = Standby(world.folder / "standby", world.postgres, _AS_NO_ROOM_NEEDS)
        _standbys[world] = world._stack.enter_context(standby)
        world._stack.callback(_standbys.pop, world)
    standby = _standbys[world]
    written, deadline = (
        world.asked("SELECT pg_current_wal_lsn()", "postgres"),
        time.monotonic() + _LONGEST_LAG,
    )
    while not _asked(standby, f"SELECT pg_last_wal_replay_lsn() >= '{written}'", "postgres"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the standby does not follow, see {standby.log}")
        time.sleep(0.02)
    return standby


def _asked(standby: Standby, query: str, database: str = DATABASE) -> object:
    with closing(psycopg2.connect(standby.url(database), connect_timeout=10)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(query)
            [(value,)] = cursor.fetchall()
    return value


def _cancelled(seed: int, conflict: str, at: int, of: int) -> Case:
    name, how = f"database/backup of a standby/{conflict}/{at}", _CONFLICTS[conflict]

    def strike(world: World) -> tuple[Ended, Allowed]:
        with ExitStack() as stack:
            stack.callback(world.does, "DROP SCHEMA IF EXISTS passing CASCADE", database=DATABASE)
            world.does(*_FIRST, database=DATABASE)
            standby = standby_of(world)
            before = times_cancelled(standby)
            running = world.start("backup", changed={"DATABASE_URL": standby.url(DATABASE)})
            _wait_until(standby, how.since, running)
            time.sleep(how.within * (at + drawn(seed, name).random()) / of)
            world.does(*how.statements, database=DATABASE)
            ended = running.ended()
        if times_cancelled(standby) == before:
            raise Unreached(name)
        if ended.status == 0:
            _must_be_whole(world)
        return ended, frozenset({0, 4})

    return Case("database: a standby that cancels", name, strike)


def _wait_until(standby: Standby, query: str, running: Running) -> None:
    """By one connection: the moments after it are short."""
    with closing(psycopg2.connect(standby.url(DATABASE), connect_timeout=10)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            while running.process.is_alive():
                cursor.execute(query)
                if cursor.fetchall() == [(True,)]:
                    return
                time.sleep(0.005)


def times_cancelled(standby: Standby) -> int:
    return standby.log.read_text(errors="replace").count(CANCELLED)


def _must_be_whole(world: World) -> None:
    held = rows_of_the_newest(world)
    for table in _TABLES:
        there = world.asked(f"SELECT count(*) FROM {table}")
        if held.get(f"public.{table}") != there:
            raise NotKept(f"of {there} rows of {table}, {held.get(f'public.{table}')} are in the backup")
