"""What can be launched: for each database its backup, the verification of its latest one, and a drill."""

from typing import TYPE_CHECKING, TypeAlias

from dagster import AssetKey, AssetSelection, define_asset_job, in_process_executor

from backup_dag.core.databases import Database
from backup_dag.core.settings import Settings
from backup_dag.defs.checks import alerts_key, content_verified_key

if TYPE_CHECKING:  # not among Dagster's public names
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

POSTURE = AssetKey("recovery_posture")
"""The page about all databases: of no database's group, whatever that is called."""

AssetJob: TypeAlias = "UnresolvedAssetJobDefinition"


DRILLED = "backup_dag/drill"
"""The tag of a drill's run, of which one runs at a time: which backup was asked for."""


def backup_job(settings: Settings, database: Database) -> AssetJob:
    """The whole lineage of one day. Its content is verified by a job of its own, an hour later."""
    later = AssetSelection.checks(content_verified_key(settings, database), alerts_key(database))
    apart = drilled_assets(database) | AssetSelection.assets(POSTURE)
    return define_asset_job(
        backup_job_name(database),
        selection=AssetSelection.groups(database.name) - apart - later,
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


def drill_job(database: Database) -> AssetJob:
    """The backup of a day, restored and compared."""
    return define_asset_job(
        drill_job_name(database),
        selection=drilled_assets(database),
        description=f"Restore a backup of {database.name} into a throw-away PostgreSQL; compare every row.",
        executor_def=in_process_executor,
        tags={DRILLED: "by hand"},
    )


def drilled_assets(database: Database) -> AssetSelection:
    return AssetSelection.assets([database.name, "restore_drill"])


def drill_job_name(database: Database) -> str:
    return f"{database.name}_drill"


def backup_job_name(database: Database) -> str:
    return f"{database.name}_backup"


def verify_job_name(database: Database) -> str:
    return f"{database.name}_verify"
