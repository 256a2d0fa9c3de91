"""Is this copy of a backup what it was? By its checksum, or by reading its content to the end.

The result is recorded beside the copy, good or bad; the artifact is never touched.
"""

import time
from contextlib import suppress
from datetime import UTC, datetime

from backup_dag import __version__
from backup_dag.core import journal
from backup_dag.core.audit import audited
from backup_dag.core.authenticity import check as check_authenticity
from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.copies import Backup, Copy, verification
from backup_dag.core.errors import BackupDagError, BackupNotFound, GuardRefused, IntegrityError, StoreError
from backup_dag.core.key import decryption_key
from backup_dag.core.known import served_as_newest
from backup_dag.core.manifest import (
    CHECKSUM,
    MANIFEST,
    VERIFICATION,
    Check,
    File,
    Level,
    Manifest,
    Verification,
    read_manifest,
)
from backup_dag.core.nights import CLOCKS_APART
from backup_dag.core.reading import dump_text, read_back
from backup_dag.core.settings import Settings
from backup_dag.core.stages.checksum import compare, is_listed
from backup_dag.core.stages.fingerprint import Fingerprint, differences
from backup_dag.core.store.base import Store
from backup_dag.core.store.local import LocalStore
from backup_dag.core.stream import Hashing, Meter, Observer
from backup_dag.core.work import reading_directory

SOMEBODY_REMOVED = "see who can remove from the bucket, and its versions; the next backup goes there as ever"


def examine(
    settings: Settings, copy: Copy, level: Level, observer: Observer | None = None, *, roles: bool = True
) -> Check:
    """Checks one copy. One that is another backup of the same name is not condemned for that.

    `checksum` needs no key: every file of the backup against the manifest. `content` also finds out whether
    the manifest is authentic, decrypts, decompresses and reads the dump to its last line, and compares every
    digest. Without `roles` the file that holds them is left out (at level content).

    Raises:
        ConfigurationError, StoreUnreachable and the like: the check could not be made. Nothing is
            recorded then, since nothing is known.
    """
    manifest = copy.its_manifest(hint="verify another copy, or another backup")
    if copy.fault and not copy.damaged:  # nothing is wrong with it: it is another's
        raise IntegrityError(copy.fault, hint=copy.hint)
    began, where = time.monotonic(), copy.store.label
    with audited(
        settings.backup_dir, "verify", manifest.database, manifest.backup, level=level, store=where
    ) as entry:
        faults = [copy.fault] if copy.fault else _faults(settings, copy, level, observer, roles)
        if faults:
            entry.failed("; ".join(faults))
    return made_check(level, time.monotonic() - began, faults)


def made_check(level: Level, seconds: float, faults: list[str], time: datetime | None = None) -> Check:
    """A check that was made at that time (just now), and took so many seconds."""
    made_by = f"backup-dag {__version__}"
    return Check(
        level=level, time=time or datetime.now(UTC), seconds=round(seconds, 3), made_by=made_by, faults=faults
    )


def verify_latest(
    settings: Settings, database: str, observer: Observer | None = None
) -> tuple[Backup, Copy, Check]:
    """Reads a database's latest backup to its end, off-site where there is a bucket, and records the outcome.

    Raises:
        BackupNotFound: there is none, or the bucket lacks it, or a newer one that was put there. Otherwise as
            `examine`.
    """
    catalog = Catalog(open_stores(settings))
    for backup in catalog.nights(database, until=before_the_future(catalog, database)):
        wanted = "s3" if settings.aws_s3_bucket else "local"
        for copy in backup.copies:
            if copy.store.label == wanted:
                if wanted == "s3" and (fault := served_as_newest(settings, copy.store, database, backup.id)):
                    raise BackupNotFound(fault, hint=SOMEBODY_REMOVED)
                return backup, copy, _recorded(settings, copy, "content", observer)
        raise catalog.lacking(
            f"{backup.id}, the latest, is not in the bucket",
            hint="materialize s3_copy of its day, or run backup-dag backup, which makes up for it",
        )
    raise catalog.lacking(f"there is no backup of {database}", hint="make one: backup-dag backup")


def latest_to_verify(settings: Settings, database: str | None) -> Backup:
    """A database's newest backup, broken or not, since that is the question. Raises BackupNotFound."""
    catalog = Catalog(open_stores(settings))
    return catalog.latest(database, usable=False, until=before_the_future(catalog, database))


def before_the_future(catalog: Catalog, database: str | None) -> datetime:
    """Until when a backup may be dated to be taken for the latest. Says which of them are dated later: one
    that a wrong clock dated so would be verified every night, and none of those that are made."""
    until = datetime.now(UTC) + CLOCKS_APART
    for backup in catalog.survey(database).ids:
        if backup.time > until:
            journal.say(f"{backup} is dated in the future, and is passed over: a clock is wrong, or was")
    return until


def check_day(settings: Settings, database: str, day: str | None) -> tuple[Backup, Copy, Check]:
    """Compares every byte of a day's local backup with its manifest, and records the outcome.

    `day` is YYYY-MM-DD; None: the latest. Raises BackupNotFound where that day has none.
    """
    for backup in Catalog([LocalStore(settings.backup_dir)]).nights(database):
        if day in (None, str(backup.manifest.partition_day)):
            [copy] = backup.copies
            return backup, copy, _recorded(settings, copy, "checksum", None)
    raise BackupNotFound(
        f"there is no backup of {database} for {day} in {settings.backup_dir}",
        hint="make one: backup-dag backup",
    )


def _recorded(settings: Settings, copy: Copy, level: Level, observer: Observer | None) -> Check:
    check = examine(settings, copy, level, observer)
    if copy.manifest is not None:
        with suppress(BackupDagError):  # read only: the verdict stands all the same
            record(copy.store, copy.manifest, check)
    return check


def _faults(
    settings: Settings, copy: Copy, level: Level, observer: Observer | None, roles: bool
) -> list[str]:
    store, manifest = copy.store, copy.manifest
    assert manifest is not None
    try:
        if level != "checksum":  # first of all: nothing that it says is to be followed unless it is ours
            check_authenticity(settings, copy)
        _check_listed(store, manifest)
        if level == "checksum":
            for file in manifest.files:
                _check_bytes(store, file, observer)
        else:
            if roles:
                _check_roles(settings, store, manifest)
            return _content_faults(settings, store, manifest, observer)
    except (BackupNotFound, IntegrityError) as error:
        still_the_same(copy)
        if isinstance(error, BackupNotFound):
            _see_that_it_lacks_one(store, manifest, error)
        return [error.message]
    return []


def _see_that_it_lacks_one(store: Store, manifest: Manifest, error: BackupNotFound) -> None:
    """Raises StoreError where a store lists all of what it just said was not there."""
    there = {listed.name for listed in store.list(f"{manifest.id}.")}
    if there >= {*manifest.names}:
        raise StoreError(f"{error.message}, and yet it is listed", hint="verify it again") from error


def still_the_same(copy: Copy) -> None:
    """Raises GuardRefused where the copy was re-encrypted since it was looked at: then its files went, and
    nothing is known to be wrong with what is there now."""
    assert copy.manifest is not None
    name = copy.manifest.id.file(MANIFEST)
    with suppress(BackupNotFound):
        there = read_manifest(copy.store.read(name), name)
        if there != copy.manifest and there.is_same_backup(copy.manifest):
            raise GuardRefused(
                f"{copy.store.address(name)} was re-encrypted under another passphrase while it was read",
                hint="do it again: what is there now is whole",
            )


def _check_listed(store: Store, manifest: Manifest) -> None:
    """The `.sha256` file must say what the manifest says: someone may have only that one day."""
    name = manifest.id.file(CHECKSUM)
    if not is_listed(store.read(name), manifest.files):
        raise IntegrityError(f"{store.address(name)} does not say what the manifest says")


def _check_bytes(store: Store, file: File, observer: Observer | None) -> None:
    found = Hashing(Meter(observer, expected=file.bytes))
    store.fetch(file.name, found)
    compare(store.address(file.name), file, found.seen())


def _check_roles(settings: Settings, store: Store, manifest: Manifest) -> None:
    with reading_directory(settings.backup_dir) as work:
        key = decryption_key(settings, manifest.encryption)
        _, encrypted = read_back(store, manifest.globals, Hashing(), key, work)
    compare(store.address(manifest.globals.name), manifest.globals, encrypted.seen())


def _content_faults(
    settings: Settings, store: Store, manifest: Manifest, observer: Observer | None
) -> list[str]:
    """Reads the artifact to its end; in words, where it is not what was promised."""
    key, fingerprint = decryption_key(settings, manifest.encryption), Fingerprint()
    with (
        reading_directory(settings.backup_dir) as work,
        dump_text(settings, manifest, fingerprint) as text,
    ):
        plain = Hashing(Meter(observer, expected=manifest.dump.bytes, sink=text))
        compressed, encrypted = read_back(store, manifest.artifact, plain, key, work)
    address = store.address(manifest.artifact.name)
    compare(address, manifest.artifact, encrypted.seen())
    compare(f"the gzip stream in {address}", manifest.compressed, compressed.seen())
    compare(f"the dump in {address}", manifest.dump, plain.seen())
    return differences(manifest.content, fingerprint.finish())


def record(store: Store, manifest: Manifest, check: Check) -> None:
    """Notes a check beside the copy it was made of."""
    name = manifest.id.file(VERIFICATION)
    earlier = verification(store, manifest.id, [listed.name for listed in store.list(name)])
    record = (earlier or Verification(backup=manifest.backup)).with_check(check)
    store.put_note(name, record.to_json())
