"""Nights without a backup are asked for again: the daemon was down, or a run was lost.

A schedule never makes up for a missed tick. This sensor looks at what there is, and not at what was asked
for: as long as the day still means something, and a bounded number of times.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from dagster import (
    DagsterInstance,
    DefaultSensorStatus,
    RunRequest,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    sensor,
)

from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.databases import Database
from backup_dag.core.settings import Settings
from backup_dag.core.watching.concerns import missed_nights
from backup_dag.defs import runs
from backup_dag.defs.assets import MISSED
from backup_dag.defs.jobs import AssetJob, backup_job_name
from backup_dag.defs.words import Clock, in_dagsters_words, the_time

_PAUSE = timedelta(minutes=30)
"""Between the end of one attempt and the next; the second waits twice as long, and so on."""


def missed_backups(
    settings: Settings, databases: Sequence[Database], jobs: Sequence[AssetJob], clock: Clock = the_time
) -> SensorDefinition:
    """Every five minutes: asks for the backups of nights that have none, and can still be captured: the
    oldest first, and of each database one at a time."""

    @sensor(
        name="missed_backups",
        jobs=list(jobs),
        minimum_interval_seconds=300,
        default_status=sensor_status(settings),
        description="Asks for the backups of nights that have none, while they still mean something.",
    )
    def look(context: SensorEvaluationContext) -> list[RunRequest] | SkipReason:
        now, asked, said = clock(), [], []
        with in_dagsters_words():
            catalog = Catalog(open_stores(settings))
            found = [(each, missed_nights(settings, each.name, catalog, now)) for each in databases]
        for database, missed in found:
            for day in missed.to_capture:
                attempt, why_not = next_attempt(settings, context.instance, database, day, now)
                if not why_not:
                    asked.append(_request(database, day, attempt))
                    break  # the lock would refuse a second one at a time
                said.append(f"{database.name}, {day}: {why_not}")
        return asked or SkipReason("; ".join(said) or "no night is without a backup that could still be made")

    return look


def _request(database: Database, day: date, attempt: int) -> RunRequest:
    """Two looks at a time ask for the same one: Dagster starts one run for a key."""
    return RunRequest(
        run_key=f"{database.name}:{day}:{attempt}",
        job_name=backup_job_name(database),
        partition_key=str(day),
        tags={MISSED: str(attempt)},
    )


def next_attempt(
    settings: Settings, instance: DagsterInstance, database: Database, day: date, now: datetime
) -> tuple[int, str]:
    """The number of the next attempt, and why there is none now, "" where there is.

    Read off the runs there were, and not off a cursor, which may be lost.
    """
    if any(runs.backs_up(run, database) for run in runs.under_way(instance, now)):
        return 0, "a run is under way"
    there = runs.of_backups(instance, database, str(day))
    asked = [run for run in there if MISSED in run.dagster_run.tags]
    attempt = len(asked) + 1
    if attempt > settings.backup_missed_attempts:
        return 0, f"given up after {len(asked)} attempts; launch it yourself"
    ended = [datetime.fromtimestamp(run.end_time, UTC) for run in asked if run.end_time]
    if ended and now < max(ended) + _PAUSE * len(asked):
        return 0, f"attempt {attempt} waits until {max(ended) + _PAUSE * len(asked):%H:%M} UTC"
    return attempt, ""


def sensor_status(settings: Settings) -> DefaultSensorStatus:
    on = settings.backup_schedules == "on"
    return DefaultSensorStatus.RUNNING if on else DefaultSensorStatus.STOPPED
