"""`make ui`: Dagster's webserver and daemon on 127.0.0.1, until Ctrl-C; nothing is left running.

With a .env in the project's folder it serves the databases configured there, else the demo's.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from backup_dag.core.private import shut_others_out
from demo import world
from demo.process import HOST, free_port, setpriv

USUAL_PORT = 3000
START_SECONDS = 60
WORKSPACE = str(world.ROOT / "workspace.yaml")
LOOK = """
import sys
from backup_dag.core.databases import configured
from backup_dag.core.errors import BackupDagError
from backup_dag.core.settings import load
try:
    configured(load())
except BackupDagError as error:
    sys.exit(f"error: {error}")
"""
STOP_SECONDS = 10


def main() -> int:
    for ending in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us with them ignored
        signal.signal(ending, signal.default_int_handler)
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        if (world.ROOT / ".env").exists():
            shut_others_out()  # Dagster's records are of somebody's databases
            (world.ROOT / ".dagster").mkdir(exist_ok=True)
            environment, home = {"DAGSTER_HOME": str(world.ROOT), **os.environ}, world.ROOT
            logs = world.ROOT / ".dagster"
            if subprocess.run(
                [sys.executable, "-c", LOOK], env=environment, cwd=home, check=False
            ).returncode:
                return 3
        else:
            print("No .env here: serving the demo.", flush=True)
            environment, home = stack.enter_context(world.running()), world.HOME
            logs = home
        port = chosen_port()
        serve = ["dagster-webserver", "--host", HOST, "--port", str(port), "--workspace", WORKSPACE]
        url, servers = f"http://{HOST}:{port}", list[subprocess.Popen[bytes]]()
        environment = {"BACKUP_DAGSTER_URL": url, **environment}  # where links in alerts lead
        servers.append(stack.enter_context(child(serve, environment, home, logs / "webserver.log")))
        wait_until_it_answers(
            f"{url}/server_info", servers, logs
        )  # on a new folder it makes Dagster's records
        daemon = ["dagster-daemon", "run", "--workspace", WORKSPACE]  # which two at a time would spoil
        servers.append(stack.enter_context(child(daemon, environment, home, logs / "daemon.log")))
        print(f"\nDagster is at {url}   (Ctrl-C ends it; logs in {logs})", flush=True)
        if home == world.HOME:
            print("In another terminal, for backup-dag and psql:  source .demo/env", flush=True)
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
        raise SystemExit(f"a server ended by itself; see {logs}/webserver.log and daemon.log")
    print("\nStopped.")
    return 0


@contextmanager
def child(
    words: list[str], environment: Mapping[str, str], folder: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A server with its helpers in a process group of its own, all of which end with the block."""
    program = [*setpriv("--pdeathsig=TERM"), str(Path(sys.executable).parent / words[0]), *words[1:]]
    with log.open("w") as output:
        started = subprocess.Popen(
            program,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        started.terminate()
        with suppress(subprocess.TimeoutExpired):
            started.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def chosen_port() -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind((HOST, USUAL_PORT))
            return USUAL_PORT
    return free_port()


def wait_until_it_answers(url: str, servers: list[subprocess.Popen[bytes]], logs: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and all(server.poll() is None for server in servers):
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise SystemExit(f"the webserver did not come up; see {logs}/webserver.log and daemon.log")


if __name__ == "__main__":
    sys.exit(main())
