"""The clean-up as Dagster's job: what it refuses is told, and what is not configured is not its business."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, ExecuteInProcessResult
from pydantic import SecretStr

from backup_dag.core.settings import Settings
from backup_dag.core.store.local import LocalStore
from backup_dag.defs.location import code_location
from tests.cleaning import NOW, ids, put
from tests.cleaning import made as made_days_ago
from tests.nights import of_shop
from tests.web import Web


@pytest.fixture
def shop(settings: Settings, tmp_path: Path, web: Web) -> Settings:
    """Twelve backups, of which ten would go, and two may in one night."""
    receiver = (SecretStr(f"json://127.0.0.1:{web.port}/"),)
    ours = of_shop(settings).model_copy(
        update={
            "backup_notify_urls": receiver,
            "backup_retention_days": 2,
            "backup_keep_daily": 1,
            "backup_keep_weekly": 0,
            "backup_keep_monthly": 0,
        }
    )
    store, work = LocalStore(ours.backup_dir), tmp_path / "work"
    ours.backup_dir.mkdir()
    work.mkdir()
    for days in range(12):
        put(store, work, made_days_ago(days + 0.5, name="shop"), "content")
        put(store, work, made_days_ago(days + 0.5, name="foreign"), "content")
    return ours


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def clean(settings: Settings, instance: DagsterInstance, **config: Any) -> ExecuteInProcessResult:
    job = code_location(settings).get_repository_def().get_job("cleanup")
    run_config = {"ops": {"clean": {"config": config}}}
    return job.execute_in_process(run_config=run_config, instance=instance, raise_on_error=False)


def test_a_refusal_is_told_once_and_the_run_is_well(
    shop: Settings, instance: DagsterInstance, web: Web
) -> None:
    before = ids(LocalStore(shop.backup_dir))
    for _ in range(3):
        assert clean(shop, instance, dry_run=False).success
    assert ids(LocalStore(shop.backup_dir)) == before
    [(_, _, body)] = web.requests
    assert b"nothing of shop was cleaned up" in body
    assert b"backup-dag cleanup --force" in body
    assert clean(shop, instance, dry_run=False, force=True).success
    left = {name for name in ids(LocalStore(shop.backup_dir)) if "shop" in name}
    assert left == {str(made_days_ago(days + 0.5, name="shop").id) for days in (0, 1)}
    assert {name for name in before if "foreign" in name} <= ids(LocalStore(shop.backup_dir))
    assert NOW - timedelta(days=2) < made_days_ago(1.5).snapshot_time


@pytest.fixture
def two(shop: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The same, and `foreign` is ours as well, with as much to remove; `empty` has nothing."""
    (tmp_path / "two.toml").write_text(
        "".join(f'[databases.{name}]\nurl_env = "{name}"\n' for name in ("foreign", "empty"))
    )
    for name in ("foreign", "empty"):
        monkeypatch.setenv(name, f"postgresql://{name}@127.0.0.1:1/{name}")
    return shop.model_copy(update={"backup_config": tmp_path / "two.toml"})


def test_each_databases_refusal_is_told_once_whatever_the_others_runs_say(
    two: Settings, instance: DagsterInstance, web: Web
) -> None:
    """The reason is the same of both; and a run of a third, which is well, comes between them."""
    for _ in range(3):
        for name in ("shop", "foreign", "empty"):
            assert clean(two, instance, dry_run=False, database=name).success
            assert clean(two, instance, database=name).success, "a dry run is forgotten"
    assert [json.loads(body)["title"].partition(":")[0] for _, _, body in web.requests] == ["shop", "foreign"]


def test_a_dry_run_tells_nobody(shop: Settings, instance: DagsterInstance, web: Web) -> None:
    assert clean(shop, instance).success
    assert web.requests == []


@pytest.mark.parametrize("name", ["foreign", "shpo"])
def test_a_database_that_is_not_configured_is_refused(
    shop: Settings, instance: DagsterInstance, name: str
) -> None:
    before = ids(LocalStore(shop.backup_dir))
    refused = clean(shop, instance, database=name, dry_run=False, force=True)
    assert not refused.success
    [event] = [event for event in refused.all_node_events if event.is_step_failure]
    assert event.step_failure_data.user_failure_data is not None
    assert "shop" in (event.step_failure_data.user_failure_data.description or "")
    assert ids(LocalStore(shop.backup_dir)) == before
