"""What a stall is: nothing has moved for BACKUP_STALL_SECONDS while we waited for it. No wait is without a
bound.

Whoever waits for a program or a server does it by a `Clock`. Where a server works for us, silence may be
honest: an index takes hours to build, and says nothing. So a clock can be given a way to look: while the
server says that it works on what we asked for, we wait on, up to TRUSTED times as long. Then, and where there
is nobody to ask, it is a stall.
"""

import fcntl
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import TypeVar

from backup_dag.core.in_words import length

T = TypeVar("T")

TRUSTED = 96
"""How many times as long a server is believed that says that it works: a day, by default. Where it has come
further meanwhile, that begins anew."""

_STEP = 1.0  # seconds after which whoever waits sees that another moved something, or is busy elsewhere
_SECONDS_FOR_A_LOCK = 30.0

_limit = 900.0


def allow(seconds: float) -> None:
    """Sets how long this process waits for what does not move: BACKUP_STALL_SECONDS."""
    global _limit
    _limit = float(seconds)


def allowed() -> float:
    """How long this process waits for what does not move, in seconds."""
    return _limit


class Stalled(Exception):
    """Nothing moved. The message says for how long, and why, where that is known."""


@dataclass(frozen=True)
class Look:
    """What was seen of whom we wait for. `said` is for people; `at` differs where they have come further."""

    working: bool
    said: str
    at: Hashable = None


class Clock:
    """Measures how long nothing has moved. `look` asks whoever works for us; where it is not `trusted`, only
    for the message: from a dump something has to come. `allowed` seconds, where it is less than usual.

    May be used by several threads at a time.
    """

    def __init__(
        self,
        look: Callable[[], Look] | None = None,
        *,
        trusted: bool = True,
        allowed: float | None = None,
    ) -> None:
        self._look, self._trusted = look, trusted
        self._limit = _limit if allowed is None else min(allowed, _limit)
        self._away = 0
        self._seen: Hashable = None
        self.moved()

    def moved(self) -> None:
        """Something did."""
        self._last = self._looked = time.monotonic()

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """While the block runs, what we wait for waits for someone else, who has a clock of their own."""
        self._away += 1
        try:
            yield
        finally:
            self._away -= 1
            self.moved()

    def until(self, true: Callable[[float], object]) -> None:
        """Waits until something is true, which is asked with the seconds that it may take to become so.

        Raises Stalled.
        """
        self.moved()
        while not true(max(0.001, min(_STEP, self._looked + self._limit - time.monotonic()))):
            self._check()

    def ends(self, work: "Future[T]") -> T:
        """Waits for the end of what runs in another thread; its result, or what it raised. Raises Stalled."""
        self.until(lambda seconds: wait_for([work], seconds).done)
        return work.result()

    def _check(self) -> None:
        """Raises Stalled."""
        now = time.monotonic()
        if self._away or now - self._looked < self._limit:
            return
        silent = f"for {length(now - self._last)}"
        seen = self._look() if self._look else Look(False, "")
        if not (seen.working and self._trusted and self._is_believed(seen)):
            raise Stalled(f"{silent}; {seen.said}" if seen.said else silent)
        self._looked = time.monotonic()

    def _is_believed(self, seen: Look) -> bool:
        if seen.at != self._seen:
            self._seen = seen.at
            self.moved()
        return time.monotonic() - self._last < TRUSTED * self._limit


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises, if it ends in that time. Raises TimeoutError, and then nobody waits for
    it any more, not even the end of this process."""
    ended = Future[T]()

    def run() -> None:
        try:
            ended.set_result(work())
        except BaseException as error:
            ended.set_exception(error)

    Thread(target=run, daemon=True).start()
    return ended.result(seconds)


def lock(handle: int, how: int) -> None:
    """flock, waited for like a line that another process writes: not for long. Raises OSError."""
    deadline = time.monotonic() + _SECONDS_FOR_A_LOCK
    while True:
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)
