"""The folder's file system fails at every call in turn: no space, a device's error, read-only, half a write.
Injected: within our own process, at every call that changes something there."""

import errno
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torture.case import Allowed, Case, Unreached, drawn
from torture.world import Ended, World

CALLS = {"backup": 62, "verify": 62, "cleanup": 28, "restore": 102}
"""How many calls of each verb fail in turn; where there are fewer, the rest are no cases."""

_WORDS = {
    "backup": ("backup",),
    "verify": ("verify",),
    "cleanup": ("cleanup", "--force"),
    "restore": ("restore", "--force"),
}
_ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)
_CHANGING = ("rename", "replace", "link", "unlink", "mkdir", "rmdir")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def disk(seed: int) -> Iterator[Case]:
    """Every call of every verb once; every fourth from then on, and by half where it writes."""
    for verb, calls in CALLS.items():
        for at in range(calls):
            for how in ("once", *(["from then on", "half a write"] if (at + seed) % 4 == 0 else [])):
                yield failing(seed, verb, at, how)


def failing(seed: int, verb: str, at: int, how: str) -> Case:
    name = f"disk/{verb}/{how}/{at}"
    number = drawn(seed, name).choice(_ERRORS)

    def strike(world: World) -> tuple[Ended, Allowed]:
        note = world.folder / "runs" / "met"
        ended = world.run(*_WORDS[verb], hook=Failing(str(world.backups), at, how, number, str(note)))
        if not note.exists():
            raise Unreached(name)
        return ended, frozenset({0}) if how == "half a write" else frozenset({0, 9})

    what = "a write that writes half" if how == "half a write" else f"{os.strerror(number).lower()}, {how}"
    return Case(f"disk: {what}", name, strike)


@dataclass
class Failing:
    """Has a call of this process fail that changes something in a folder: the one of number `at`."""

    folder: str
    at: int
    how: str
    number: int
    note: str
    count: int = 0

    def __call__(self) -> None:
        for name in _CHANGING:
            setattr(os, name, partial(self._changing, getattr(os, name)))
        self._os_open, self._os_write, self._os_fsync = os.open, os.write, os.fsync
        self._io_open = io.open
        os.open, os.write, os.fsync = self._open, self._write, self._fsync  # type: ignore[assignment]
        io.open = self._open_file

    def meets(self, *, writes: bool = False) -> bool:
        """Counts a call: whether it is one that fails."""
        at = self.count
        self.count += 1
        met = at == self.at or (self.how == "from then on" and at > self.at)
        if self.how == "half a write" and not writes:
            met = False
        if met:
            os.close(self._os_open(self.note, os.O_CREAT | os.O_WRONLY, 0o600))
        return met

    def is_there(self, path: Any) -> bool:
        """Whether a path, or an open file, lies in the folder."""
        try:
            name = str(Path(f"/proc/self/fd/{path}").readlink()) if isinstance(path, int) else os.fspath(path)
        except (OSError, TypeError):
            return False
        name = os.fsdecode(name)
        return name.startswith(self.folder) and "/runs/" not in name

    def error(self) -> OSError:
        return OSError(self.number, os.strerror(self.number))

    def _changing(self, real: Callable[..., Any], path: Any, *others: Any, **named: Any) -> Any:
        if (self.is_there(path) or any(map(self.is_there, others))) and self.meets():
            raise self.error()
        return real(path, *others, **named)

    def _open(self, path: Any, flags: int, *others: Any, **named: Any) -> int:
        if flags & _WRITING and self.is_there(path) and self.meets():
            raise self.error()
        return self._os_open(path, flags, *others, **named)

    def _write(self, handle: int, data: Any) -> int:
        if self.is_there(handle) and self.meets(writes=True):
            if self.how != "half a write":
                raise self.error()
            data = memoryview(data)[: max(1, len(data) // 2)]
        return self._os_write(handle, data)

    def _fsync(self, handle: int) -> None:
        if self.is_there(handle) and self.meets():
            raise self.error()
        self._os_fsync(handle)

    def _open_file(self, file: Any, mode: str = "r", *others: Any, **named: Any) -> Any:
        if not self.is_there(file) or not set(mode) & set("wax+"):
            return self._io_open(file, mode, *others, **named)
        if self.meets():
            raise self.error()
        raw = _Raw(self, file, mode.replace("b", "").replace("t", ""), opener=named.get("opener"))
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding=named.get("encoding") or "utf-8")


class _Raw(io.FileIO):
    """A file whose writes count."""

    def __init__(self, failing: Failing, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._failing = failing

    def write(self, data: Any, /) -> int:
        if self._failing.meets(writes=True):
            if self._failing.how != "half a write":
                raise self._failing.error()
            data = memoryview(data)[: max(1, len(data) // 2)]
        return super().write(data) or 0
