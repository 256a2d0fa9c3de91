"""Which backups exist, where each copy lies, and what is known of it: from the stores alone.

Dagster's database is not asked, so this is true on a bare server too. What is not a backup of ours
is named, and left alone.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from backup_dag.core.copies import Backup, Copy, copies_in, copy_in, of_one_backup
from backup_dag.core.errors import BackupDagError, BackupNotFound, DiskError, StoreError
from backup_dag.core.manifest import MANIFEST, BackupId
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import PROBE, Store
from backup_dag.core.store.local import LocalStore

_Answer = TypeVar("_Answer")
_STEM = re.compile(r"(backup_[A-Za-z0-9_]+_\d{8}_\d{6})(\..+)", re.ASCII)


@dataclass(frozen=True)
class Stray:
    """Something in a store that is not part of a whole backup."""

    address: str
    why: str


@dataclass
class Survey:
    """What one look at the listings shows: ids newest first, strays, and why stores could not be asked."""

    ids: list[BackupId] = field(default_factory=list)
    strays: list[Stray] = field(default_factory=list)
    missed: tuple[BackupDagError, ...] = ()


class Catalog:
    """The backups in some stores. Each question looks anew: nothing is remembered, but which stores failed.

    Where one of several stores cannot be asked, the others answer; its error is in what is returned. The
    last one's error is raised.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = tuple(stores)
        self._missed: dict[Store, BackupDagError] = {}

    def _ask(self, question: Callable[[Store], _Answer]) -> Iterator[tuple[Store, _Answer]]:
        """Each store's answer. One that has failed is not waited for a second time."""
        for store in self.stores:
            if store not in self._missed:
                try:
                    answer = question(store)
                except (StoreError, DiskError) as error:
                    self._missed[store] = error
                    continue
                yield store, answer
        if not self.answering:
            raise next(iter(self._missed.values()))

    def survey(self, database: str | None = None) -> Survey:
        """Reads the listings, no manifest: cheap, however many backups there are."""
        survey = Survey()
        ids: set[BackupId] = set()
        for _, (found, strays) in self._ask(_sorted_out):
            ids |= found.keys()
            survey.strays += strays
        survey.missed = tuple(self._missed.values())
        survey.ids = sorted(
            (backup for backup in ids if database in (None, backup.database)),
            key=lambda backup: (backup.stamp, backup.database),
            reverse=True,
        )
        return survey

    def every(self, database: str) -> list[Backup]:
        """Every backup of a database with its manifests and check results, the newest first.

        For whoever needs them all: each store is listed once, and two documents of each copy are read, some
        at a time.
        """
        copies: dict[BackupId, list[Copy]] = defaultdict(list)
        for _, found in self._ask(lambda store: copies_in(store, database)):
            for backup, copy in found:
                copies[backup].append(copy)
        missed = tuple(self._missed.values())
        newest_first = sorted(copies, key=lambda backup: backup.stamp, reverse=True)
        return [Backup(id, tuple(of_one_backup(copies[id])), missed) for id in newest_first]

    def load(self, backup: BackupId) -> Backup:
        """A backup with its manifests and check results. Raises BackupNotFound."""
        copies = []
        for _, copy in self._ask(lambda store: copy_in(store, backup)):
            copies += [copy] if copy else []
        if not copies:
            raise self.lacking(
                f"there is no {backup} in {self.places}", hint="backup-dag list shows what there is"
            )
        return Backup(backup, tuple(of_one_backup(copies)), tuple(self._missed.values()))

    def load_if_there(self, backup: BackupId) -> Backup | None:
        """The same; None where it is gone, or no store is left to ask that may have it (`away`)."""
        with suppress(BackupNotFound, StoreError, DiskError):
            return self.load(backup)
        return None

    def leave_out(self, store: Store, error: BackupDagError) -> None:
        """What a caller found out: a store has stopped answering, and is not to be waited for again."""
        self._missed.setdefault(store, error)

    @property
    def silent(self) -> list[Store]:
        """The stores that could not be asked so far."""
        return list(self._missed)

    @property
    def answering(self) -> bool:
        """Whether any store is left to ask."""
        return len(self._missed) < len(self.stores)

    @property
    def away(self) -> dict[str, BackupDagError]:
        """The stores that could not be asked so far, by their labels, and why."""
        return {store.label: error for store, error in self._missed.items()}

    def lacking(self, message: str, *, hint: str) -> BackupDagError:
        """What to raise where nothing was found: why a store could not be asked, since it may be there."""
        return next(iter(self._missed.values()), None) or BackupNotFound(message, hint=hint)

    @property
    def places(self) -> str:
        """Where it looks, in words; without the stores that could not be asked."""
        return " or ".join(store.address() for store in self.stores if store not in self._missed)

    def latest(
        self, database: str | None = None, *, usable: bool = True, until: datetime | None = None
    ) -> Backup:
        """The newest backup by snapshot time, `until` one at the latest; with `usable`, the newest with a
        copy that can be used.

        Raises BackupNotFound.
        """
        for found in self.newest_first(database, usable=usable, until=until):
            return found
        raise self.lacking(
            f"there is no backup{f' of {database}' if database else ''} in {self.places}",
            hint="make one with backup-dag backup, or look elsewhere (BACKUP_DIR, AWS_S3_BUCKET)",
        )

    def latest_proven(self, database: str | None = None) -> Backup:
        """The newest backup of a night that a restore or a drill has proven, and nothing has been found wrong
        with since. Reads the notes of every newer one. Raises BackupNotFound."""
        for found in self.newest_first(database):
            if found.proven and found.manifest.is_of_a_night:
                return found
        raise self.unproven(database)

    def unproven(self, database: str | None) -> BackupDagError:
        """What to raise where no proven backup was found. One may be proven all the same, as far as a store
        that could not be asked would know."""
        said = f"no backup{f' of {database}' if database else ''} in {self.places}"
        for missed in self._missed.values():
            return type(missed)(
                f"{said} is known to be proven, and where it may be, nobody answers: {missed.message}",
                hint="restore latest, or an id of backup-dag list: it is read to its end first, and proven"
                f" before anything is replaced. Or make that place answer: {missed.hint}",
            )
        return BackupNotFound(f"{said} was ever proven", hint="prove one: backup-dag drill")

    def newest_first(
        self, database: str | None = None, *, usable: bool = True, until: datetime | None = None
    ) -> Iterator[Backup]:
        """Every backup, loaded as it is asked for; with `usable`, those with a copy that can be used; with
        `until`, those that are not dated later."""
        for backup in self.survey(database).ids:
            if until is not None and backup.time > until:
                continue
            found = self.load(backup)
            if not usable or any(not copy.fault for copy in found.copies):
                yield found

    def nights(self, database: str, until: datetime | None = None) -> Iterator[Backup]:
        """The backups that count for their day, the newest first, loaded as they are asked for; those that
        cannot be used among them, where it can be known of what day they are."""
        for backup in self.newest_first(database, usable=False, until=until):
            manifest = backup.manifest_or_none
            if manifest is not None and manifest.is_of_a_night:
                yield backup


def open_stores(settings: Settings, s3_client: Any = None) -> list[Store]:
    """The local folder, then S3 where a bucket is set."""
    stores: list[Store] = [LocalStore(settings.backup_dir)]
    if settings.aws_s3_bucket:
        from backup_dag.core.store import s3  # boto3 is large; a backup without a bucket need not wait for it

        stores.append(s3.S3Store(s3_client or s3.connect(settings), settings))
    return stores


def find(settings: Settings, reference: str, database: str | None = None, *, usable: bool = True) -> Backup:
    """The backup that a person means: `latest` (`usable`, see there), `latest-proven`, an id, a path, or an
    s3:// address.

    Raises:
        BackupNotFound: there is none, or the reference is not one.
    """
    if reference == "latest":
        return Catalog(open_stores(settings)).latest(database, usable=usable)
    if reference == "latest-proven":
        return Catalog(open_stores(settings)).latest_proven(database)
    folder, name = os.path.split(reference)
    match = _STEM.fullmatch(f"{name}.".replace("..", ".", 1)) or _STEM.fullmatch(name)
    backup = BackupId.parse(match.group(1)) if match else BackupId.parse(name)
    if backup is None:
        raise BackupNotFound(
            f"{reference!r} is not a backup",
            hint="give latest, latest-proven, an id such as backup_orders_20260131_020000, a path, or an"
            " s3:// address",
        )
    return Catalog(_stores_at(settings, folder)).load(backup)


def _stores_at(settings: Settings, folder: str) -> Sequence[Store]:
    if not folder:
        return open_stores(settings)
    if not folder.startswith("s3://"):
        return [LocalStore(Path(folder))]
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    if not bucket:
        raise BackupNotFound(f"{folder!r} names no bucket", hint="write s3://bucket/prefix/backup_…")
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
        if backup is None and listed.name != PROBE:
            strays.append(Stray(store.address(listed.name), "not a backup's name"))
        elif backup is not None:
            files[backup].add(listed.name)
    whole = {backup: names for backup, names in files.items() if backup.file(MANIFEST) in names}
    strays += _without_manifest(
        store, (n for b, names in files.items() if b not in whole for n in sorted(names))
    )
    return whole, strays


def _without_manifest(store: Store, names: Iterable[str]) -> list[Stray]:
    why = "no manifest: still being written, or left by a run that died"
    return [Stray(store.address(name), why) for name in names]
