"""Work directories: private, gone afterwards, swept where their owner died, kept while it lives."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backup_dag.core import journal
from backup_dag.core.errors import DiskError
from backup_dag.core.work import (
    new_file,
    one_at_a_time,
    private_folder,
    sweep,
    work_directory,
    work_elsewhere,
)

OWNER = """
import sys, time
from pathlib import Path
from backup_dag.core.work import work_directory, work_elsewhere
backup_dir = Path(sys.argv[1])
with work_directory(backup_dir) as work, work_elsewhere(backup_dir / "elsewhere", work) as other:
    (work / "plain").write_text("half done")
    (other / "plain").write_text("half done")
    print(work, flush=True)
    time.sleep(300)
"""


def test_a_run_that_died_and_had_its_other_folder_right_here_is_swept(tmp_path: Path) -> None:
    """Where BACKUP_SCRATCH_DIR is BACKUP_DIR."""
    with work_directory(tmp_path) as work, work_elsewhere(tmp_path, work):
        shutil.copytree(work, work.with_name("run-dead"), symlinks=True)
    dead = tmp_path / ".work" / "run-dead"
    (dead / "lock").unlink()
    assert sweep(tmp_path) == [dead]
    assert list(dead.parent.iterdir()) == []


@contextmanager
def owner(backup_dir: Path) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """Another process that holds a work directory."""
    program = [sys.executable, "-c", OWNER, str(backup_dir)]
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_it_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    with work_directory(tmp_path / "backups") as work:
        assert work.stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "backups").stat().st_mode & 0o777 == 0o700
        assert work.parent == tmp_path / "backups" / ".work"
        (work / "deep").mkdir()
        (work / "deep" / "file").write_text("x")
    assert list((tmp_path / "backups" / ".work").iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_it_is_gone_after_any_error(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        failing(tmp_path, error)
    assert raised.value is error
    assert list((tmp_path / ".work").iterdir()) == []


def failing(backup_dir: Path, error: BaseException) -> None:
    with work_directory(backup_dir) as work:
        (work / "file").write_text("x")
        raise error


def test_what_a_killed_run_left_is_swept_by_the_next(tmp_path: Path) -> None:
    with owner(tmp_path) as (process, left):
        process.kill()
        process.wait()
    assert (left / "plain").exists()
    [elsewhere] = (tmp_path / "elsewhere").rglob("plain")
    with work_directory(tmp_path) as ours:
        assert not left.exists()
        assert not elsewhere.parent.exists()
        assert ours.exists()


def test_a_folder_of_ours_that_is_a_link_is_refused_and_nothing_is_removed_behind_it(tmp_path: Path) -> None:
    (tmp_path / "theirs" / "run-precious").mkdir(parents=True)
    (tmp_path / "backups").mkdir()
    (tmp_path / "backups" / ".work").symlink_to(tmp_path / "theirs")
    with pytest.raises(DiskError, match="is a link"), work_directory(tmp_path / "backups"):
        pass
    with pytest.raises(DiskError, match="is a link"), one_at_a_time(tmp_path / "backups", "drill"):
        pass
    assert (tmp_path / "theirs" / "run-precious").exists()
    for log in (tmp_path / "file", tmp_path / "pipe"):
        if log.name == "pipe":
            os.mkfifo(log)
        link = tmp_path / "backups" / f".{log.name}.jsonl"
        link.symlink_to(log)
        assert "is a link" in journal.append(link, {"a": 1})
        with pytest.raises(DiskError):
            list(journal.read(link))
    assert not (tmp_path / "file").exists()


def test_what_belongs_to_a_living_run_is_kept(tmp_path: Path) -> None:
    with owner(tmp_path) as (_, theirs):
        with work_directory(tmp_path) as ours:
            assert ours != theirs
            assert sweep(tmp_path) == []
            assert len(list(tmp_path.rglob("plain"))) == 2
        assert theirs.exists()


def test_ones_own_is_kept_while_it_is_in_use(tmp_path: Path) -> None:
    with work_directory(tmp_path) as first, work_directory(tmp_path) as second:
        assert sweep(tmp_path) == []
        assert first.exists()
        assert second.exists()


def test_one_that_is_just_being_made_is_given_a_minute(tmp_path: Path) -> None:
    young, old, half_removed = (tmp_path / ".work" / name for name in ("new-young", "new-old", "run-x"))
    for path in (young, old, half_removed):
        path.mkdir(parents=True)
    os.utime(old, (time.time() - 61, time.time() - 61))
    assert set(sweep(tmp_path)) == {old, half_removed}
    assert young.exists()


def test_what_is_not_a_run_of_ours_is_left_alone(tmp_path: Path) -> None:
    others = tmp_path / ".work" / "notes"
    others.mkdir(parents=True)
    (tmp_path / "run-outside").mkdir()
    assert sweep(tmp_path) == []
    assert others.exists()
    assert (tmp_path / "run-outside").exists()


def test_a_place_that_cannot_be_written_to_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DiskError) as raised, work_directory(place):
            pytest.fail("there is no work directory")
        assert str(place) in raised.value.message
        assert raised.value.exit_code == 9
        assert "BACKUP_DIR" in raised.value.hint


def test_an_error_in_the_block_is_not_taken_for_one_of_making_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="ours"), work_directory(tmp_path):
        raise OSError("ours")


def test_what_cannot_be_made_is_a_disk_error_whatever_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "below"
    with pytest.raises(DiskError, match=r"making .*below"), new_file(below):
        pytest.fail("there is no file")
    with pytest.raises(DiskError, match=r"making .*below"):
        private_folder(below)
    assert private_folder(tmp_path / "folder").stat().st_mode & 0o777 == 0o700
    assert private_folder(tmp_path / "folder").exists()


def test_a_lock_whose_file_cannot_be_removed_is_let_go_of_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, **_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, one_at_a_time(tmp_path, "thing"):
        patched.setattr(os, "unlink", refuse)
    with one_at_a_time(tmp_path, "thing"):
        pass
