"""Settings → one lineage for each database → Definitions."""

from dagster import AssetChecksDefinition, Definitions, in_process_executor

from backup_dag.core.databases import Database, configured
from backup_dag.core.settings import Settings
from backup_dag.defs.adopting import adopt_backups
from backup_dag.defs.assets import lineage
from backup_dag.defs.bucket import bucket_resource
from backup_dag.defs.checks import checksum_matches, content_verified
from backup_dag.defs.cleaning import cleanup_after_verified, cleanup_job
from backup_dag.defs.drilling import drill_schedule, drill_unproven
from backup_dag.defs.jobs import backup_job, drill_job, verify_job
from backup_dag.defs.missed import missed_backups
from backup_dag.defs.posture import daily_posture, posture_job, recovery_posture
from backup_dag.defs.restoring import restore_job
from backup_dag.defs.schedules import digests, nightly_backup, nightly_verification
from backup_dag.defs.watching import alerts_delivered, digest_job, latest_backup, run_alerts


def code_location(settings: Settings) -> Definitions:
    """Everything Dagster shows. Credentials are found by boto3 where the run is, and are no config."""
    databases = configured(settings)
    backing_up = [backup_job(settings, database) for database in databases]
    verifying = [verify_job(settings, database) for database in databases]
    drilling = [drill_job(database) for database in databases]
    cleanup = cleanup_job(settings, databases)
    return Definitions(
        assets=[
            *(asset for database in databases for asset in lineage(settings, database)),
            recovery_posture(settings, databases),
        ],
        asset_checks=[check for database in databases for check in checks_of(settings, database)],
        jobs=[
            *backing_up,
            *verifying,
            *drilling,
            restore_job(settings),
            cleanup,
            digest_job(settings),
            posture_job(),
        ],
        schedules=[
            *(nightly_backup(settings, database) for database in databases),
            *(nightly_verification(settings, database) for database in databases),
            *(drill_schedule(settings, database) for database in databases),
            digests(settings),
            daily_posture(settings),
        ],
        sensors=[
            missed_backups(settings, databases, backing_up),
            latest_backup(settings, databases),
            *run_alerts(settings, databases),
            adopt_backups(settings, databases),
            drill_unproven(settings, databases, drilling),
            cleanup_after_verified(settings, databases, verifying, cleanup),
        ],
        resources={"s3": bucket_resource(settings)},
        executor=in_process_executor,
    )


def checks_of(settings: Settings, database: Database) -> list[AssetChecksDefinition]:
    """The checks of a database that are steps of their own."""
    return [
        checksum_matches(settings, database),
        content_verified(settings, database),
        alerts_delivered(settings, database),
    ]
