"""What flows: blocks of bytes, pushed from a source through writers that wrap writers.

A stage is a context manager that is handed the next writer and yields its own. Leaving the block
without an exception means that everything written arrived; leaving it with one means that nothing
behind it may be kept. So a pipeline is read from the inside out, and aborts from the inside out.
"""

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from backup_dag.core.manifest import Bytes

BLOCK = 1 << 20
"""Bytes moved at a time. Large enough that Python's share of the work vanishes."""


class Writer(Protocol):
    """Takes bytes, all of them or an exception."""

    def write(self, data: bytes, /) -> object: ...


class Both:
    """Hands each block to two writers, one after the other."""

    def __init__(self, first: Writer, second: Writer) -> None:
        self._first, self._second = first, second

    def write(self, data: bytes) -> None:
        self._first.write(data)
        self._second.write(data)


@dataclass(frozen=True)
class Passed:
    """How far a stream has come: bytes done, bytes expected (None: unknown), seconds spent."""

    done: int
    expected: int | None
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes per second since the start."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    def __str__(self) -> str:
        said = f"{self.done / 1e6:,.1f} MB at {self.rate / 1e6:,.1f} MB/s"
        if self.expected:
            said += f", about {min(99, 100 * self.done // self.expected)} % of {self.expected / 1e6:,.1f} MB"
        return said


Observer = Callable[[Passed], None]

Watch = Callable[[str], Observer | None]
"""From what is being done, in words, to whoever watches it."""


class Hashing:
    """Hands everything on to `sink` (None: nowhere), and knows its length and SHA-256 so far."""

    def __init__(self, sink: Writer | None = None) -> None:
        self._sink = sink
        self._sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> None:
        self._sha256.update(data)
        self.bytes += len(data)
        if self._sink is not None:
            self._sink.write(data)

    def seen(self) -> Bytes:
        return Bytes(bytes=self.bytes, sha256=self._sha256.hexdigest())


class Meter:
    """Counts what passes, and tells the observer at the first byte and then now and then.

    May be told from several threads.
    """

    def __init__(
        self,
        observer: Observer | None,
        *,
        expected: int | None,
        sink: Writer | None = None,
        every: float = 0.2,
    ) -> None:
        self._observer, self._expected, self._sink, self._every = observer, expected, sink, every
        self._began, self._told = time.monotonic(), 0.0
        self._lock = threading.Lock()
        self._done = 0

    def write(self, data: bytes) -> None:
        """Counts a block, and hands it on to `sink` (None: nowhere)."""
        if self._sink is not None:
            self._sink.write(data)
        self.count(len(data))

    def count(self, amount: int) -> None:
        """So many more bytes have passed."""
        with self._lock:
            self._done += amount
            now = time.monotonic()
            if self._observer and now - self._told >= self._every:
                self._told = now
                self._observer(Passed(self._done, self._expected, now - self._began))


def every(seconds: float, observer: Observer) -> Observer:
    """The same observer, called at most once in so many seconds (for a log, not for a progress bar)."""
    last = time.monotonic()

    def throttled(passed: Passed) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= seconds:
            last = now
            observer(passed)

    return throttled
