"""A run as Dagster's daemon launches it: from a code server, in a worker that is a process of its own.

All of it is Dagster's own: `dagster api grpc` with our code location, its launcher, the worker that it
starts, its judgement of workers that died, and the daemon's run monitoring. The records lie in a folder of
their own.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._cli.job import _create_run
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from dagster._grpc.client import DagsterGrpcClient

from demo.process import setpriv
from torture.world import GLANCE, LONGEST, World, command_lines

ROOT = Path(__file__).parents[1]
_LOCATION = "backup_dag"
_WITHIN = 20.0  # seconds in which the code server must have judged a worker that died
_SHORTER = {
    "start_timeout_seconds: 180": "start_timeout_seconds: 1",
    "runtime_seconds: 86400": "runtime_seconds: 1",
}
"""The limits of run monitoring in our dagster.yaml, so that a day need not be waited for."""


class Orchestra:
    """A code server and Dagster's records, new and empty. A context: nothing of it is left."""

    def __init__(self, world: World) -> None:
        self.home = world.folder / "dagster"
        self._world, self._stack = world, ExitStack()

    def __enter__(self) -> "Orchestra":
        with self._stack as begun:
            self.home.mkdir(mode=0o700)
            begun.callback(shutil.rmtree, self.home)
            configured = (ROOT / "dagster.yaml").read_text().replace(": .dagster", f": {self.home}")
            for ours, shorter in _SHORTER.items():
                if ours not in configured:
                    raise RuntimeError(f"dagster.yaml does not say {ours}")
                configured = configured.replace(ours, shorter)
            (self.home / "dagster.yaml").write_text(configured)
            socket = str(self.home / "socket")
            self.instance = begun.enter_context(DagsterInstance.from_config(str(self.home)))
            self.instance.get_runs_count()  # its tables are made, before there are two who would make them
            self.server = self._serve(socket)
            begun.callback(self.end)
            self._wait_for(socket)
            target = GrpcServerTarget(host="localhost", port=None, socket=socket, location_name=_LOCATION)
            self._workspace = begun.enter_context(WorkspaceProcessContext(self.instance, target))
            self._launcher = begun.enter_context(ThreadPoolExecutor(1))
            self._stack = begun.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _serve(self, socket: str) -> "subprocess.Popen[bytes]":
        words = ["api", "grpc", "-m", "backup_dag.definitions", "-s", socket, "--location-name", _LOCATION]
        changed = {"DAGSTER_HOME": str(self.home), "PYTHONPATH": str(ROOT)}
        with (self.home / "said").open("wb") as said:
            return subprocess.Popen(
                [*setpriv("--pdeathsig=KILL"), sys.executable, "-m", "dagster", *words],
                env=self._world.environment(changed),
                cwd=self._world.home,
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def _wait_for(self, socket: str) -> None:
        client, deadline = DagsterGrpcClient(socket=socket), time.monotonic() + LONGEST
        while time.monotonic() < deadline and self.server.poll() is None:
            with suppress(Exception):  # of gRPC, until it listens
                client.ping("")
                return
            time.sleep(0.05)
        raise RuntimeError(f"the code server does not start: {(self.home / 'said').read_text()[-500:]}")

    def launch(self, job: str, config: Mapping[str, Any], day: str | None) -> "Launched":
        """A run of a job, as the daemon launches what waits in its queue."""
        workspace = self._workspace.create_request_context()
        location = workspace.get_code_location(_LOCATION)
        [repository] = location.get_repositories().values()
        tags = {"dagster/partition": day} if day else {}
        run = _create_run(
            instance=self.instance,
            code_location=location,
            remote_repo=repository,
            remote_job=repository.get_full_job(job),
            run_config=config,
            tags=tags,
            op_selection=None,
            run_id=None,
        )
        launch = self._launcher.submit(self.instance.launch_run, run.run_id, workspace)
        return Launched(self, run.run_id, launch)

    def monitor(self) -> list[str]:
        """What the daemon does every two minutes: no run counts as running for ever. Says what went wrong."""
        quiet = logging.getLogger("torture.monitoring")
        quiet.propagate = False
        quiet.addHandler(logging.NullHandler())
        found = list(execute_run_monitoring_iteration(self._workspace, quiet))
        return [error.message for error in found if error]

    def end(self) -> None:
        """The code server's end, and that of whatever it still has."""
        below = _below(self.server.pid)
        self.server.kill()
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.server.wait()


def _below(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


class Launched:
    """A run that was launched. `seen` are the command lines that could be seen of it and its children."""

    def __init__(self, orchestra: Orchestra, run_id: str, launch: "Future[DagsterRun]") -> None:
        self.orchestra, self.run_id, self._launch = orchestra, run_id, launch
        self.worker, self.seen = self._begun(), set[str]()

    def _begun(self) -> psutil.Process:
        """The worker, as soon as it is there."""
        server, deadline = psutil.Process(self.orchestra.server.pid), time.monotonic() + LONGEST
        while time.monotonic() < deadline:
            for child in server.children():
                with suppress(psutil.Error):
                    if any("spawn_main" in word for word in child.cmdline()):
                        return child
            if self._launch.done():
                self._launch.result()
            time.sleep(0.01)
        raise RuntimeError("no worker was seen")

    def runs(self) -> float:
        """Waits until the worker has the run, and says when that was."""
        self._launch.result(LONGEST)
        return time.monotonic()

    def programs(self) -> Iterator[psutil.Process]:
        with suppress(psutil.Error):
            yield from self.worker.children(recursive=True)

    def strike(self, number: signal.Signals) -> None:
        with suppress(psutil.Error):
            self.worker.send_signal(number)

    def host_goes_down(self) -> None:
        """Code server and worker at once, and all that is below them: nobody is left who could judge."""
        below = _below(self.worker.pid)
        for pid in (self.orchestra.server.pid, self.worker.pid, *(each.pid for each in below)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def ended(self) -> DagsterRun:
        """The run as it is recorded, once its worker has ended and Dagster has judged that: the code server
        does, or where that is gone, run monitoring. Raises RuntimeError where the worker does not end."""
        deadline = time.monotonic() + LONGEST
        while self.worker.is_running() and self.worker.status() != psutil.STATUS_ZOMBIE:
            self.seen.update(command_lines(self.worker.pid))
            if time.monotonic() > deadline:
                self.worker.kill()
                raise RuntimeError(f"the worker did not end in {LONGEST:.0f} s")
            time.sleep(GLANCE)
        deadline = time.monotonic() + _WITHIN
        while not (run := self.recorded()).is_finished and time.monotonic() < deadline:
            if self.orchestra.server.poll() is not None:
                self.orchestra.monitor()
            time.sleep(0.05)
        with suppress(Exception):  # a worker that died before it had the run: Dagster has recorded that
            self._launch.result(LONGEST)
        return run

    def recorded(self) -> DagsterRun:
        run = self.orchestra.instance.get_run_by_id(self.run_id)
        if run is None:
            raise RuntimeError("the run is not recorded at all")
        return run

    def takes(self) -> float:
        """The seconds that it runs when nobody disturbs it."""
        began = self.runs()
        while not (run := self.recorded()).is_finished and time.monotonic() - began < LONGEST:
            time.sleep(0.02)
        seconds = time.monotonic() - began
        if run.status != DagsterRunStatus.SUCCESS:
            raise RuntimeError(f"{run.job_name} by itself ends {run.status.value}")
        return seconds
