"""The posture in Dagster: one page with its picture, numbers that can be plotted, a run a day."""

import base64
import io
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, DagsterInstance, DefaultScheduleStatus, Definitions, materialize
from PIL import Image
from pydantic import SecretStr

from backup_dag.core.databases import Database, Plan, configured
from backup_dag.core.settings import Settings
from backup_dag.core.store.local import LocalStore
from backup_dag.defs.location import code_location
from backup_dag.defs.posture import recovery_posture
from demo.servers import free_port
from tests.nights import at, fill, made, of_shop

POSTURE = AssetKey("recovery_posture")
NOW = at(10, 9)


@pytest.fixture
def shop(settings: Settings, tmp_path: Path) -> Settings:
    ours = of_shop(settings)
    ours.backup_dir.mkdir()
    fill([LocalStore(ours.backup_dir)], tmp_path / "work", [made(at(day)) for day in (5, 6, 8, 9)], "restore")
    return ours


def recorded(settings: Settings) -> dict[str, Any]:
    """The metadata of one materialization, as plain values."""
    page = recovery_posture(settings, configured(settings, None), lambda: NOW)
    with DagsterInstance.ephemeral() as instance:
        assert materialize([page], instance=instance).success
        event = instance.get_latest_materialization_event(POSTURE)
        assert event is not None
        assert event.asset_materialization is not None
        return {key: value.value for key, value in event.asset_materialization.metadata.items()}


def test_the_page_holds_its_picture_and_the_numbers_stand_beside_it(shop: Settings) -> None:
    said = recorded(shop)
    [picture] = re.findall(r"!\[[^\]]+\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", said["page"])
    image = Image.open(io.BytesIO(base64.b64decode(picture, validate=True)))
    assert (image.format, image.width) == ("PNG", 960)
    assert 200 < image.height < 400
    assert len(said["page"]) < 300_000
    assert {key: value for key, value in said.items() if key.startswith("shop_")} == {
        "shop_newest_good_age_hours": 31.0,
        "shop_newest_proven_age_hours": 31.0,
        "shop_proven_percent": 100.0,
        "shop_days_missing": 2,
    }, "a recovery that was never measured is no zero"
    [one] = said["as_json"]["databases"]
    assert one["days_missing"] == ["2025-05-07", "2025-05-10"]


def test_a_store_that_does_not_answer_leaves_gaps_and_fails_nothing(shop: Settings, bucket: str) -> None:
    away = {"aws_s3_bucket": bucket, "aws_endpoint_url_s3": f"http://127.0.0.1:{free_port()}"}
    said = recorded(shop.model_copy(update=away))
    assert [key for key in said if key.startswith("shop_")] == [
        "shop_newest_good_age_hours",
        "shop_newest_proven_age_hours",
    ]
    assert "not asked: s3" in said["page"]


def nodes(settings: Settings) -> Any:
    return code_location(settings).get_repository_def().asset_graph


def test_it_stands_behind_the_last_asset_of_every_database(shop: Settings) -> None:
    node = nodes(shop).get(POSTURE)
    assert node.parent_keys == {AssetKey(["shop", "restore_drill"])}
    assert (node.group_name, node.partitions_def, node.owners) == ("recovery", None, ["team:backup"])
    node = nodes(shop.model_copy(update={"aws_s3_bucket": "a-bucket"})).get(POSTURE)
    assert node.parent_keys == {AssetKey(["shop", "restore_drill"])}


def test_it_runs_at_eight_where_schedules_are_on(shop: Settings) -> None:
    for on in ("on", "off"):
        defs: Definitions = code_location(shop.model_copy(update={"backup_schedules": on}))
        [daily] = [each for each in defs.get_repository_def().schedule_defs if each.name == "daily_posture"]
        assert (daily.cron_schedule, daily.job_name) == ("0 8 * * *", "posture")
        assert (daily.default_status == DefaultScheduleStatus.RUNNING) == (on == "on")
    assert defs.get_repository_def().get_job("posture").asset_layer.selected_asset_keys == {POSTURE}


def test_a_backup_of_a_database_called_as_its_group_is_that_alone(shop: Settings) -> None:
    ours = shop.model_copy(update={"database_url": SecretStr("postgresql://u@127.0.0.1:1/recovery")})
    repository = code_location(ours).get_repository_def()
    assert POSTURE not in repository.get_job("recovery_backup").asset_layer.selected_asset_keys


def test_many_databases_stay_within_what_dagster_keeps(shop: Settings) -> None:
    url = SecretStr("postgresql://u@127.0.0.1:1/x")
    many = [Database(name=f"d{n}", url=url, plan=Plan()) for n in range(30)]
    path = shop.backup_dir.parent / "backup.toml"
    path.write_text("".join(f'[databases.{each.name}]\nurl_env = "SHOP_URL"\n' for each in many))
    ours = shop.model_copy(update={"backup_config": path})
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SHOP_URL", url.get_secret_value())
        said = recorded(ours)
    assert len(said["as_json"]["databases"]) == 31
    assert len(said["page"]) < 300_000
    assert timedelta(hours=31) == timedelta(hours=said["shop_newest_good_age_hours"])
