"""A directory of one's own for the length of a run, and no trace of it afterwards.

Work directories lie in `<BACKUP_DIR>/.work/`, on the file system the artifact is published to, so
that publishing is a rename. Each is held by a lock that the kernel lets go of when its owner ends;
one whose lock is free was left by a run that died, and the next run sweeps it.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from backup_dag.core.errors import DiskError, GuardRefused

_ROOM = ".work"
_LOCK = "lock"
_LONGEST_WAIT = 6 * 3600.0  # seconds


@contextmanager
def work_directory(backup_dir: Path) -> Iterator[Path]:
    """A private (0700) directory, locked while the block runs and removed whatever happens.

    Raises:
        DiskError: BACKUP_DIR cannot be made or written to.
    """
    room = backup_dir / _ROOM
    try:
        backup_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        room.mkdir(mode=0o700, exist_ok=True)
        sweep(backup_dir)
        unlocked = Path(tempfile.mkdtemp(prefix="new-", dir=room))
        lock = os.open(unlocked / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = unlocked.rename(unlocked.with_name(unlocked.name.replace("new-", "run-", 1)))  # locked by now
    except OSError as error:
        raise DiskError(
            f"making a work directory in {room} failed: {error.strerror}",
            hint="make BACKUP_DIR writable for this user, and look at its free space (df -h)",
        ) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


@contextmanager
def reading_directory(backup_dir: Path) -> Iterator[Path]:
    """A private directory for reading backups: where BACKUP_DIR cannot be written, among temporary files."""
    with ExitStack() as stack:
        try:
            path = stack.enter_context(work_directory(backup_dir))
        except DiskError:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="backup-dag-")))
        yield path


@contextmanager
def one_at_a_time(backup_dir: Path, what: str) -> Iterator[None]:
    """Waits until no other process on this machine is in such a block. Raises GuardRefused after hours."""
    path, deadline = backup_dir / _ROOM / f"{what}.lock", time.monotonic() + _LONGEST_WAIT
    while (lock := _lock_on(path)) is None:
        if time.monotonic() > deadline:
            raise GuardRefused(f"another process has held {path} for hours", hint=f"see who: fuser {path}")
        time.sleep(0.2)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _lock_on(path: Path) -> int | None:
    """The lock, held; None where another holds it, or has just removed the file that we opened."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise disk_error(f"making {path}", error) from error
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(lock).st_ino:
            return lock
    os.close(lock)
    return None


def sweep(backup_dir: Path) -> list[Path]:
    """Removes what dead runs left behind; returns it. A run that is alive keeps its directory."""
    swept = []
    room = backup_dir / _ROOM
    for path in [*sorted(room.glob("run-*")), *sorted(room.glob("new-*"))]:
        if _older_than_a_minute(path) if path.name.startswith("new-") else _abandoned(path):
            shutil.rmtree(path, ignore_errors=True)
            swept.append(path)
    for path in room.glob("*.lock"):
        if (lock := _lock_on(path)) is not None:
            path.unlink(missing_ok=True)
            os.close(lock)
    return swept


def _abandoned(path: Path) -> bool:
    """Free lock, or no lock and no chance that one is about to be taken (a minute old)."""
    try:
        lock = os.open(path / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        return _older_than_a_minute(path)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(lock)


def _older_than_a_minute(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > 60
    except FileNotFoundError:
        return False


class _File:
    """A file that says in our words when there is no room for it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._handle, view) :]
        except OSError as error:
            raise disk_error(f"writing {self._path}", error) from error

    def close(self) -> None:
        os.close(self._handle)


@contextmanager
def new_file(path: Path) -> Iterator[_File]:
    """A new file that only its owner may read, to be written to. Raises DiskError."""
    file = _File(path)
    try:
        yield file
    finally:
        file.close()


def disk_error(doing: str, error: OSError) -> DiskError:
    """An operating system's refusal in our words."""
    return DiskError(
        f"{doing} failed: {error.strerror or error}",
        hint="look at free space (df -h), the folder's owner and mode, and the disk's health",
    )
