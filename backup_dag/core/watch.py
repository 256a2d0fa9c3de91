"""Whoever has to know is told once of what is wrong, and once more when it is well again.

What was told is kept in BACKUP_DIR, so the daemon's sensor and a cron line say it once between them. What
could not be delivered is tried again at the next look.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ValidationError

from backup_dag.core.alerts import Alert, deliver, heartbeat, protection
from backup_dag.core.catalog import Backup, Catalog, open_stores
from backup_dag.core.concerns import Concern, concerns
from backup_dag.core.databases import Database, configured
from backup_dag.core.errors import BackupDagError, DeliveryFailed
from backup_dag.core.nights import SLACK
from backup_dag.core.settings import Settings
from backup_dag.core.work import disk_error, new_file, one_at_a_time

_STATE = ".watch.json"
_MOST_WAITING = 100


@dataclass
class Looked:
    """One look: what is wrong, whom it was told, and what could not be delivered, in words."""

    concerns: list[Concern] = field(default_factory=list)
    told: list[Alert] = field(default_factory=list)
    undelivered: list[str] = field(default_factory=list)


class _Known(BaseModel):
    """A concern that was seen before: since when, and whether somebody has been told."""

    first: AwareDatetime
    told: bool = False
    happened: str
    database: str
    may_end: bool


class _State(BaseModel):
    """What is kept from look to look. `waiting`: alerts that have reached nobody yet."""

    known: dict[str, _Known] = {}
    waiting: list[Alert] = []


def look(settings: Settings, now: datetime) -> Looked:
    """Looks at every configured database, and tells what has changed since the last look.

    Raises:
        DiskError: what was told cannot be kept. ConfigurationError: no database, or no receiver can be used.
    """
    looked = Looked()
    catalog = Catalog(open_stores(settings))
    looked.concerns = [c for each in configured(settings) for c in _found(settings, catalog, each, now)]
    with _state(settings) as state:
        for alert in list(state.waiting):
            if _reached(settings, alert, looked):
                state.waiting.remove(alert)
        for concern in looked.concerns:
            seen = state.known.setdefault(concern.key, _new(concern, now))
            if not seen.told and now - seen.first >= concern.patience:
                seen.told = _reached(settings, _alert(catalog, concern, now), looked)
        for key in state.known.keys() - {concern.key for concern in looked.concerns}:
            seen = state.known[key]
            quietly = not (seen.told and seen.may_end)
            if quietly or _reached(settings, _well_again(catalog, seen, now), looked):
                del state.known[key]
    return looked


def tell(settings: Settings, alert: Alert) -> list[str]:
    """Tells of something that happened once; returns what could not be delivered, in words.

    Where it reached nobody it waits, and every later look tries again. Raises as `look` does.
    """
    looked = Looked()
    with _state(settings) as state:
        if not _reached(settings, alert, looked):
            state.waiting = [*state.waiting, alert][-_MOST_WAITING:]
    return looked.undelivered


def waiting(settings: Settings) -> list[str]:
    """The subjects of alerts that have reached nobody yet."""
    return [f"not delivered yet: {alert.subject}" for alert in _read(settings.backup_dir / _STATE).waiting]


def _found(settings: Settings, catalog: Catalog, database: Database, now: datetime) -> Iterable[Concern]:
    """A database's concerns; that no store can be asked is one, since silence would look like health."""
    try:
        return list(concerns(settings, catalog, database.name, now))
    except BackupDagError as error:
        said = f"the backups of {database.name} cannot be looked at: {error.message}"
        away = timedelta(minutes=30)
        return [Concern("overdue", database.name, "stores", said, now, error.hint, patience=away)]


def _new(concern: Concern, now: datetime) -> _Known:
    return _Known(first=now, happened=concern.happened, database=concern.database, may_end=concern.may_end)


def _reached(settings: Settings, alert: Alert, looked: Looked) -> bool:
    """Whether it reached anybody, or there is nobody to reach. After a failure nothing more is tried in this
    look: a server that is down takes half a minute to be found so, and a sensor has a minute."""
    if looked.undelivered:
        return False
    try:
        deliver(settings, alert)
    except DeliveryFailed as failed:
        looked.undelivered.append(failed.message)
        if not failed.told:
            return False
    looked.told.append(alert)
    return True


def _alert(catalog: Catalog, concern: Concern, now: datetime) -> Alert:
    return Alert(
        concern.kind,
        concern.database,
        concern.happened,
        concern.since,
        protection(catalog, concern.database, now),
        concern.advice,
    )


def _well_again(catalog: Catalog, seen: _Known, now: datetime) -> Alert:
    happened = f"no longer so: {seen.happened}"
    return Alert("recovered", seen.database, happened, now, protection(catalog, seen.database, now))


def digest(settings: Settings, now: datetime) -> Alert:
    """What there is, and what is wrong, of all databases: for those who want to hear of it in any case."""
    catalog, said, wrong = Catalog(open_stores(settings)), [], 0
    for database in configured(settings):
        found = [concern.happened for concern in _found(settings, catalog, database, now)]
        wrong += len(found)
        said += [f"{database.name}: {protection(catalog, database.name, now)}", *(f"  ! {w}" for w in found)]
    happened = "all is well" if not wrong else f"{wrong} things are not as they should be"
    return Alert("digest", None, happened, now, "\n" + "\n".join(said))


def beat(settings: Settings, now: datetime) -> list[str]:
    """Pings the dead man's switch for the databases that are well off-site; returns their names.

    Well: the latest backup is young enough, and its off-site copy was read to its end. An address without
    {database} in it is pinged only where all of them are.

    Raises DeliveryFailed where it could not be reached.
    """
    if settings.backup_heartbeat_url is None:
        return []
    catalog = Catalog(open_stores(settings))
    databases = configured(settings)
    well = [each.name for each in databases if _is_well(settings, catalog, each, now)]
    if "{database}" in settings.backup_heartbeat_url.get_secret_value():
        for name in well:
            heartbeat(settings, name)
    elif len(well) == len(databases):
        heartbeat(settings, well[0])
    else:
        return []
    return well


def _is_well(settings: Settings, catalog: Catalog, database: Database, now: datetime) -> bool:
    latest: Backup | None = next(catalog.nights(database.name), None)
    return (
        latest is not None
        and now - latest.manifest.snapshot_time <= settings.backup_rpo + SLACK
        and any(copy.store.label == "s3" and copy.read_to_its_end for copy in latest.copies)
    )


@contextmanager
def _state(settings: Settings) -> Iterator[_State]:
    """What was told, and what waits; kept when the block ends, and one look at a time."""
    path = settings.backup_dir / _STATE
    with one_at_a_time(settings.backup_dir, "watch"):
        state = _read(path)
        try:
            yield state
        finally:
            _write(path, state)


def _read(path: Path) -> _State:
    """Nothing where it cannot be read: better told twice than never."""
    with suppress(OSError, ValidationError):
        return _State.model_validate_json(path.read_bytes())
    return _State()


def _write(path: Path, state: _State) -> None:
    beside = path.with_suffix(".new")
    try:
        beside.unlink(missing_ok=True)
        with new_file(beside) as file:
            file.write(state.model_dump_json(indent=1).encode())
        beside.replace(path)
    except OSError as error:
        raise disk_error(f"writing {path}", error) from error
