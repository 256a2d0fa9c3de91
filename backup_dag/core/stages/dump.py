"""The dump: pg_dump as a stream to read, and pg_restore, which turns an archive into text or loads it."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from backup_dag.core import process
from backup_dag.core.address import Address
from backup_dag.core.clients import Clients
from backup_dag.core.errors import BackupDagError, IntegrityError, ProgramStalled
from backup_dag.core.postgres import Snapshot
from backup_dag.core.programs import client
from backup_dag.core.sql import DUMPING, literal
from backup_dag.core.stall import allowed
from backup_dag.core.stream import Writer
from backup_dag.core.work import new_file

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
        DatabaseUnreachable: it gave no byte for BACKUP_STALL_SECONDS, whatever the server says of it.
    """
    options = [
        f"--snapshot={snapshot.name}",
        f"--format={'plain' if format == 'sql' else 'custom'}",
        "--compress=0",
        *options,
    ]
    program = clients.program("pg_dump")
    with client("dumping", program, address.having(DUMPING), options, trusted=False) as child:
        yield child


@contextmanager
def dumping_roles(address: Address, clients: Clients, *, hashes: bool) -> Iterator[process.Child]:
    """pg_dumpall --roles-only as a stream, with password hashes or without. Raises as `dumping`."""
    options = [f"--database={address.dbname_for_argv()}", "--roles-only"]
    options += [] if hashes else ["--no-role-passwords"]
    program = clients.program("pg_dumpall")
    with client("dumping the roles of", program, address, options, trusted=False) as child:
        yield child


@contextmanager
def as_sql(sink: Writer, clients: Clients, *, format: str) -> Iterator[Writer]:
    """A writer that takes a dump of either format and pushes its SQL text to `sink`.

    A custom archive is turned into text by pg_restore, so that both formats have one fingerprint.

    Raises:
        IntegrityError: pg_restore could not read the archive. ProgramStalled: it stood still.
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
            child.sees_the_end_of(copied)
        except (process.ChildFailed, BrokenPipeError) as failed:
            if isinstance(failed, process.ChildFailed) and failed.program != "pg_restore":
                raise  # pg_dump's, on its way through here
            child.stop()
            wait([copied], allowed())
            if copied.done() and (cause := copied.exception()) and not isinstance(cause, process.ChildFailed):
                raise cause from None
            raise _unreadable(failed) from failed


def _copy(child: process.Child, sink: Writer) -> None:
    """From pg_restore to the sink. A sink that fails ends pg_restore, or our writing to it would wait."""
    try:
        while block := child.read(however_long=True):
            with child.clock.elsewhere():
                sink.write(block)
    except BaseException:
        child.stop()
        raise


def _unreadable(failed: Exception) -> BackupDagError:
    if isinstance(failed, process.ChildStalled):
        return ProgramStalled(
            f"reading the custom archive failed: {failed}",
            hint="see what holds pg_restore up on this machine (stopped? out of memory? ps, dmesg); then try"
            " again",
        )
    if isinstance(failed, process.ChildFailed) and failed.status < 0:
        return BackupDagError(
            f"reading the custom archive failed: {failed}",
            hint="see who killed it (out of memory? journalctl -k), then try again",
        )
    return IntegrityError(
        f"reading the custom archive failed: {failed}", hint="use another copy, or another backup"
    )


def load_archive(
    archive: Path,
    address: Address,
    clients: Clients,
    parameters: Mapping[str, str],
    *,
    jobs: int,
    sections: Sequence[str],
    work: Path,
    without: Sequence[str] = (),
) -> None:
    """Runs pg_restore over these sections of a custom archive, several tables at a time; `without` the
    entries of its list that hold one of these texts. Raises DatabaseError."""
    options = [
        *("--exit-on-error", f"--jobs={jobs}"),
        *(f"--section={section}" for section in sections),
        *(_entries(archive, clients, without, work) if without else []),
        str(archive),
    ]
    with client("loading", clients.program("pg_restore"), address.having(parameters), options) as child:
        while child.read():
            pass


def read_archive(archive: Path, clients: Clients, sink: Writer, *, schema_only: bool) -> None:
    """Pushes an archive's SQL text; its schema alone takes no time, however large it is. Raises
    IntegrityError, ProgramStalled."""
    argv: process.Argv = [
        clients.program("pg_restore"),
        *("--format=custom", "--file=-", *(["--schema-only"] if schema_only else [])),
        archive,
    ]
    try:
        with process.running(argv, env=process.environment()) as child:
            while block := child.read():
                sink.write(block)
    except process.ChildFailed as failed:
        raise _unreadable(failed) from failed


def _entries(archive: Path, clients: Clients, without: Sequence[str], work: Path) -> list[str]:
    """The option that has pg_restore pass over some entries: a list of the others, in a folder of ours."""
    listed = process.output([clients.program("pg_restore"), "--list", archive], env=process.environment())
    chosen = [line for line in listed.splitlines() if not any(text in line for text in without)]
    path = work / f"chosen-{secrets.token_hex(4)}.list"
    with new_file(path) as file:
        file.write(("\n".join(chosen) + "\n").encode())
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
