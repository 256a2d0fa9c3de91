"""The dump, both ways: pg_dump as a stream to read, psql and pg_restore to load it again."""

import io
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from backup_dag.core import process
from backup_dag.core.address import Address
from backup_dag.core.clients import Clients
from backup_dag.core.errors import BackupDagError, DatabaseError, IntegrityError
from backup_dag.core.postgres import DUMPING, Snapshot, literal
from backup_dag.core.stream import Writer

EXTENSION = {"sql": "sql", "custom": "dump"}
"""What a format is called in the name of an artifact."""

PROPERTIES = "\n-- Properties of the database itself\n"
"""Where the roles end in a globals file."""


@contextmanager
def dumping(
    address: Address, clients: Clients, snapshot: Snapshot, *, format: str, options: Sequence[str]
) -> Iterator[process.Child]:
    """pg_dump of one snapshot, to be read to its end; end-of-file comes only after its exit status 0.

    Row security is off, as pg_dump has it: a role from which rows are hidden gets an error, never a
    dump without them.

    Raises:
        DatabaseError: pg_dump exited otherwise; its last words are in the message.
    """
    argv: process.Argv = [
        clients.program("pg_dump"),
        f"--dbname={address.for_argv()}",
        f"--snapshot={snapshot.name}",
        f"--format={'plain' if format == 'sql' else 'custom'}",
        "--compress=0",
        "--no-password",
        *options,
    ]
    with _client("dumping", address, argv, parameters=DUMPING) as child:
        yield child


@contextmanager
def dumping_roles(address: Address, clients: Clients, *, hashes: bool) -> Iterator[process.Child]:
    """pg_dumpall --roles-only as a stream, with password hashes or without. Raises DatabaseError."""
    argv: process.Argv = [
        clients.program("pg_dumpall"),
        f"--dbname={address.for_argv()}",
        f"--database={address.dbname_for_argv()}",
        "--roles-only",
        "--no-password",
        *([] if hashes else ["--no-role-passwords"]),
    ]
    with _client("dumping the roles of", address, argv) as child:
        yield child


@contextmanager
def _client(
    doing: str,
    address: Address,
    argv: process.Argv,
    *,
    stdin: int = process.NO_INPUT,
    parameters: Mapping[str, str] | None = None,
) -> Iterator[process.Child]:
    """A client program with the server's password in its environment, its failure in our words."""
    environment = address.environment()
    if parameters:
        environment["PGOPTIONS"] = " ".join(
            [environment.get("PGOPTIONS", ""), *(f"-c {name}={value}" for name, value in parameters.items())]
        ).strip()
    try:
        with process.running(argv, env=environment, stdin=stdin) as child:
            yield child
    except process.ChildFailed as failed:
        raise _failure(doing, address, failed) from failed


@contextmanager
def as_sql(sink: Writer, clients: Clients, *, format: str) -> Iterator[Writer]:
    """A writer that takes a dump of either format and pushes its SQL text to `sink`.

    A custom archive is turned into text by pg_restore, so that both formats have one fingerprint.

    Raises:
        IntegrityError: pg_restore could not read the archive.
    """
    if format == "sql":
        yield sink
        return
    argv: process.Argv = [clients.program("pg_restore"), "--format=custom", "--file=-"]
    with (
        ThreadPoolExecutor(1) as thread,
        process.running(argv, env=process.environment(), stdin=process.PIPE) as child,
    ):
        copied = thread.submit(_copy, child, sink)
        try:
            yield child
            child.end_input()
            copied.result()
        except (process.ChildFailed, BrokenPipeError) as failed:
            if isinstance(failed, process.ChildFailed) and failed.program != "pg_restore":
                raise  # pg_dump's, on its way through here
            if (cause := copied.exception()) and not isinstance(cause, process.ChildFailed):
                raise cause from None
            raise IntegrityError(
                f"reading the custom archive failed: {failed}", hint="use another copy, or another backup"
            ) from failed


def _copy(child: process.Child, sink: Writer) -> None:
    """From pg_restore to the sink. A sink that fails ends pg_restore, or our writing to it would wait."""
    try:
        while block := child.read():
            sink.write(block)
    except BaseException:
        child.stop()
        raise


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

    `parameters` are set for its session alone. Terse, since the longer errors quote rows. With
    `all_or_nothing` it is one transaction, which an exception in the block undoes.

    Raises:
        DatabaseError: a statement failed; psql's last words are in the message.
    """
    argv: process.Argv = [
        clients.program("psql"),
        f"--dbname={address.for_argv()}",
        *("--no-psqlrc", "--quiet", "--no-password", "--output=/dev/null", "--file=-"),
        *(["--single-transaction"] if all_or_nothing else []),
        *(["--set=ON_ERROR_STOP=1"] if strict else []),
        *("--set=VERBOSITY=terse", "--set=SHOW_CONTEXT=never"),
    ]
    with _client("loading", address, argv, stdin=process.PIPE, parameters=parameters) as child:
        try:
            yield child
            child.end_input()
        except BrokenPipeError as broken:  # psql has ended, and well: there was a \q in the text
            raise DatabaseError(
                f"loading {address} failed: psql ended before the text did", hint="verify the backup"
            ) from broken
        child.wait()


class Conversation:
    """A psql that runs what is written to it, and can be asked what a statement puts out."""

    def __init__(self, child: process.Child, explain: Callable[[process.ChildFailed], Exception]) -> None:
        self._child, self._explain = child, explain
        token = secrets.token_hex(16)
        self._begin, self._end = f"{token}:begin".encode(), f"{token}:end".encode()
        self._sink: Writer | None = None  # while an answer is being put out
        self._open = False
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
            self._answered.wait()
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

    def _listen(self) -> None:
        try:
            while block := self._child.read():
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
    not committed is undone by the server.

    Raises:
        DatabaseError: a statement failed; psql's last words are in the message.
    """
    argv: process.Argv = [
        clients.program("psql"),
        f"--dbname={address.for_argv()}",
        *("--no-psqlrc", "--quiet", "--no-password", "--tuples-only", "--no-align", "--file=-"),
        *("--set=ON_ERROR_STOP=1", "--set=VERBOSITY=terse", "--set=SHOW_CONTEXT=never"),
    ]
    doing = "restoring into"
    with _client(doing, address, argv, stdin=process.PIPE, parameters=parameters) as child:
        yield Conversation(child, lambda failed: _failure(doing, address, failed))


def load_archive(
    archive: Path,
    address: Address,
    clients: Clients,
    parameters: Mapping[str, str],
    *,
    jobs: int,
    without: Sequence[str] = (),
) -> None:
    """Runs pg_restore over a custom archive, several tables at a time; `without` the entries of its list
    that hold one of these texts. Raises DatabaseError."""
    argv: process.Argv = [
        clients.program("pg_restore"),
        f"--dbname={address.for_argv()}",
        *("--no-password", "--exit-on-error", f"--jobs={jobs}"),
        *(_entries(archive, clients, without) if without else []),
        str(archive),
    ]
    with _client("loading", address, argv, parameters=parameters) as child:
        while child.read():
            pass


def _entries(archive: Path, clients: Clients, without: Sequence[str]) -> list[str]:
    """The option that has pg_restore pass over some entries: a list of the others, beside the archive."""
    listed = process.output([clients.program("pg_restore"), "--list", archive], env=process.environment())
    chosen = [line for line in listed.splitlines() if not any(text in line for text in without)]
    path = archive.with_suffix(".list")
    path.write_text("\n".join(chosen) + "\n")
    return [f"--use-list={path}"]


def properties_sql(address: Address, statements: Sequence[str], *, raw: bool) -> bytes:
    """What psql runs to give an existing database its owner, settings and grants back.

    Where no such database exists, nothing is run: roles can be restored on their own. `raw`: the text came
    from SQL_ASCII, a byte a character, and goes back so.
    """
    guarded = "".join(
        f"SELECT {literal(statement)} WHERE EXISTS (SELECT FROM pg_database"
        f" WHERE datname = {literal(address.dbname)})\n\\gexec\n"
        for statement in statements
    )
    encoding, codec = ("SQL_ASCII", "latin-1") if raw else ("UTF8", "utf-8")
    return f"{PROPERTIES}SET client_encoding = '{encoding}';\n{guarded}".encode(codec)


def _failure(doing: str, address: Address, failed: process.ChildFailed) -> BackupDagError:
    if failed.status < 0:
        return BackupDagError(
            f"{doing} {address} failed: {failed}",
            hint="see who killed it (out of memory? journalctl -k), then try again",
        )
    hints = {
        "permission denied for large object": "GRANT SELECT ON LARGE OBJECT … to this role, or leave them"
        " out with pg_dump_options = ['--no-large-objects']",
        "permission denied": "grant this role pg_read_all_data, or exclude the table by name in backup.toml",
        "row-level security": "give this role BYPASSRLS: rows that it may not see would be missing",
        "server version mismatch": "install a client as new as the server, and see backup-dag doctor",
    }
    hint = next((advice for said, advice in hints.items() if said in failed.stderr), "")
    return DatabaseError(
        f"{doing} {address} failed: {failed}",
        hint=hint or "see the server's log, and backup-dag doctor for what this role may do",
    )
