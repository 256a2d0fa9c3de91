"""What a backup runs while it is drilled is a stranger's: it sees nothing of ours, and reaches nobody."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backup_dag.core.clients import Clients, installed_clients
from backup_dag.core.drilling import confinement
from backup_dag.core.drilling.confinement import can_shut_in, confined
from backup_dag.core.errors import ConfigurationError
from demo.servers import Postgres, available_versions
from tests.conftest import MARKER, Here, Terminal, make_database, name_of, run_sql
from tests.drills import drilled, temporary_folder
from tests.test_restore import backed_up, done

MakeTerminal = Callable[[str], Terminal]
SOMEBODY = 12345
"""A user that is neither root nor nobody."""

EVIL = """
CREATE FUNCTION evil() RETURNS bool LANGUAGE plpgsql AS $$
DECLARE said text;
BEGIN
    IF current_database() = '{name}' THEN RETURN true; END IF;
    CREATE TEMP TABLE IF NOT EXISTS leaked (line text);
    COPY leaked FROM PROGRAM '(cat {secrets}; ls {backups}; touch {backups}/stolen) 2>/dev/null; true';
    BEGIN
        COPY leaked FROM '{secrets}';
    EXCEPTION WHEN OTHERS THEN NULL; END;
    SELECT string_agg(line, ', ') INTO said FROM leaked;
    IF said IS NOT NULL THEN RAISE EXCEPTION 'leaked: %', said; END IF;
    RETURN true;
END $$
"""


@pytest.mark.parametrize("format", ["sql", "custom"])
def test_a_function_that_runs_while_it_is_loaded_finds_nothing(
    postgres: Postgres, terminal: MakeTerminal, here: Here, format: str
) -> None:
    url = make_database(postgres)
    ours = terminal(url)
    secrets = ours.folder / "secrets"
    secrets.write_text(f"{MARKER}\n")
    secrets.chmod(0o600)
    run_sql(
        url,
        EVIL.format(name=name_of(url), secrets=secrets, backups=ours.backups),
        "CREATE TABLE t (n int CHECK (evil()))",
        "INSERT INTO t VALUES (1)",
    )
    backed_up(here, ours, BACKUP_FORMAT=format)
    said = drilled(here, ours)
    assert (said["outcome"], said["faults"]) == ("proven", [])
    assert not (ours.backups / "stolen").exists()


@dataclass(frozen=True)
class Place:
    """Folders of somebody's: the server's own two, and one with a secret and a socket that answers."""

    room: Path
    sockets: Path
    home: Path
    programs: Clients


@pytest.fixture
def place() -> Iterator[Place]:
    with temporary_folder() as folder:
        folder.chmod(0o755)
        room, sockets, home = (folder / name for name in ("room", "sockets", "home"))
        for each in (room, sockets, home):
            each.mkdir()
        (home / "secret").write_text(MARKER)
        (home / "secret").chmod(0o600)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(home / "socket"))
            listening.listen()
            for path in (room, sockets, home, *home.iterdir()):
                os.chown(path, SOMEBODY, SOMEBODY)
            newest = installed_clients((list(available_versions().values())[-1],))
            yield Place(room, sockets, home, newest[0])


def shut_in(place: Place, monkeypatch: pytest.MonkeyPatch, script: str) -> subprocess.CompletedProcess[str]:
    """What a script says that runs where the server of somebody who is not root would."""
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)
    monkeypatch.setattr(os, "getuid", lambda: SOMEBODY)
    become = ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"]
    become += ["--bounding-set=-all", "--no-new-privs", "--"]  # as a hardened unit has it
    argv, notes = confined(place.programs, place.room, place.sockets, or_else=False)
    assert notes == []
    program = [*become, *argv, "sh", "-c", script]
    return subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)


needs_bwrap = pytest.mark.skipif(
    not can_shut_in() or os.geteuid() != 0, reason="bubblewrap may not be used here, or we cannot be another"
)


@needs_bwrap
def test_a_server_of_ones_own_sees_its_own_folders_and_nobody_elses(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = place.home
    run = shut_in(
        place,
        monkeypatch,
        f"cat {home}/secret; ls {home} /root /home; touch {home}/stolen; ls /proc/1;"
        f" kill -9 {os.getpid()}; touch {place.room}/a {place.sockets}/b; echo it ran as $(id -u)",
    )
    assert run.stdout == f"it ran as {SOMEBODY}\n", run.stderr
    assert MARKER not in run.stderr
    assert not (home / "stolen").exists()
    assert (place.room / "a").exists()
    assert (place.sockets / "b").exists()


@needs_bwrap
def test_it_reaches_no_socket_and_no_network(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a path, not by a name, not by the loopback of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        psql = place.programs.program("psql")
        run = shut_in(
            place,
            monkeypatch,
            f"for host in 127.0.0.1 {place.home}; do"
            f" {psql} -X 'host='$host' port={port} connect_timeout=3' -c 'SELECT 1'; done",
        )
    assert "Connection refused" in run.stderr, "its own loopback, where nobody listens"
    assert "No such file or directory" in run.stderr


@needs_bwrap
def test_initdb_runs_there_and_with_no_rights_to_give_away(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    initdb = place.programs.program("initdb")
    run = shut_in(place, monkeypatch, f"{initdb} -D {place.room}/cluster --no-sync && mount -t tmpfs x /tmp")
    assert (place.room / "cluster" / "PG_VERSION").exists(), run.stderr
    assert run.returncode != 0, "it may mount nothing"


def test_where_it_cannot_be_shut_in_somebody_must_say_that_they_want_that(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confinement, "_BWRAP", None)
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)
    with pytest.raises(
        ConfigurationError, match="functions in a backup would run with your rights"
    ) as refused:
        confined(place.programs, place.room, place.sockets, or_else=False)
    for way in ("bubblewrap", "BACKUP_SCRATCH_URL", "BACKUP_DRILL_UNCONFINED"):
        assert way in refused.value.hint
    _, notes = confined(place.programs, place.room, place.sockets, or_else=True)
    assert "the files that are yours" in notes[0]


def test_roots_server_is_nobodys_and_needs_programs_that_nobody_can_run(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confinement, "_BWRAP", None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(confinement, "open_to_all", lambda folder: False)
    with pytest.raises(ConfigurationError, match="nobody cannot run the programs"):
        confined(place.programs, place.room, place.sockets, or_else=True)
    monkeypatch.setattr(confinement, "open_to_all", lambda folder: True)
    argv, notes = confined(place.programs, place.room, place.sockets, or_else=False)
    assert "everyone may read" in notes[0]
    assert {"--reuid=65534", "--no-new-privs", "--bounding-set=-all"} <= set(argv)


def test_a_folder_for_it_that_is_none_is_said(terminal: MakeTerminal, sample: str) -> None:
    ours = terminal(sample)
    done(ours.run("backup"))
    run = done(ours.run("drill", BACKUP_SCRATCH_DIR=str(ours.folder / "nowhere")), 3)
    assert "nowhere is no folder" in run.stderr
    assert not (ours.folder / "nowhere").exists()
