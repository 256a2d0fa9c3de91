"""What `make torture` once found, case by case: each was a promise that was not kept."""

import signal
from collections.abc import Iterator

import pytest

from torture.case import Case, run
from torture.disk import failing
from torture.kills import a_program, ours
from torture.proxy import Fault
from torture.storage import spoiled
from torture.world import World, world

SEED = 20261125
FOUND: dict[str, list[Case]] = {
    "a manifest that may not be read just now was called damaged": [
        spoiled("verify", Fault("403", 3)),
        spoiled("drill", Fault("403", 4)),
    ],
    "a copy was condemned for a listing that was cut short": [
        spoiled("drill", Fault("a listing cut short", at)) for at in (2, 3)
    ],
    "a clean-up left what a listing did not name": [
        spoiled("cleanup", Fault("a listing cut short", at)) for at in (14, 16)
    ],
    "a manifest whose upload was answered by silence, or could not be read back, lost its files": [
        spoiled("backup", Fault("reset once it is done", 15)),
        spoiled("backup", Fault("403", 16)),
        spoiled("backup", Fault("500", 16)),
    ],
    "a copy was condemned for one answer that it is not there": [spoiled("verify", Fault("404", 9))],
    "a landing that failed at its last call left the file": [
        failing(SEED, "restore", at, "once") for at in (45, 46, 47)
    ],
    "a gpg or pg_restore that was killed condemned the backup": [
        a_program(SEED, "verify", "gpg", signal.SIGKILL, 0),
        a_program(SEED, "archive", "pg_restore", signal.SIGKILL, 0),
    ],
    "folders of a drill that was killed stayed until the next drill": [
        *(ours(SEED, "drill", signal.SIGKILL, at, 10) for at in (3, 5)),
        *(a_program(SEED, "drill", "keeper.py", signal.SIGKILL, at) for at in (0, 1)),
    ],
}


@pytest.fixture(scope="module")
def made() -> Iterator[World]:
    with world() as one:
        yield one


@pytest.mark.parametrize("what", FOUND)
def test_it_is_kept_now(made: World, what: str) -> None:
    tallies = run(made, FOUND[what], lambda line: None).values()
    assert [found for tally in tallies for found in tally.found] == []
    assert sum(tally.tried for tally in tallies) > 0
