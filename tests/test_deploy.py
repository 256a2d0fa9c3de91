"""deploy/ at work: nights by cron's lines and by the script, and the three services by their own commands."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backup_dag.core.catalog import Catalog
from backup_dag.core.manifest import Manifest
from backup_dag.core.store.local import LocalStore
from demo.servers import free_port
from demo.ui import child
from tests.conftest import Terminal
from tests.gate import Gate
from tests.test_faults import MIB, alive_of, artifact_in_work, files_in, wait_until, with_temporary_folder
from tests.test_units import (
    BACKUPS,
    CRONTAB,
    DEPLOY,
    HOME,
    ROOT,
    RUN,
    SERVERS,
    SRV,
    UNITS,
    crontab_lines,
    unit,
)

PutGate = Callable[[str, int], tuple[str, Gate]]


@dataclass
class Installed:
    """The project in a folder, as deploy/README.md puts it on a machine, with its settings in .env alone."""

    folder: Path
    port: int
    environment: dict[str, str]

    @property
    def project(self) -> Path:
        return self.folder / "srv"

    def here(self, text: str) -> str:
        """A command or file of deploy/, with the paths and the port of this folder."""
        for there, ours in ((SRV, "srv"), (HOME, "home"), (RUN, "run"), (BACKUPS, "backups")):
            text = text.replace(there, str(self.folder / ours))
        return text.replace("--port 3000", f"--port {self.port}")

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """As cron does: by sh, in the home folder, with nothing but its own environment."""
        return subprocess.run(
            ["/bin/sh", "-c", self.here(command)],
            cwd=self.folder / "home",
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    def in_project(self, command: str) -> subprocess.CompletedProcess[str]:
        """The same, in the folder that the units of those work in who need the settings."""
        return self.run(f"cd {SRV} && {command}")

    def manifests(self) -> list[Manifest]:
        catalog = Catalog([LocalStore(self.folder / "backups")])
        return [catalog.load(backup).manifest for backup in catalog.survey().ids]


def install(folder: Path, ours: Terminal, **changed: str) -> Installed:
    for name in ("srv", "home", "run", "backups"):
        (folder / name).mkdir(mode=0o700, parents=True)
    installed = Installed(folder, free_port(), {})
    installed.environment = {
        "PATH": re.findall(r"^PATH=(.+)$", CRONTAB, re.M)[0],
        "HOME": str(folder / "home"),
        "PYTHONPATH": str(ROOT),
        "TMPDIR": ours.environment.get("TMPDIR", "/tmp"),
    }
    shutil.copytree(DEPLOY, installed.project / "deploy")
    for path in (UNITS / "workspace.yaml", UNITS / "dagster.yaml"):
        (installed.project / path.relative_to(ROOT)).write_text(installed.here(path.read_text()))
    (installed.project / ".venv").symlink_to(Path(sys.executable).parent.parent)
    (folder / "home/dagster.yaml").symlink_to(installed.project / "deploy/systemd/dagster.yaml")
    wanted = ("DATABASE_URL", "BACKUP_ENCRYPTION_KEY", "PG_BIN_DIR")
    settings = {name: ours.environment[name] for name in wanted} | {"BACKUP_DIR": str(folder / "backups")}
    lines = [f"{name}='{value}'\n" for name, value in {**settings, **changed}.items()]
    (installed.project / ".env").touch(0o600)
    (installed.project / ".env").write_text("".join(lines))
    return installed


def test_the_lines_for_cron_make_a_night(
    terminal: Callable[[str], Terminal], sample: str, tmp_path: Path
) -> None:
    installed = install(tmp_path / "machine", terminal(sample))
    said = {what: installed.run(what) for _, _, what in crontab_lines() if "metrics" not in what}
    night, watch = said.values()
    assert (night.returncode, watch.returncode) == (0, 0), night.stderr + watch.stderr
    assert len(installed.manifests()) == 1
    for verb in ("backup_sample_", "read to its end", "1 stay, 0 go", "all is well"):
        assert verb in night.stdout
    assert watch.stdout == ""
    numbers = next(what for _, _, what in crontab_lines() if "metrics" in what)
    output = tmp_path / "backup-dag.prom"
    assert installed.run(re.sub(r"/var/lib/prometheus/\S+", str(output), numbers)).returncode == 0
    assert 'backup_dag_backups{database="sample",store="local"} 1.0' in output.read_text()


def test_a_night_goes_on_after_a_verb_that_failed_and_ends_with_its_code(
    terminal: Callable[[str], Terminal], sample: str, tmp_path: Path
) -> None:
    installed = install(tmp_path / "machine", terminal(sample))
    assert installed.run(f"{SRV}/deploy/night").returncode == 0
    env = installed.project / ".env"
    env.write_text(re.sub(r"@127\.0\.0\.1:\d+", f"@127.0.0.1:{free_port()}", env.read_text()))
    night = installed.run(f"{SRV}/deploy/night")
    assert night.returncode == 4, night.stderr
    assert "read to its end" in night.stdout
    assert "1 stay, 0 go" in night.stdout


def test_a_night_that_is_told_to_end_tells_its_verb_and_begins_no_other(
    terminal: Callable[[str], Terminal], large: str, gated: PutGate, tmp_path: Path
) -> None:
    through_gate, gate = gated(large, 8 * MIB)
    ours = with_temporary_folder(terminal(through_gate))
    installed = install(tmp_path / "machine", ours)
    held = Terminal(installed.folder, {})
    with subprocess.Popen(
        [installed.project / "deploy/night"],
        env=installed.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as night:
        gate.wait_until_held()
        wait_until(lambda: artifact_in_work(held) > MIB)
        night.send_signal(signal.SIGTERM)  # to the script alone, as KillMode=mixed does
        stdout, stderr = night.communicate(timeout=30)
    assert (night.returncode, stdout) == (130, "")
    assert "interrupted; nothing half-made was left behind" in stderr
    assert files_in(installed.folder / "backups/.work") == files_in(ours.folder / "temporary") == []
    wait_until(lambda: alive_of(installed.folder) == [])


def test_settings_that_are_refused_keep_the_code_server_from_starting(
    terminal: Callable[[str], Terminal], sample: str, tmp_path: Path
) -> None:
    installed = install(tmp_path / "machine", terminal(sample), BACKUP_TIME="25:99")
    refused = installed.in_project(unit("backup-dag-code-server.service")["ExecStartPre"])
    assert refused.returncode == 1
    assert "BACKUP_TIME: Value error, not a time of day" in refused.stderr
    assert "mend it in the environment or in .env" in refused.stderr


@contextmanager
def started(installed: Installed, names: list[str]) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """The services' own commands, in their order and folders, each ready as its unit says; ended by pid."""
    running = []
    with ExitStack() as stack:
        for name in names:
            found = unit(f"{name}.service")
            settings = dict(pair.split("=", 1) for pair in [installed.here(found["Environment"])])
            if checking := found.get("ExecStartPre"):
                assert (checked := installed.in_project(checking)).returncode == 0, checked.stderr
            running.append(
                stack.enter_context(
                    child(
                        shlex.split(installed.here(found["ExecStart"])),
                        {**installed.environment, **settings},
                        Path(installed.here(found["WorkingDirectory"])),
                        installed.folder / f"{name}.log",
                    )
                )
            )
            if waiting := found.get("ExecStartPost"):
                subprocess.run(shlex.split(installed.here(waiting)), check=True, timeout=60)
        yield running


def asked(installed: Installed, query: str, **variables: Any) -> Any:
    """What the pages' server answers to GraphQL."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{installed.port}/graphql",
        json.dumps({"query": query, "variables": variables}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)["data"]


LOCATIONS = """{workspaceOrError {... on Workspace {locationEntries {
    name loadStatus locationOrLoadError {__typename}}}}}"""
LAUNCH = """mutation($params: ExecutionParams!) {launchRun(executionParams: $params) {__typename}}"""
RUNS = "{runsOrError {... on Runs {results {status}}}}"


def answers(installed: Installed) -> bool:
    with suppress(OSError):
        return bool(asked(installed, LOCATIONS))
    return False


def test_the_three_services_make_a_backup_that_the_pages_ask_for(
    terminal: Callable[[str], Terminal], sample: str, ground: Path
) -> None:
    installed = install(ground / "services", terminal(sample), BACKUP_SCHEDULES="off")
    with started(installed, SERVERS) as servers:
        wait_until(lambda: answers(installed), 40)
        (location,) = asked(installed, LOCATIONS)["workspaceOrError"]["locationEntries"]
        assert location["name"] == "backup_dag"
        assert location["locationOrLoadError"]["__typename"] == "RepositoryLocation"
        params = {
            "selector": {
                "repositoryName": "__repository__",
                "repositoryLocationName": "backup_dag",
                "jobName": "sample_backup",
            },
            "executionMetadata": {
                "tags": [{"key": "dagster/partition", "value": f"{datetime.now(UTC):%Y-%m-%d}"}]
            },
            "runConfigData": {},
        }
        assert asked(installed, LAUNCH, params=params)["launchRun"]["__typename"] == "LaunchRunSuccess"

        def statuses() -> list[str]:
            return [run["status"] for run in asked(installed, RUNS)["runsOrError"]["results"]]

        wait_until(lambda: statuses()[0] in ("SUCCESS", "FAILURE", "CANCELED"), 40)
        assert statuses() == ["SUCCESS"]
        assert all(server.poll() is None for server in servers)
    assert all(server.returncode != -signal.SIGKILL for server in servers)
    assert [manifest.database for manifest in installed.manifests()] == ["sample"]
    wait_until(lambda: alive_of(installed.folder) == [], 40)
