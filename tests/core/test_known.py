"""An older backup that is served as the newest; and what our own clean-up removed, which is not missed."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backup_dag.core.audit import audited, log_file
from backup_dag.core.keeping.cleanup import Leave, clean_up
from backup_dag.core.known import newest_known, served_as_newest
from backup_dag.core.manifest import BackupId
from backup_dag.core.offsite import copy_offsite
from backup_dag.core.settings import Settings
from backup_dag.core.store.local import LocalStore
from tests.cleaning import NOW, made, put

NEWER, OLDER, OLDEST = (made(days).id for days in (1, 2, 3))


@pytest.fixture
def bucket(tmp_path: Path) -> LocalStore:
    """What is far away; a folder does as well, since only its address is asked for."""
    return LocalStore(tmp_path / "bucket")


@pytest.fixture
def local(settings: Settings) -> LocalStore:
    return LocalStore(settings.backup_dir)


def copied(settings: Settings, to: LocalStore, *backups: BackupId) -> None:
    with audited(settings.backup_dir, "copy", "orders", to=to.address(), copied=[str(b) for b in backups]):
        pass


def removed(settings: Settings, store: LocalStore, *backups: BackupId) -> None:
    with audited(settings.backup_dir, "cleanup", "orders") as entry:
        entry[store.address()] = [str(backup) for backup in backups]


def test_who_never_copied_anything_knows_nothing(settings: Settings, bucket: LocalStore) -> None:
    assert newest_known(settings, bucket, "orders") is None
    assert served_as_newest(settings, bucket, "orders", OLDER) == ""
    assert served_as_newest(settings, bucket, "orders", None) == ""


def test_an_older_one_in_the_newests_place_is_found_and_both_are_named(
    settings: Settings, bucket: LocalStore
) -> None:
    copied(settings, bucket, NEWER, OLDER)
    copied(settings, bucket, OLDEST)  # later, and older all the same
    known = newest_known(settings, bucket, "orders")
    assert known is not None
    assert known.id == NEWER
    assert abs(datetime.now(UTC) - datetime.fromisoformat(known.when)) < timedelta(minutes=1)
    said = served_as_newest(settings, bucket, "orders", OLDER)
    for word in (str(NEWER), str(OLDER), known.when, bucket.address()):
        assert word in said
    assert "shows none" in served_as_newest(settings, bucket, "orders", None)
    assert served_as_newest(settings, bucket, "orders", NEWER) == ""
    assert served_as_newest(settings, bucket, "orders", made(0.5).id) == ""


def test_what_our_own_cleanup_removed_is_not_missed(settings: Settings, bucket: LocalStore) -> None:
    copied(settings, bucket, NEWER, OLDER)
    removed(settings, bucket, NEWER)
    assert served_as_newest(settings, bucket, "orders", OLDER) == ""
    copied(settings, bucket, NEWER)  # put there again
    assert served_as_newest(settings, bucket, "orders", OLDER) != ""


def test_another_place_another_database_and_a_copy_that_did_not_get_there_do_not_count(
    settings: Settings, bucket: LocalStore, local: LocalStore, tmp_path: Path
) -> None:
    copied(settings, LocalStore(tmp_path / "another"), NEWER)
    with audited(settings.backup_dir, "copy", "other", to=bucket.address(), copied=[str(NEWER)]):
        pass
    with (
        pytest.raises(RuntimeError),
        audited(settings.backup_dir, "copy", "orders", to=bucket.address(), copied=[str(OLDER)]),
    ):
        raise RuntimeError("the next one failed; this one is there")
    removed(settings, local, OLDER)
    known = newest_known(settings, bucket, "orders")
    assert known is not None
    assert known.id == OLDER


def test_what_a_restore_made_of_its_target_stands_for_no_night(
    settings: Settings, bucket: LocalStore
) -> None:
    with audited(settings.backup_dir, "backup", "orders", str(NEWER), why="pre_restore"):
        pass
    copied(settings, bucket, NEWER, OLDER)
    assert served_as_newest(settings, bucket, "orders", OLDER) == ""


def test_one_that_is_dated_in_the_future_is_nobodys_newest(settings: Settings, bucket: LocalStore) -> None:
    copied(settings, bucket, made(-5).id, OLDER)
    assert served_as_newest(settings, bucket, "orders", OLDER) == ""
    assert newest_known(settings, bucket, "orders", now=NOW + timedelta(days=6)) is not None


def test_the_local_folder_is_known_by_what_was_backed_up(settings: Settings, local: LocalStore) -> None:
    with audited(settings.backup_dir, "backup", "orders", str(NEWER), why="scheduled"):
        pass
    assert served_as_newest(settings, local, "orders", OLDER) != ""


def test_whatever_stands_in_the_log_is_read_or_passed_over(settings: Settings, bucket: LocalStore) -> None:
    for names in ("backup", 7, None, {"a": 1}, [None, 7, "", "backup_orders_", str(OLDER)]):
        with audited(settings.backup_dir, "copy", "orders", to=bucket.address(), copied=names):
            pass
    known = newest_known(settings, bucket, "orders")
    assert known is not None
    assert known.id == OLDER
    log_file(settings.backup_dir).unlink()
    log_file(settings.backup_dir).mkdir()
    assert newest_known(settings, bucket, "orders") is None


def test_what_copying_and_cleaning_note_is_what_is_looked_for(
    settings: Settings, local: LocalStore, bucket: LocalStore, tmp_path: Path
) -> None:
    """By the verbs themselves: the two that remain, and the one that the policy removes."""
    for store in (local, bucket):
        store.folder.mkdir()
    for days in (1, 2, 90):
        put(local, tmp_path / "work", made(days), "content")
    list(copy_offsite(local, bucket, "orders"))
    known = newest_known(settings, bucket, "orders")
    assert known is not None
    assert known.id == NEWER
    keep = settings.model_copy(
        update={"backup_keep_monthly": 0, "backup_keep_weekly": 0, "backup_keep_daily": 2}
    )
    report = clean_up(keep, [bucket], ["orders"], Leave(force=True, unverified=True))
    assert [str(each.id) for each in report.removed] == [str(made(90).id)]
    assert served_as_newest(settings, bucket, "orders", NEWER) == ""
    assert served_as_newest(settings, bucket, "orders", OLDER) != ""
