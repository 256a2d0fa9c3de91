"""A drill that is killed, at whatever point: no server, no process, no folder, no plain text is left."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from demo.servers import Postgres, S3Server
from tests.conftest import MARKER, Terminal, asked, make_database, run_sql
from tests.drills import assert_nothing_left, temporary_folder
from tests.gate import Gate
from tests.test_faults import alive_of, at_bucket, files_in, wait_until
from tests.test_restore import databases, done

MakeTerminal = Callable[[str], Terminal]
PutGate = Callable[[str, int], tuple[str, Gate]]
SLOW = 15
"""Seconds in which a killed server's last process has ended."""

WAITING = """
CREATE FUNCTION waits(int) RETURNS bool LANGUAGE plpgsql AS
$$ BEGIN
    IF current_setting('app.open', true) IS DISTINCT FROM 'yes' THEN PERFORM {how}; END IF;
    RETURN true;
END $$
"""
SLEEPING = "pg_sleep(100)"
BUSY = "count(*) FROM generate_series(1, 10000000000)"


def segments() -> set[str]:
    """The shared memory that nobody uses any more, and that stays: its server did not end in order."""
    lines = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()]
    number, users = lines[0].index("shmid"), lines[0].index("nattch")
    return {line[number] for line in lines[1:] if line[users] == "0"}


@pytest.fixture
def temporary() -> Iterator[Path]:
    with temporary_folder() as folder:
        yield folder


Make = Callable[..., Terminal]


@pytest.fixture
def held(postgres: Postgres, terminal: MakeTerminal, temporary: Path) -> Make:
    """A terminal with a backup whose load, or proof, lasts."""

    def make(how: str = SLEEPING, format: str = "sql") -> Terminal:
        url = make_database(postgres)
        run_sql(
            url,
            WAITING.format(how=how),
            f"CREATE TABLE marked AS SELECT n, '{MARKER}' AS what FROM generate_series(1, 2000) n",
            "CREATE TABLE slow (n int CHECK (waits(n)))",
            "SET app.open = yes; INSERT INTO slow VALUES (1)",
        )
        ours = terminal(url)
        ours.environment["TMPDIR"] = str(temporary)
        done(ours.run("backup", BACKUP_FORMAT=format))
        return ours

    return make


def of(ours: Terminal) -> list[psutil.Process]:
    """Every process of a drill."""
    folder, found = ours.environment["TMPDIR"].encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, psutil.Error):
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            if folder in told + os.fsencode((process / "cwd").readlink()):
                found.append(psutil.Process(int(process.name)))
    return found


def named(ours: Terminal, *words: str, program: str = "") -> psutil.Process | None:
    """The drill's process whose command line has these words, and that is this program."""
    for process in of(ours):
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if all(word in line for word in words) and program in ("", process.name()):
                return process
    return None


def until(ours: Terminal, *words: str, program: str = "") -> psutil.Process:
    """Waits for it; it may be gone again right after."""
    found: list[psutil.Process] = []

    def seen() -> bool:
        found.extend(filter(None, [named(ours, *words, program=program)]))
        return bool(found)

    wait_until(seen, 30)
    return found[0]


def loading(ours: Terminal) -> None:
    """Until it is in the middle of a table's rows."""
    until(ours, "postgres:", "COPY")


def plain_text_outside_of_the_cluster(ours: Terminal) -> list[Path]:
    found = []
    for folder in (ours.folder, Path(ours.environment["TMPDIR"])):
        for path in files_in(folder):
            with suppress(OSError):
                if "cluster" not in path.parts and MARKER.encode() in path.read_bytes():
                    found.append(path)
    return found


def assert_all_gone(ours: Terminal, before: set[str]) -> None:
    """Processes, sockets, the cluster, plain text, shared memory: without another run."""
    folder = Path(ours.environment["TMPDIR"])
    wait_until(lambda: of(ours) == [] and alive_of(ours.folder) == [], SLOW)
    wait_until(lambda: not list(folder.glob("bd-*")), SLOW)
    assert [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"] == []
    assert plain_text_outside_of_the_cluster(ours) == []
    assert segments() <= before


def assert_next_run_sweeps(ours: Terminal) -> None:
    """Nothing was recorded; and where we were killed ourselves, the next drill clears the last of it."""
    assert not list(ours.backups.glob("*.verify.json"))
    (ours.folder / "drills").mkdir(exist_ok=True)
    with ours.running("drill") as process:
        until(ours, program="initdb")
        process.send_signal(signal.SIGTERM)
        process.wait(SLOW)
    assert_nothing_left(ours)


SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize(("how", "format"), [*((how, "sql") for how in SIGNALS), (signal.SIGKILL, "custom")])
def test_killed_while_it_loads(held: Make, how: signal.Signals, format: str) -> None:
    ours, before = held(format=format), segments()
    with ours.running("drill") as process:
        loading(ours)
        assert plain_text_outside_of_the_cluster(ours) == []
        process.send_signal(how)
        process.wait(SLOW)
        assert process.returncode == (-how if how == signal.SIGKILL else 130)
        assert_all_gone(ours, before)
        assert how == signal.SIGKILL or not list(ours.backups.glob("*.hold-*"))
    assert_next_run_sweeps(ours)


@pytest.mark.parametrize("how", SIGNALS[:2])
@pytest.mark.parametrize("program", ["initdb", "postgres"])
def test_killed_while_its_server_starts(held: Make, how: signal.Signals, program: str) -> None:
    """By the program that runs: whoever starts it has its name in their command line as well."""
    killed_once(held(), how, program=program)


def killed_once(ours: Terminal, how: signal.Signals, *seen: str, program: str = "") -> None:
    """A drill that is ended once such a process of it is there: all of it is gone, the next one is good."""
    before = segments()
    with ours.running("drill") as process:
        until(ours, *seen, program=program)
        process.send_signal(how)
        process.wait(SLOW)
        assert_all_gone(ours, before)
    assert_next_run_sweeps(ours)


@pytest.mark.parametrize("how", SIGNALS[::2])
def test_killed_while_it_fetches(
    held: Make, how: signal.Signals, own_bucket: S3Server, gated: PutGate
) -> None:
    ours, before = held(), segments()
    done(ours.run("backup", **at_bucket(own_bucket)))
    endpoint, gate = gated(own_bucket.endpoint, 4000)
    with ours.running("drill", **at_bucket(own_bucket, endpoint)) as process:
        gate.wait_until_held()
        process.send_signal(how)
        gate.open()
        process.wait(SLOW)
        assert_all_gone(ours, before)
    assert_next_run_sweeps(ours)


@pytest.fixture
def own_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        server.create_bucket("backups")
        yield server


PARTS: dict[str, tuple[str, ...]] = {
    "the keeper": ("keeper.py",),
    "the postmaster": ("/postgres -D",),
    "psql": ("/psql", "--file=-"),
    "a backend": ("postgres:", "COPY"),
}


@pytest.mark.parametrize("load", [SLEEPING, BUSY], ids=["sleeping", "busy"])
@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_it_is_killed_while_it_loads(held: Make, part: str, load: str) -> None:
    """The drill breaks, which says nothing of the backup."""
    ours, before = held(load), segments()
    with ours.running("drill") as process:
        loading(ours)
        until(ours, *PARTS[part]).kill()
        _, said = process.communicate(timeout=60)
        assert process.returncode in (1, 4), said
        assert "which says nothing of the backup" in said
        assert_all_gone(ours, before)
    assert_next_run_sweeps(ours)


@pytest.mark.parametrize("how", SIGNALS[::2])
def test_killed_while_it_proves(
    postgres: Postgres, terminal: MakeTerminal, temporary: Path, how: signal.Signals
) -> None:
    ours = terminal(large_database(postgres))
    ours.environment["TMPDIR"] = str(temporary)
    done(ours.run("backup"))
    killed_once(ours, how, "psql", "--tuples-only")


def large_database(server: Postgres) -> str:
    url = make_database(server)
    run_sql(
        url, f"CREATE TABLE marked AS SELECT n, '{MARKER}' || n AS what FROM generate_series(1, 800000) n"
    )
    return url


@pytest.mark.parametrize("how", SIGNALS[::2])
def test_killed_while_it_asks(
    postgres: Postgres, terminal: MakeTerminal, temporary: Path, how: signal.Signals
) -> None:
    url = make_database(postgres)
    run_sql(url, f"CREATE TABLE marked AS SELECT '{MARKER}' AS what")
    ours = terminal(url)
    ours.environment["TMPDIR"] = str(temporary)
    done(ours.run("backup"))
    (ours.folder / "drills").mkdir()
    (ours.folder / "drills" / "slow.sql").write_text("-- must return rows\nSELECT pg_sleep(100) FROM marked")
    killed_once(ours, how, "postgres:", "DO")


def test_what_a_killed_drill_left_on_a_given_server_is_dropped_by_the_next(
    held: Make, servers: dict[int, Postgres], own_server: Postgres
) -> None:
    ours, given = held(), {"BACKUP_SCRATCH_URL": own_server.url()}
    before = databases(own_server)
    with ours.running("drill", **given) as process:
        wait_until(
            lambda: asked(own_server.url(), "SELECT FROM pg_stat_activity WHERE query ~ '^COPY'") != []
        )
        process.kill()
        process.wait(SLOW)
    [left] = databases(own_server) - before
    assert left.startswith("backup_dag_drill__restoring_")
    with ours.running("drill", **given) as process:
        wait_until(lambda: databases(own_server) - before - {left} != set(), 20)
        assert left not in databases(own_server)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert databases(own_server) == before


@pytest.fixture
def own_server(ground: Path) -> Iterator[Postgres]:
    """A server that is not the source."""
    with Postgres(ground / f"given{time.monotonic_ns()}", 18) as server:
        yield server
