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
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from backup_dag.core import stall
from backup_dag.core.errors import DiskError, GuardRefused
from backup_dag.core.private import make_private, refuse_links

_ROOM = ".work"
_LOCK = "lock"
NOTE = ".note-"
"""What the names of files begin with that are to become notes in BACKUP_DIR."""
_ALSO = "also-"
_LONGEST_WAIT = 6 * 3600.0  # seconds
_PATIENCE = 2.0


@contextmanager
def work_directory(backup_dir: Path) -> Iterator[Path]:
    """A private (0700) directory, locked while the block runs and removed whatever happens.

    Raises:
        DiskError: BACKUP_DIR cannot be made or written to.
    """
    room = backup_dir / _ROOM
    try:
        refuse_links(room)
        make_private(room)
        sweep(backup_dir)
        unlocked = Path(tempfile.mkdtemp(prefix="new-", dir=room))
        lock = os.open(unlocked / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        stall.lock(lock, fcntl.LOCK_EX)
        path = unlocked.rename(unlocked.with_name(unlocked.name.replace("new-", "run-", 1)))  # locked by now
    except OSError as error:
        raise DiskError(
            f"making a work directory in {room} failed: {error.strerror}",
            hint="make BACKUP_DIR writable for this user, and look at its free space (df -h)",
        ) from error
    try:
        yield path
    finally:
        _remove(path)
        os.close(lock)


def _remove(path: Path) -> None:
    """Tries again for a moment: a child that was just ended may still have been writing there."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists() or time.monotonic() > deadline:
            return
        time.sleep(0.05)


@contextmanager
def work_elsewhere(base: Path, work: Path) -> Iterator[Path]:
    """The same in another folder, for the owner of a work directory: should it die, whoever sweeps that one
    sweeps this one too. Raises DiskError."""
    try:
        (work / f"{_ALSO}{uuid.uuid4()}").symlink_to(base.absolute())
    except OSError as error:
        raise disk_error(f"noting in {work} that there is work in {base}", error) from error
    with work_directory(base) as path:
        yield path


@contextmanager
def reading_directory(backup_dir: Path) -> Iterator[Path]:
    """A private directory for reading backups: where BACKUP_DIR cannot be written, among temporary files."""
    with ExitStack() as stack:
        try:
            path = stack.enter_context(work_directory(backup_dir))
        except DiskError:
            try:
                path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="backup-dag-")))
            except OSError as error:
                raise disk_error("making a folder for what is being read", error) from error
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
        with suppress(OSError):  # one that stays is nobody's, and the next run sweeps it
            path.unlink(missing_ok=True)
        os.close(lock)


def _lock_on(path: Path) -> int | None:
    """The lock, held; None where another holds it, or has just removed the file that we opened."""
    try:
        refuse_links(path)
        make_private(path.parent)
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
            others = [each for each in _also_in(path) if each != backup_dir.resolve()]
            shutil.rmtree(path, ignore_errors=True)
            swept += [path, *(left for each in others for left in sweep(each))]
    for path in backup_dir.glob(f"{NOTE}*"):
        if _older_than_a_minute(path):
            path.unlink(missing_ok=True)
            swept.append(path)
    for path in room.glob("*.lock"):
        with suppress(DiskError, OSError):  # the next run sweeps it
            if (lock := _lock_on(path)) is not None:
                path.unlink(missing_ok=True)
                os.close(lock)
    return swept


def _also_in(path: Path) -> list[Path]:
    """Where else a run had work directories; none where another has just swept it."""
    with suppress(OSError):
        return [each.resolve() for each in path.glob(f"{_ALSO}*")]
    return []


def _abandoned(path: Path) -> bool:
    """Free lock, or no lock: it is locked before it has this name, so somebody has begun to remove it."""
    try:
        lock = os.open(path / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        return True
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
        try:
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise disk_error(f"making {path}", error) from error

    @property
    def number(self) -> int:
        """Its descriptor."""
        return self._handle

    def write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._handle, view) :]
        except OSError as error:
            raise disk_error(f"writing {self._path}", error) from error

    def close(self) -> None:
        os.close(self._handle)


def private_folder(path: Path) -> Path:
    """Makes a folder that only its owner may enter, unless it is there. Raises DiskError."""
    try:
        make_private(path)
    except OSError as error:
        raise disk_error(f"making {path}", error) from error
    return path


@contextmanager
def new_file(path: Path) -> Iterator[_File]:
    """A new file that only its owner may read, to be written to. Raises DiskError."""
    file = _File(path)
    try:
        yield file
    finally:
        file.close()


@contextmanager
def unnamed_file(folder: Path) -> Iterator[tuple[_File, Path]]:
    """A file to be written to, and a path by which this user's programs read it while the block runs.

    It has no name in the folder, so nothing of it is left, whoever is killed. Raises DiskError.
    """
    with new_file(folder / "unnamed") as file:
        try:
            (folder / "unnamed").unlink()
        except OSError as error:
            raise disk_error(f"taking the name of {folder / 'unnamed'} away", error) from error
        yield file, Path(f"/proc/{os.getpid()}/fd/{file.number}")


def disk_error(doing: str, error: OSError) -> DiskError:
    """An operating system's refusal in our words."""
    return DiskError(
        f"{doing} failed: {error.strerror or error}",
        hint="look at free space (df -h), the folder's owner and mode, and the disk's health",
    )
