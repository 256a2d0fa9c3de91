"""A copy is whole at every moment of being replaced, whoever dies; and the next run ends what was begun."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from backup_dag.core.catalog import Catalog
from backup_dag.core.errors import IntegrityError, StoreUnreachable
from backup_dag.core.manifest import Bytes, Encryption, File, Globals, Manifest, named_for
from backup_dag.core.publish import publish
from backup_dag.core.replacement import replace_copy, tidy
from backup_dag.core.stages.checksum import checksum_file, is_listed
from backup_dag.core.store.base import Listed, Stored
from backup_dag.core.store.local import LocalStore
from backup_dag.core.stream import Observer
from tests.core.made import lay_out, manifest, measured

NEW_KEY = "fedcba9876543210"
NEW_ARTIFACT, NEW_ROLES = b"the same dump, otherwise", b"the same roles"
CHANGES = 7  # two of data, .sha256, manifest, .sha256, and two that go


class Died(BaseException):
    """As a process that is killed: nothing more is done by it."""


class Dying(LocalStore):
    """A real store whose user dies before the n-th change (from 0), or at it: when it is half done or
    done."""

    def __init__(self, folder: Path, dies_at: int | None = None, *, afterwards: bool = False) -> None:
        super().__init__(folder)
        self._left, self._afterwards, self._dead = dies_at, afterwards, False
        self.changes = 0

    def _before(self) -> None:
        if self._dead or (self._left == self.changes and not self._afterwards):
            self._dead = True
            raise Died

    def _after(self) -> None:
        self.changes += 1
        if self._left == self.changes - 1 and self._afterwards:
            self._dead = True
            raise Died

    def put(self, source: Path, name: str, expected: Bytes, observer: Observer | None = None) -> Stored:
        self._before()
        stored = super().put(source, name, expected, observer)
        self._after()
        return stored

    def replace(self, source: Path, name: str, expected: Bytes) -> None:
        self._before()
        super().replace(source, name, expected)
        self._after()

    def remove(self, name: str) -> None:
        self._before()
        super().remove(name)
        self._after()

    def list(self, beginning: str = "") -> Iterator[Listed]:
        if self._dead:
            raise Died
        return super().list(beginning)


@pytest.fixture
def old(tmp_path: Path) -> Manifest:
    """A backup in the folder `backups`."""
    (tmp_path / "backups").mkdir()
    made = lay_out(tmp_path / "work")
    publish(LocalStore(tmp_path / "backups"), made, tmp_path / "work")
    return made


def under_another_key(old: Manifest, folder: Path) -> Manifest:
    """The same backup under NEW_KEY, its data laid out in a folder."""
    folder.mkdir()
    artifact = File(name=named_for(old.artifact.name, NEW_KEY), **measured(NEW_ARTIFACT).model_dump())
    roles = Globals(
        name=named_for(old.globals.name, NEW_KEY), password_hashes=True, **measured(NEW_ROLES).model_dump()
    )
    (folder / artifact.name).write_bytes(NEW_ARTIFACT)
    (folder / roles.name).write_bytes(NEW_ROLES)
    encryption = Encryption(mode="symmetric", cipher="AES256", key_fingerprints=[NEW_KEY])
    return old.model_copy(update={"artifact": artifact, "globals": roles, "encryption": encryption})


def assert_whole(store: LocalStore, *either: Manifest) -> Manifest:
    """One of the two is there, and every file of it, each of its digest, as sha256sum sees it too."""
    [copy] = Catalog([LocalStore(store.folder)]).load(either[0].id).copies
    assert copy.fault == ""
    assert copy.manifest in either
    assert copy.manifest is not None
    for file in copy.manifest.files:
        assert measured((store.folder / file.name).read_bytes()) == file.measured
    listed = (store.folder / copy.manifest.id.file("sha256")).read_text()
    for line in listed.splitlines():
        digest, name = line.split("  ")
        assert measured((store.folder / name).read_bytes()).sha256 == digest
    assert is_listed(listed.encode(), copy.manifest.files)
    return copy.manifest


def files(store: LocalStore) -> set[str]:
    return {listed.name for listed in LocalStore(store.folder).list()}


def test_a_copy_is_replaced_and_nothing_of_the_old_one_stays(tmp_path: Path, old: Manifest) -> None:
    store = Dying(tmp_path / "backups")
    new = under_another_key(old, tmp_path / "new")
    replace_copy(store, old, new, tmp_path / "new")
    assert store.changes == CHANGES
    assert assert_whole(store, new) == new
    assert files(store) == set(new.names)
    assert (store.folder / new.id.file("sha256")).read_text().count("\n") == 2


@pytest.mark.parametrize("afterwards", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(CHANGES))
def test_whoever_dies_leaves_a_whole_copy_and_the_next_one_ends_it(
    tmp_path: Path, old: Manifest, at: int, afterwards: bool
) -> None:
    store = Dying(tmp_path / "backups", at, afterwards=afterwards)
    new = under_another_key(old, tmp_path / "new")
    with pytest.raises(Died):
        replace_copy(store, old, new, tmp_path / "new")
    there = assert_whole(store, old, new)
    assert (there == new) == (at > 3 or (at == 3 and afterwards)), "the manifest is the fourth change"
    again = LocalStore(store.folder)
    if there == old:
        replace_copy(again, old, under_another_key(old, tmp_path / "again"), tmp_path / "again")
    else:
        tidy(again, new, tmp_path / "new")
    assert assert_whole(store, new) == new
    assert files(store) == set(new.names)


@pytest.mark.parametrize("afterwards", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(CHANGES))
def test_what_was_begun_can_be_given_up(tmp_path: Path, old: Manifest, at: int, afterwards: bool) -> None:
    """Somebody who sets the old passphrase again finds the copy as it was, and `tidy` ends that too."""
    store = Dying(tmp_path / "backups", at, afterwards=afterwards)
    with suppress(Died):
        replace_copy(store, old, under_another_key(old, tmp_path / "new"), tmp_path / "new")
    new = under_another_key(old, tmp_path / "again")
    there = assert_whole(store, old, new)
    tidy(LocalStore(store.folder), there, tmp_path / "again")
    assert assert_whole(store, there) == there
    assert files(store) == set(there.names)


@pytest.mark.parametrize("broken", [0, 1])
def test_data_that_cannot_be_put_leaves_all_as_it_was(tmp_path: Path, old: Manifest, broken: int) -> None:
    store = LocalStore(tmp_path / "backups")
    before = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    new = under_another_key(old, tmp_path / "new")
    (tmp_path / "new" / new.files[broken].name).write_bytes(b"not what was made")
    with pytest.raises(IntegrityError):
        replace_copy(store, old, new, tmp_path / "new")
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == before


def test_nothing_is_removed_while_a_named_file_is_not_there(tmp_path: Path, old: Manifest) -> None:
    store = LocalStore(tmp_path / "backups")
    new = under_another_key(old, tmp_path / "new")
    store.put(tmp_path / "new" / new.artifact.name, new.artifact.name, new.artifact)
    (store.folder / old.globals.name).unlink()
    before = files(store)
    with pytest.raises(IntegrityError, match="not there"):
        tidy(store, old, tmp_path / "new")
    assert files(store) == before


def test_nothing_is_removed_beside_a_manifest_that_is_another_by_now(tmp_path: Path, old: Manifest) -> None:
    store = LocalStore(tmp_path / "backups")
    new = under_another_key(old, tmp_path / "new")
    with pytest.raises(IntegrityError, match="not what it was a moment ago"):
        tidy(store, new, tmp_path / "new")
    assert files(store) == set(old.names)


def beside(store: LocalStore, of: Manifest) -> list[str]:
    [copy] = Catalog([store]).load(of.id).copies
    return [*copy.unnamed]


def test_only_data_that_the_manifest_does_not_name_is_beside_it(tmp_path: Path, old: Manifest) -> None:
    store = LocalStore(tmp_path / "backups")
    of_another = manifest("orders_2").artifact.name
    store.put_note(old.id.file("json"), old.to_json())
    for name in (
        old.id.file("verify.json"),
        old.id.file("hold-1-2.json"),
        f"{old.id}.sql.gz.gpg.txt",
        of_another,
    ):
        store.put_note(name, "not data of it")
    assert beside(store, old) == []
    unnamed = [f"{old.id}.globals.sql.gz.{NEW_KEY}.gpg", f"{old.id}.sql.gz.{NEW_KEY}.gpg"]
    for name in unnamed:
        store.put_note(name, "data")
    assert beside(store, old) == unnamed


class Silent(LocalStore):
    """A store that does not say whether it replaced the manifest: it did, and the answer was lost."""

    def replace(self, source: Path, name: str, expected: Bytes) -> None:
        super().replace(source, name, expected)
        if name.endswith(".json"):
            raise StoreUnreachable("no answer")


def test_an_answer_that_was_lost_takes_nothing_back(tmp_path: Path, old: Manifest) -> None:
    """Else the files would go whose manifest is there."""
    store = Silent(tmp_path / "backups")
    new = under_another_key(old, tmp_path / "new")
    with pytest.raises(StoreUnreachable):
        replace_copy(store, old, new, tmp_path / "new")
    assert assert_whole(store, new) == new


@pytest.mark.parametrize(
    "change",
    [
        lambda old, new: new,
        lambda old, new: "",
        lambda old, new: old + old,
        lambda old, new: old + new.replace("orders", "others"),
        lambda old, new: old + new.replace(f".{NEW_KEY}", ""),
        lambda old, new: old + new + "a line of somebody's\n",
        lambda old, new: old + new.rstrip("\n"),
        lambda old, new: new.replace("0", "1") + old.replace("a", "b"),
        lambda old, new: old + new.replace(".gpg", ".gpg/../x"),
    ],
)
def test_a_checksum_file_of_anything_else_is_not_that_of_these_files(
    tmp_path: Path, old: Manifest, change: Callable[[str, str], str]
) -> None:
    new = under_another_key(old, tmp_path / "new")
    before, after = checksum_file(old.files), checksum_file(new.files)
    assert is_listed(before.encode(), old.files)
    assert is_listed((before + after).encode(), old.files)
    assert is_listed((before + after).encode(), new.files)
    assert not is_listed(change(before, after).encode(), old.files)


def test_two_manifests_are_of_one_backup_where_only_the_passphrase_differs(
    tmp_path: Path, old: Manifest
) -> None:
    new = under_another_key(old, tmp_path / "new")
    assert old.is_same_backup(old)
    assert old.is_same_backup(new)
    assert new.is_same_backup(old)
    other_content = new.content.model_copy(update={"sha256": "00"})
    assert not old.is_same_backup(new.model_copy(update={"content": other_content}))
    assert old.is_same_backup(new.model_copy(update={"encryption": old.encryption})), "by two hosts"
    assert not old.is_same_backup(
        new.model_copy(update={"compressed": old.compressed.model_copy(update={"bytes": 9})})
    )
    off = Encryption(mode="off", cipher=None, key_fingerprints=[])
    assert not old.is_same_backup(new.model_copy(update={"encryption": off}))
