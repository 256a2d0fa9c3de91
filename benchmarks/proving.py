"""Our verification beside the usual pipeline that reads a backup to its end, and our drills' own steps."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.__main__ import Bench

PIPELINE = "gpg -d \\| gunzip \\| sha256sum (the usual)"
VERIFY = "backup-dag verify (decrypts, decompresses, compares every digest)"


@dataclass
class Proven:
    """Seconds of wall clock of each run; bytes of dump; the steps of each drill, by format."""

    dump: int
    wall: dict[str, list[float]]
    memory: int = 0
    drills: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def seconds(self, name: str) -> float:
        return median(self.wall[name])

    def step(self, format: str, *steps: str) -> float:
        """The median of some steps together."""
        return median(sum(run[step] for step in steps) for run in self.drills[format])


def proven(bench: Bench, runs: int) -> Proven:
    """Each in turn, `runs` times over."""
    from benchmarks.restoring import sources

    made = dict(zip(("sql", "custom"), sources(bench), strict=True))
    said: Any = json.loads((bench.folder / "backups" / f"{made['sql']}.json").read_text())
    gpg = "gpg --batch --quiet --pinentry-mode loopback --passphrase-file key --decrypt"
    commands = {
        PIPELINE: f"{gpg} backups/{said['artifact']['name']} | gunzip | sha256sum > /dev/null",
        VERIFY: f"backup-dag verify {made['sql']} --json > said.json",
    }
    found = Proven(said["dump"]["bytes"], {name: [] for name in commands}, drills={name: [] for name in made})
    for turn in range(runs):
        for name, command in commands.items():
            found.wall[name].append(bench.run(command, keep=True).wall)
            print(f"{turn + 1}/{runs}  {name}: {found.wall[name][-1]:.1f} s", flush=True)
        for format, backup in made.items():
            measured = bench.run(f"backup-dag drill {backup} --json > said.json", keep=True)
            found.memory = max(found.memory, measured.memory)
            [outcome] = json.loads((bench.folder / "said.json").read_text())
            found.drills[format].append(outcome["seconds"])
            print(f"{turn + 1}/{runs}  drill, {format}: {outcome['seconds']}", flush=True)
    return found


def table(found: Proven) -> str:
    usual = found.seconds(PIPELINE)
    lines = [
        f"| {name} | {found.seconds(name):.2f} | {found.seconds(name) / usual:.2f}"
        f" | {found.dump / 1e6 / found.seconds(name):.0f} |"
        for name in found.wall
    ]
    drills = "\n".join(
        f"- Drill, {format}: "
        + ", ".join(f"{step} {found.step(format, step):.2f} s" for step in runs[0])
        + f". Proof: {found.step(format, 'prove') / found.step(format, 'load', 'index'):.2f} × the load"
        " (rows and indexes)."
        for format, runs in found.drills.items()
    )
    head = "| what | wall, s | × the usual | MB of dump a second |\n|---|---:|---:|---:|"
    memory = f"- Memory of a drill, its own server's included: {found.memory / 1e6:.0f} MB."
    return "\n".join([head, *lines]) + f"\n\n{drills}\n{memory}\n"
