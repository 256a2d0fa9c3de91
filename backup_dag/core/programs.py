"""PostgreSQL's own client programs: with the server's password, watched, and their failures in our words."""

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from backup_dag.core import process
from backup_dag.core.address import Address
from backup_dag.core.errors import BackupDagError, DatabaseError, IntegrityError
from backup_dag.core.looking import advice, look_at, stood_still
from backup_dag.core.sql import literal
from backup_dag.core.stall import Clock

_ROWS = re.compile(r"^(?:DETAIL|CONTEXT):.*?(?=^[a-z_]+: |^[A-Z]{4,}|\Z)", re.MULTILINE | re.DOTALL)
"""Where a client quotes what a row holds: pg_restore cannot be told to be terse."""


@contextmanager
def client(
    doing: str,
    program: Path,
    address: Address,
    options: Sequence[str],
    *,
    stdin: int = process.NO_INPUT,
    trusted: bool = True,
) -> Iterator[process.Child]:
    """A client program with the server's password in its environment, its failure in our words.

    Where nothing moves, the server is asked what its sessions do: by a name of their own. `trusted`: while it
    says that they work, we wait on.
    """
    named = address.named(secrets.token_hex(4))
    argv: process.Argv = [program, f"--dbname={named.for_argv()}", "--no-password", *options]
    theirs = f"application_name = {literal(named.session_name)}"
    clock = Clock(lambda: look_at(address, theirs), trusted=trusted)
    try:
        with process.running(argv, env=address.environment(), stdin=stdin, clock=clock) as child:
            yield child
    except process.ChildFailed as failed:
        raise failure(doing, address, failed) from failed


def failure(doing: str, address: Address, failed: process.ChildFailed) -> BackupDagError:
    """What the end of a client program means, and what to do about it."""
    if isinstance(failed, process.ChildStalled):
        return stood_still(f"{doing} {address}", str(failed))
    failed = process.ChildFailed(failed.program, failed.status, _ROWS.sub("", failed.stderr).strip())
    if failed.status < 0:
        return BackupDagError(
            f"{doing} {address} failed: {failed}",
            hint="see who killed it (out of memory? journalctl -k), then try again",
        )
    if "backslash commands are restricted" in failed.stderr:
        return IntegrityError(
            f"{doing} {address} stopped at a command for psql itself, which can run programs and which"
            " pg_dump never writes; it was not run",
            hint="use another backup, and find out who made this one: they had its key",
        )
    hints = {
        "invalid command \\restrict": "this psql is of before 2025-08-14 and would run what a backup's text"
        " names: install a newer minor version",
        "permission denied for large object": "GRANT SELECT ON LARGE OBJECT … to this role, or leave them"
        " out with pg_dump_options = ['--no-large-objects']",
        "permission denied": "grant this role pg_read_all_data, or exclude the table by name in backup.toml",
        "row-level security": "give this role BYPASSRLS: rows that it may not see would be missing",
        "server version mismatch": "install a client as new as the server, and see backup-dag doctor",
    }
    hint = next((each for said, each in hints.items() if said in failed.stderr), advice(failed.stderr))
    return DatabaseError(
        f"{doing} {address} failed: {failed}",
        hint=hint or "see the server's log, and backup-dag doctor for what this role may do",
    )
