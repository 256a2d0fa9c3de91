"""Large databases, drilled: many tables, many columns, wide values, many rows; in bounded memory."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backup_dag.core.manifest import Manifest
from demo.servers import Postgres
from tests.authentic import rewritten
from tests.conftest import Here, Terminal, asked, make_database, run_sql
from tests.drills import drilled, loaded, settings_in
from tests.test_restore import backed_up

MakeTerminal = Callable[[str], Terminal]
MIB = 1 << 20
MOST = 200 * MIB
"""What our own process may have at its peak, however large the rows are."""


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """A new database, gone with the test: it is large."""
    url = make_database(postgres)
    yield url
    run_sql(postgres.url(), f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")


def peak(ours: Terminal, *words: str, status: int = 0) -> int:
    """The most memory in bytes that our own process had, of `backup-dag` with these words."""
    measured = (
        "import sys; sys.argv = ['backup-dag', *sys.argv[1:]]\n"
        "from backup_dag.cli.main import main\n"
        "try: main()\n"
        # not getrusage's: that begins with what the process had that started it
        "finally: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", measured, *words],
        cwd=ours.folder,
        env=ours.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == status, run.stderr
    return int(run.stderr.splitlines()[-1]) * 1024


def expecting_another_order(ours: Terminal, made: Manifest, table: str) -> None:
    """As if the rows had been backed up in another order than that in which they come back."""
    other = {"sha256": "0" * 64}
    rewritten(
        ours.backups / f"{made.backup}.json", lambda said: said["content"]["tables"][table].update(other)
    )


def test_five_thousand_tables_are_proven_and_the_one_that_differs_is_named(
    database: str, tmp_path: Path
) -> None:
    for start in range(0, 5000, 1000):
        run_sql(
            database,
            f"DO $$ BEGIN FOR n IN {start} .. {start + 999} LOOP EXECUTE format("
            "'CREATE TABLE t%s AS SELECT %s AS n, 1 AS one', n, n); END LOOP; END $$",
        )
    with loaded(settings_in(tmp_path), database) as ready:
        said = ready.verdict()
        assert (said.proven, said.tables) == (True, 5000)
        said = ready.verdict("UPDATE t4321 SET n = 0")
        assert said.faults == ["table public.t4321 has other content in the same number of rows (1)"]


def test_a_table_of_as_many_columns_as_there_can_be(database: str, tmp_path: Path) -> None:
    columns = ", ".join(f"c{n} int DEFAULT {n}" for n in range(1, 1600))
    run_sql(database, f"CREATE TABLE wide (id int PRIMARY KEY, {columns})")
    run_sql(database, "INSERT INTO wide (id) SELECT n FROM generate_series(1, 200) n")
    with loaded(settings_in(tmp_path), database) as ready:
        assert ready.verdict().proven
        said = ready.verdict("UPDATE wide SET c1599 = 0 WHERE id = 77")
        [fault] = said.faults
        assert fault.endswith("(200); first: (77) changed")


@pytest.mark.parametrize("format", ["sql", "custom"])
def test_a_value_that_is_larger_than_our_memory_may_be(
    database: str, terminal: MakeTerminal, here: Here, format: str
) -> None:
    """In order, and in another order, where the rows are read again."""
    run_sql(
        database,
        "CREATE TABLE wide (id int, what bytea STORAGE EXTERNAL)",
        f"INSERT INTO wide SELECT n, decode(repeat('ab', {120 * MIB}), 'hex') FROM generate_series(1, 1) n",
        "INSERT INTO wide VALUES (2, '')",
    )
    ours = terminal(database)
    made = backed_up(here, ours, BACKUP_FORMAT=format)
    assert peak(ours, "drill") < MOST
    expecting_another_order(ours, made, "public.wide")
    assert peak(ours, "drill") < MOST


def test_narrow_rows_in_another_order(database: str, terminal: MakeTerminal, here: Here) -> None:
    """A hundred megabytes of them: compared again without their order, and one that differs is found."""
    run_sql(database, "CREATE TABLE narrow AS SELECT n FROM generate_series(1, 12000000) n")
    ours = terminal(database)
    made = backed_up(here, ours)
    assert peak(ours, "drill") < MOST
    expecting_another_order(ours, made, "public.narrow")
    said = drilled(here, ours)
    assert said["notes"] == ["table public.narrow came back with the same rows in another order"]


@pytest.mark.large
@pytest.mark.timeout(1800)
def test_two_gigabytes_of_narrow_rows(database: str, terminal: MakeTerminal, here: Here) -> None:
    """Sixty million of them, in order and in another order."""
    run_sql(database, "CREATE TABLE narrow AS SELECT n FROM generate_series(1, 60000000) n")
    assert asked(database, "SELECT pg_table_size('narrow') > 2000000000") == [(True,)]
    ours = terminal(database)
    made = backed_up(here, ours)
    assert peak(ours, "drill") < MOST
    expecting_another_order(ours, made, "public.narrow")
    assert peak(ours, "drill") < MOST


@pytest.mark.large
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("format", ["sql", "custom"])
def test_a_value_of_half_a_gigabyte(database: str, terminal: MakeTerminal, here: Here, format: str) -> None:
    """Its text has twice as many bytes, which is as much as PostgreSQL can write."""
    run_sql(
        database,
        "CREATE TABLE wide (what bytea STORAGE EXTERNAL)",
        f"INSERT INTO wide SELECT decode(repeat('ab', {500_000_000}), 'hex')",
    )
    ours = terminal(database)
    backed_up(here, ours, BACKUP_FORMAT=format)
    assert peak(ours, "drill") < MOST
