"""Checks that were made without this Dagster, of backups that it knows: a verification from the terminal, of
one that a run of its own has made, say. `adopting` reports what it does not know at all.
"""

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta

from dagster import AssetCheckEvaluation, AssetCheckKey, DagsterEventType, DagsterInstance

from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.databases import Database
from backup_dag.core.errors import BackupDagError, DiskError, StoreError
from backup_dag.core.manifest import VERIFICATION, BackupId
from backup_dag.core.settings import Settings
from backup_dag.defs import checks
from backup_dag.defs.checks import Verdict

_AT_A_TIME = 25  # backups a look
_EVENTS = 10  # of a check, for its last outcome: a run that ended badly leaves entries without one
_SETTLED = timedelta(minutes=10)  # a run that has just made a check is about to report it itself

Standing = tuple[str, str]
"""Of which backup an outcome is, and of when: the later one is what a check stands at."""


class Rechecked:
    """One look at the records beside a database's backups. `notes`: when those came to be there that Dagster
    knows afterwards, by `asset/id`; with them, a listing tells that nothing is new."""

    def __init__(
        self, settings: Settings, instance: DagsterInstance, database: Database, now: datetime
    ) -> None:
        self._settings, self._instance, self._database, self._now = settings, instance, database, now
        self._stores = open_stores(settings)
        self.notes: dict[str, str] = {}

    def events(self, known: Collection[str], notes: Mapping[str, str]) -> list[AssetCheckEvaluation]:
        """What was checked later than what each check stands at, the oldest backup first. Nothing of older
        backups, whose outcome would stand for the newest one's. `known` are copies that were reported."""
        try:
            records = list(self._records())
        except (StoreError, DiskError):  # the next look; whoever looks for trouble says so
            self.notes = dict(notes)
            return []
        changed: dict[BackupId, dict[str, str]] = {}
        for name, backup, made in records:
            if name not in known:
                continue
            if notes.get(name) == made:
                self.notes[name] = made
            else:
                changed.setdefault(backup, {})[name] = made
        events: list[AssetCheckEvaluation] = []
        catalog, newest = Catalog(self._stores), sorted(changed)[-_AT_A_TIME:]
        for backup in newest:
            try:
                verdicts = checks.verdicts_on_record(self._settings, catalog.load(backup))
            except BackupDagError:  # cleaned up, or cut off, meanwhile
                continue
            if catalog.away or any(self._is_young(each) for each in verdicts):  # the next look
                continue
            self.notes |= changed[backup]
            events += [each.evaluation() for each in verdicts if _standing(each) > self._last(each)]
        for backup in changed.keys() - set(newest):
            self.notes |= changed[backup]
        return events

    def _records(self) -> Iterator[tuple[str, BackupId, str]]:
        """Each record of checks: the copy that it is about, its backup, and when it came to be there."""
        for asset, store in zip(("checksum", "s3_copy"), self._stores, strict=False):
            for listed in store.list(f"backup_{self._database.name}_"):
                backup = BackupId.parse(listed.name.removesuffix(f".{VERIFICATION}"))
                if backup is not None and backup.database == self._database.name:
                    yield f"{asset}/{backup}", backup, listed.modified.isoformat()

    def _is_young(self, verdict: Verdict) -> bool:
        return abs(self._now - datetime.fromisoformat(verdict.metadata["checked"])) < _SETTLED

    def _last(self, verdict: Verdict) -> Standing:
        """What the check stands at in Dagster; what is before everything, where it was never made."""
        storage, key = self._instance.event_log_storage, AssetCheckKey(verdict.asset, verdict.name)
        for record in storage.get_asset_check_execution_history(key, limit=_EVENTS):
            made = record.event.dagster_event if record.event else None
            if made is not None and made.event_type == DagsterEventType.ASSET_CHECK_EVALUATION:
                said = made.asset_check_evaluation_data.metadata
                if "backup" in said and "checked" in said:
                    return str(said["backup"].value), str(said["checked"].value)
        return "", ""


def _standing(verdict: Verdict) -> Standing:
    return verdict.metadata["backup"], verdict.metadata["checked"]
