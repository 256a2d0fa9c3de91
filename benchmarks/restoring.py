"""Our restore beside psql and pg_restore alone, in the same run and on the same data."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.__main__ import Bench

PSQL, OURS_SQL = "psql -f of the plain dump (the usual)", "backup-dag restore, sql"
PG_RESTORE, OURS_CUSTOM = "pg_restore -j2 of the archive (the usual)", "backup-dag restore, custom, -j2"


@dataclass
class Restored:
    """Seconds of each run: all of it, and by our own steps where they are ours; the peak memory in bytes."""

    wall: list[float] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)
    memory: int = 0

    def step(self, *names: str) -> float:
        """The median of some steps together."""
        return median(sum(run.get(name, 0.0) for name in names) for run in self.steps)

    @property
    def seconds(self) -> float:
        return median(self.wall)

    @property
    def without_proof(self) -> float:
        return median(wall - run["prove"] for wall, run in zip(self.wall, self.steps, strict=True))


def restored(bench: Bench, runs: int) -> dict[str, Restored]:
    """Each in turn, `runs` times over, in an order that changes; into a new database each time."""
    sql, custom = sources(bench)
    server = bench.postgres.url("").rstrip("/")
    target = (
        f"--mode new --target-database restored --no-safety-backup --force --json > {bench.folder}/said.json"
    )
    commands = {
        PSQL: f"psql -X -q -o /dev/null -v ON_ERROR_STOP=1 -f {bench.folder}/plain.sql {server}/restored",
        OURS_SQL: f"backup-dag restore {sql} {target}",
        PG_RESTORE: f"pg_restore --exit-on-error -j2 -d {server}/restored {bench.folder}/plain.archive",
        OURS_CUSTOM: f"backup-dag restore {custom} {target}",
    }
    found = {name: Restored() for name in commands}
    for turn in range(runs):
        names = list(commands)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            _one(bench, found[name], commands[name], ours=name in (OURS_SQL, OURS_CUSTOM))
            print(f"{turn + 1}/{runs}  {name}: {found[name].wall[-1]:.1f} s", flush=True)
    return found


def _one(bench: Bench, into: Restored, command: str, *, ours: bool) -> None:
    server = bench.postgres.url("postgres")
    bench.run(f'psql -X -q {server} -c "DROP DATABASE IF EXISTS restored" -c CHECKPOINT', keep=True)
    if not ours:
        bench.run(f'psql -X -q {server} -c "CREATE DATABASE restored"', keep=True)
    measured = bench.run(command, keep=True)
    into.wall.append(measured.wall)
    into.memory = max(into.memory, measured.memory)
    if ours:
        into.steps.append(json.loads((bench.folder / "said.json").read_text())["seconds"])


def sources(bench: Bench) -> tuple[str, str]:
    """The same data four times: a plain dump and an archive as pg_dump makes them, and two backups of ours,
    verified, as they are after a night."""
    url = bench.postgres.url("big")
    bench.run(f"pg_dump {url} > {bench.folder}/plain.sql", keep=True)
    bench.run(f"pg_dump -Fc -Z0 {url} > {bench.folder}/plain.archive", keep=True)
    made = []
    for format in ("sql", "custom"):
        words = f"BACKUP_FORMAT={format} backup-dag backup --json > {bench.folder}/made.json"
        bench.run(f"{words}; backup-dag verify", keep=True)
        said: Any = json.loads((bench.folder / "made.json").read_text())
        made.append(said[0]["manifest"]["backup"])
    return made[0], made[1]


def table(found: dict[str, Restored]) -> str:
    """The rows, and the ratios that were aimed at."""
    usual = {PSQL: PSQL, OURS_SQL: PSQL, PG_RESTORE: PG_RESTORE, OURS_CUSTOM: PG_RESTORE}
    lines = []
    for name, run in found.items():
        base = found[usual[name]].seconds
        ours = bool(run.steps)
        without = (
            f"{run.without_proof:.2f} | {run.without_proof / base:.2f}"
            if ours
            else f"{run.seconds:.2f} | 1.00"
        )
        proof = f"{run.step('prove'):.2f}" if ours else ""
        whole = f"{run.seconds:.2f} | {run.seconds / base:.2f}"
        lines.append(f"| {name} | {without} | {proof} | {whole} | {run.memory / 1e6:.0f} |")
    steps = "\n".join(
        f"- {name}: " + ", ".join(f"{step} {run.step(step):.2f} s" for step in run.steps[0])
        for name, run in found.items()
        if run.steps
    )
    head = "| what | without proof, s | × the usual | proof, s | with proof, s | × the usual | memory, MB |"
    return "\n".join([head, "|---|---:|---:|---:|---:|---:|---:|", *lines]) + "\n\n" + steps
