"""Drills for tests: taken step by step, so that damage can be made between loading and proving."""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from backup_dag.core.backup import order_for, take_backup
from backup_dag.core.databases import Plan
from backup_dag.core.drilling.drill import Drill, NotProven, to_drill
from backup_dag.core.drilling.outcome import Outcome
from backup_dag.core.manifest import Manifest
from backup_dag.core.settings import Settings
from demo.servers import Postgres, available_versions
from tests.conftest import KEY, Here, Terminal, database, make_database, run_sql
from tests.test_faults import alive_of, wait_until
from tests.test_restore import done

EVERYTHING = Path(__file__).with_name("drilled.sql").read_text(encoding="utf-8")
_DAMAGED = "the damaged copy"


def settings_in(folder: Path) -> Settings:
    """Settings of a user with a local folder and a passphrase, for longer than one test."""
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    ours = {
        "backup_dir": folder / "backups",
        "backup_encryption_key": SecretStr(KEY),
        "pg_bin_dir": tuple(available_versions().values()),
        "backup_drill_checks": folder / "drills",
    }
    return Settings.model_construct(**{**defaults, **ours})


def by_psql(server: Postgres, url: str, text: str) -> None:
    """Runs a file of statements, as psql does."""
    psql = [str(server.bin_dir / "psql"), "-X", "-q", "-o", "/dev/null", "-v", "ON_ERROR_STOP=1", url]
    subprocess.run(psql, input=text.encode(), check=True, capture_output=True)


@dataclass
class Loaded:
    """A drill that has loaded its backup, and may be asked for its verdict over and over."""

    drill: Drill

    @property
    def url(self) -> str:
        """The restored database, which stays as it is."""
        return self.drill.restored.with_password()

    def verdict(self, *damage: str) -> Outcome:
        """What the drill says of a copy of what it loaded, in which these statements were run."""
        ground = self.drill._ground
        there, copy = ground.address.at("postgres").with_password(), ground.address.at(_DAMAGED)
        run_sql(
            there,
            f'DROP DATABASE IF EXISTS "{_DAMAGED}" WITH (FORCE)',
            f'CREATE DATABASE "{_DAMAGED}" TEMPLATE "{ground.address.dbname}"',
        )
        run_sql(copy.with_password(), *damage)
        self.drill._ground, self.drill._notes = replace(ground, address=copy), []
        try:
            self.drill.prove()
            return self.drill.outcome()
        except NotProven as found:
            return found.outcome
        finally:
            self.drill._ground = ground


@contextmanager
def loaded(settings: Settings, url: str, plan: Plan | None = None, name: str = "drilled") -> Iterator[Loaded]:
    """A backup of a database, taken now, and a drill of it up to its proof."""
    take_backup(settings, order_for(database(url, name, plan), settings, None))
    with Drill(settings, to_drill(settings, "latest", name)) as drill:
        drill.fetch()
        drill.verify()
        drill.load()
        yield Loaded(drill)


@contextmanager
def everything_loaded(server: Postgres, folder: Path, plan: Plan | None = None) -> Iterator[Loaded]:
    """The same, of the database that holds one of each."""
    url = make_database(server)
    by_psql(server, url, EVERYTHING)
    with loaded(settings_in(folder), url, plan) as ready:
        yield ready


def drilled(here: Here, ours: Terminal, status: int = 0, **changed: str) -> dict[str, Any]:
    """The one outcome of `backup-dag drill`, as programs see it."""
    run = done(here(ours, "drill", "--json", **changed), status)
    [said] = json.loads(run.stdout)
    return dict(said)


def checks_of(folder: Path, made: Manifest) -> list[dict[str, Any]]:
    """What is recorded beside a backup in a folder."""
    path = folder / f"{made.backup}.verify.json"
    return list(json.loads(path.read_text())["checks"].values()) if path.exists() else []


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A TMPDIR that a server of nobody's can be reached in, so that we know all of what a drill leaves."""
    with tempfile.TemporaryDirectory(prefix="bd-", dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def assert_nothing_left(ours: Terminal) -> None:
    """No server, no folder of one, no socket, no work directory."""
    folder = Path(ours.environment["TMPDIR"])
    wait_until(lambda: alive_of(ours.folder) == [] and alive_of(folder) == [])
    work = [*folder.glob("bd-*"), *folder.glob("backup-dag-scratch/.work/*"), *ours.backups.glob(".work/*")]
    assert work == []
