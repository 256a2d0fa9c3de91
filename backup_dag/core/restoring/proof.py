"""Does a restored database hold what its backup promised? By content: rows, sequences, large objects, schema.

The rows of several tables are read at a time, and all else is dumped again beside them. What a backup's text
says of its schema and large objects is noted while it is loaded (`Noted`), so that the artifact is read again
only for tables whose rows came back in another order.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from backup_dag.core.address import Address
from backup_dag.core.clients import Clients, find_clients
from backup_dag.core.manifest import Manifest
from backup_dag.core.postgres import Session, Snapshot, connected
from backup_dag.core.process import Child
from backup_dag.core.psql import conversing
from backup_dag.core.reading import Source
from backup_dag.core.restoring.noted import Noted
from backup_dag.core.restoring.objects import large_object_faults
from backup_dag.core.restoring.rows import (
    Differing,
    in_order,
    sequences,
    set_to_read,
    whatever_their_order,
)
from backup_dag.core.restoring.schemas import Schema, schema_faults
from backup_dag.core.stages.dump import dumping
from backup_dag.core.stream import Meter, Observer

_MOST_SAID = 20
_PATIENT = {"statement_timeout": "0", "lock_timeout": "0", "default_transaction_read_only": "on"}


@dataclass(frozen=True)
class Proof:
    """Empty where every table, sequence, large object and the schema are as promised: `tables` that differ,
    and all else that does, in words. `notes` say what had to be looked at twice. Seconds of wall clock."""

    others: tuple[str, ...] = ()
    tables: tuple[Differing, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        return not self.tables and not self.others

    @property
    def faults(self) -> tuple[str, ...]:
        """In words; not more of them than can be read."""
        said = [*map(str, self.tables), *self.others]
        more = len(said) - _MOST_SAID
        return (*said[:_MOST_SAID], *([f"… and {more} more"] if more > 0 else []))


def prove(source: Source, noted: Noted, restored: Address, observer: Observer | None = None) -> Proof:
    """Compares the database at `restored` with the manifest, and with what was noted while it was loaded.

    Raises:
        DatabaseError: it could not be read. BackupDagError: the artifact could not be read again.
    """
    began, settings, manifest = time.monotonic(), source.settings, source.manifest
    content, jobs = manifest.content, settings.backup_restore_jobs
    meter = Meter(observer, expected=sum(table.bytes for table in content.tables.values()))
    with connected(restored) as session:
        clients, encoding = (
            find_clients(session.server_major, settings.pg_bin_dir),
            encoding_of(manifest, session),
        )
        with session.snapshot() as snapshot, ThreadPoolExecutor(1) as aside, ExitStack() as children:
            # all started by this thread, since a child ends with the thread that started it
            psqls = [children.enter_context(conversing(restored, clients, _PATIENT)) for _ in range(jobs)]
            rest = children.enter_context(_all_but_rows(session, clients, snapshot, manifest, encoding))
            found = aside.submit(_read_through, rest)
            for psql in psqls:
                set_to_read(psql, encoding, manifest.dump.options)
            tables, again = in_order(content, psqls, meter)
            others = sequences(content, psqls[0])
            others += large_object_faults(noted.objects, found.result().objects)
        schema = found.result().schema
        said, notes = schema_faults(manifest, noted.schema, schema, clients)
        same = content.tables.keys() - set(again) - {each.table for each in tables}
        moved = noted.schema.in_another_order(schema, same)
        if again := sorted([*again, *moved]):
            with conversing(restored, clients, _PATIENT) as psql:  # a row of any width passes through it
                set_to_read(psql, encoding, manifest.dump.options)
                other = whatever_their_order(source, psql, again, encoding, first=session)
            tables += other
            notes += in_another_order(again, other, moved)
    seconds = round(time.monotonic() - began, 3)
    return Proof((*others, *said), tuple(sorted(tables, key=lambda each: each.table)), tuple(notes), seconds)


def in_another_order(
    again: Sequence[str], other: Sequence[Differing], moved: Sequence[str] = ()
) -> list[str]:
    """Notes on the tables that were compared again and hold the same; `moved` are those whose columns did."""
    differing = {each.table for each in other}
    return [
        f"table {name} came back with the same {'columns' if name in moved else 'rows'} in another order"
        for name in again
        if name not in differing
    ]


def encoding_of(manifest: Manifest, session: Session) -> str:
    """That of the backup, whatever the restored database's is. SQL_ASCII is none, and is not turned into
    another or from one."""
    return "SQL_ASCII" if session.is_sql_ascii else manifest.source.encoding


def _all_but_rows(
    session: Session, clients: Clients, snapshot: Snapshot, manifest: Manifest, encoding: str
) -> AbstractContextManager[Child]:
    options = [*manifest.dump.options, f"--encoding={encoding}", "--exclude-table-data=*.*"]
    return dumping(session.address, clients, snapshot, format="sql", options=options)


def _read_through(dump: Child) -> Noted:
    found = Noted()
    fingerprint = found.fingerprint()
    while block := dump.read():
        fingerprint.write(block)
    fingerprint.finish()
    return found


def schema_of(manifest: Manifest, restored: Address, clients: Clients) -> Schema:
    """The schema alone of a database whose rows others write to by now."""
    with connected(restored) as session, session.snapshot() as snapshot:
        options = [*manifest.dump.options, f"--encoding={encoding_of(manifest, session)}", "--schema-only"]
        with dumping(session.address, clients, snapshot, format="sql", options=options) as dump:
            return _read_through(dump).schema
