"""gpg through python-gnupg: as a writer in a stream, and with children that end with us."""

import fcntl
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gnupg

from backup_dag.core import process
from backup_dag.core.errors import BackupDagError, ConfigurationError, ProgramStalled
from backup_dag.core.in_words import length
from backup_dag.core.stall import Clock, Stalled, allowed, lock
from backup_dag.core.stream import BLOCK, Writer

STATUS = "[GNUPG:] "
"""What the lines begin with that gpg says for programs."""

_log = logging.getLogger("gnupg")
_log.addHandler(logging.NullHandler())
_log.propagate = False  # what it has to say stands in our errors


class GpgFailed(Exception):
    """gpg did not do what it was asked; the message is what it said. `killed`: it was ended from outside,
    which says nothing of what it worked on."""

    def __init__(self, message: str, *, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed


def stood_still(doing: str, how: str) -> ProgramStalled:
    """The error for a gpg that stood still: nothing is said of what it worked on."""
    return ProgramStalled(
        f"{doing} failed: gpg {how}",
        hint="see what holds it up on this machine (stopped? waiting for its agent or a keyring's lock? ps,"
        " dmesg); then try again",
    )


class Gpg(gnupg.GPG):  # type: ignore[misc]
    """python-gnupg, with its children started where all children are."""

    def __init__(self, home: Path, options: list[str]) -> None:
        self.children: list[process.Popen] = []
        self._timers: list[threading.Timer] = []
        self.has_a_clock = False
        self.stood_still = False
        self.buffer_size = BLOCK
        super().__init__(gnupghome=str(home), options=options, env=process.environment())
        self.encoding = "utf-8"

    def _open_subprocess(self, args: list[str], passphrase: bool = False) -> process.Popen:
        child = process.start(self.make_args(args, passphrase), env=self.env, stdin=process.PIPE)
        self.children.append(child)
        if not self.has_a_clock:
            self._timers.append(threading.Timer(allowed(), self._end, [child]))
            self._timers[-1].daemon = True
            self._timers[-1].start()
        return child

    def _end(self, child: process.Popen) -> None:
        if child.poll() is None:
            self.stood_still = True
            process.stop(child)

    def was_killed(self) -> bool:
        """Whether a signal ended one of its children. One that has broken a pipe is about to end."""
        return any(process.was_killed(child, within=1.0) for child in self.children)

    def end(self) -> None:
        """Ends whatever of it still runs."""
        for timer in self._timers:
            timer.cancel()
        for child in self.children:
            process.stop(child)

    def _read_response(self, stream: Any, result: Any) -> None:
        stream.errors = "backslashreplace"  # what gpg quotes from a broken message need not be text
        super()._read_response(stream, result)


@contextmanager
def gpg_at(home: Path, options: list[str]) -> Iterator[Gpg]:
    """A gpg with that home; its children are ended with the block, and where they do not end by themselves,
    after BACKUP_STALL_SECONDS. Raises ConfigurationError, ProgramStalled."""
    try:
        gpg = Gpg(home, options)
    except (OSError, ValueError) as error:
        if re.search(r"Error invoking gpg: -\d", str(error)):  # by a signal: nothing is wrong with it
            raise BackupDagError(
                f"starting gpg with the home {home} failed: it was killed",
                hint="see who killed it (dmesg, for want of memory?); then try again",
            ) from error
        raise ConfigurationError(
            f"starting gpg with the home {home} failed: {error}",
            hint="install GnuPG 2.1 or newer (apt-get install gnupg); BACKUP_GPG_HOME must be a directory",
        ) from error
    try:
        yield gpg
    finally:
        gpg.end()
        if gpg.stood_still:
            raise stood_still("asking gpg", f"did not end for {length(allowed())}")


@contextmanager
def agent_ended(home: Path) -> Iterator[None]:
    """Ends the agent that gpg started for that keyring, if none was running before the block.

    Of several processes in such blocks none ends the agent that another still uses.
    """
    home_option, env = f"--homedir={home}", process.environment()

    def ask(*argv: str) -> str:
        try:
            return process.output(argv, env=env)
        except (OSError, process.ChildFailed):
            return ""

    with _among_others(home) as others:
        starts = others.none() and not ask(
            "gpg-connect-agent", home_option, "--no-autostart", "GETINFO pid", "/bye"
        )
        others.may_come()
        try:
            yield
        finally:
            if starts and others.none():
                ask("gpgconf", home_option, "--kill", "gpg-agent")


class _Others:
    """Whoever else uses a keyring's agent, by a lock on its home that all of them hold."""

    def __init__(self, handle: int | None) -> None:
        self._handle = handle

    def none(self) -> bool:
        """Whether there are none. Then whoever comes waits, until `may_come` or the end."""
        if self._handle is None:
            return False
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def may_come(self) -> None:
        if self._handle is not None:
            lock(self._handle, fcntl.LOCK_SH)


@contextmanager
def _among_others(home: Path) -> Iterator[_Others]:
    try:
        handle = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # gpg will say what is wrong with it
        yield _Others(None)
        return
    try:
        yield _Others(handle)
    finally:
        os.close(handle)


@contextmanager
def through(
    sink: Writer, home: Path, options: list[str], run: Callable[[Gpg, "Source"], Any], *, doing: str
) -> Iterator[Writer]:
    """A writer whose bytes `run` has gpg read from its source; gpg's output goes to `sink`. `doing` is said
    where it stands still.

    python-gnupg pulls from a file and we push, so a pipe and a thread stand between. The first cause
    is what is raised: the sink's error or gpg's own, before the broken pipe that our writing then meets.

    Raises:
        GpgFailed: by its own word or its exit status. ProgramStalled: it takes nothing, or does not end.
        Whatever the sink raised.
    """
    clock = Clock()
    with ThreadPoolExecutor(1) as thread, gpg_at(home, options) as gpg:
        gpg.has_a_clock = True
        read_end, write_end = os.pipe()
        process.widen(write_end)
        source = Source(read_end, clock)
        output = _Output(sink, source, clock)
        gpg.on_data = output.take
        ended = thread.submit(source.closed_after, lambda: run(gpg, source))
        try:
            with _closing(write_end), source.aborted_on_error():
                yield _Input(write_end, clock, doing)
        except BaseException as error:
            if output.error or isinstance(error, BrokenPipeError):
                with suppress(_GivenUp):
                    _settle(ended, gpg, output, clock, doing)
            raise
        _settle(ended, gpg, output, clock, doing)


def _settle(ended: Future[Any], gpg: Gpg, output: "_Output", clock: Clock, doing: str) -> None:
    """Waits for gpg; raises the sink's error, else gpg's, else nothing."""
    try:
        result = clock.ends(ended)
    except Stalled as stalled:
        raise stood_still(doing, f"did not end {stalled}") from None
    except (OSError, ValueError) as error:
        if output.error is None and isinstance(error, _GivenUp):
            raise
        raise (output.error or GpgFailed(str(error), killed=gpg.was_killed())) from None
    if output.error:
        raise output.error
    if not result.ok or result.returncode != 0:
        said = f"{said_by(result)} (gpg's exit status {result.returncode})"
        raise GpgFailed(said, killed=gpg.was_killed())


def said_by(result: Any) -> str:
    """What gpg said for people, on one line."""
    lines = [line.strip() for line in result.stderr.splitlines() if not line.startswith(STATUS)]
    return "; ".join(line for line in lines if line) or result.status or "gpg said nothing"


@contextmanager
def _closing(handle: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(handle)


class _Input:
    """The pipe's writing end: takes all, or raises."""

    def __init__(self, handle: int, clock: Clock, doing: str) -> None:
        self._pipe, self._doing = process.Pipe(handle, clock), doing

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._pipe.write(view) :]
        except Stalled as stalled:
            raise stood_still(self._doing, f"took no byte {stalled}") from None


class _GivenUp(OSError):
    """Our own end of the stream failed first."""


class Source:
    """The pipe's reading end. End-of-file is reported only where the writer ended well."""

    def __init__(self, read_end: int, clock: Clock) -> None:
        self._file = os.fdopen(read_end, "rb", buffering=0)
        self._aborted = False
        self._clock = clock

    def read(self, size: int) -> bytes:
        block = b"" if self._aborted else self._file.read(size)
        self._clock.moved()
        if not block and self._aborted:
            raise _GivenUp
        return block or b""

    def abort(self) -> None:
        self._aborted = True

    @contextmanager
    def aborted_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def closed_after(self, run: Callable[[], Any]) -> Any:
        """Closing makes the writer's next write fail: that is how it learns that gpg has gone."""
        try:
            return run()
        finally:
            self._file.close()


class _Output:
    """gpg's output on its way to the sink. python-gnupg keeps an error of ours to itself: we don't."""

    def __init__(self, sink: Writer, source: Source, clock: Clock) -> None:
        self._sink, self._source, self._clock = sink, source, clock
        self.error: BaseException | None = None

    def take(self, data: bytes) -> bool:
        if data and self.error is None:
            try:
                with self._clock.elsewhere():
                    self._sink.write(data)
            except BaseException as error:
                self.error = error
                self._source.abort()
        return False  # python-gnupg need not keep it
