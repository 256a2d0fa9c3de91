"""A death in the middle of a Dagster run: nothing is recorded as made, and nothing is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from dagster import AssetKey, DagsterInstance, DagsterRunStatus

from demo.servers import S3Server
from tests.conftest import Terminal
from tests.gate import Gate
from tests.test_faults import MID_DUMP, alive_of, artifact_in_work, wait_until, with_temporary_folder

ROOT = Path(__file__).parents[1]
ASSETS = ["raw_dump", "compressed_artifact", "encrypted_artifact", "checksum", "s3_copy"]
MID_UPLOAD = 3 << 20
SOON = 20  # seconds: less than the first wait before an upload is tried again
PutGate = Callable[[str, int], tuple[str, Gate]]


class Run:
    """`dagster asset materialize` of today's partition, held by a gate."""

    def __init__(self, ours: Terminal, gate: Gate, process: "subprocess.Popen[str]") -> None:
        self.ours, self.gate, self.process = ours, gate, process

    def child(self, name: str) -> psutil.Process:
        family = psutil.Process(self.process.pid).children(recursive=True)
        return next(child for child in family if child.name() == name)

    def end(self) -> str:
        self.gate.open()
        said, _ = self.process.communicate(timeout=60)
        return said

    def instance(self) -> DagsterInstance:
        return DagsterInstance.from_config(self.ours.environment["DAGSTER_HOME"])


@pytest.fixture
def run(
    large: str,
    bucket: str,
    s3: S3Server,
    terminal: Callable[[str], Terminal],
    gated: PutGate,
    tmp_path: Path,
) -> Iterator[Run]:
    """Held in the middle of its dump."""
    through_gate, gate = gated(large, MID_DUMP)
    with materializing(terminal(through_gate), gate, tmp_path, s3.environment(), bucket) as begun:
        wait_until(lambda: artifact_in_work(begun.ours) > 0)
        yield begun


@contextmanager
def materializing(
    ours: Terminal, gate: Gate, tmp_path: Path, at_s3: Mapping[str, str], bucket: str
) -> Iterator[Run]:
    """Until it is held by the gate."""
    ours = with_temporary_folder(ours)
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text().replace(": .dagster", f": {home}"))
    environment = {**ours.environment, **at_s3, "AWS_S3_BUCKET": bucket, "DAGSTER_HOME": str(home)}
    ours.environment = environment
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    words = ["asset", "materialize", "-m", "backup_dag.definitions", "--select", '+key:"large/s3_copy"']
    process = subprocess.Popen(
        [sys.executable, "-m", "dagster", *words, "--partition", today],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        gate.wait_until_held()
        yield Run(ours, gate, process)
    finally:
        process.kill()
        process.communicate()


DEATHS: dict[str, Callable[[Run], None]] = {
    "pg_dump is killed": lambda run: run.child("pg_dump").kill(),
    "gpg is killed": lambda run: run.child("gpg").kill(),
    "the run is told to end": lambda run: run.process.send_signal(signal.SIGTERM),
    "the run is killed": lambda run: run.process.kill(),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_death_in_mid_run_materializes_nothing_and_leaves_nothing(run: Run, death: str) -> None:
    DEATHS[death](run)
    said = run.end()
    assert run.process.returncode != 0
    with run.instance() as instance:
        for name in ASSETS:
            assert instance.get_latest_materialization_event(AssetKey(["large", name])) is None, name
        [recorded] = instance.get_runs()
        assert recorded.status != DagsterRunStatus.SUCCESS
    assert {path.name for path in run.ours.backups.iterdir()} - {".audit"} == {".work"}
    wait_until(lambda: alive_of(run.ours.folder) == [])
    if death.startswith("pg_dump"):
        assert "pg_dump was killed by SIGKILL" in said
    for secret in ("correct horse", run.ours.environment["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in said


def test_a_run_that_is_told_to_end_in_mid_upload_ends_and_does_not_try_again(
    large: str,
    bucket: str,
    s3: S3Server,
    terminal: Callable[[str], Terminal],
    gated: PutGate,
    tmp_path: Path,
) -> None:
    endpoint, gate = gated(s3.endpoint, MID_UPLOAD)
    at_s3 = {**s3.environment(), "AWS_ENDPOINT_URL_S3": endpoint}
    with materializing(terminal(large), gate, tmp_path, at_s3, bucket) as begun:
        began = time.monotonic()
        begun.process.send_signal(signal.SIGTERM)
        begun.end()
        assert time.monotonic() - began < SOON
        assert begun.process.returncode != 0
        with begun.instance() as instance:
            assert instance.get_latest_materialization_event(AssetKey(["large", "s3_copy"])) is None
            assert instance.get_latest_materialization_event(AssetKey(["large", "checksum"])) is not None
            [recorded] = instance.get_runs()
            assert recorded.status != DagsterRunStatus.SUCCESS
            said = "".join(entry.user_message for entry in instance.all_logs(recorded.run_id))
            assert "trying again" not in said
    assert s3.client().list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    assert s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []


def test_a_run_that_is_told_to_end_while_it_waits_to_try_again_ends(
    large: str, bucket: str, terminal: Callable[[str], Terminal], gated: PutGate, s3: S3Server, tmp_path: Path
) -> None:
    endpoint, gate = gated(s3.endpoint, MID_UPLOAD)
    at_s3 = {**s3.environment(), "AWS_ENDPOINT_URL_S3": endpoint, "BACKUP_STALL_SECONDS": "2"}
    with materializing(terminal(large), gate, tmp_path, at_s3, bucket) as begun:
        assert begun.process.stdout is not None
        while "trying again in 60 s" not in (line := begun.process.stdout.readline()):
            assert line, "it ended before"
        began = time.monotonic()
        begun.process.send_signal(signal.SIGTERM)
        begun.end()
        assert time.monotonic() - began < SOON
        assert begun.process.returncode != 0
        with begun.instance() as instance:
            assert instance.get_latest_materialization_event(AssetKey(["large", "s3_copy"])) is None


def test_the_run_that_is_not_disturbed_records_all_of_it(run: Run) -> None:
    """The same run without a death: so the others fail for the death alone."""
    said = run.end()
    assert run.process.returncode == 0, said
    with run.instance() as instance:
        for name in ASSETS:
            assert instance.get_latest_materialization_event(AssetKey(["large", name])) is not None, name
    assert os.listdir(run.ours.backups / ".work") == []
