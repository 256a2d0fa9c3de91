"""What was told and what is still to be told, kept in BACKUP_DIR: so that the daemon's sensor and a cron line
say a thing once between them, to each receiver, and what one could not be told waits for it.

Where it cannot be kept there, this process alone remembers it: another one tells it again, since a disk that
is full is no reason for silence.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError, field_validator

from backup_dag.core.errors import DeliveryFailed, DiskError
from backup_dag.core.manifest import Moment
from backup_dag.core.private import refuse_links
from backup_dag.core.settings import Settings
from backup_dag.core.watching.alerts import Alert, deliver
from backup_dag.core.watching.delivery import receivers
from backup_dag.core.work import disk_error, new_file, one_at_a_time

_STATE = ".watch.json"
_MOST_WAITING = 2000  # alerts; far more than there are databases
_MOMENT = TypeAdapter[datetime](Moment)


class Seen(BaseModel):
    """A concern that was seen before: since when, and whether it was told, or waits to be."""

    first: Moment
    told: bool = False
    happened: str
    database: str | None
    may_end: bool
    backup: str = ""


class Waiting(BaseModel):
    """An alert that not everyone has. `told` are the names of those who do, `reason` why not the others."""

    alert: Alert
    told: list[str] = []
    reason: str = ""

    @field_validator("alert")
    @classmethod
    def _since_a_time_of_ours(cls, alert: Alert) -> Alert:
        _MOMENT.validate_python(alert.since)
        return alert


class _State(BaseModel):
    seen: dict[str, Seen] = {}
    waiting: list[Waiting] = []


@dataclass
class Sent:
    """Whom something was told just now, and what could not be delivered, in words."""

    told: list[Alert] = field(default_factory=list)
    undelivered: list[str] = field(default_factory=list)


class Book:
    """The note of both, open for one look. Each alert is written down before it is sent."""

    def __init__(self, settings: Settings, path: Path) -> None:
        self._settings, self._path = settings, path
        self.fault: DiskError | None = None  # why it cannot be kept, if it could not the last time
        state = _read(path)
        self.seen, self._waiting = state.seen, state.waiting
        self._names = [receiver.name for receiver in receivers(settings)]

    @property
    def has_receivers(self) -> bool:
        return bool(self._names)

    def add(self, alert: Alert) -> bool:
        """Something to be told, to everyone, after what waits already. False where too much waits: then it is
        not in the book, and must not be taken for told."""
        if len(self._waiting) >= _MOST_WAITING:
            return False
        self._waiting.append(Waiting(alert=alert))
        return True

    def send(self) -> Sent:
        """Tells what waits, the oldest first. Who could not be reached is not tried again this time, since
        it takes half a minute to find a server down; and keeps nothing from the others."""
        sent, down = Sent(), set[str]()
        self.keep()
        for each in list(self._waiting):
            missing = set(self._names) - set(each.told)
            if missing - down:
                self._tell(each, down, sent)
            if set(self._names) <= set(each.told):
                self._waiting.remove(each)
            if missing - down or not missing:
                self.keep()
        return sent

    def _tell(self, each: Waiting, down: set[str], sent: Sent) -> None:
        try:
            told = deliver(self._settings, each.alert, but={*each.told, *down})
        except DeliveryFailed as failed:
            told, each.reason = failed.told, failed.message
            sent.undelivered.append(failed.message)
            down |= set(self._names) - {*each.told, *told}
        each.told += told
        sent.told += [each.alert] if told else []

    def keep(self) -> None:
        """Writes it down, whole or as it was; `fault` says why it could not be."""
        state, beside = _State(seen=self.seen, waiting=self._waiting), self._path.with_suffix(".new")
        try:
            beside.unlink(missing_ok=True)
            with new_file(beside) as file:
                file.write(state.model_dump_json(indent=1).encode())
            beside.replace(self._path)
        except OSError as error:
            self.fault, _unkept[self._path] = disk_error(f"writing {self._path}", error), state
        else:
            self.fault = None
            _unkept.pop(self._path, None)


_unkept: dict[Path, _State] = {}
"""What could not be written down; newer than what is."""


@contextmanager
def opened(settings: Settings) -> Iterator[Book]:
    """The book, kept when the block ends; others wait for their turn, where there is a disk to agree on."""
    with ExitStack() as turn:
        with suppress(DiskError):  # as the book finds too, and says
            turn.enter_context(one_at_a_time(settings.backup_dir, "watch"))
        book = Book(settings, settings.backup_dir / _STATE)
        book.keep()
        yield book
        book.keep()


def waiting(settings: Settings) -> list[str]:
    """The alerts that somebody has not got yet, and why, in words."""
    return [
        f"not delivered yet: {each.alert.subject}" + (f" ({each.reason})" if each.reason else "")
        for each in _read(settings.backup_dir / _STATE).waiting
    ]


def _read(path: Path) -> _State:
    """Nothing where it cannot be read: better told twice than never."""
    if path in _unkept:
        return _unkept[path].model_copy(deep=True)
    with suppress(OSError, ValidationError):
        refuse_links(path)
        return _State.model_validate_json(path.read_bytes())
    return _State()
