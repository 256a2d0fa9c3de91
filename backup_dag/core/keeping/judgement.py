"""What should go from each store, of one database: the policy's verdicts, and what a store adds to them.

Nothing is changed by it. Every store is asked before one is judged: a copy goes sooner where it is known
that another store has a good one.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime

from backup_dag.core.catalog import Catalog
from backup_dag.core.copies import Backup, Copy
from backup_dag.core.errors import BackupNotFound, StoreError
from backup_dag.core.holds import is_held, is_hold
from backup_dag.core.keeping.cleaned import Cleaned, Judged
from backup_dag.core.keeping.leftovers import Files, dead_uploads, files_of, orphans
from backup_dag.core.keeping.retention import Candidate, Policy, Verdict, decide
from backup_dag.core.manifest import BackupId
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import FOREVER, Listed, Store

IN_USE = "held: somebody is reading it"
_LOST_MANIFEST = "its manifest is gone, and the rest may be whole: recover it by hand, or remove it yourself"


def load_all(stores: Sequence[Store], database: str) -> list[Backup]:
    """Every backup with its copies, the newest first. Raises where one of the stores stopped answering."""
    catalog, backups = Catalog(stores), []
    survey = catalog.survey(database)
    for backup in survey.ids:
        with suppress(BackupNotFound):  # removed meanwhile, by hand
            backups.append(catalog.load(backup))
    for error in [*survey.missed, *(error for backup in backups for error in backup.missed)]:
        raise error
    return backups


class Judgement:
    """One database in all stores, at one time."""

    def __init__(
        self,
        settings: Settings,
        stores: Sequence[Store],
        database: str,
        backups: Sequence[Backup],
        now: datetime,
    ) -> None:
        self._database, self._stores, self._backups, self._now = database, stores, backups, now
        self._by_id = {backup.id: backup for backup in backups}
        self._full = Policy.of(settings)
        self._only_days = settings.backup_local_retention_days
        self._files: dict[Store, Files] = {store: files_of(store, database) for store in stores}
        self._held = {backup for files in self._files.values() for backup in files if self._is_held(backup)}
        wanted = decide([self._candidate(each, _best(each)) for each in backups], self._full, now)
        self._wanted = {verdict.id: verdict for verdict in wanted}

    def of(self, store: Store) -> Cleaned:
        """What should become of everything of this database in a store."""
        here = {backup.id: backup for backup in self._backups if _copy_in(store, backup)}
        candidates = [self._candidate(backup, _copy_in(store, backup)) for backup in here.values()]
        verdicts = decide(candidates, self._policy(store), self._now)
        cleaned = Cleaned(
            database=self._database,
            store=store.label,
            place=store.address(),
            judged=[self._fate(store, self._unless_last(store, here[v.id], v)) for v in verdicts],
            orphans=[self._fate(store, verdict) for verdict in self._orphans(store)],
            holds=[backup for backup, files in self._files[store].items() if _has_holds(backup, files)],
        )
        try:
            cleaned.uploads = list(dead_uploads(store, self._database, self._now))
        except StoreError as error:
            if error.retryable:
                raise
            cleaned.remarks.append(f"not known: {error.message}")
        return cleaned

    def _policy(self, store: Store) -> Policy:
        """The full one, but for the folder that a bucket stands behind, where that has its own."""
        behind = any(other.label != "local" for other in self._stores)
        if store.label == "local" and behind and self._only_days is not None:
            return self._full.only(self._only_days)
        return self._full

    def _candidate(self, backup: Backup, copy: Copy | None) -> Candidate:
        manifest = copy.manifest if copy else None
        good = copy is not None and copy.good
        bound = IN_USE if backup.id in self._held else ""
        if copy and manifest and manifest != backup.manifest_or_none:
            bound = copy.fault or bound  # another server's, of the same name
        return Candidate(
            backup.id,
            reason=manifest.reason if manifest else None,
            made=manifest.started if manifest else None,
            good=good,
            proven=good and backup.proven,
            bound=bound,
        )

    def _unless_last(self, store: Store, backup: Backup, verdict: Verdict) -> Verdict:
        """The verdict on a copy; it stays where the full policy wants the backup, and no other store has a
        copy of it that somebody has found to be good."""
        wanted = self._wanted[backup.id]
        if verdict.keep or not wanted.keep:
            return verdict
        if behind := self._behind(store, backup.id):
            return Verdict(verdict.id, False, (*verdict.reasons, f"{behind[0]} has a copy that was checked"))
        return Verdict(verdict.id, True, ("no other store has a copy that was checked", *wanted.reasons))

    def _orphans(self, store: Store) -> Iterator[Verdict]:
        for orphan in orphans(self._files[store], self._now):
            if orphan.id in self._held:
                yield Verdict(orphan.id, True, (IN_USE,))
            elif orphan.may_be_whole and (behind := self._behind(store, orphan.id)):
                said = f"its manifest is gone, and {behind[0]} has a copy that was checked"
                yield Verdict(orphan.id, False, (said,))
            elif orphan.may_be_whole:
                yield Verdict(orphan.id, True, (_LOST_MANIFEST,))
            else:
                yield Verdict(orphan.id, False, ("files without a manifest: left by a run that died",))

    def _behind(self, store: Store, backup: BackupId) -> list[str]:
        """Which other stores have a copy of it that somebody has found to be good."""
        copies = self._by_id[backup].copies if backup in self._by_id else ()
        return [copy.store.label for copy in copies if copy.store is not store and copy.checked]

    def _is_held(self, backup: BackupId) -> bool:
        """Whether someone holds any copy: a reader whose copy is damaged goes on to the next."""
        return any(
            is_held(store, backup)
            for store, files in self._files.items()
            if _has_holds(backup, files.get(backup, ()))
        )

    def _fate(self, store: Store, verdict: Verdict) -> Judged:
        """The verdict, and whether the store lets it go."""
        files = self._files[store].get(verdict.id, ())
        size = sum(listed.bytes for listed in files)
        if verdict.keep:
            return Judged(verdict.id, "stays", verdict.reasons, size)
        locks = [until for listed in files if (until := store.locked_until(listed.name))]
        if not locks:
            return Judged(verdict.id, "goes", verdict.reasons, size)
        until = max(locks)
        said = "without an end" if until == FOREVER else f"until {until:%Y-%m-%d %H:%M} UTC"
        return Judged(verdict.id, "locked", (f"locked {said}", *verdict.reasons), size, until)


def _has_holds(backup: BackupId, files: Iterable[Listed]) -> bool:
    return any(is_hold(backup, listed.name) for listed in files)


def _copy_in(store: Store, backup: Backup) -> Copy | None:
    return next((copy for copy in backup.copies if copy.store is store), None)


def _best(backup: Backup) -> Copy:
    """The copy that tells most of a backup: a good one, else one with a manifest."""
    return max(backup.copies, key=lambda copy: (copy.good, copy.manifest is not None))
