"""The lineage in Dagster: what is recorded, what is not, and what a rerun does."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import boto3
import pytest
from dagster import AssetKey, DagsterInstance, Definitions, ExecuteInProcessResult
from pydantic import SecretStr

from backup_dag.core.audit import entries
from backup_dag.core.catalog import Catalog
from backup_dag.core.settings import Settings
from backup_dag.core.store.local import LocalStore
from backup_dag.defs.location import code_location
from demo.servers import Postgres, S3Server, free_port
from tests.conftest import make_database, run_sql
from tests.gate import Gate

STAGES = ["raw_dump", "compressed_artifact", "encrypted_artifact", "checksum"]


def today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


def days_ago(days: int) -> str:
    return f"{datetime.now(UTC) - timedelta(days=days):%Y-%m-%d}"


@pytest.fixture
def instance() -> Any:
    with DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def backed(settings: Settings, sample: str, bucket: str, s3: S3Server, tmp_path: Path) -> Settings:
    """Settings for the sample database, with a bucket; uploads are not retried."""
    from pydantic import SecretStr

    return settings.model_copy(
        update={
            "database_url": SecretStr(sample),
            "backup_config": Path("/dev/null"),
            "aws_s3_bucket": bucket,
            "aws_endpoint_url_s3": s3.endpoint,
            "aws_default_region": "us-east-1",
            "backup_s3_retries": 0,
        }
    )


def run(
    defs: Definitions, instance: DagsterInstance, day: str, only: list[str] | None = None
) -> ExecuteInProcessResult:
    job = defs.get_repository_def().get_job("sample_backup")
    selection = [AssetKey(["sample", name]) for name in only] if only else None
    return job.execute_in_process(
        instance=instance, partition_key=day, asset_selection=selection, raise_on_error=False
    )


def latest(instance: DagsterInstance, name: str) -> Any:
    return instance.get_latest_materialization_event(AssetKey(["sample", name]))


def recorded(instance: DagsterInstance, name: str) -> Mapping[str, Any]:
    """The metadata of the latest materialization, as plain values."""
    event = latest(instance, name)
    assert event is not None, f"{name} was not materialized"
    return {key: value.value for key, value in event.asset_materialization.metadata.items()}


def test_the_lineage_is_one_chain_from_the_database_to_the_bucket(backed: Settings) -> None:
    graph = code_location(backed).get_repository_def().asset_graph
    chain = ["database", *STAGES, "s3_copy"]
    for before, after in pairwise(chain):
        node = graph.get(AssetKey(["sample", after]))
        assert node.parent_keys == {AssetKey(["sample", before])}
        assert node.group_name == "sample"
        assert node.kinds
        assert node.owners == ["team:backup"]
        assert node.partitions_def is not None
        assert node.description
    assert graph.get(AssetKey(["sample", "database"])).is_external


def test_a_run_records_each_stage_with_what_the_manifest_says(
    backed: Settings, instance: DagsterInstance, bucket: str
) -> None:
    assert run(code_location(backed), instance, today()).success
    backup = Catalog([LocalStore(backed.backup_dir)]).latest("sample")
    made = backup.manifest
    assert (made.reason, str(made.partition_day)) == ("manual", today())
    dump = recorded(instance, "raw_dump")
    assert (dump["bytes"], dump["sha256"]) == (made.dump.bytes, made.dump.sha256)
    assert dump["rows"] == made.content.rows
    assert dump["manifest"]["backup"] == made.backup
    assert recorded(instance, "compressed_artifact")["bytes"] == made.compressed.bytes
    artifact = recorded(instance, "encrypted_artifact")
    assert Path(artifact["path"]).stat().st_size == made.artifact.bytes
    assert recorded(instance, "checksum")["sha256"] == made.artifact.sha256
    copy = recorded(instance, "s3_copy")
    assert copy["uri"] == f"s3://{bucket}/{made.artifact.name}"
    assert (copy["bytes"], copy["sha256"]) == (made.artifact.bytes, made.artifact.sha256)


def test_the_audit_log_names_the_run(backed: Settings, instance: DagsterInstance) -> None:
    done = run(code_location(backed), instance, today())
    noted = [(entry.what, entry.outcome, entry.run) for entry in entries(backed.backup_dir)]
    assert noted == [(what, "done", done.run_id) for what in ("backup", "verify", "copy")]


def test_the_content_alone_decides_the_dumps_data_version(
    backed: Settings, instance: DagsterInstance
) -> None:
    versions = []
    for _ in range(2):
        assert run(code_location(backed), instance, today(), STAGES).success
        tags = {name: latest(instance, name).asset_materialization.tags for name in STAGES}
        versions.append({name: tag["dagster/data_version"] for name, tag in tags.items()})
    assert versions[0]["raw_dump"] == versions[1]["raw_dump"]
    assert versions[0]["encrypted_artifact"] != versions[1]["encrypted_artifact"], "each has its own salt"


def test_a_failed_dump_materializes_nothing_and_says_what_to_do(
    backed: Settings, instance: DagsterInstance, postgres: Postgres
) -> None:
    url = make_database(postgres, "sample_locked")
    run_sql(url, "CREATE TABLE t (id int)", "CREATE ROLE dagsters_poor LOGIN")
    login = SecretStr(postgres.url("sample_locked", user="dagsters_poor"))
    poor = backed.model_copy(update={"database_url": login})
    defs = code_location(poor)
    job = defs.get_repository_def().get_job("sample_locked_backup")
    result = job.execute_in_process(instance=instance, partition_key=today(), raise_on_error=False)
    run_sql(postgres.url(), "DROP ROLE dagsters_poor")
    assert not result.success
    failure = result.failure_data_for_node("sample_locked_back_up")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert "permission denied for table t" in str(failure.user_failure_data.description)
    assert "pg_read_all_data" in str(failure.user_failure_data.metadata["next"].value)
    for name in [*STAGES, "s3_copy"]:
        assert instance.get_latest_materialization_event(AssetKey(["sample_locked", name])) is None
    assert {path.name for path in backed.backup_dir.iterdir()} == {".audit", ".work"}


def test_an_upload_that_failed_is_made_up_for_without_a_new_dump(
    backed: Settings, instance: DagsterInstance, bucket: str
) -> None:
    elsewhere = backed.model_copy(update={"aws_s3_bucket": "no-such-bucket"})
    assert not run(code_location(elsewhere), instance, today()).success
    assert latest(instance, "checksum") is not None
    assert latest(instance, "s3_copy") is None
    before = Catalog([LocalStore(backed.backup_dir)]).survey().ids
    assert run(code_location(backed), instance, today(), ["s3_copy"]).success
    assert Catalog([LocalStore(backed.backup_dir)]).survey().ids == before
    found = boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]
    assert f"{before[0]}.json" in {item["Key"] for item in found}


def test_a_bucket_that_never_answers_costs_only_the_copy(
    backed: Settings,
    instance: DagsterInstance,
    gated: Callable[[str, int], tuple[str, Gate]],
    s3: S3Server,
    bucket: str,
) -> None:
    assert run(code_location(backed), instance, today(), STAGES).success
    endpoint, _ = gated(s3.endpoint, 0)
    silent = backed.model_copy(update={"aws_endpoint_url_s3": endpoint, "backup_stall_seconds": 2})
    began = time.monotonic()
    result = run(code_location(silent), instance, today(), ["s3_copy"])
    assert time.monotonic() - began < 20
    failure = result.failure_data_for_node("sample__s3_copy")
    assert failure is not None
    assert f"listing s3://{bucket}/ failed" in str(failure.error)
    assert latest(instance, "s3_copy") is None


def test_an_upload_is_tried_again_where_that_can_help_and_says_why_it_failed_in_the_end(
    backed: Settings, instance: DagsterInstance, bucket: str
) -> None:
    assert run(code_location(backed), instance, today(), STAGES).success
    nobody = f"http://127.0.0.1:{free_port()}"
    again = {"backup_s3_retries": 2, "backup_s3_retry_seconds": 1}
    away = backed.model_copy(update={"aws_endpoint_url_s3": nobody, **again})
    began = time.monotonic()
    result = run(code_location(away), instance, today(), ["s3_copy"])
    assert time.monotonic() - began > 1 + 2, "twice as long before the second time"
    assert told_again(instance, result) == ["trying again in 1 s, 1 of 2", "trying again in 2 s, 2 of 2"]
    failure = result.failure_data_for_node("sample__s3_copy")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert f"s3://{bucket}/" in (failure.user_failure_data.description or "")
    assert failure.user_failure_data.metadata["exit_code"].value == 7
    locked_out = backed.model_copy(update={"aws_s3_bucket": "no-such-bucket-of-ours", **again})
    result = run(code_location(locked_out), instance, today(), ["s3_copy"])
    assert not result.success
    assert told_again(instance, result) == []


def told_again(instance: DagsterInstance, result: ExecuteInProcessResult) -> list[str]:
    said = [entry.user_message.splitlines() for entry in instance.all_logs(result.run_id)]
    return [lines[-1] for lines in said if lines and lines[-1].startswith("trying again")]


def test_a_past_days_local_backup_can_be_copied_by_itself(
    backed: Settings, instance: DagsterInstance
) -> None:
    assert run(code_location(backed), instance, days_ago(1), STAGES).success
    assert run(code_location(backed), instance, days_ago(1), ["s3_copy"]).success
    assert not run(code_location(backed), instance, days_ago(2), ["s3_copy"]).success, (
        "that day has no backup"
    )


def test_a_backup_made_for_a_day_that_has_passed_says_so(backed: Settings, instance: DagsterInstance) -> None:
    assert run(code_location(backed), instance, days_ago(1), STAGES).success
    made = Catalog([LocalStore(backed.backup_dir)]).latest("sample").manifest
    assert (made.reason, str(made.partition_day)) == ("late", days_ago(1))
    assert made.snapshot_time.date() == datetime.now(UTC).date()
    assert recorded(instance, "raw_dump")["why"] == "late"


def test_without_a_bucket_the_lineage_ends_at_the_checksum_and_says_so(backed: Settings) -> None:
    graph = code_location(backed.model_copy(update={"aws_s3_bucket": None})).get_repository_def().asset_graph
    assert not graph.has(AssetKey(["sample", "s3_copy"]))
    assert "NO off-site copy" in str(graph.get(AssetKey(["sample", "checksum"])).description)


def test_no_secret_stands_in_what_dagster_records(backed: Settings, instance: DagsterInstance) -> None:
    result = run(code_location(backed), instance, today())
    records = str(result.all_events)
    logs = str(instance.all_logs(result.run_id))
    assert backed.backup_encryption_key is not None
    for secret in (backed.backup_encryption_key.get_secret_value(), "demo-secret-key"):
        assert secret not in records
        assert secret not in logs
