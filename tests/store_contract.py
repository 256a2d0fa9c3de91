"""What every store promises (backup_dag/core/store/base.py), as tests that take a store.

A test class of a store inherits from `StoreContract` and has a fixture `store`, empty at first.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backup_dag.core.errors import BackupNotFound, IntegrityError
from backup_dag.core.manifest import Bytes
from backup_dag.core.store.base import Store, Upload
from backup_dag.core.stream import BLOCK, Passed
from tests.core.made import measured, written

NAME = "backup_orders_20260314_120000.sql.gz.gpg"
BIG = bytes(range(256)) * 12_001 + b"end"  # three blocks, the last one short


class Gathered:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.blocks.append(bytes(data))


class Refusing:
    """A sink that takes a little and then raises its own error."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def write(self, data: bytes) -> None:
        raise self._error


class SinkFull(Exception):
    pass


def names(store: Store, beginning: str = "") -> list[str]:
    return [listed.name for listed in store.list(beginning)]


class StoreContract:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        """A file to put, on the file system of the store."""
        return tmp_path / "source"

    def put(self, store: Store, source: Path, data: bytes, name: str = NAME) -> Bytes:
        expected = written(source, data)
        store.put(source, name, expected)
        return expected

    # -- put

    @pytest.mark.parametrize("data", [b"", b"x", BIG], ids=["empty", "a byte", "several blocks"])
    def test_what_was_put_is_there_byte_for_byte(self, store: Store, source: Path, data: bytes) -> None:
        self.put(store, source, data)
        assert store.read(NAME) == data
        assert [(listed.name, listed.bytes) for listed in store.list()] == [(NAME, len(data))]

    def test_a_put_says_where_the_file_is_and_that_it_is_new(self, store: Store, source: Path) -> None:
        stored = store.put(source, NAME, written(source, b"x"))
        assert stored.new
        assert stored.address == store.address(NAME)
        assert stored.address == f"{store.address().rstrip('/')}/{NAME}"

    def test_a_second_put_of_the_same_bytes_is_no_error(self, store: Store, source: Path) -> None:
        self.put(store, source, b"same")
        again = store.put(source, NAME, written(source, b"same"))
        assert not again.new
        assert store.read(NAME) == b"same"

    @pytest.mark.parametrize("other", [b"othr", b"longer than before", b""])
    def test_a_put_of_other_bytes_is_refused_and_changes_nothing(
        self, store: Store, source: Path, other: bytes
    ) -> None:
        self.put(store, source, b"same")
        expected = written(source, other)
        with pytest.raises(IntegrityError):
            store.put(source, NAME, expected)
        assert store.read(NAME) == b"same"
        assert names(store) == [NAME]

    @pytest.mark.parametrize("found", [b"chanGed", b"cut", b""])
    def test_a_source_that_is_not_what_was_expected_is_refused_and_leaves_nothing(
        self, store: Store, source: Path, found: bytes
    ) -> None:
        expected = measured(b"changed")
        source.write_bytes(found)
        with pytest.raises(IntegrityError):
            store.put(source, NAME, expected)
        assert names(store) == []

    def test_a_put_of_a_missing_source_fails_and_leaves_nothing(self, store: Store, source: Path) -> None:
        with pytest.raises(Exception, match=r"source|writing"):
            store.put(source, NAME, measured(b"x"))
        assert names(store) == []

    def test_a_put_tells_how_far_it_is_or_says_nothing(self, store: Store, source: Path) -> None:
        said: list[Passed] = []
        store.put(source, NAME, written(source, BIG), said.append)
        assert all(0 < passed.done <= len(BIG) and passed.expected == len(BIG) for passed in said)
        assert store.read(NAME) == BIG

    # -- replace

    @pytest.mark.parametrize("data", [b"", b"other bytes", BIG], ids=["empty", "a few", "several blocks"])
    def test_what_replaces_a_file_is_there_instead_of_it(
        self, store: Store, source: Path, data: bytes
    ) -> None:
        self.put(store, source, b"as it was")
        store.replace(source, NAME, written(source, data))
        assert store.read(NAME) == data
        assert names(store) == [NAME]
        store.replace(source, "new", written(source, b"x"))
        assert store.read("new") == b"x"

    def test_a_source_that_is_not_what_was_expected_replaces_nothing(
        self, store: Store, source: Path
    ) -> None:
        self.put(store, source, b"as it was")
        expected = measured(b"promised")
        source.write_bytes(b"promisEd")
        with pytest.raises(IntegrityError):
            store.replace(source, NAME, expected)
        assert store.read(NAME) == b"as it was"

    # -- list

    def test_an_empty_store_lists_nothing(self, store: Store) -> None:
        assert list(store.list()) == []

    def test_listings_come_in_the_order_of_names_with_sizes(self, store: Store, source: Path) -> None:
        for size, name in enumerate(["b.json", "a.sql", "b-1", "B", "a", "a.sha256", "b_1", "10", "9"]):
            self.put(store, source, b"x" * size, name)
        listed = list(store.list())
        assert [entry.name for entry in listed] == sorted(entry.name for entry in listed)
        assert {entry.name: entry.bytes for entry in listed}["a.sha256"] == 5
        assert len(listed) == 9

    def test_a_listing_can_be_of_names_that_begin_so(self, store: Store, source: Path) -> None:
        for name in ("ab.json", "ab.sql", "abc.json", "b.ab."):
            self.put(store, source, b"", name)
        assert names(store, "ab.") == ["ab.json", "ab.sql"]
        assert names(store, "zz") == []

    def test_a_listing_tells_when_a_file_came_to_be_there(self, store: Store, source: Path) -> None:
        before = datetime.now(UTC)
        self.put(store, source, b"x")
        store.put_note("note", "y")
        for listed in store.list():
            assert listed.modified.utcoffset() == timedelta(0)
            assert abs(listed.modified - before) < timedelta(seconds=20)  # some stores know whole seconds

    # -- notes

    def test_a_note_takes_the_place_of_an_older_one(self, store: Store) -> None:
        store.put_note("x.verify.json", "first, and longer\n")
        store.put_note("x.verify.json", "größer\n")
        assert store.read("x.verify.json") == "größer\n".encode()
        assert names(store) == ["x.verify.json"]

    # -- fetch and read

    def test_what_is_fetched_comes_in_order(self, store: Store, source: Path) -> None:
        self.put(store, source, BIG)
        gathered = Gathered()
        store.fetch(NAME, gathered)
        assert b"".join(gathered.blocks) == BIG
        assert max(map(len, gathered.blocks)) <= BLOCK

    def test_fetching_what_is_not_there_says_so(self, store: Store, source: Path) -> None:
        self.put(store, source, b"x")
        gathered = Gathered()
        for missing in ("backup_orders_20260314_120001.sql.gz.gpg", NAME[:-1]):
            with pytest.raises(BackupNotFound):
                store.fetch(missing, gathered)
            with pytest.raises(BackupNotFound):
                store.read(missing)
        assert gathered.blocks == []

    @pytest.mark.parametrize(
        "error", [SinkFull("full"), OSError(28, "no space"), BrokenPipeError(), KeyboardInterrupt()], ids=repr
    )
    def test_the_sinks_own_error_comes_through_unchanged(
        self, store: Store, source: Path, error: BaseException
    ) -> None:
        self.put(store, source, BIG)
        with pytest.raises(type(error)) as raised:
            store.fetch(NAME, Refusing(error))
        assert raised.value is error

    # -- remove

    def test_what_was_removed_is_gone_and_can_be_removed_again(self, store: Store, source: Path) -> None:
        self.put(store, source, b"x")
        self.put(store, source, b"y", "other")
        store.remove(NAME)
        store.remove(NAME)
        assert names(store) == ["other"]
        with pytest.raises(BackupNotFound):
            store.read(NAME)

    def test_a_name_that_was_removed_can_be_put_anew(self, store: Store, source: Path) -> None:
        self.put(store, source, b"x")
        store.remove(NAME)
        self.put(store, source, b"other")
        assert store.read(NAME) == b"other"

    def test_it_says_which_host_serves_it(self, store: Store) -> None:
        assert store.host in ("", "127.0.0.1")

    # -- locks and unfinished uploads

    def test_what_is_not_locked_or_not_there_has_no_lock(self, store: Store, source: Path) -> None:
        self.put(store, source, b"x")
        assert store.locked_until(NAME) is None
        assert store.locked_until("backup_orders_20260314_120001.json") is None
        assert store.shows_locks(NAME), "it was seen that there is none"

    def test_a_put_that_has_ended_is_no_unfinished_upload(self, store: Store, source: Path) -> None:
        self.put(store, source, BIG)
        assert list(store.unfinished()) == []

    def test_an_upload_that_is_not_there_can_be_ended(self, store: Store, source: Path) -> None:
        self.put(store, source, b"x")
        store.abort(Upload(NAME, "0123456789abcdef", datetime.now(UTC)))
        assert names(store) == [NAME]

    # -- probe

    def test_a_probe_leaves_nothing_and_touches_nothing(self, store: Store, source: Path) -> None:
        self.put(store, source, b"x")
        store.probe()
        store.probe()
        assert [(listed.name, listed.bytes) for listed in store.list()] == [(NAME, 1)]
