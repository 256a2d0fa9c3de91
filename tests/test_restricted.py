"""Texts that have psql run a program here, made by somebody who has the key: nothing of theirs runs."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from backup_dag.core.clients import find_clients, find_restricting
from backup_dag.core.errors import ConfigurationError
from backup_dag.core.psql import WithoutRestriction
from demo.servers import Postgres
from tests.conftest import Here, Terminal, make_database, name_of, run_sql
from tests.drills import drilled
from tests.test_restore import backed_up, databases, done, made_by_restores, orders, small_shop, spoil

MakeTerminal = Callable[[str], Terminal]
PLACES = {
    "before all else": "NR==1 {print run} 1",
    "in a text that restricts nothing": "/^\\\\(un)?restrict / {next} 1; /^SET client_encoding/ {print run}",
    "after an end of its own": '/^\\\\restrict / {key=$2} 1; /^SET client_enc/ {print "\\\\unrestrict " key;'
    " print run}",
    "after another beginning": '1; /^SET client_encoding/ {print "\\\\restrict more"; print run}',
    "behind a statement": '1; /^SET client_encoding/ {print "SELECT 1 " run}',
    "after rows": "1; /^\\\\\\.$/ {print run}",
    "after all else": "1; END {print run}",
}
"""Where the command stands, as awk puts it into pg_dump's text."""


def programs_with(folder: Path, real: Path, pg_dump: str) -> Path:
    """PostgreSQL's programs, but for pg_dump, which is a script."""
    folder.mkdir()
    for program in real.iterdir():
        if program.name != "pg_dump":
            (folder / program.name).symlink_to(program)
    (folder / "pg_dump").write_text(f"#!/bin/sh\n{pg_dump}\n")
    (folder / "pg_dump").chmod(0o755)
    return folder


@pytest.fixture
def shop(postgres: Postgres) -> Iterator[str]:
    with small_shop(postgres) as url:
        yield url


@pytest.fixture(params=list(PLACES.values()), ids=list(PLACES))
def hostile(
    request: pytest.FixtureRequest,
    shop: str,
    postgres: Postgres,
    terminal: MakeTerminal,
    here: Here,
    tmp_path: Path,
) -> Terminal:
    """A terminal with one backup, authentic and whole, whose text tells psql to make the file `ran`."""
    ours = terminal(shop)
    awk = f"awk -v 'run=\\\\! touch {tmp_path}/ran' '{request.param}'"
    dump = f'"{postgres.bin_dir}/pg_dump" "$@" | {awk}'
    theirs = programs_with(
        tmp_path / "theirs",
        postgres.bin_dir,
        f'case "$1" in --version) {dump.split(" |")[0]};; *) {dump};; esac',
    )
    backed_up(here, ours, PG_BIN_DIR=str(theirs))
    spoil(shop)
    return ours


def test_a_restore_stops_at_it_and_single_tables_come_back_without(
    hostile: Terminal, shop: str, postgres: Postgres, here: Here, tmp_path: Path
) -> None:
    for mode in ("swap", "in-place"):
        refused = done(here(hostile, "restore", "--force", "--no-safety-backup", "--mode", mode), 6)
        assert "a command for psql itself" in refused.stderr
        assert "find out who made this one" in refused.stderr
        assert not (tmp_path / "ran").exists()
        assert (orders(shop), made_by_restores(postgres, name_of(shop))) == (250, [])
    done(here(hostile, "restore", "--force", "--table", "public.orders"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("hostile", [PLACES["after an end of its own"]], indirect=True)
def test_a_drill_condemns_it(hostile: Terminal, here: Here, tmp_path: Path) -> None:
    [fault] = drilled(here, hostile, 6)["faults"]
    assert "a command for psql itself" in fault
    assert not (tmp_path / "ran").exists()


# --- A psql that cannot be restricted ----------------------------------------------------------------


def saying(folder: Path, real: Path, version: str) -> Path:
    return programs_with(folder, real, f'echo "pg_dump (PostgreSQL) {version}"')


def test_a_psql_that_would_run_it_is_refused_in_the_plan(
    servers: Mapping[int, Postgres], terminal: MakeTerminal, here: Here, tmp_path: Path
) -> None:
    server = servers[16]
    url = make_database(server)
    run_sql(url, "CREATE TABLE orders AS SELECT n FROM generate_series(1, 9) n")
    ours, known = terminal(url), databases(server)
    backed_up(here, ours)
    old = saying(tmp_path / "old", server.bin_dir, "16.9")
    only = {"PG_BIN_DIR": str(old), "PATH": "/usr/bin:/bin"}
    refused = done(here(ours, "restore", "--force", "--no-safety-backup", **only), 8)
    assert "psql 16.9" in refused.stderr
    assert "install postgresql-client-16 16.10 or newer" in refused.stderr
    assert (orders(url), databases(server)) == (9, known)
    run_sql(server.url(), f"DROP DATABASE {name_of(url)} WITH (FORCE)")


def test_of_two_the_one_that_can_is_taken(servers: Mapping[int, Postgres], tmp_path: Path) -> None:
    real = servers[16].bin_dir
    old, new = (saying(tmp_path / version, real, version) for version in ("16.9", "16.10"))
    assert find_clients(16, (old, new)).bin_dir == new
    assert find_restricting(16, (old, new)).bin_dir == new
    with pytest.raises(ConfigurationError, match=r"16\.9"):
        find_restricting(16, (old,))


def test_a_psql_that_only_says_that_it_can_loads_nothing(
    postgres: Postgres, shop: str, terminal: MakeTerminal, here: Here, tmp_path: Path
) -> None:
    ours = terminal(shop)
    backed_up(here, ours)
    spoil(shop)
    folder = saying(tmp_path / "lying", postgres.bin_dir, "18.0")
    (folder / "psql").unlink()
    (folder / "psql").write_text(
        f'#!/bin/sh\nsed "s/^.restrict/&ed/" | exec "{postgres.bin_dir}/psql" "$@"\n'
    )
    (folder / "psql").chmod(0o755)
    refused = done(here(ours, "restore", "--force", "--no-safety-backup", PG_BIN_DIR=str(folder)), 4)
    assert "install a newer minor version" in refused.stderr
    assert (orders(shop), made_by_restores(postgres, name_of(shop))) == (250, [])


# --- pg_dump's own lines -----------------------------------------------------------------------------


class Taken:
    def __init__(self) -> None:
        self.text = b""

    def write(self, data: bytes) -> None:
        self.text += data


HEAD = b"--\n-- PostgreSQL database dump\n--\n\n"
BODY = b"SET a = 1;\n\\unrestrict other\nSELECT '\n\\restrict k3y\n\\unrestrict k3y2\n';\n"
TAIL = b"-- PostgreSQL database dump complete\n--\n"
TEXTS = {
    "ordinary": (
        HEAD + b"\\restrict k3y\n\n" + BODY + TAIL + b"\n\\unrestrict k3y\n\n",
        HEAD + b"\n" + BODY + TAIL,
    ),
    "an older pg_dump's": (HEAD + BODY + TAIL + b"\n", HEAD + BODY + TAIL),
    "with a line that is no key": (b"\\restricted\n" + BODY, b"\\restricted\n" + BODY),
    "of one long line": (b"SELECT '" + b"x" * 9000, b"SELECT '" + b"x" * 9000),
}


@pytest.mark.parametrize("size", [1, 2, 7, 40, 100_000])
@pytest.mark.parametrize(("text", "left"), TEXTS.values(), ids=TEXTS.keys())
def test_only_the_two_lines_go_wherever_blocks_are_cut(text: bytes, left: bytes, size: int) -> None:
    taken = Taken()
    without = WithoutRestriction(taken)
    for at in range(0, len(text), size):
        without.write(text[at : at + size])
    assert taken.text.rstrip(b"\n") == left.rstrip(b"\n")
