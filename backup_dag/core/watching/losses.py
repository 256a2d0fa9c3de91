"""What was stored, and is not there any more or not as it was; and what the user's own checks said of it."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime

from backup_dag.core import history, nights
from backup_dag.core.catalog import Catalog
from backup_dag.core.copies import KEEP_THE_OTHER, Backup, Copy
from backup_dag.core.errors import BackupDagError, DiskError, StoreError
from backup_dag.core.known import served_as_newest, taken_away
from backup_dag.core.manifest import BackupId
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import Store
from backup_dag.core.watching.concern import Concern


def losses(
    settings: Settings, catalog: Catalog, found: Sequence[Backup], database: str, now: datetime
) -> Iterator[Concern]:
    """What was stored and is not there any more, or not as it was: of the `recent` ones, and of all that
    drills found out here."""
    damaged = [concern for backup in found for concern in _damaged(backup, database)]
    yield from damaged
    yield from _found_out(settings, catalog, database, {concern.key for concern in damaged})
    for store in catalog.stores:
        if store.label != "local" and store.label not in catalog.away:
            yield from _taken_away(settings, store, found, database, now)


def failed_checks(settings: Settings, database: str) -> Iterator[Concern]:
    """What the user's own checks said of the last drill here."""
    for last in history.drills(settings.backup_dir, database)[-1:]:
        for name, said in last.failed.items():
            happened = f"{last.backup} is proven, and your own check {name} of it failed: {said}"
            advice = "see what it asks for, and whether the database is as it should be; then drill again"
            yield Concern("own check", database, name, happened, last.time, advice, backup=last.backup)


def _damaged(backup: Backup, database: str) -> Iterator[Concern]:
    for copy in backup.copies:
        verdict = copy.verdict if copy.verdict and not copy.verdict.passed else None
        if copy.fault or verdict:
            if verdict and not copy.fault and verdict.level == "restore":
                yield _unproven(database, str(backup.id), copy.store.label, verdict.faults, verdict.time)
                continue
            damaged = copy.damaged or not copy.fault
            why = copy.fault or "; ".join(verdict.faults if verdict else ())
            yield Concern(
                "damaged" if damaged else "unusable",
                database,
                f"{backup.id} in {copy.store.label}",
                f"a copy of {backup.id} {'is damaged' if damaged else 'cannot be used'}: {why}",
                verdict.time if verdict else backup.id.time,
                copy.hint or KEEP_THE_OTHER,
                backup=str(backup.id),
            )


def _found_out(settings: Settings, catalog: Catalog, database: str, told: set[str]) -> Iterator[Concern]:
    """What this host's drills found out, and stands beside no copy that is looked at: of an older backup, or
    where the store may only be read."""
    last_of = {(each.backup, each.store): each for each in history.drills(settings.backup_dir, database)}
    for each in last_of.values():
        if each.faults and _stands(catalog, each):
            concern = _unproven(database, each.backup, each.store, each.faults, each.time)
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


def _unproven(database: str, backup: str, store: str, faults: Sequence[str], since: datetime) -> Concern:
    said = f"a copy of {backup} did not come back as it was backed up: {'; '.join(faults)}"
    return Concern("unproven", database, f"{backup} in {store}", said, since, KEEP_THE_OTHER, backup=backup)


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
