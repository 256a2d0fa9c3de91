"""What can be launched: for each database its backup and the verification of its latest one."""

from typing import TYPE_CHECKING, TypeAlias

from dagster import AssetSelection, define_asset_job, in_process_executor

from backup_dag.core.databases import Database
from backup_dag.core.settings import Settings
from backup_dag.defs.checks import alerts_key, content_verified_key

if TYPE_CHECKING:  # not among Dagster's public names
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

AssetJob: TypeAlias = "UnresolvedAssetJobDefinition"


def backup_job(settings: Settings, database: Database) -> AssetJob:
    """The whole lineage of one day. Its content is verified by a job of its own, an hour later."""
    later = AssetSelection.checks(content_verified_key(settings, database), alerts_key(database))
    return define_asset_job(
        backup_job_name(database),
        selection=AssetSelection.groups(database.name) - later,
        description=f"Back up {database.name}, and copy the backup to the bucket where one is set.",
        executor_def=in_process_executor,
    )


def verify_job(settings: Settings, database: Database) -> AssetJob:
    """The latest backup, read to its end, off-site where there is a bucket."""
    return define_asset_job(
        verify_job_name(database),
        selection=AssetSelection.checks(content_verified_key(settings, database), alerts_key(database)),
        description=f"Read the latest backup of {database.name} to its end, and compare every digest.",
        executor_def=in_process_executor,
    )


def backup_job_name(database: Database) -> str:
    return f"{database.name}_backup"


def verify_job_name(database: Database) -> str:
    return f"{database.name}_verify"
