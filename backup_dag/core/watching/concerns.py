"""What is wrong with the backups that there are, at this hour: read off listings, manifests and records.

Cheap, so that it can be asked every few minutes: a listing, and the documents of a few backups. What a store
would have to say that does not answer is not known, and is not taken for bad.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from itertools import islice

from backup_dag.core import history, nights
from backup_dag.core.catalog import Catalog
from backup_dag.core.copies import Backup
from backup_dag.core.errors import BackupDagError, ConfigurationError, DiskError
from backup_dag.core.in_words import length
from backup_dag.core.key import why_unopened
from backup_dag.core.manifest import Encryption
from backup_dag.core.settings import Settings
from backup_dag.core.watching.concern import Concern
from backup_dag.core.watching.losses import failed_checks, losses
from backup_dag.core.watching.usual import NIGHTS, judged

_OFF_SITE_WITHIN = timedelta(hours=2)
_VERIFIED_WITHIN = timedelta(hours=5)  # after the hour of the nightly verification
_STORE_AWAY_FOR = timedelta(hours=1)
_A_DAY = timedelta(days=1)
_MOST = 200  # backups that are looked at for the days that have one; a week of hourly ones


def concerns(settings: Settings, catalog: Catalog, database: str, now: datetime) -> Iterator[Concern]:
    """Everything that is wrong with one database's backups. What could not be asked stands in
    `catalog.away` afterwards, and becomes concerns by `out_of_reach`.

    Raises StoreError, DiskError: no store could be asked, so nothing is known.
    """
    found = _recent(catalog, database, now)
    known = [
        backup for backup in found if backup.manifest_or_none and backup.id.time <= now + nights.CLOCKS_APART
    ]
    yield from _overdue(settings, catalog, found, known, database, now)
    yield from _ahead(found, database, now)
    yield from _undrilled(settings, catalog, database, now)
    yield from losses(settings, catalog, found, database, now)
    yield from failed_checks(settings, database)
    for latest in known[:1]:
        yield from _odd_in_size(settings, latest, known[1:], database)
    if not catalog.away:  # else the other store may have it
        yield from _unopened(settings, known, database, now)
        yield from _unverified(settings, known, database, now)
        yield from _off_site(settings, known, database, now)
        for day in nights.missed(settings, _days(found), now).lost:
            yield _lost(settings, database, str(day), nights.night(settings, day).ends)


def out_of_reach(away: Mapping[str, BackupDagError], now: datetime) -> Iterator[Concern]:
    """The stores that could not be asked, by their labels: told once they have been away for a while."""
    for label, error in away.items():
        yield Concern("out of reach", None, label, error.message, now, error.hint, patience=_STORE_AWAY_FOR)


def misconfigured(name: str, error: ConfigurationError, now: datetime) -> Concern:
    """A database cannot be backed up, since its settings cannot be used. By name it can be looked at all the
    same; not so that of DATABASE_URL, whose name stands in what cannot be used."""
    said = f"the configuration of {name} cannot be used: {error.message}"
    database = None if name == "DATABASE_URL" else name
    return Concern("failed", database, "configuration", said, now, error.hint)


def unwritable(error: DiskError, now: datetime) -> Concern:
    """What was told cannot be written down in BACKUP_DIR, where no backup can be written either then."""
    said = f"{error.message}; so no backup can be made there, and what is told now is told again"
    return Concern("out of reach", None, "BACKUP_DIR", said, now, error.hint)


def missed_nights(settings: Settings, database: str, catalog: Catalog, now: datetime) -> nights.Missed:
    """The days of the last week without a backup. Raises as `concerns` does.

    Of days that have passed nothing is said while a store does not answer, since it may have their backups.
    """
    missed = nights.missed(settings, _days(_recent(catalog, database, now)), now)
    if not catalog.away:
        return missed
    return nights.Missed(
        tuple(day for day in missed.to_capture if not nights.is_late(settings, day, now)), ()
    )


def _recent(catalog: Catalog, database: str, now: datetime) -> list[Backup]:
    return recent(catalog.newest_first(database, usable=False), now)


def recent(newest_first: Iterable[Backup], now: datetime) -> list[Backup]:
    """The nights of the last week, one more, and at least as many as sizes are compared with; those whose
    manifests nobody can read among them."""
    found: list[Backup] = []
    since = now - nights.LOOK_BACK - _A_DAY
    for backup in islice(newest_first, _MOST):
        manifest = backup.manifest_or_none
        if manifest is None or manifest.is_of_a_night:
            found.append(backup)
        if len(found) > NIGHTS and backup.id.time < since:
            break
    return found


def _days(known: Iterable[Backup]) -> set[date]:
    return {backup.manifest.partition_day for backup in known if backup.manifest_or_none}


def _overdue(
    settings: Settings,
    catalog: Catalog,
    found: Sequence[Backup],
    known: Sequence[Backup],
    database: str,
    now: datetime,
) -> Iterator[Concern]:
    """`known` are those of `found` that can be read, and are of this time."""
    advice = f"backup-dag doctor, then backup-dag backup --database {database}"
    patience = _STORE_AWAY_FOR if catalog.away else timedelta()
    good = next((backup for backup in known if backup.good), None)
    if good is None:
        said = f"there is no good backup of {database}" + (", as far as was asked" if catalog.away else "")
        if any(backup.id.time > now for backup in found):
            said += ", but such as are dated in the future: a clock is wrong, or was"
        yield Concern("overdue", database, "", said, now, advice, patience)
    elif now - good.manifest.snapshot_time > settings.backup_rpo + nights.SLACK:
        made = good.manifest.snapshot_time
        said = (
            f"the newest good backup of {database} is {length(now - made)} old,"
            f" {length(settings.backup_rpo)} are allowed"
        )
        yield Concern("overdue", database, "", said, made + settings.backup_rpo, advice, patience)


def _ahead(found: Sequence[Backup], database: str, now: datetime) -> Iterator[Concern]:
    """One concern, however many are dated so: until that time has come, or they have been removed."""
    ahead = [backup for backup in found if backup.id.time > now + nights.CLOCKS_APART]
    for newest in ahead[:1]:
        said = f"{newest.id} is dated in the future: a clock is wrong, or was"
        advice = (
            "set the clocks of the database's server and of this machine; restore asks for the backup by its"
            " id then, since the latest may not be what it seems"
        )
        yield Concern("ahead", database, "", said, now, advice)


def _unverified(
    settings: Settings, known: Sequence[Backup], database: str, now: datetime
) -> Iterator[Concern]:
    """There are newer backups than the last that was read to its end, and that was read too long ago for a
    nightly verification. Where no newer ones are made, `_overdue` says so."""
    good = [backup for backup in known if backup.good]
    read = [backup for backup in good if any(copy.read_to_its_end for copy in backup.copies)]
    if not good or read[:1] == good[:1]:
        return
    last = (read or good[-1:])[0].manifest.snapshot_time
    limit = max(settings.backup_rpo, _A_DAY) + _until_verified(settings) + _VERIFIED_WITHIN
    if now - last > limit:
        said = f"no backup of {database} from the last {length(now - last)} was read to its end"
        yield Concern(
            "unverified", database, "", said, last + limit, f"backup-dag verify --database {database}"
        )


def _until_verified(settings: Settings) -> timedelta:
    """From the nightly backup to the verification after it, by the settings."""
    due, verified = settings.backup_time, settings.backup_verify_time
    apart = timedelta(hours=verified.hour - due.hour, minutes=verified.minute - due.minute)
    return apart % _A_DAY


def _unopened(settings: Settings, known: Sequence[Backup], database: str, now: datetime) -> Iterator[Concern]:
    good = [backup for backup in known if backup.good]
    closed = [(each, why) for each in good if (why := why_unopened(settings, made_with(each)))]
    for newest, why in closed[:1]:
        of = f"{len(closed)} of the last {len(good)} good backups" if len(good) > 1 else "the good backup"
        said = f"{of} of {database} cannot be opened here: of {newest.id}, {why.message}"
        yield Concern("unopened", database, "", said, now, why.hint)


def made_with(backup: Backup) -> list[Encryption]:
    """How each good copy is encrypted."""
    return [copy.manifest.encryption for copy in backup.copies if copy.good and copy.manifest]


def _off_site(settings: Settings, known: Sequence[Backup], database: str, now: datetime) -> Iterator[Concern]:
    if not known or not settings.aws_s3_bucket:
        return
    latest = known[0]
    there = any(copy.store.label == "s3" and copy.good for copy in latest.copies)
    if not there and now - latest.manifest.finished > _OFF_SITE_WITHIN:
        yield Concern(
            "not off-site",
            database,
            "",
            f"{latest.id}, the latest backup, is not in the bucket",
            latest.manifest.finished,
            "materialize s3_copy of its day, or run backup-dag backup, which makes up for it",
        )


def _undrilled(settings: Settings, catalog: Catalog, database: str, now: datetime) -> Iterator[Concern]:
    """Nothing was restored for long, here, although drills are meant to be."""
    longest = nights.longest_without_drill(settings)
    if longest is None:
        return
    last = history.last_proof(settings.backup_dir, database)
    since = last or min((backup.time for backup in catalog.survey(database).ids), default=now)
    if now - since > longest:
        what = f"for {length(now - since)}" if last else "yet, of any that there are"
        yield Concern(
            "drill overdue",
            database,
            "",
            f"no backup of {database} was restored and proven here {what}",
            since + longest,
            f"backup-dag drill --database {database}; or BACKUP_DRILL=off, where another machine drills",
        )


def _odd_in_size(
    settings: Settings, latest: Backup, before: Sequence[Backup], database: str
) -> Iterator[Concern]:
    """One concern for what shrank, and one for what grew, however many nights it stays so."""
    earlier = [backup.manifest for backup in before if backup.good]
    odd = [change for change in judged(settings, latest.manifest, earlier) if not change.as_usual]
    for way in ("shrunk", "grown"):
        said = [str(change) for change in odd if (change.percent < 0) == (way == "shrunk")]
        if said:
            yield Concern(
                "size",
                database,
                way,
                f"{latest.id} is whole, and has {way}: {'; '.join(said)}",
                latest.manifest.snapshot_time,
                "see whether the database lost or gained that much; nothing is cleaned up meanwhile. If it is"
                " as it should be: backup-dag cleanup --force makes that size the usual one",
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
