"""A small part of `make torture`: a backup that is damaged in whatever way is found to be."""

from pathlib import Path

import pytest

from demo.servers import Postgres
from tests.conftest import make_database, run_sql
from torture import damage
from torture.damage import Damage, Pristine, backed_up, chosen, damaged, is_still_the_same

SEED = 20261125


@pytest.fixture(scope="module")
def pristine(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Pristine:
    url = make_database(postgres)
    run_sql(url, "CREATE TABLE t AS SELECT n, 'größe' AS what FROM generate_series(1, 100) n")
    return backed_up(url, tmp_path_factory.mktemp("damage") / "backups")


def test_what_is_damaged_is_found(pristine: Pristine) -> None:
    tally = damaged(pristine, SEED, flips=300, others=100, restored=4, every=40)
    assert tally.found == ()
    assert (tally.tried, tally.held) == (404, 404)
    assert {case.file for case in chosen(pristine, SEED, 300, 100)} == set(pristine.files)


def test_what_only_looks_other_is_whole(pristine: Pristine) -> None:
    spaced = Damage("manifest", "spaced", 3)
    with pristine.damaged(spaced) as now:
        assert is_still_the_same(pristine, spaced, now)
        assert damage._faults(pristine, "content") == []
    assert damage._violation(pristine, Damage("checksum", "spaced", 3), "checksum") == ""


def test_damage_that_nobody_finds_is_told(pristine: Pristine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "_faults", lambda pristine, level: [])
    tally = damaged(pristine, SEED, flips=3, others=0)
    assert (tally.tried, tally.held) == (3, 0)
    assert all("was not found" in each and "Damage(" in each for each in tally.found)


def test_a_reader_that_breaks_is_told(pristine: Pristine, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> list[str]:
        raise KeyError("what")

    monkeypatch.setattr(damage, "_faults", breaks)
    assert "KeyError" in damaged(pristine, SEED, flips=1, others=0).found[0]


def test_the_backup_is_as_it_was_afterwards(pristine: Pristine) -> None:
    for path, whole in pristine.files.values():
        assert Path(path).read_bytes() == whole
    assert damage._faults(pristine, "content") == []
