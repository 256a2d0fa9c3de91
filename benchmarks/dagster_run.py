"""Dagster's own share: an empty asset to compare with, and the time from a launch to the first byte."""

from __future__ import annotations

import json
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster import DailyPartitionsDefinition, Definitions, asset, in_process_executor

from demo.process import HOST, free_port
from demo.ui import child, wait_until_it_answers

_LAUNCH = """mutation Launch($p: ExecutionParams!) {
  launchRun(executionParams: $p) { __typename ... on LaunchRunSuccess { run { runId } } } }"""
_EVENTS = """query Events($run: ID!) { runOrError(runId: $run) { ... on Run { status
  eventConnection { events { ... on MessageEvent { timestamp message } } } } } }"""
_FIRST = "dumped: the first bytes have come"


@asset(partitions_def=DailyPartitionsDefinition("2026-01-01", end_offset=1))
def nothing() -> None:
    """What a run costs that does nothing."""


defs = Definitions(assets=[nothing], executor=in_process_executor)


def seconds_to_first_byte(environment: Mapping[str, str], root: Path, job: str, day: str) -> float:
    """Serves the project as `make ui` does, launches a job in the webserver, and reads the run's log."""
    home = Path(environment["DAGSTER_HOME"])
    (home / "dagster.yaml").write_text((root / "dagster.yaml").read_text().replace(": .dagster", f": {home}"))
    port, workspace = free_port(), ["--workspace", str(root / "workspace.yaml")]
    serve = ["dagster-webserver", "--host", HOST, "--port", str(port), *workspace]
    with (
        tempfile.TemporaryDirectory() as logs,
        child(serve, environment, root, Path(logs) / "webserver.log") as webserver,
        child(["dagster-daemon", "run", *workspace], environment, root, Path(logs) / "daemon.log") as daemon,
    ):
        wait_until_it_answers(f"http://{HOST}:{port}/server_info", [webserver, daemon], Path(logs))
        time.sleep(5)  # the daemon's first round
        return _launched(f"http://{HOST}:{port}/graphql", job, day)


def _launched(url: str, job: str, day: str) -> float:
    selector = {"repositoryLocationName": "backup_dag", "repositoryName": "__repository__", "jobName": job}
    tags = [{"key": "dagster/partition", "value": day}]
    parameters = {"selector": selector, "runConfigData": {}, "executionMetadata": {"tags": tags}}
    began = time.time()
    run = _ask(url, _LAUNCH, {"p": parameters})["launchRun"]["run"]["runId"]
    while time.time() - began < 60:
        found = _ask(url, _EVENTS, {"run": run})["runOrError"]
        for event in found["eventConnection"]["events"]:
            if event.get("message", "").startswith(_FIRST):
                first = float(event["timestamp"]) / 1000 - began
                _wait_for_the_end(url, run)
                return first
        time.sleep(0.2)
    raise RuntimeError(f"the run {run} did not begin to dump within a minute")


def _wait_for_the_end(url: str, run: str) -> None:
    deadline = time.time() + 60
    while time.time() < deadline:
        if _ask(url, _EVENTS, {"run": run})["runOrError"]["status"] in ("SUCCESS", "FAILURE", "CANCELED"):
            return
        time.sleep(0.2)


def _ask(url: str, query: str, variables: Mapping[str, Any]) -> Any:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["data"]
