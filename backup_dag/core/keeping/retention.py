"""Which backups stay, and which may go: a policy, applied to what is known of each. Pure.

It knows no store and has no clock of its own. What is not a backup's name, or is of a database that is
not configured, is not asked about here: whoever calls must have left it alone already.

What is promised (tests/core/test_retention.py tries to break each):

* What it keeps, it keeps when asked again after the rest was removed.
* A backup that is added removes none that is newer than itself.
* A larger number in the policy removes no more.
* An earlier `now` removes no more: a clock that went backwards removes nothing. What is dated in the
  future then stays, and takes no place from what is not.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from backup_dag.core.manifest import ASIDE, BackupId, Reason
from backup_dag.core.settings import Settings

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Policy:
    """Everything younger than `days`, and the newest of each of the last so many days, weeks (ISO 8601),
    months and years that have a backup. `zone` is where these begin and end."""

    days: int
    daily: int
    weekly: int
    monthly: int
    yearly: int
    safety_days: int
    zone: ZoneInfo

    @classmethod
    def of(cls, settings: Settings) -> "Policy":
        """The full policy: that of the bucket, and of a folder without one."""
        return cls(
            days=settings.backup_retention_days,
            daily=settings.backup_keep_daily,
            weekly=settings.backup_keep_weekly,
            monthly=settings.backup_keep_monthly,
            yearly=settings.backup_keep_yearly,
            safety_days=settings.backup_safety_days,
            zone=settings.zone,
        )

    def only(self, days: int) -> "Policy":
        """The same without a calendar, for a store that another one stands behind."""
        return replace(self, days=days, daily=0, weekly=0, monthly=0, yearly=0)


@dataclass(frozen=True)
class Candidate:
    """What retention must know of a backup.

    `reason` is None where its manifest cannot be read. `made` is when, by the backup host's clock; the id
    has the time by the database server's. `bound` says, in words, what forbids its removal whatever the
    policy says: it is in use, or not ours.
    """

    id: BackupId
    reason: Reason | None
    made: datetime | None = None
    good: bool = True
    proven: bool = False
    bound: str = ""

    @property
    def latest_time(self) -> datetime:
        """Its time by whichever of the two clocks makes it younger: one of them may have been wrong."""
        return max(self.id.time, self.made or self.id.time)

    @property
    def regular(self) -> bool:
        """Whether it may stand for its day, good or not."""
        return self.reason is not None and self.reason not in ASIDE


@dataclass(frozen=True)
class Verdict:
    """`reasons` are in words; there is always one."""

    id: BackupId
    keep: bool
    reasons: tuple[str, ...]


def decide(candidates: Iterable[Candidate], policy: Policy, now: datetime) -> list[Verdict]:
    """The verdict on each of one database's backups, the newest first."""
    newest_first = sorted(candidates, key=lambda candidate: candidate.id.stamp, reverse=True)
    reasons: dict[BackupId, list[str]] = defaultdict(list)
    past = [candidate for candidate in newest_first if candidate.latest_time <= now]
    for candidate, why in [*_newest(past), *_calendar(past, policy)]:
        reasons[candidate.id].append(why)
    for candidate in newest_first:
        reasons[candidate.id] += _of_itself(candidate, policy, now)
    return [
        Verdict(each.id, True, tuple(reasons[each.id]))
        if reasons[each.id]
        else Verdict(each.id, False, (_why_not(each, policy),))
        for each in newest_first
    ]


def _of_itself(candidate: Candidate, policy: Policy, now: datetime) -> Iterator[str]:
    """What keeps it, whatever else there is."""
    age = now - candidate.latest_time
    if candidate.bound:
        yield candidate.bound
    if candidate.reason is None:
        yield "its manifest cannot be read"
    if age < timedelta(0):
        yield "dated in the future: a clock is or was wrong"
    elif age < timedelta(days=policy.days):
        yield f"younger than {_days(policy.days)}"
    elif candidate.reason == "pre_restore" and age < timedelta(days=policy.safety_days):
        yield f"a restore's safety backup, younger than {_days(policy.safety_days)}"


def _newest(past: Sequence[Candidate]) -> Iterator[tuple[Candidate, str]]:
    """What keeps it because nothing newer is as good. The last two matter where nights have failed for
    long: there, a safety backup or a bad one may be the closest there is to today."""
    good = _first(past, lambda each: each.regular and each.good)
    if good:
        yield good, "the newest good one"
    if proven := _first(past, lambda each: each.regular and each.proven):
        yield proven, "the newest proven one"
    closest = _first(past, lambda each: each.good)
    if closest and closest is not good:
        yield closest, "no good one is newer"
    last = _first(past, lambda each: each.reason is not None)
    if last and not last.good:
        yield last, "the newest there is, though not good"


def _first(past: Sequence[Candidate], fits: Callable[[Candidate], bool]) -> Candidate | None:
    return next((candidate for candidate in past if fits(candidate)), None)


_PERIODS: tuple[tuple[str, Callable[[Policy], int], Callable[[datetime], str]], ...] = (
    ("day", lambda policy: policy.daily, lambda local: f"{local:%Y-%m-%d}"),
    ("week", lambda policy: policy.weekly, lambda local: f"{local:%G-W%V}"),
    ("month", lambda policy: policy.monthly, lambda local: f"{local:%Y-%m}"),
    ("year", lambda policy: policy.yearly, lambda local: f"{local:%Y}"),
)


def _calendar(past: Sequence[Candidate], policy: Policy) -> Iterator[tuple[Candidate, str]]:
    """What keeps it because it stands for a period.

    Good ones are counted among themselves. A bad one has its place in a second count, of good and bad: a
    check may have been wrong, and then it stands where it would have stood, but in nobody's place.
    """
    regular = [candidate for candidate in past if candidate.regular]
    for candidate, periods in _standing([each for each in regular if each.good], policy):
        yield candidate, f"the newest good one of {periods}"
    for candidate, periods in _standing(regular, policy):
        if not candidate.good:
            yield candidate, f"the newest one of {periods}, though not good"


def _standing(newest_first: Sequence[Candidate], policy: Policy) -> Iterator[tuple[Candidate, str]]:
    """Which of them are their periods' newest, and of which periods."""
    periods: dict[Candidate, list[str]] = defaultdict(list)
    for period, count, name in _PERIODS:
        for candidate, which in _newest_of_each(newest_first, count(policy), name, policy):
            periods[candidate].append(f"the {period} {which}")
    for candidate, names in periods.items():
        yield candidate, ", ".join(names)


def _newest_of_each(
    newest_first: Sequence[Candidate], count: int, name: Callable[[datetime], str], policy: Policy
) -> Iterator[tuple[Candidate, str]]:
    """The newest of each of the last `count` periods that have one."""
    seen: set[str] = set()
    for candidate in newest_first:
        # no zone can tell the local time of the year 1, which a name may hold
        which = name(max(candidate.id.time, _EPOCH).astimezone(policy.zone))
        if which not in seen and len(seen) < count:
            seen.add(which)
            yield candidate, which


def _why_not(candidate: Candidate, policy: Policy) -> str:
    if candidate.reason == "pre_restore":
        return f"a restore's safety backup, older than {_days(max(policy.days, policy.safety_days))}"
    if candidate.reason == "drill":
        return f"a drill's backup, older than {_days(policy.days)}"
    what = "" if candidate.good else "not good, "
    if not any(count(policy) for _, count, _ in _PERIODS):
        return f"{what}older than {_days(policy.days)}"
    return f"{what}older than {_days(policy.days)}, and not the newest of a period that is kept"


def _days(count: int) -> str:
    return "1 day" if count == 1 else f"{count} days"
