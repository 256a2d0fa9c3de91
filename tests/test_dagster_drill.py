"""Drills in Dagster: what a run shows of each outcome, who is told, and what is asked for by itself."""

from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, DagsterInstance, DagsterRunStatus, ExecuteInProcessResult
from pydantic import SecretStr

from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.manifest import Manifest
from backup_dag.core.settings import Settings
from backup_dag.core.verify import made_check, record
from backup_dag.core.watching.concern import Concern
from backup_dag.core.watching.concerns import concerns
from backup_dag.defs.drilling import drill_unproven
from backup_dag.defs.jobs import DRILLED, drill_job
from backup_dag.defs.location import code_location
from backup_dag.defs.watching import bad_news
from demo.servers import S3Server
from tests.nights import at, fill, made, of_shop
from tests.test_dagster_nights import Ticking, instance, ticks

__all__ = ["instance"]  # a fixture


@pytest.fixture
def shop(settings: Settings, sample: str, bucket: str, tmp_path: Path) -> Settings:
    """A user of the sample database, with a bucket and a question of their own."""
    checks = tmp_path / "drills"
    checks.mkdir()
    (checks / "there_are_orders.sql").write_text("-- must return rows\nSELECT FROM shop.orders\n")
    return settings.model_copy(
        update={
            "database_url": SecretStr(sample),
            "backup_config": Path("/dev/null"),
            "aws_s3_bucket": bucket,
            "backup_drill_checks": checks,
        }
    )


def run(ours: Settings, instance: DagsterInstance, job: str, **config: Any) -> ExecuteInProcessResult:
    repository = code_location(ours).get_repository_def()
    return repository.get_job(job).execute_in_process(
        instance=instance, partition_key=f"{datetime.now(UTC):%Y-%m-%d}", raise_on_error=False, **config
    )


def checks_of(result: ExecuteInProcessResult) -> dict[str, tuple[bool, str]]:
    return {
        each.check_name: (each.passed, each.description or "")
        for each in result.get_asset_check_evaluations()
        if each.asset_key.path[-1] == "restore_drill"
    }


def metadata_of(result: ExecuteInProcessResult) -> dict[str, Any]:
    [made] = result.asset_materializations_for_node("sample__restore_drill")
    return {name: each.value for name, each in made.metadata.items()}


def newest(ours: Settings) -> Manifest:
    return Catalog(open_stores(ours)).latest("sample").manifest


@pytest.fixture
def backed(shop: Settings, instance: DagsterInstance) -> Settings:
    assert run(shop, instance, "sample_backup").success
    return shop


def test_the_backups_job_does_not_drill(backed: Settings, instance: DagsterInstance) -> None:
    assert instance.get_latest_materialization_event(AssetKey(["sample", "s3_copy"])) is not None
    assert instance.get_latest_materialization_event(AssetKey(["sample", "restore_drill"])) is None


def test_a_drill_shows_what_it_proved_and_how_long_each_step_took(
    backed: Settings, instance: DagsterInstance
) -> None:
    result = run(backed, instance, "sample_drill")
    assert result.success
    said = metadata_of(result)
    assert said["outcome"] == "proven"
    assert said["backup"] == newest(backed).backup
    assert said["copy"].startswith("s3://")
    steps = [said[f"{step}_seconds"] for step in ("fetch", "verify", "decrypt", "load", "index", "prove")]
    assert said["recovery_seconds"] == pytest.approx(sum(steps), abs=0.01)
    assert min(steps) >= 0 < said["recovery_seconds"]
    assert said["rows"] == newest(backed).content.rows
    found = checks_of(result)
    assert found.keys() == {"restore_proven", "rto_met", "rpo_met", "there_are_orders"}
    assert all(passed for passed, _ in found.values()), found
    assert Catalog(open_stores(backed)).latest_proven("sample").id == newest(backed).id


def test_one_that_is_not_proven_fails_its_check_and_marks_the_copy_that_it_was(
    backed: Settings, instance: DagsterInstance, s3: S3Server
) -> None:
    local, bucket = open_stores(backed)
    name, client = newest(backed).artifact.name, s3.client()
    whole = client.get_object(Bucket=backed.aws_s3_bucket, Key=name)["Body"].read()
    broken = whole[:-100] + bytes(byte ^ 1 for byte in whole[-100:])
    client.put_object(Bucket=backed.aws_s3_bucket, Key=name, Body=broken)
    result = run(backed, instance, "sample_drill")
    assert result.success  # the drill came to its end: what failed is the backup
    assert metadata_of(result)["outcome"] == "NOT PROVEN"
    passed, said = checks_of(result)["restore_proven"]
    assert not passed
    assert name in said
    assert not checks_of(result)["rto_met"][0]
    backup = Catalog([local, bucket]).latest("sample")
    assert {copy.store.label: copy.good for copy in backup.copies} == {"local": True, "s3": False}
    happened, _ = bad_news(backed, instance, result.dagster_run)
    assert happened == "", "latest_backup tells of it, by what is recorded beside the copy"


def test_a_drill_that_broke_is_a_failed_run_and_says_nothing_of_the_backup(
    backed: Settings, instance: DagsterInstance, tmp_path: Path
) -> None:
    ours = backed.model_copy(
        update={"backup_scratch_url": SecretStr("postgresql://nobody@127.0.0.1:1/postgres")}
    )
    result = run(ours, instance, "sample_drill")
    assert not result.success
    happened, advice = bad_news(ours, instance, result.dagster_run)
    assert "broke, which says nothing of the backup" in happened
    assert advice
    backup = Catalog(open_stores(ours)).latest("sample")
    assert all(
        (copy.good and copy.verification is None) or copy.store.label == "local" for copy in backup.copies
    )
    assert not backup.proven


def concerns_of(settings: Settings) -> list[Concern]:
    """What the sensor latest_backup sees now."""
    return list(concerns(settings, Catalog(open_stores(settings)), "sample", datetime.now(UTC)))


def test_an_own_question_that_fails_is_a_failed_check_of_a_proven_backup(
    backed: Settings, instance: DagsterInstance
) -> None:
    (backed.backup_drill_checks / "no_orders.sql").write_text(
        "-- must return no rows\nSELECT FROM shop.orders\n"
    )
    result = run(backed, instance, "sample_drill")
    found = checks_of(result)
    assert found["restore_proven"][0]
    assert found["there_are_orders"][0]
    assert not found["no_orders"][0]
    assert bad_news(backed, instance, result.dagster_run) == ("", ""), "latest_backup tells of it, and once"
    told = [concern for concern in concerns_of(backed) if concern.kind == "own check"]
    assert [concern.about for concern in told] == ["no_orders"]


def test_a_question_that_is_none_breaks_the_drill_and_nothing_else(
    backed: Settings, instance: DagsterInstance
) -> None:
    (backed.backup_drill_checks / "vague.sql").write_text("SELECT 1\n")
    assert run(backed, instance, "sample_backup").success
    result = run(backed, instance, "sample_drill")
    assert not result.success
    assert "does not say what it must return" in bad_news(backed, instance, result.dagster_run)[0]


def test_an_older_backup_is_drilled_by_its_id(backed: Settings, instance: DagsterInstance) -> None:
    first = newest(backed).backup
    assert run(backed, instance, "sample_backup").success
    assert newest(backed).backup != first
    config = {"ops": {"sample__restore_drill": {"config": {"backup": first}}}}
    assert metadata_of(run(backed, instance, "sample_drill", run_config=config))["backup"] == first


# what is asked for by itself


@pytest.mark.parametrize(
    ("every", "days"),
    [("monthly", ["05-01", "06-01"]), ("weekly", ["04-27", "05-04", "05-11", "05-18", "05-25", "06-01"])],
)
def test_the_schedule_drills_the_latest_backup_as_often_as_it_is_told(
    settings: Settings, tmp_path: Path, every: str, days: list[str]
) -> None:
    ours = of_shop(settings).model_copy(update={"backup_drill": every, "backup_drill_time": time(5, 30)})
    ours.backup_dir.mkdir()
    fill(open_stores(ours), tmp_path / "work", [made(at(-11)), made(at(-10))])
    repository = code_location(ours).get_repository_def()
    schedule = repository.get_schedule_def("shop_drill_schedule")
    found = ticks(schedule, repository, datetime(2025, 4, 25, tzinfo=UTC), 40)
    assert [f"{moment:%m-%d}" for moment, _ in found] == days
    assert {f"{moment:%H:%M}" for moment, _ in found} == {"05:30"}
    assert {request.partition_key for _, request in found} == {"2025-04-20"}
    assert {request.tags[DRILLED] for _, request in found} == {made(at(-10)).backup}


class Clock:
    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def unproven_sensor(ours: Settings, clock: Clock, instance: DagsterInstance) -> Ticking:
    from backup_dag.core.databases import configured

    databases = configured(ours)
    sensor = drill_unproven(ours, databases, [drill_job(each) for each in databases], clock)
    return Ticking(sensor, code_location(ours), instance)


def test_what_was_never_proven_is_worked_off_one_at_a_time_in_quiet_hours(
    settings: Settings, tmp_path: Path, instance: DagsterInstance
) -> None:
    ours = of_shop(settings)
    ours.backup_dir.mkdir()
    three = [made(at(2)), made(at(3)), made(at(4))]
    fill(open_stores(ours), tmp_path / "work", three)
    clock = Clock(at(5, 3.9))
    sensor = unproven_sensor(ours, clock, instance)
    assert sensor.tick() == []
    assert "04:00 to 07:00" in sensor.skipped
    clock.now = at(5, 4)
    assert [each.tags[DRILLED] for each in sensor.tick()] == [three[2].backup]
    [store] = open_stores(ours)
    record(store, three[2], made_check("restore", 1.0, []))
    record(
        store, three[1], made_check("restore", 1.0, ["a row is missing"])
    )  # tried, and not again by itself
    assert [each.tags[DRILLED] for each in sensor.tick()] == [three[0].backup]
    for _ in range(2):  # two that broke
        instance.create_run_for_job(
            code_location(ours).get_repository_def().get_job("shop_drill"),
            tags={DRILLED: three[0].backup},
            status=DagsterRunStatus.FAILURE,
        )
    assert sensor.tick() == []
    assert "no retained backup is left" in sensor.skipped


def test_it_waits_while_anything_else_runs(
    settings: Settings, tmp_path: Path, instance: DagsterInstance
) -> None:
    ours = of_shop(settings)
    ours.backup_dir.mkdir()
    fill(open_stores(ours), tmp_path / "work", [made(at(2))])
    now = datetime.now(UTC)
    around = (now.time(), (now + timedelta(hours=1)).time())
    ours = ours.model_copy(update={"backup_quiet_hours": around})
    sensor = unproven_sensor(ours, Clock(now + timedelta(minutes=1)), instance)
    job = code_location(ours).get_repository_def().get_job("shop_backup")
    under_way = instance.create_run_for_job(job, status=DagsterRunStatus.STARTED)
    assert sensor.tick() == []
    assert "a run is under way" in sensor.skipped
    instance.report_run_failed(under_way)
    assert len(sensor.tick()) == 1
