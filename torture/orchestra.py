"""Deaths of runs that Dagster launched: of the worker, of programs below it, of the code server above it.
Then Dagster's own record is asked, besides the stores and the database."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psutil
from dagster import DagsterRunStatus

from torture.case import Allowed, Case, NotKept, Unreached, drawn
from torture.launched import Launched, Orchestra
from torture.record import belied, newest, told
from torture.world import DATABASE, Ended, World

JOBS = {
    "backup": f"{DATABASE}_backup",
    "verify": f"{DATABASE}_verify",
    "cleanup": "cleanup",
    "restore": "restore",
    "drill": f"{DATABASE}_drill",
}
_PROGRAMS = {
    "backup": ("pg_dump", "gpg"),
    "verify": ("gpg",),
    "restore": ("psql", "pg_dump"),
    "drill": ("postgres", "psql"),
}
_MOMENTS = {signal.SIGKILL: 4, signal.SIGTERM: 2}
_LESS = 0.8
"""Of the time that was measured: the first run takes the longest, and a death should come before the end."""
_ANY: Allowed = frozenset({0, 1})
"""Of a run: that it succeeded, or did not. Which is right the record's own questions say."""

Death = Callable[[Launched, float], None]
"""What befalls a run, and after how many seconds."""

_typical: dict[str, float] = {}


def orchestra(seed: int) -> Iterator[Case]:
    """Each job: its worker killed and told to end at several moments, and killed before it begins; the run
    ended by hand, and its host, and its code server alone; and each program below it once."""
    for verb in JOBS:
        for number, moments in _MOMENTS.items():
            for at in range(moments):
                when = (at + drawn(seed, f"dagster/{verb}/{number.name}/{at}").random()) / moments
                yield _case(verb, f"the worker/{number.name}/{at}", "the worker", _signalled(number), when)
        for what, death in _ONCE.items():
            yield _case(verb, what, what, death, drawn(seed, f"dagster/{verb}/{what}").random())
        early = drawn(seed, f"dagster/{verb}/before").random()
        yield _case(verb, "before it begins", "before it begins", _before_it_begins, early, timed=False)
    for verb, programs in _PROGRAMS.items():
        for program in programs:
            when = drawn(seed, f"dagster/{verb}/{program}").random()
            yield _case(verb, program, "a program of ours", _a_program(program), when, timed=False)


def _case(verb: str, name: str, kind: str, death: Death, when: float, *, timed: bool = True) -> Case:
    """`when` is a number from 0 to 1: a part of the time that the run takes undisturbed; else of a second."""

    def strike(world: World) -> tuple[Ended, Allowed]:
        after = when * (_takes(world, verb) * _LESS if timed else 1.0)
        began = time.monotonic()
        with Orchestra(world) as orchestra:
            launched = _launched(world, orchestra, verb)
            death(launched, after)
            run = launched.ended()
            orchestra.end()
            wrong = [*belied(world, orchestra.instance, run), *told(world, orchestra.home)]
        if wrong:
            raise NotKept("; ".join(wrong))
        status = 0 if run.status == DagsterRunStatus.SUCCESS else 1
        seen = frozenset(launched.seen)
        return Ended((verb, "by Dagster"), status, "", time.monotonic() - began, seen), _ANY

    return Case(f"Dagster: {kind}", f"dagster/{verb}/{name}", strike)


def _takes(world: World, verb: str) -> float:
    """The seconds of a job's run that nobody disturbs, measured once; and its record must be right."""
    if verb not in _typical:
        with Orchestra(world) as orchestra:
            launched = _launched(world, orchestra, verb)
            seconds = launched.takes()
            run = launched.ended()
            if wrong := [*belied(world, orchestra.instance, run), *told(world, orchestra.home)]:
                raise NotKept("; ".join(["of a run that nobody disturbed", *wrong]))
        _typical[verb] = seconds
        world.reset()
    return _typical[verb]


def _launched(world: World, orchestra: Orchestra, verb: str) -> Launched:
    day = newest(world)["partition_day"] if verb in ("backup", "drill") else None
    return orchestra.launch(JOBS[verb], _config(world, verb), day)


def _config(world: World, verb: str) -> dict[str, Any]:
    """As a person fills it in who means it: the defaults of a clean-up and a restore change nothing."""
    if verb == "cleanup":
        return {"ops": {"clean": {"config": {"dry_run": False, "force": True}}}}
    if verb == "restore":
        planned = world.run("restore", "--dry-run", "--json")
        code = json.loads(planned.said[planned.said.index("{") :])["confirmation_code"]
        return {"ops": {"fetch": {"config": {"dry_run": False, "confirmation_code": code}}}}
    return {}


def _signalled(number: signal.Signals) -> Death:
    def death(launched: Launched, after: float) -> None:
        launched.runs()
        time.sleep(after)
        launched.strike(number)

    return death


def _before_it_begins(launched: Launched, after: float) -> None:
    """While it still loads what it is to run."""
    time.sleep(after)
    launched.strike(signal.SIGKILL)


def _by_hand(launched: Launched, after: float) -> None:
    """As somebody does in Dagster's web page."""
    launched.runs()
    time.sleep(after)
    instance = launched.orchestra.instance
    instance.run_launcher.terminate(launched.run_id)


def _the_host(launched: Launched, after: float) -> None:
    launched.runs()
    time.sleep(after)
    launched.host_goes_down()


def _the_code_server(launched: Launched, after: float) -> None:
    """Its worker goes on, and ends by itself."""
    launched.runs()
    time.sleep(after)
    launched.orchestra.server.kill()


def _a_program(program: str) -> Death:
    def death(launched: Launched, after: float) -> None:
        launched.runs()
        while launched.worker.is_running() and not launched.recorded().is_finished:
            for child in launched.programs():
                with suppress(psutil.Error):
                    if child.name() == program:
                        time.sleep(after**2 * 0.2)
                        child.kill()
                        return
            time.sleep(0.005)
        raise Unreached(f"no {program} was seen")

    return death


_ONCE: dict[str, Death] = {
    "ended by hand": _by_hand,
    "the host": _the_host,
    "the code server": _the_code_server,
}
