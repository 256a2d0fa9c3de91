"""Our rekey beside gpg alone, which reads nothing back of what it wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import cycle
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.__main__ import Bench

USUAL = "gpg -d \\| gpg -c (the usual)"
REKEY = "backup-dag rekey (and reads back what it wrote)"
_GPG = "gpg --batch --quiet --yes --pinentry-mode loopback --passphrase-file {}"


@dataclass
class Rekeyed:
    """Bytes of the encrypted artifact and of the dump in it; seconds of wall clock of each run."""

    artifact: int
    dump: int
    wall: dict[str, list[float]]

    def table(self) -> str:
        usual = median(self.wall[USUAL])
        took = {name: median(wall) for name, wall in self.wall.items()}
        lines = [
            f"| {name} | {seconds:.2f} | {seconds / usual:.2f} | {self.artifact / 1e6 / seconds:.0f} |"
            for name, seconds in took.items()
        ]
        head = "| what | wall, s | × the usual | MB of artifact a second |\n|---|---:|---:|---:|"
        return "\n".join([head, *lines])


def rekeyed(bench: Bench, runs: int) -> Rekeyed:
    """Each in turn, `runs` times over; from one passphrase to another, and back the next time."""
    bench.run("backup-dag backup", keep=True)
    (bench.folder / "other").write_text("another passphrase for measurements only")
    found = Rekeyed(0, 0, {USUAL: [], REKEY: []})
    keys = cycle([("key", "other"), ("other", "key")])
    for turn in range(runs):
        old, new = next(keys)
        [manifest] = [
            each for each in (bench.folder / "backups").glob("backup_*.json") if each.name.count(".") == 1
        ]
        said: Any = json.loads(manifest.read_text())
        found.artifact, found.dump = said["artifact"]["bytes"], said["dump"]["bytes"]
        usual = f"{_GPG.format(old)} --decrypt backups/{said['artifact']['name']}"
        usual += f" | {_GPG.format(new)} --symmetric --cipher-algo AES256 --compress-algo none > dump.gpg"
        ours = f"BACKUP_ENCRYPTION_KEY_FILE={new} BACKUP_ENCRYPTION_OLD_KEYS_FILE={old} backup-dag rekey"
        for name, command in ((USUAL, usual), (REKEY, ours)):
            found.wall[name].append(bench.run(command, keep=True).wall)
            print(f"{turn + 1}/{runs}  {name}: {found.wall[name][-1]:.1f} s", flush=True)
    return found
