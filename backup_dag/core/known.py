"""What this host knows was put into a store, whatever the store shows now: is its newest backup the newest?

Each manifest by itself is authenticated; that none is missing is known from the audit log of this host alone.
A host that never copied anything to a store knows nothing, and says so by saying nothing.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from backup_dag.core import journal
from backup_dag.core.audit import Entry, entries, log_file
from backup_dag.core.catalog import Catalog
from backup_dag.core.errors import DiskError
from backup_dag.core.manifest import ASIDE, BackupId
from backup_dag.core.nights import CLOCKS_APART
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import Store


@dataclass(frozen=True)
class Known:
    """A backup that was put into a store, and when, in UTC as the audit log has it."""

    id: BackupId
    when: str


def newest_known(
    settings: Settings, store: Store, database: str, *, now: datetime | None = None
) -> Known | None:
    """The newest backup of a database that counts for its day, was put into the store from here, and was not
    removed from it by a clean-up from here. None where there is none.

    One that is dated in the future is passed over, as verification passes it over. Where the log cannot be
    read nothing is known, and that is said.
    """
    until = (now or datetime.now(UTC)) + CLOCKS_APART
    there: dict[BackupId, str] = {}
    aside: set[BackupId] = set()
    for entry in _log(settings, database):
        if entry.details.get("why") in ASIDE:
            aside |= _ids([entry.backup], database)
        for backup in _put(entry, store, database):
            there[backup] = entry.time
        for backup in _removed(entry, store, database):
            there.pop(backup, None)
    candidates = [backup for backup in there if backup not in aside and backup.time <= until]
    newest = max(candidates, default=None)
    return Known(newest, there[newest]) if newest else None


def served_as_newest(settings: Settings, store: Store, database: str, served: BackupId | None) -> str:
    """What is wrong with taking `served` for the store's newest backup, in words; "" where nothing is known
    to be. None: the store shows none at all."""
    known = newest_known(settings, store, database)
    if known is None or (served is not None and known.id <= served):
        return ""
    shows = f"shows {served} as its newest" if served else "shows none"
    return (
        f"{store.address()} {shows}, but {known.id} was put there at {known.when}, and no clean-up from here"
        " removed it: an older backup is served as the newest, or somebody else removed it"
    )


def taken_away(settings: Settings, store: Store, database: str, until: datetime) -> str:
    """What is missing in a store, in words; "" where nothing is known to be. `until` when its newest backup
    may be dated. Raises what asking the store raises."""
    there = (backup for backup in Catalog([store]).survey(database).ids if backup.time <= until)
    return served_as_newest(settings, store, database, next(there, None))


def _log(settings: Settings, database: str) -> Sequence[Entry]:
    file, size = 0, 0
    with suppress(OSError):  # reading it will say why, where that is not simply that there is none
        found = log_file(settings.backup_dir).stat()
        file, size = found.st_ino, found.st_size
    return _by_database(settings.backup_dir, file, size).get(database, ())


@lru_cache(maxsize=1)
def _by_database(backup_dir: Path, file: int, size: int) -> Mapping[str, Sequence[Entry]]:
    """What the log has of each database that matters here: read once, however many databases are looked
    at."""
    said: dict[str, list[Entry]] = defaultdict(list)
    try:
        for entry in entries(backup_dir):
            if entry.database is not None and entry.what in ("copy", "backup", "cleanup"):
                said[entry.database].append(entry)
    except DiskError as error:
        journal.say(f"whether newer backups were removed cannot be told: {error.message}")
    return said


def _put(entry: Entry, store: Store, database: str) -> set[BackupId]:
    """What an entry says was put into the store; an upload that failed later on has put what it names."""
    if entry.what == "copy" and entry.details.get("to") == store.address():
        return _ids(entry.details.get("copied"), database)
    if entry.what == "backup" and entry.outcome == "done" and store.label == "local":
        return _ids([entry.backup], database)
    return set()


def _removed(entry: Entry, store: Store, database: str) -> set[BackupId]:
    return _ids(entry.details.get(store.address()), database) if entry.what == "cleanup" else set()


def _ids(names: object, database: str) -> set[BackupId]:
    """The ids among what a line of the log holds, where anything may stand."""
    found = (
        [BackupId.parse(name) for name in names if isinstance(name, str)] if isinstance(names, list) else []
    )
    return {backup for backup in found if backup is not None and backup.database == database}
