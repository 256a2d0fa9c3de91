"""gpg through python-gnupg: as a writer in a stream, and with children that end with us."""

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gnupg

from backup_dag.core import process
from backup_dag.core.errors import ConfigurationError
from backup_dag.core.stream import BLOCK, Writer

_log = logging.getLogger("gnupg")
_log.addHandler(logging.NullHandler())
_log.propagate = False  # what it has to say stands in our errors


class GpgFailed(Exception):
    """gpg did not do what it was asked; the message is what it said."""


class Gpg(gnupg.GPG):  # type: ignore[misc]
    """python-gnupg, with its children started where all children are."""

    def __init__(self, home: Path, options: list[str]) -> None:
        self.children: list[process.Popen] = []
        self.buffer_size = BLOCK
        super().__init__(gnupghome=str(home), options=options, env=process.environment())
        self.encoding = "utf-8"

    def _open_subprocess(self, args: list[str], passphrase: bool = False) -> process.Popen:
        child = process.start(self.make_args(args, passphrase), env=self.env, stdin=process.PIPE)
        self.children.append(child)
        return child

    def _read_response(self, stream: Any, result: Any) -> None:
        stream.errors = "backslashreplace"  # what gpg quotes from a broken message need not be text
        super()._read_response(stream, result)


@contextmanager
def gpg_at(home: Path, options: list[str]) -> Iterator[Gpg]:
    """A gpg with that home; its children are ended with the block. Raises ConfigurationError."""
    try:
        gpg = Gpg(home, options)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"starting gpg with the home {home} failed: {error}",
            hint="install GnuPG 2.1 or newer (apt-get install gnupg); BACKUP_GPG_HOME must be a directory",
        ) from error
    try:
        yield gpg
    finally:
        for child in gpg.children:
            process.stop(child)


@contextmanager
def agent_ended(home: Path) -> Iterator[None]:
    """Ends the agent that gpg started for that keyring, if none was running before the block."""
    home_option, env = f"--homedir={home}", process.environment()

    def ask(*argv: str) -> bool:
        try:
            process.output(argv, env=env)
        except (OSError, process.ChildFailed):
            return False
        return True

    was_running = ask("gpg-connect-agent", home_option, "--no-autostart", "GETINFO pid", "/bye")
    try:
        yield
    finally:
        if not was_running:
            ask("gpgconf", home_option, "--kill", "gpg-agent")


@contextmanager
def through(
    sink: Writer, home: Path, options: list[str], run: Callable[[Gpg, "Source"], Any]
) -> Iterator[Writer]:
    """A writer whose bytes `run` has gpg read from its source; gpg's output goes to `sink`.

    python-gnupg pulls from a file and we push, so a pipe and a thread stand between. The first cause
    is what is raised: the sink's error or gpg's own, before the broken pipe that our writing then meets.

    Raises:
        GpgFailed: by its own word or its exit status.
        Whatever the sink raised.
    """
    with ThreadPoolExecutor(1) as thread, gpg_at(home, options) as gpg:
        read_end, write_end = os.pipe()
        process.widen(write_end)
        source = Source(read_end)
        output = _Output(sink, source)
        gpg.on_data = output.take
        ended = thread.submit(source.closed_after, lambda: run(gpg, source))
        try:
            with os.fdopen(write_end, "wb") as writer, source.aborted_on_error():
                yield writer
        except BaseException as error:
            if output.error or isinstance(error, BrokenPipeError):
                with suppress(_GivenUp):
                    _settle(ended, output)
            raise
        _settle(ended, output)


def _settle(ended: Future[Any], output: "_Output") -> None:
    """Waits for gpg; raises the sink's error, else gpg's, else nothing."""
    try:
        result = ended.result()
    except (OSError, ValueError) as error:
        if output.error is None and isinstance(error, _GivenUp):
            raise
        raise (output.error or GpgFailed(str(error))) from None
    if output.error:
        raise output.error
    if not result.ok or result.returncode != 0:
        lines = [line.strip() for line in result.stderr.splitlines() if not line.startswith("[GNUPG:]")]
        said = "; ".join(line for line in lines if line) or result.status or "gpg said nothing"
        raise GpgFailed(f"{said} (gpg's exit status {result.returncode})")


class _GivenUp(OSError):
    """Our own end of the stream failed first."""


class Source:
    """The pipe's reading end. End-of-file is reported only where the writer ended well."""

    def __init__(self, read_end: int) -> None:
        self._file = os.fdopen(read_end, "rb", buffering=0)
        self._aborted = False

    def read(self, size: int) -> bytes:
        block = b"" if self._aborted else self._file.read(size)
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

    def __init__(self, sink: Writer, source: Source) -> None:
        self._sink, self._source = sink, source
        self.error: BaseException | None = None

    def take(self, data: bytes) -> bool:
        if data and self.error is None:
            try:
                self._sink.write(data)
            except BaseException as error:
                self.error = error
                self._source.abort()
        return False  # python-gnupg need not keep it
