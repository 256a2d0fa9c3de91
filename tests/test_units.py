"""deploy/: the units are as closed as they say, and what they start exists."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import time
from pathlib import Path

import pytest

from backup_dag.core.settings import Settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNITS = DEPLOY / "systemd"
SERVICES = sorted(path.stem for path in UNITS.glob("*.service"))
TIMERS = sorted(path.stem for path in UNITS.glob("*.timer"))
SERVERS = ["backup-dag-code-server", "backup-dag-daemon", "backup-dag-webserver"]
CRONTAB = (DEPLOY / "cron" / "backup-dag").read_text()

SRV, HOME, RUN, BACKUPS = "/srv/backup-dag", "/var/lib/backup-dag", "/run/backup-dag", "/var/backups/postgres"
HARDENING = {
    "User": "backup-dag",
    "Group": "backup-dag",
    "UMask": "0077",
    "StateDirectory": "backup-dag",
    "StateDirectoryMode": "0700",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "ProtectProc": "invisible",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "MemoryDenyWriteExecute": "yes",
    "ProtectClock": "yes",
    "ProtectControlGroups": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "SystemCallArchitectures": "native",
    "SystemCallFilter": "@system-service ~@privileged @resources capset",
    "SystemCallErrorNumber": "EPERM",
    "LimitCORE": "0",
    "OOMPolicy": "continue",
}

DRILLING = {
    "RestrictNamespaces": "yes user mnt pid net ipc",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "SystemCallFilter": "@system-service ~@privileged @resources capset @mount",
}
"""What a service that drills may do more, to shut the throw-away server in."""
DRILLS = ["backup-dag-code-server", "backup-dag-night"]

Unit = Mapping[str, str]


def unit(name: str) -> Unit:
    """A unit's settings with its drop-ins', as systemd merges them; what is given twice, in one line."""
    found: dict[str, list[str]] = defaultdict(list)
    folders = (UNITS / "backup-dag-.service.d", UNITS / f"{name}.d")
    drop_ins = [path for folder in folders for path in folder.glob("*.conf")]
    own = [UNITS / name, *sorted(drop_ins, key=lambda path: path.name)]
    for path in own if name.endswith(".service") else own[:1]:
        for key, value in re.findall(r"^([A-Za-z]+)=(.*)$", path.read_text(), re.M):
            found[key].append(value)
    return {key: " ".join(values) for key, values in found.items()}


def crontab_lines() -> list[tuple[str, str, str]]:
    """When, as whom, what; the lines that are commented out, too."""
    return re.findall(r"^(?:# )?((?:[\d*,/]+ ){4}[\d*,/]+)  (\S+)  (.+)$", CRONTAB, re.M)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_may_do_as_little_as_it_says(name: str) -> None:
    found = unit(f"{name}.service")
    closed = {**HARDENING, **(DRILLING if name in DRILLS else {})}
    assert {key: found.get(key) for key in closed} == closed
    assert found["ExecStart"].startswith(f"{SRV}/"), "a prefix such as + would run it as root"
    assert name.startswith("backup-dag-"), "or the drop-in is not for it"


def test_only_what_has_to_write_or_to_know_can() -> None:
    found = {name: unit(f"{name}.service") for name in SERVICES}
    writing = {name: one["ReadWritePaths"] for name, one in found.items() if "ReadWritePaths" in one}
    makers = ["backup-dag-code-server", "backup-dag-night", "backup-dag-watch"]
    assert writing.pop("backup-dag-metrics") == "/var/lib/prometheus/node-exporter"
    assert writing == dict.fromkeys(makers, f"-{BACKUPS}")
    for name in ("backup-dag-daemon", "backup-dag-webserver"):
        assert found[name]["InaccessiblePaths"] == f"-{SRV}/.env -{BACKUPS}"
        assert (found[name]["IPAddressDeny"], found[name]["IPAddressAllow"]) == ("any", "localhost")
    assert found["backup-dag-code-server"]["RuntimeDirectoryMode"] == "0700"


def test_the_pages_are_on_this_machine_alone_and_the_code_server_on_no_port() -> None:
    starts = {name: unit(f"{name}.service")["ExecStart"] for name in SERVERS}
    assert "--host 127.0.0.1 --port 3000 " in starts["backup-dag-webserver"]
    assert "--host" not in starts["backup-dag-code-server"]
    assert "--port" not in starts["backup-dag-code-server"]
    assert f"socket: {RUN}/code-server.sock\n" in (UNITS / "workspace.yaml").read_text()
    assert f"--socket {RUN}/code-server.sock " in starts["backup-dag-code-server"]


def test_dagsters_settings_are_the_projects_but_for_where_its_records_are() -> None:
    ours, projects = ((folder / "dagster.yaml").read_text() for folder in (UNITS, ROOT))
    begin = "# A backfill waits"  # below where the records are
    assert ours[ours.index(begin) :] == projects[projects.index(begin) :]
    assert not re.search(r"^\w", ours[: ours.index(begin)], re.M)


@pytest.mark.parametrize("path", [ROOT, UNITS, DEPLOY / "dagster-postgres.yaml"], ids=lambda path: path.name)
def test_a_run_that_nothing_else_ends_is_ended(path: Path) -> None:
    """The backstop of BACKUP_STALL_SECONDS, in each of Dagster's settings that we give."""
    text = (path if path.is_file() else path / "dagster.yaml").read_text()
    monitoring = text[text.index("\nrun_monitoring:\n") :]
    for said in ("enabled: true", "start_timeout_seconds: 180", "max_runtime_seconds: 86400"):
        assert f"\n  {said}" in monitoring.partition("\n\n")[0]


def test_the_nights_are_at_the_time_that_watch_goes_by() -> None:
    assert Settings.model_fields["backup_time"].default == time(2, 0)
    assert unit("backup-dag-night.timer")["OnCalendar"] == "*-*-* 02:00:00"
    assert next(when for when, _, what in crontab_lines() if what.endswith("/night")) == "0 2 * * *"
    assert {f"{name}.service" for name in TIMERS} <= {path.name for path in UNITS.glob("*.service")}


def commands() -> Iterator[str]:
    """Every program of .venv that a unit, the crontab or the night names, with its words."""
    for name in SERVICES:
        yield unit(f"{name}.service")["ExecStart"]
    for _, user, what in crontab_lines():
        assert user == "backup-dag"
        yield what
    for verb in re.findall(r"for verb in (.+); do", (DEPLOY / "night").read_text())[0].split():
        yield f".venv/bin/backup-dag {verb}{' --scheduled' if verb == 'backup' else ''}"


@pytest.mark.parametrize("command", sorted({c[c.index(".venv/bin/") :] for c in commands() if ".venv" in c}))
def test_every_command_exists_with_the_flags_it_is_given(command: str) -> None:
    program, *words = shlex.split(command.split(">")[0].removeprefix(".venv/bin/"))
    verbs = [word for word in words if not word.startswith("-")][: 2 if program == "dagster" else 1]
    verbs = verbs if words and words[0] in verbs else []
    shown = subprocess.run(
        [Path(sys.executable).with_name(program), *verbs, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout
    for flag in (word for word in words if word.startswith("-")):
        assert re.search(rf"(^|[\s,]){flag}\b", shown), flag


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_finds_nothing_wrong_and_little_exposed(tmp_path: Path) -> None:
    units = tmp_path / "units"
    shutil.copytree(UNITS, units)
    for path in units.glob("*.service"):  # verify looks whether the programs are there
        path.write_text(path.read_text().replace(SRV, str(ROOT)))

    def analyze(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            ["systemd-analyze", *words],
            env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    files = [str(path) for path in units.iterdir() if path.suffix in (".service", ".timer")]
    assert analyze("verify", *files) == (0, "")
    for path in units.glob("*.service"):
        most = 25 if path.stem in DRILLS else 16  # of 100
        code, said = analyze("security", "--offline=true", f"--threshold={most}", str(path))
        assert code == 0, said.splitlines()[-1]
