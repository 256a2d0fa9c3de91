"""Children: every process we start, with its exit status known before its end-of-file is believed.

The only room that starts processes. A child
* dies with us: SIGKILL through `setpriv --pdeathsig` (util-linux) the moment the thread that
  started it ends, whatever ended that thread. So start it from a thread that outlives it;
* stands in a process group of its own, so that it and its own children are stopped together;
* inherits none of our secrets: its environment is built from a short list of names;
* has its stderr drained, the end of it kept for the error message;
* is waited for by a clock (`stall.py`): for its output, its end, and that it takes what we write.
"""

import fcntl
import io
import os
import select
import shutil
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from backup_dag.core.stall import Clock, Stalled
from backup_dag.core.stream import BLOCK

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_SETPRIV = shutil.which("setpriv")
_PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
_PASSED_ON_FAMILIES = ("LC_", "SSL_CERT")
_LOCALE = ("LC_CTYPE", "LC_COLLATE", "LC_TIME", "LC_NUMERIC", "LC_MONETARY")
_KEPT_OF_STDERR = 16 * 1024
_PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL
_PATIENCE_WITH_A_STALL = 1.0  # told to end, a pg_dump asks a server to cancel, that may not answer
_PAUSE = 0.002  # seconds in which a slow writer fills a pipe, so that we wake for more than a few KiB


T = TypeVar("T")

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


class ChildStalled(ChildFailed):
    """A child stood still, and is to be ended; `else_it` is what it did instead of moving."""

    def __init__(self, program: str, else_it: str, stalled: Stalled) -> None:
        super().__init__(program, 0, "")
        self.args = (f"{program} {else_it} {stalled}",)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a child may know: where things are, plus `extra`. It speaks English, since what it says when it
    fails is read here; all else is as this user has it."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.startswith(_PASSED_ON_FAMILIES)
    }
    everywhere = kept.pop("LC_ALL", "")  # else it would stand above LC_MESSAGES
    as_told = dict.fromkeys(_LOCALE, everywhere) if everywhere else {}
    return {**kept, **as_told, "LC_MESSAGES": "C", **(extra or {})}


def start(
    argv: Argv,
    *,
    env: Mapping[str, str],
    stdin: int = NO_INPUT,
    stdout: int = PIPE,
    mortal: bool = True,
) -> Popen:
    """Starts a child that dies with this thread; one that is not `mortal` must end by itself when its
    standard input does. Whoever calls this owes a `stop`."""
    child = subprocess.Popen(
        [*(dying_with_its_parent() if mortal else []), *argv],
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


def stop(child: Popen, patience: float = _PATIENCE) -> None:
    """Ends the child and everything it started, and reaps it. Harmless when it has ended already.

    One that not even SIGKILL ends, since the kernel holds it (a disk that does not answer), is left behind.
    """
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
            os.killpg(child.pid, signal.SIGCONT)  # one that was stopped hears nothing before
        with suppress(subprocess.TimeoutExpired):
            child.wait(patience)
    with suppress(ProcessLookupError, PermissionError):  # whoever is left in its group
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        child.wait(_PATIENCE)


def was_killed(child: Popen, *, within: float) -> bool:
    """Whether a signal has ended a child, or does in so many seconds."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(within)
    return (child.returncode or 0) < 0


class Child:
    """A running child: read its output, write its input, and learn how it ended.

    Whatever is waited for, it is by the child's clock: ChildStalled is raised where it stands still.
    """

    def __init__(self, popen: Popen, program: str, clock: Clock) -> None:
        self._popen, self._program, self.clock = popen, program, clock
        self._pipe = Pipe(popen.stdin.fileno(), clock) if popen.stdin is not None else None
        self._stdin = self._pipe.buffered() if self._pipe is not None else None
        self._patience = _PATIENCE
        self._stderr = b""
        self._read_little = False
        self._roomy = popen.stdout is not None and _capacity(popen.stdout) >= BLOCK
        self._drain = threading.Thread(target=self._drain_stderr, daemon=True)
        self._drain.start()

    def read(self, size: int = BLOCK, *, however_long: bool = False) -> bytes:
        """The next block; b"" only once the child has exited 0. `however_long` it takes: for those who read
        while someone else waits, and sees a stall.

        Raises:
            ChildFailed: the output ended and the exit status was not 0. ChildStalled: nothing came.
        """
        assert self._popen.stdout is not None
        if self._read_little:
            time.sleep(_PAUSE)
        if not however_long:
            with self._moving("gave no byte"):
                self.clock.until(_ready(self._popen.stdout.fileno(), select.POLLIN))
        block = os.read(self._popen.stdout.fileno(), size)
        self._read_little = self._roomy and len(block) < size // 4
        if not block:
            self.wait()
        return block

    def write(self, data: bytes) -> None:
        """Raises ChildFailed, not BrokenPipeError, where the child has gone; ChildStalled."""
        with self._taking() as stdin:
            stdin.write(data)

    def flush(self) -> None:
        """Hands on what was written so far. Raises as `write` does."""
        with self._taking() as stdin:
            stdin.flush()

    def drain(self) -> None:
        """Returns once the child has taken all that was written to it. Raises as `write` does."""
        self.flush()
        assert self._popen.stdin is not None
        while self._popen.poll() is None and (left := _waiting(self._popen.stdin)):
            with self._moving("took no byte"):
                self.clock.until(partial(self._has_taken_some_of, left))

    def _has_taken_some_of(self, left: int, _: float) -> bool:
        assert self._popen.stdin is not None
        time.sleep(_PAUSE)
        return self._popen.poll() is not None or _waiting(self._popen.stdin) < left

    def end_input(self) -> None:
        with self._taking() as stdin:
            stdin.close()
        assert self._popen.stdin is not None
        self._popen.stdin.close()

    @contextmanager
    def _taking(self) -> Iterator[io.BufferedWriter]:
        assert self._stdin is not None
        try:
            with self._moving("took no byte"):
                yield self._stdin
        except BrokenPipeError:
            self.wait()
            raise

    @contextmanager
    def _moving(self, else_it: str) -> Iterator[None]:
        try:
            yield
        except Stalled as stalled:
            self._patience = _PATIENCE_WITH_A_STALL
            raise ChildStalled(self._program, else_it, stalled) from None

    def sees(self, event: threading.Event) -> None:
        """Waits until something happened that the child's output brings. Raises ChildStalled."""
        with self._moving("gave no byte"):
            self.clock.until(event.wait)

    def sees_the_end_of(self, work: "Future[T]") -> T:
        """Waits for what reads the child's output; its result, or what it raised. Raises ChildStalled."""
        with self._moving("gave no byte"):
            return self.clock.ends(work)

    def stop(self) -> None:
        stop(self._popen, self._patience)

    def close(self) -> None:
        """Lets go of its pipes, and of what was written and not taken. It has been stopped before."""
        if self._pipe is not None and self._stdin is not None:
            self._pipe.give_up()
            self._stdin.close()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def is_over(self) -> bool:
        return self._popen.poll() is not None

    def wait(self) -> None:
        """Waits for the end. Raises ChildFailed unless the status was 0; ChildStalled."""
        with self._moving("did not end"):
            self.clock.until(self._ended)
        status = self._popen.wait()
        self._drain.join(1)
        if status != 0:
            raise ChildFailed(self._program, status, self._stderr.decode(errors="replace").strip())

    def _ended(self, seconds: float) -> bool:
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

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
    mortal: bool = True,
    clock: Clock | None = None,
) -> Iterator[Child]:
    """A child for the length of a block; stopped and reaped however the block is left. `mortal`: see
    `start`. `clock`: where whoever it works with can be asked whether it still works."""
    popen = start(argv, env=env, stdin=stdin, stdout=stdout, mortal=mortal)
    child = Child(popen, Path(argv[0]).name, clock or Clock())
    try:
        yield child
    finally:
        child.stop()
        child.close()


def output(argv: Argv, *, env: Mapping[str, str]) -> str:
    """The whole standard output of a short-lived child, as text. Raises ChildFailed."""
    with running(argv, env=env) as child:
        said = bytearray()
        while block := child.read():
            said += block
    return said.decode(errors="replace")


def dying_with_its_parent(*options: str) -> list[str]:
    """What a command begins with that the kernel is to kill when its parent ends; further options of
    setpriv."""
    return [_SETPRIV, "--pdeathsig", "KILL", *options, "--"] if _SETPRIV else []


def dies_with_us() -> bool:
    """Whether children are killed by the kernel when we are (setpriv is there)."""
    return _SETPRIV is not None


def widen(pipe: int) -> None:
    """A pipe of 1 MiB instead of 64 KiB where the system allows it: fewer, longer turns."""
    with suppress(OSError, AttributeError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, BLOCK)


class Pipe(io.RawIOBase):
    """The writing end of a pipe, waited for by a clock. The descriptor stays its owner's to close.

    Writing raises Stalled where nobody takes anything.
    """

    def __init__(self, handle: int, clock: Clock) -> None:
        os.set_blocking(handle, False)
        self._handle, self._clock = handle, clock
        self._has_room = _ready(handle, select.POLLOUT)
        self._given_up = False

    def give_up(self) -> None:
        """What is written from now on is nobody's."""
        self._given_up = True

    def writable(self) -> bool:
        return True

    def write(self, data: "Buffer", /) -> int:
        while not self._given_up:
            with suppress(BlockingIOError):
                return os.write(self._handle, data)
            self._clock.until(self._has_room)
        return len(memoryview(data))

    def buffered(self) -> io.BufferedWriter:
        """The same, gathering what is small."""
        return io.BufferedWriter(self, BLOCK)


def _ready(handle: int, what: int) -> Callable[[float], object]:
    """Whether a pipe can be read or written, asked for so many seconds."""
    poll = select.poll()
    poll.register(handle, what)
    return lambda seconds: poll.poll(1000 * seconds)


def _waiting(pipe: IO[bytes]) -> int:
    """Bytes in a pipe that nobody has taken yet."""
    return int(struct.unpack("i", fcntl.ioctl(pipe.fileno(), termios.FIONREAD, b"\0" * 4))[0])


def _capacity(pipe: IO[bytes]) -> int:
    with suppress(OSError, AttributeError):
        return fcntl.fcntl(pipe.fileno(), fcntl.F_GETPIPE_SZ)
    return 0
