"""Holds: a backup that somebody reads is held, and one whose reader died is let go of by itself."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backup_dag.core.errors import DiskError
from backup_dag.core.holds import held, holder, is_held, sweep_holds
from backup_dag.core.manifest import owner_of
from backup_dag.core.store.local import LocalStore
from tests.core.made import NOON, lay_out, manifest

DAY = timedelta(days=1)
ID, OTHER = manifest().id, manifest(time=NOON + timedelta(minutes=1)).id


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    lay_out(tmp_path)
    return LocalStore(tmp_path)


def left(store: LocalStore, text: str, age: timedelta = timedelta(0)) -> None:
    """A hold whose holder is gone, put there so long ago."""
    path = store.folder / ID.file("hold-1-120000000000.json")
    path.write_text(text)
    then = (datetime.now(UTC) - age).timestamp()
    os.utime(path, (then, then))


def until(moment: datetime) -> str:
    """Made a day before that."""
    return json.dumps({"since": (moment - DAY).isoformat(), "until": moment.isoformat()})


def test_a_backup_is_held_while_the_block_runs_and_no_other_is(store: LocalStore) -> None:
    before = sorted(store.folder.iterdir())
    with held(store, ID):
        assert is_held(store, ID)
        assert not is_held(store, OTHER)
        [hold] = [listed.name for listed in store.list() if ".hold-" in listed.name]
        assert owner_of(hold) == ID
    assert not is_held(store, ID)
    assert sorted(store.folder.iterdir()) == before


def test_two_may_hold_it_and_the_first_to_leave_lets_the_other_be(store: LocalStore) -> None:
    with held(store, ID):
        with held(store, ID):
            pass
        assert is_held(store, ID)


@pytest.mark.parametrize("wrong", [timedelta(0), timedelta(days=-900), timedelta(days=900)])
def test_a_hold_ends_at_its_time_by_itself_whatever_clock_its_holder_has(
    store: LocalStore, wrong: timedelta
) -> None:
    left(store, until(datetime.now(UTC) + wrong), DAY - timedelta(minutes=1))
    assert is_held(store, ID)
    left(store, until(datetime.now(UTC) + wrong), DAY + timedelta(minutes=1))
    assert not is_held(store, ID)


def test_a_hold_of_another_machine_is_not_judged_by_a_number_of_this_one(store: LocalStore) -> None:
    """Containers share their host's name; their processes have other numbers."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True)
    with held(store, ID):
        [note] = store.folder.glob("*.hold-*")
        text = json.loads(note.read_text())
    name = store.folder / ID.file(f"hold-{gone.stdout.decode().strip()}-1.json")
    name.write_text(json.dumps({**text, "machine": "another boot pid:[7]"}))
    assert is_held(store, ID)
    assert str(name.name) in holder(store, ID)
    sweep_holds(store, ID)
    assert name.exists()
    name.write_text(json.dumps(text))
    assert not is_held(store, ID)
    sweep_holds(store, ID)
    assert not name.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"until": 3}', '{"since": "now", "until": "soon"}', "{}"]
)
def test_a_hold_that_says_nothing_ends_two_days_after_it_was_put(store: LocalStore, text: str) -> None:
    left(store, text)
    assert is_held(store, ID)
    left(store, text, timedelta(hours=49))
    assert not is_held(store, ID)


def test_a_hold_that_is_too_large_for_one_is_not_read_and_holds(store: LocalStore) -> None:
    class Unread(LocalStore):
        def read(self, name: str) -> bytes:
            raise MemoryError(name)

    left(store, json.dumps([[]] * 10_000))
    assert is_held(Unread(store.folder), ID)


def test_a_hold_that_is_let_go_of_while_it_is_looked_at_is_none(store: LocalStore) -> None:
    class Leaving(LocalStore):
        def read(self, name: str) -> bytes:
            self.remove(name)
            return super().read(name)

    left(store, until(datetime.now(UTC) + timedelta(minutes=1)))
    assert not is_held(Leaving(store.folder), ID)


def test_a_hold_that_cannot_be_read_is_not_taken_for_none(store: LocalStore) -> None:
    class Failing(LocalStore):
        def read(self, name: str) -> bytes:
            raise DiskError(f"reading {name} failed")

    left(store, until(datetime.now(UTC) + timedelta(minutes=1)))
    with pytest.raises(DiskError):
        is_held(Failing(store.folder), ID)
