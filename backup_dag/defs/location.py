"""Settings → one lineage for each database → Definitions."""

from dagster import Definitions, in_process_executor
from dagster_aws.s3 import S3Resource

from backup_dag.core.databases import configured
from backup_dag.core.settings import Settings
from backup_dag.defs.assets import lineage
from backup_dag.defs.jobs import backup_job
from backup_dag.defs.restoring import restore_job


def code_location(settings: Settings) -> Definitions:
    """Everything Dagster shows. Credentials are found by boto3 where the run is, and are no config."""
    databases = configured(settings)
    return Definitions(
        assets=[asset for database in databases for asset in lineage(settings, database)],
        jobs=[*(backup_job(database) for database in databases), restore_job(settings)],
        resources={
            "s3": S3Resource(
                region_name=settings.aws_default_region, endpoint_url=settings.aws_endpoint_url_s3
            )
        },
        executor=in_process_executor,
    )
