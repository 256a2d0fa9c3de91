"""Files of JSON lines that several processes add to at a time. A line is there whole, or it is not.

What is noted here has been done already, so a note that cannot be written is said, and fails nothing.
"""

import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from backup_dag.core.errors import DiskError
from backup_dag.core.private import make_private, refuse_links
from backup_dag.core.stall import lock

_log = logging.getLogger("backup_dag")
_said: set[str] = set()  # a full disk is told once, and not at every line


def append(path: Path, said: Mapping[str, Any]) -> str:
    """Adds a line, and returns once it is durable; else says so, and returns why not. Never raises for it."""
    line = json.dumps(said, default=str).encode() + b"\n"
    try:
        make_private(path.parent)
        refuse_links(path)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            lock(handle, fcntl.LOCK_EX)
            _write_whole(handle, line)
        finally:
            os.close(handle)
    except OSError as error:
        why = f"noting it in {path} failed: {error.strerror or error}"
        say(f"{why}; what was noted goes on (look at free space and the folder's owner)")
        return why
    return ""


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines, the oldest first. What a crash tore is passed over, and a file that is not there is empty.

    Raises:
        DiskError: it may not be read.
    """
    try:
        refuse_links(path)
        with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
            for line in file:
                if not line.lstrip().startswith("{"):
                    continue
                with suppress(ValueError, RecursionError):
                    if isinstance(said := json.loads(line), dict):
                        yield said
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise DiskError(
            f"reading {path} failed: {error.strerror}", hint="look at the file's owner and mode"
        ) from error


def say(text: str) -> None:
    """A warning, once in the life of this process: on stderr, or wherever logs go."""
    if text not in _said:
        _said.add(text)
        _log.warning("warning: %s", text)


def _write_whole(handle: int, line: bytes) -> None:
    """One write, at the end, of a file that we have the lock of. What did not fit is taken away again."""
    end = os.fstat(handle).st_size
    torn = end > 0 and os.pread(handle, 1, end - 1) != b"\n"  # by a process that was killed
    data = b"\n" + line if torn else line
    try:
        if os.write(handle, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(handle)
    except OSError:
        with suppress(OSError):
            os.ftruncate(handle, end)
        raise
