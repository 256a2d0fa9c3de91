"""psql, to run a dump's text and to be asked: restricted, since that text may be a stranger's."""

import io
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from backup_dag.core import process
from backup_dag.core.address import Address
from backup_dag.core.clients import Clients
from backup_dag.core.errors import DatabaseError
from backup_dag.core.programs import client, failure
from backup_dag.core.sql import literal
from backup_dag.core.stream import Writer

_BEFORE_STATEMENTS = re.compile(rb"(?:(?:--[^\n]*)?\n)*")
_RESTRICT = re.compile(rb"\\restrict ([^\n]+)\n")
_LONGEST_KEY = 4096  # bytes; pg_dump's own has 63


@contextmanager
def loading(
    address: Address,
    clients: Clients,
    parameters: Mapping[str, str],
    *,
    all_or_nothing: bool = False,
    strict: bool = True,
) -> Iterator[process.Child]:
    """psql, as a writer that runs the SQL text written to it; the first error ends it, if it is `strict`.

    It is restricted (`_restrict`): pg_dump's own lines for that are left out by `WithoutRestriction`.
    `parameters` are set for its session alone. Terse, since the longer errors quote rows. With
    `all_or_nothing` it is one transaction, which an exception in the block undoes.

    Raises:
        DatabaseError: a statement failed; psql's last words are in the message.
        IntegrityError: the text has a command for psql itself, which was not run.
        DatabaseUnreachable: nothing moves, and the server does not say that it works on it.
    """
    options = [
        *("--no-psqlrc", "--quiet", "--output=/dev/null", "--file=-"),
        *(["--single-transaction"] if all_or_nothing else []),
        *(["--set=ON_ERROR_STOP=1"] if strict else []),
        *("--set=VERBOSITY=terse", "--set=SHOW_CONTEXT=never"),
    ]
    there, program = address.having(parameters), clients.program("psql")
    with client("loading", program, there, options, stdin=process.PIPE) as child:
        try:
            _restrict(child)
            yield child
            child.end_input()
        except BrokenPipeError as broken:  # psql has ended, and well: there was a \q in the text
            raise DatabaseError(
                f"loading {address} failed: psql ended before the text did", hint="verify the backup"
            ) from broken
        child.wait()


def _restrict(psql: Writer) -> None:
    """From here on psql takes SQL alone, and none of its own commands, of which \\! runs programs here: a
    text cannot know the key that would end it. Nor does a restricted psql take another \\restrict."""
    psql.write(f"\\restrict {secrets.token_hex(32)}\n".encode())


class WithoutRestriction:
    """Passes a dump on, for a psql that is restricted already, without pg_dump's own \\restrict and
    \\unrestrict: the first comes before all statements, the last has the same random key."""

    def __init__(self, sink: Writer) -> None:
        self._sink, self._held = sink, b""
        self._last: bytes | None = None  # not known yet; b"": there is none

    def write(self, data: bytes) -> None:
        data, self._held = self._held + data, b""
        if self._last is None:
            data = self._without_first(data)
        if self._last is None:
            self._held = data
            return
        if self._last:
            data = data.replace(self._last, b"\n")
            self._held = _beginning_of(self._last, data)
        self._sink.write(data[: len(data) - len(self._held)])

    def _without_first(self, data: bytes) -> bytes:
        """The text from its beginning on, without the first line, once it is known whether there is one."""
        before = _BEFORE_STATEMENTS.match(data)
        at = before.end() if before else 0
        end = data.find(b"\n", at) + 1
        if not end and len(data) - at < _LONGEST_KEY:
            return data
        found = _RESTRICT.match(data, at)
        self._last = b"\n\\unrestrict " + found[1] + b"\n" if found else b""
        return data[:at] + data[end:] if found else data


def _beginning_of(line: bytes, data: bytes) -> bytes:
    """What stands at the end of the data, and may be the beginning of that line."""
    longest = min(len(line) - 1, len(data))
    return next((line[:n] for n in range(longest, 0, -1) if data.endswith(line[:n])), b"")


class Conversation:
    """A psql that runs what is written to it, and can be asked what a statement puts out."""

    def __init__(self, child: process.Child, explain: Callable[[process.ChildFailed], Exception]) -> None:
        self._child, self._explain = child, explain
        token = secrets.token_hex(16)
        self._begin, self._end = f"{token}:begin".encode(), f"{token}:end".encode()
        self._sink: Writer | None = None  # while an answer is being put out
        self._open = self._restricted = False
        self._held = b""
        self._answered = threading.Event()
        self._failure: BaseException | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def write(self, text: bytes) -> None:
        """Text to run. What it puts out is passed over. Raises as `ask` does."""
        try:
            self._child.write(text)
        except process.ChildFailed as failed:
            raise self._explain(failed) from failed

    def restrict(self) -> None:
        """From here on it runs SQL alone, as in `loading`. For good. Raises as `ask` does."""
        if not self._restricted:
            self._restricted = True
            _restrict(self)

    def ask(self, statement: bytes, sink: Writer) -> None:
        """Runs one statement, after all that was written before it; what it puts out goes to `sink`.

        Raises DatabaseError where psql has ended: a statement failed, this one or an earlier one.
        """
        self._answered.clear()
        self._sink = sink
        try:
            self._child.write(
                b"SELECT '" + self._begin + b"';\n" + statement + b";\nSELECT '" + self._end + b"';\n"
            )
            self._child.flush()
            self._child.sees(self._answered)
            if self._failure is not None:
                raise self._failure
        except process.ChildFailed as failed:
            raise self._explain(failed) from failed

    def answer(self, statement: bytes) -> list[str]:
        """The lines that one statement puts out. Raises as `ask` does."""
        said = io.BytesIO()
        self.ask(statement, said)
        return said.getvalue().decode(errors="backslashreplace").splitlines()

    def copy_out(self, statement: bytes, sink: Writer, encoding: str) -> None:
        """Runs a COPY … TO STDOUT in that encoding. Raises as `ask` does."""
        self.write(f"SET client_encoding TO {literal(encoding)};\n".encode())
        self.ask(statement, sink)

    def end(self) -> None:
        """Ends psql, whatever it is doing: whoever waits for an answer is told so."""
        self._child.stop()

    def _listen(self) -> None:
        try:
            while block := self._child.read(however_long=True):
                with self._child.clock.elsewhere():
                    self._hear(block)
            self._failure = self._failure or EOFError("psql ended before it was told to")
        except BaseException as error:
            self._failure = error
        finally:
            self._answered.set()

    def _hear(self, block: bytes) -> None:
        """Hands on what stands between the marks, which may be cut in two by a block's end."""
        self._held += block
        while True:
            mark = (self._end if self._open else self._begin) + b"\n"
            at = self._held.find(mark)
            upto = at if at >= 0 else max(0, len(self._held) - len(mark))
            if self._open and self._sink is not None and upto:
                self._sink.write(self._held[:upto])
            if at < 0:
                self._held = self._held[upto:]
                return
            self._held, self._open = self._held[at + len(mark) :], not self._open
            if not self._open:
                self._answered.set()


@contextmanager
def conversing(address: Address, clients: Clients, parameters: Mapping[str, str]) -> Iterator[Conversation]:
    """psql, to write to and to ask. The first error ends it; leaving the block ends it, and what it had
    not committed is undone by the server. Before it is handed what others wrote: `restrict`.

    Raises:
        DatabaseError: a statement failed; psql's last words are in the message.
        IntegrityError: a text has a command for psql itself, which was not run.
        DatabaseUnreachable: nothing moves, and the server does not say that it works on it.
    """
    options = [
        *("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--file=-"),
        *("--set=ON_ERROR_STOP=1", "--set=VERBOSITY=terse", "--set=SHOW_CONTEXT=never"),
    ]
    doing, there = "restoring into", address.having(parameters)
    with client(doing, clients.program("psql"), there, options, stdin=process.PIPE) as child:
        yield Conversation(child, lambda failed: failure(doing, address, failed))
