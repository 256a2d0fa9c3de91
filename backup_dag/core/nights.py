"""Which backup is due when: the nights, in the settings' zone, and which of them went without one.

Pure: it is handed the clock and the days that have a backup. A day is the calendar's in that zone, 23 to
25 hours long; its backup is due at BACKUP_TIME, and after its end one made for it is late: what it holds is
the state of when it was made.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from backup_dag.core.in_words import length
from backup_dag.core.settings import Settings

WINDOW = timedelta(hours=6)
"""For how long after it was due a scheduled backup counts as the night's."""

PATIENCE = timedelta(hours=1)
"""How long after it was due a backup is looked for before it counts as missed: a run takes its time."""

SLACK = timedelta(hours=2)
"""By how much a backup may be older than the RPO: one a night is a day and its own length apart, and an hour
more where clocks are put back."""

CLOCKS_APART = timedelta(hours=1)
"""By how much a backup may be dated ahead of this machine's clock; beyond that, a clock is wrong."""

LOOK_BACK = timedelta(days=7)
"""How far back days without a backup are looked for."""


@dataclass(frozen=True)
class Night:
    """One day's backup: when it is due, and when the day ends. Both in UTC."""

    day: date
    due: datetime
    ends: datetime

    def reason_outside(self, snapshot: datetime) -> str:
        """Why a snapshot is not this night's, in words; "" where it lies in its window."""
        if snapshot < self.due:
            return f"{length(self.due - snapshot)} before it was due"
        if snapshot >= self.ends:
            return f"{length(snapshot - self.ends)} after its day had ended"
        if snapshot > self.due + WINDOW:
            return f"{length(snapshot - self.due)} after it was due"
        return ""


def night(settings: Settings, day: date) -> Night:
    """A day's night. A time that a clock change leaves out is taken an hour later, as a cron does; of one
    that comes twice, the first."""
    due = datetime.combine(day, settings.backup_time, settings.zone)
    ends = datetime.combine(day + timedelta(days=1), time(), settings.zone)
    return Night(day, due.astimezone(UTC), ends.astimezone(UTC))


def today(settings: Settings, now: datetime) -> date:
    return now.astimezone(settings.zone).date()


def is_late(settings: Settings, day: date, now: datetime) -> bool:
    """Whether a backup made now for that day holds another day's state."""
    return now >= night(settings, day).ends


def can_still_be_captured(settings: Settings, day: date, now: datetime) -> bool:
    """Whether a backup of now still means something for that day: up to BACKUP_LATE_GRACE after its end."""
    return now < night(settings, day).ends + settings.backup_late_grace


@dataclass(frozen=True)
class Missed:
    """Days without a backup, oldest first: those that can still be captured, and those that cannot."""

    to_capture: tuple[date, ...]
    lost: tuple[date, ...]


def missed(settings: Settings, captured: Collection[date], now: datetime) -> Missed:
    """Which days went without a backup, looking back a week, and no further than the first that has one.

    Where nothing was ever captured, nothing has been missed: the first night is still to come.
    """
    if not captured:
        return Missed((), ())
    without = days_without(settings, captured, min(captured), now, LOOK_BACK)
    can = [day for day in without if can_still_be_captured(settings, day, now)]
    return Missed(tuple(can), tuple(day for day in without if day not in can))


_A_DRILL_EVERY = {"nightly": timedelta(days=1), "weekly": timedelta(days=7), "monthly": timedelta(days=31)}


def drill_is_due(settings: Settings, last: datetime | None, now: datetime) -> bool:
    """Whether a night's run should drill, by when something was proven last. An hour of the night is no
    matter: half a day early counts."""
    every = _A_DRILL_EVERY.get(settings.backup_drill)
    return every is not None and (last is None or now - last > every - timedelta(hours=12))


def longest_without_drill(settings: Settings) -> timedelta | None:
    """After what time without any somebody should be told. None: drills are off."""
    every = _A_DRILL_EVERY.get(settings.backup_drill)
    return every + max(every / 4, timedelta(days=2)) if every else None


def is_quiet(settings: Settings, now: datetime) -> bool:
    """Whether it is in BACKUP_QUIET_HOURS, in the settings' zone."""
    begin, end = settings.backup_quiet_hours
    at = now.astimezone(settings.zone).time()
    return begin <= at < end if begin <= end else at >= begin or at < end


def days_without(
    settings: Settings, captured: Collection[date], begun: date, now: datetime, back: timedelta
) -> list[date]:
    """The days that are none of the captured, oldest first: `back` from today, no further than the day that
    it was begun, and only those whose backup should be there by now."""
    last = today(settings, now)
    first = max(begun, last - back, settings.backup_start_date)
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    return [day for day in days if day not in captured and now >= night(settings, day).due + PATIENCE]
