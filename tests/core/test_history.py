"""How long recoveries took: what counts, and what is passed over."""

import math
from pathlib import Path

import pytest

from backup_dag.core import history


def test_each_kind_counts_the_steps_that_follow_one_another(tmp_path: Path) -> None:
    """A restore's `build` holds two others, and its `safety` backs up what a lost server has not."""
    history.record(tmp_path, "drill", "shop", seconds={"fetch": 1, "load": 2, "prove": 4, "start": 100})
    steps = {"verify": 1, "safety": 500, "load": 60, "analyze": 40, "build": 100, "prove": 10, "swap": 2}
    history.record(tmp_path, "restore", "shop", seconds=steps)
    history.record(tmp_path, "restore", "other", seconds=steps)
    assert [each.recovery for each in history.timings(tmp_path, "shop")] == [7, 113]
    assert [each.recovery for each in history.timings(tmp_path, "shop", "drill")] == [7]


def test_a_drill_that_found_faults_is_no_recovery_and_is_remembered(tmp_path: Path) -> None:
    history.record(tmp_path, "drill", "shop", backup="a", store="s3", seconds={"load": 1}, faults=["x"])
    history.record(tmp_path, "drill", "shop", backup="b", seconds={"load": 2}, asked=2, failed={"own": "why"})
    assert [each.recovery for each in history.timings(tmp_path, "shop")] == [2]
    first, second = history.drills(tmp_path, "shop")
    assert (first.backup, first.store, first.faults, first.asked) == ("a", "s3", ("x",), 0)
    assert (second.faults, second.asked, second.failed) == ((), 2, {"own": "why"})


@pytest.mark.parametrize("seconds", [{"load": math.nan}, {"load": math.inf}, {"load": "x"}, [], None])
def test_what_is_no_length_of_time_is_passed_over(tmp_path: Path, seconds: object) -> None:
    history.record(tmp_path, "restore", "shop", backup="a", seconds=seconds)
    assert history.timings(tmp_path, "shop") == []


@pytest.mark.parametrize(
    "said",
    [
        '"dump_bytes": ' + "9" * 400,
        '"dump_bytes": -1',
        '"seconds": {"load": 1e300}',
        '"seconds": {"load": -1}',
        '"time": "0001-01-01T00:00:00+14:00"',
        '"time": "9999-12-31T23:59:59-14:00"',
        '"x": ' + "[" * 100_000,
        '"x": ' + "9" * 5000,
    ],
)
def test_a_line_that_nobody_can_compute_with_is_passed_over(tmp_path: Path, said: str) -> None:
    history.record(tmp_path, "drill", "shop", backup="a", seconds={"load": 1})
    [good] = history.timings(tmp_path, "shop")
    with (tmp_path / ".restores.jsonl").open("a") as file:
        begin = '{"time": "2026-01-01T00:00:00Z", "what": "drill", "database": "shop", "seconds": {}, '
        file.write(f"{begin}{said}}}\n")
    assert history.timings(tmp_path, "shop") == [good]


def test_a_file_that_begins_with_a_mark_is_read_from_its_first_line(tmp_path: Path) -> None:
    history.record(tmp_path, "drill", "shop", backup="a", seconds={"load": 1})
    path = tmp_path / ".restores.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(history.timings(tmp_path, "shop")) == 1
