"""Someone is told: of what is wrong with the backups, and of runs that failed, were cancelled, or whose
checks did. What to say, and whether it was said already, is `core.watch`'s business.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetKey,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    JobDefinition,
    MetadataValue,
    OpExecutionContext,
    Output,
    RunStatusSensorContext,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    asset_check,
    in_process_executor,
    job,
    op,
    run_status_sensor,
    sensor,
)

from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.copies import KEEP_THE_OTHER
from backup_dag.core.databases import Database
from backup_dag.core.errors import BackupDagError
from backup_dag.core.manifest import BackupId
from backup_dag.core.settings import Settings
from backup_dag.core.watching import watch
from backup_dag.core.watching.alerts import Alert, Kind, deliver, protection
from backup_dag.defs.checks import ALERTS, CHECKSUM, CONTENT, PROVEN, Verdict
from backup_dag.defs.jobs import DRILLED
from backup_dag.defs.missed import sensor_status
from backup_dag.defs.runs import database_of
from backup_dag.defs.words import Clock, in_dagsters_words, the_time

_MOST_SAID = 5


def latest_backup(
    settings: Settings, databases: Sequence[Database], clock: Clock = the_time
) -> SensorDefinition:
    """Every five minutes: overdue, unverified, damaged, not off-site, out of line, lost nights."""

    @sensor(
        name="latest_backup",
        asset_selection=[AssetKey([each.name, "checksum"]) for each in databases],
        minimum_interval_seconds=300,
        default_status=sensor_status(settings),
        description="Looks at the newest backups; tells once what is wrong, and once that it is well again.",
    )
    def look(context: SensorEvaluationContext) -> SensorResult:
        with in_dagsters_words():
            looked = watch.look(settings, clock())
        for concern in looked.concerns:
            context.log.warning(concern.happened)
        if looked.unkept is not None:
            context.log.error(str(looked.unkept))
        waiting = watch.waiting(settings)
        changed = looked.told or waiting != json.loads(context.cursor or "[]")
        events = [_delivery(each, waiting).evaluation() for each in databases if changed]
        said = f"{len(looked.concerns)} concerns, {len(looked.told)} told now, {len(waiting)} waiting"
        return SensorResult(skip_reason=SkipReason(said), asset_events=events, cursor=json.dumps(waiting))

    return look


def alerts_delivered(settings: Settings, database: Database) -> AssetChecksDefinition:
    """Are there alerts that nobody could be reached with?"""

    @asset_check(
        asset=AssetKey([database.name, "database"]),
        name=ALERTS,
        description="No alert is waiting because nobody could be reached with it.",
    )
    def check(context: AssetCheckExecutionContext) -> AssetCheckResult:
        with in_dagsters_words():
            return _delivery(database, watch.waiting(settings)).result()

    return check


def _delivery(database: Database, undelivered: Sequence[str]) -> Verdict:
    asset = AssetKey([database.name, "database"])
    return Verdict(asset, ALERTS, not undelivered, "; ".join(undelivered) or "nothing is waiting")


def digest_job(settings: Settings) -> JobDefinition:
    """The summary of all databases, to whoever is told of things."""

    @op(description="What there is of each database, and what is wrong.")
    def send_digest(context: OpExecutionContext) -> Output[None]:
        with in_dagsters_words():
            alert = watch.digest(settings, datetime.now(UTC))
            told = deliver(settings, alert)
        return Output(
            None, metadata={"digest": MetadataValue.md(f"```text\n{alert.body}\n```"), "told": list(told)}
        )

    @job(
        name="digest",
        description="Send a summary of all backups to BACKUP_NOTIFY_EMAIL and BACKUP_NOTIFY_URLS.",
        executor_def=in_process_executor,
    )
    def digest() -> None:
        send_digest()

    return digest


def run_alerts(settings: Settings, databases: Sequence[Database]) -> list[SensorDefinition]:
    """One sensor for each way in which a run's end may be bad news."""
    ends = {
        "run_failure": (DagsterRunStatus.FAILURE, "Tells of runs that failed: what, and what to do."),
        "run_cancelled": (DagsterRunStatus.CANCELED, "Tells of runs that someone ended."),
        "failed_checks": (DagsterRunStatus.SUCCESS, "Tells of checks that failed in runs that did not."),
    }
    return [_on(settings, databases, name, status, said) for name, (status, said) in ends.items()]


def _on(
    settings: Settings, databases: Sequence[Database], name: str, status: DagsterRunStatus, said: str
) -> SensorDefinition:
    @run_status_sensor(
        run_status=status,
        name=name,
        description=said,
        minimum_interval_seconds=30,
        default_status=sensor_status(settings),
    )
    def tell(context: RunStatusSensorContext) -> SkipReason:
        run, instance = context.dagster_run, context.instance
        happened, advice = bad_news(settings, instance, run)
        if not happened:
            return SkipReason("all its checks passed, or latest_backup tells of them")
        database = database_of(run, databases)
        alert = Alert(
            _kind(run),
            database,
            happened,
            _ended(instance, run),
            _protection(settings, database),
            advice,
            f"{settings.backup_dagster_url.rstrip('/')}/runs/{run.run_id}",
        )
        with in_dagsters_words():
            undelivered = watch.tell(settings, alert)
        for each in databases:
            instance.report_runless_asset_event(_delivery(each, undelivered).evaluation())
        return SkipReason(f"told: {alert.subject}" if not undelivered else "; ".join(undelivered))

    return tell


def _kind(run: DagsterRun) -> Kind:
    """A drill that broke says nothing of the backup."""
    of_a_drill = DRILLED in run.tags or _is_of_a_drill(run)
    return "drill broke" if of_a_drill and run.status != DagsterRunStatus.SUCCESS else "failed"


def _is_of_a_drill(run: DagsterRun) -> bool:
    return {key.path[-1] for key in run.asset_selection or ()} == {"restore_drill"}


def bad_news(settings: Settings, instance: DagsterInstance, run: DagsterRun) -> tuple[str, str]:
    """What is to be told of a run that has ended, and what to do about it; "" where it went well, or where
    what is wrong is told by `latest_backup`."""
    checks, what = list(_failed_checks(instance, run)), _called(run)
    damage = any(each.check_name in (CHECKSUM, CONTENT, PROVEN) for each in checks)
    if run.status == DagsterRunStatus.SUCCESS:
        said = [_said(each) for each in checks if not _is_recorded(settings, each)][:_MOST_SAID]
        if not said:
            return "", ""
        advice = KEEP_THE_OTHER if damage else "look at the backup named there"
        return f"checks failed in {what}: {'; '.join(said)}", advice
    if run.status == DagsterRunStatus.CANCELED:
        return f"{what} was cancelled", "launch it again, unless that was meant"
    failures = list(_failures(instance, run))[:_MOST_SAID]
    said = [said for said, _ in failures] + [_said(each) for each in checks[:_MOST_SAID]]
    advice = KEEP_THE_OTHER if damage else "see the run's log, and backup-dag doctor"
    advice = next((hint for _, hint in failures if hint), advice)
    return f"{what} failed: {'; '.join(said) or 'it ended without saying why'}", advice


def _called(run: DagsterRun) -> str:
    """A run by its job, and its day; one of assets that were chosen by hand, or by a backfill, has no job."""
    day = run.tags.get("dagster/partition")
    job = "chosen assets" if run.job_name.startswith("__") else run.job_name
    return f"a run of {job}" + (f" for {day}" if day else "")


def _failures(instance: DagsterInstance, run: DagsterRun) -> Iterator[tuple[str, str]]:
    """Of each step that failed, which, why, and what to do. Of what is not ours the kind of error alone:
    what it says may hold anything."""
    for entry in instance.all_logs(run.run_id, of_type=DagsterEventType.STEP_FAILURE):
        failure = entry.get_dagster_event().step_failure_data
        ours = failure.user_failure_data
        if ours is not None:
            said, _, hint = (ours.description or "").partition("\n  → ")
            yield f"{entry.step_key}: {said}", hint
        elif failure.error is not None:
            kind = failure.error.cause.cls_name if failure.error.cause else failure.error.cls_name
            yield f"{entry.step_key}: {kind}", ""


def _failed_checks(instance: DagsterInstance, run: DagsterRun) -> Iterator[AssetCheckEvaluation]:
    """Those that are errors. A warning is to be seen, and of sizes `core.watch` tells; that alerts do not
    arrive cannot be told by one."""
    for entry in instance.all_logs(run.run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION):
        found: Any = entry.get_dagster_event().asset_check_evaluation_data
        if not found.passed and found.severity == AssetCheckSeverity.ERROR and found.check_name != ALERTS:
            yield found


def _said(check: AssetCheckEvaluation) -> str:
    return f"{check.check_name} of {check.asset_key.to_user_string()}: {check.description or 'failed'}"


def _is_recorded(settings: Settings, check: AssetCheckEvaluation) -> bool:
    """Whether it stands beside the copy that it is about, or in this host's history: then it is found there,
    and told by that."""
    named = check.metadata.get("backup")
    backup = BackupId.parse(str(named.value)) if named else None
    if check.asset_key.path[-1] == "restore_drill":  # all of what a drill finds is recorded on this host
        return True
    if check.check_name not in (CHECKSUM, CONTENT) or backup is None:
        return False
    labels = {"s3_copy": ("s3",), "checksum": ("local",)}.get(check.asset_key.path[-1], ("s3", "local"))
    try:
        copies = Catalog(open_stores(settings)).load(backup).copies
    except BackupDagError:
        return False
    return any(each.store.label in labels and each.verdict and not each.verdict.passed for each in copies)


def _protection(settings: Settings, database: str | None) -> str:
    if database is None:
        return ""
    return protection(Catalog(open_stores(settings)), database, datetime.now(UTC))


def _ended(instance: DagsterInstance, run: DagsterRun) -> datetime:
    record = instance.get_run_record_by_id(run.run_id)
    ended = record.end_time if record else None
    return datetime.fromtimestamp(ended, UTC) if ended else datetime.now(UTC)
