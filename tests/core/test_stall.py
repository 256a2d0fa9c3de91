"""Clocks: what moves is waited for, what does not is a stall; who says that they work is believed a while."""

import fcntl
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backup_dag.core import stall
from backup_dag.core.settings import load
from backup_dag.core.stall import Clock, Look, Stalled, within


@pytest.fixture(autouse=True)
def _impatient() -> None:
    stall.allow(0.2)


def never(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def test_what_comes_to_pass_is_waited_for() -> None:
    event = threading.Event()
    threading.Timer(0.1, event.set).start()
    Clock().until(event.wait)


def test_what_does_not_is_a_stall_that_says_for_how_long() -> None:
    stall.allow(2)
    began = time.monotonic()
    with pytest.raises(Stalled, match=r"^for 2 s$"):
        Clock().until(never)
    assert 2 <= time.monotonic() - began < 3


def test_each_wait_begins_anew() -> None:
    clock = Clock()
    time.sleep(0.3)
    event = threading.Event()
    threading.Timer(0.1, event.set).start()
    clock.until(event.wait)


def test_another_thread_that_moves_something_is_seen() -> None:
    clock, event = Clock(), threading.Event()

    def move() -> None:
        for _ in range(5):
            time.sleep(0.1)
            clock.moved()
        event.set()

    threading.Thread(target=move).start()
    clock.until(event.wait)


def test_who_waits_for_someone_else_is_not_blamed() -> None:
    clock, event = Clock(), threading.Event()

    def wait_elsewhere() -> None:
        with clock.elsewhere():
            time.sleep(0.6)
        event.set()

    threading.Thread(target=wait_elsewhere).start()
    clock.until(event.wait)


def test_who_says_that_they_work_is_believed_and_asked_again() -> None:
    looks, event = [], threading.Event()

    def look() -> Look:
        looks.append(time.monotonic())
        return Look(len(looks) < 4, "not any more")

    with pytest.raises(Stalled, match="not any more"):
        Clock(look).until(event.wait)
    assert len(looks) == 4
    assert looks[-1] - looks[0] > 0.55


def test_they_are_not_believed_for_ever_unless_they_come_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "TRUSTED", 3)
    stall.allow(0.1)
    began = time.monotonic()
    with pytest.raises(Stalled, match="they work"):
        Clock(lambda: Look(True, "they work")).until(never)
    assert 0.3 <= time.monotonic() - began < 1
    event = threading.Event()
    threading.Timer(0.8, event.set).start()
    Clock(lambda: Look(True, "they work", at=time.monotonic())).until(event.wait)


def test_from_a_dump_something_has_to_come_whatever_they_say() -> None:
    with pytest.raises(Stalled, match=r"; they work$"):
        Clock(lambda: Look(True, "they work"), trusted=False).until(never)


def test_work_in_another_thread_gives_its_result_or_raises() -> None:
    with ThreadPoolExecutor(1) as thread:
        assert Clock().ends(thread.submit(lambda: 5)) == 5
        with pytest.raises(ZeroDivisionError):
            Clock().ends(thread.submit(lambda: 1 // 0))
        with pytest.raises(Stalled):
            Clock().ends(thread.submit(time.sleep, 0.6))


def test_what_takes_too_long_is_left_behind() -> None:
    assert within(1, lambda: 5) == 5
    with pytest.raises(TimeoutError):
        within(0.1, lambda: time.sleep(1))


def test_a_lock_is_waited_for_and_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "_SECONDS_FOR_A_LOCK", 0.5)
    ours, theirs = (os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR) for _ in range(2))
    fcntl.flock(theirs, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError):
        stall.lock(ours, fcntl.LOCK_EX)
    threading.Timer(0.2, fcntl.flock, [theirs, fcntl.LOCK_UN]).start()
    stall.lock(ours, fcntl.LOCK_EX)
    os.close(ours)
    os.close(theirs)


def test_the_setting_is_for_the_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUP_STALL_SECONDS", "77")
    load(None)
    assert stall.allowed() == 77
