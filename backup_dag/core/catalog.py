"""Which backups exist, where each copy lies, and what is known of it: from the stores alone.

Dagster's database is not asked, so this is true on a bare server too. What is not a backup of ours
is named, and left alone.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backup_dag.core.errors import BackupDagError, BackupNotFound, IntegrityError
from backup_dag.core.manifest import (
    MANIFEST,
    VERIFICATION,
    BackupId,
    Manifest,
    Verification,
    read_manifest,
)
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import Store
from backup_dag.core.store.local import LocalStore

_STEM = re.compile(r"(backup_[A-Za-z0-9_]+_\d{8}_\d{6})(\..+)", re.ASCII)


@dataclass(frozen=True)
class Copy:
    """One store's copy of a backup. `fault` says why it cannot be used, "" where it can."""

    store: Store
    manifest: Manifest | None
    verification: Verification | None
    fault: str = ""


@dataclass(frozen=True)
class Backup:
    """A backup and its copies, the nearest store's first."""

    id: BackupId
    copies: tuple[Copy, ...]

    @property
    def manifest(self) -> Manifest:
        """Raises IntegrityError where no copy has one that can be read."""
        for copy in self.copies:
            if copy.manifest is not None:
                return copy.manifest
        raise IntegrityError(
            f"no copy of {self.id} can be used: {'; '.join(copy.fault for copy in self.copies)}",
            hint="its artifact may still be recovered by hand, see docs/format.md",
        )


@dataclass(frozen=True)
class Stray:
    """Something in a store that is not part of a whole backup."""

    address: str
    why: str


@dataclass
class Survey:
    """What one look at the listings shows: ids newest first, and strays."""

    ids: list[BackupId] = field(default_factory=list)
    strays: list[Stray] = field(default_factory=list)


class Catalog:
    """The backups in some stores. Each question looks anew: nothing is remembered."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = tuple(stores)

    def survey(self, database: str | None = None) -> Survey:
        """Reads the listings, no manifest: cheap, however many backups there are."""
        survey = Survey()
        ids: set[BackupId] = set()
        for store in self.stores:
            found, strays = _sorted_out(store)
            ids |= found.keys()
            survey.strays += strays
        survey.ids = sorted(
            (backup for backup in ids if database in (None, backup.database)),
            key=lambda backup: (backup.stamp, backup.database),
            reverse=True,
        )
        return survey

    def load(self, backup: BackupId) -> Backup:
        """A backup with its manifests and check results. Raises BackupNotFound."""
        copies = []
        for store in self.stores:
            sizes = {listed.name: listed.bytes for listed in store.list(f"{backup}.")}
            if backup.file(MANIFEST) in sizes:
                copies.append(_copy(store, backup, sizes))
        if not copies:
            places = " or ".join(store.address() for store in self.stores)
            raise BackupNotFound(
                f"there is no {backup} in {places}", hint="backup-dag list shows what there is"
            )
        return Backup(backup, tuple(copies))

    def latest(self, database: str | None = None, *, usable: bool = True) -> Backup:
        """The newest backup by snapshot time; with `usable`, the newest with a copy that can be used.

        Raises BackupNotFound.
        """
        for backup in self.survey(database).ids:
            found = self.load(backup)
            if not usable or any(not copy.fault for copy in found.copies):
                return found
        places = " or ".join(store.address() for store in self.stores)
        raise BackupNotFound(
            f"there is no backup{f' of {database}' if database else ''} in {places}",
            hint="make one with backup-dag backup, or look elsewhere (BACKUP_DIR, AWS_S3_BUCKET)",
        )


def open_stores(settings: Settings, s3_client: Any = None) -> list[Store]:
    """The local folder, then S3 where a bucket is set."""
    stores: list[Store] = [LocalStore(settings.backup_dir)]
    if settings.aws_s3_bucket:
        from backup_dag.core.store import s3  # boto3 is large; a backup without a bucket need not wait for it

        stores.append(s3.S3Store(s3_client or s3.connect(settings), settings))
    return stores


def find(settings: Settings, reference: str, database: str | None = None, *, usable: bool = True) -> Backup:
    """The backup that a person means: `latest` (`usable`, see there), an id, a path, or an s3:// address.

    Raises:
        BackupNotFound: there is none, or the reference is not one.
    """
    if reference == "latest":
        return Catalog(open_stores(settings)).latest(database, usable=usable)
    folder, name = os.path.split(reference)
    match = _STEM.fullmatch(f"{name}.".replace("..", ".", 1)) or _STEM.fullmatch(name)
    backup = BackupId.parse(match.group(1)) if match else BackupId.parse(name)
    if backup is None:
        raise BackupNotFound(
            f"{reference!r} is not a backup",
            hint="give latest, an id such as backup_orders_20260131_020000, a path, or an s3:// address",
        )
    return Catalog(_stores_at(settings, folder)).load(backup)


def _stores_at(settings: Settings, folder: str) -> Sequence[Store]:
    if not folder:
        return open_stores(settings)
    if not folder.startswith("s3://"):
        return [LocalStore(Path(folder))]
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    there = settings.model_copy(
        update={"aws_s3_bucket": bucket, "backup_s3_prefix": f"{prefix}/" if prefix else ""}
    )
    return open_stores(there)[1:]


def _sorted_out(store: Store) -> tuple[dict[BackupId, set[str]], list[Stray]]:
    """A store's backups with their files, and what else lies there."""
    files: dict[BackupId, set[str]] = defaultdict(set)
    strays = []
    for listed in store.list():
        match = _STEM.fullmatch(listed.name)
        backup = BackupId.parse(match.group(1)) if match else None
        if backup is None:
            strays.append(Stray(store.address(listed.name), "not a backup's name"))
        else:
            files[backup].add(listed.name)
    whole = {backup: names for backup, names in files.items() if backup.file(MANIFEST) in names}
    strays += _without_manifest(
        store, (n for b, names in files.items() if b not in whole for n in sorted(names))
    )
    return whole, strays


def _without_manifest(store: Store, names: Iterable[str]) -> list[Stray]:
    why = "no manifest: still being written, or left by a run that died"
    return [Stray(store.address(name), why) for name in names]


def _copy(store: Store, backup: BackupId, sizes: dict[str, int]) -> Copy:
    try:
        manifest = read_manifest(store.read(backup.file(MANIFEST)), backup.file(MANIFEST))
    except BackupDagError as error:
        return Copy(store, None, None, f"{store.address(backup.file(MANIFEST))}: {error.message}")
    fault = ""
    for file in manifest.files:
        if sizes.get(file.name) != file.bytes:
            found = f"{sizes[file.name]:,} bytes" if file.name in sizes else "not there"
            fault = f"{store.address(file.name)} is {found}, {file.bytes:,} bytes were promised"
    return Copy(store, manifest, verification(store, backup, sizes), fault)


def verification(store: Store, backup: BackupId, names: Iterable[str]) -> Verification | None:
    """The results of earlier checks of a copy; None where there are none that can be read."""
    name = backup.file(VERIFICATION)
    if name not in names:
        return None
    try:
        return Verification.model_validate_json(store.read(name))
    except ValueError:
        return None
