"""Is a backup as large as the ones before it?"""

from pathlib import Path

import pytest

from backup_dag.core.catalog import Catalog
from backup_dag.core.copies import Backup
from backup_dag.core.manifest import BackupId
from backup_dag.core.settings import Settings
from backup_dag.core.store.local import LocalStore
from backup_dag.core.watching.usual import changes, gap, nights_before
from tests.nights import at, fill, made


@pytest.mark.parametrize(
    ("before", "now", "percent", "as_usual"),
    [
        ([100], 50, -50, True),
        ([100], 49, -51, False),
        ([100], 300, 200, True),
        ([100], 301, 201, False),
        ([0], 0, 0, True),
        ([0], 99, float("inf"), True),  # too few to say anything
        ([0], 100, float("inf"), False),
        ([], 7, 0, True),
        ([100, 100, 1, 100], 100, 0, True),  # one odd night is none
        ([1, 1, 1, 1, 1, 1, 1, 100, 100, 100], 1, 0, True),  # the newest seven; here those of the right
    ],
)
def test_a_change_is_told_against_the_median_of_the_newest_seven(
    settings: Settings, before: list[int], now: int, percent: float, as_usual: bool
) -> None:
    nights = [made(at(day), rows=rows) for day, rows in enumerate(before, 1)]
    _, rows = changes(settings, made(at(20), rows=now), list(reversed(nights)))
    assert (rows.percent, rows.as_usual) == (percent, as_usual)


def test_a_change_says_itself_in_words(settings: Settings) -> None:
    size, rows = changes(settings, made(at(2), dump=500, rows=10), [made(at(1), dump=1000, rows=10)])
    assert str(size) == "500 bytes of dump, -50 % against the 1,000 of the nights before"
    assert str(rows) == "10 rows, +0 % against the 10 of the nights before"
    assert str(changes(settings, made(at(1)), [])[1]) == "100 rows, the first"


def test_the_gap_is_to_the_one_before(settings: Settings) -> None:
    assert gap(made(at(3)), []) is None
    assert gap(made(at(3)), [made(at(1)), made(at(2)), made(at(4))]) == at(3) - at(2)


class Counting(Catalog):
    """A catalog that counts what it loads."""

    loaded = 0

    def load(self, backup: BackupId) -> Backup:
        self.loaded += 1
        return super().load(backup)


def test_the_nights_before_are_read_without_those_after(tmp_path: Path) -> None:
    """And without those that are damaged, or stand for no night."""
    (tmp_path / "backups").mkdir()
    store = LocalStore(tmp_path / "backups")
    all_of_them = [made(at(day)) for day in range(1, 15)]
    fill([store], tmp_path / "work", [*all_of_them, made(at(4, 12), reason="pre_restore")])
    (store.folder / all_of_them[2].artifact.name).write_bytes(b"short")
    catalog = Counting([store])
    found = nights_before(catalog, all_of_them[5], 3)
    assert [each.backup for each in found] == [all_of_them[n].backup for n in (4, 3, 1)]
    assert catalog.loaded == 5
