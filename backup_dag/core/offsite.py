"""The second copy: what is whole in the local store goes to the bucket, and is read back there."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

from backup_dag.core.catalog import Catalog
from backup_dag.core.errors import BackupNotFound
from backup_dag.core.manifest import Manifest
from backup_dag.core.store.base import Store, Stored
from backup_dag.core.store.local import LocalStore
from backup_dag.core.store.publish import publish
from backup_dag.core.stream import Observer


@dataclass(frozen=True)
class Copied:
    """A backup that now lies in the bucket too; `files` says where, by name."""

    manifest: Manifest
    files: dict[str, Stored]

    @property
    def artifact(self) -> Stored:
        return self.files[self.manifest.artifact.name]

    @property
    def new(self) -> bool:
        """Whether this copying brought it there, or it was there, and equal, already."""
        return any(stored.new for stored in self.files.values())


def copy_offsite(
    local: LocalStore,
    bucket: Store,
    database: str,
    day: date | None = None,
    observer: Observer | None = None,
) -> Iterator[Copied]:
    """Copies each local backup of a database (of one partition day), oldest first; the newest comes last.

    A copy that is there already is compared instead. May be repeated at any time.

    Raises:
        BackupNotFound: there is no local backup of that day.
        IntegrityError: a local file has changed since it was made, or another lies in its place.
        StoreError, StoreUnreachable: the bucket.
    """
    found = False
    for backup in reversed(Catalog([local]).survey(database).ids):
        copy = Catalog([local]).load(backup).copies[0]
        if copy.manifest is None or copy.fault or (day and copy.manifest.partition_day != day):
            continue
        found = True
        yield Copied(copy.manifest, publish(bucket, copy.manifest, local.folder, observer))
    if not found:
        raise BackupNotFound(
            f"there is no whole backup of {database} in {local.address()}" + (f" for {day}" if day else ""),
            hint="make one first (backup-dag backup); an upload needs the local copy",
        )
