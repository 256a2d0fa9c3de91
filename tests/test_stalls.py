"""What stands still ends with its error, inside of BACKUP_STALL_SECONDS; honest work that takes longer does
not.

Servers stand behind a gate that holds a connection for ever, or are stopped; so are the programs that work
for us.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from backup_dag.core import stall
from backup_dag.core.address import Address
from backup_dag.core.clients import installed_clients
from backup_dag.core.errors import DatabaseUnreachable, ProgramStalled
from backup_dag.core.postgres import connected
from backup_dag.core.stages.dump import as_sql
from backup_dag.core.stream import BLOCK, Hashing
from demo.servers import Postgres, S3Server
from tests.conftest import Here, NextIsGood, Terminal, asked, make_database, run_sql
from tests.test_faults import (
    MID_DUMP,
    MID_UPLOAD,
    MakeTerminal,
    PutGate,
    Run,
    alive_of,
    assert_nothing_left,
    assert_nothing_runs,
    assert_says,
    at_bucket,
    held_dump,
    local_backup,
    objects,
    open_uploads,
    with_temporary_folder,
)
from tests.test_restore import backed_up, made_by_restores

STALL = 2
"""Seconds."""
LITTLE = 8
"""Seconds more for all that follows: a look at the server, and tidying up."""
SLOW = (
    "CASE WHEN current_database() LIKE '%\\_\\_restoring%' THEN pg_sleep({})::text END"
    " IS DISTINCT FROM 'never'"
)
"""A constraint that takes its time where a restore builds, and nowhere else."""


@pytest.fixture
def impatient(terminal: MakeTerminal) -> MakeTerminal:
    """Makes a terminal that waits for two seconds only."""

    def at(url: str) -> Terminal:
        ours = terminal(url)
        ours.environment["BACKUP_STALL_SECONDS"] = str(STALL)
        return ours

    return at


@pytest.fixture
def mid_dump(large: str, impatient: MakeTerminal, gated: PutGate, tmp_path: Path) -> Iterator[Run]:
    """A backup of the large database, in the middle of its dump. The gate stays shut."""
    yield from held_dump(large, impatient, gated, tmp_path)


@contextmanager
def soon() -> Iterator[None]:
    """What the block waits for comes inside of the stall time and a little more."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < STALL + LITTLE


def last_in_the_audit_log(ours: Terminal, what: str) -> Any:
    lines = (ours.backups / ".audit" / "audit.jsonl").read_text().splitlines()
    return [said for said in map(json.loads, lines) if said["what"] == what][-1]


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def processes_of(server: Postgres) -> list[int]:
    """The postmaster first: so that it sees none of the others stop."""
    assert server._process is not None
    postmaster = psutil.Process(server._process.pid)
    return [postmaster.pid, *(child.pid for child in postmaster.children(recursive=True))]


# the dump


def test_a_dump_that_gives_no_byte_ends(mid_dump: Run, assert_next_is_good: NextIsGood) -> None:
    """The gate swallows what the server sends, as a proxy might."""
    with soon():
        ended, said = mid_dump.end()
    assert ended == 4, said
    assert_says(said, "dumping large on", "pg_dump gave no byte for 2 s", "nothing comes through between")
    assert_says(said, "BACKUP_STALL_SECONDS")
    failed = last_in_the_audit_log(mid_dump.terminal, "backup")
    assert failed["outcome"] == "failed"
    assert "pg_dump gave no byte" in str(failed)
    assert_nothing_left(mid_dump)
    assert_next_is_good(mid_dump.terminal, mid_dump.url)


def test_a_pg_dump_that_is_stopped_is_ended(mid_dump: Run) -> None:
    with soon():
        mid_dump.child("pg_dump").suspend()
        mid_dump.gate.open()
        ended, said = mid_dump.end()
    assert ended == 4, said
    assert_says(said, "pg_dump gave no byte for 2 s")
    assert_nothing_left(mid_dump)


def test_a_gpg_that_is_stopped_is_ended(mid_dump: Run, assert_next_is_good: NextIsGood) -> None:
    with soon():
        mid_dump.child("gpg").suspend()
        mid_dump.gate.open()
        ended, said = mid_dump.end()
    assert ended == 1, said
    assert_says(said, "encrypting failed: gpg took no byte for 2 s", "then try again")
    assert_nothing_left(mid_dump)
    assert_next_is_good(mid_dump.terminal, mid_dump.url)


def test_a_server_process_that_is_stopped_is_not_waited_for(mid_dump: Run) -> None:
    [(backend,)] = asked(mid_dump.url, "SELECT pid FROM pg_stat_activity WHERE query LIKE 'COPY%TO stdout%'")
    with stopped(backend), soon():
        mid_dump.gate.open()
        ended, said = mid_dump.end()
    assert ended == 4, said
    assert_says(said, "pg_dump gave no byte for 2 s")
    assert_nothing_left(mid_dump)


def test_a_server_that_stands_still_as_a_whole_is_named(
    guarded_url: str, guarded_postgres: Postgres, impatient: MakeTerminal, gated: PutGate, tmp_path: Path
) -> None:
    for run in held_dump(guarded_url, impatient, gated, tmp_path):
        with stopped(*processes_of(guarded_postgres)):
            began = time.monotonic()
            run.gate.open()
            ended, said = run.end()
            # asked in vain, and told in vain to let go
            assert time.monotonic() - began < STALL + 2 * LITTLE
        assert ended == 4, said
        assert_says(said, "pg_dump gave no byte for 2 s; the server does not answer", "network")
        assert_nothing_left(run)


@pytest.mark.parametrize("format", ["sql", "custom"])
def test_a_dump_that_waits_for_a_lock_says_whose_it_is(
    impatient: MakeTerminal, postgres: Postgres, format: str
) -> None:
    url = make_database(postgres)
    run_sql(url, "CREATE TABLE wanted AS SELECT 1 AS n")
    ours = impatient(url)
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE wanted")
        pid = connection.info.backend_pid
        with ours.running("backup", BACKUP_FORMAT=format) as process, soon():
            _, said = process.communicate(timeout=60)
    assert process.returncode == 4, said
    assert_says(
        said, f"it waits for a lock that server process {pid} holds (user postgres, idle in", "end it"
    )
    assert alive_of(ours.folder) == []


# loading


@pytest.fixture
def big(postgres: Postgres, impatient: MakeTerminal, here: Here, large: str) -> tuple[Terminal, str]:
    """A backup of the large database that is to be restored elsewhere; its terminal, and the server's url."""
    ours = with_temporary_folder(impatient(large))
    backed_up(here, ours)
    return ours, postgres.url("elsewhere")


def test_a_load_that_nothing_takes_ends_and_leaves_no_database(
    big: tuple[Terminal, str], postgres: Postgres, gated: PutGate
) -> None:
    ours, url = big
    through, gate = gated(url, MID_DUMP)
    words = ("restore", "--mode", "new", "--target-database", "elsewhere", "--force")
    with ours.running(*words, DATABASE_URL=through, BACKUP_RESTORE_TARGETS="elsewhere") as process:
        gate.wait_until_held()
        with soon():
            _, said = process.communicate(timeout=60)
    assert process.returncode == 4, said
    assert_says(said, "loading elsewhere__restoring", "psql took no byte for 2 s", "nothing comes through")
    assert made_by_restores(postgres, "elsewhere") == []
    assert alive_of(ours.folder) == []


@pytest.mark.parametrize("format", ["sql", "custom"])
def test_a_load_that_honestly_takes_longer_is_waited_for(
    here: Here, impatient: MakeTerminal, postgres: Postgres, format: str
) -> None:
    url = make_database(postgres)
    run_sql(url, f"CREATE TABLE slow (n int CHECK ({SLOW.format(5)}))")
    run_sql(url, "INSERT INTO slow VALUES (1)")
    ours = impatient(url)
    backed_up(here, ours, BACKUP_FORMAT=format)
    began = time.monotonic()
    restored = ours.run("restore", "--force", "--no-safety-backup")
    assert restored.returncode == 0, restored.stderr
    assert time.monotonic() - began > 5 > 2 * STALL


# questions of our own


@pytest.fixture
def session_seconds() -> float:
    stall.allow(1)
    return 1


@pytest.mark.usefixtures("session_seconds")
def test_a_question_that_honestly_takes_longer_is_waited_for(sample: str) -> None:
    with connected(Address.of(sample)) as session:
        assert session.row("SELECT pg_sleep(2.5)::text AS slept, 5 AS five")["five"] == 5


@pytest.mark.usefixtures("session_seconds")
def test_a_question_whose_answer_does_not_come_through_ends(sample: str, gated: PutGate) -> None:
    through, gate = gated(sample, 1 << 16)
    with connected(Address.of(through)) as session:
        began = time.monotonic()
        with pytest.raises(DatabaseUnreachable, match="stood still for 1 s; the server has done its part"):
            session.rows("SELECT repeat('x', 100000)")
        assert time.monotonic() - began < 10
        with pytest.raises(Exception, match="closed"):
            session.rows("SELECT 1")
    gate.open()


@pytest.mark.usefixtures("session_seconds")
def test_a_question_that_waits_for_a_lock_ends_and_is_cancelled(postgres: Postgres) -> None:
    url = make_database(postgres)
    run_sql(url, "CREATE TABLE wanted (n int)")
    with closing(psycopg2.connect(url)) as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLE wanted")
        with connected(Address.of(url)) as session:
            with pytest.raises(DatabaseUnreachable, match="waits for a lock that server process") as raised:
                session.rows("SELECT FROM public.wanted")
            assert raised.value.retryable
            assert session.row("SELECT 1 AS one")["one"] == 1


@pytest.mark.usefixtures("session_seconds")
def test_a_server_that_takes_a_connection_and_says_nothing_is_not_waited_for(
    sample: str, gated: PutGate
) -> None:
    through, gate = gated(sample, 0)
    began = time.monotonic()
    with (
        pytest.raises(DatabaseUnreachable, match=r"connecting to .* failed"),
        connected(Address.of(f"{through}?connect_timeout=2")),
    ):
        pass
    assert time.monotonic() - began < 6
    gate.open()


def test_rows_that_nobody_takes_for_long_are_no_stall(sample: str) -> None:
    stall.allow(0.5)

    class Slow:
        taken = 0

        def write(self, data: bytes) -> None:
            if not self.taken:
                time.sleep(1.5)
            self.taken += len(data)

    slow = Slow()
    with connected(Address.of(sample)) as session:
        session.copy_out(
            b"COPY (SELECT repeat('x', 99) FROM generate_series(1, 99999)) TO STDOUT", slow, "UTF8"
        )
    assert slow.taken == 9_999_900


# an archive, read


def test_a_pg_restore_that_is_stopped_says_nothing_against_the_backup(
    tmp_path: Path, bin_dirs: tuple[Path, ...]
) -> None:
    stall.allow(1)
    clients = installed_clients(bin_dirs)[0]

    def write_to_a_stopped_one() -> None:
        with as_sql(Hashing(), clients, format="custom") as archive:
            [child] = [c for c in psutil.Process().children() if c.name() == "pg_restore"]
            child.suspend()
            archive.write(bytes(8 * BLOCK))

    with pytest.raises(ProgramStalled, match="pg_restore took no byte for 1 s"):
        write_to_a_stopped_one()


# the bucket


def test_a_bucket_that_takes_calls_and_never_answers_is_unreachable(
    large: str, impatient: MakeTerminal, gated: PutGate, s3: S3Server, bucket: str
) -> None:
    endpoint, _ = gated(s3.endpoint, 0)
    with soon():
        ended = impatient(large).run("list", **at_bucket(s3, endpoint, bucket))
    assert ended.returncode == 7, ended.stderr
    assert_says(ended.stderr, f"s3://{bucket}/", "run it again")


def test_an_upload_that_stands_still_costs_only_the_copy(
    here: Here, large: str, impatient: MakeTerminal, gated: PutGate, s3: S3Server, bucket: str
) -> None:
    endpoint, gate = gated(s3.endpoint, MID_UPLOAD)
    ours = with_temporary_folder(impatient(large))
    with ours.running("backup", **at_bucket(s3, endpoint, bucket)) as process:
        gate.wait_until_held()
        with soon():
            ended, said = Run(ours, process, gate, large).end()
    assert ended == 7, said
    assert_says(said, f"uploading s3://{bucket}/backup_large_", "run it again")
    assert objects(s3, bucket) == []
    assert open_uploads(s3, bucket) == []
    assert_nothing_runs(Run(ours, process, gate, large))
    assert len(local_backup(here, ours)) == 4


def test_a_download_that_stands_still_says_nothing_against_the_backup(
    here: Here, large: str, impatient: MakeTerminal, gated: PutGate, s3: S3Server, bucket: str
) -> None:
    ours = impatient(large)
    backed_up(here, ours, **at_bucket(s3, bucket=bucket))
    endpoint, gate = gated(s3.endpoint, MID_UPLOAD)
    with ours.running("verify", **at_bucket(s3, endpoint, bucket)) as process:
        gate.wait_until_held()
        with soon():
            _, said = process.communicate(timeout=60)
    assert process.returncode == 7, said
    assert_says(said, f"reading s3://{bucket}/backup_large_")
    assert [name for name in objects(s3, bucket) if ".verify." in name] == []
