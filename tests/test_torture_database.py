"""A small part of `make torture`: troubles of a database that take a moment, or a server, of their own; and
that each of them is really met."""

import os
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest

from torture.case import Case, run
from torture.changing import changing
from torture.no_room import no_room, times_without_room
from torture.standby import standby_of, standing_by, times_cancelled
from torture.world import DATABASE, World, world

SEED = 20261125
CANCELLED = "SELECT sum(confl_snapshot + confl_lock) FROM pg_stat_database_conflicts"


@pytest.fixture(scope="module")
def made() -> Iterator[World]:
    with world() as one:
        yield one


def named(cases: Iterator[Case], *names: str) -> list[Case]:
    chosen = [case for case in cases if case.name in names]
    assert len(chosen) == len(names)
    return chosen


def keeps_every_promise(made: World, cases: list[Case]) -> None:
    tallies = run(made, cases, lambda line: None, times=8).values()
    assert [found for tally in tallies for found in tally.found] == []
    assert sum(tally.tried for tally in tallies) == len(cases)


def test_a_standby_that_cancels_leaves_no_backup_that_is_not_whole(made: World) -> None:
    keeps_every_promise(made, named(standing_by(SEED), "database/backup of a standby/a table is dropped/1"))
    standby = standby_of(made)
    assert times_cancelled(standby) > 0
    with closing(psycopg2.connect(standby.url(DATABASE))) as connection, connection.cursor() as cursor:
        cursor.execute(CANCELLED)
        assert cursor.fetchall()[0][0] > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_target_without_room_stays_what_it_was(made: World) -> None:
    before = times_without_room(made)
    keeps_every_promise(made, named(no_room(SEED), "database/restore/no room on the target/2"))
    assert times_without_room(made) > before


def test_a_table_that_changes_under_pg_dump_is_told(made: World) -> None:
    keeps_every_promise(made, named(changing(SEED), "database/backup/a table loses a column under pg_dump"))


@pytest.mark.parametrize(
    "what",
    [
        "a table is rewritten",
        "a table is emptied",
        "a table is made again",
        "an index is dropped",
        "a trigger is dropped",
        "statistics are dropped",
        "a type is dropped",
        "a function is dropped",
    ],
)
def test_what_pg_dump_loses_in_silence_is_told(made: World, what: str) -> None:
    """Its snapshot sees a table that was rewritten since as empty; what was dropped since it leaves out, or
    writes so that nobody can load it."""
    made.reset()
    [case] = named(changing(SEED), f"database/backup/{what} under pg_dump")
    ended, _ = case.strike(made)
    assert ended.status == 4
    assert "would be missing" in ended.said
    assert " passing." in ended.said
    assert "run it again" in ended.said
