"""What was stored, and is not there any more or not as it was; and what the user's own checks said of it."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from backup_dag.core import history, nights
from backup_dag.core.catalog import Catalog
from backup_dag.core.copies import KEEP_THE_OTHER, Backup, Copy, keep_the_other
from backup_dag.core.errors import BackupDagError, DiskError, StoreError
from backup_dag.core.known import served_as_newest, taken_away
from backup_dag.core.manifest import GOING, MANIFEST, VERIFICATION, BackupId, holds_data, owner_of
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import Store
from backup_dag.core.watching.concern import Concern

_A_REKEY_TAKES = timedelta(hours=6)


def losses(
    settings: Settings, catalog: Catalog, found: Sequence[Backup], database: str, now: datetime
) -> Iterator[Concern]:
    """What was stored and is not there any more, or not as it was: of the `recent` ones, and of all that
    drills found out here."""
    damaged = [concern for backup in found for concern in _damaged(backup, database, now)]
    yield from damaged
    yield from _found_out(settings, catalog, database, {concern.key for concern in damaged})
    yield from _unfinished(found, database, now)
    for store in catalog.stores:
        if store.label not in catalog.away:
            with suppress(StoreError, DiskError):  # the next look says so
                yield from _without_manifest(store, database, now)
        if store.label != "local" and store.label not in catalog.away:
            yield from _taken_away(settings, store, found, database, now)


def failed_checks(settings: Settings, database: str) -> Iterator[Concern]:
    """What the user's own checks said of the last drill here."""
    for last in history.drills(settings.backup_dir, database)[-1:]:
        for name, said in last.failed.items():
            happened = f"{last.backup} is proven, and your own check {name} of it failed: {said}"
            advice = "see what it asks for, and whether the database is as it should be; then drill again"
            yield Concern("own check", database, name, happened, last.time, advice, backup=last.backup)


def _damaged(backup: Backup, database: str, now: datetime) -> Iterator[Concern]:
    for copy in backup.copies:
        verdict = copy.verdict if copy.verdict and not copy.verdict.passed else None
        if copy.fault or verdict:
            if verdict and not copy.fault and verdict.level == "restore":
                about = (database, str(backup.id), copy.store.label)
                yield _unproven(*about, verdict.faults, verdict.time, copy.advice)
                continue
            damaged = copy.damaged or not copy.fault
            why = copy.fault or "; ".join(verdict.faults if verdict else ())
            yield Concern(
                "damaged" if damaged else "unusable",
                database,
                f"{backup.id} in {copy.store.label}",
                f"a copy of {backup.id} {'is damaged' if damaged else 'cannot be used'}: {why}",
                verdict.time if verdict else now,
                copy.advice or KEEP_THE_OTHER,
                backup=str(backup.id),
            )


def _found_out(settings: Settings, catalog: Catalog, database: str, told: set[str]) -> Iterator[Concern]:
    """What this host's drills found out, and stands beside no copy that is looked at: of an older backup, or
    where the store may only be read."""
    last_of = {(each.backup, each.store): each for each in history.drills(settings.backup_dir, database)}
    for each in last_of.values():
        if each.faults and _stands(catalog, each):
            concern = _unproven(database, each.backup, each.store, each.faults, each.time, KEEP_THE_OTHER)
            if concern.key not in told:
                yield concern


def _stands(catalog: Catalog, drilled: history.Drilled) -> bool:
    """Whether the copy is still there, and nobody has proven it since."""
    backup = BackupId.parse(drilled.backup)
    if backup is None:
        return False
    with suppress(BackupDagError):
        for copy in catalog.load(backup).copies:
            if copy.store.label == drilled.store:
                since = copy.verdict if copy.verdict and copy.verdict.time > drilled.time else None
                return not (since and since.passed) and not _was_put_there_since(copy, drilled.time)
    return False


def _was_put_there_since(copy: Copy, then: datetime) -> bool:
    """Whether what was found of it was found of other files: it was removed, and copied again."""
    name = copy.manifest.artifact.name if copy.manifest else ""
    listed = (each for each in copy.store.list(name) if each.name == name)
    return any(each.modified > then + nights.CLOCKS_APART for each in listed)


def _unproven(
    database: str, backup: str, store: str, faults: Sequence[str], since: datetime, advice: str
) -> Concern:
    said = f"a copy of {backup} did not come back as it was backed up: {'; '.join(faults)}"
    return Concern("unproven", database, f"{backup} in {store}", said, since, advice, backup=backup)


def _without_manifest(store: Store, database: str, now: datetime) -> Iterator[Concern]:
    """Copies that were whole once, since a check was noted beside them, and have lost their manifest."""
    names: dict[BackupId, set[str]] = defaultdict(set)
    for listed in store.list(f"backup_{database}_"):
        backup = owner_of(listed.name)
        if backup is not None and backup.database == database:
            names[backup].add(listed.name)
    for backup, there in names.items():
        was_whole = backup.file(VERIFICATION) in there and any(map(holds_data, there))
        if was_whole and there.isdisjoint({backup.file(MANIFEST), backup.file(GOING)}):
            where = store.address(backup.file(MANIFEST))
            yield Concern(
                "damaged",
                database,
                f"{backup} in {store.label}",
                f"a copy of {backup} has lost its manifest: there is no {where}",
                now,
                f"bring it back from the other copy, if there is one (the same file, to the byte); or"
                f" {keep_the_other(store.label, store.address(f'{backup}.*'), str(backup))}",
                backup=str(backup),
            )


def _unfinished(found: Sequence[Backup], database: str, now: datetime) -> Iterator[Concern]:
    """A rekey that died, and left what is under the old passphrase beside what is under the new one."""
    copies = [copy for backup in found for copy in backup.copies if copy.unnamed]
    for first in copies[:1]:
        of = "1 copy" if len(copies) == 1 else f"{len(copies)} copies"
        said = (
            f"a rekey was interrupted: beside {of} of {database} lies what is under another passphrase, as"
            f" {first.store.address(first.unnamed[0])}"
        )
        advice = "backup-dag rekey ends it, and removes what is left"
        yield Concern("unfinished", database, "", said, now, advice, patience=_A_REKEY_TAKES)


def _taken_away(
    settings: Settings, store: Store, found: Sequence[Backup], database: str, now: datetime
) -> Iterator[Concern]:
    """Newer backups were put there than it shows: somebody removed them, or serves an older state."""
    until = now + nights.CLOCKS_APART
    shown = (backup.id for backup in found if any(copy.store is store for copy in backup.copies))
    newest = next((backup for backup in shown if backup.time <= until), None)
    try:  # none of the last ones lies there: then the listing says what does
        fault = (
            served_as_newest(settings, store, database, newest)
            if newest
            else taken_away(settings, store, database, until)
        )
    except (StoreError, DiskError):  # it is out of reach: the next look says so
        return
    if fault:
        advice = "see who can remove from the bucket, and its versions; make one now: backup-dag backup"
        yield Concern("not off-site", database, "removed", fault, now, advice)
