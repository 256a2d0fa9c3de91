"""The lineage of one database: what a backup passes on its way, one partition a day.

The first four assets come from one pass over the database, so they are made together or not at all;
the off-site copy is a step of its own, and can be retried and backfilled without a new dump.
"""

import time
from collections.abc import Iterator, Sequence
from datetime import date

from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetKey,
    AssetObservation,
    AssetsDefinition,
    AssetSpec,
    Config,
    DailyPartitionsDefinition,
    DataVersion,
    FreshnessPolicy,
    MaterializeResult,
    asset,
    multi_asset,
)
from dagster_aws.s3 import S3Resource
from pydantic import Field

from backup_dag.core.backup import order_for, take_backup
from backup_dag.core.catalog import Catalog
from backup_dag.core.copies import Copy
from backup_dag.core.databases import Database
from backup_dag.core.manifest import Manifest
from backup_dag.core.nights import SLACK
from backup_dag.core.offsite import Copied, copy_offsite
from backup_dag.core.settings import Settings
from backup_dag.core.store.local import LocalStore
from backup_dag.core.store.s3 import S3Store, client_from
from backup_dag.core.watching.usual import nights_before
from backup_dag.defs import checks, metadata
from backup_dag.defs.drilling import restore_drill
from backup_dag.defs.words import in_dagsters_words, patiently, progress

MISSED = "backup_dag/missed"
"""The tag of runs that the sensor asks for, of nights that no schedule's run made a backup for."""


class BackupConfig(Config):
    """What a backup is launched with."""

    allow_late_capture: bool = Field(
        default=False,
        description="Back up a day that is long past: it will hold the state of now, and say so (late).",
    )


def freshness(settings: Settings) -> FreshnessPolicy:
    """The badge alone: it looks at the asset, so a backfill of an old day turns it green. Alerts do not."""
    return FreshnessPolicy.time_window(fail_window=settings.backup_rpo + SLACK)


def lineage(settings: Settings, database: Database) -> list[AssetsDefinition | AssetSpec]:
    """The assets of one database, upstream first."""
    days = DailyPartitionsDefinition(
        start_date=settings.backup_start_date.isoformat(), timezone=settings.backup_timezone, end_offset=1
    )
    copy = [s3_copy(settings, database, days)] if settings.aws_s3_bucket else []
    drill = restore_drill(settings, database, days)
    return [source(settings, database), backup(settings, database, days), *copy, drill]


def source(settings: Settings, database: Database) -> AssetSpec:
    """The database itself, which is not ours to make."""
    return AssetSpec(
        AssetKey([database.name, "database"]),
        description=f"The PostgreSQL database that is backed up: {database.address}.",
        group_name=database.name,
        kinds={"postgres"},
        owners=[settings.backup_owner],
    )


def backup(settings: Settings, database: Database, days: DailyPartitionsDefinition) -> AssetsDefinition:
    """raw_dump → compressed_artifact → encrypted_artifact → checksum, in one streaming pass."""

    @multi_asset(
        name=f"{database.name}_back_up",
        specs=_specs(settings, database, days),
        check_specs=checks.specs_of_the_dump(database),
        can_subset=False,
        description="One pass: pg_dump → gzip → gpg → SHA-256. Plain text never touches the disk.",
    )
    def back_up(
        context: AssetExecutionContext, config: BackupConfig
    ) -> Iterator[MaterializeResult[None] | AssetCheckResult]:
        scheduled = not {"dagster/schedule_name", MISSED}.isdisjoint(context.run.tags)
        day = date.fromisoformat(context.partition_key)
        with in_dagsters_words():
            order = order_for(
                database, settings, day, scheduled=scheduled, allow_late=config.allow_late_capture
            )
            made = take_backup(settings, order, progress(context, "dumped"))
            before = nights_before(Catalog([LocalStore(settings.backup_dir)]), made)
        for warning in made.warnings:
            context.log.warning(warning)
        context.log_event(
            AssetObservation(AssetKey([database.name, "database"]), metadata=metadata.of_database(made))
        )
        for name, (version, values) in said_of(made, settings).items():
            yield MaterializeResult(
                asset_key=AssetKey([database.name, name]), metadata=values, data_version=version
            )
        for verdict in checks.verdicts_on_the_dump(settings, made, before):
            yield verdict.result()

    return back_up


def _specs(settings: Settings, database: Database, days: DailyPartitionsDefinition) -> list[AssetSpec]:
    off_site = "" if settings.aws_s3_bucket else " There is NO off-site copy: AWS_S3_BUCKET is not set."
    encrypted = "The artifact: the compressed dump, AES256-encrypted by gpg."
    if settings.backup_encryption == "off":
        encrypted = "NOT ENCRYPTED: BACKUP_ENCRYPTION=off. The artifact is the compressed dump as it is."
    described = {
        "raw_dump": ("postgres", "pg_dump's text at one snapshot, read while it streams; never on a disk."),
        "compressed_artifact": ("gzip", "The dump, compressed by gzip; never on a disk by itself."),
        "encrypted_artifact": ("gpg", encrypted),
        "checksum": ("sha256", f"The SHA-256 that `sha256sum -c` checks, and the manifest.{off_site}"),
    }
    upstream = ["database", *described]
    return [
        AssetSpec(
            AssetKey([database.name, name]),
            deps=[AssetKey([database.name, before])],
            description=text,
            group_name=database.name,
            kinds={kind},
            owners=[settings.backup_owner],
            partitions_def=days,
            freshness_policy=freshness(settings) if name == "checksum" else None,
        )
        for before, (name, (kind, text)) in zip(upstream, described.items(), strict=False)
    ]


def said_of(made: Manifest, settings: Settings) -> dict[str, tuple[DataVersion, metadata.Values]]:
    """What each of the first four assets is of a backup: its version, and its metadata."""
    content, artifact = DataVersion(made.content.sha256), DataVersion(made.artifact.sha256)
    return {
        "raw_dump": (content, metadata.of_dump(made)),
        "compressed_artifact": (content, metadata.of_compressed(made)),
        "encrypted_artifact": (artifact, metadata.of_encrypted(made, settings.backup_dir)),
        "checksum": (artifact, metadata.of_checksum(made, settings.backup_dir)),
    }


def s3_copy(settings: Settings, database: Database, days: DailyPartitionsDefinition) -> AssetsDefinition:
    """The day's backup in the bucket, uploaded from the local store and read back there."""

    @asset(
        key=AssetKey([database.name, "s3_copy"]),
        deps=[AssetKey([database.name, "checksum"])],
        description="The backup in the bucket, its checksum read back. Needs the local copy only.",
        group_name=database.name,
        kinds={"s3"},
        owners=[settings.backup_owner],
        partitions_def=days,
        freshness_policy=freshness(settings),
        check_specs=[
            AssetCheckSpec(
                checks.COPY,
                asset=AssetKey([database.name, "s3_copy"]),
                description="The bucket holds every file of it, of the size promised, and the same manifest.",
            )
        ],
    )
    def copy(context: AssetExecutionContext, s3: S3Resource) -> MaterializeResult:  # type: ignore[type-arg]  # Dagster knows it by this name alone
        began, day = time.monotonic(), date.fromisoformat(context.partition_key)
        local, seen = LocalStore(settings.backup_dir), progress(context, "uploaded")

        def copied() -> tuple[Copied, Sequence[Copy]]:
            bucket = S3Store(client_from(s3.get_client), settings)
            newest, *_ = copy_offsite(local, bucket, database.name, day, seen)
            return newest, Catalog([bucket]).load(newest.manifest.id).copies

        times, seconds = settings.backup_s3_retries, settings.backup_s3_retry_seconds
        with in_dagsters_words():
            newest, copies = patiently(context, times, seconds, copied)
        return MaterializeResult(
            metadata=metadata.of_copy(newest, time.monotonic() - began),
            data_version=DataVersion(newest.manifest.artifact.sha256),
            check_results=[checks.verdict_on_the_copy(newest.manifest, next(iter(copies), None)).result()],
        )

    return copy
