"""Is a backup as large as the ones before it? One that shrank to nothing may be whole, and worth nothing."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from statistics import median

from pydantic import TypeAdapter

from backup_dag.core.catalog import Catalog
from backup_dag.core.manifest import Count, Manifest
from backup_dag.core.private import refuse_links
from backup_dag.core.settings import Settings

NIGHTS = 7
"""With how many backups before it one is compared: with their median, so that one odd night is none."""

_FEW_ROWS = 100  # below that, a change of rows says nothing
_FILE = ".usual.json"


@dataclass(frozen=True)
class Change:
    """How a number stands against the nights before, or whoever `whose` names: None where there were none."""

    what: str
    now: int
    before: int | None
    shrink_percent: int
    growth_percent: int
    whose: str = "the nights before"

    @property
    def percent(self) -> float:
        """Change in percent: -100 is gone, 0 the same. Infinite where something came of nothing."""
        if self.before is None or self.before == self.now:
            return 0.0
        return 100.0 * (self.now - self.before) / self.before if self.before else float("inf")

    @property
    def as_usual(self) -> bool:
        if self.what == "rows" and max(self.now, self.before or 0) < _FEW_ROWS:
            return True
        return -self.shrink_percent <= self.percent <= self.growth_percent

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.now:,} {self.what}, the first"
        against = f"{self.percent:+,.0f} % against the {self.before:,} of {self.whose}"
        return f"{self.now:,} {self.what}, {against}"


def changes(settings: Settings, manifest: Manifest, before: Sequence[Manifest]) -> list[Change]:
    """Bytes of dump and rows against the nights before (any number of them; the newest seven count).

    Rows may grow without end from few; bytes are what fills a disk, so both have the same limits.
    """
    earlier = sorted(before, key=lambda each: each.snapshot_time)[-NIGHTS:]

    def change(what: str, now: int) -> Change:
        middle = int(median(_sizes(each)[what] for each in earlier)) if earlier else None
        return Change(what, now, middle, settings.backup_shrink_percent, settings.backup_growth_percent)

    return [change(what, now) for what, now in _sizes(manifest).items()]


def judged(
    settings: Settings, manifest: Manifest, before: Sequence[Manifest], *, note: bool = True
) -> list[Change]:
    """As `changes`; but what has shrunk stays so, until it is as before or somebody accepts it (`accept`).

    The nights before soon are as empty as the newest, and would make that usual: so what was usual before it
    shrank is kept in BACKUP_DIR, where that can be written and unless not to `note` it. What was accepted
    holds until it has grown back: to be emptied a second time is news.
    """
    known = _read(settings)
    usual, accepted = (known.get(each, {}).get(manifest.database, {}) for each in ("usual", "accepted"))
    found, kept, held = [], dict(usual), dict(accepted)
    for change in changes(settings, manifest, before):
        if change.as_usual and not replace(change, before=accepted.get(change.what)).as_usual:
            held.pop(change.what)
        if change.what in usual:
            change = replace(change, before=usual[change.what])
        elif change.what in accepted and not change.as_usual:
            change = replace(change, before=accepted[change.what])
        kept.pop(change.what, None)
        if not change.as_usual and change.percent < 0 and change.before is not None:
            kept[change.what] = change.before
        found.append(change)
    if note and kept != usual:
        known = _keep(settings, known, "usual", manifest.database, kept)
    if note and held != accepted:
        _keep(settings, known, "accepted", manifest.database, held)
    return found


def losses(settings: Settings, manifest: Manifest, others: Sequence[Manifest], whose: str) -> list[Change]:
    """What a backup holds much less of than `others` do, unless that was accepted. It may hold more.

    Against the second largest of them, so that one odd night is none; the only one counts. It needs no note:
    however many small ones come to them, and whether or not anyone looked meanwhile, two large ones are seen.
    """
    accepted = _read(settings).get("accepted", {}).get(manifest.database, {})

    def change(what: str, now: int) -> Change:
        largest = sorted(_sizes(each)[what] for each in others)[-2:]
        before = min([*largest[:1], *([accepted[what]] if what in accepted else [])], default=None)
        percent = settings.backup_shrink_percent
        return Change(what, now, before, percent, settings.backup_growth_percent, whose)

    both = [change(what, now) for what, now in _sizes(manifest).items()]
    return [each for each in both if others and each.percent < 0 and not each.as_usual]


def accept(settings: Settings, manifest: Manifest) -> None:
    """From now on its size is the usual one: somebody has looked, and said so."""
    known = _read(settings)
    known = _keep(settings, known, "accepted", manifest.database, _sizes(manifest))
    _keep(settings, known, "usual", manifest.database, {})


def _sizes(manifest: Manifest) -> dict[str, int]:
    """What of a backup is compared, by how it is called."""
    return {"bytes of dump": manifest.dump.bytes, "rows": manifest.content.rows}


_Known = dict[str, dict[str, dict[str, Count]]]
_KNOWN = TypeAdapter(_Known)


def _read(settings: Settings) -> _Known:
    with suppress(OSError, ValueError):  # pydantic's is one too
        refuse_links(settings.backup_dir / _FILE)
        return _KNOWN.validate_json((settings.backup_dir / _FILE).read_bytes())
    return {}


def _keep(settings: Settings, known: _Known, what: str, database: str, sizes: dict[str, int]) -> _Known:
    """Where it cannot be written, sizes are compared with the last nights alone."""
    known = {**known, what: {**known.get(what, {}), database: sizes}}
    path = settings.backup_dir / _FILE
    new = Path(f"{path}.{os.getpid()}")
    with suppress(OSError):
        new.touch(mode=0o600)
        new.write_text(json.dumps(known), encoding="utf-8")
        new.replace(path)
    return known


def gap(manifest: Manifest, before: Sequence[Manifest]) -> timedelta | None:
    """The time from the backup before to this one's snapshot. None where it is the first."""
    earlier = [each.snapshot_time for each in before if each.snapshot_time < manifest.snapshot_time]
    return manifest.snapshot_time - max(earlier) if earlier else None


def nights_before(catalog: Catalog, manifest: Manifest, most: int = NIGHTS) -> list[Manifest]:
    """The manifests of the good nights before a backup, the newest first. Reads few more than that."""
    ids = (id for id in catalog.survey(manifest.database).ids if id < manifest.id)
    good = (backup.manifest for backup in map(catalog.load, ids) if backup.good)
    return list(islice((each for each in good if each.is_of_a_night), most))
