"""The nights in Dagster: what is asked for when, what a run's end sets off, and what is made up for."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from apprise import NotifyBase
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetKey,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    Definitions,
    ExecuteInProcessResult,
    Failure,
    RepositoryDefinition,
    RunStatusSensorDefinition,
    ScheduleDefinition,
    SensorDefinition,
    build_schedule_context,
    build_sensor_context,
)
from dagster._utils.schedules import schedule_execution_time_iterator  # what the daemon goes by
from pydantic import SecretStr

import backup_dag.defs.adopting
from backup_dag.core.backup import order_for, take_backup
from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.databases import configured
from backup_dag.core.manifest import BackupId, Manifest
from backup_dag.core.settings import Settings
from backup_dag.core.store.local import LocalStore
from backup_dag.core.store.s3 import S3Store, connect
from backup_dag.core.watching import delivery
from backup_dag.defs import assets
from backup_dag.defs.adopting import adopt_backups
from backup_dag.defs.assets import MISSED
from backup_dag.defs.jobs import backup_job
from backup_dag.defs.location import code_location
from backup_dag.defs.missed import missed_backups, next_attempt
from backup_dag.defs.schedules import nightly_backup, nightly_verification
from backup_dag.defs.watching import bad_news, latest_backup
from demo.servers import S3Server, free_port
from tests.cleaning import checked, ids
from tests.conftest import KEY, Terminal
from tests.gate import Gate
from tests.nights import PASSWORD, at, fill, made, of_shop
from tests.test_alerts import by_urls
from tests.test_dagster import STAGES, backed, days_ago, run, today
from tests.test_dagster_faults import Run
from tests.test_dagster_faults import run as held
from tests.test_watch import address, heard
from tests.web import Web

__all__ = ["backed", "held"]  # fixtures

MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No courtesy between tries: the servers are ours."""
    monkeypatch.setattr(NotifyBase, "request_rate_per_sec", 0)
    monkeypatch.setattr(delivery, "_SECONDS_BETWEEN", 0.02)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[DagsterInstance]:
    """Dagster's records in a folder; sensors want some that last."""
    with new_instance(tmp_path / "dagsters") as made_for_this:
        yield made_for_this


def new_instance(folder: Path) -> DagsterInstance:
    folder.mkdir()
    return DagsterInstance.local_temp(str(folder))


@pytest.fixture
def shop(settings: Settings, web: Web) -> Settings:
    settings.backup_dir.mkdir()
    return by_urls(of_shop(settings), address(web))


@pytest.fixture
def local(shop: Settings) -> LocalStore:
    return LocalStore(shop.backup_dir)


class Ticking:
    """A sensor as the daemon runs it: with its cursor, and its events reported."""

    def __init__(self, sensor: SensorDefinition, defs: Definitions, instance: DagsterInstance) -> None:
        self._sensor, self._instance = sensor, instance
        self._repository = defs.get_repository_def()
        self.cursor: str | None = None
        self.skipped = ""

    def tick(self) -> list[Any]:
        """The runs that it asks for."""
        of_runs = isinstance(self._sensor, RunStatusSensorDefinition)  # ours here are of no repository
        context = build_sensor_context(
            self._instance, self.cursor, repository_def=None if of_runs else self._repository
        )
        data = self._sensor.evaluate_tick(context)
        self.cursor, self.skipped = data.cursor or self.cursor, data.skip_message or ""
        self.events = list(data.asset_events)
        for event in self.events:
            self._instance.report_runless_asset_event(event)
        return list(data.run_requests or [])


def sensor_of(defs: Definitions, name: str, instance: DagsterInstance) -> Ticking:
    return Ticking(defs.get_repository_def().get_sensor_def(name), defs, instance)


def asked(requests: Sequence[Any]) -> list[tuple[str, str]]:
    return [(each.run_key, each.partition_key) for each in requests]


# nights that nobody backed up in


def test_after_three_nights_without_a_daemon_what_can_be_is_asked_for_and_the_rest_is_told_once(
    shop: Settings, web: Web, local: LocalStore, work: Path, instance: DagsterInstance
) -> None:
    """Up again at noon of the 12th: the 10th is past its grace, the 11th late, the 12th still on its day."""
    fill([local], work, [made(at(day)) for day in range(3, 10)])
    now = at(12, 12)
    databases = configured(shop)
    job = backup_job(shop, databases[0])
    defs = code_location(shop)
    missed = Ticking(missed_backups(shop, databases, [job], lambda: now), defs, instance)
    latest = Ticking(latest_backup(shop, databases, lambda: now), defs, instance)
    [request] = missed.tick()
    assert asked([request]) == [("shop:2025-05-11:1", "2025-05-11")]
    assert (request.job_name, request.tags[MISSED]) == ("shop_backup", "1")
    assert asked(missed.tick()) == asked([request]), "the same key, for which Dagster starts one run"
    latest.tick()
    latest.tick()
    assert sorted(heard(web)) == ["shop: a night was MISSED", "shop: backup OVERDUE"]
    assert "no backup for 2025-05-10, and none can be made any more" in str(web.requests)
    fill([local], work, [made(now, day=date(2025, 5, 11), reason="late")])
    now += 5 * MINUTE
    assert asked(missed.tick()) == [("shop:2025-05-12:1", "2025-05-12")]
    fill([local], work, [made(now)])
    now += 5 * MINUTE
    assert missed.tick() == []
    assert missed.skipped == "no night is without a backup that could still be made"
    latest.tick()
    assert heard(web)[2:] == ["shop: RECOVERED"], "that it was overdue; the 10th stays lost"


def test_a_bucket_that_is_away_may_have_yesterdays(
    shop: Settings, local: LocalStore, work: Path, instance: DagsterInstance, bucket: str
) -> None:
    fill([local], work, [made(at(9))])
    url = f"http://127.0.0.1:{free_port()}"
    away = shop.model_copy(update={"aws_s3_bucket": bucket, "aws_endpoint_url_s3": url})
    databases = configured(away)
    sensor = missed_backups(away, databases, [backup_job(away, databases[0])], lambda: at(11, 12))
    assert asked(Ticking(sensor, code_location(away), instance).tick()) == [
        ("shop:2025-05-11:1", "2025-05-11")
    ]


def a_run(
    defs: Definitions, instance: DagsterInstance, tags: Mapping[str, str], how: DagsterRunStatus
) -> DagsterRun:
    """One of the shop's backup job, in that state."""
    job = defs.get_repository_def().get_job("shop_backup")
    created = instance.create_run_for_job(job, tags=dict(tags))
    if how == DagsterRunStatus.FAILURE:
        instance.report_run_failed(created)
    elif how == DagsterRunStatus.CANCELED:
        instance.report_run_canceled(created)
    return created


def test_attempts_are_bounded_apart_and_wait_for_a_run_that_is_under_way(
    shop: Settings, instance: DagsterInstance
) -> None:
    defs, [of_shop] = code_location(shop), configured(shop)
    day = datetime.now(UTC).date() - timedelta(days=1)

    def attempt(later: timedelta) -> tuple[int, str]:
        return next_attempt(shop, instance, of_shop, day, datetime.now(UTC) + later)

    on = {"dagster/partition": str(day)}
    a_run(defs, instance, on, DagsterRunStatus.FAILURE)
    assert attempt(0 * MINUTE) == (1, ""), "the schedule's own run failed; this is the first of ours"
    for number in (1, 2, 3):
        assert attempt(30 * MINUTE * (number - 1) + MINUTE) == (number, "")
        a_run(defs, instance, {**on, MISSED: str(number)}, DagsterRunStatus.FAILURE)
        soon = attempt(30 * MINUTE * number - MINUTE)
        assert soon[0] == 0
        assert f"attempt {number + 1} waits until" in soon[1] or number == 3
    assert attempt(timedelta(hours=5)) == (0, "given up after 3 attempts; launch it yourself")


@pytest.mark.parametrize("day", ["2025-05-11", "2025-05-12"])
def test_nothing_is_asked_for_while_a_run_of_that_database_is_under_way(
    shop: Settings, instance: DagsterInstance, day: str
) -> None:
    """Of whatever day: the lock would refuse it. But not for one whose host went down in the middle."""
    defs, [of_shop] = code_location(shop), configured(shop)
    a_run(defs, instance, {"dagster/partition": day}, DagsterRunStatus.NOT_STARTED)
    now = datetime.now(UTC)
    asking = (shop, instance, of_shop, date(2025, 5, 11))
    assert next_attempt(*asking, now) == (0, "a run is under way")
    assert next_attempt(*asking, now + timedelta(hours=6, minutes=1)) == (1, "")


def test_two_backups_at_once_make_one_and_the_other_is_refused(
    held: Run, settings: Settings, large: str, instance: DagsterInstance
) -> None:
    """A run in a process of its own is in the middle of its dump; ours of the same database comes."""
    ours = settings.model_copy(
        update={
            "database_url": SecretStr(large),
            "backup_config": Path("/dev/null"),
            "backup_dir": held.ours.backups,
        }
    )
    job = code_location(ours).get_repository_def().get_job("large_backup")
    second = job.execute_in_process(instance=instance, partition_key=today(), raise_on_error=False)
    assert not second.success
    assert "another backup of" in failure(second, "large_back_up")
    assert not list(held.ours.backups.glob("backup_*"))
    held.end()
    assert held.process.returncode == 0
    assert len(Catalog([LocalStore(held.ours.backups)]).survey().ids) == 1


def failure(result: ExecuteInProcessResult, step: str) -> str:
    data = result.failure_data_for_node(step)
    assert data is not None
    assert data.user_failure_data is not None
    return str(data.user_failure_data.description)


# schedules


CHANGES = [
    ("Europe/Berlin", date(2025, 3, 30)),
    ("Europe/Berlin", date(2025, 10, 26)),
    ("America/New_York", date(2025, 3, 9)),
    ("America/New_York", date(2025, 11, 2)),
]


def ticks(
    schedule: ScheduleDefinition, repository: RepositoryDefinition, begin: datetime, days: int
) -> list[tuple[datetime, Any]]:
    """The ticks of so many days by the definition's own cron, each with the run that it asks for."""
    found = []
    cron, zone = str(schedule.cron_schedule), schedule.execution_timezone
    for moment in schedule_execution_time_iterator(begin.timestamp(), cron, zone):
        if moment >= begin + timedelta(days=days):
            break
        context = build_schedule_context(scheduled_execution_time=moment, repository_def=repository)
        [request] = schedule.evaluate_tick(context).run_requests or []
        found.append((moment, request))
    return found


@pytest.mark.parametrize(("zone", "change"), CHANGES)
def test_every_day_has_one_tick_whatever_the_clocks_do(shop: Settings, zone: str, change: date) -> None:
    """At an hour that the change leaves out, that it brings twice, and at those around it."""
    repository = code_location(shop.model_copy(update={"backup_timezone": zone})).get_repository_def()
    expected = [str(change + timedelta(days=n)) for n in range(-3, 4)]
    for due in (time(0, 0), time(1, 30), time(2, 0), time(2, 30), time(3, 0)):
        ours = shop.model_copy(update={"backup_timezone": zone, "backup_time": due})
        schedule = nightly_backup(ours, configured(ours)[0])
        begin = datetime.combine(change - timedelta(days=3), time(), ours.zone)
        found = ticks(schedule, repository, begin, 7)
        assert [request.partition_key for _, request in found] == expected, due
        assert [request.run_key for _, request in found] == expected, due
        assert [request.tags["dagster/partition"] for _, request in found] == expected, due


def test_a_change_of_zone_skips_no_day_and_asks_for_none_twice(shop: Settings) -> None:
    """On the 10th at noon, from New York to Berlin. Dagster starts one run of a schedule for a key."""
    keys = []
    for zone, begin, days in (("America/New_York", at(8, 0), 3), ("Europe/Berlin", at(10, 16), 3)):
        ours = shop.model_copy(update={"backup_timezone": zone})
        schedule = nightly_backup(ours, configured(ours)[0])
        found = ticks(schedule, code_location(ours).get_repository_def(), begin, days)
        keys += [request.run_key for _, request in found]
    assert sorted(set(keys)) == [f"2025-05-{day:02}" for day in range(8, 14)]


def test_the_verification_is_at_its_own_hour_and_once_a_day(shop: Settings) -> None:
    ours = shop.model_copy(update={"backup_verify_time": time(22, 15)})
    schedule = nightly_verification(ours, configured(ours)[0])
    found = ticks(schedule, code_location(ours).get_repository_def(), at(9, 0), 2)
    assert [(f"{moment:%H:%M}", request.run_key) for moment, request in found] == [
        ("22:15", "2025-05-09"),
        ("22:15", "2025-05-10"),
    ]


@pytest.mark.parametrize("schedules", ["on", "off"])
def test_everything_that_runs_by_itself_is_on_or_off_together(shop: Settings, schedules: str) -> None:
    all_on = {"backup_digest": "daily", "backup_drill_unproven": "on"}
    ours = shop.model_copy(update={"backup_schedules": schedules, **all_on})
    repository = code_location(ours).get_repository_def()
    sensors = {each.name: each.default_status for each in repository.sensor_defs}
    running = schedules == "on"
    assert len(sensors) == 8
    assert set(sensors.values()) == {DefaultSensorStatus.RUNNING if running else DefaultSensorStatus.STOPPED}
    assert {each.default_status for each in repository.schedule_defs} == {
        DefaultScheduleStatus.RUNNING if running else DefaultScheduleStatus.STOPPED
    }


def test_a_digest_is_sent_only_where_one_is_wanted(shop: Settings) -> None:
    crons = {}
    for wish in ("off", "daily", "weekly"):
        repository = code_location(shop.model_copy(update={"backup_digest": wish})).get_repository_def()
        digest = repository.get_schedule_def("digest_schedule")
        crons[wish] = (digest.cron_schedule, digest.default_status == DefaultScheduleStatus.RUNNING)
    assert crons == {
        "off": ("0 8 * * *", False),
        "daily": ("0 8 * * *", True),
        "weekly": ("0 8 * * 1", True),
    }


# late captures


def checks_of(instance: DagsterInstance, run_id: str) -> dict[str, Any]:
    """The check results that a run recorded, by name."""
    records = instance.all_logs(run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [record.get_dagster_event().asset_check_evaluation_data for record in records]
    return {each.check_name: each for each in found}


def test_yesterday_is_captured_late_and_says_so(backed: Settings, instance: DagsterInstance) -> None:
    done = run(code_location(backed), instance, days_ago(1))
    assert done.success
    event = instance.get_latest_materialization_event(AssetKey(["sample", "raw_dump"]))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["why"].value == "late"
    window = checks_of(instance, done.run_id)["in_the_nights_window"]
    assert (window.passed, window.severity.value) == (False, "WARN")
    assert "after its day had ended" in str(window.description)
    assert bad_news(backed, instance, done.dagster_run) == ("", ""), (
        "a warning is to be seen and wakes nobody"
    )


def test_a_night_after_a_pause_is_a_warning_and_told_as_no_failure(
    backed: Settings, instance: DagsterInstance, work: Path
) -> None:
    """What a loss would have cost before it is past now."""
    backed.backup_dir.mkdir()
    before = datetime.now(UTC).replace(microsecond=0) - timedelta(days=3)
    fill([LocalStore(backed.backup_dir)], work, [made(before, name="sample")])
    done = run(code_location(backed), instance, today())
    met = checks_of(instance, done.run_id)["rpo_met"]
    assert (met.passed, met.severity.value) == (False, "WARN")
    assert bad_news(backed, instance, done.dagster_run) == ("", "")


def test_a_day_that_is_long_past_is_refused_and_leaves_nothing_unless_it_is_allowed(
    backed: Settings, instance: DagsterInstance, bucket: str
) -> None:
    defs = code_location(backed)
    refused = run(defs, instance, days_ago(4))
    said = failure(refused, "sample_back_up")
    assert f"a logical backup of {days_ago(4)} cannot be made any more" in said
    assert "allow_late_capture: true" in said
    assert not list(backed.backup_dir.glob("*"))
    assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix="backup_")
    assert instance.get_latest_materialization_event(AssetKey(["sample", "checksum"])) is None
    allowed = (
        defs.get_repository_def()
        .get_job("sample_backup")
        .execute_in_process(
            instance=instance,
            partition_key=days_ago(4),
            run_config={"ops": {"sample_back_up": {"config": {"allow_late_capture": True}}}},
        )
    )
    made_late = Catalog([LocalStore(backed.backup_dir)]).latest("sample").manifest
    assert (made_late.reason, str(made_late.partition_day)) == ("late", days_ago(4))
    assert not checks_of(instance, allowed.run_id)["in_the_nights_window"].passed


def test_an_old_day_that_has_only_a_local_copy_can_be_copied_by_itself(
    backed: Settings, instance: DagsterInstance
) -> None:
    day = date.fromisoformat(days_ago(9))
    old = take_backup(backed, order_for(configured(backed)[0], backed, day, allow_late=True))
    done = run(code_location(backed), instance, str(day), ["s3_copy"])
    assert done.success
    assert ids(S3Store(connect(backed), backed)) == {old.backup}
    assert checks_of(instance, done.run_id)["present_and_equal"].passed


# checks, and what follows from them


def test_a_byte_that_flips_on_the_disk_is_found_before_anything_is_uploaded(
    backed: Settings, instance: DagsterInstance, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after the backup is durable, and before the next step."""

    def and_flip(*order: Any) -> Manifest:
        of = take_backup(*order)
        flip(backed.backup_dir / of.artifact.name)
        return of

    monkeypatch.setattr(assets, "take_backup", and_flip)
    done = run(code_location(backed), instance, today())
    assert not done.success
    found = checks_of(instance, done.run_id)["checksum_matches"]
    assert (found.passed, found.blocking) == (False, True)
    assert "has SHA-256" in str(found.description)
    assert instance.get_latest_materialization_event(AssetKey(["sample", "s3_copy"])) is None
    assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix="backup_")


def flip(path: Path) -> None:
    path.write_bytes(flipped(path.read_bytes()))


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def execute(defs: Definitions, instance: DagsterInstance, job: str, **how: Any) -> ExecuteInProcessResult:
    return (
        defs.get_repository_def()
        .get_job(job)
        .execute_in_process(instance=instance, raise_on_error=False, **how)
    )


def test_a_verification_that_passes_asks_for_a_cleanup_and_one_that_fails_is_told_instead(
    backed: Settings, instance: DagsterInstance, bucket: str, web: Web, work: Path
) -> None:
    ours = by_urls(backed, address(web)).model_copy(
        update={"backup_retention_days": 1, "backup_keep_daily": 1, "backup_keep_weekly": 0}
    )
    ours = ours.model_copy(update={"backup_keep_monthly": 0})
    ours.backup_dir.mkdir()
    defs, stores = code_location(ours), open_stores(ours)
    cleanup = sensor_of(defs, "cleanup_after_verified", instance)
    failed = sensor_of(defs, "failed_checks", instance)
    assert (cleanup.tick(), failed.tick()) == ([], []), "they begin now"
    assert run(defs, instance, today()).success
    [newest] = ids(stores[0])
    made_now = Catalog(stores).latest("sample").manifest
    dump, rows = made_now.dump.bytes, made_now.content.rows
    for days in (10, 11):
        when = made_now.started.replace(microsecond=0) - timedelta(days=days)
        fill(stores, work, [made(when, name="sample", dump=dump, rows=rows)])
    assert execute(defs, instance, "sample_verify").success
    [request] = cleanup.tick()
    assert request.run_config["ops"]["clean"]["config"]["database"] == "sample"
    assert execute(defs, instance, "cleanup").success, "as it is in the launchpad"
    assert len(ids(stores[0])) == len(ids(stores[1])) == 3
    cleaned = execute(defs, instance, "cleanup", run_config=request.run_config)
    assert cleaned.success
    assert ids(stores[0]) == ids(stores[1]) == {newest}
    assert failed.tick() == []
    key = made_now.artifact.name
    client = boto3.client("s3")
    body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    client.put_object(Bucket=bucket, Key=key, Body=flipped(body))
    verified = execute(defs, instance, "sample_verify")
    assert verified.success
    assert not checks_of(instance, verified.run_id)["content_verified"].passed
    for _ in range(8):  # a run a tick
        assert cleanup.tick() == []
        failed.tick()
    assert heard(web) == [], "it is recorded beside the copy, and told from there"
    latest = sensor_of(defs, "latest_backup", instance)
    for _ in range(2):
        latest.tick()
    assert heard(web) == ["sample: a backup is DAMAGED"]
    stores[1].put_note(f"{newest}.verify.json", "{}")
    happened, advice = bad_news(ours, instance, verified.dagster_run)
    assert happened.startswith("checks failed in a run of sample_verify: content_verified of sample/s3_copy")
    assert advice.startswith("keep the other copy"), "it could not be recorded"


def test_a_run_that_failed_is_told_with_what_failed_the_hint_and_the_link_and_no_secret(
    shop: Settings, instance: DagsterInstance, web: Web
) -> None:
    defs = code_location(shop.model_copy(update={"backup_dagster_url": "https://me:pw@dagster.example.com/"}))
    failed = sensor_of(defs, "run_failure", instance)
    failed.tick()
    done = execute(defs, instance, "shop_backup", partition_key=today())
    assert not done.success
    for _ in range(3):
        failed.tick()
    [(_, _, told)] = web.requests
    said = json.loads(told)
    assert said["title"] == "shop: FAILED"
    assert f"a run of shop_backup for {today()} failed: shop_back_up: " in said["message"]
    assert "Connection refused" in said["message"]
    assert "What to do: " in said["message"]
    assert f"https://dagster.example.com/runs/{done.run_id}" in said["message"]
    assert "Still protected by: NOTHING" in said["message"]
    for secret in (PASSWORD, KEY, "me:pw"):
        assert secret not in said["message"]
        assert secret not in str(instance.all_logs(done.run_id))


def test_a_run_that_someone_ended_is_told(shop: Settings, instance: DagsterInstance, web: Web) -> None:
    defs = code_location(shop)
    cancelled = sensor_of(defs, "run_cancelled", instance)
    cancelled.tick()
    ended = a_run(defs, instance, {"dagster/partition": today()}, DagsterRunStatus.CANCELED)
    for _ in range(3):
        cancelled.tick()
    [(_, _, told)] = web.requests
    said = json.loads(told)
    assert said["title"] == "shop: FAILED"
    assert f"a run of shop_backup for {today()} was cancelled" in said["message"]
    assert f"/runs/{ended.run_id}" in said["message"]


def test_what_cannot_be_delivered_is_a_failed_check_until_it_is(
    shop: Settings, instance: DagsterInstance, web: Web
) -> None:
    nobody = by_urls(shop, f"json://127.0.0.1:{free_port()}/")
    cancelled = sensor_of(code_location(nobody), "run_cancelled", instance)
    cancelled.tick()
    a_run(code_location(nobody), instance, {}, DagsterRunStatus.CANCELED)
    cancelled.tick()
    assert "Connection refused" in delivered(instance, passed=False)
    latest = Ticking(latest_backup(shop, configured(shop), lambda: at(9)), code_location(shop), instance)
    latest.tick()
    assert delivered(instance, passed=True) == "nothing is waiting"
    assert sorted(heard(web)) == ["shop: FAILED", "shop: backup OVERDUE"]
    latest.tick()
    assert latest.events == [], "nothing has changed"


def delivered(instance: DagsterInstance, *, passed: bool) -> str:
    """What the check alerts_delivered says now."""
    key = AssetCheckKey(AssetKey(["shop", "database"]), "alerts_delivered")
    [record] = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    assert record.event is not None
    found = record.event.get_dagster_event().asset_check_evaluation_data
    assert found.passed is passed
    return str(found.description)


# adopting


def history(instance: DagsterInstance, asset: str, name: str = "shop") -> dict[str, list[str]]:
    """The backups that Dagster knows, by partition."""
    found = defaultdict(list)
    page = instance.fetch_materializations(AssetKey([name, asset]), limit=1000)
    for record in page.records:
        event = record.asset_materialization
        assert event is not None
        found[str(event.partition)].append(str(event.metadata["backup"].value))
    return {day: sorted(ids) for day, ids in found.items()}


def in_the_catalog(backups: Sequence[Manifest]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for each in backups:
        found[str(each.partition_day)].append(each.backup)
    return {day: sorted(ids) for day, ids in found.items()}


@pytest.fixture
def off_site(shop: Settings, bucket: str, s3: S3Server) -> Settings:
    return shop.model_copy(update={"aws_s3_bucket": bucket, "aws_endpoint_url_s3": s3.endpoint})


def adopting(settings: Settings, instance: DagsterInstance, now: datetime) -> Ticking:
    sensor = adopt_backups(settings, configured(settings), lambda: now)
    return Ticking(sensor, code_location(settings), instance)


def test_a_lost_history_is_rebuilt_from_the_stores_a_few_at_a_time_and_nothing_twice(
    off_site: Settings, instance: DagsterInstance, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two a day on some days; the oldest in the bucket alone, the newest in the folder alone."""
    monkeypatch.setattr(backup_dag.defs.adopting, "_AT_A_TIME", 5)
    local, bucket = open_stores(off_site)
    all_of_them = [made(at(day, hour)) for day in range(1, 9) for hour in ((2, 15) if day % 2 else (2,))]
    aside = made(at(8, 20), reason="pre_restore")
    fill([bucket], work, all_of_them[:-2])
    fill([local], work, [*all_of_them[5:], aside])
    sensor = adopting(off_site, instance, at(25))
    adopted = []
    for _ in range(5):
        sensor.tick()
        adopted.append(len({str(each.metadata["backup"].value) for each in sensor.events}))
    assert adopted == [5, 5, 2, 0, 0]
    assert history(instance, "checksum") == in_the_catalog(all_of_them)
    assert history(instance, "raw_dump") == in_the_catalog(all_of_them)
    assert history(instance, "s3_copy") == in_the_catalog(all_of_them[:-2])
    newest = instance.get_latest_materialization_event(AssetKey(["shop", "checksum"]))
    assert newest is not None
    assert newest.asset_materialization is not None
    assert newest.asset_materialization.metadata["backup"].value == all_of_them[-1].backup
    sensor.cursor = None
    assert (sensor.tick(), sensor.events) == ([], []), "the cursor was lost, and nothing else"
    fill([bucket], work, all_of_them[-2:])
    sensor.tick()
    assert history(instance, "s3_copy") == in_the_catalog(all_of_them)
    assert history(instance, "checksum") == in_the_catalog(all_of_them)


def test_what_is_adopted_says_what_a_run_would_have_said(
    backed: Settings, instance: DagsterInstance, tmp_path: Path
) -> None:
    """A run's own records, beside those of a Dagster that has lost them and found the backup."""
    defs = code_location(backed)
    done = run(defs, instance, today())
    assert done.success
    with new_instance(tmp_path / "another") as another:
        sensor = Ticking(
            adopt_backups(backed, configured(backed), lambda: datetime.now(UTC) + 11 * MINUTE), defs, another
        )
        sensor.tick()
        for name in STAGES:
            theirs, ours = records(instance, name), records(another, name)
            assert ours.metadata.keys() == {*theirs.metadata.keys(), "adopted"}
            assert {key: ours.metadata[key] for key in theirs.metadata} == theirs.metadata
            assert (ours.partition, ours.tags["dagster/data_version"]) == (
                theirs.partition,
                theirs.tags["dagster/data_version"],
            )
        theirs, ours = records(instance, "s3_copy"), records(another, "s3_copy")
        assert ours.metadata.keys() - {"adopted"} <= theirs.metadata.keys()
        for key in ("bytes", "sha256", "uri", "backup"):
            assert ours.metadata[key] == theirs.metadata[key]
        found = {e.check_name: e.passed for e in sensor.events if isinstance(e, AssetCheckEvaluation)}
        recorded = {name: each.passed for name, each in checks_of(instance, done.run_id).items()}
        assert found == recorded


def records(instance: DagsterInstance, name: str) -> Any:
    event = instance.get_latest_materialization_event(AssetKey(["sample", name]))
    assert event is not None
    return event.asset_materialization


def test_a_backup_from_the_terminal_is_adopted_with_its_verification(
    backed: Settings,
    terminal: Callable[[str], Terminal],
    sample: str,
    s3: S3Server,
    instance: DagsterInstance,
) -> None:
    ours = terminal(sample)
    ours.environment |= {**s3.environment(), "AWS_S3_BUCKET": str(backed.aws_s3_bucket)}
    for words in (["backup"], ["verify"]):
        assert ours.run(*words).returncode == 0
    sensor = adopting(backed, instance, datetime.now(UTC) + 11 * MINUTE)
    sensor.tick()
    found = {e.check_name: e.passed for e in sensor.events if isinstance(e, AssetCheckEvaluation)}
    assert found["content_verified"]
    assert records(instance, "raw_dump").metadata["why"].value == "manual"
    assert records(instance, "s3_copy").partition == today()


def check_results(sensor: Ticking) -> dict[str, tuple[bool, str]]:
    """What a tick reported of checks."""
    found = [each for each in sensor.events if isinstance(each, AssetCheckEvaluation)]
    assert len(found) == len({each.check_name for each in found})
    return {each.check_name: (each.passed, str(each.description)) for each in found}


def test_what_is_verified_later_is_adopted_too_and_once(
    off_site: Settings, instance: DagsterInstance, work: Path
) -> None:
    local, bucket = open_stores(off_site)
    older, newest = made(at(8)), made(at(9))
    fill([local, bucket], work, [older, newest], level=None)
    sensor = adopting(off_site, instance, at(25))
    sensor.tick()
    assert "content_verified" not in str(sensor.events)
    sensor.tick()
    assert sensor.events == []
    bucket.put_note(newest.id.file("verify.json"), checked(newest, faults=["rows of t"]))
    sensor.tick()
    assert check_results(sensor) == {"content_verified": (False, "rows of t")}
    sensor.tick()
    assert sensor.events == []
    bucket.put_note(older.id.file("verify.json"), checked(older))
    sensor.tick()
    assert sensor.events == [], "an older one's would stand for the newest one's"
    cursor, sensor.cursor = sensor.cursor, None
    for _ in range(3):
        sensor.tick()
        assert sensor.events == [], "the cursor was lost, and nothing else"
    sensor.cursor = json.dumps({"shop": json.loads(cursor or "")["shop"]})  # of before there were notes
    sensor.tick()
    assert sensor.events == []


def test_a_backup_of_a_run_of_dagsters_that_the_terminal_verifies_is_shown_as_verified(
    backed: Settings,
    terminal: Callable[[str], Terminal],
    sample: str,
    s3: S3Server,
    instance: DagsterInstance,
) -> None:
    assert run(code_location(backed), instance, today()).success
    clock = datetime.now(UTC)
    defs = code_location(backed)
    sensor = Ticking(adopt_backups(backed, configured(backed), lambda: clock), defs, instance)
    for _ in range(2):
        sensor.tick()
        assert sensor.events == []
    ours = terminal(sample)
    ours.environment |= {**s3.environment(), "AWS_S3_BUCKET": str(backed.aws_s3_bucket)}
    ours.environment |= {"BACKUP_DIR": str(backed.backup_dir)}
    assert ours.run("verify").returncode == 0
    sensor.tick()
    assert sensor.events == [], "a run may be about to report it"
    clock += 11 * MINUTE
    sensor.tick()
    assert check_results(sensor)["content_verified"][0]
    sensor.tick()
    assert sensor.events == []


def test_a_copy_says_why_it_is_not_good_and_what_it_could_be_compared_with(
    off_site: Settings, instance: DagsterInstance, work: Path
) -> None:
    """Both in the bucket alone, as after the loss of the machine."""
    _, bucket = open_stores(off_site)
    whole, damaged = made(at(8)), made(at(9))
    fill([bucket], work, [whole])
    fill([bucket], work, [damaged], level=None)
    bucket.put_note(damaged.id.file("verify.json"), checked(damaged, faults=["rows of t"]))
    sensor = adopting(off_site, instance, at(25))
    sensor.tick()
    said = [
        (each.passed, str(each.description))
        for each in sensor.events
        if isinstance(each, AssetCheckEvaluation) and each.check_name == "present_and_equal"
    ]
    assert [passed for passed, _ in said] == [True, False]
    assert "in the bucket, nothing here to compare it with" in said[0][1]
    assert "did not pass its last check: rows of t" in said[1][1]


def test_nothing_is_adopted_while_a_run_may_be_about_to_report_it(
    shop: Settings, local: LocalStore, work: Path, instance: DagsterInstance
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    fresh, running = made(now - 9 * MINUTE), made(now - timedelta(days=1))
    fill([local], work, [fresh, running])
    defs = code_location(shop)
    day = {"dagster/partition": str(running.partition_day)}
    under_way = a_run(defs, instance, day, DagsterRunStatus.NOT_STARTED)
    clock = now
    sensor = Ticking(adopt_backups(shop, configured(shop), lambda: clock), defs, instance)
    sensor.tick()
    assert history(instance, "checksum") == {}
    clock = now + 2 * MINUTE
    sensor.tick()
    assert history(instance, "checksum") == in_the_catalog([fresh])
    instance.report_run_canceled(under_way)
    sensor.tick()
    assert history(instance, "checksum") == in_the_catalog([fresh, running])


def test_a_bucket_that_is_away_makes_nothing_be_passed_over(
    off_site: Settings, instance: DagsterInstance, work: Path
) -> None:
    fill(open_stores(off_site), work, [made(at(9))])
    url = f"http://127.0.0.1:{free_port()}"
    away = adopting(off_site.model_copy(update={"aws_endpoint_url_s3": url}), instance, at(10))
    with pytest.raises(Failure, match=r"listing s3://.* failed"):
        away.tick()
    adopting(off_site, instance, at(10)).tick()
    assert history(instance, "s3_copy") == in_the_catalog([made(at(9))])


def test_a_bucket_that_goes_away_in_the_middle_makes_nothing_be_passed_over(
    off_site: Settings,
    s3: S3Server,
    instance: DagsterInstance,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has been listed, and does not say any more what lies there."""
    fill(open_stores(off_site), work, [made(at(9))])
    load = backup_dag.defs.adopting._Once.load
    with Gate(s3.port, 1 << 40) as gate, monkeypatch.context() as patched:

        def once_it_is_gone(catalog: Any, backup: BackupId) -> Any:
            gate.close()
            return load(catalog, backup)

        patched.setattr(backup_dag.defs.adopting._Once, "load", once_it_is_gone)
        behind = {"aws_endpoint_url_s3": f"http://127.0.0.1:{gate.port}"}
        cut_off = adopting(off_site.model_copy(update=behind), instance, at(10))
        cut_off.tick()
    assert history(instance, "checksum") == history(instance, "s3_copy") == {}
    again = adopting(off_site, instance, at(10))
    again.cursor = cut_off.cursor
    again.tick()
    assert history(instance, "s3_copy") == history(instance, "checksum") == in_the_catalog([made(at(9))])
