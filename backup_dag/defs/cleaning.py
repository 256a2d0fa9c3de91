"""Old backups go once a new one is verified: a job that by itself only says what would go, and the sensor
that launches it for good after every verification that passed.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from dagster import (
    Config,
    DagsterEventType,
    DagsterRunStatus,
    JobDefinition,
    MetadataValue,
    OpExecutionContext,
    Output,
    RunConfig,
    RunRequest,
    RunsFilter,
    RunStatusSensorContext,
    SensorDefinition,
    SkipReason,
    in_process_executor,
    job,
    op,
    run_status_sensor,
)
from pydantic import Field

from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.databases import Database, choose
from backup_dag.core.errors import GuardRefused
from backup_dag.core.keeping.cleaned import Report
from backup_dag.core.keeping.cleanup import Leave, clean_up
from backup_dag.core.settings import Settings
from backup_dag.core.watching import watch
from backup_dag.core.watching.alerts import Alert, protection
from backup_dag.defs.checks import CONTENT
from backup_dag.defs.jobs import AssetJob
from backup_dag.defs.missed import sensor_status
from backup_dag.defs.runs import database_of
from backup_dag.defs.words import in_dagsters_words

_MOST_LOOKED_AT = 300  # runs: a night of so many databases


class CleanupConfig(Config):
    """What a cleanup is launched with. As it stands, it removes nothing."""

    dry_run: bool = Field(default=True, description="Only say what would go, and why.")
    database: str = Field(default="", description="Only this one; all that are configured by default.")
    force: bool = Field(
        default=False, description="Although many would go at once, or sizes or clocks look wrong."
    )
    unverified: bool = Field(
        default=False, description="Although the newest backup was never read to its end."
    )


def cleanup_job(settings: Settings, databases: Sequence[Database]) -> JobDefinition:
    """The calendar of what stays and why, and the removal of the rest."""

    @op(description="What stays and why; the rest is removed, unless it is a dry run.")
    def clean(context: OpExecutionContext, config: CleanupConfig) -> Output[None]:
        leave = Leave(config.dry_run, config.force, config.unverified)
        names = [database.name for database in databases]
        with in_dagsters_words():
            only = choose(databases, config.database).name if config.database else None
            report = clean_up(settings, open_stores(settings), names, leave, only=only)
        if not config.dry_run:
            _tell_of_refusals(context, settings, report)
        for line in report.lines():
            context.log.info(line)
        _raise_what_failed(report)
        return Output(None, metadata=_said_of(report))

    @job(
        name="cleanup",
        description="Say which backups may go by the retention policy. Removes them with dry_run: false.",
        config=RunConfig(ops={"clean": CleanupConfig()}),
        executor_def=in_process_executor,
    )
    def cleanup() -> None:
        clean()

    return cleanup


def _raise_what_failed(report: Report) -> None:
    """A store that failed fails the run. A guard's refusal at night is the system at work: it is told of
    by the sensor that looks at the backups, and stands in the report."""
    for error in report.errors:
        if not isinstance(error, GuardRefused):
            with in_dagsters_words():
                raise error


def _tell_of_refusals(context: OpExecutionContext, settings: Settings, report: Report) -> None:
    """A store that is not cleaned fills up, so whoever has to know is told: once for each reason."""
    now, known = datetime.now(UTC), dict[str, set[str]]()
    for cleaned in report.cleaned:
        if cleaned.refused is None:
            continue
        context.log.warning(str(cleaned.refused))
        database, hint = cleaned.database, cleaned.refused.hint
        if database not in known:
            known[database] = _told_before(context, database)
        if hint not in known[database]:
            known[database].add(hint)
            happened = f"nothing of {database} was cleaned up in {cleaned.place}: {cleaned.refused.message}"
            guard = protection(Catalog(open_stores(settings)), database, now)
            with in_dagsters_words():
                watch.tell(settings, Alert("not cleaned", database, happened, now, guard, hint))


def _told_before(context: OpExecutionContext, database: str) -> set[str]:
    """What that database's last clean-up for good was refused for: its hints, by the run's own metadata. The
    runs of other databases, and dry ones, say nothing of it."""
    wanted = RunsFilter(job_name="cleanup", statuses=[DagsterRunStatus.SUCCESS])
    for run in context.instance.get_runs(wanted, limit=_MOST_LOOKED_AT):
        for entry in context.instance.all_logs(run.run_id, of_type=DagsterEventType.STEP_OUTPUT):
            said: Any = entry.get_dagster_event().step_output_data.metadata["as_json"].value
            its = [each["refused"] for each in said["cleaned"] if each["database"] == database]
            if its and not said["dry_run"]:
                return {refused["hint"] for refused in its if refused}
    return set()


def _said_of(report: Report) -> dict[str, Any]:
    refused = [str(error.message) for error in report.errors]
    return {
        "calendar": MetadataValue.md("```text\n" + "\n".join(report.lines()) + "\n```"),
        "removed": len(report.removed),
        "freed_bytes": report.freed,
        "refused": "; ".join(refused) or "nothing",
        "as_json": MetadataValue.json(report.document()),
    }


def cleanup_after_verified(
    settings: Settings, databases: Sequence[Database], verifying: Sequence[AssetJob], cleanup: JobDefinition
) -> SensorDefinition:
    """After each verification that passed."""

    @run_status_sensor(
        run_status=DagsterRunStatus.SUCCESS,
        name="cleanup_after_verified",
        monitored_jobs=list(verifying),
        request_job=cleanup,
        minimum_interval_seconds=30,
        default_status=sensor_status(settings),
        description="Cleans up after the latest backup of a database was read to its end, and found good.",
    )
    def after(context: RunStatusSensorContext) -> RunRequest | SkipReason:
        run, database = context.dagster_run, database_of(context.dagster_run, databases)
        checks = context.instance.all_logs(run.run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION)
        found = [entry.get_dagster_event().asset_check_evaluation_data for entry in checks]
        if not any(check.check_name == CONTENT and check.passed for check in found):
            return SkipReason("the backup was not verified, so nothing older may go")
        config = CleanupConfig(dry_run=False, database=database or "")
        return RunRequest(run_key=run.run_id, run_config=RunConfig(ops={"clean": config}))

    return after
