"""Finds out where one stands, from the stores and this host's record of recoveries alone.

Nothing is connected to. What a store would have to say that did not answer is not known: neither good nor
bad. Each store is listed twice for a database, and two small documents are read of every copy.
"""

from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta

from backup_dag.core import history, nights
from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.copies import Backup, Copy
from backup_dag.core.databases import Database, told_apart
from backup_dag.core.errors import BackupDagError, BackupNotFound, ConfigurationError, DiskError, StoreError
from backup_dag.core.key import why_unopened
from backup_dag.core.settings import Settings
from backup_dag.core.watching import judged
from backup_dag.core.watching.concern import Concern
from backup_dag.core.watching.concerns import made_with, recent
from backup_dag.core.watching.losses import failed_checks, losses
from backup_dag.core.watching.places import Place, Verdict, machine_of, one_off_site, three_copies, two_media
from backup_dag.core.watching.posture import Aged, DatabasePosture, Posture, Recovery
from backup_dag.core.watching.strip import DAYS, strip

CALENDAR = 91
"""Days of the calendar: thirteen weeks."""

_MOST_MEASURED = 60  # recoveries that are told, the last ones


def take_stock(
    settings: Settings, now: datetime, only: str | None = None
) -> tuple[Posture, list[BackupDagError]]:
    """Looks at every configured database, or `only` one; where none is configured, at those that there are
    backups of. And the errors of the stores that did not answer.

    Raises:
        ConfigurationError: the settings for a store cannot be used.
        BackupNotFound: `only` is neither configured, nor is there a backup of it.
    """
    catalog = Catalog(open_stores(settings))
    usable, faults = _configured(settings)
    by_name: dict[str, Database | None] = {each.name: each for each in usable}
    by_name |= dict.fromkeys(name for name in faults if name not in ("DATABASE_URL", ""))
    if not by_name or "DATABASE_URL" in faults or only not in {None, *by_name}:
        by_name |= {name: by_name.get(name) for name in _in_the_stores(catalog)}
    if only is not None:
        if only not in by_name and not catalog.away:
            raise BackupNotFound(
                f"no database is called {only!r}, and there is no backup of one in {catalog.places}",
                hint=f"there are: {', '.join(sorted(by_name)) or 'none'}",
            )
        by_name = {only: by_name.get(only)}
    found = [_Eye(settings, catalog, name, which, now).posture() for name, which in by_name.items()]
    return Posture(
        made=now,
        rpo_target_seconds=settings.backup_rpo.total_seconds(),
        rto_target_seconds=settings.backup_rto.total_seconds(),
        databases=found,
        away={label: error.message for label, error in catalog.away.items()},
        faults={name or "configuration": error.message for name, error in faults.items()},
    ), list(catalog.away.values())


def _configured(settings: Settings) -> tuple[Sequence[Database], dict[str, ConfigurationError]]:
    """As `told_apart`; where nothing can be used at all, that is a fault too: on a bare server, say."""
    try:
        return told_apart(settings)
    except ConfigurationError as error:
        return (), {"": error}


def _in_the_stores(catalog: Catalog) -> list[str]:
    try:
        return sorted({backup.database for backup in catalog.survey().ids})
    except (StoreError, DiskError):
        return []


class _Eye:
    """One database's backups at one time, looked at once."""

    def __init__(
        self, settings: Settings, catalog: Catalog, name: str, database: Database | None, now: datetime
    ) -> None:
        self._settings, self._name, self._database, self._now = settings, name, database, now
        self._catalog = catalog
        self._bucket = any(store.label == "s3" for store in catalog.stores)
        try:
            self._every = catalog.every(name)
        except (StoreError, DiskError):
            self._every = []
        self._away = sorted(catalog.away)
        self._nights = [each for each in self._every if each.manifest_or_none and _of_a_night(each)]
        limit = now + nights.CLOCKS_APART
        self._past = [each for each in self._nights if each.manifest.snapshot_time <= limit]
        self._good = next((each for each in self._past if each.good), None)

    def posture(self) -> DatabasePosture:
        good, sure = self._good, not self._away
        recoveries = list(self._recoveries())
        last = next((each for each in reversed(recoveries) if each.what == "drill"), None)
        last = last or (recoveries[-1] if recoveries else None)
        places, window = list(self._places()), self._window()
        missing = self._days_missing(window) if sure else None
        lock = self._lock()
        proven = sum(each.proven for each in self._nights) if sure else None
        retained = len(self._nights) if sure else None
        plain = [each for each in self._every if each.manifest_or_none and not _is_encrypted(each)]
        newest, proof = self._aged(good), self._aged(next((each for each in self._past if each.proven), None))
        encryption = good.manifest.encryption if good else None
        unencrypted = len(plain) if sure else None
        unopened = self._unopened()
        return DatabasePosture(
            database=self._name,
            newest_good=newest,
            newest_proven=proof,
            dated_ahead=len(self._nights) - len(self._past),
            last_recovery=last,
            recoveries=recoveries,
            places=places,
            retained=retained,
            proven=proven,
            proven_percent=_percent(proven, retained),
            days_missing=missing,
            window_days=window,
            calendar=strip(self._every, self._today, CALENDAR, self._settings.zone),
            last_day=self._today,
            encryption=encryption,
            unencrypted=unencrypted,
            unopened=unopened[0] if unopened else 0,
            locked_until=lock[0],
            not_asked=self._away,
            verdicts={
                "rpo": judged.rpo(self._settings, newest.age_seconds if newest else None, sure=sure),
                "rto": judged.rto(self._settings, last.seconds if last else None),
                "copies": three_copies(places, self._database is not None, self._away),
                "media": two_media(places, self._database is not None, self._away),
                "off_site": one_off_site(places, self._bucket, self._away),
                "proof": judged.proof(proof is not None, sure=sure),
                "intact": judged.intact(self._losses(), sure=sure, any_stored=bool(self._every)),
                **self._own_checks(),
                "days": judged.days(missing, window, begun=bool(self._nights)),
                "encryption": judged.encryption(encryption, unencrypted, unopened),
                "immutability": lock[1],
            },
        )

    def _losses(self) -> list[Verdict] | None:
        """None where no store could be asked."""
        if len(self._catalog.away) == len(self._catalog.stores):
            return None
        found = recent(self._every, self._now)
        return list(map(_verdict, losses(self._settings, self._catalog, found, self._name, self._now)))

    def _unopened(self) -> tuple[int, BackupDagError] | None:
        """How many good backups nothing that is set here opens, and why not the newest of them. A store that
        did not answer may have copies that are under another passphrase."""
        if self._away:
            return None
        good = [each for each in self._every if each.good]
        found = [why for each in good if (why := why_unopened(self._settings, made_with(each)))]
        return (len(found), found[0]) if found else None

    def _own_checks(self) -> dict[str, Verdict]:
        """What the user's own said in the last drill, where it asked any."""
        for last in history.drills(self._settings.backup_dir, self._name)[-1:]:
            if last.asked:
                failed = list(map(_verdict, failed_checks(self._settings, self._name)))
                return {"own_checks": judged.own_checks(failed)}
        return {}

    @property
    def _today(self) -> date:
        return nights.today(self._settings, self._now)

    def _aged(self, backup: Backup | None) -> Aged | None:
        """Of one that is dated ahead by less than clocks are apart, the age is 0."""
        if backup is None:
            return None
        taken = backup.manifest.snapshot_time
        return Aged(
            backup=str(backup.id),
            snapshot_time=taken,
            age_seconds=max(0.0, round((self._now - taken).total_seconds(), 3)),
        )

    def _recoveries(self) -> Iterator[Recovery]:
        for timing in history.timings(self._settings.backup_dir, self._name)[-_MOST_MEASURED:]:
            if timing.time <= self._now + nights.CLOCKS_APART:
                yield Recovery(
                    what=timing.what,
                    backup=timing.backup,
                    time=timing.time,
                    seconds=round(timing.recovery, 3),
                    steps=timing.seconds,
                )

    def _places(self) -> Iterator[Place]:
        if self._database is not None:
            address = self._database.address
            yield Place(what="database", address=str(address), machine=machine_of(address.host))
        for copy in _good_copies(self._good):
            artifact = copy.manifest.artifact.name if copy.manifest else ""
            yield Place(
                what=copy.store.label,
                address=copy.store.address(artifact),
                machine=machine_of(copy.store.host),
            )

    def _window(self) -> int:
        """How many days up to today are looked at: those of which the policy keeps every backup."""
        return min(DAYS, self._settings.backup_retention_days)

    def _days_missing(self, window: int) -> list[date]:
        """The days that have no good backup, though they should: none before the first there is."""
        if not self._nights:
            return []
        begun = min(each.manifest.partition_day for each in self._nights)
        captured = {each.manifest.partition_day for each in self._nights if each.good}
        back = timedelta(days=window - 1)
        return nights.days_without(self._settings, captured, begun, self._now, back)

    def _lock(self) -> tuple[datetime | None, Verdict]:
        """Until when the newest copy in a bucket is locked, and what that means."""
        copies = [copy for each in self._past for copy in _good_copies(each) if copy.store.label != "local"][
            :1
        ]
        for copy in copies:
            name = copy.manifest.artifact.name if copy.manifest else ""
            try:
                until = copy.store.locked_until(name)
                shown = until is not None or copy.store.shows_locks(name)
            except (StoreError, DiskError) as error:
                return None, Verdict(holds=None, said=error.message, advice=error.hint)
            return until, judged.lock(until, shown=shown)
        return None, judged.no_copy_to_lock(sure="s3" not in self._away)


def _verdict(concern: Concern) -> Verdict:
    return Verdict(holds=False, said=concern.happened, advice=concern.advice)


def _percent(part: int | None, whole: int | None) -> float | None:
    """With one decimal, never rounded up: a hundred is all. None where it is not known, or of none."""
    return None if part is None or not whole else 1000 * part // whole / 10


def _of_a_night(backup: Backup) -> bool:
    return backup.manifest.is_of_a_night


def _is_encrypted(backup: Backup) -> bool:
    return backup.manifest.encryption.mode != "off"


def _good_copies(backup: Backup | None) -> list[Copy]:
    return [copy for copy in backup.copies if copy.good] if backup else []
