"""How long restores and drills took here, one JSON document a line: what the next one is estimated from."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

from backup_dag.core import journal
from backup_dag.core.errors import DiskError

_FILE = ".restores.jsonl"
_LONGEST, _LARGEST = 1e9, 1 << 63  # seconds, bytes: beyond these nothing can be computed with them
_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
CLOCKS_APART = timedelta(hours=1)

What = Literal["restore", "drill"]
Read = TypeVar("Read")

RECOVERY = ("fetch", "verify", "decrypt", "load", "index", "prove")
"""The steps of a drill's recovery. They follow one another: their sum is the time that a recovery takes."""

RESTORED = ("verify", "build", "prove", "swap")
"""The same of a restore. `build` holds `load` and `analyze`; `safety` backs up what a lost server has not."""

_STEPS: dict[What, tuple[str, ...]] = {"drill": RECOVERY, "restore": RESTORED}


@dataclass(frozen=True)
class Drilled:
    """One drill that came to its end. `faults` are why the copy in `store` is not proven; `asked` how many
    checks of the user's own there were, `failed` what those said that did not pass, by name."""

    time: datetime
    backup: str
    store: str
    faults: tuple[str, ...]
    asked: int
    failed: dict[str, str]


@dataclass(frozen=True)
class Timing:
    """One restore or drill that came to its end. Seconds of wall clock by step; `dump_bytes` is 0 where it
    was not noted."""

    what: What
    time: datetime
    database: str
    backup: str
    dump_bytes: int
    seconds: dict[str, float]

    @property
    def recovery(self) -> float:
        """The seconds from reading the backup to proven data; of a restore, until it is in its place."""
        return sum(self.seconds.get(step, 0.0) for step in _STEPS[self.what])


class Stopwatch:
    """Seconds of wall clock by step; a step that is taken up again goes on. However a block is left, it
    counts."""

    def __init__(self, *steps: str) -> None:
        self._seconds = dict.fromkeys(steps, 0.0)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[step] = self._seconds.get(step, 0.0) + time.monotonic() - began

    def take_over(self, other: "Stopwatch") -> None:
        """The steps of another one come after these."""
        self._seconds |= other._seconds

    def rest(self, step: str, *, of: float) -> None:
        """A step is what the others leave of so many seconds."""
        self._seconds[step] = of - sum(took for each, took in self._seconds.items() if each != step)

    @property
    def seconds(self) -> dict[str, float]:
        """To the millisecond."""
        return {step: round(seconds, 3) for step, seconds in self._seconds.items()}


def record(backup_dir: Path, what: What, database: str, **said: Any) -> None:
    """Adds a line. One that cannot be written is said, and fails nothing: what it is about is done."""
    now = datetime.now(UTC).isoformat()
    journal.append(backup_dir / _FILE, {"time": now, "what": what, "database": database, **said})


def timings(backup_dir: Path, database: str, what: What | None = None) -> list[Timing]:
    """A database's restores and drills (or one of these) that brought it back as it was, the oldest first."""
    wanted = (what,) if what else ("restore", "drill")
    return list(_lines(backup_dir, database, wanted, _timing))


def drills(backup_dir: Path, database: str) -> list[Drilled]:
    """A database's drills that came to their end, whatever they found, the oldest first."""
    return list(_lines(backup_dir, database, ("drill",), _drilled))


def _lines(
    backup_dir: Path, database: str, wanted: Collection[str], read: Callable[[dict[str, Any]], Read | None]
) -> Iterator[Read]:
    """Lines that are none of ours are passed over. Where the file may not be read there are none."""
    with suppress(DiskError):
        for said in journal.read(backup_dir / _FILE):
            with suppress(ValueError, TypeError, KeyError, AttributeError, OverflowError):
                if said["database"] == database and said["what"] in wanted and (one := read(said)):
                    yield one


def _timing(said: dict[str, Any]) -> Timing | None:
    if said.get("faults"):
        return None
    return Timing(
        what=said["what"],
        time=_time(said),
        database=str(said["database"]),
        backup=str(said.get("backup", "")),
        dump_bytes=_size(said.get("dump_bytes", 0)),
        seconds={str(step): _finite(seconds) for step, seconds in said["seconds"].items()},
    )


def _drilled(said: dict[str, Any]) -> Drilled:
    return Drilled(
        time=_time(said),
        backup=str(said["backup"]),
        store=str(said.get("store", "")),
        faults=tuple(map(str, said.get("faults", ()))),
        asked=int(said.get("asked", 0)),
        failed={str(name): str(why) for name, why in said.get("failed", {}).items()},
    )


def _time(said: dict[str, Any]) -> datetime:
    time = datetime.fromisoformat(said["time"])
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    if not _FIRST <= time <= _LAST:
        raise ValueError(f"{time} is no time of ours")
    return time


def _finite(number: object) -> float:
    """Raises ValueError where it is none, or none that JSON knows."""
    found = float(str(number))
    if not 0 <= found <= _LONGEST:
        raise ValueError(f"{number} is no length of time")
    return found


def _size(number: object) -> int:
    """Raises ValueError where it is none."""
    found = int(str(number))
    if not 0 <= found < _LARGEST:
        raise ValueError(f"{number} is no size")
    return found


def estimate(backup_dir: Path, database: str) -> tuple[dict[str, float], str]:
    """The seconds that a restore's steps should take: those of the last restore or drill of that database,
    and which of them it was; nothing where there was none.

    A drill's fetching, decrypting, loading and indexing are what a restore does in its step `build`.
    """
    found = timings(backup_dir, database)
    if not found:
        return {}, ""
    last = found[-1]
    if last.what == "restore":
        return last.seconds, last.what
    known = {"verify": ("verify",), "build": ("fetch", "decrypt", "load", "index"), "prove": ("prove",)}
    return {step: sum(last.seconds.get(each, 0.0) for each in its) for step, its in known.items()}, last.what


def last_proof(backup_dir: Path, database: str) -> datetime | None:
    """When a backup of that database was proven here last, by a drill or a restore."""
    until = datetime.now(UTC) + CLOCKS_APART  # a clock that was wrong once must not end all drills
    return max((each.time for each in timings(backup_dir, database) if each.time <= until), default=None)
