"""The restore for servers that forbid new databases: in one transaction, all of it or nothing.

The transaction locks every table against writing; then the safety backup is made, so it holds all that there
was. It empties the database, loads the backup and compares what it loaded; then it commits, or nothing has
happened. Sessions that come meanwhile wait, and find the old content or the new. What is dropped is gone with
the commit: the safety backup is what remains of it.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from backup_dag.core.errors import DatabaseError, GuardRefused, IntegrityError
from backup_dag.core.history import Stopwatch
from backup_dag.core.postgres import connected
from backup_dag.core.psql import conversing
from backup_dag.core.reading import Source
from backup_dag.core.restoring.emptying import (
    LARGE_OBJECT_WRITES,
    emptying,
    locking,
    not_locked,
    what_is_left,
)
from backup_dag.core.restoring.eviction import sessions_ended
from backup_dag.core.restoring.loading import fitting, load_text, loading_clients, loading_parameters
from backup_dag.core.restoring.noted import Noted
from backup_dag.core.restoring.proof import Proof, schema_of
from backup_dag.core.restoring.schemas import schema_faults
from backup_dag.core.restoring.target import Target
from backup_dag.core.restoring.way import Done
from backup_dag.core.restoring.within import prove_within
from backup_dag.core.stream import Observer, Writer

_TRANSACTION = b"SELECT pg_catalog.pg_current_xact_id()"


class InPlace:
    """Hold, build, prove, finish, in this order; `close` rolls back what was not finished."""

    def __init__(self, source: Source, target: Target, took: Stopwatch) -> None:
        self._source, self._target, self._took = source, target, took
        self._stack = ExitStack()
        self._noted = Noted()

    def hold(self) -> None:
        """Opens the transaction, ends other sessions, and locks every table against being written to: the
        safety backup that follows holds all that there will have been."""
        server = self._target.session.server_major
        self._clients = loading_clients(self._source.settings, self._source.manifest, server)
        self._psql = self._stack.enter_context(
            conversing(self._target.address, self._clients, loading_parameters(server, live=True))
        )
        self._psql.write(b"BEGIN;\n")
        self._began = time.monotonic()
        with self._took("lock"), self._others_ended():
            self._psql.write(locking())
            self._writes = self._psql.answer(LARGE_OBJECT_WRITES)
        self._transaction = self._psql.answer(_TRANSACTION)

    def build(self, observer: Observer | None) -> str:
        """Empties the database and loads the backup, in the transaction that stays open."""
        target = self._target
        with self._took("empty"), self._others_ended():
            self._check_nothing_came()
            self._psql.write(emptying())
            left = self._psql.answer(what_is_left())
        if left:
            raise DatabaseError(
                f"{target.address} could not be emptied: {', '.join(left[:10])} would have stayed",
                hint="nothing was changed; drop these yourself, or restore into a new database",
            )
        self._psql.write(b"SET LOCAL lock_timeout = 0;\n")
        self._psql.restrict()
        with self._took("load"):
            load_text(self._source, self._read_along(), observer)
        with self._took("analyze"):
            self._psql.answer(b"ANALYZE")
        if self._psql.answer(_TRANSACTION) != self._transaction:
            raise IntegrityError(
                f"{target.address} is half restored: the backup's text ended the transaction that loaded it",
                hint="restore by swap where the server lets you; what was there before is in the safety"
                " backup, if one was made (backup-dag list)",
            )
        return f"{target.name}, in a transaction that is still open"

    def _check_nothing_came(self) -> None:
        """Raises GuardRefused where something was written since the safety backup, that it does not hold."""
        new = self._psql.answer(not_locked())
        if self._psql.answer(LARGE_OBJECT_WRITES) != self._writes:
            new.append("large objects")
        if new:
            raise GuardRefused(
                f"something came into {self._target.address} meanwhile: {', '.join(new[:10])}",
                hint="nothing was changed; stop whoever writes to it, and restore again",
            )

    def prove(self, observer: Observer | None) -> Proof:
        """Compares rows, sequences and large objects, as the open transaction sees them."""
        return prove_within(self._source, self._psql, self._noted, observer)

    def finish(self) -> Done:
        """Commits; then the schema is compared as well, which only others can dump. Rows are not: from the
        commit on, others write to them.

        Raises:
            DatabaseError: the server did not commit. Nothing has changed then.
            IntegrityError: the schema is not what was backed up; the rows were.
        """
        self._psql.answer(b"COMMIT")
        window = time.monotonic() - self._began
        if faults := self._schema_faults():
            raise IntegrityError(
                f"all rows are back in {self._target.address}, but not all else is as it was backed up:"
                f" {'; '.join(faults)}",
                hint="restore again, by swap where the server lets you; what was there before is in the"
                " safety backup, if one was made (backup-dag list)",
            )
        return Done(None, window)

    def _schema_faults(self) -> list[str]:
        manifest, clients = self._source.manifest, self._clients
        found = schema_of(manifest, self._target.address, clients)
        faults, _ = schema_faults(manifest, self._noted.schema, found, clients)
        return [fault for fault in faults if not fault.startswith("blob")]  # a schema alone has none of these

    def close(self) -> None:
        """Rolls back, unless it has been committed."""
        self._stack.close()

    @contextmanager
    def _others_ended(self) -> Iterator[None]:
        """Whoever is connected is told to end, and those that come after, until all locks are ours."""
        [ours] = self._psql.answer(b"SELECT pg_catalog.pg_backend_pid()")
        session = self._target.session
        theirs = session.row("SELECT pg_backend_pid() AS pid")["pid"]
        with connected(session.address) as other:
            watching = other.row("SELECT pg_backend_pid() AS pid")["pid"]
            with sessions_ended(other, [self._target.name], but=[int(ours), theirs, watching]):
                yield

    def _read_along(self) -> Writer:
        """Who notes what cannot be compared from within, and hands on to psql what ends no transaction."""
        return self._noted.fingerprint(fitting(self._source, self._psql))
