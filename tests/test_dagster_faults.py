"""A death in the middle of a Dagster run: nothing is recorded as made, and nothing is left."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
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
PutGate = Callable[[str, int], tuple[str, Gate]]


class Run:
    """`dagster asset materialize` of today's partition, held in the middle of its dump."""

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
    through_gate, gate = gated(large, MID_DUMP)
    ours = with_temporary_folder(terminal(through_gate))
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text().replace(": .dagster", f": {home}"))
    environment = {**ours.environment, **s3.environment(), "AWS_S3_BUCKET": bucket, "DAGSTER_HOME": str(home)}
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
        wait_until(lambda: artifact_in_work(ours) > 0)
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


def test_the_run_that_is_not_disturbed_records_all_of_it(run: Run) -> None:
    """The same run without a death: so the others fail for the death alone."""
    said = run.end()
    assert run.process.returncode == 0, said
    with run.instance() as instance:
        for name in ASSETS:
            assert instance.get_latest_materialization_event(AssetKey(["large", name])) is not None, name
    assert os.listdir(run.ours.backups / ".work") == []
