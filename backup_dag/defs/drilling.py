"""Drills: a backup restored where nobody needs it, as an asset of its day, with what it proves as its checks.

A backup that is not proven is a failed check, and recorded beside its copy. A drill that broke is a failed
run: it says nothing of the backup.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date

from dagster import (
    AssetCheckSpec,
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    Config,
    DailyPartitionsDefinition,
    DataVersion,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    MaterializeResult,
    RunConfig,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    asset,
    schedule,
    sensor,
)
from pydantic import Field

from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.copies import Backup
from backup_dag.core.databases import Database
from backup_dag.core.drilling.drill import drill, of_day, to_drill, unproven
from backup_dag.core.drilling.own_checks import OwnCheck, own_checks
from backup_dag.core.errors import BackupDagError, BackupNotFound, ConfigurationError
from backup_dag.core.nights import is_quiet
from backup_dag.core.settings import Settings
from backup_dag.defs import checks, metadata, runs
from backup_dag.defs.jobs import DRILLED, AssetJob, drill_job_name
from backup_dag.defs.words import Clock, day_of, in_dagsters_words, progress, the_time

_ATTEMPTS = 2


class DrillConfig(Config):
    """What a drill is launched with."""

    backup: str = Field(default="", description="This backup, by its id. Empty: the newest one of the day.")


def restore_drill(
    settings: Settings, database: Database, days: DailyPartitionsDefinition
) -> AssetsDefinition:
    """The day's backup, restored into a throw-away PostgreSQL and compared row by row."""
    key = AssetKey([database.name, "restore_drill"])
    own = _known_checks(settings, database)

    @asset(
        key=key,
        deps=[checks.verified_asset(settings, database.name)],
        description="The backup, restored into a throw-away PostgreSQL: every row compared, the time taken.",
        group_name=database.name,
        kinds={"postgres"},
        owners=[settings.backup_owner],
        partitions_def=days,
        check_specs=[
            *(AssetCheckSpec(name, asset=key, description=said) for name, said in checks.OF_A_DRILL.items()),
            *(
                AssetCheckSpec(each.name, asset=key, description=f"{each.path}: {each.expectation}.")
                for each in own
            ),
        ],
    )
    def prove(context: AssetExecutionContext, config: DrillConfig) -> MaterializeResult:  # type: ignore[type-arg]
        with in_dagsters_words():
            day = date.fromisoformat(day_of(context))
            backup = (
                to_drill(settings, config.backup, database.name)
                if config.backup
                else of_day(settings, database.name, day)
            )
            if backup.manifest.partition_day != day:
                raise ConfigurationError(
                    f"{backup.id} is of the day {backup.manifest.partition_day}, and this is {day}",
                    hint="launch the partition of its day; or drill it from a terminal: backup-dag drill ID",
                )
            outcome = drill(settings, backup, lambda what: progress(context, what))
            newest = backup.manifest
            with suppress(BackupNotFound):  # none is usable: that is what the drill has found
                newest = Catalog(open_stores(settings)).latest(database.name).manifest
        for fault in outcome.faults:
            context.log.error(f"not proven: {fault}")
        verdicts = checks.verdicts_on_a_drill(settings, outcome, newest, [each.name for each in own])
        return MaterializeResult(
            metadata=metadata.of_drill(outcome),
            data_version=DataVersion(backup.manifest.content.sha256),
            check_results=[each.result() for each in verdicts],
        )

    return prove


def _known_checks(settings: Settings, database: Database) -> list[OwnCheck]:
    """The user's own. A file that is no check must not keep the backups from being made: the drill says
    so."""
    with suppress(BackupDagError):
        return own_checks(settings, database.name)
    return []


def drill_schedule(settings: Settings, database: Database) -> ScheduleDefinition:
    """The latest backup, as often as BACKUP_DRILL says: on the first of the month, on Sundays, or every
    night."""
    at = settings.backup_drill_time
    when = {"weekly": "* * 0", "nightly": "* * *"}.get(settings.backup_drill, "1 * *")
    on = settings.backup_schedules == "on" and settings.backup_drill != "off"

    @schedule(
        name=f"{database.name}_drill_schedule",
        job_name=drill_job_name(database),
        cron_schedule=f"{at.minute} {at.hour} {when}",
        execution_timezone=settings.backup_timezone,
        default_status=DefaultScheduleStatus.RUNNING if on else DefaultScheduleStatus.STOPPED,
        description=f"Restore the latest backup of {database.name} and compare it (BACKUP_DRILL).",
    )
    def drill_latest(context: ScheduleEvaluationContext) -> RunRequest | SkipReason:
        try:
            backup = to_drill(settings, "latest", database.name)
            day = backup.manifest.partition_day
        except BackupDagError as error:
            return SkipReason(str(error))
        if day < settings.backup_start_date:
            return SkipReason(f"{backup.id} is of a day before BACKUP_START_DATE")
        return _request(database, backup, str(day), f"{context.scheduled_execution_time:%Y-%m-%d}")

    return drill_latest


def drill_unproven(
    settings: Settings, databases: Sequence[Database], jobs: Sequence[AssetJob], clock: Clock = the_time
) -> SensorDefinition:
    """In quiet hours, one at a time: the retained backups that nobody has restored yet, the newest first."""
    begin, end = settings.backup_quiet_hours
    hours = f"{begin:%H:%M} to {end:%H:%M}"
    on = settings.backup_schedules == "on" and settings.backup_drill_unproven == "on"

    @sensor(
        name="drill_unproven",
        jobs=list(jobs),
        minimum_interval_seconds=300,
        default_status=DefaultSensorStatus.RUNNING if on else DefaultSensorStatus.STOPPED,
        description=f"Drills backups that were never proven, one at a time, from {hours}.",
    )
    def look(context: SensorEvaluationContext) -> RunRequest | SkipReason:
        now = clock()
        if not is_quiet(settings, now):
            return SkipReason(f"its hours are from {hours}")
        if any(runs.under_way(context.instance, now)):
            return SkipReason("a run is under way")
        for database, backup in _in_turn(settings, databases):
            asked = runs.tagged(context.instance, DRILLED, str(backup.id))
            day = backup.manifest.partition_day
            if len(asked) < _ATTEMPTS and day >= settings.backup_start_date:
                return _request(database, backup, str(day), str(len(asked)))
        return SkipReason("no retained backup is left that was never drilled")

    return look


def _in_turn(settings: Settings, databases: Sequence[Database]) -> Iterator[tuple[Database, Backup]]:
    """Of all databases, the newest first. One that cannot be looked at is passed over: others tell of it."""
    for database in databases:
        try:
            for backup in unproven(settings, database.name):
                yield database, backup
        except BackupDagError:
            continue


def _request(database: Database, backup: Backup, day: str, attempt: str) -> RunRequest:
    return RunRequest(
        run_key=f"drill:{backup.id}:{attempt}",
        job_name=drill_job_name(database),
        partition_key=day,
        tags={DRILLED: str(backup.id)},
        run_config=RunConfig(ops={f"{database.name}__restore_drill": DrillConfig(backup=str(backup.id))}),
    )
