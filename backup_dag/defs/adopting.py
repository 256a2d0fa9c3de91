"""Backups that Dagster does not know become part of its history: those made from the terminal, and all of
them where its own database was lost. The stores are what is true; Dagster's records follow.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetKey,
    AssetMaterialization,
    DagsterInstance,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from backup_dag.core.catalog import Catalog, Survey, open_stores
from backup_dag.core.copies import Backup
from backup_dag.core.databases import Database
from backup_dag.core.manifest import BackupId
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import Store
from backup_dag.core.watching.usual import nights_before
from backup_dag.defs import checks, metadata, runs
from backup_dag.defs.assets import said_of
from backup_dag.defs.missed import sensor_status
from backup_dag.defs.rechecked import Rechecked
from backup_dag.defs.words import Clock, in_dagsters_words, the_time

_AT_A_TIME = 25  # backups a look, so that a long history does not hold up the daemon
_PAGE = 500
_SETTLED = timedelta(minutes=10)
_NOTES = "notes of checks"  # in the cursor, beside the databases' names, none of which has a space
_PATHS = ("path", "manifest_path")

Event = AssetMaterialization | AssetCheckEvaluation


def adopt_backups(
    settings: Settings, databases: Sequence[Database], clock: Clock = the_time
) -> SensorDefinition:
    """Every ten minutes. What it has seen already is in its cursor; without one it compares all anew."""

    @sensor(
        name="adopt_backups",
        asset_selection=[AssetKey([each.name, "checksum"]) for each in databases],
        minimum_interval_seconds=600,
        default_status=sensor_status(settings),
        description="Reports backups that Dagster does not know as what they are: made, copied, checked.",
    )
    def adopt(context: SensorEvaluationContext) -> SensorResult | SkipReason:
        cursor = json.loads(context.cursor or "{}")
        notes: dict[str, dict[str, str]] = cursor.pop(_NOTES, {})
        seen: dict[str, list[str]] = cursor
        events: list[Event] = []
        with in_dagsters_words():
            for database in databases:
                known = seen.get(database.name, [])
                adopting = _Adopting(settings, context.instance, database, clock())
                events += adopting.events(known)
                rechecked = Rechecked(settings, context.instance, database, clock())
                events += rechecked.events(known, notes.get(database.name, {}))
                seen[database.name], notes[database.name] = adopting.seen, rechecked.notes
        left = json.dumps({**seen, _NOTES: notes})
        if not events:
            context.update_cursor(left)
            return SkipReason("Dagster knows every backup that there is")
        return SensorResult(asset_events=events, cursor=left)

    return adopt


class _Once(Catalog):
    """Asks once for what is asked for again and again: each backup is compared with those before it."""

    def __init__(self, stores: Sequence[Store]) -> None:
        super().__init__(stores)
        self._loaded: dict[BackupId, Backup] = {}
        self._surveys: dict[str | None, Survey] = {}

    def load(self, backup: BackupId) -> Backup:
        if backup not in self._loaded:
            self._loaded[backup] = super().load(backup)
        return self._loaded[backup]

    def survey(self, database: str | None = None) -> Survey:
        if database not in self._surveys:
            self._surveys[database] = super().survey(database)
        return self._surveys[database]


class _Adopting:
    """One look at one database. `seen`: what Dagster knows afterwards, as `where/id`."""

    def __init__(
        self, settings: Settings, instance: DagsterInstance, database: Database, now: datetime
    ) -> None:
        self._settings, self._instance, self._database, self._now = settings, instance, database, now
        self._stores = open_stores(settings)
        self._catalog = _Once(self._stores)
        self.seen: list[str] = []

    def events(self, seen: Sequence[str]) -> list[Event]:
        """What Dagster lacks, the oldest backup first, so that the newest is the latest there too."""
        there = {("checksum", backup) for backup in self._catalog.survey(self._database.name).ids}
        for store in self._stores[1:]:
            there |= {("s3_copy", b) for b in Catalog([store]).survey(self._database.name).ids}
        self.seen = [_name(*each) for each in sorted(there) if _name(*each) in seen]
        new = [each for each in there if _name(*each) not in seen]
        if not new:
            return []
        known = {_name(asset, b) for asset in {a for a, _ in new} for b in self._known_to_dagster(asset)}
        self.seen += [_name(*each) for each in new if _name(*each) in known]
        lacking = [each for each in new if _name(*each) not in known]
        events: list[Event] = []
        for backup in sorted({backup for _, backup in lacking})[:_AT_A_TIME]:
            events += self._of(backup, [asset for asset, each in lacking if each == backup])
        return events

    def _known_to_dagster(self, asset: str) -> Iterator[BackupId]:
        """The ids that materializations of an asset name."""
        cursor, more = None, True
        while more:
            page = self._instance.fetch_materializations(
                AssetKey([self._database.name, asset]), limit=_PAGE, cursor=cursor
            )
            for record in page.records:
                made = record.asset_materialization
                said = made.metadata.get("backup") if made else None
                if said is not None and (backup := BackupId.parse(str(said.value))):
                    yield backup
            cursor, more = page.cursor, page.has_more

    def _of(self, id: BackupId, assets: Sequence[str]) -> Iterator[Event]:
        """One backup's events, unless a run may still be about to report it."""
        backup = self._catalog.load(id)
        if self._catalog.away:  # the next look
            return
        manifest = backup.manifest_or_none
        if manifest is None or not manifest.is_of_a_night:
            self.seen += [_name(asset, id) for asset in assets]  # no day's backup, or one nobody can read
            return
        day, young = str(manifest.partition_day), abs(self._now - manifest.finished) < _SETTLED
        if young or any(runs.under_way(self._instance, self._now, day)):
            return
        self.seen += [_name(asset, id) for asset in assets]
        if "checksum" in assets:
            yield from self._chain(backup)
        if "s3_copy" in assets:
            yield from self._copy(backup)
        for verdict in checks.verdicts_on_record(self._settings, backup):
            yield verdict.evaluation()

    def _chain(self, backup: Backup) -> Iterator[Event]:
        manifest = backup.manifest
        here = any(copy.store.label == "local" for copy in backup.copies)
        for name, (version, values) in said_of(manifest, self._settings).items():
            said = {key: value for key, value in values.items() if here or key not in _PATHS}
            yield _materialization(backup, name, version.value, said)
        before = nights_before(self._catalog, manifest)
        for verdict in checks.verdicts_on_the_dump(self._settings, manifest, before):
            yield verdict.evaluation()

    def _copy(self, backup: Backup) -> Iterator[Event]:
        manifest = backup.manifest
        here = any(copy.store.label == "local" and copy.manifest for copy in backup.copies)
        for copy in backup.copies:
            if copy.store.label == "s3":
                values = metadata.of_known_copy(manifest, copy.store.address(manifest.artifact.name))
                yield _materialization(backup, "s3_copy", manifest.artifact.sha256, values)
                yield checks.verdict_on_the_copy(manifest, copy, here=here).evaluation()


def _materialization(backup: Backup, asset: str, version: str, values: metadata.Values) -> Event:
    said: dict[str, Any] = {**values, "adopted": True}
    return AssetMaterialization(
        AssetKey([backup.id.database, asset]),
        partition=str(backup.manifest.partition_day),
        description="Found in the stores; it was made without this Dagster.",
        metadata=said,
        tags={"dagster/data_version": version},
    )


def _name(asset: str, backup: BackupId) -> str:
    return f"{asset}/{backup}"
