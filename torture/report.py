"""docs/RELIABILITY.md: what was tried, what came of it, and how to try it again. It has a part for the faults
and one for the nights, each written anew when that was run."""

import os
from datetime import UTC, datetime
from pathlib import Path

from torture.tally import Tally

PATH = Path(__file__).parents[1] / "docs" / "RELIABILITY.md"
_HEAD = """# What was tried, and what came of it

Written by `make torture` and `make soak`. What they found is in CHANGELOG.md, each with a test of its own."""


def table(tallies: list[Tally]) -> str:
    lines = ["| kind of fault | tried | every promise kept |", "|---|---:|---:|"]
    lines += [f"| {each.kind} | {each.tried:,} | {each.held:,} |" for each in tallies]
    tried, held = (sum(getattr(each, name) for each in tallies) for name in ("tried", "held"))
    return "\n".join([*lines, f"| all | {tried:,} | {held:,} |"])


def of_faults(tallies: list[Tally], seed: int, seconds: float) -> str:
    return f"""\
`make torture` makes faults of every kind against a real PostgreSQL and a real S3 server, and asks the same
after each. Is every backup in every store whole, and what it promises? Is the database what it was, or what
a restore that ended well promises? Does anything still live, hold a lock, or lie about, once the next night
has been? Is no row and no secret where it could be read: in what was said, in a log, in any file, in the
list of processes? Is the exit status right? `torture/oracle.py` has the questions.

What fails of the bucket is made to by a proxy before it; what fails of the folder, within our own process, at
its calls to the file system; a target without room is a small file system of its own.

{_when(seconds)}, by the seed {seed}:

{table(tallies)}

Again: `python -m torture --seed {seed}`. One kind: `--kind storage`. One case, by its name:
`--case kill/backup/gpg/SIGKILL/0`."""


def of_nights(nights: int, flat: str, tally: Tally, seed: int, seconds: float) -> str:
    return f"""\
`make soak` lives through {nights:,} nights, one after the other in one process, on real servers: backup,
copy, verification, clean-up and watch. One night in six something goes wrong: the night's process is
killed, its disk is full, the bucket or the database is away. Nothing may grow; and at the end every backup
that the policy keeps must be there, is read to its last line in every store, and is restored and proven.

{_when(seconds)}, by the seed {seed}.
{tally.tried:,} things were asked, and {tally.held:,} were as promised: how each night ended, each
measurement, and of each copy that is left whether it is whole, and of each backup whether a restore proves
it. Measured every ten nights; the median of the second and of the last quarter of the time (the stores grow
until the policy removes as much as comes, which is within the first):

{flat}

Again: `python -m torture.soak --seed {seed} --nights {nights}`."""


def _when(seconds: float) -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}, {seconds / 60:.0f} minutes on {os.cpu_count()} cores"


def write(title: str, text: str) -> None:
    """Puts a part in its place; the others stay as they are."""
    parts = dict.fromkeys(("Faults", "Nights"), "")
    if PATH.exists():
        _, *found = PATH.read_text(encoding="utf-8").split("\n## ")
        parts |= {heading: body.strip() for heading, _, body in (part.partition("\n") for part in found)}
    parts[title] = text
    whole = [_HEAD, *(f"## {heading}\n\n{body}" for heading, body in parts.items() if body)]
    PATH.write_text("\n\n".join(whole) + "\n", encoding="utf-8")
