"""A hold: a note beside a backup that it is in use, so that cleanup passes it over.

Its name has the process, its text the machine. Two days after the store got it, it holds no longer; on its
own machine it ends with its process.
"""

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from backup_dag.core.errors import BackupDagError, BackupNotFound, StoreError
from backup_dag.core.manifest import BackupId
from backup_dag.core.store.base import Listed, Store

_LONGEST = timedelta(hours=48)
_ENDING = "hold"
_LARGEST = 1 << 14  # bytes of one; what is larger is not read, and holds for the longest time


@contextmanager
def held(store: Store, backup: BackupId) -> Iterator[None]:
    """Holds a backup while the block runs. Where the store may only be read, it goes on without."""
    name = backup.file(f"{_ENDING}-{os.getpid()}-{datetime.now(UTC):%H%M%S%f}.json")
    try:
        with suppress(BackupDagError):
            store.put_note(name, _text(_LONGEST))
        yield
    finally:
        with suppress(BackupDagError):
            store.remove(name)


def may_let_go(store: Store, backup: BackupId) -> bool:
    """Whether this user may remove what lies beside a backup, tried out with a hold. Raises what the store
    raises in all else."""
    name = backup.file(f"{_ENDING}-{os.getpid()}-0.json")
    store.put_note(name, _text(timedelta(0)))
    try:
        store.remove(name)
    except StoreError as error:
        if error.retryable:
            raise
        return False
    return True


def _text(long: timedelta) -> str:
    now = datetime.now(UTC)
    said = {"host": socket.gethostname(), "machine": _machine(), "since": now, "until": now + long}
    return json.dumps(said, default=datetime.isoformat) + "\n"


@lru_cache(maxsize=1)
def _machine() -> str:
    """Where a process is known by its number: this boot of this machine, and its namespace. Machines may
    share a name, and containers a machine."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


@dataclass(frozen=True)
class _Hold:
    """One that was read: when it ends by itself, and whose it is. `process` 0: it does not say."""

    name: str
    ends: datetime
    host: str
    here: bool
    process: int

    @property
    def dead(self) -> bool:
        """Whether its process was on this machine, and is no more."""
        return self.here and bool(self.process) and not _lives(self.process)

    @property
    def ours(self) -> bool:
        return self.here and self.process == os.getpid()

    @property
    def holds(self) -> bool:
        return self.ends > datetime.now(UTC) and not self.dead

    def __str__(self) -> str:
        ends = f"{self.ends:%Y-%m-%d %H:%M} UTC"
        return f"process {self.process} of {self.host or 'a machine'} ({self.name}, until {ends} at most)"


def holder(store: Store, backup: BackupId) -> str:
    """Who else than this process holds a backup, in words; "" where nobody does.

    Raises as `is_held`.
    """
    return next((str(each) for each in _holds(store, backup) if each.holds and not each.ours), "")


def is_held(store: Store, backup: BackupId) -> bool:
    """Whether someone holds it.

    Raises what the store raises: a hold that cannot be read now may be one.
    """
    return any(each.holds for each in _holds(store, backup))


def is_hold(backup: BackupId, name: str) -> bool:
    """Whether a file is a hold of that backup, by its name."""
    return name.startswith(backup.file(f"{_ENDING}-"))


def sweep_holds(store: Store, backup: BackupId) -> None:
    """Takes away the holds that hold nothing any more. Where that cannot be, they stay."""
    with suppress(BackupDagError):
        for each in _holds(store, backup):
            if not each.holds:
                store.remove(each.name)


def _holds(store: Store, backup: BackupId) -> Iterator[_Hold]:
    for listed in list(store.list(backup.file(f"{_ENDING}-"))):
        with suppress(BackupNotFound):  # let go of meanwhile
            yield _read(store, listed)


def _read(store: Store, listed: Listed) -> _Hold:
    said: dict[str, Any] = {}
    with suppress(ValueError, RecursionError):
        found = json.loads(store.read(listed.name)) if listed.bytes <= _LARGEST else None
        said = found if isinstance(found, dict) else {}
    number = re.search(rf"\.{_ENDING}-([0-9]{{1,18}})-", listed.name, re.ASCII)
    host, machine = str(said.get("host", ""))[:100], _machine()
    return _Hold(
        listed.name,
        listed.modified + _length(said),
        host,
        bool(machine) and said.get("machine") == machine and host == socket.gethostname(),
        int(number[1]) if number else 0,
    )


def _length(said: dict[str, Any]) -> timedelta:
    """How long it is meant to hold, by the clock of whoever made it; the store's says from when on. What is
    not as we write it holds for the longest time."""
    with suppress(ValueError, KeyError, TypeError, OverflowError):
        since, until = (datetime.fromisoformat(said[name]) for name in ("since", "until"))
        return min(max(until - since, timedelta(0)), _LONGEST)
    return _LONGEST


def _lives(process: int) -> bool:
    """Whether there is such a process, whoever may see it."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
