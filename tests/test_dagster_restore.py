"""The restore as a Dagster job: its defaults change nothing, and a real run needs the plan's code."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from dagster import DagsterInstance, ExecuteInProcessResult
from pydantic import SecretStr

from backup_dag.core.settings import Settings
from backup_dag.defs.location import code_location
from demo.servers import Postgres
from tests.conftest import Here, Terminal, asked, name_of, run_sql
from tests.test_restore import made_by_restores, orders, small_shop, spoil

ROOT = Path(__file__).parents[1]
STEPS = ["fetch", "verify", "plan", "safety_backup", "build", "prove", "swap", "report"]


@pytest.fixture
def shop(postgres: Postgres) -> Iterator[str]:
    with small_shop(postgres) as url:
        yield url


@pytest.fixture
def ours(settings: Settings, shop: str, terminal: Callable[[str], Terminal], here: Here) -> Settings:
    made = here(terminal(shop), "backup")
    assert made.returncode == 0, made.stderr
    return settings.model_copy(update={"database_url": SecretStr(shop), "backup_config": Path("/dev/null")})


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def launch(settings: Settings, instance: DagsterInstance, **config: Any) -> ExecuteInProcessResult:
    job = code_location(settings).get_repository_def().get_job("restore")
    run_config = {"ops": {"fetch": {"config": config}}} if config else None
    return job.execute_in_process(run_config=run_config, instance=instance, raise_on_error=False)


def done(result: ExecuteInProcessResult) -> list[str]:
    return [event.step_key or "" for event in result.all_node_events if event.is_step_success]


def said(result: ExecuteInProcessResult, step: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for event in result.events_for_node(step):
        if event.is_successful_output:
            found |= {name: value.value for name, value in event.step_output_data.metadata.items()}
    return found


def failure(result: ExecuteInProcessResult) -> tuple[str, str]:
    """The step that failed, and what it said."""
    [event] = [event for event in result.all_node_events if event.is_step_failure]
    assert event.step_failure_data.user_failure_data is not None
    return event.step_key or "", event.step_failure_data.user_failure_data.description or ""


def test_as_it_stands_it_plans_and_changes_nothing(
    ours: Settings, shop: str, postgres: Postgres, instance: DagsterInstance
) -> None:
    spoil(shop)
    result = launch(ours, instance)
    assert result.success
    assert done(result) == STEPS[:3]
    planned = said(result, "plan")
    assert "500 rows" in planned["plan"]
    assert planned["confirmation_code"] in planned["plan"]
    assert planned["as_json"]["rows"] == 500
    assert (orders(shop), made_by_restores(postgres, name_of(shop))) == (250, [])


def test_a_real_run_needs_the_code_of_its_plan(
    ours: Settings, shop: str, postgres: Postgres, instance: DagsterInstance
) -> None:
    spoil(shop)
    for code in ("", "AAAAAAAA-AAAAAAAA-AAAAAAAA", "nonsense"):
        refused = launch(ours, instance, dry_run=False, confirmation_code=code)
        assert failure(refused)[0] == "plan"
        assert "confirmation code" in failure(refused)[1]
    code = said(launch(ours, instance), "plan")["confirmation_code"]
    elsewhere = {"mode": "new", "target_database": f"{name_of(shop)}__n"}
    other = launch(ours, instance, dry_run=False, confirmation_code=code, **elsewhere)
    assert "not for this" in failure(other)[1]
    run_sql(shop, "INSERT INTO orders VALUES (1, 'one more')")
    changed = launch(ours, instance, dry_run=False, confirmation_code=code)
    assert "has changed" in failure(changed)[1]
    assert (orders(shop), made_by_restores(postgres, name_of(shop))) == (251, [])

    code = said(launch(ours, instance), "plan")["confirmation_code"]
    result = launch(ours, instance, dry_run=False, confirmation_code=code)
    assert result.success
    assert done(result) == STEPS
    reported = said(result, "report")
    assert orders(shop) == 500
    assert [reported["kept_as"]] == made_by_restores(postgres, name_of(shop))
    assert reported["window_ms"] > 0
    again = launch(ours, instance, dry_run=False, confirmation_code=code)
    assert "has changed" in failure(again)[1]


def test_what_fails_says_so_in_its_step_and_leaves_nothing(
    ours: Settings, shop: str, postgres: Postgres, instance: DagsterInstance
) -> None:
    spoil(shop)
    nothing = launch(ours, instance, backup="backup_nothing_20260101_000000")
    assert failure(nothing)[0] == "fetch"
    wrong = launch(ours.model_copy(update={"backup_encryption_key": SecretStr("another")}), instance)
    assert (failure(wrong)[0], "fingerprint" in failure(wrong)[1]) == ("fetch", True)
    [artifact] = [path for path in ours.backup_dir.glob("*.sql.gz.gpg") if "globals" not in path.name]
    content = bytearray(artifact.read_bytes())
    content[len(content) // 2] ^= 1
    artifact.write_bytes(bytes(content))
    assert failure(launch(ours, instance))[0] == "verify"
    assert (orders(shop), made_by_restores(postgres, name_of(shop))) == (250, [])


def test_in_a_run_of_its_own_the_steps_share_one_restoration(
    ours: Settings, shop: str, terminal: Callable[[str], Terminal], instance: DagsterInstance, tmp_path: Path
) -> None:
    """As the daemon launches it: a process of its own, with the job's own executor."""
    spoil(shop)
    code = said(launch(ours, instance), "plan")["confirmation_code"]
    config = tmp_path / "restore.json"
    config.write_text(
        json.dumps({"ops": {"fetch": {"config": {"dry_run": False, "confirmation_code": code}}}})
    )
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text().replace(": .dagster", f": {home}"))
    here = terminal(shop)
    ended = subprocess.run(
        [
            sys.executable,
            *["-m", "dagster", "job", "execute", "-m", "backup_dag.definitions", "-j", "restore", "-c"],
            str(config),
        ],
        cwd=tmp_path,
        env={**here.environment, "DAGSTER_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert orders(shop) == 500
    with closing(psycopg2.connect(shop)):
        assert asked(shop, "SELECT to_regclass('spoilt')") == [(None,)]
