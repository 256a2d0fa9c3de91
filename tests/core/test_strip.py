"""Thirty days at a glance."""

from datetime import date, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from backup_dag.core.catalog import Catalog
from backup_dag.core.manifest import Level, Manifest
from backup_dag.core.store.local import LocalStore
from backup_dag.core.watching.strip import FAILED, LATE, NONE, PROVEN, UNPROVEN, strip
from tests.cleaning import checked
from tests.nights import at, fill, made

LAST = date(2025, 5, 10)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    (tmp_path / "backups").mkdir()
    return LocalStore(tmp_path / "backups")


def put(store: LocalStore, of: Manifest, level: Level | None = None, *faults: str) -> None:
    fill([store], store.folder.parent / "work", [of], level)
    if faults:
        store.put_note(of.id.file("verify.json"), checked(of, faults=faults))


def drawn(store: LocalStore, days: int = 5) -> str:
    return strip(Catalog([store]).newest_first(usable=False), LAST, days)


def test_each_day_has_a_sign_the_oldest_first(store: LocalStore) -> None:
    put(store, made(at(6)), "restore")
    put(store, made(at(7)), "content")
    put(store, made(at(8)), None, "rows of t")
    put(store, made(at(10, 12), day=date(2025, 5, 9), reason="late"))
    assert drawn(store) == PROVEN + UNPROVEN + FAILED + LATE + NONE


def test_a_day_is_as_well_as_its_best_backup(store: LocalStore) -> None:
    put(store, made(at(8)), None, "rows of t")
    put(store, made(at(8, 5)), "content")
    put(store, made(at(10, 3), day=date(2025, 5, 9), reason="late"), "restore")
    put(store, made(at(10)))
    put(store, made(at(10, 5)), "restore")
    assert drawn(store, 3) == UNPROVEN + PROVEN + PROVEN


def test_what_stands_for_no_day_and_what_lies_outside_is_not_drawn(store: LocalStore) -> None:
    put(store, made(at(9), reason="pre_restore"), "restore")
    put(store, made(at(5)), "restore")
    put(store, made(at(11)), "restore")
    assert drawn(store) == NONE * 5
    assert len(strip([], LAST)) == 30


def test_a_manifest_that_nobody_can_read_is_a_failure_of_its_day_unless_that_has_a_good_one(
    store: LocalStore,
) -> None:
    torn = made(at(9, 23))
    put(store, torn)
    (store.folder / torn.id.file("json")).write_text("{")
    assert drawn(store, 2) == FAILED + NONE
    found = Catalog([store]).newest_first(usable=False)
    assert strip(found, LAST, 2, ZoneInfo("Europe/Berlin")) == NONE + FAILED, "it was the tenth there"
    put(store, made(at(9)))
    assert drawn(store, 2) == UNPROVEN + NONE
    assert strip([], LAST - timedelta(days=400), 1) == NONE
