"""One backup, on every version and in both formats."""

from collections.abc import Mapping

import pytest

from backup_dag.core.backup import order_for, take_backup
from backup_dag.core.catalog import Catalog
from backup_dag.core.databases import Plan
from backup_dag.core.manifest import Level
from backup_dag.core.settings import Format, Settings
from backup_dag.core.store.local import LocalStore
from backup_dag.core.verify import examine, record
from demo.servers import Postgres
from tests.conftest import database


@pytest.mark.parametrize("format", ["sql", "custom"])
def test_what_was_backed_up_verifies_to_the_last_row(
    each_postgres: Postgres, sample_urls: Mapping[int, str], settings: Settings, format: Format
) -> None:
    source = database(sample_urls[each_postgres.version], plan=Plan(format=format))
    made = take_backup(settings, order_for(source, settings, None))
    copy = Catalog([LocalStore(settings.backup_dir)]).load(made.id).copies[0]
    assert copy.manifest == made
    levels: tuple[Level, ...] = ("checksum", "content")
    for level in levels:
        check = examine(settings, copy, level)
        assert check.faults == []
        record(copy.store, made, check)
    assert sorted(path.name for path in settings.backup_dir.iterdir()) == sorted(
        [".audit", ".work", *made.names, f"{made.id}.verify.json"]
    )
    assert list((settings.backup_dir / ".work").iterdir()) == []
