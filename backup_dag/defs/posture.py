"""Where one stands, of all databases: one page a day, with its picture, and numbers that Dagster plots."""

import base64
from collections.abc import Sequence
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    AssetSelection,
    MaterializeResult,
    MetadataValue,
    ScheduleDefinition,
    asset,
    define_asset_job,
    in_process_executor,
)

from backup_dag.core.databases import Database
from backup_dag.core.settings import Settings
from backup_dag.core.watching.page import markdown
from backup_dag.core.watching.picture import png
from backup_dag.core.watching.posture import DatabasePosture, Posture
from backup_dag.core.watching.stocktaking import take_stock
from backup_dag.defs.jobs import POSTURE, AssetJob
from backup_dag.defs.schedules import status
from backup_dag.defs.words import Clock, in_dagsters_words, the_time

_JOB = "posture"
_AT = "0 8 * * *"  # after the night and its verification
_MOST_PLOTTED = 60  # databases; the document has them all


def upstream(databases: Sequence[Database]) -> list[AssetKey]:
    """What comes last of each database; the page tells of all that is before it too."""
    return [AssetKey([each.name, "restore_drill"]) for each in databases]


def recovery_posture(
    settings: Settings, databases: Sequence[Database], clock: Clock = the_time
) -> AssetsDefinition:
    """The page. A store that did not answer makes parts of it unknown, and is no failure."""

    @asset(
        key=POSTURE,
        deps=upstream(databases),
        group_name="recovery",
        description="Where you stand: newest good and proven backups, RPO, RTO, 3-2-1, proof, missing days,"
        " encryption and locks of every database. The page is in the metadata.",
        kinds={"markdown"},
        owners=[settings.backup_owner],
    )
    def page(context: AssetExecutionContext) -> MaterializeResult[None]:
        with in_dagsters_words():
            found, missed = take_stock(settings, clock())
        for error in missed:
            context.log.warning(str(error))
        return MaterializeResult(metadata=_said_of(found))

    return page


def _said_of(found: Posture) -> dict[str, Any]:
    picture = base64.b64encode(png(found)).decode()
    numbers: dict[str, Any] = {}
    for each in found.databases[:_MOST_PLOTTED]:
        numbers |= {f"{each.database}_{name}": value for name, value in _numbers(each).items()}
    return {
        "page": MetadataValue.md(markdown(found, f"data:image/png;base64,{picture}")),
        **numbers,
        "as_json": MetadataValue.json(found.model_dump(mode="json")),
    }


def _numbers(of: DatabasePosture) -> dict[str, float | int]:
    """What is known, and no other: a gap in a plot says so, and a zero would not."""
    good, proven, last = of.newest_good, of.newest_proven, of.last_recovery
    said = {
        "newest_good_age_hours": round(good.age_seconds / 3600, 2) if good else None,
        "newest_proven_age_hours": round(proven.age_seconds / 3600, 2) if proven else None,
        "recovery_seconds": last.seconds if last else None,
        "proven_percent": of.proven_percent,
        "days_missing": len(of.days_missing) if of.days_missing is not None else None,
    }
    return {name: value for name, value in said.items() if value is not None}


def posture_job() -> AssetJob:
    return define_asset_job(
        _JOB,
        selection=AssetSelection.assets(POSTURE),
        description="Say where you stand with the backups of all databases, on one page.",
        executor_def=in_process_executor,
    )


def daily_posture(settings: Settings) -> ScheduleDefinition:
    """At eight, with or without a digest."""
    return ScheduleDefinition(
        name="daily_posture",
        job_name=_JOB,
        cron_schedule=_AT,
        execution_timezone=settings.backup_timezone,
        default_status=status(settings),
        description=f"Say where you stand, every day at 08:00 ({settings.backup_timezone}).",
    )
