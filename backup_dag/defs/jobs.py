"""What can be launched: for each database, its backup with the off-site copy."""

from typing import TYPE_CHECKING

from dagster import AssetSelection, define_asset_job, in_process_executor

from backup_dag.core.databases import Database

if TYPE_CHECKING:  # not among Dagster's public names
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


def backup_job(database: Database) -> "UnresolvedAssetJobDefinition":
    """The whole lineage of one day."""
    return define_asset_job(
        f"{database.name}_backup",
        selection=AssetSelection.groups(database.name),
        description=f"Back up {database.name}, and copy the backup to the bucket where one is set.",
        executor_def=in_process_executor,
    )
