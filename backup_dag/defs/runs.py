"""Which runs of Dagster's are about which database, and which of them are under way."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunRecord, RunsFilter

from backup_dag.core.databases import Database
from backup_dag.defs.jobs import backup_job_name, drill_job_name, verify_job_name

_LONGEST = timedelta(hours=6)
_MOST = 200
_UNDER_WAY = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


def under_way(instance: DagsterInstance, now: datetime, day: str | None = None) -> Iterator[DagsterRun]:
    """Runs (of a partition) that have not ended. One that is older than a run ever is has lost its process,
    with the host it was on; nobody tells Dagster, and nothing may wait for it."""
    tags = {"dagster/partition": day} if day else {}
    wanted = RunsFilter(statuses=_UNDER_WAY, tags=tags, created_after=now - _LONGEST)
    for record in instance.get_run_records(wanted, limit=_MOST):
        yield record.dagster_run


def backs_up(run: DagsterRun, database: Database) -> bool:
    """Whether it makes a backup of that database, or copies one."""
    touched = {key.path[0] for key in run.asset_selection or ()}
    return run.job_name == backup_job_name(database) or database.name in touched


def of_backups(instance: DagsterInstance, database: Database, day: str) -> Sequence[RunRecord]:
    """The runs of a database's backup job for a day."""
    wanted = RunsFilter(job_name=backup_job_name(database), tags={"dagster/partition": day})
    return instance.get_run_records(wanted, limit=_MOST)


def tagged(instance: DagsterInstance, tag: str, value: str) -> Sequence[RunRecord]:
    """The runs that bear a tag of that value."""
    return instance.get_run_records(RunsFilter(tags={tag: value}), limit=_MOST)


def database_of(run: DagsterRun, databases: Sequence[Database]) -> str | None:
    """The database that a run was about: by its assets, else by its job's name. None where neither tells."""
    touched = {key.path[0] for key in run.asset_selection or ()}
    touched |= {key.asset_key.path[0] for key in run.asset_check_selection or ()}
    for database in databases:
        jobs = (backup_job_name(database), verify_job_name(database), drill_job_name(database))
        if touched == {database.name} or run.job_name in jobs:
            return database.name
    return None
