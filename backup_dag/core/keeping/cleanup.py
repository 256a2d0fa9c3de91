"""Removes the backups that the policy lets go, and what dead runs left: carefully, or not at all.

Of each backup the manifest goes first, so whatever ends a cleanup half-way leaves whole backups, and files
without a manifest, which the next one removes. Each store has its policy: the bucket the full one, and so
the local folder, unless BACKUP_LOCAL_RETENTION_DAYS says for how long it keeps what the bucket has too.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from backup_dag.core.audit import Entry, audited, entries
from backup_dag.core.copies import Backup
from backup_dag.core.errors import BackupDagError, DiskError, GuardRefused, StoreError
from backup_dag.core.holds import is_held, sweep_holds
from backup_dag.core.keeping.caution import (
    against_losing,
    against_removing,
    against_size,
    against_so_many,
    newest_good,
)
from backup_dag.core.keeping.cleaned import Cleaned, Judged, Report
from backup_dag.core.keeping.judgement import IN_USE, Judgement, load_all
from backup_dag.core.manifest import CHECKSUM, GOING, MANIFEST, BackupId, owner_of
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import Listed, Store
from backup_dag.core.watching.usual import accept
from backup_dag.core.work import one_at_a_time


@dataclass(frozen=True)
class Leave:
    """What a cleanup may do. `force`: although it would remove many, or sizes or clocks look wrong;
    `unverified`: although the newest backup was never read to its end."""

    dry_run: bool = False
    force: bool = False
    unverified: bool = False


def clean_up(
    settings: Settings,
    stores: Sequence[Store],
    configured: Collection[str],
    leave: Leave,
    *,
    only: str | None = None,
    now: datetime | None = None,
) -> Report:
    """Cleans every configured database (or `only` one of them), one after the other, in every store.

    `stores` must be all that are in use: a copy goes sooner where another store has one. A dry run asks the
    same questions, and changes nothing. What a guard refused, and what failed, stands in the report; it
    keeps no other database from being cleaned.

    Raises:
        StoreError, StoreUnreachable, DiskError: a store could not be asked at all. Nothing was removed.
    """
    now = now or _earliest(stores)
    report = Report(leave.dry_run, foreign=_foreign(stores, configured))
    for database in [only] if only else configured:
        # copy_offsite's lock: meanwhile nothing is uploaded, and nobody else cleans up
        alone = one_at_a_time(settings.backup_dir, f"copy-{database}")
        try:
            with nullcontext() if leave.dry_run else alone, _noted(settings, database, leave) as entry:
                found = _cleaned(settings, stores, database, leave, now, entry)
                if errors := [error for each in found for error in (each.failed, each.refused) if error]:
                    entry.failed(errors[0].message)
                report.cleaned += found
        except BackupDagError as error:
            report.failed[database] = error
            if error.retryable:  # the next would wait for it too
                break
    return report


def _earliest(stores: Sequence[Store]) -> datetime:
    """The time by whichever clock is behind, this host's or a store's: an earlier one removes no more."""
    clocks = [datetime.now(UTC)]
    for store in stores:
        with suppress(StoreError, DiskError):  # of that the listing speaks
            clocks.append(store.clock())
    return min(clocks)


@contextmanager
def _noted(settings: Settings, database: str, leave: Leave) -> Iterator[Entry]:
    """What is removed is noted in the audit log; a dry run removes nothing, and is not."""
    if leave.dry_run:
        yield Entry("cleanup", database, None)
        return
    with audited(settings.backup_dir, "cleanup", database, force=leave.force) as entry:
        yield entry


def _foreign(stores: Sequence[Store], configured: Collection[str]) -> dict[str, int]:
    """How many backups there are of each database that is not configured."""
    ids: set[BackupId] = set()
    for store in stores:
        try:
            owners = [owner_of(listed.name) for listed in store.list("backup_")]
        except (StoreError, DiskError) as error:
            said = f"{error.message}; nothing was removed from any store, since it is not known what is there"
            raise type(error)(said, hint=error.hint) from error
        ids |= {owner for owner in owners if owner and owner.database not in configured}
    return dict(Counter(each.database for each in ids))


def _cleaned(
    settings: Settings, stores: Sequence[Store], database: str, leave: Leave, now: datetime, entry: Entry
) -> list[Cleaned]:
    """One database: every store is looked at before anything is removed."""
    backups = load_all(stores, database)
    judgement = Judgement(settings, stores, database, backups, now)
    found = [judgement.of(store) for store in stores]
    refused = against_removing(
        settings,
        database,
        backups,
        now,
        force=leave.force,
        unverified=leave.unverified,
        note=not leave.dry_run,
    )
    forced = leave.force and refused is None
    newest = newest_good(backups, now) if forced and not leave.dry_run else None
    odd = newest and _is_odd(settings, found, backups, now)
    nights = _nights_since_the_last(settings, database, now) if any(each.going for each in found) else 1
    for store, cleaned in zip(stores, found, strict=True):
        if cleaned.going:
            cleaned.refused = refused or (
                None if forced else _held_back(settings, cleaned, backups, now, nights)
            )
        if not leave.dry_run:
            entry[cleaned.place] = gone = list[str]()  # as they go, for a line that is true whatever happens
            _remove_from(store, cleaned, gone)
    if newest and odd:
        accept(settings, newest)
    return found


def _is_odd(settings: Settings, found: Sequence[Cleaned], backups: Sequence[Backup], now: datetime) -> bool:
    """Whether a size stands against it, which is accepted by going on all the same."""
    lost = (_lost(settings, cleaned, backups, now) for cleaned in found)
    return bool(against_size(settings, backups, now, note=False)) or any(lost)


def _lost(
    settings: Settings, cleaned: Cleaned, backups: Sequence[Backup], now: datetime
) -> GuardRefused | None:
    return against_losing(settings, cleaned.place, backups, {each.id for each in cleaned.going}, now)


def _held_back(
    settings: Settings, cleaned: Cleaned, backups: Sequence[Backup], now: datetime, nights: int
) -> GuardRefused | None:
    """Why what goes from one store may not go as it stands, after so many nights without a clean-up."""
    lost = _lost(settings, cleaned, backups, now)
    return lost or against_so_many(settings, cleaned.place, len(cleaned.going), len(cleaned.all), nights)


def _nights_since_the_last(settings: Settings, database: str, now: datetime) -> int:
    """How many nights a clean-up of it has not come to its end here. Where none ever did, or nobody can tell,
    it is one."""
    last = now
    with suppress(DiskError):
        for entry in entries(settings.backup_dir):
            if (entry.what, entry.database, entry.outcome) == ("cleanup", database, "done"):
                with suppress(ValueError, TypeError):
                    last = datetime.fromisoformat(entry.time)
    return max(1, (now - last).days)


def _remove_from(store: Store, cleaned: Cleaned, gone: list[str]) -> None:
    """Removes what goes, the oldest first, and ends dead uploads and holds. Stops at the first failure."""
    try:
        for backup in cleaned.holds:
            sweep_holds(store, backup)
        for upload in cleaned.uploads:
            store.abort(upload)
        if cleaned.refused is None:
            for judged in reversed(cleaned.judged):
                if judged.fate == "goes":
                    _remove(store, judged, gone, whole=True)
            for orphan in reversed(cleaned.orphans):
                if orphan.fate == "goes":
                    _remove(store, orphan, gone, whole=False)
    except BackupDagError as error:
        cleaned.failed = error


def _remove(store: Store, judged: Judged, gone: list[str], *, whole: bool) -> None:
    """Removes a copy's files, in the reverse order of writing; or, not `whole`, what is left of one.

    Looks again first: someone may have taken hold of it, or have made it whole, since it was judged.
    """
    files = list(_files_of(store, judged.id))
    has_manifest = any(listed.name == judged.id.file(MANIFEST) for listed in files)
    if has_manifest != whole:
        judged.fate, judged.reasons = "stays", ("it has changed since it was looked at",)
    elif is_held(store, judged.id):
        judged.fate, judged.reasons = "stays", (IN_USE,)
    else:
        if whole:  # else what is left, if this ends half-way, looks like a backup that has lost its manifest
            store.put_note(judged.id.file(GOING), json.dumps({"why": judged.reasons}) + "\n")
        going = judged.id.file(GOING)
        before: list[str] = []
        while names := _manifest_first(judged.id, files):
            if names == before:
                raise StoreError(
                    f"{store.address(names[0])} is still listed after it was removed",
                    hint="see what the store does with removals: a policy, a lock, a stale listing",
                )
            before = names
            for name in names:
                store.remove(name)
                if str(judged.id) not in gone:
                    gone.append(str(judged.id))
            files = list(_files_of(store, judged.id))  # a listing may have been cut short
        store.remove(going)
        judged.removed = True


def _files_of(store: Store, backup: BackupId) -> Iterator[Listed]:
    return (listed for listed in store.list(f"{backup}.") if owner_of(listed.name) == backup)


def _manifest_first(backup: BackupId, files: Iterable[Listed]) -> list[str]:
    """The reverse order of writing, the notes beside the backup last."""

    def place(name: str) -> int:
        ending = name.removeprefix(f"{backup}.")
        if ending in (MANIFEST, CHECKSUM):
            return (MANIFEST, CHECKSUM).index(ending)
        if ending.endswith(".json"):
            return 4
        return 2 if ending.startswith("globals.") else 3

    names = (listed.name for listed in files)
    return sorted((name for name in names if name != backup.file(GOING)), key=place)
