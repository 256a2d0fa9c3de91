"""What we make is ours alone to read, whatever umask we began with; and no memory is written to disk."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from backup_dag.cli import main
from tests.conftest import Here, Terminal, make_database, name_of, run_sql
from tests.drills import temporary_folder

MakeTerminal = Callable[[str], Terminal]
NIGHT = (
    ("backup",),
    ("verify",),
    ("cleanup",),
    ("drill",),
    ("watch",),
    ("status",),
    ("doctor",),
    ("restore", "--force"),
    ("restore", "--dry-run"),
    ("restore", "--force", "--table", "public.orders"),
    ("restore", "--drop-previous", "--force"),
)


def open_to_others(*folders: Path) -> list[str]:
    """Everything in these folders that others than its owner may do something with, and its mode."""
    found = [path for folder in folders for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in found}
    return [f"{path} {mode:o}" for path, mode in modes.items() if mode & 0o077]


@pytest.mark.parametrize("by", ["the program", "each file's own mode"])
def test_nobody_else_reads_what_a_night_makes(
    sample: str,
    postgres: Any,
    terminal: MakeTerminal,
    here: Here,
    s3: Any,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
) -> None:
    """In Dagster it is each file's own mode that counts for what was begun before our code was loaded."""
    url = make_database(postgres)
    run_sql(url, "CREATE TABLE orders AS SELECT n FROM generate_series(1, 100) n")
    if by != "the program":
        monkeypatch.setattr(main, "shut_others_out", lambda: os.umask(0))
    with temporary_folder() as temporary:
        ours = terminal(url)
        backups = ours.folder / "far" / "away" / "backups"
        cloud = {**s3.environment(), "AWS_S3_BUCKET": bucket, "BACKUP_DIR": str(backups)}
        cloud |= {"TMPDIR": str(temporary), "BACKUP_NOTIFY_URLS": "json://127.0.0.1:1/"}
        for words in NIGHT:
            ended = here(ours, *words, **cloud)
            assert ended.returncode in (0, 1), ended.stderr  # 1: nobody can be told
        assert {path.name for path in backups.iterdir()} > {
            ".work",
            ".audit",
            ".watch.json",
            ".restores.jsonl",
            ".confirmation-key",
        }
        assert open_to_others(ours.folder / "far") == []
        mine = [path for path in temporary.iterdir() if path.name != "backup-dag-scratch"]
        assert open_to_others(*mine) == []
    run_sql(postgres.url(), f"DROP DATABASE IF EXISTS {name_of(url)} WITH (FORCE)")


def test_neither_it_nor_its_children_leave_a_core_file(
    large: str, terminal: MakeTerminal, gated: Any
) -> None:
    url, gate = gated(large, 1 << 20)
    ours = terminal(url)
    limit = "import resource as r, os, sys; most = r.getrlimit(r.RLIMIT_CORE)[1];"
    limit += " r.setrlimit(r.RLIMIT_CORE, (most, most));"
    limit += " os.execv(sys.executable, [sys.executable, '-m', 'backup_dag.cli', 'backup'])"
    with subprocess.Popen(
        [sys.executable, "-c", limit], cwd=ours.folder, env=ours.environment, stderr=subprocess.DEVNULL
    ) as running:
        gate.wait_until_held()
        pids = [running.pid, *(child.pid for child in psutil.Process(running.pid).children(recursive=True))]
        said = [Path(f"/proc/{pid}/limits").read_text() for pid in pids]
        running.kill()
    limits = [re.findall(r"^Max core file size +(\S+) +(\S+)", text, re.M) for text in said]
    assert len(pids) > 1
    assert limits == [[("0", "0")]] * len(pids)


def test_dagsters_processes_are_as_private_once_they_have_our_code(
    sample: str, terminal: MakeTerminal
) -> None:
    ours = terminal(sample)
    ask = "import backup_dag.definitions, os, resource;"
    ask += " print(oct(os.umask(0)), resource.getrlimit(resource.RLIMIT_CORE))"
    said = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=ours.folder,
        env=ours.environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.strip() == "0o77 (0, 0)"
