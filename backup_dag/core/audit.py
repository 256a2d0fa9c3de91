"""Who did what to which backup, when, and how it ended: one JSON line each, here and in the bucket.

The log only grows. Here it is `<BACKUP_DIR>/.audit/audit.jsonl`, for its owner alone; in the bucket each
sending is an object of its own, which nobody writes over. It names keys by their fingerprints, never more.
"""

import json
import os
import pwd
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from backup_dag import __version__
from backup_dag.core import journal
from backup_dag.core.errors import BackupDagError, DiskError, GuardRefused
from backup_dag.core.store.base import Store
from backup_dag.core.stream import Hashing
from backup_dag.core.work import disk_error, new_file, one_at_a_time, work_directory

_ROOM, _LOG, _SENT = ".audit", "audit.jsonl", "sent"
_LONGEST_MESSAGE = 2000  # characters
_MOST_AT_ONCE = 4 << 20  # bytes of an object
_run: ContextVar[str | None] = ContextVar("run", default=None)

Outcome = Literal["done", "failed", "refused"]


def log_file(backup_dir: Path) -> Path:
    """Where the log is."""
    return backup_dir / _ROOM / _LOG


@dataclass
class Entry:
    """What the line of a block will say. An exception that ends the block says more than what stands here."""

    what: str
    database: str | None
    backup: str | None
    details: dict[str, Any] = field(default_factory=dict)
    outcome: Outcome = "done"
    message: str = ""
    seconds: float = 0.0
    run: str | None = field(default_factory=lambda: _run.get())
    time: str = ""
    """When it ended, in UTC, once it is in the log."""

    def __setitem__(self, name: str, value: Any) -> None:
        self.details[name] = value

    def failed(self, message: str) -> None:
        """For what failed without an exception."""
        self.outcome, self.message = "failed", message

    def done(self, **details: Any) -> None:
        """For what counted as failed until now."""
        self.outcome, self.message = "done", ""
        self.details |= details


@contextmanager
def audited(
    backup_dir: Path, what: str, database: str | None = None, backup: str | None = None, **details: Any
) -> Iterator[Entry]:
    """Notes how the block ended, and who began it. That it cannot be noted is said, and fails nothing."""
    entry, began = Entry(what, database, backup, details), time.monotonic()
    try:
        yield entry
    except BaseException as error:
        entry.outcome = "refused" if isinstance(error, GuardRefused) else "failed"
        entry.message = _in_words(error)
        raise
    finally:
        entry.seconds = round(time.monotonic() - began, 3)
        journal.append(log_file(backup_dir), _line(entry))


def entries(backup_dir: Path) -> Iterator[Entry]:
    """What the log holds, the oldest first; lines that are none of ours are passed over. Raises DiskError."""
    for said in journal.read(log_file(backup_dir)):
        with suppress(KeyError, TypeError, ValueError, OverflowError):
            entry = Entry(**{each.name: said[each.name] for each in fields(Entry)})
            entry.seconds = float(entry.seconds)
            if _is_ours(entry):
                yield entry


def _is_ours(entry: Entry) -> bool:
    """Whether what was read is of the kinds that we write: anyone may have added to the file. Raises
    ValueError where a text has half a character in it, which nothing could put out."""
    named = all(isinstance(each, str | None) for each in (entry.database, entry.backup, entry.run))
    said = all(isinstance(each, str) for each in (entry.what, entry.outcome, entry.message, entry.time))
    if not (named and said and isinstance(entry.details, dict)):
        return False
    f"{entry.database}{entry.backup}{entry.run}{entry.what}{entry.outcome}{entry.message}{entry.time}".encode()
    return True


@contextmanager
def acting_for(run: str | None) -> Iterator[None]:
    """What is noted in the block was done by that run of Dagster's."""
    before = _run.set(run)
    try:
        yield
    finally:
        _run.reset(before)


def send(backup_dir: Path, bucket: Store) -> int:
    """Puts what is not in the bucket yet into new objects there; returns how many bytes that was.

    An object is `audit/<host>/<UTC time>-<n>.jsonl`, and begins at byte n of the log. A run that is killed
    between an upload and the note of it sends the same lines again: they may be there twice, and are never
    missing.

    Raises:
        DiskError: the log or the note of what was sent.
        StoreError, StoreUnreachable, IntegrityError: the bucket.
    """
    sent = 0
    if not log_file(backup_dir).exists():
        return sent
    with one_at_a_time(backup_dir, "audit"), work_directory(backup_dir) as work:
        while lines := _unsent(backup_dir):
            name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{lines.begin}.jsonl"
            with new_file(work / name) as file:
                hashing = Hashing(file)
                hashing.write(lines.text)
            bucket.put(work / name, f"audit/{_host()}/{name}", hashing.seen())
            _note_sent(backup_dir, lines)
            sent += len(lines.text)
    return sent


def send_if_possible(backup_dir: Path, bucket: Store) -> None:
    """`send`, at the end of another verb, which has done its own: what keeps it from it is only said."""
    try:
        send(backup_dir, bucket)
    except BackupDagError as error:
        journal.say(f"the audit log was not sent, and the next copy makes up for it: {error.message}")


def _line(entry: Entry) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "what": entry.what,
        "database": entry.database,
        "backup": entry.backup,
        "outcome": entry.outcome,
        "message": entry.message[:_LONGEST_MESSAGE],
        "seconds": entry.seconds,
        "user": _user(),
        "run": entry.run,
        "host": socket.gethostname(),
        "version": __version__,
        "details": entry.details,
    }


def _in_words(error: BaseException) -> str:
    """What may be kept of it for ever: only our own errors are sure to hold no secret."""
    if isinstance(error, BackupDagError):
        return error.message
    if isinstance(error, GeneratorExit):
        return "given up half-way"
    if isinstance(error, Exception):
        return f"unexpected: {type(error).__name__}"
    return "interrupted"


def _user() -> str:
    """The user that the system knows this process by, whatever the environment claims."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # in a container, often
        return str(os.geteuid())


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname()) or "unknown"


@dataclass(frozen=True)
class _Lines:
    """Whole lines of the log, from that byte of that file on."""

    file: int
    begin: int
    text: bytes


def _unsent(backup_dir: Path) -> _Lines | None:
    """The next lines to be sent; None where there are none."""
    path = log_file(backup_dir)
    try:
        with path.open("rb") as log:
            status = os.fstat(log.fileno())
            file, begin = _sent(backup_dir)
            if file != status.st_ino or begin > status.st_size:  # it is another log than the one we sent from
                begin = 0
            log.seek(begin)
            text = log.read(_MOST_AT_ONCE)
    except OSError as error:
        raise disk_error(f"reading {path}", error) from error
    whole = text.rfind(b"\n") + 1  # what follows is still being written, or was torn
    if len(text) == _MOST_AT_ONCE and not whole:
        whole = len(text)  # no line of ours is that long, but it must not keep the later ones here
    return _Lines(status.st_ino, begin, text[:whole]) if whole else None


def _sent(backup_dir: Path) -> tuple[int, int]:
    """The file that was sent from, by its inode, and up to which byte."""
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        said = json.loads((backup_dir / _ROOM / _SENT).read_text())
        return int(said["file"]), max(0, int(said["bytes"]))
    return 0, 0


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _note_sent(backup_dir: Path, lines: _Lines) -> None:
    """Replaced as a whole, so that a crash leaves the old note or the new one."""
    path = backup_dir / _ROOM / _SENT
    new = path.with_name(f"{_SENT}.new")
    try:
        with open(new, "w", opener=_private) as file:
            json.dump({"file": lines.file, "bytes": lines.begin + len(lines.text)}, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise DiskError(
            f"noting in {path} what was sent of the audit log failed: {error.strerror}",
            hint="make room; until then the same lines are sent again with each copy",
        ) from error
