"""One command, measured from outside: wall clock, processor time and memory of it and all its children."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

_SECONDS_BETWEEN_LOOKS = 0.25  # a look costs processor time too


@dataclass(frozen=True)
class Measured:
    """Seconds of wall clock and of processor (user and system, children included); peak memory in bytes
    (proportional set size, summed over the process and its children at one moment); the share of all of
    the machine's processor time, servers included, that was in use meanwhile."""

    wall: float
    cpu: float
    memory: int
    busy: float


def measure(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Measured:
    """Runs a command to its end. Raises RuntimeError, with what it said, where it fails."""
    with tempfile.TemporaryFile() as said:
        before, idle, began, peak = os.times(), _idle(), time.perf_counter(), 0
        child = subprocess.Popen(
            list(command), env=dict(environment), cwd=folder, stdout=subprocess.DEVNULL, stderr=said
        )
        while child.poll() is None:
            peak = max(peak, memory_of(child.pid))
            with suppress(subprocess.TimeoutExpired):
                child.wait(_SECONDS_BETWEEN_LOOKS)
        wall, idle, after = time.perf_counter() - began, _idle() - idle, os.times()
        if child.returncode != 0:
            said.seek(0)
            raise RuntimeError(f"{command} failed: {said.read().decode()}")
    cpu = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    return Measured(wall, cpu, peak, 1 - idle / (wall * (os.cpu_count() or 1)))


def _idle() -> float:
    times = psutil.cpu_times()
    return float(times.idle + getattr(times, "iowait", 0))


def memory_of(pid: int) -> int:
    """Proportional set size in bytes of a process and its descendants, now."""
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0
    for process in family:
        try:
            total += int(process.memory_full_info().pss)
        except (psutil.Error, AttributeError):
            continue
    return total


def middle(runs: Sequence[Measured]) -> Measured:
    """The median of each figure; of memory the largest."""
    return Measured(
        median(run.wall for run in runs),
        median(run.cpu for run in runs),
        max(run.memory for run in runs),
        median(run.busy for run in runs),
    )
