"""The database's own troubles: sessions ended, limits of time, tables locked, dropped or changed meanwhile,
passwords changed, no slot left. What takes a moment of its own, or a server, has a room: changing, standby,
no_room."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass

import psycopg2

from torture.case import Allowed, Case, drawn
from torture.changing import changing
from torture.no_room import no_room
from torture.standby import standing_by
from torture.world import DATABASE, PASSWORD, Ended, World

_WORDS = {
    "backup": ("backup",),
    "restore": ("restore", "--force"),
    "restore in place": ("restore", "--force", "--mode", "in-place"),
}
_OURS_ENDED = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE pid <> pg_backend_pid() AND application_name ~ '^(backup-dag|pg_dump|psql|pg_restore)'"
)


@dataclass(frozen=True)
class _Trouble:
    """What is done before, `during` and after a verb; `allowed` are the exit statuses that are right then."""

    during: Callable[[World, float], None]
    allowed: Allowed = frozenset({0, 4, 8})  # 8: a plan that finds that the target cannot be connected to
    verbs: tuple[str, ...] = tuple(_WORDS)


def database(seed: int, *, times: int = 4) -> Iterator[Case]:
    """Each trouble of each verb at so many moments."""
    for trouble, how in _TROUBLES.items():
        for verb in how.verbs:
            for at in range(times):
                yield _troubled(seed, verb, trouble, how, at)
    yield from changing(seed)
    yield from standing_by(seed, times=times)
    yield from no_room(seed, times=times)


def _troubled(seed: int, verb: str, trouble: str, how: _Trouble, at: int) -> Case:
    name = f"database/{verb}/{trouble}/{at}"

    def strike(world: World) -> tuple[Ended, Allowed]:
        with ExitStack() as stack:
            stack.callback(_as_it_was, world)
            running = world.start(*_WORDS[verb])
            later = threading.Thread(target=how.during, args=(world, drawn(seed, name).random() * 1.2))
            later.start()
            ended = running.ended()
            later.join()
        return ended, how.allowed

    return Case("database's own troubles", name, strike)


def _as_it_was(world: World) -> None:
    """The role may log in as before, whatever was changed of it."""
    with suppress(psycopg2.Error):
        world.does(f"ALTER ROLE postgres PASSWORD '{PASSWORD}'")
        world.does("ALTER ROLE postgres RESET ALL")


def _sessions_ended(world: World, after: float) -> None:
    time.sleep(after)
    with suppress(psycopg2.Error):
        world.does(_OURS_ENDED)


def _ended_over_and_over(world: World, after: float) -> None:
    """For a while, whoever connects."""
    deadline = time.monotonic() + 1 + after
    while time.monotonic() < deadline:
        with suppress(psycopg2.Error):
            world.does(_OURS_ENDED)
        time.sleep(0.1)


def _short_limits(world: World, after: float) -> None:
    """A role whose statements, locks and idle transactions may take no time at all."""
    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        world.does(f"ALTER ROLE postgres SET {name} = '20ms'")


def _a_table_locked(world: World, after: float) -> None:
    time.sleep(after / 4)
    with (
        suppress(psycopg2.Error),
        closing(psycopg2.connect(world.postgres.url(DATABASE))) as other,
        other.cursor() as cursor,
    ):
        cursor.execute("SET lock_timeout = '5s'")
        cursor.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
        time.sleep(1)


def _a_table_that_comes_and_goes(world: World, after: float) -> None:
    deadline = time.monotonic() + 1 + after
    while time.monotonic() < deadline:
        with suppress(psycopg2.Error):
            world.does(
                "SET lock_timeout = '200ms'",
                "CREATE TABLE passing AS SELECT 1 AS one",
                "ALTER TABLE passing ADD COLUMN two int",
                "DROP TABLE passing",
                database=DATABASE,
            )
    with suppress(psycopg2.Error):
        world.does("SET lock_timeout = '20s'", "DROP TABLE IF EXISTS passing", database=DATABASE)


def _another_password(world: World, after: float) -> None:
    time.sleep(after)
    with closing(psycopg2.connect(world.postgres.url())) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("ALTER ROLE postgres PASSWORD 'another'")
            time.sleep(1.5)
            cursor.execute(f"ALTER ROLE postgres PASSWORD '{PASSWORD}'")


def _no_slot_left(world: World, after: float) -> None:
    time.sleep(after / 2)
    with ExitStack() as stack:
        with suppress(psycopg2.Error):
            while True:
                stack.enter_context(closing(psycopg2.connect(world.postgres.url())))
        time.sleep(1)


_TROUBLES = {
    "its sessions are ended": _Trouble(_sessions_ended),
    "its sessions are ended over and over": _Trouble(_ended_over_and_over),
    "limits of time": _Trouble(_short_limits, frozenset({0})),
    "a table is locked": _Trouble(_a_table_locked, frozenset({0}), ("backup",)),
    "tables come, change and go": _Trouble(_a_table_that_comes_and_goes, verbs=("backup",)),
    "the password is changed": _Trouble(_another_password),
    "no slot is left": _Trouble(_no_slot_left),
}
