"""Codes hold for one purpose, one state and one hour, and cannot be made without the key."""

import time
from pathlib import Path

import pytest

from backup_dag.core.errors import DiskError, GuardRefused
from backup_dag.core.restoring.confirmation import MINUTES, check_code, code_for


def test_a_code_holds_for_what_it_was_made_for(tmp_path: Path) -> None:
    code = code_for(tmp_path, what="swap a", state="as it is")
    check_code(tmp_path, code, what="swap a", state="as it is")
    check_code(tmp_path, f" {code.lower().replace('-', '')} ", what="swap a", state="as it is")
    for what, state in (("swap b", "as it is"), ("new a", "as it is"), ("swap a", "changed")):
        with pytest.raises(GuardRefused, match="not for this"):
            check_code(tmp_path, code, what=what, state=state)


def test_a_code_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, now = code_for(tmp_path, what="a", state="b"), time.time()
    monkeypatch.setattr("backup_dag.core.restoring.confirmation.time.time", lambda: now + (MINUTES - 2) * 60)
    check_code(tmp_path, code, what="a", state="b")
    monkeypatch.setattr("backup_dag.core.restoring.confirmation.time.time", lambda: now + (MINUTES + 2) * 60)
    with pytest.raises(GuardRefused, match="older than"):
        check_code(tmp_path, code, what="a", state="b")


@pytest.mark.parametrize("code", ["", "x", "AAAAAAAA-AAAAAAAA-AAAAAAAA", "ä" * 24, "1" * 24, "A" * 4000])
def test_what_is_no_code_is_refused(tmp_path: Path, code: str) -> None:
    with pytest.raises(GuardRefused):
        check_code(tmp_path, code, what="a", state="b")


def test_another_hosts_key_makes_other_codes(tmp_path: Path) -> None:
    code = code_for(tmp_path / "one", what="a", state="b")
    with pytest.raises(GuardRefused):
        check_code(tmp_path / "two", code, what="a", state="b")
    [key] = (tmp_path / "one").iterdir()
    assert key.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError):
        code_for(tmp_path / "file", what="a", state="b")
