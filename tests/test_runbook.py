"""The runbook's own commands, day by day, in the order in which they stand."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.servers import Postgres
from tests.conftest import Terminal, asked, make_database, run_sql
from tests.test_restore import made_by_restores

RUNBOOK = (Path(__file__).parents[1] / "docs" / "runbook.md").read_text()
COMMANDS = dict(re.findall(r"```sh\n# (day \w+: [^\n]+)\n(.*?)```", RUNBOOK, re.DOTALL))
SUM = "SELECT count(*), sum(total) FROM orders"


@pytest.fixture
def shop(postgres: Postgres) -> Iterator[str]:
    url = make_database(postgres, "runbook_shop")
    orders = "CREATE TABLE orders AS SELECT n AS id, n * 3 AS total FROM generate_series(1, 1000) n"
    run_sql(url, orders, "ALTER TABLE orders ADD PRIMARY KEY (id)")
    yield url
    for each in [*made_by_restores(postgres, "runbook_shop"), "runbook_shop"]:
        run_sql(postgres.url(), f'DROP DATABASE IF EXISTS "{each}" WITH (FORCE)')


class Operator:
    """Someone at a terminal, who types what stands in the runbook."""

    def __init__(self, ours: Terminal, postgres: Postgres) -> None:
        self._ours, self._ran = ours, set[str]()
        path = f"{Path(sys.executable).parent}:{postgres.bin_dir}:{ours.environment['PATH']}"
        self.environment = {**ours.environment, "PATH": path}

    def does(self, what: str) -> str:
        self._ran.add(what)
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", COMMANDS[what]],
            cwd=self._ours.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, f"{what}\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    def left_out(self, day: str) -> set[str]:
        return {name for name in COMMANDS if name.startswith(day)} - self._ran


@pytest.fixture
def operator(
    shop: str, terminal: Callable[[str], Terminal], postgres: Postgres, bucket: str, s3: Any
) -> Operator:
    ours = terminal(shop)
    ours.environment |= {**s3.environment(), "AWS_S3_BUCKET": bucket}
    made = ours.run("backup")
    assert made.returncode == 0, made.stderr
    return Operator(ours, postgres)


def test_day_one_the_data_is_wrong(operator: Operator, shop: str, postgres: Postgres) -> None:
    good = asked(shop, SUM)
    run_sql(shop, "UPDATE orders SET total = 0")
    assert "refuse" not in operator.does("day one: look")
    assert "every digest as promised" in operator.does("day one: restore")
    assert asked(shop, SUM) == good
    assert str(good[0][1]) in operator.does("day one: look at it")
    operator.does("day one: back")
    assert asked(shop, SUM) == good
    operator.does("day one: tidy up")
    run_sql(shop, "UPDATE orders SET total = 0")
    assert "every digest as promised" in operator.does("day one: where no database may be made")
    assert asked(shop, SUM) == good
    assert made_by_restores(postgres, "runbook_shop") == []
    assert operator.left_out("day one") == set()


def test_day_two_someone_deleted_rows(operator: Operator, shop: str) -> None:
    good = asked(shop, SUM)
    run_sql(shop, "DELETE FROM orders WHERE id BETWEEN 100 AND 199")
    operator.does("day two: bring the table back")
    assert "100" in operator.does("day two: compare, and copy back")
    assert asked(shop, SUM) == good
    assert asked(shop, "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'restored_%'") == [(0,)]
    run_sql(shop, "DROP TABLE orders")
    operator.does("day two: a table that was dropped")
    assert asked(shop, SUM) == good
    assert asked(
        shop, "SELECT contype FROM pg_constraint WHERE conrelid = 'orders'::regclass AND contype = 'p'"
    )
    assert operator.left_out("day two") == set()


def test_day_three_the_server_is_gone(
    operator: Operator, shop: str, postgres: Postgres, ground: Path, tmp_path: Path
) -> None:
    good = asked(shop, SUM)
    with Postgres(ground / "new machine", postgres.version) as new:
        operator.environment |= {
            "DATABASE_URL": new.url("runbook_shop"),
            "BACKUP_DIR": str(tmp_path / "new machine"),
        }
        assert "s3" in operator.does("day three: what is there")
        operator.does("day three: everything back")
        assert asked(new.url("runbook_shop"), SUM) == good
    assert operator.left_out("day three") == set()
