"""All kinds of cases, shared out among worlds that run side by side, and what came of them in a table."""

import random
from collections.abc import Callable, Iterator

from torture.case import Case, run
from torture.damage import damage
from torture.database import database
from torture.disk import disk
from torture.inputs import inputs
from torture.kills import kills
from torture.meeting import meeting
from torture.storage import storage
from torture.tally import Tally
from torture.world import world

WORLDS = 2
QUICK = 6
"""How many of each kind are a quick look."""


def _orchestra(seed: int) -> Iterator[Case]:
    from torture.orchestra import orchestra  # every verb's process loads this module, and Dagster is large

    return orchestra(seed)


KINDS: dict[str, Callable[[int], Iterator[Case]]] = {
    "kill": kills,
    "storage": storage,
    "disk": disk,
    "database": database,
    "meeting": meeting,
    "dagster": _orchestra,
}


def cases(seed: int, chosen: list[str], one: str, *, quick: bool) -> list[Case]:
    """Those of the chosen kinds whose name holds this text."""
    found = []
    for kind in chosen:
        of_it = [case for case in KINDS[kind](seed) if one in case.name]
        random.Random(seed).shuffle(of_it)
        found += of_it[:QUICK] if quick else of_it
    random.Random(seed).shuffle(found)  # so that each world has some of all
    return found


WHOLE: dict[str, Callable[[int], Tally]] = {"damage": damage, "inputs": inputs}
"""Kinds that are no cases of a world's: each by itself, in a process of its own."""


def tortured(number: int, seed: int, chosen: list[str], one: str, quick: bool) -> dict[str, Tally]:
    """A world's share of all cases."""
    mine = cases(seed, chosen, one, quick=quick)[number::WORLDS]
    if not mine:
        return {}

    def tell(line: str) -> None:
        print(f"{number} {line}", flush=True)

    with world() as made:
        return run(made, mine, tell)
