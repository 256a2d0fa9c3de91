"""A server process that listens on loopback and dies with whoever started it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

HOST = "127.0.0.1"
START_SECONDS = 60
STOP_SECONDS = 30
# Below the usual ephemeral range: no outgoing connection takes the port of a stopped server.
PORTS = range(20_000, 32_000)

_ports_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Choose free loopback ports; none is given twice in the life of this process."""
    chosen: list[int] = []
    with ExitStack() as held:
        while len(chosen) < count:
            port = random.choice(PORTS)
            probe = held.enter_context(socket.socket())
            with suppress(OSError):
                if port not in _ports_given:
                    probe.bind((HOST, port))
                    _ports_given.add(port)
                    chosen.append(port)
    return chosen


def free_port() -> int:
    """Choose one free loopback port, as `free_ports` does."""
    return free_ports(1)[0]


def setpriv(*options: str) -> list[str]:
    """Prefix a command with setpriv; empty where there is no setpriv."""
    program = shutil.which("setpriv")
    return [program, *options, "--"] if program else []


class Server(ABC):
    """One server process. As a context manager it runs for the length of the block."""

    stop_signal = signal.SIGTERM

    def __init__(self, data_dir: Path, port: int, name: str) -> None:
        self.data_dir = data_dir.resolve()
        self.port = port
        self.log = self.data_dir.parent / f"{name}-{port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _prepare(self) -> None:
        """Make the data directory ready; called before every start."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Give the command line that runs the server in the foreground."""

    @abstractmethod
    def _probe(self) -> None:
        """Use the server as a client would; raise while it is not ready."""

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start and wait until clients are served; RuntimeError with the log's tail if not.

        Call it from a thread that lives as long as the server should: its end is the server's.
        """
        if self.running:
            return
        self._prepare()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.data_dir,
                env=self._environment(),
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        failure: Exception | None = None
        while self.running and time.monotonic() < deadline:
            try:
                return self._probe()
            except Exception as error:
                failure = error
                time.sleep(0.02)
        tail = self.log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"server did not start, see {self.log}:\n{tail}") from failure

    def stop(self) -> None:
        """Shut down in order and wait; a server that takes too long is killed."""
        if self._process is not None and self.running:
            self._process.send_signal(self.stop_signal)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash would, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Stop if running and start again, on the same port and data."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
