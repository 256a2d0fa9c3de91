"""A night of the real daemon and webserver: a tick, a backfill of three days, and one run that is ended."""

import json
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from dagster import DagsterInstance

from backup_dag.core.catalog import Catalog
from backup_dag.core.manifest import Manifest
from backup_dag.core.store.local import LocalStore
from demo.process import HOST, free_port
from demo.sample import load
from demo.servers import Postgres, S3Server
from demo.ui import child, wait_until_it_answers
from tests.conftest import KEY, Terminal, make_database
from tests.gate import Gate
from tests.test_faults import MID_DUMP, advisory_locks, artifact_in_work, wait_until, with_temporary_folder
from tests.test_watch import address
from tests.web import Web

ROOT = Path(__file__).parents[1]
STAGES = ["raw_dump", "compressed_artifact", "encrypted_artifact", "checksum", "s3_copy"]
REPOSITORY = {"repositoryLocationName": "backup_dag", "repositoryName": "__repository__"}

BACKFILL = """mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
TERMINATE = """mutation($run: String!) { terminateRun(runId: $run) { __typename } }"""
SCHEDULE = """query($s: ScheduleSelector!) { scheduleOrError(scheduleSelector: $s) {
  ... on Schedule { scheduleState { id } } } }"""
STOP = """mutation($id: String!) { stopRunningSchedule(id: $id) {
  __typename ... on ScheduleStateResult { scheduleState { status } } } }"""
SENSORS = """query($r: RepositorySelector!) { sensorsOrError(repositorySelector: $r) {
  ... on Sensors { results {
    name sensorState { status ticks(limit: 50) { status error { message } } } } } } }"""
RUNS = "query { runsOrError { ... on Runs { results { runId status jobName tags { key value } } } } }"

PutGate = Callable[[str, int], tuple[str, Gate]]


class Dagster:
    """The webserver, as a browser asks it."""

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            said = json.load(answer)
        assert "errors" not in said, said
        [found] = said["data"].values()
        return found

    def runs(self, **tags: str) -> list[dict[str, Any]]:
        """Every run with these tags, as its status, its job and its tags; `dagster_` stands for dagster/."""
        wanted = {key.replace("dagster_", "dagster/", 1): value for key, value in tags.items()}
        found = []
        for run in self.ask(RUNS)["results"]:
            run["tags"] = {tag["key"]: tag["value"] for tag in run["tags"]}
            found += [run] if wanted.items() <= run["tags"].items() else []
        return found

    def ticks(self) -> dict[str, list[dict[str, Any]]]:
        """Of each sensor that runs, those that have ended."""
        return {
            each["name"]: [tick for tick in each["sensorState"]["ticks"] if tick["status"] != "STARTED"]
            for each in self.ask(SENSORS, r=REPOSITORY)["results"]
            if each["sensorState"]["status"] == "RUNNING"
        }

    def stop_schedule(self, name: str) -> None:
        found = self.ask(SCHEDULE, s={**REPOSITORY, "scheduleName": name})
        stopped = self.ask(STOP, id=found["scheduleState"]["id"])
        assert stopped["scheduleState"]["status"] == "STOPPED", stopped

    def backfill(self, database: str, days: list[str]) -> str:
        """Of all its assets; the backfill's id."""
        assets = [{"path": [database, name]} for name in STAGES]
        launched = self.ask(BACKFILL, p={"assetSelection": assets, "partitionNames": days})
        return str(launched["backfillId"])


class Night:
    """Three databases in one Dagster: `shop` is backed up by the tick, so is `slow`, whose server stops in
    the middle of the dump, and `stock` by the backfill alone."""

    def __init__(self, ours: Terminal, dagster: Dagster, slow: str, due: datetime) -> None:
        self.ours, self.dagster, self.slow, self.due = ours, dagster, slow, due
        self.backups = LocalStore(ours.backups)

    def day(self, ago: int = 0) -> str:
        return str(self.due.date() - timedelta(days=ago))

    def of(self, database: str) -> list[Manifest]:
        """Its backups, the newest first."""
        return [backup.manifest for backup in Catalog([self.backups]).nights(database)]


def ahead() -> datetime:
    """The next whole minute that is not too near, in a zone where no day ends meanwhile."""
    now = datetime.now(ZoneInfo("Asia/Tokyo") if datetime.now(UTC).hour == 23 else UTC)
    return (now + timedelta(seconds=90)).replace(second=0, microsecond=0)


@pytest.fixture
def night(
    postgres: Postgres,
    large: str,
    bucket: str,
    s3: S3Server,
    web: Web,
    terminal: Callable[[str], Terminal],
    gated: PutGate,
    tmp_path: Path,
) -> Iterator[Night]:
    slow, _ = gated(large, MID_DUMP)
    urls = {"SHOP_URL": make_database(postgres), "STOCK_URL": make_database(postgres), "SLOW_URL": slow}
    for name in ("SHOP_URL", "STOCK_URL"):
        load(urls[name], rows=300)
    ours, due = with_temporary_folder(terminal("")), ahead()
    ours.environment |= {
        **urls,
        **s3.environment(),
        "AWS_S3_BUCKET": bucket,
        "DATABASE_URL": "",
        "BACKUP_CONFIG": str(written_config(tmp_path, urls)),
        "BACKUP_TIMEZONE": str(due.tzinfo),
        "BACKUP_TIME": f"{due:%H:%M}",
        "BACKUP_VERIFY_TIME": f"{due - timedelta(hours=1):%H:%M}",
        "BACKUP_START_DATE": str(due.date() - timedelta(days=30)),
        "BACKUP_NOTIFY_URLS": address(web),
        "DAGSTER_HOME": str(dagster_home(tmp_path)),
    }
    with ExitStack() as stack:
        yield Night(ours, started(stack, ours.environment, tmp_path), large, due)


def written_config(folder: Path, urls: Mapping[str, str]) -> Path:
    path = folder / "backup.toml"
    tables = [f'[databases.{name.removesuffix("_URL").lower()}]\nurl_env = "{name}"\n' for name in urls]
    path.write_text("".join(tables))
    return path


def dagster_home(folder: Path) -> Path:
    home = folder / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text().replace(": .dagster", f": {home}"))
    DagsterInstance.from_config(str(home)).dispose()  # two servers that both make it at once spoil it
    return home


def started(stack: ExitStack, environment: Mapping[str, str], folder: Path) -> Dagster:
    """The webserver and the daemon, until the stack is left."""
    port, workspace = free_port(), ["--workspace", str(ROOT / "workspace.yaml")]
    serve = ["dagster-webserver", "--host", HOST, "--port", str(port), *workspace]
    servers = [
        stack.enter_context(child(words, environment, folder, folder / f"{words[0]}.log"))
        for words in (serve, ["dagster-daemon", "run", *workspace])
    ]
    wait_until_it_answers(f"http://{HOST}:{port}/server_info", servers, folder)
    return Dagster(f"http://{HOST}:{port}/graphql")


def failures(web: Web, database: str) -> list[str]:
    """What was said of runs of a database that failed."""
    said = [json.loads(body) for _, _, body in web.requests]
    return [each["message"] for each in said if each["title"] == f"{database}: FAILED"]


@pytest.mark.timeout(240)
def test_a_night(night: Night, web: Web) -> None:
    dagster = night.dagster
    wait_until(lambda: len(dagster.ticks()) == 7 and all(dagster.ticks().values()), 40)
    dagster.stop_schedule("stock_nightly_backup")
    days = [night.day(4), night.day(1), night.day()]
    backfill = dagster.backfill("stock", days)
    end_the_slow_one(night, web)
    the_tick_made_one(night)
    the_backfill_said_what_it_is(night, web, backfill)
    assert not [run for run in dagster.runs() if "backup_dag/missed" in run["tags"]], "nothing was missed"
    failed = [tick for ticks in dagster.ticks().values() for tick in ticks if tick["status"] == "FAILURE"]
    assert failed == []
    for secret in (KEY, night.ours.environment["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in str(web.requests)


def end_the_slow_one(night: Night, web: Web) -> None:
    """In the middle of its dump, by the Terminate of the web pages."""
    [] = night.of("slow")
    wait_until(lambda: artifact_in_work(night.ours) > 1 << 20, 110)
    [run] = [run for run in night.dagster.runs() if run["jobName"] == "slow_backup"]
    assert run["status"] == "STARTED"
    assert advisory_locks(night.slow) == 1
    assert night.dagster.ask(TERMINATE, run=run["runId"])["__typename"] == "TerminateRunSuccess"
    wait_until(lambda: status(night, run["runId"]) == "CANCELED", 20)
    wait_until(lambda: advisory_locks(night.slow) == 0)
    assert night.of("slow") == []
    assert not list(night.ours.backups.glob("backup_slow_*"))
    wait_until(lambda: artifact_in_work(night.ours) < 1 << 20)
    wait_until(lambda: bool(failures(web, "slow")), 60)
    [said] = failures(web, "slow")
    assert f"a run of slow_backup for {night.day()} was cancelled" in said
    assert f"/runs/{run['runId']}" in said


def status(night: Night, run: str) -> str:
    return str(next(each["status"] for each in night.dagster.runs() if each["runId"] == run))


def the_tick_made_one(night: Night) -> None:
    """And one alone, whatever else looks for nights without a backup."""
    tick = {"dagster_schedule_name": "shop_nightly_backup"}
    wait_until(lambda: [run["status"] for run in night.dagster.runs(**tick)] == ["SUCCESS"], 40)
    [made] = night.of("shop")
    assert (made.reason, str(made.partition_day)) == ("scheduled", night.day())
    assert timedelta() < made.snapshot_time - night.due < timedelta(minutes=1)
    assert [run["jobName"] for run in night.dagster.runs() if run["jobName"].startswith("shop")] == [
        "shop_backup"
    ]


def the_backfill_said_what_it_is(night: Night, web: Web, backfill: str) -> None:
    """Today's, yesterday's late, and four days ago not any more; one after the other."""

    def ended() -> dict[str, str]:
        runs = night.dagster.runs(dagster_backfill=backfill)
        return {run["tags"]["dagster/partition"]: run["status"] for run in runs}

    wanted = {night.day(4): "FAILURE", night.day(1): "SUCCESS", night.day(): "SUCCESS"}
    wait_until(lambda: ended() == wanted, 60)
    made = {str(each.partition_day): each.reason for each in night.of("stock")}
    assert made == {night.day(1): "late", night.day(): "manual"}
    wait_until(lambda: bool(failures(web, "stock")), 60)
    [said] = failures(web, "stock")
    assert f"a run of chosen assets for {night.day(4)} failed: stock_back_up: " in said
    assert f"a logical backup of {night.day(4)} cannot be made any more" in said
    assert "allow_late_capture: true in Dagster" in said
