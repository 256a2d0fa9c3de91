"""Whoever has to know is told once of what is wrong, and once more when it is well again.

What could not be delivered is tried again at the next look.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.databases import Database, told_apart
from backup_dag.core.errors import BackupDagError, DeliveryFailed, DiskError
from backup_dag.core.manifest import BackupId
from backup_dag.core.nights import CLOCKS_APART, SLACK
from backup_dag.core.settings import Settings
from backup_dag.core.watching.alerts import Alert, deliver, heartbeat, protection
from backup_dag.core.watching.concern import Concern
from backup_dag.core.watching.concerns import concerns, misconfigured, out_of_reach, unwritable
from backup_dag.core.watching.telling import Book, Seen, opened, waiting

__all__ = ["Looked", "beat", "digest", "look", "tell", "waiting"]

_UNREADABLE_FOR = timedelta(minutes=30)
_REMEMBERED = timedelta(days=30)  # for longer than anything is looked back for, on whatever clock
_MOST_NAMED = 10


@dataclass
class Looked:
    """One look: what is wrong, whom it was told, and what could not be delivered, in words. `unkept` is
    why it will be told again: that it was told could not be written down."""

    concerns: list[Concern] = field(default_factory=list)
    told: list[Alert] = field(default_factory=list)
    undelivered: list[str] = field(default_factory=list)
    unkept: DiskError | None = None


def look(settings: Settings, now: datetime) -> Looked:
    """Looks at every configured database, and tells what has changed since the last look.

    While a store does not answer, nothing becomes well again. Where BACKUP_DIR cannot be written, that is a
    concern too, and everything is told all the same. Raises ConfigurationError: no database.
    """
    with opened(settings) as book:
        eye = _Look(settings, now)
        if book.fault is not None:
            eye.found.append(unwritable(book.fault, now))
        eye.note(book)
        sent = book.send()
    return Looked(eye.found, sent.told, sent.undelivered, book.fault)


def tell(settings: Settings, alert: Alert) -> list[str]:
    """Tells of something that happened once; returns what could not be delivered, in words.

    Whom it did not reach it waits for, and every later look tries again. Where that cannot be noted (the disk
    may be what it is about), it is told all the same.
    """
    with opened(settings) as book:
        if book.has_receivers and book.add(alert):
            sent = book.send()
            return sent.undelivered + ([book.fault.message] if book.fault else [])
    try:
        deliver(settings, alert)
    except DeliveryFailed as failed:
        return [failed.message]
    return []


class _Look:
    """Everything that is wrong at one time, of all databases; the stores are asked once."""

    def __init__(self, settings: Settings, now: datetime) -> None:
        self._now = now
        self._catalog = Catalog(open_stores(settings))
        usable, faults = told_apart(settings)
        self.databases = _names(usable, faults)
        self.by_name = {name: list(self._of(settings, name)) for name in self.databases}
        of_all = list(out_of_reach(self._catalog.away, now))
        for name, fault in faults.items():
            self.by_name.get(name, of_all).append(misconfigured(name, fault, now))
        self.of_all = of_all
        self.found = [concern for found in self.by_name.values() for concern in found] + of_all

    def _of(self, settings: Settings, database: str) -> Iterator[Concern]:
        """A database's concerns; that it cannot be looked at is one, since silence would look like health."""
        try:
            yield from concerns(settings, self._catalog, database, self._now)
        except BackupDagError as error:
            if not self._catalog.away:  # else that is told, once for all
                said = f"the backups of {database} cannot be looked at: {error.message}"
                yield Concern(
                    "out of reach", database, "", said, self._now, error.hint, patience=_UNREADABLE_FOR
                )

    def note(self, book: Book) -> None:
        """Writes into the book what is new, and what is over."""
        for concern in self.found:
            seen = book.seen.setdefault(concern.key, _new(concern, self._now))
            seen.first = min(seen.first, self._now)  # a clock that was ahead
            if not seen.told and book.has_receivers and self._now - seen.first >= concern.patience:
                seen.told = book.add(self._alert(concern))
        for key in book.seen.keys() - {concern.key for concern in self.found}:
            self._over(book, key)

    def _over(self, book: Book, key: str) -> None:
        """What is no longer found: told to be well where it is that, and not only out of sight."""
        seen = book.seen[key]
        configured = seen.database is None or seen.database in self.databases
        if configured and (self._is_unsure(seen) or self._may_come_back(seen)):
            return
        is_over = configured and seen.told and seen.may_end and book.has_receivers and self._is_well(seen)
        if not is_over or book.add(self._well_again(seen)):
            del book.seen[key]

    def _is_unsure(self, seen: Seen) -> bool:
        """Whether it may only not have been found because not everything could be asked."""
        cannot = {concern.database for concern in self.found if concern.kind == "out of reach"}
        return None in cannot or (seen.database in cannot)

    def _may_come_back(self, seen: Seen) -> bool:
        """A lost night is out of sight after a week, and in it again where a clock is put back."""
        return not seen.may_end and abs(self._now - seen.first) < _REMEMBERED

    def _is_well(self, seen: Seen) -> bool:
        """A backup that was damaged may be gone, or too old to be looked at: that is not well."""
        backup = BackupId.parse(seen.backup)
        if backup is None:
            return True
        try:
            return all(copy.good for copy in self._catalog.load(backup).copies)
        except BackupDagError:
            return False

    def _alert(self, concern: Concern) -> Alert:
        said = self._protection(concern.database)
        return Alert(concern.kind, concern.database, concern.happened, concern.since, said, concern.advice)

    def _well_again(self, seen: Seen) -> Alert:
        still = [each.happened for each in self.by_name.get(seen.database or "", [])]
        advice = f"this is still to be seen to: {'; '.join(still)}" if still else ""
        happened, said = f"no longer so: {seen.happened}", self._protection(seen.database)
        return Alert("recovered", seen.database, happened, self._now, said, advice)

    def _protection(self, database: str | None) -> str:
        if database is not None:
            return protection(self._catalog, database, self._now)
        named = self.databases[:_MOST_NAMED]
        return "\n".join(f"{name}: {protection(self._catalog, name, self._now)}" for name in named)

    def summary(self) -> Iterator[str]:
        """What there is of each database, and what is wrong, a line each."""
        for name, found in self.by_name.items():
            yield f"{name}: {self._protection(name)}"
            yield from (f"  ! {concern.happened}" for concern in found)
        yield from (f"! {concern.happened}" for concern in self.of_all)


def _names(usable: Sequence[Database], faults: Collection[str]) -> list[str]:
    """The databases whose backups can be looked at: for that, a name is enough."""
    return [each.name for each in usable] + [name for name in faults if name != "DATABASE_URL"]


def _new(concern: Concern, now: datetime) -> Seen:
    return Seen(
        first=now,
        happened=concern.happened,
        database=concern.database,
        may_end=concern.may_end,
        backup=concern.backup,
    )


def digest(settings: Settings, now: datetime) -> Alert:
    """What there is, and what is wrong, of all databases: for those who want to hear of it in any case."""
    eye = _Look(settings, now)
    wrong = len(eye.found)
    happened = "all is well"
    if wrong:
        happened = f"{wrong} things are not as they should be" if wrong > 1 else "one thing is wrong"
    return Alert("digest", None, happened, now, "\n" + "\n".join(eye.summary()))


def beat(settings: Settings, now: datetime, but: Collection[str] = ()) -> list[str]:
    """Pings the dead man's switch for the databases that are well off-site; returns their names.

    Well: the latest backup is young enough, not dated in the future, and its off-site copy was read to its
    end; none that is newer has a manifest that nobody can read. `but` are those that are known not to be
    well, whatever was recorded. An address without {database} in it is pinged only where all of them are.

    Raises DeliveryFailed where one could not be reached, once all have been tried.
    """
    if settings.backup_heartbeat_url is None:
        return []
    catalog = Catalog(open_stores(settings))
    usable, faults = told_apart(settings)
    names = _names(usable, faults)
    well = [each for each in names if each not in but and _is_well_off_site(settings, catalog, each, now)]
    if "{database}" in settings.backup_heartbeat_url.get_secret_value():
        _ping(settings, well)
    elif len(well) == len(usable) + len(faults):
        _ping(settings, well[:1])
    else:
        return []
    return well


def _ping(settings: Settings, names: Sequence[str]) -> None:
    failed: DeliveryFailed | None = None
    for name in names:
        try:
            heartbeat(settings, name)
        except DeliveryFailed as error:
            failed = failed or error
    if failed is not None:
        raise failed


def _is_well_off_site(settings: Settings, catalog: Catalog, database: str, now: datetime) -> bool:
    for latest in catalog.newest_first(database, usable=False):
        manifest = latest.manifest_or_none
        if manifest is None:  # it may be the night's
            return False
        if manifest.is_of_a_night:
            age = now - manifest.snapshot_time
            return -CLOCKS_APART <= age <= settings.backup_rpo + SLACK and any(
                copy.store.label == "s3" and copy.read_to_its_end for copy in latest.copies
            )
    return False
