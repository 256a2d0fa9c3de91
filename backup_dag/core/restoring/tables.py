"""Single tables back, after an accidental deletion: into a schema of their own in the live database.

Nothing of the live database is touched: the rows lie beside it, to be compared and copied back. The
backup's definitions and these tables' rows are loaded into a database aside and proven there; the tables
are moved into the new schema, stripped to their columns, and come over in one transaction.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from backup_dag.core.audit import audited
from backup_dag.core.clients import Clients
from backup_dag.core.errors import GuardRefused, IntegrityError
from backup_dag.core.manifest import Manifest
from backup_dag.core.postgres import Session, connected
from backup_dag.core.psql import WithoutRestriction, loading
from backup_dag.core.reading import Source
from backup_dag.core.restoring.asked import Asked, resolved
from backup_dag.core.restoring.loading import loading_clients, loading_parameters
from backup_dag.core.restoring.picking import Picking
from backup_dag.core.restoring.restore import Restoration
from backup_dag.core.restoring.target import Target
from backup_dag.core.settings import Settings
from backup_dag.core.sql import literal, quoted
from backup_dag.core.stages.dump import dumping
from backup_dag.core.stages.fingerprint import Fingerprint


@dataclass(frozen=True)
class Back:
    """One table: its name, what it is called in the new schema, its rows, and whether a live one is there."""

    name: str
    now: str
    rows: int
    live: bool


@dataclass(frozen=True)
class TablesBack:
    """What lies in the new schema now."""

    backup: str
    target: str
    schema: str
    tables: list[Back]


def bring_back(settings: Settings, restoration: Restoration, wanted: Sequence[str]) -> TablesBack:
    """Brings tables back, once the restoration has fetched and verified its backup.

    Raises:
        BackupNotFound: the backup has no such table.
        GuardRefused: there is no live database, another restore of it is running, or two of the tables have
            the same name.
        IntegrityError: what would have come is not what was backed up. Nothing has changed then.
        DatabaseError: the server refused. Nothing has changed then.
    """
    source, target, now = restoration.source, restoration.target, datetime.now(UTC)
    if target.standing() is None:
        raise GuardRefused(
            f"there is no database {target.name} to bring tables back into",
            hint="restore all of it: backup-dag restore",
        )
    clients = loading_clients(settings, source.manifest, target.session.server_major)
    with _noted(settings, source.manifest, target, wanted), target.locked():
        target.sweep()
        aside, schema = target.aside("restoring", now), _free_schema(target, now)
        target.create(aside, target.facts(), source.manifest.backup, now)
        try:
            asked = _loaded(source, target, aside, wanted, clients)
            there = _moved(target, aside, asked, schema)
            _bring_over(target, aside, schema, there, clients)
        finally:
            target.drop(aside)
    return TablesBack(source.manifest.backup, str(target.address), schema, _found_live(target, there))


@contextmanager
def _noted(settings: Settings, manifest: Manifest, target: Target, wanted: Sequence[str]) -> Iterator[None]:
    details = {"target": str(target.address), "mode": "tables", "tables": list(wanted)}
    with audited(settings.backup_dir, "restore", manifest.database, manifest.backup, **details):
        yield


def _free_schema(target: Target, now: datetime) -> str:
    name = f"restored_{now:%Y%m%d_%H%M%S}"
    with connected(target.address) as session:
        taken = session.rows(f"SELECT FROM pg_namespace WHERE nspname = {literal(name)}")
    if taken:
        raise GuardRefused(f"there is a schema {name} already", hint="try again in a second")
    return name


def _loaded(
    source: Source, target: Target, aside: str, wanted: Sequence[str], clients: Clients
) -> list[Asked]:
    """Loads what was asked for into the database aside, and proves it there."""
    address = target.address.at(aside)
    parameters = loading_parameters(target.session.server_major)
    with Picking(address, clients, parameters, lambda: resolved(address, source.manifest, wanted)) as picking:
        source.read(Fingerprint(rows=picking.rows, schema=picking))
        picking.finish()
    if wrong := picking.other_rows(source.manifest):
        raise IntegrityError(
            f"{', '.join(wrong)} would not have come back as backed up; nothing was changed",
            hint="restore another backup",
        )
    return picking.asked


def _moved(target: Target, aside: str, asked: Sequence[Asked], schema: str) -> list[Back]:
    """Moves the tables into the new schema, on their own; of a partitioned one all rows, in one table."""
    moved = []
    with connected(target.address.at(aside)) as session:
        session.rows(f"CREATE SCHEMA {quoted(schema)}")
        for each in asked:
            now = f"{quoted(schema)}.{quoted(each.bare)}"
            if each.partitioned:
                session.rows(f"CREATE TABLE {now} AS TABLE {each.name}")
            else:
                _strip(session, each.name)
                session.rows(f"ALTER TABLE {each.name} SET SCHEMA {quoted(schema)}")
            rows = session.row(f"SELECT count(*) AS n FROM {now}")["n"]
            moved.append(Back(each.name, now, rows, live=False))
    return moved


def _strip(session: Session, table: str) -> None:
    """To its columns: a partition or an heir as a table by itself, and without defaults, so that dropping the
    schema takes nothing from a table that rows were copied to."""
    oid = f"{literal(table)}::regclass"
    for row in session.rows(
        f"""
        SELECT format(CASE WHEN c.relispartition THEN 'ALTER TABLE %2$s DETACH PARTITION %1$s'
                           ELSE 'ALTER TABLE %1$s NO INHERIT %2$s' END,
                      i.inhrelid::regclass, i.inhparent::regclass) AS said
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhrelid = {oid}
        UNION ALL
        SELECT format('ALTER TABLE %s ALTER COLUMN %I DROP %s', a.attrelid::regclass, a.attname,
                      CASE WHEN a.attidentity <> '' THEN 'IDENTITY'
                           WHEN a.attgenerated <> '' THEN 'EXPRESSION' ELSE 'DEFAULT' END)
        FROM pg_attribute a
        WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped
          AND (a.attidentity <> '' OR a.attgenerated = 's' OR (a.atthasdef AND a.attgenerated = ''))
        """
    ):
        session.rows(row["said"])


def _bring_over(target: Target, aside: str, schema: str, there: Sequence[Back], clients: Clients) -> None:
    """Dumps the new schema, and loads it into the live database, all of it or nothing."""
    options = [f'--schema="{schema}"', "--no-owner", "--no-privileges", "--no-comments"]
    parameters = loading_parameters(target.session.server_major, live=True)
    fingerprint = Fingerprint()
    with (
        connected(target.address.at(aside)) as session,
        session.snapshot() as snapshot,
        dumping(session.address, clients, snapshot, format="sql", options=options) as dump,
        loading(target.address, clients, parameters, all_or_nothing=True) as psql,
    ):
        taking = WithoutRestriction(psql)
        while block := dump.read():
            fingerprint.write(block)
            taking.write(block)
        found = sorted(table.rows for table in fingerprint.finish().tables.values())
        if found != sorted(each.rows for each in there):
            raise IntegrityError(
                "fewer rows would have come over than there are; nothing was changed", hint="try again"
            )


def _found_live(target: Target, there: Sequence[Back]) -> list[Back]:
    """Which of them have a live table to compare with."""
    with connected(target.address) as session:
        names = {
            each: session.row(f"SELECT to_regclass({literal(each.name)}) IS NOT NULL AS live")["live"]
            for each in there
        }
    return [Back(each.name, each.now, each.rows, live) for each, live in names.items()]
