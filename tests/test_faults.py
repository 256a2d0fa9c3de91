"""Deaths in the middle of a backup: of every process it is made of, of the servers, of the disk.

After each one there is nothing left that could be taken for a backup, nothing that still runs, nothing
to be read; the message says what happened; and the next backup is a good one.
"""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from demo.servers import Postgres, S3Server
from tests.conftest import KEY, MARKER, PASSWORD, Here, NextIsGood, Terminal
from tests.gate import Gate

MIB = 1 << 20
MID_DUMP, MID_UPLOAD = 8 * MIB, 3 * MIB  # of 24 MB of dump, of a part of 8 MiB
TEMPORARY = "temporary"

MakeTerminal = Callable[[str], Terminal]
PutGate = Callable[[str, int], tuple[str, Gate]]


@dataclass
class Run:
    """A backup that is held in mid-run."""

    terminal: Terminal
    process: "subprocess.Popen[str]"
    gate: Gate
    url: str

    def child(self, name: str) -> psutil.Process:
        return next(child for child in self.children() if child.name() == name)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> tuple[int, str]:
        """The exit status, and what was said on stderr."""
        stdout, stderr = self.process.communicate(timeout=60)
        for secret in (KEY, PASSWORD, MARKER):
            assert secret not in stdout + stderr
        return self.process.returncode, stderr


@pytest.fixture
def mid_dump(large: str, terminal: MakeTerminal, gated: PutGate, tmp_path: Path) -> Iterator[Run]:
    """A backup of the large database, in the middle of its dump."""
    yield from held_dump(large, terminal, gated, tmp_path)


def held_dump(url: str, terminal: MakeTerminal, gated: PutGate, folder: Path) -> Iterator[Run]:
    through_gate, gate = gated(url, MID_DUMP)
    ours = with_temporary_folder(terminal(through_gate))
    with ours.running("backup") as process:
        gate.wait_until_held()
        wait_until(lambda: artifact_in_work(ours) > MIB)
        yield Run(ours, process, gate, url)


def with_temporary_folder(ours: Terminal) -> Terminal:
    """TMPDIR inside of its folder, so that we know all of what it leaves."""
    temporary = ours.folder / TEMPORARY
    temporary.mkdir()
    ours.environment["TMPDIR"] = str(temporary)
    return ours


def artifact_in_work(ours: Terminal) -> int:
    """Its bytes so far; the roles' file, made at the same time, is the small one."""
    found = (ours.backups / ".work").glob("run-*/backup_*.sql.gz.gpg")
    return max((path.stat().st_size for path in found), default=0)


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.02)


def alive_of(folder: Path) -> list[str]:
    """Every process that lives in a folder, or was told of it: children, and agents that outlive them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            told = [process.cwd(), *process.cmdline(), *process.environ().values()]
            if process.status() != psutil.STATUS_ZOMBIE and any(str(folder) in each for each in told):
                found.append(f"{process.pid} {process.name()}")
    return found


def advisory_locks(url: str) -> int:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database"
            " WHERE locktype = 'advisory' AND datname = current_database()"
        )
        row = cursor.fetchone()
        assert row is not None
        return int(row[0])


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def nothing_but_the_audit_log(folder: Path) -> bool:
    """It hears of failures too, if there is room for a line."""
    return {path.name for path in files_in(folder)} <= {"audit.jsonl"}


def assert_nothing_to_read(folder: Path) -> None:
    """No plain text, and nothing that is only compressed."""
    for path in files_in(folder):
        content = path.read_bytes()
        assert MARKER.encode() not in content, path
        assert not content.startswith(b"\x1f\x8b"), path


def assert_nothing_runs(run: Run) -> None:
    wait_until(lambda: alive_of(run.terminal.folder) == [])
    wait_until(lambda: advisory_locks(run.url) == 0)


def assert_nothing_left(run: Run) -> None:
    assert_nothing_runs(run)
    assert {path.name for path in run.terminal.backups.iterdir()} == {".audit", ".work"}
    assert list((run.terminal.backups / ".work").iterdir()) == []
    assert files_in(run.terminal.folder / TEMPORARY) == []


def assert_says(said: str, *words: str) -> None:
    assert [word for word in words if word not in said] == []
    assert "error: " in said


def kill_child(name: str) -> Callable[[Run], None]:
    return lambda run: run.child(name).kill()


def send(number: signal.Signals) -> Callable[[Run], None]:
    return lambda run: run.process.send_signal(number)


def end_the_backend(run: Run) -> None:
    """As an administrator ends pg_dump's connection."""
    with closing(psycopg2.connect(run.url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE 'COPY%'"
        )
        assert cursor.fetchall() == [(True,)]
    run.gate.open()


def kill_gpg(run: Run) -> None:
    run.child("gpg").kill()
    run.gate.open()


DEATHS: dict[str, tuple[Callable[[Run], None], int, tuple[str, ...]]] = {
    "pg_dump is killed": (
        kill_child("pg_dump"),
        1,
        ("pg_dump was killed by SIGKILL", "then try again"),
    ),
    "gpg is killed": (kill_gpg, 1, ("encrypting failed", "gpg", "was it killed?")),
    "the server ends pg_dump's connection": (
        end_the_backend,
        4,
        ("dumping large", "pg_dump exited 1", "log"),
    ),
    "we are told to end": (send(signal.SIGTERM), 130, ("interrupted", "nothing half-made")),
    "someone presses Ctrl-C": (send(signal.SIGINT), 130, ("interrupted", "nothing half-made")),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_death_in_mid_dump_leaves_nothing_and_says_what_happened(
    assert_next_is_good: NextIsGood, mid_dump: Run, death: str
) -> None:
    strike, code, words = DEATHS[death]
    assert_nothing_to_read(mid_dump.terminal.folder)
    began = time.monotonic()
    strike(mid_dump)
    ended, said = mid_dump.end()
    assert ended == code, said
    assert time.monotonic() - began < 10
    assert_says(said, *words)
    assert_nothing_left(mid_dump)
    assert_next_is_good(mid_dump.terminal, mid_dump.url)


@pytest.mark.parametrize("times", [1, 5], ids=["once", "impatiently"])
def test_ctrl_c_from_a_keyboard_reaches_the_children_too_and_is_still_an_interrupt(
    large: str, terminal: MakeTerminal, gated: PutGate, tmp_path: Path, times: int
) -> None:
    """A terminal sends SIGINT to the whole foreground group, not to us alone."""
    through_gate, gate = gated(large, MID_DUMP)
    ours = with_temporary_folder(terminal(through_gate))
    program = [sys.executable, "-m", "backup_dag.cli", "backup"]
    with subprocess.Popen(
        program, cwd=ours.folder, env=ours.environment, stderr=subprocess.PIPE, text=True, process_group=0
    ) as process:
        gate.wait_until_held()
        for _ in range(times):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                time.sleep(0.02)
        run = Run(ours, process, gate, large)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert_says(said, "interrupted")
    assert_nothing_left(run)


def test_when_we_are_killed_our_children_die_with_us_and_the_next_run_sweeps(
    assert_next_is_good: NextIsGood, mid_dump: Run
) -> None:
    children = mid_dump.children()
    assert {child.name() for child in children} == {"pg_dump", "gpg"}
    mid_dump.process.kill()
    ended, _ = mid_dump.end()
    assert ended == -signal.SIGKILL
    assert_nothing_runs(mid_dump)
    assert [path.name for path in mid_dump.terminal.backups.iterdir()] == [".work"]
    assert len(list((mid_dump.terminal.backups / ".work").iterdir())) == 1
    assert_nothing_to_read(mid_dump.terminal.folder)
    assert_next_is_good(mid_dump.terminal, mid_dump.url)


@pytest.fixture
def guarded_dump(guarded_url: str, terminal: MakeTerminal, gated: PutGate, tmp_path: Path) -> Iterator[Run]:
    yield from held_dump(guarded_url, terminal, gated, tmp_path)


def test_a_database_server_that_crashes_in_mid_dump_is_named(
    assert_next_is_good: NextIsGood, guarded_dump: Run, guarded_postgres: Postgres
) -> None:
    guarded_postgres.kill()
    guarded_dump.gate.open()
    ended, said = guarded_dump.end()
    guarded_postgres.start()
    assert ended == 4, said
    assert_says(said, "dumping guarded", "pg_dump exited 1", "server")
    assert_nothing_left(guarded_dump)
    assert_next_is_good(guarded_dump.terminal, guarded_dump.url)


def test_no_secret_is_ever_on_a_command_line_or_in_a_strangers_environment(
    guarded_dump: Run,
) -> None:
    with sampled_processes() as (seen, lines):
        children = {child.name(): child.environ() for child in guarded_dump.children()}
        guarded_dump.gate.open()
        ended, said = guarded_dump.end()
    assert ended == 0, said
    assert {"pg_dump", "gpg"} <= seen
    assert [line for line in lines if KEY in line or PASSWORD in line] == []
    assert PASSWORD in children["pg_dump"].values()
    assert KEY not in "".join(children["pg_dump"].values())
    assert not {KEY, PASSWORD} & set(children["gpg"].values())


class sampled_processes:  # noqa: N801
    """The names and command lines of every process there is while the block runs."""

    def __enter__(self) -> tuple[set[str], set[str]]:
        self._names: set[str] = set()
        self._lines: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self._names, self._lines

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.is_set():
            for folder in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    self._names.add((folder / "comm").read_text().strip())
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    self._lines.add(line.decode(errors="replace"))
            time.sleep(0.003)


# the bucket


@pytest.fixture
def own_s3(tmp_path: Path) -> Iterator[S3Server]:
    """A server that the test may kill."""
    with S3Server(tmp_path / "s3") as server:
        server.create_bucket("backups")
        yield server


def at_bucket(server: S3Server, endpoint: str | None = None, bucket: str = "backups") -> dict[str, str]:
    given = {**server.environment(), "AWS_S3_BUCKET": bucket}
    return {**given, "AWS_ENDPOINT_URL_S3": endpoint or server.endpoint}


def objects(server: S3Server, bucket: str) -> list[str]:
    """What lies there of backups: the audit log, which each copy brings along, has tests of its own."""
    found = server.client().list_objects_v2(Bucket=bucket).get("Contents", ())
    return [each["Key"] for each in found if not each["Key"].startswith("audit/")]


def open_uploads(server: S3Server, bucket: str) -> list[Any]:
    return list(server.client().list_multipart_uploads(Bucket=bucket).get("Uploads", ()))


def local_backup(here: Here, ours: Terminal) -> list[str]:
    """The names of the one local backup's files, after it has been found good."""
    checked = here(ours, "verify", "--level", "checksum")
    assert checked.returncode == 0, checked.stderr
    return sorted(p.name for p in ours.backups.iterdir() if p.is_file() and ".verify." not in p.name)


def assert_bucket_has_all(server: S3Server, bucket: str, ours: Terminal) -> None:
    local = [p.name for p in ours.backups.iterdir() if p.is_file() and ".verify." not in p.name]
    assert sorted(k for k in objects(server, bucket) if ".verify." not in k) == sorted(local)
    assert open_uploads(server, bucket) == []


def test_a_bucket_server_that_dies_in_mid_upload_costs_only_the_copy_and_the_next_run_makes_it(
    here: Here,
    assert_next_is_good: NextIsGood,
    large: str,
    terminal: MakeTerminal,
    gated: PutGate,
    own_s3: S3Server,
) -> None:
    endpoint, gate = gated(own_s3.endpoint, MID_UPLOAD)
    ours = with_temporary_folder(terminal(large))
    with ours.running("backup", **at_bucket(own_s3, endpoint)) as process:
        gate.wait_until_held()
        own_s3.kill()
        gate.open()
        ended, said = Run(ours, process, gate, large).end()
    assert ended == 7
    assert_says(said, "s3://backups/backup_large_", "run it again")
    assert_nothing_runs(Run(ours, process, gate, large))
    assert len(local_backup(here, ours)) == 4
    own_s3.start()
    assert objects(own_s3, "backups") == []
    assert len(open_uploads(own_s3, "backups")) == 1
    assert_next_is_good(ours, large, **at_bucket(own_s3))
    assert_bucket_has_all(own_s3, "backups", ours)
    assert len(objects(own_s3, "backups")) == 9  # two backups of four files, and one verification


def test_a_bucket_server_that_is_down_costs_only_the_copies_and_the_next_run_makes_them_all(
    here: Here, assert_next_is_good: NextIsGood, sample: str, terminal: MakeTerminal, own_s3: S3Server
) -> None:
    ours = terminal(sample)
    own_s3.kill()
    ended = ours.run("backup", **at_bucket(own_s3))
    assert ended.returncode == 7, ended.stderr
    assert_says(ended.stderr, "s3://backups/", "AWS_ENDPOINT_URL_S3", "run it again")
    assert len(local_backup(here, ours)) == 4
    own_s3.start()
    assert_next_is_good(ours, sample, **at_bucket(own_s3))
    assert_bucket_has_all(own_s3, "backups", ours)
    assert len(objects(own_s3, "backups")) == 9  # two backups of four files, and one verification


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_when_we_end_in_mid_upload_the_bucket_has_nothing_and_the_local_backup_is_whole(
    here: Here,
    assert_next_is_good: NextIsGood,
    large: str,
    terminal: MakeTerminal,
    gated: PutGate,
    s3: S3Server,
    bucket: str,
    number: signal.Signals,
    code: int,
) -> None:
    endpoint, gate = gated(s3.endpoint, MID_UPLOAD)
    ours = with_temporary_folder(terminal(large))
    with ours.running("backup", **at_bucket(s3, endpoint, bucket)) as process:
        gate.wait_until_held()
        assert len(open_uploads(s3, bucket)) == 1
        process.send_signal(number)
        gate.open()
        ended, said = Run(ours, process, gate, large).end()
    assert ended == code, said
    assert objects(s3, bucket) == []
    assert len(open_uploads(s3, bucket)) == (1 if number == signal.SIGKILL else 0)
    assert_nothing_runs(Run(ours, process, gate, large))
    assert len(local_backup(here, ours)) == 4
    assert_next_is_good(ours, large, **at_bucket(s3, bucket=bucket))
    assert_bucket_has_all(s3, bucket, ours)


# the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB as BACKUP_DIR; only root may mount one."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root; the limit on a file's size is tested without")
    at = tmp_path / "backups"
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small-disk", at], check=True)
    yield at
    subprocess.run(["umount", at], check=True)


@pytest.mark.parametrize("taken", [0, 4 * MIB], ids=["half-way", "from the start"])
def test_a_full_disk_is_told_and_the_next_backup_works_once_there_is_room(
    assert_next_is_good: NextIsGood, large: str, terminal: MakeTerminal, small_disk: Path, taken: int
) -> None:
    ours = with_temporary_folder(terminal(large))
    ballast = small_disk / "ballast"
    with suppress(OSError):
        ballast.write_bytes(bytes(taken))
    ended = ours.run("backup")
    assert ended.returncode == 9, ended.stderr
    assert_says(ended.stderr, str(small_disk), "No space left on device", "df -h")
    ballast.unlink()
    assert nothing_but_the_audit_log(ours.folder)
    assert alive_of(ours.folder) == []
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert_next_is_good(ours, large)


def test_a_limit_on_the_size_of_files_is_a_disk_error_too(
    assert_next_is_good: NextIsGood, large: str, terminal: MakeTerminal
) -> None:
    ours = with_temporary_folder(terminal(large))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    ended = ours.run_with_small_files(1, "backup")
    assert ended.returncode == 9, ended.stderr
    assert_says(ended.stderr, "File too large", "df -h")
    assert nothing_but_the_audit_log(ours.folder)
    assert_next_is_good(ours, large)


def test_a_folder_that_cannot_be_written_is_a_disk_error(large: str, terminal: MakeTerminal) -> None:
    ours = terminal(large)
    ours.backups.write_text("a file stands where the folder should be")
    ended = ours.run("backup")
    assert ended.returncode == 9, ended.stderr
    assert_says(ended.stderr, str(ours.backups), "writable")
    assert ours.backups.read_text() == "a file stands where the folder should be"
