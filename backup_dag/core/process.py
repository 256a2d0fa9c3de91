"""Children: every process we start, with its exit status known before its end-of-file is believed.

The only room that starts processes. A child
* dies with us: SIGKILL through `setpriv --pdeathsig` (util-linux) the moment the thread that
  started it ends, whatever ended that thread. So start it from a thread that outlives it;
* stands in a process group of its own, so that it and its own children are stopped together;
* inherits none of our secrets: its environment is built from a short list of names;
* has its stderr drained, the end of it kept for the error message.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from backup_dag.core.stream import BLOCK

_SETPRIV = shutil.which("setpriv")
_PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
_PASSED_ON_FAMILIES = ("LC_", "SSL_CERT")
_KEPT_OF_STDERR = 16 * 1024
_PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL
_PAUSE = 0.002  # seconds in which a slow writer fills a pipe, so that we wake for more than a few KiB


PIPE = subprocess.PIPE
NO_INPUT = subprocess.DEVNULL
Popen = subprocess.Popen[bytes]
Argv = Sequence[str | os.PathLike[str]]


class ChildFailed(Exception):
    """A child ended with another status than 0. `stderr` is the end of what it said."""

    def __init__(self, program: str, status: int, stderr: str) -> None:
        how = f"was killed by {_signal(-status)}" if status < 0 else f"exited {status}"
        super().__init__(f"{program} {how}" + (f": {stderr}" if stderr else ""))
        self.program, self.status, self.stderr = program, status, stderr


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a child may know: where things are, plus `extra`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.startswith(_PASSED_ON_FAMILIES)
    }
    return {**kept, **(extra or {})}


def start(
    argv: Argv,
    *,
    env: Mapping[str, str],
    stdin: int = NO_INPUT,
    stdout: int = PIPE,
) -> Popen:
    """Starts a child that dies with this thread. Whoever calls this owes a `stop`."""
    mortal = [_SETPRIV, "--pdeathsig", "KILL", "--"] if _SETPRIV else []
    child = subprocess.Popen(
        [*mortal, *argv],
        env=dict(env),
        stdin=stdin,
        stdout=stdout,
        stderr=PIPE,
        bufsize=BLOCK,
        start_new_session=True,
    )
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            widen(pipe.fileno())
    return child


def stop(child: Popen) -> None:
    """Ends the child and everything it started, and reaps it. Harmless when it has ended already."""
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_PATIENCE)
    with suppress(ProcessLookupError, PermissionError):  # whoever is left in its group
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


class Child:
    """A running child: read its output, write its input, and learn how it ended."""

    def __init__(self, popen: Popen, program: str) -> None:
        self._popen, self._program = popen, program
        self._stderr = b""
        self._read_little = False
        self._roomy = popen.stdout is not None and _capacity(popen.stdout) >= BLOCK
        self._drain = threading.Thread(target=self._drain_stderr, daemon=True)
        self._drain.start()

    def read(self, size: int = BLOCK) -> bytes:
        """The next block; b"" only once the child has exited 0.

        Raises:
            ChildFailed: the output ended and the exit status was not 0.
        """
        assert self._popen.stdout is not None
        if self._read_little:
            time.sleep(_PAUSE)
        block = os.read(self._popen.stdout.fileno(), size)
        self._read_little = self._roomy and len(block) < size // 4
        if not block:
            self.wait()
        return block

    def write(self, data: bytes) -> None:
        """Raises ChildFailed, not BrokenPipeError, where the child has gone."""
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(data)
        except BrokenPipeError:
            self.wait()
            raise

    def flush(self) -> None:
        """Hands on what was written so far. Raises as `write` does."""
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.flush()
        except BrokenPipeError:
            self.wait()
            raise

    def end_input(self) -> None:
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.close()
        except BrokenPipeError:
            self.wait()
            raise

    def stop(self) -> None:
        stop(self._popen)

    def wait(self) -> None:
        """Waits for the end. Raises ChildFailed unless the status was 0."""
        status = self._popen.wait()
        self._drain.join(1)
        if status != 0:
            raise ChildFailed(self._program, status, self._stderr.decode(errors="replace").strip())

    @property
    def warnings(self) -> list[str]:
        """What it said on stderr, so far as it was kept, once it has ended."""
        lines = self._stderr.decode(errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()]

    def _drain_stderr(self) -> None:
        assert self._popen.stderr is not None
        with self._popen.stderr as stderr:
            while said := os.read(stderr.fileno(), 4096):
                self._stderr = (self._stderr + said)[-_KEPT_OF_STDERR:]


@contextmanager
def running(
    argv: Argv,
    *,
    env: Mapping[str, str],
    stdin: int = NO_INPUT,
    stdout: int = PIPE,
) -> Iterator[Child]:
    """A child for the length of a block; stopped and reaped however the block is left."""
    popen = start(argv, env=env, stdin=stdin, stdout=stdout)
    try:
        yield Child(popen, Path(argv[0]).name)
    finally:
        stop(popen)
        for pipe in (popen.stdin, popen.stdout):
            if pipe is not None:
                _close(pipe)


def output(argv: Argv, *, env: Mapping[str, str]) -> str:
    """The whole standard output of a short-lived child, as text. Raises ChildFailed."""
    with running(argv, env=env) as child:
        said = bytearray()
        while block := child.read():
            said += block
    return said.decode(errors="replace")


def dies_with_us() -> bool:
    """Whether children are killed by the kernel when we are (setpriv is there)."""
    return _SETPRIV is not None


def widen(pipe: int) -> None:
    """A pipe of 1 MiB instead of 64 KiB where the system allows it: fewer, longer turns."""
    with suppress(OSError, AttributeError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, BLOCK)


def _capacity(pipe: IO[bytes]) -> int:
    with suppress(OSError, AttributeError):
        return fcntl.fcntl(pipe.fileno(), fcntl.F_GETPIPE_SZ)
    return 0


def _close(pipe: IO[bytes]) -> None:
    with suppress(OSError):  # bytes still buffered for a child that has gone
        pipe.close()
