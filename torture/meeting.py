"""Runs that meet: two in one second, on one host or two; and clocks that jump, between runs and in them."""

from collections.abc import Iterator
from datetime import timedelta

from torture.case import Allowed, Case, drawn
from torture.clock import Jumping
from torture.world import Ended, World

_PAIRS = {
    "two backups on one host": (("backup",), ("backup",), False),
    "two backups on two hosts": (("backup",), ("backup",), True),
    "a backup and a clean-up": (("backup",), ("cleanup", "--force"), False),
    "a verification and a clean-up": (("verify",), ("cleanup", "--force"), False),
    "a backup and a restore": (("restore", "--force"), ("backup",), False),
    "two restores": (("restore", "--force"), ("restore", "--force"), False),
    "a drill and a clean-up": (("drill",), ("cleanup", "--force"), False),
}
_JUMPS = {
    "an hour back": timedelta(hours=-1),
    "a day back": timedelta(days=-1),
    "five years back": timedelta(days=-1826),
    "an hour on": timedelta(hours=1),
    "a day on": timedelta(days=1),
    "ten years on": timedelta(days=3652),
}


def meeting(seed: int, *, times: int = 4) -> Iterator[Case]:
    """Each pair so many times, with another moment between them; each jump in each verb."""
    for pair in _PAIRS:
        for at in range(times):
            yield _pair(seed, pair, at)
    for jump in _JUMPS:
        for verb in ("backup", "verify", "cleanup", "restore"):
            for when in ("before", "in the middle"):
                yield _jump(verb, jump, when)


def _pair(seed: int, pair: str, at: int) -> Case:
    name = f"meeting/{pair}/{at}"
    first, second, apart = _PAIRS[pair]

    def strike(world: World) -> tuple[Ended, Allowed]:
        other = {"BACKUP_DIR": str(world.home / "other host")} if apart else {}
        running = world.start(*first)
        if at:
            running.process.join(drawn(seed, name).random())
        also = world.run(*second, changed=other)
        ended = running.ended()
        if also.status not in (0, 4, 8):  # 4: the database is just being replaced
            return also, frozenset({0, 4, 8})
        return ended, frozenset({0, 4, 8})

    return Case("runs that meet", name, strike)


def _jump(verb: str, jump: str, when: str) -> Case:
    name = f"clock/{verb}/{jump}/{when}"
    words = {"cleanup": ("cleanup", "--force"), "restore": ("restore", "--force")}.get(verb, (verb,))

    def strike(world: World) -> tuple[Ended, Allowed]:
        ended = world.run(*words, hook=Jumping(_JUMPS[jump], 0 if when == "before" else 12))
        # a bucket refuses a client whose clock is wrong; a clean-up refuses one that it cannot believe; to a
        # clock of years ago, which says so of each, all backups are in the future, and there is none
        return ended, frozenset({0, 5, 6, 7, 8})

    return Case("clocks that jump", name, strike)
