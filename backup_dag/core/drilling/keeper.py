"""Runs a server for as long as whoever started it lives, and removes what it left. A program of its own:

    python keeper.py LOG FOLDER… -- COMMAND…

It waits for the end of its standard input, which comes when its parent closes it or dies, however it dies.
Then it ends the command (by SIGQUIT, at which PostgreSQL ends at once and lets go of its shared memory) and
removes the folders. It imports nothing of this package, so it needs no environment.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from types import FrameType

_PATIENCE = 5.0  # seconds between SIGQUIT and SIGKILL
_SAID = 4096  # bytes of the log's end, for a command that ended by itself
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER (Linux's prctl.h)
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(arguments: list[str]) -> int:
    """0 once all is gone that was to go; 1 where the command ended by itself: the log's end is on stderr."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)  # what the command leaves becomes ours to end
    at = arguments.index("--")
    log, *folders = arguments[:at]
    for number in _ENDING:
        signal.signal(number, _interrupted)
    try:
        with open(log, "ab", opener=_private) as said:
            child = subprocess.Popen(
                arguments[at + 1 :],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        try:
            over = _watch(child)
        finally:
            _end(child)
        if over:
            sys.stderr.buffer.write(_tail(log))
        return 1 if over else 0
    except _Interrupted:
        return 0
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _watch(child: "subprocess.Popen[bytes]") -> bool:
    """Waits for the end of standard input, or of the command: whether it was that."""
    ended = os.pidfd_open(child.pid)
    readable, _, _ = select.select([sys.stdin.fileno(), ended], [], [])
    return ended in readable


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Its whole group: before it is the server, it is a shell that makes it. And whatever outlives that."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGQUIT)
    with suppress(subprocess.TimeoutExpired):
        child.wait(_PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    with suppress(ChildProcessError):
        while True:
            for orphan in _children():
                with suppress(ProcessLookupError):
                    os.kill(orphan, signal.SIGKILL)
            os.wait()


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as listed:
            return [int(number) for number in listed.read().split()]
    except OSError:  # a kernel that does not list them: we wait until they end
        return []


def _tail(log: str) -> bytes:
    with open(log, "rb") as said:
        said.seek(max(0, os.fstat(said.fileno()).st_size - _SAID))
        return said.read()


class _Interrupted(Exception):
    pass


def _interrupted(signum: int, frame: FrameType | None) -> None:
    for number in _ENDING:  # the first is enough: we are tidying up
        signal.signal(number, signal.SIG_IGN)
    raise _Interrupted


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
