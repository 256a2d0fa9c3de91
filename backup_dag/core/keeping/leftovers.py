"""What dead runs left in a store: files without a manifest, and unfinished uploads.

A run that is killed outright removes nothing. What it left is no backup, and looks like one that is still
being written: only age tells them apart.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from backup_dag.core.manifest import CHECKSUM, GOING, MANIFEST, VERIFICATION, BackupId, owner_of
from backup_dag.core.store.base import Listed, Store, Upload

SAFE_AGE = timedelta(hours=24)
"""From then on nobody is still writing it."""

Files = Mapping[BackupId, Sequence[Listed]]


@dataclass(frozen=True)
class Orphan:
    """Files of one backup whose manifest is not there."""

    id: BackupId
    files: tuple[Listed, ...]

    @property
    def may_be_whole(self) -> bool:
        """Whether it was whole once: the checksums are there, which are written last but one, or the note of
        a check; and none that a clean-up was removing it. Better kept than lost."""
        endings = {listed.name.removeprefix(f"{self.id}.") for listed in self.files}
        data = any(ending.startswith(("sql.", "dump.")) for ending in endings)
        return data and GOING not in endings and not endings.isdisjoint({CHECKSUM, VERIFICATION})


def files_of(store: Store, database: str) -> Files:
    """A database's files in a store, by the backup that they are part of. Names that we never write are
    left out, whatever they begin with."""
    found: dict[BackupId, list[Listed]] = defaultdict(list)
    for listed in store.list(f"backup_{database}_"):
        backup = owner_of(listed.name)
        if backup is not None and backup.database == database:
            found[backup].append(listed)
    return found


def orphans(files: Files, now: datetime) -> Iterator[Orphan]:
    """Those that are old by their id and by the store's own dates both, or that a clean-up was removing; the
    newest first."""
    for backup, listed in sorted(files.items(), reverse=True):
        names = {file.name for file in listed}
        whole, going = backup.file(MANIFEST) in names, backup.file(GOING) in names
        newest = max([backup.time, *(file.modified for file in listed)])
        if not whole and (going or now - newest > SAFE_AGE):
            yield Orphan(backup, tuple(listed))


def dead_uploads(store: Store, database: str, now: datetime) -> Iterator[Upload]:
    """A database's uploads that were begun long ago."""
    for upload in store.unfinished(f"backup_{database}_"):
        backup = owner_of(upload.name)
        if backup is not None and backup.database == database and now - upload.begun > SAFE_AGE:
            yield upload
