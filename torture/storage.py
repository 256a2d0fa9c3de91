"""The bucket fails, stalls, cuts, slows, doubles or corrupts: at every call of every verb in turn."""

from collections.abc import Iterator

import botocore.retries.standard

from torture.case import Allowed, Case, Unreached
from torture.proxy import Fault, Proxy
from torture.world import Ended, World

CALLS = {
    "backup": "LHLPHHLPHHLPHHLPHGGGHLPH",
    "verify": "LLLGGGHGHGLGP",
    "cleanup": "LLLGGLGGLGLHHHHLLLPDDDDD",
    "restore": "LLLGGHGHGGGLGPPLGPD",
    "drill": "LLLLGGPHGHGGGLGPD",
}
"""The calls of each verb in their order: lists, heads, gets, puts, deletes. A fault that such a call cannot
have is no case; nor is one that was never met, should a verb make other calls one day."""

_ALL = ("500", "403", "reset before")
"""Refusals, of which calls that only read have one each, by the seed: it makes no difference to them."""

_WRITING = ("backup", "cleanup")
_OF = {
    "L": ("a listing cut short", "a listing from before", "cut in the answer"),
    "H": ("404",),
    "G": ("404", "cut in the answer", "a byte changed in the answer"),
    "P": (
        *("503", "500 once it is done", "reset once it is done", "cut in the request", "twice"),
        "a byte changed in the request",
    ),
    "D": ("500 once it is done", "reset once it is done", "twice"),
}
_NOW_AND_THEN = ("slow", "never answered")
"""At one call in six, since they take their time."""

_WORDS = {
    "backup": ("backup",),
    "verify": ("verify",),
    "cleanup": ("cleanup", "--force"),
    "restore": ("restore", "--force"),
    "drill": ("drill",),
}
_HARMLESS = ("slow", "twice")
_STALL = {"BACKUP_STALL_SECONDS": "3"}


def storage(seed: int) -> Iterator[Case]:
    """Every call of every verb with the faults that it can have; and at every third call the bucket fails
    from then on."""
    for verb, calls in CALLS.items():
        for at, call in enumerate(calls):
            refused = _ALL if verb in _WRITING else (_ALL[(at + seed) % len(_ALL)],)
            for what in (*refused, *_OF[call], *(_NOW_AND_THEN if (at + seed) % 6 == 0 else ())):
                yield spoiled(verb, Fault(what, at))
            if (at + seed) % 3 == 0:
                yield spoiled(verb, Fault(_ALL[at % len(_ALL)], at, lasting=True))


def spoiled(verb: str, fault: Fault) -> Case:
    how = "from then on" if fault.lasting else "once"
    name = f"storage/{verb}/{fault.what}/{how}/{fault.at}"

    def strike(world: World) -> tuple[Ended, Allowed]:
        if verb == "restore":  # from the bucket, as on the day when the machine is new
            world.forget_the_folder()
        with Proxy(world.s3.port, fault) as proxy:
            changed = {"AWS_ENDPOINT_URL_S3": proxy.endpoint, **_STALL}
            ended = world.run(*_WORDS[verb], hook=without_courtesy, changed=changed)
            if proxy.met == 0:
                raise Unreached(name)
        return ended, _allowed(verb, fault)

    return Case(f"storage: {fault.what}", name, strike)


def _allowed(verb: str, fault: Fault) -> Allowed:
    if fault.what in _HARMLESS:
        return frozenset({0})
    allowed = {0, 7}
    if fault.what in ("404", "a listing cut short", "a listing from before"):
        allowed |= {5, 6}  # what the bucket says is not there cannot be read; what it lacks is missed
    if fault.what == "a byte changed in the answer":
        allowed |= {5, 6}
    return frozenset(allowed)


def without_courtesy() -> None:
    """Tries again at once: the server is ours."""
    setattr(botocore.retries.standard.ExponentialBackoff, "delay_amount", lambda *_: 0.01)  # noqa: B010
