"""The second copy: what is whole in the local store goes to the bucket, and is read back there."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date

from backup_dag.core.audit import audited, send_if_possible
from backup_dag.core.catalog import Catalog
from backup_dag.core.copies import keep_the_other
from backup_dag.core.errors import BackupDagError, BackupNotFound, ConfigurationError, IntegrityError
from backup_dag.core.manifest import MANIFEST, Manifest, read_manifest
from backup_dag.core.publish import publish
from backup_dag.core.store.base import Store, Stored
from backup_dag.core.store.local import LocalStore
from backup_dag.core.stream import Observer
from backup_dag.core.work import one_at_a_time


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
    """Copies a database's local backups (of one partition day) that the bucket lacks, the newest first.

    The newest is compared where it is there already; of one that is under another passphrase there, whether
    all of it is there. Older ones that are there are left at that. One that cannot be copied keeps no other
    from it: its error is raised when all have been tried. May be repeated at any time; two on one machine
    wait for each other. The audit log goes along.

    Raises:
        BackupNotFound: there is no local backup of that day.
        IntegrityError: a local file has changed since it was made, or another lies in its place.
        StoreError, StoreUnreachable: the bucket.
    """
    copied: list[str] = []
    with audited(local.folder, "copy", database, to=bucket.address(), copied=copied) as entry:
        for each in _copies(local, bucket, database, day, observer):
            entry.backup = entry.backup or each.manifest.backup
            if each.new:
                copied.append(each.manifest.backup)
            yield each
    send_if_possible(local.folder, bucket)


def _copies(
    local: LocalStore, bucket: Store, database: str, day: date | None, observer: Observer | None
) -> Iterator[Copied]:
    whole = [manifest for manifest in _whole(local, database) if day in (None, manifest.partition_day)]
    if not whole:
        raise BackupNotFound(
            f"there is no whole backup of {database} in {local.address()}" + (f" for {day}" if day else ""),
            hint="make one first (backup-dag backup); an upload needs the local copy",
        )
    failed: BackupDagError | None = None
    with one_at_a_time(local.folder, f"copy-{database}"):
        there = set(Catalog([bucket]).survey(database).ids)
        for manifest in whole:
            try:
                newest, document = manifest is whole[0], b""
                if manifest.id in there:
                    document = bucket.read(manifest.id.file(MANIFEST))
                if other := _under_another_passphrase(document, manifest):
                    if newest:
                        yield Copied(other, _whole_there(bucket, other))
                elif document and not newest:
                    _hold_to_the_bucket(bucket, manifest, document)
                else:
                    yield Copied(manifest, publish(bucket, manifest, local.folder, observer))
            except BackupDagError as error:
                failed = failed or error
                if error.retryable:
                    break
    if failed is not None:
        raise failed


def _under_another_passphrase(document: bytes, manifest: Manifest) -> Manifest | None:
    """What the bucket says of a backup that is under another passphrase there: `rekey` does one copy after
    the other. None where it is another backup, or under the same one."""
    with suppress(IntegrityError, ConfigurationError):
        found = read_manifest(document, manifest.id.file(MANIFEST))
        return found if found != manifest and found.is_same_backup(manifest) else None
    return None


def _whole_there(bucket: Store, manifest: Manifest) -> dict[str, Stored]:
    """Where its files are. Raises IntegrityError where not all are there, in their sizes."""
    [copy] = Catalog([bucket]).load(manifest.id).copies
    if copy.fault:
        raise IntegrityError(copy.fault, hint=copy.hint)
    return {name: Stored(bucket.address(name), new=False) for name in manifest.names}


def _hold_to_the_bucket(bucket: Store, manifest: Manifest, document: bytes) -> None:
    """Raises IntegrityError where what lies there under this name is another backup."""
    name = manifest.id.file(MANIFEST)
    try:
        read_manifest(document, name)
    except IntegrityError as error:
        address, of = bucket.address(f"{manifest.id}.*"), str(manifest.id)
        raise IntegrityError(
            f"{bucket.address(name)}: {error.message}", hint=keep_the_other("s3", address, of)
        ) from None
    if document != manifest.to_json().encode():
        raise IntegrityError(
            f"{bucket.address(name)} is of another backup than this machine's, which has no copy there",
            hint="give each server a BACKUP_S3_PREFIX of its own; then the next backup makes up for the copy",
        )


def _whole(local: LocalStore, database: str) -> Iterator[Manifest]:
    """The manifests of the local backups that can be used, the newest first."""
    catalog = Catalog([local])
    for backup in catalog.survey(database).ids:
        copy = catalog.load(backup).copies[0]
        if copy.manifest is not None and not copy.fault:
            yield copy.manifest
