"""Which backup is due when: over clock changes both ways, a change of zone, and nights without a daemon."""

import itertools
from datetime import UTC, date, datetime, time, timedelta

import pytest

from backup_dag.core.backup import order_for
from backup_dag.core.errors import GuardRefused
from backup_dag.core.nights import Missed, can_still_be_captured, is_late, missed, night, today
from backup_dag.core.settings import Settings
from tests.conftest import database

ZONES = ("Europe/Berlin", "America/New_York")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def in_zone(settings: Settings, zone: str, hour: int = 2, minute: int = 0) -> Settings:
    return settings.model_copy(update={"backup_timezone": zone, "backup_time": time(hour, minute)})


@pytest.mark.parametrize(
    ("zone", "day", "due", "hours"),
    [
        ("Europe/Berlin", date(2026, 3, 28), "2026-03-28T01:30Z", 24),
        ("Europe/Berlin", date(2026, 3, 29), "2026-03-29T01:30Z", 23),  # 02:30 does not exist: 03:30
        ("Europe/Berlin", date(2026, 10, 25), "2026-10-25T00:30Z", 25),  # 02:30 comes twice: the first
        ("America/New_York", date(2026, 3, 8), "2026-03-08T07:30Z", 23),
        ("America/New_York", date(2026, 11, 1), "2026-11-01T07:30Z", 25),  # 01:30 is what comes twice there
        ("UTC", date(2026, 3, 29), "2026-03-29T02:30Z", 24),
    ],
)
def test_a_day_has_one_night_whatever_the_clocks_do(
    settings: Settings, zone: str, day: date, due: str, hours: int
) -> None:
    ours = in_zone(settings, zone, 2, 30)
    found = night(ours, day)
    assert found.due == at(due.replace("Z", "+00:00"))
    assert found.ends - night(ours, day - timedelta(days=1)).ends == timedelta(hours=hours)
    assert today(ours, found.due) == day


@pytest.mark.parametrize("zone", ZONES)
def test_nights_follow_each_other_for_two_years(settings: Settings, zone: str) -> None:
    ours = in_zone(settings, zone)
    nights = [night(ours, date(2026, 1, 1) + timedelta(days=n)) for n in range(730)]
    for before, after in itertools.pairwise(nights):
        assert before.due < before.ends <= after.due < after.ends
        assert timedelta(hours=23) <= after.due - before.due <= timedelta(hours=25)


def test_late_begins_with_the_end_of_the_day_and_ends_with_the_grace(settings: Settings) -> None:
    ours, day = in_zone(settings, "Europe/Berlin"), date(2026, 3, 29)
    ends = at("2026-03-29T22:00+00:00")
    second = timedelta(seconds=1)
    assert (is_late(ours, day, ends - second), is_late(ours, day, ends)) == (False, True)
    last = ends + timedelta(hours=36)
    assert can_still_be_captured(ours, day, last - second)
    assert not can_still_be_captured(ours, day, last)
    shop = database("postgresql://nobody@localhost/shop")
    assert order_for(shop, ours, day, now=ends - second).reason == "manual"
    assert order_for(shop, ours, day, scheduled=True, now=ends - second).reason == "scheduled"
    assert order_for(shop, ours, day, scheduled=True, now=ends).reason == "late"
    with pytest.raises(GuardRefused, match="cannot be made any more"):
        order_for(shop, ours, day, now=last)
    assert order_for(shop, ours, day, allow_late=True, now=last).reason == "late"
    with pytest.raises(GuardRefused, match="not come yet"):
        order_for(shop, ours, day + timedelta(days=1), allow_late=True, now=ends - second)


def test_a_daemon_that_was_down_for_three_nights(settings: Settings) -> None:
    captured = {date(2026, 5, day) for day in range(1, 11)}  # and then nothing on the 11th, 12th and 13th
    up = at("2026-05-13T10:00+00:00")
    assert missed(settings, captured, up) == Missed(
        (date(2026, 5, 11), date(2026, 5, 12), date(2026, 5, 13)), ()
    )
    assert missed(settings, captured, up + timedelta(hours=2)) == Missed(
        (date(2026, 5, 12), date(2026, 5, 13)), (date(2026, 5, 11),)
    )
    everything = captured | {date(2026, 5, day) for day in (11, 12, 13)}
    assert missed(settings, everything, up) == Missed((), ())


def test_a_night_that_is_still_young_is_not_missed(settings: Settings) -> None:
    captured = {date(2026, 5, 10)}
    assert missed(settings, captured, at("2026-05-11T02:59+00:00")) == Missed((), ())
    assert missed(settings, captured, at("2026-05-11T03:00+00:00")).to_capture == (date(2026, 5, 11),)


def test_what_is_long_past_or_never_began_is_not_missed(settings: Settings) -> None:
    now = at("2026-05-20T12:00+00:00")
    assert missed(settings, set(), now) == Missed((), ())
    assert missed(settings, {date(2026, 5, 20)}, now) == Missed((), ())
    found = missed(settings, {date(2026, 1, 1)}, now)
    assert found.lost == tuple(date(2026, 5, day) for day in range(13, 19))
    assert found.to_capture == (date(2026, 5, 19), date(2026, 5, 20))


def test_a_change_of_zone_loses_no_day(settings: Settings) -> None:
    """From New York to Berlin: the new zone's days are asked for, and one that has a backup has it."""
    captured = {date(2026, 5, day) for day in range(1, 11)}
    now = at("2026-05-10T23:30+00:00")  # the 11th in Berlin already, half past one
    assert missed(in_zone(settings, "America/New_York"), captured, now) == Missed((), ())
    assert missed(in_zone(settings, "Europe/Berlin"), captured, now) == Missed((), ())
    assert missed(in_zone(settings, "Europe/Berlin"), captured, now + timedelta(hours=3)).to_capture == (
        date(2026, 5, 11),
    )


def test_whether_a_snapshot_lies_in_its_night_is_said_in_words(settings: Settings) -> None:
    found = night(settings, date(2026, 5, 10))
    assert found.reason_outside(found.due + timedelta(hours=6)) == ""
    assert found.reason_outside(found.due - timedelta(minutes=5)) == "5 min before it was due"
    assert "after it was due" in found.reason_outside(found.due + timedelta(hours=7))
    assert "2 h after its day had ended" in found.reason_outside(found.ends + timedelta(hours=2))
