"""Deaths: of our process, of each program it started, of the servers; at moments spread over each verb."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil

from torture.case import Allowed, Case, drawn
from torture.world import Ended, Running, World

_VERBS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "backup": (("backup",), {}),
    "archive": (("backup",), {"BACKUP_FORMAT": "custom"}),
    "verify": (("verify",), {}),
    "cleanup": (("cleanup", "--force"), {}),
    "restore": (("restore", "--force"), {}),
    "restore in place": (("restore", "--force", "--mode", "in-place"), {}),
    "drill": (("drill",), {}),
}
_PROGRAMS = {
    "backup": ("pg_dump", "gpg"),
    "archive": ("pg_dump", "pg_restore"),
    "verify": ("gpg",),
    "restore": ("psql", "gpg", "pg_dump"),
    "restore in place": ("psql", "gpg"),
    "drill": ("psql", "gpg", "postgres", "keeper.py", "initdb"),
}
_SIGNALS = (signal.SIGKILL, signal.SIGTERM)
_BROKEN: Allowed = frozenset({0, 1, 4})
"""After a program of ours was killed: it had done its work already, or that is said; nothing is condemned."""

_typical: dict[str, float] = {}


def kills(seed: int, *, moments: int = 10, deaths: int = 2) -> Iterator[Case]:
    """`moments` of each verb for each signal to ourselves; `deaths` of each program and server."""
    for verb in _VERBS:
        for number in _SIGNALS:
            for at in range(moments):
                yield ours(seed, verb, number, at, moments)
    for verb, programs in _PROGRAMS.items():
        for program in programs:
            for number in _SIGNALS:
                for at in range(deaths):
                    yield a_program(seed, verb, program, number, at)
    for verb in ("backup", "restore", "restore in place", "drill"):
        for at in range(deaths):
            yield _a_server(seed, verb, "the database's server", at)
    for verb in ("backup", "verify", "cleanup", "drill"):
        for at in range(deaths):
            yield _a_server(seed, verb, "the bucket's server", at)


def _start(world: World, verb: str) -> Running:
    words, changed = _VERBS[verb]
    return world.start(*words, changed=changed, slow_gpg=True)


def _takes(world: World, verb: str) -> float:
    """The seconds that a verb takes when nobody disturbs it, measured once."""
    if verb not in _typical:
        ended = _start(world, verb).ended()
        if ended.status != 0:
            raise RuntimeError(f"{verb} by itself exits {ended.status}: {ended.said}")
        _typical[verb] = ended.seconds
        world.reset()
    return _typical[verb]


def ours(seed: int, verb: str, number: signal.Signals, at: int, of: int) -> Case:
    name = f"kill/{verb}/ourselves/{number.name}/{at}"

    def strike(world: World) -> tuple[Ended, Allowed]:
        when = _takes(world, verb) * (at + drawn(seed, name).random()) / of
        running = _start(world, verb)
        time.sleep(when)
        with suppress(ProcessLookupError):
            os.kill(running.pid, number)
        return running.ended(), frozenset({0, -number, *((130,) if number == signal.SIGTERM else ())})

    return Case("kill: our own process", name, strike)


def a_program(seed: int, verb: str, program: str, number: signal.Signals, at: int) -> Case:
    name = f"kill/{verb}/{program}/{number.name}/{at}"

    def strike(world: World) -> tuple[Ended, Allowed]:
        running = _start(world, verb)
        later = drawn(seed, name).random() ** 2 * 0.2
        victim = _seen(running, program)
        if victim is not None:
            time.sleep(later)
            with suppress(psutil.Error):
                victim.send_signal(number)
        return running.ended(), _BROKEN

    return Case("kill: a program of ours", name, strike)


def _seen(running: Running, program: str) -> psutil.Process | None:
    """Waits until such a child is there. None: the verb has ended without one."""
    while running.process.is_alive():
        for child in running.children():
            with suppress(psutil.Error):
                named = child.name() == program or any(word.endswith(program) for word in child.cmdline()[:4])
                if named and child.name() not in ("setpriv", "bwrap", "sh"):
                    return child
        time.sleep(0.002)
    return None


def _a_server(seed: int, verb: str, which: str, at: int) -> Case:
    name = f"kill/{verb}/{which}/{at}"

    def strike(world: World) -> tuple[Ended, Allowed]:
        database = which == "the database's server"
        server = world.postgres if database else world.s3
        when = _takes(world, verb) * drawn(seed, name).random()
        running = _start(world, verb)
        time.sleep(when)
        server.kill()
        ended = running.ended()
        server.start()
        if database:
            _recovered(world)
        return ended, frozenset({0, 1, 4} if database else {0, 7})

    return Case(f"kill: {which}", name, strike)


def _recovered(world: World) -> None:
    deadline = time.monotonic() + 20
    while world.content_or_none() is None and time.monotonic() < deadline:
        time.sleep(0.1)
