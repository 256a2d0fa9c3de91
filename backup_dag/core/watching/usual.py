"""Is a backup as large as the ones before it? One that shrank to nothing may be whole, and worth nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from statistics import median

from backup_dag.core.catalog import Catalog
from backup_dag.core.manifest import Manifest
from backup_dag.core.settings import Settings

NIGHTS = 7
"""With how many backups before it one is compared: with their median, so that one odd night is none."""


@dataclass(frozen=True)
class Change:
    """How a number stands against the nights before: the median of those, None where there were none."""

    what: str
    now: int
    before: int | None
    shrink_percent: int
    growth_percent: int

    @property
    def percent(self) -> float:
        """Change in percent: -100 is gone, 0 the same. Infinite where something came of nothing."""
        if self.before is None or self.before == self.now:
            return 0.0
        return 100.0 * (self.now - self.before) / self.before if self.before else float("inf")

    @property
    def as_usual(self) -> bool:
        return -self.shrink_percent <= self.percent <= self.growth_percent

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.now:,} {self.what}, the first"
        against = f"{self.percent:+,.0f} % against the {self.before:,} of the nights before"
        return f"{self.now:,} {self.what}, {against}"


def changes(settings: Settings, manifest: Manifest, before: Sequence[Manifest]) -> list[Change]:
    """Bytes of dump and rows against the nights before (any number of them; the newest seven count).

    Rows may grow without end from few; bytes are what fills a disk, so both have the same limits.
    """
    earlier = sorted(before, key=lambda each: each.snapshot_time)[-NIGHTS:]

    def change(what: str, now: int, them: list[int]) -> Change:
        middle = int(median(them)) if them else None
        return Change(what, now, middle, settings.backup_shrink_percent, settings.backup_growth_percent)

    return [
        change("bytes of dump", manifest.dump.bytes, [each.dump.bytes for each in earlier]),
        change("rows", manifest.content.rows, [each.content.rows for each in earlier]),
    ]


def gap(manifest: Manifest, before: Sequence[Manifest]) -> timedelta | None:
    """The time from the backup before to this one's snapshot. None where it is the first."""
    earlier = [each.snapshot_time for each in before if each.snapshot_time < manifest.snapshot_time]
    return manifest.snapshot_time - max(earlier) if earlier else None


def nights_before(catalog: Catalog, manifest: Manifest, most: int = NIGHTS) -> list[Manifest]:
    """The manifests of the good nights before a backup, the newest first. Reads few more than that."""
    ids = (id for id in catalog.survey(manifest.database).ids if id < manifest.id)
    good = (backup.manifest for backup in map(catalog.load, ids) if backup.good)
    return list(islice((each for each in good if each.is_of_a_night), most))
