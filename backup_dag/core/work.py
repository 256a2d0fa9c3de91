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
from contextlib import contextmanager
from pathlib import Path

from backup_dag.core.errors import DiskError

_ROOM = ".work"
_LOCK = "lock"


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
        path = Path(tempfile.mkdtemp(prefix="run-", dir=room))
        lock = os.open(path / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
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


def sweep(backup_dir: Path) -> list[Path]:
    """Removes what dead runs left behind; returns it. A run that is alive keeps its directory."""
    swept = []
    for path in sorted((backup_dir / _ROOM).glob("run-*")):
        if _abandoned(path):
            shutil.rmtree(path, ignore_errors=True)
            swept.append(path)
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
