"""A case: one fault, at one moment, of one verb; and how a case is run, alone or with others."""

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torture.oracle import unkept
from torture.tally import Tally
from torture.world import Ended, World

Allowed = frozenset[int]


class NotKept(Exception):
    """What a case promises besides, and was not kept, in words."""


class Unreached(Exception):
    """The verb ended before the moment of the fault came: that is no case."""


@dataclass(frozen=True)
class Case:
    """`name` says all of it, and is what it is run alone by. `strike` runs the verb under its fault, and says
    how it ended and which exit statuses are right."""

    kind: str
    name: str
    strike: Callable[[World], tuple[Ended, Allowed]]


def run(
    world: World, cases: Iterable[Case], tell: Callable[[str], None], *, times: int = 1
) -> dict[str, Tally]:
    """Every case in its turn, the world made anew before each; what came of them, by kind. One whose moment
    passed unmet is tried again, so many `times` in all, and then it is not counted."""
    tallies: dict[str, Tally] = {}
    for case in cases:
        for _ in range(times):
            if (tally := _run(world, case, tell)) is not None:
                tallies[case.kind] = tallies.get(case.kind, Tally(case.kind, 0, 0)) + tally
                break
    return tallies


def _run(world: World, case: Case, tell: Callable[[str], None]) -> Tally | None:
    """None where its moment was not met."""
    began = time.monotonic()
    world.reset()
    try:
        ended, allowed = case.strike(world)
        found = tuple(unkept(world, ended, allowed))
    except Unreached:
        tell(f"--   {case.name}")
        return None
    except NotKept as broken:
        found = (str(broken),)
    except Exception as error:  # of the harness, or of a server that is gone: it is no promise kept
        found = (f"it could not be carried out: {type(error).__name__}: {error}",)
    said = tuple(f"{case.name}: {each}" for each in found)
    took = time.monotonic() - began
    tell(f"{'ok  ' if not said else 'LOST'} {case.name} ({took:.1f} s)")
    for each in said:
        tell(f"     {each}")
    return Tally(case.kind, 1, 0 if said else 1, said)


def drawn(seed: int, name: str) -> random.Random:
    """Chance that depends on the seed and on the case alone, so that each can be run again by itself."""
    return random.Random(f"{seed} {name}")
