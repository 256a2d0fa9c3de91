"""The catalog: what the stores hold, told from them alone, with what is wrong named and left alone."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from backup_dag.core.catalog import Catalog, find, open_stores
from backup_dag.core.errors import BackupNotFound, DiskError, IntegrityError, StoreError, StoreUnreachable
from backup_dag.core.manifest import BackupId, Check, Manifest, Verification
from backup_dag.core.publish import publish
from backup_dag.core.restoring.plan import Wish
from backup_dag.core.restoring.wished import found_for
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import PROBE, Store
from backup_dag.core.store.local import LocalStore
from backup_dag.core.store.s3 import S3Store
from backup_dag.core.verify import verify_latest
from demo.servers import S3Server
from tests.core.made import NOON, lay_out, manifest


def at(minutes: int, name: str = "orders") -> Manifest:
    return manifest(name, NOON + timedelta(minutes=minutes))


@pytest.fixture
def folder(settings: Settings) -> Path:
    settings.backup_dir.mkdir()
    return settings.backup_dir


@pytest.fixture
def catalog(folder: Path) -> Catalog:
    return Catalog([LocalStore(folder)])


@pytest.fixture
def both(settings: Settings, bucket: str) -> Settings:
    """Settings with a bucket too."""
    return settings.model_copy(update={"aws_s3_bucket": bucket, "backup_s3_prefix": "prod/"})


@pytest.fixture
def offsite(both: Settings, s3: S3Server) -> S3Store:
    return S3Store(s3.client(), both)


def upload(store: S3Store, folder: Path, made: Manifest) -> None:
    publish(store, lay_out(folder, made), folder)


# -- all at once


def test_all_at_once_is_what_one_by_one_is(
    both: Settings, offsite: S3Store, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    for made in (at(1), at(2), at(3), at(2, "orders_old")):
        lay_out(folder, made)
    upload(offsite, tmp_path / "work", at(2))
    upload(offsite, tmp_path / "work", at(0))
    (folder / at(1).id.file("json")).write_text("{")
    (folder / at(3).artifact.name).write_bytes(b"short")
    stores: list[Store] = [LocalStore(folder), offsite]
    every = Catalog(stores).every("orders")
    assert [each.id for each in every] == [at(day).id for day in (3, 2, 1, 0)]
    assert every == [Catalog(stores).load(each.id) for each in every]


def test_of_all_at_once_too_a_store_that_is_away_is_missed_and_the_last_one_raised(
    both: Settings, folder: Path, s3: S3Server
) -> None:
    lay_out(folder, at(1))
    gone = S3Store(s3.client(), both.model_copy(update={"aws_s3_bucket": "no-such-bucket"}))
    [backup] = Catalog([LocalStore(folder), gone]).every("orders")
    assert [error.exit_code for error in backup.missed] == [7]
    with pytest.raises(StoreError):
        Catalog([gone]).every("orders")


# -- survey


def test_backups_are_told_newest_first_over_all_databases(catalog: Catalog, folder: Path) -> None:
    for made in (at(1), at(3), at(2, "crm"), at(0, "zoo")):
        lay_out(folder, made)
    survey = catalog.survey()
    assert survey.ids == [at(3).id, at(2, "crm").id, at(1).id, at(0, "zoo").id]
    assert survey.strays == []
    assert catalog.survey("orders").ids == [at(3).id, at(1).id]
    assert catalog.survey("missing").ids == []


def test_a_place_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    catalog = Catalog([LocalStore(tmp_path / "nowhere")])
    assert catalog.survey().ids == []
    with pytest.raises(BackupNotFound, match="nowhere"):
        catalog.latest()


def test_one_database_is_not_taken_for_another_whose_name_begins_so(catalog: Catalog, folder: Path) -> None:
    lay_out(folder, at(0, "orders_20260314"))
    lay_out(folder, at(0, "orders"))
    lay_out(folder, at(0, "orders_old"))
    assert catalog.survey("orders").ids == [at(0).id]
    assert catalog.load(at(0).id).copies[0].fault == ""


STRANGERS = [
    "notes.txt",
    "backup_orders.sql",
    "backup_orders_20260230_000000.json",
    "backup_orders_20260314_120000",
    "backup_orders_20260314_120000~",
    "pg_dump.sql.gz",
    "backup_-x_20260314_120000.json",
]


def test_strangers_are_named_and_left_alone(catalog: Catalog, folder: Path) -> None:
    made = lay_out(folder)
    for name in STRANGERS:
        (folder / name).write_text("someone else's")
    (folder / PROBE).write_text("an attempt of ours, that was cut short")
    survey = catalog.survey()
    assert survey.ids == [made.id]
    assert {stray.address for stray in survey.strays} == {str(folder / name) for name in STRANGERS}
    assert {stray.why for stray in survey.strays} == {"not a backup's name"}
    assert all((folder / name).read_text() == "someone else's" for name in STRANGERS)


def test_files_without_a_manifest_are_no_backup_and_are_named(catalog: Catalog, folder: Path) -> None:
    made = lay_out(folder)
    (folder / f"{made.id}.json").unlink()
    survey = catalog.survey()
    assert survey.ids == []
    assert [stray.address for stray in survey.strays] == sorted(str(folder / n) for n in made.names[:-1])
    assert all("no manifest" in stray.why for stray in survey.strays)
    with pytest.raises(BackupNotFound):
        catalog.load(made.id)
    assert len(list(folder.iterdir())) == 3


# -- load


def test_a_whole_backup_has_no_fault(catalog: Catalog, folder: Path) -> None:
    made = lay_out(folder)
    found = catalog.load(made.id)
    assert (found.id, found.manifest) == (made.id, made)
    (copy,) = found.copies
    assert (copy.fault, copy.verification, copy.manifest) == ("", None, made)


@pytest.mark.parametrize("which", ["artifact", "globals"])
@pytest.mark.parametrize("damage", ["missing", "short", "long"])
def test_a_file_that_is_missing_or_of_another_length_is_a_fault(
    catalog: Catalog, folder: Path, which: str, damage: str
) -> None:
    made = lay_out(folder)
    path = folder / getattr(made, which).name
    content = path.read_bytes()
    changed = {"missing": None, "short": content[:-1], "long": content + b"x"}[damage]
    path.unlink() if changed is None else path.write_bytes(changed)
    (copy,) = catalog.load(made.id).copies
    assert str(path) in copy.fault
    assert ("not there" in copy.fault) == (changed is None)
    assert copy.manifest == made


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"[" * 100_000, b'{"schema_version": 99}', b"\xff"])
def test_a_manifest_that_cannot_be_read_is_a_fault(catalog: Catalog, folder: Path, text: bytes) -> None:
    made = lay_out(folder)
    (folder / f"{made.id}.json").write_bytes(text)
    found = catalog.load(made.id)
    assert found.copies[0].manifest is None
    assert f"{made.id}.json" in found.copies[0].fault
    with pytest.raises(IntegrityError, match="no copy of"):
        _ = found.manifest
    assert catalog.survey().ids == [made.id]


def test_the_results_of_checks_lie_beside_it(catalog: Catalog, folder: Path) -> None:
    made = lay_out(folder)
    record = Verification(backup=str(made.id)).with_check(
        Check(level="content", time=NOON, seconds=1, made_by="x", faults=["bad"])
    )
    (folder / f"{made.id}.verify.json").write_text(record.to_json())
    assert catalog.load(made.id).copies[0].verification == record
    assert catalog.survey().strays == []


@pytest.mark.parametrize("text", [b"", b"[]", b'{"checks": {"deep": 1}}', b"[" * 100_000, b"\xff"])
def test_results_that_cannot_be_read_are_as_if_there_were_none(
    catalog: Catalog, folder: Path, text: bytes
) -> None:
    made = lay_out(folder)
    (folder / f"{made.id}.verify.json").write_bytes(text)
    (copy,) = catalog.load(made.id).copies
    assert (copy.verification, copy.fault) == (None, "")


# -- latest


def test_the_latest_is_by_the_time_of_the_snapshot_and_not_of_the_file(
    catalog: Catalog, folder: Path
) -> None:
    lay_out(folder, at(5))
    lay_out(folder, at(1))
    lay_out(folder, at(9, "crm"))
    assert catalog.latest("orders").id == at(5).id
    assert catalog.latest().id == at(9, "crm").id
    with pytest.raises(BackupNotFound, match="missing"):
        catalog.latest("missing")


def test_the_latest_skips_what_cannot_be_used(catalog: Catalog, folder: Path) -> None:
    for made in (at(1), at(2), at(3), at(4)):
        lay_out(folder, made)
    (folder / f"{at(4).id}.json").write_text("{")
    (folder / at(3).artifact.name).unlink()
    (folder / at(2).globals.name).write_bytes(b"")
    assert catalog.latest().id == at(1).id
    (folder / at(1).artifact.name).unlink()
    with pytest.raises(BackupNotFound):
        catalog.latest()


# -- two stores


def test_copies_of_both_stores_are_merged_the_nearest_first(
    both: Settings, folder: Path, offsite: S3Store, tmp_path: Path
) -> None:
    for made in (at(1), at(2)):
        lay_out(folder, made)
    for made in (at(2), at(3)):
        upload(offsite, tmp_path / "elsewhere", made)
    catalog = Catalog(open_stores(both))
    assert catalog.survey().ids == [at(3).id, at(2).id, at(1).id]
    where = [[copy.store.label for copy in catalog.load(at(n).id).copies] for n in (1, 2, 3)]
    assert where == [["local"], ["local", "s3"], ["s3"]]
    assert catalog.latest().id == at(3).id


def test_a_broken_local_copy_does_not_hide_the_good_one_offsite(
    both: Settings, folder: Path, offsite: S3Store, tmp_path: Path
) -> None:
    upload(offsite, tmp_path / "elsewhere", at(1))
    lay_out(folder, at(1))
    (folder / f"{at(1).id}.json").write_text("{")
    found = Catalog(open_stores(both)).latest()
    assert [bool(copy.fault) for copy in found.copies] == [True, False]
    assert found.manifest == at(1)


def test_a_bucket_that_stops_answering_is_missed_and_not_taken_for_damaged(
    folder: Path, tmp_path: Path
) -> None:
    class Silent(LocalStore):
        def read(self, name: str) -> bytes:
            raise StoreUnreachable(f"reading {name} failed")

    lay_out(folder, at(1))
    lay_out(tmp_path / "bucket", at(1))
    found = Catalog([LocalStore(folder), Silent(tmp_path / "bucket")]).load(at(1).id)
    assert [copy.fault for copy in found.copies] == [""]
    assert [type(error) for error in found.missed] == [StoreUnreachable]


def test_a_record_of_checks_that_cannot_be_read_hides_no_backup(folder: Path) -> None:
    """Root's, say, or on a bad sector."""

    class Unreadable(LocalStore):
        def read(self, name: str) -> bytes:
            if ".verify." in name:
                raise DiskError(f"reading {name} failed: Permission denied")
            return super().read(name)

    lay_out(folder, at(1))
    lay_out(folder, at(2))
    LocalStore(folder).put_note(at(1).id.file("verify.json"), "{}")
    catalog = Catalog([Unreadable(folder)])
    assert [len(each.copies) for each in catalog.every("orders")] == [1, 1]
    [copy] = catalog.load(at(1).id).copies
    assert (copy.good, copy.verification) == (True, None)
    assert "Permission denied" in copy.remark
    assert catalog.away == {}


def test_one_that_only_a_store_that_is_away_may_have_is_passed_over(folder: Path, tmp_path: Path) -> None:
    class Silent(LocalStore):
        def read(self, name: str) -> bytes:
            raise StoreUnreachable(f"reading {name} failed")

    lay_out(folder, at(1))
    for made in (at(1), at(2)):
        lay_out(tmp_path / "bucket", made)
    catalog = Catalog([LocalStore(folder), Silent(tmp_path / "bucket")])
    assert [catalog.load_if_there(each) is not None for each in catalog.survey().ids] == [False, True]
    assert list(catalog.away) == ["local"]


def test_strays_of_the_bucket_are_named_by_their_address(both: Settings, offsite: S3Store) -> None:
    offsite.put_note("stranger.txt", "x")
    (stray,) = Catalog([offsite]).survey().strays
    assert stray.address == f"s3://{both.aws_s3_bucket}/prod/stranger.txt"


# -- find


def test_a_person_may_say_latest_or_an_id(settings: Settings, folder: Path) -> None:
    for made in (at(1), at(2), at(3, "crm")):
        lay_out(folder, made)
    assert find(settings, "latest").id == at(3, "crm").id
    assert find(settings, "latest", "orders").id == at(2).id
    assert find(settings, str(at(1).id)).id == at(1).id


@pytest.mark.parametrize("ending", ["", ".json", ".sql.gz.gpg", ".globals.sql.gz.gpg", ".sha256"])
def test_a_person_may_give_the_path_of_any_of_its_files(
    settings: Settings, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = lay_out(tmp_path / "usb stick")
    found = find(settings, f"{tmp_path}/usb stick/{made.id}{ending}")
    assert found.manifest == made
    assert found.copies[0].store.address() == f"{tmp_path}/usb stick"
    monkeypatch.chdir(tmp_path / "usb stick")
    assert find(settings, f"./{made.id}{ending}").manifest == made


def test_a_name_with_an_ending_is_looked_for_in_the_stores(settings: Settings, folder: Path) -> None:
    made = lay_out(folder)
    assert find(settings, f"{made.id}.json").manifest == made


@pytest.mark.parametrize("ending", ["", ".json", ".sql.gz.gpg"])
def test_a_person_may_give_an_address_in_a_bucket(
    both: Settings, settings: Settings, offsite: S3Store, tmp_path: Path, ending: str
) -> None:
    upload(offsite, tmp_path / "elsewhere", at(1))
    found = find(settings, f"s3://{both.aws_s3_bucket}/prod/{at(1).id}{ending}")
    assert [copy.store.label for copy in found.copies] == ["s3"]
    assert found.manifest == at(1)
    with pytest.raises(BackupNotFound):
        find(settings, f"s3://{both.aws_s3_bucket}/{at(1).id}{ending}")


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "newest",
        "backup_orders_20260230_000000",
        "backup_orders",
        "../../etc/passwd",
        "/etc/passwd",
        "s3://",
        "s3://bucket",
        "s3://bucket/",
        "backup_orders_20260314_120000/",
        "\0",
        "backup_orders_20260314_120000\n",
        "x" * 5000,
    ],
)
def test_what_is_not_a_backup_is_refused_with_examples(
    settings: Settings, folder: Path, reference: str
) -> None:
    with pytest.raises(BackupNotFound) as refused:
        find(settings, reference)
    assert refused.value.exit_code == 5
    assert refused.value.hint


@pytest.mark.parametrize(
    "reference", ["backup_orders_20260314_120001", "/nowhere/backup_orders_20260314_120000.json"]
)
def test_a_backup_that_is_not_there_says_where_was_looked(
    settings: Settings, folder: Path, reference: str
) -> None:
    lay_out(folder)
    with pytest.raises(BackupNotFound) as refused:
        find(settings, reference)
    assert ("/nowhere" if reference.startswith("/") else str(folder)) in refused.value.message


def test_a_bucket_that_is_not_there_is_the_stores_fault(both: Settings, folder: Path) -> None:
    with pytest.raises(StoreError, match="no-such-bucket"):
        find(both.model_copy(update={"aws_s3_bucket": "no-such-bucket"}), "latest")


def test_a_file_in_place_of_the_folder_is_a_disk_error(settings: Settings) -> None:
    settings.backup_dir.write_text("")
    with pytest.raises(DiskError):
        find(settings, "latest")


# -- alone

ALONE = """
import json, sys
for name in ("dagster", "dagster_aws", "dagster_webserver"):
    sys.modules[name] = None  # any import of it fails
from backup_dag.core.catalog import Catalog, find, open_stores
from backup_dag.core.settings import load
settings = load(None)
ids = Catalog(open_stores(settings)).survey().ids
print(json.dumps([str(id) for id in [*ids, find(settings, "latest").id]]))
"""


def test_it_needs_no_dagster(folder: Path) -> None:
    made = lay_out(folder)
    root = str(Path(__file__).parents[2])
    environment = {"PATH": os.environ["PATH"], "BACKUP_DIR": str(folder)}
    program = [sys.executable, "-c", ALONE]
    said = subprocess.run(
        program, capture_output=True, text=True, check=True, cwd=root, env=environment
    ).stdout
    assert json.loads(said) == [str(made.id)] * 2


def test_ids_come_from_names_and_need_no_manifest_to_be_read(catalog: Catalog, folder: Path) -> None:
    (folder / "backup_a_20260101_000000.json").write_text("")
    assert catalog.survey().ids == [BackupId("a", "20260101_000000")]


def test_an_address_without_a_bucket_is_no_backup(settings: Settings) -> None:
    with pytest.raises(BackupNotFound, match="names no bucket"):
        find(settings, "s3:////p/backup_orders_20260314_120000")


def test_where_a_store_did_not_answer_nothing_is_not_there(
    both: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket alone is left, and refuses to be listed once: it may hold what is asked for."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StoreUnreachable):
        found_for(both, Wish(database="orders"))
    with pytest.raises(StoreUnreachable):
        Catalog(open_stores(both)).latest_proven("orders")
    with pytest.raises(StoreUnreachable):
        verify_latest(both, "orders")
