"""A small part of `make torture`: hostile input, and all that ever was found by it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from backup_dag.core.errors import IntegrityError
from torture.inputs import CORPUS, Kind, fault, kinds, tortured

SEED = 20261125
SLOW = ("manifest in a store", "check", "hold", "audit", "audit sent", "restores", "told", "usual")
QUICK = ("manifest", "name", "address", "code", "dump", "roles", "gzip", "settings", "databases")


@pytest.fixture(scope="module")
def readers() -> Iterator[Mapping[str, Kind]]:
    with kinds() as made:
        yield made


def test_all_readers_are_asked(readers: Mapping[str, Kind]) -> None:
    assert readers.keys() == {*SLOW, *QUICK}
    assert {path.parent.name for path in CORPUS.glob("*/*")} <= readers.keys()
    assert len(list(CORPUS.glob("*/*"))) >= 19


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_hostile_input_is_read_or_refused(readers: Mapping[str, Kind], name: str) -> None:
    found, count = tortured(readers[name], SEED, 6 if name in SLOW else 60)
    assert found == []
    assert count >= 6


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_what_is_not_spoilt_is_read(readers: Mapping[str, Kind], name: str) -> None:
    for seed in readers[name].seeds:
        assert fault(readers[name].target, seed) == ""


@pytest.mark.parametrize(
    "path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_what_was_found_once_is_not_found_again(readers: Mapping[str, Kind], path: Path) -> None:
    assert fault(readers[path.parent.name].target, path.read_bytes()) == ""


@pytest.mark.parametrize("name", ["restores", "audit"])
def test_a_log_full_of_empty_lines_is_read_in_time(readers: Mapping[str, Kind], name: str) -> None:
    assert fault(readers[name].target, b"\n" * 1_000_000 + readers[name].seeds[0]) == ""


def test_a_setting_that_asks_for_much_to_be_replaced_is_refused_in_time(readers: Mapping[str, Kind]) -> None:
    """The end of each is looked for in all that follows: the square of their number."""
    flood = b"BACKUP_RPO=" + b"${" * 300_000 + b"\n"
    assert fault(readers["settings"].target, readers["settings"].seeds[0] + flood) == ""
    assert fault(readers["settings"].target, b"BACKUP_RPO=" + b"${" * 32 + b"a" * 200_000) == ""


def test_each_way_to_break_the_promise_is_told() -> None:
    def forever(text: bytes) -> None:
        while True:
            pass

    def crashes(text: bytes) -> None:
        raise RecursionError(text)

    def refuses(text: bytes) -> None:
        raise IntegrityError("no", hint="none")

    def babbles(text: bytes) -> None:
        raise IntegrityError("no" * 20_000)

    assert "2.0 s" in fault(forever, b"")
    assert "RecursionError" in fault(crashes, b"")
    assert "characters" in fault(babbles, b"")
    assert fault(refuses, b"") == ""
    wrong, count = tortured(Kind(crashes, (b"a",), (b"b",)), SEED, 5)
    assert len(wrong) == 1
    assert count >= 1
