"""What is wrong with the backups that there are, at this hour: read off listings, manifests and records.

Cheap, so that it can be asked every few minutes: a listing, and the documents of a few backups.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import islice

from backup_dag.core import nights
from backup_dag.core.alerts import Kind
from backup_dag.core.catalog import Backup, Catalog
from backup_dag.core.in_words import length
from backup_dag.core.settings import Settings
from backup_dag.core.usual import NIGHTS, changes

_OFF_SITE_WITHIN = timedelta(hours=2)
_VERIFIED_WITHIN = timedelta(hours=6)
_STORE_AWAY_FOR = timedelta(hours=1)
_MOST = 200  # backups that are looked at for the days that have one; a week of hourly ones


@dataclass(frozen=True)
class Concern:
    """One thing that is wrong. Two of the same `key` are the same one, seen twice.

    `patience` is how long it must have been so before anyone is told of it.
    """

    kind: Kind
    database: str
    about: str
    happened: str
    since: datetime
    advice: str
    patience: timedelta = timedelta()

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.database}/{self.about}"

    @property
    def may_end(self) -> bool:
        """Whether it can become well again. A night that is lost stays lost."""
        return self.kind != "missed"


def concerns(settings: Settings, catalog: Catalog, database: str, now: datetime) -> Iterator[Concern]:
    """Everything that is wrong with one database's backups.

    Raises StoreError, DiskError: no store could be asked, so nothing is known.
    """
    known = _recent(settings, catalog, database, now)
    yield from _overdue(settings, known, database, now)
    yield from _unverified(settings, known, database, now)
    for backup in known[:NIGHTS]:
        yield from _damaged(backup, database)
    for latest in known[:1]:
        yield from _off_site(settings, latest, database, now)
        yield from _odd_in_size(settings, latest, known[1:], database)
    for day in nights.missed(settings, _days(known), now).lost:
        yield _lost(settings, database, str(day), nights.night(settings, day).ends)


def missed_nights(settings: Settings, database: str, catalog: Catalog, now: datetime) -> nights.Missed:
    """The days of the last week without a backup. Raises as `concerns` does."""
    return nights.missed(settings, _days(_recent(settings, catalog, database, now)), now)


def _recent(settings: Settings, catalog: Catalog, database: str, now: datetime) -> list[Backup]:
    """The nights of the last week, one more, and at least as many as sizes are compared with."""
    found: list[Backup] = []
    since = now - nights.LOOK_BACK - timedelta(days=1)
    for backup in islice(catalog.nights(database), _MOST):
        found.append(backup)
        if len(found) > NIGHTS and backup.id.time < since:
            break
    return found


def _days(known: Sequence[Backup]) -> set[date]:
    return {backup.manifest.partition_day for backup in known}


def _overdue(settings: Settings, known: list[Backup], database: str, now: datetime) -> Iterator[Concern]:
    advice = f"backup-dag doctor, then backup-dag backup --database {database}"
    good = next((backup for backup in known if backup.good), None)
    if good is None:
        yield Concern("overdue", database, "", f"there is no good backup of {database}", now, advice)
    elif now - good.manifest.snapshot_time > settings.backup_rpo + nights.SLACK:
        made = good.manifest.snapshot_time
        said = (
            f"the newest good backup of {database} is {length(now - made)} old,"
            f" {length(settings.backup_rpo)} are allowed"
        )
        yield Concern("overdue", database, "", said, made + settings.backup_rpo, advice)


def _unverified(settings: Settings, known: list[Backup], database: str, now: datetime) -> Iterator[Concern]:
    """Nothing that was read to its end is as young as it should be."""
    if not known:
        return
    verified = next((b for b in known if any(copy.read_to_its_end for copy in b.copies)), None)
    last = verified.manifest.snapshot_time if verified else known[-1].manifest.snapshot_time
    limit = settings.backup_rpo + _VERIFIED_WITHIN if verified else _VERIFIED_WITHIN
    if now - last > limit:
        said = f"no backup of {database} from the last {length(now - last)} was read to its end"
        yield Concern(
            "unverified", database, "", said, last + limit, f"backup-dag verify --database {database}"
        )


def _damaged(backup: Backup, database: str) -> Iterator[Concern]:
    for copy in backup.copies:
        verdict = copy.verdict
        failed = verdict is not None and not verdict.passed
        if copy.fault or (verdict and failed):
            why = copy.fault or "; ".join(verdict.faults if verdict else ())
            yield Concern(
                "damaged",
                database,
                f"{backup.id} in {copy.store.label}",
                f"a copy of {backup.id} is damaged: {why}",
                verdict.time if verdict and failed else backup.id.time,
                "keep the other copy if there is one; make a backup now, and look at the disk or the bucket",
            )


def _off_site(settings: Settings, latest: Backup, database: str, now: datetime) -> Iterator[Concern]:
    if not settings.aws_s3_bucket:
        return
    for error in latest.missed:
        yield Concern(
            "not off-site", database, "store", error.message, now, error.hint, patience=_STORE_AWAY_FOR
        )
    there = any(copy.store.label == "s3" and copy.good for copy in latest.copies)
    if not there and not latest.missed and now - latest.manifest.finished > _OFF_SITE_WITHIN:
        yield Concern(
            "not off-site",
            database,
            "",
            f"{latest.id}, the latest backup, is not in the bucket",
            latest.manifest.finished,
            "materialize s3_copy of its day, or run backup-dag backup, which makes up for it",
        )


def _odd_in_size(
    settings: Settings, latest: Backup, before: Sequence[Backup], database: str
) -> Iterator[Concern]:
    earlier = [backup.manifest for backup in before if backup.good]
    odd = [str(change) for change in changes(settings, latest.manifest, earlier) if not change.as_usual]
    if odd:
        yield Concern(
            "size",
            database,
            str(latest.id),
            f"{latest.id} is whole, and out of line: {'; '.join(odd)}",
            latest.manifest.snapshot_time,
            "see whether the database lost or gained that much; nothing is cleaned up meanwhile",
        )


def _lost(settings: Settings, database: str, day: str, ended: datetime) -> Concern:
    return Concern(
        "missed",
        database,
        day,
        f"{database} has no backup for {day}, and none can be made any more",
        ended + settings.backup_late_grace,
        "nothing can be done about that day; see why it was missed (the daemon, the server, doctor)",
    )
