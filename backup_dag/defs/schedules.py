"""What runs at night by itself: the backup of each database, and the verification of its latest one.

A schedule never makes up for a tick that was missed while the daemon was down; `missed_backups` does.
"""

from datetime import time

from dagster import (
    DefaultScheduleStatus,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    schedule,
)

from backup_dag.core.databases import Database
from backup_dag.core.nights import today
from backup_dag.core.settings import Settings
from backup_dag.defs.jobs import backup_job_name, verify_job_name


def nightly_backup(settings: Settings, database: Database) -> ScheduleDefinition:
    """At BACKUP_TIME, the day that the tick falls on. Two ticks of one day ask for one run."""

    @schedule(
        name=f"{database.name}_nightly_backup",
        job_name=backup_job_name(database),
        cron_schedule=daily_at(settings.backup_time),
        execution_timezone=settings.backup_timezone,
        default_status=status(settings),
        description=f"Back up {database.name} at {settings.backup_time:%H:%M} ({settings.backup_timezone}).",
    )
    def nightly(context: ScheduleEvaluationContext) -> RunRequest:
        day = str(today(settings, context.scheduled_execution_time))
        return RunRequest(run_key=day, partition_key=day)

    return nightly


def nightly_verification(settings: Settings, database: Database) -> ScheduleDefinition:
    """At BACKUP_VERIFY_TIME."""

    @schedule(
        name=f"{database.name}_nightly_verification",
        job_name=verify_job_name(database),
        cron_schedule=daily_at(settings.backup_verify_time),
        execution_timezone=settings.backup_timezone,
        default_status=status(settings),
        description=f"Read the latest backup of {database.name} to its end at"
        f" {settings.backup_verify_time:%H:%M} ({settings.backup_timezone}).",
    )
    def nightly(context: ScheduleEvaluationContext) -> RunRequest:
        return RunRequest(run_key=str(today(settings, context.scheduled_execution_time)))

    return nightly


def digests(settings: Settings) -> ScheduleDefinition:
    """The summary at eight: every day, or on Mondays, or never by itself."""
    weekly = settings.backup_digest == "weekly"
    running = settings.backup_digest != "off" and settings.backup_schedules == "on"
    return ScheduleDefinition(
        name="digest_schedule",
        job_name="digest",
        cron_schedule="0 8 * * 1" if weekly else "0 8 * * *",
        execution_timezone=settings.backup_timezone,
        default_status=DefaultScheduleStatus.RUNNING if running else DefaultScheduleStatus.STOPPED,
        description="Send a summary of all backups (BACKUP_DIGEST).",
    )


def daily_at(moment: time) -> str:
    """A time of day in cron's words."""
    return f"{moment.minute} {moment.hour} * * *"


def status(settings: Settings) -> DefaultScheduleStatus:
    on = settings.backup_schedules == "on"
    return DefaultScheduleStatus.RUNNING if on else DefaultScheduleStatus.STOPPED
