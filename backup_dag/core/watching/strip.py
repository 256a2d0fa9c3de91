"""Thirty days at a glance: a sign for each, the oldest first. Pure."""

from collections.abc import Iterable
from datetime import UTC, date, timedelta, tzinfo

from backup_dag.core.copies import Backup

DAYS = 30
NONE, PROVEN, UNPROVEN, FAILED, LATE = "·", "●", "○", "!", "l"
LEGEND = f"{NONE} none   {PROVEN} proven by a restore   {UNPROVEN} not yet   {FAILED} failed   {LATE} late"


def strip(backups: Iterable[Backup], last: date, days: int = DAYS, zone: tzinfo = UTC) -> str:
    """The days up to and with `last`, a sign each: the best that is known of any backup that counts for it.

    Proven goes before late, since a restore has shown what it holds; a failed one is a failure only where
    the day has no good one. One whose manifest nobody can read counts for the day in `zone` that it was made.
    """
    best: dict[date, str] = {}
    for backup in backups:
        manifest = backup.manifest_or_none
        if manifest is None:
            day = backup.id.local(zone).date()
            best[day] = min(best.get(day, NONE), FAILED, key=_ORDER.index)
        elif manifest.is_of_a_night:
            day = manifest.partition_day
            best[day] = min(best.get(day, NONE), _sign(backup, manifest.reason == "late"), key=_ORDER.index)
    return "".join(best.get(last - timedelta(days=n), NONE) for n in range(days - 1, -1, -1))


_ORDER = (PROVEN, UNPROVEN, LATE, FAILED, NONE)


def _sign(backup: Backup, late: bool) -> str:
    if not backup.good:
        return FAILED
    if backup.proven:
        return PROVEN
    return LATE if late else UNPROVEN
