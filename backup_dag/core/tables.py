"""Single tables back, after an accidental deletion: into a schema of their own in the live database.

Nothing of the live database is touched: the rows lie beside it, to be compared and copied back. The
backup's definitions and these tables' rows are loaded into a database aside; the tables are moved there
into the new schema, and come over in one transaction, held to the manifest's digests on the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Self

from backup_dag.core.address import Address
from backup_dag.core.audit import audited
from backup_dag.core.clients import Clients
from backup_dag.core.errors import BackupNotFound, GuardRefused, IntegrityError
from backup_dag.core.loading import LOADING, loading_clients
from backup_dag.core.manifest import Manifest, Table
from backup_dag.core.plan import facts_for
from backup_dag.core.postgres import Session, connected, literal, quoted
from backup_dag.core.proof import with_other_rows
from backup_dag.core.reading import Source
from backup_dag.core.restore import Restoration
from backup_dag.core.settings import Settings
from backup_dag.core.stages.dump import dumping, loading
from backup_dag.core.stages.fingerprint import Fingerprint
from backup_dag.core.stream import Writer
from backup_dag.core.target import Target


@dataclass(frozen=True)
class TablesBack:
    """What lies in the new schema now: rows by table, named as in the backup."""

    backup: str
    target: str
    schema: str
    rows: dict[str, int]


def bring_back(settings: Settings, restoration: Restoration, wanted: Sequence[str]) -> TablesBack:
    """Brings tables back, once the restoration has fetched and verified its backup.

    Raises:
        BackupNotFound: the backup has no such table.
        GuardRefused: there is no live database, or another restore of it is running.
        IntegrityError: what would have come is not what was backed up. Nothing has changed then.
        DatabaseError: the server refused. Nothing has changed then.
    """
    source, target = restoration.source, restoration.target
    names = [_known(source.manifest, name) for name in wanted]
    if target.standing() is None:
        raise GuardRefused(
            f"there is no database {target.name} to bring tables back into",
            hint="restore all of it: backup-dag restore",
        )
    clients = loading_clients(settings, source.manifest, target.session.server_major)
    now = datetime.now(UTC)
    with (
        audited(
            settings.backup_dir,
            "restore",
            source.manifest.database,
            source.manifest.backup,
            target=str(target.address),
            mode="tables",
            tables=names,
        ) as entry,
        target.locked(),
    ):
        target.sweep()
        aside, schema = target.aside("restoring", now), _free_schema(target, now)
        entry["schema"] = schema
        target.create(aside, facts_for(target, source.manifest), source.manifest.backup, now)
        try:
            _load(source, target, aside, names, clients)
            moved = _moved(target, aside, names, schema)
            _bring_over(source, target, aside, schema, moved, clients)
        finally:
            target.drop(aside)
    rows = {name: source.manifest.content.tables[name].rows for name in names}
    return TablesBack(source.manifest.backup, str(target.address), schema, rows)


def _known(manifest: Manifest, wanted: str) -> str:
    """The table's name as the dump quotes it, from that or from the name without quotes."""
    tables = manifest.content.tables
    if wanted in tables:
        return wanted
    plain = {name.replace('"', ""): name for name in tables}
    if wanted in plain:
        return plain[wanted]
    like = ", ".join(get_close_matches(wanted, [*plain], 3)) or ", ".join(sorted(tables)[:10])
    raise BackupNotFound(
        f"{manifest.backup} has no table {wanted}",
        hint=f"give it as schema.name (of a partitioned table its partitions); there are {like}",
    )


def _free_schema(target: Target, now: datetime) -> str:
    name = f"restored_{now:%Y%m%d_%H%M%S}"
    with connected(target.address) as session:
        taken = session.rows(f"SELECT FROM pg_namespace WHERE nspname = {literal(name)}")
    if taken:
        raise GuardRefused(f"there is a schema {name} already", hint="try again in a second")
    return name


def _load(source: Source, target: Target, aside: str, names: Sequence[str], clients: Clients) -> None:
    with loading(target.address.at(aside), clients, LOADING) as psql:
        chosen = _Chosen(psql, names)
        source.read(Fingerprint(rows=chosen.rows, schema=chosen))
        chosen.finish()


class _Chosen:
    """Passes on the definitions that come before the first rows, and the rows of the chosen tables."""

    def __init__(self, psql: Writer, names: Sequence[str]) -> None:
        self._psql, self._names = psql, names
        self._rows_have_begun = self._open = False

    def write(self, text: bytes) -> None:
        """Text that is not rows. What comes after the first rows (indexes, triggers …) is left out."""
        if not self._rows_have_begun:
            self._psql.write(text)

    def rows(self, name: str, what: bytes) -> "_Chosen._Rows | None":
        self._rows_have_begun = True
        self.finish()
        if name not in self._names:
            return None
        self._open = True
        self._psql.write(b"COPY " + what + b" FROM stdin;\n")
        return _Chosen._Rows(self._psql)

    def finish(self) -> None:
        """Ends the rows that are being passed on, if any are."""
        if self._open:
            self._psql.write(b"\\.\n")
            self._open = False

    class _Rows:
        def __init__(self: Self, psql: Writer) -> None:
            self.write = psql.write


def _moved(target: Target, aside: str, names: Sequence[str], schema: str) -> dict[str, str]:
    """Moves the tables into the new schema, on their own; by what they are called there, what they were."""
    moved = {}
    with connected(target.address.at(aside)) as session:
        session.rows(f"CREATE SCHEMA {quoted(schema)}")
        for name in names:
            oid = session.row(f"SELECT {literal(name)}::regclass::oid::bigint AS oid")["oid"]
            _let_go(session, oid)
            session.rows(f"ALTER TABLE {name} SET SCHEMA {quoted(schema)}")
            now = session.row(f"SELECT {oid}::regclass::text AS name")["name"]
            moved[now] = name
    return moved


def _let_go(session: Session, oid: int) -> None:
    """A partition or an heir as a table by itself: its parent does not come along."""
    parents = session.rows(
        f"""
        SELECT i.inhparent::regclass::text AS parent, i.inhrelid::regclass::text AS child,
               c.relispartition AS part
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhrelid = {oid}
        """
    )
    for row in parents:
        if row["part"]:
            session.rows(f"ALTER TABLE {row['parent']} DETACH PARTITION {row['child']}")
        else:
            session.rows(f"ALTER TABLE {row['child']} NO INHERIT {row['parent']}")


def _bring_over(
    source: Source, target: Target, aside: str, schema: str, moved: dict[str, str], clients: Clients
) -> None:
    """Dumps the new schema, and loads it into the live database, all of it or nothing."""
    options = [f'--schema="{schema}"', "--no-owner", "--no-privileges", "--no-comments"]
    fingerprint = Fingerprint()
    with (
        connected(target.address.at(aside)) as session,
        session.snapshot() as snapshot,
        dumping(session.address, clients, snapshot, format="sql", options=options) as dump,
        loading(target.address, clients, LOADING, all_or_nothing=True) as psql,
    ):
        while block := dump.read():
            fingerprint.write(block)
            psql.write(block)
        found = fingerprint.finish().tables
        promised = source.manifest.content.tables
        differ = {old: new for new, old in moved.items() if not _same(found.get(new), promised[old])}
        wrong = _other_rows(source, target.address.at(aside), differ)
        if wrong:
            raise IntegrityError(
                f"{', '.join(wrong)} would not have come back as backed up; nothing was changed",
                hint="restore another backup",
            )


def _other_rows(source: Source, aside: Address, differ: dict[str, str]) -> list[str]:
    """Those that differ in more than the order of rows or columns."""
    if not differ:
        return []
    with connected(aside) as session:
        return with_other_rows(source, session, differ, now=differ)


def _same(found: Table | None, promised: Table) -> bool:
    return found is not None and (found.rows, found.sha256) == (promised.rows, promised.sha256)
