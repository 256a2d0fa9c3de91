"""Publishing: data first, the manifest last, and all of it or nothing."""

from pathlib import Path

import pytest

from backup_dag.core.errors import DiskError, IntegrityError, StoreUnreachable
from backup_dag.core.manifest import Bytes, Manifest
from backup_dag.core.publish import publish
from backup_dag.core.store.base import Stored
from backup_dag.core.store.local import LocalStore
from backup_dag.core.stream import Observer
from tests.core.made import lay_out


class Watched(LocalStore):
    """A real store that writes down what is done to it, and may fail at the n-th put (from 0)."""

    def __init__(self, folder: Path, fails_at: int | None = None, error: BaseException | None = None) -> None:
        super().__init__(folder)
        self.done: list[tuple[str, str]] = []
        self._fails_at, self._error = fails_at, error or StoreUnreachable("gone")

    def put(self, source: Path, name: str, expected: Bytes, observer: Observer | None = None) -> Stored:
        if len(self.done) == self._fails_at:
            raise self._error
        self.done.append(("put", name))
        return super().put(source, name, expected, observer)

    def remove(self, name: str) -> None:
        self.done.append(("remove", name))
        super().remove(name)

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def made(tmp_path: Path) -> Manifest:
    return lay_out(tmp_path / "work")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "backups"
    folder.mkdir()
    return folder


def test_data_comes_first_and_the_manifest_last(tmp_path: Path, folder: Path, made: Manifest) -> None:
    store = Watched(folder)
    stored = publish(store, made, tmp_path / "work")
    put = [name for _, name in store.done]
    assert put == [made.artifact.name, made.globals.name, f"{made.id}.sha256", f"{made.id}.json"]
    assert store.files == set(put)
    assert {name: at.address for name, at in stored.items()} == {name: str(folder / name) for name in put}


@pytest.mark.parametrize("fails_at", range(4))
@pytest.mark.parametrize("error", [StoreUnreachable("gone"), KeyboardInterrupt(), RuntimeError("bug")])
def test_a_failure_at_any_file_leaves_nothing(
    tmp_path: Path, folder: Path, made: Manifest, fails_at: int, error: BaseException
) -> None:
    store = Watched(folder, fails_at, error)
    with pytest.raises(type(error)) as raised:
        publish(store, made, tmp_path / "work")
    assert raised.value is error
    assert store.files == set()
    put = [name for verb, name in store.done if verb == "put"]
    assert [name for verb, name in store.done if verb == "remove"] == put[::-1]


@pytest.mark.parametrize("fails_at", range(1, 4))
def test_files_that_were_there_before_stay_where_a_later_one_fails(
    tmp_path: Path, folder: Path, made: Manifest, fails_at: int
) -> None:
    before = made.names[0]
    (folder / before).write_bytes((tmp_path / "work" / before).read_bytes())
    (folder / "other").touch()
    store = Watched(folder, fails_at)
    with pytest.raises(StoreUnreachable):
        publish(store, made, tmp_path / "work")
    assert store.files == {before, "other"}


@pytest.mark.parametrize("position", range(4))
def test_another_file_of_that_name_is_left_and_nothing_else_stays(
    tmp_path: Path, folder: Path, made: Manifest, position: int
) -> None:
    taken = made.names[position]
    (folder / taken).write_text("not ours")
    with pytest.raises(IntegrityError):
        publish(Watched(folder), made, tmp_path / "work")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {taken: "not ours"}


@pytest.mark.parametrize("position", range(4))
def test_a_file_that_is_missing_leaves_nothing(
    tmp_path: Path, folder: Path, made: Manifest, position: int
) -> None:
    (tmp_path / "work" / made.names[position]).unlink()
    store = Watched(folder)
    with pytest.raises((DiskError, FileNotFoundError)):
        publish(store, made, tmp_path / "work")
    assert store.files == set()


def test_publishing_twice_brings_nothing_new(tmp_path: Path, folder: Path, made: Manifest) -> None:
    publish(Watched(folder), made, tmp_path / "work")
    lay_out(tmp_path / "work")
    again = publish(Watched(folder), made, tmp_path / "work")
    assert [stored.new for stored in again.values()] == [False] * 4


def test_a_data_file_that_is_not_what_the_manifest_promises_is_not_published(
    tmp_path: Path, folder: Path, made: Manifest
) -> None:
    (tmp_path / "work" / made.artifact.name).write_bytes(b"Not really a dump")
    store = Watched(folder)
    with pytest.raises(IntegrityError):
        publish(store, made, tmp_path / "work")
    assert store.files == set()
