"""Retention: golden calendars, reviewed by eye; promises attacked with made-up backups; a year of nights."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from backup_dag.core.keeping.retention import Candidate, Policy, Verdict, decide
from backup_dag.core.manifest import ASIDE, BackupId, Reason
from backup_dag.core.settings import Settings

BERLIN = ZoneInfo("Europe/Berlin")
USUAL = Policy(days=30, daily=7, weekly=4, monthly=12, yearly=0, safety_days=30, zone=ZoneInfo("UTC"))
NOW = datetime(2026, 3, 14, 3, 0, tzinfo=UTC)


def backup(time: datetime, reason: Reason | None = "scheduled", **known: bool | str) -> Candidate:
    made = None if reason is None else time
    return Candidate(BackupId.of("orders", time), reason, made, **known)  # type: ignore[arg-type]


def kept(candidates: Iterable[Candidate], policy: Policy, now: datetime) -> set[BackupId]:
    return {verdict.id for verdict in decide(candidates, policy, now) if verdict.keep}


# -- golden calendars: one case a file; the head says policy and now, each line a backup and its verdict

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(GOLDEN.glob("retention_*.txt"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_calendar_is_the_golden_one(path: Path) -> None:
    """To see a change by eye: the failure shows the calendar as it is now."""
    text = path.read_text()
    assert calendar(text) == text


def test_there_are_golden_calendars() -> None:
    assert len(CASES) >= 6


def calendar(text: str) -> str:
    """The text with its verdicts made anew."""
    head = [line for line in text.splitlines() if line.startswith("#")]
    said = dict(word.split("=") for line in head for word in line.split() if "=" in word)
    zone, now = ZoneInfo(said.pop("zone")), datetime.fromisoformat(said.pop("now"))
    policy = Policy(**{name: int(number) for name, number in said.items()}, zone=zone)
    found = {str(each.id): each for each in map(read, text.splitlines()[len(head) :])}
    lines = list(head)
    for verdict in decide(found.values(), policy, now):
        words = facts(found[str(verdict.id)])
        fate = "keep  " if verdict.keep else "remove"
        lines.append(f"{verdict.id}  {words:<24}  {fate}  {'; '.join(verdict.reasons)}")
    return "\n".join(lines) + "\n"


def read(line: str) -> Candidate:
    id, *words = line.partition("  keep ")[0].partition("  remove ")[0].split()
    parsed = BackupId.parse(id)
    assert parsed is not None
    reason, flags = words[0], set(words[1:])
    made = next((datetime.fromisoformat(flag[5:]) for flag in flags if flag.startswith("made=")), parsed.time)
    return Candidate(
        parsed,
        reason=None if reason == "unreadable" else reason,  # type: ignore[arg-type]
        made=None if reason == "unreadable" else made,
        good=reason != "unreadable" and "bad" not in flags,
        proven="proven" in flags,
        bound="held: somebody is reading it" if "held" in flags else "",
    )


def facts(candidate: Candidate) -> str:
    words: list[str] = [candidate.reason or "unreadable"]
    words += ["bad"] if candidate.reason and not candidate.good else []
    words += ["proven"] if candidate.proven else []
    words += ["held"] if candidate.bound else []
    if candidate.made and candidate.made != candidate.id.time:
        words.append(f"made={candidate.made:%Y-%m-%dT%H:%M}Z")
    return " ".join(words)


# -- properties

REASONS: Sequence[Reason | None] = ["scheduled", "manual", "late", "pre_restore", "drill", None]


@st.composite
def some_backups(draw: st.DrawFn) -> list[Candidate]:
    """Backups of two years around NOW, some of them in the future, some with clocks that disagree."""
    hours = draw(st.lists(st.integers(-30 * 24, 700 * 24), max_size=60, unique=True))
    return [draw(a_backup(NOW - timedelta(hours=ago))) for ago in hours]


@st.composite
def a_backup(draw: st.DrawFn, time: datetime) -> Candidate:
    reason = draw(st.sampled_from(REASONS))
    good = reason is not None and draw(st.sampled_from([True, True, True, False]))
    apart = draw(st.sampled_from([0, 0, 0, 0, -400 * 24, 5, 40 * 24]))
    return Candidate(
        BackupId.of("orders", time),
        reason,
        made=None if reason is None else time + timedelta(hours=apart),
        good=good,
        proven=good and draw(st.booleans()),
        bound=draw(st.sampled_from(["", "", "", "held"])),
    )


policies = st.builds(
    Policy,
    days=st.integers(1, 60),
    daily=st.integers(0, 10),
    weekly=st.integers(0, 6),
    monthly=st.integers(0, 14),
    yearly=st.integers(0, 3),
    safety_days=st.integers(1, 60),
    zone=st.sampled_from([ZoneInfo("UTC"), BERLIN, ZoneInfo("America/New_York"), ZoneInfo("Asia/Beirut")]),
)
many = how(deadline=None, max_examples=120)


@given(some_backups(), policies)
@many
def test_every_backup_has_a_verdict_with_a_reason(backups: list[Candidate], policy: Policy) -> None:
    verdicts = decide(backups, policy, NOW)
    assert sorted(verdict.id for verdict in verdicts) == sorted(each.id for each in backups)
    assert all(verdict.reasons and all(verdict.reasons) for verdict in verdicts)
    assert [verdict.id.stamp for verdict in verdicts] == sorted((v.id.stamp for v in verdicts), reverse=True)


@given(some_backups(), policies)
@many
def test_what_must_stay_stays(backups: list[Candidate], policy: Policy) -> None:
    assert_what_must_stay_stays(backups, policy, NOW)


def assert_what_must_stay_stays(backups: Sequence[Candidate], policy: Policy, now: datetime) -> None:
    stays = kept(backups, policy, now)
    past = [each for each in backups if max(each.id.time, each.made or each.id.time) <= now]
    nights = [each for each in past if each.reason is not None and each.reason not in ASIDE]
    must = [each for each in backups if each.bound or each.reason is None or each not in past]
    must += [each for each in past if now - each.id.time < timedelta(days=policy.days)]
    must += [
        each
        for each in past
        if each.reason == "pre_restore" and now - each.id.time < timedelta(days=policy.safety_days)
    ]
    must += newest(each for each in nights if each.good)
    must += newest(each for each in nights if each.proven)
    must += newest(each for each in past if each.good)
    if not any(each.good for each in past):
        must += newest(past)
    assert {each.id for each in must} <= stays


def newest(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda each: each.id.stamp)[-1:]


@given(some_backups(), policies)
@many
def test_the_newest_good_one_of_each_period_stays_and_a_bad_one_takes_no_place(
    backups: list[Candidate], policy: Policy
) -> None:
    """Told in another way than the code does it: by grouping, not by walking."""
    stays = kept(backups, policy, NOW)
    good = [c for c in backups if c.good and c.reason not in ASIDE and c.latest_time <= NOW]
    for count, period in (
        (policy.daily, lambda local: local.date()),
        (policy.weekly, lambda local: local.isocalendar()[:2]),
        (policy.monthly, lambda local: (local.year, local.month)),
        (policy.yearly, lambda local: local.year),
    ):
        groups: dict[object, list[Candidate]] = {}
        for each in good:
            groups.setdefault(period(each.id.time.astimezone(policy.zone)), []).append(each)
        for group in sorted(groups, reverse=True)[:count]:  # type: ignore[type-var]
            assert {each.id for each in newest(groups[group])} <= stays


@given(some_backups(), policies)
@many
def test_what_goes_has_no_right_to_stay(backups: list[Candidate], policy: Policy) -> None:
    """Not everything is kept: what stays beyond the young, the bound and the newest fits the calendar."""
    days = max(policy.days, policy.safety_days)
    old = [c for c in backups if c.reason and not c.bound and timedelta(days=days) <= NOW - c.latest_time]
    places = policy.daily + policy.weekly + policy.monthly + policy.yearly
    assert len(kept(backups, policy, NOW) & {each.id for each in old}) <= 2 * places + 4
    aside = {each.id for each in old if each.reason in ASIDE}
    assert len(kept(backups, policy, NOW) & aside) <= 2, "no good one is newer; the newest there is"


@given(some_backups(), policies)
@many
def test_what_stayed_stays_when_asked_again(backups: list[Candidate], policy: Policy) -> None:
    stays = kept(backups, policy, NOW)
    left = [each for each in backups if each.id in stays]
    assert kept(left, policy, NOW) == stays


@given(some_backups(), policies, st.integers(-30 * 24, 700 * 24), st.data())
@many
def test_one_more_backup_removes_none_that_is_newer(
    backups: list[Candidate], policy: Policy, ago: int, data: st.DataObject
) -> None:
    added = data.draw(a_backup(NOW - timedelta(hours=ago, minutes=30)))
    before, after = kept(backups, policy, NOW), kept([*backups, added], policy, NOW)
    assert {id for id in before if id.stamp > added.id.stamp} <= after


@given(some_backups(), policies, policies)
@many
def test_a_larger_number_in_the_policy_removes_no_more(
    backups: list[Candidate], one: Policy, other: Policy
) -> None:
    numbers = ("days", "daily", "weekly", "monthly", "yearly", "safety_days")
    larger = replace(one, **{name: max(getattr(one, name), getattr(other, name)) for name in numbers})
    assert kept(backups, one, NOW) <= kept(backups, larger, NOW)


@given(some_backups(), policies, st.integers(0, 800 * 24))
@many
def test_a_clock_that_went_backwards_removes_nothing(
    backups: list[Candidate], policy: Policy, hours: int
) -> None:
    assert kept(backups, policy, NOW) <= kept(backups, policy, NOW - timedelta(hours=hours))


# -- single rules that a random search meets rarely


def test_late_captures_count_at_the_time_of_their_snapshot() -> None:
    late = [backup(NOW - timedelta(days=40, hours=hours), "late") for hours in (1, 2, 3)]
    verdicts = decide(late, replace(USUAL, daily=5), NOW)
    assert [verdict.keep for verdict in verdicts] == [True, False, False], "three captures of one day"


def test_a_day_is_a_day_of_the_zone() -> None:
    """23:30 and 00:30 in Berlin are one day in UTC."""
    times = [datetime(2026, 1, 9, 22, 30, tzinfo=UTC), datetime(2026, 1, 9, 23, 30, tzinfo=UTC)]
    policy = replace(USUAL, daily=7, weekly=0, monthly=0)
    assert len(kept([backup(time) for time in times], policy, NOW)) == 1
    assert len(kept([backup(time) for time in times], replace(policy, zone=BERLIN), NOW)) == 2


def test_an_outage_does_not_drain_what_is_there() -> None:
    """Two years without a backup: the last nights before it stay."""
    nights = [backup(NOW - timedelta(days=n)) for n in range(60)]
    at_the_end = kept(nights, USUAL, NOW)
    assert len(at_the_end & kept(nights, USUAL, NOW + timedelta(days=730))) == 7 + 3 + 1


def test_a_server_whose_clock_is_years_behind_loses_no_fresh_backup() -> None:
    fresh = Candidate(BackupId.of("orders", datetime(2001, 1, 1, tzinfo=UTC)), "scheduled", made=NOW)
    assert kept([fresh, backup(NOW)], USUAL, NOW) == {fresh.id, backup(NOW).id}


def test_a_name_may_hold_any_year() -> None:
    first = BackupId("orders", "00010101_000000")
    last = BackupId("orders", "99991231_235959")
    found = [Candidate(first, "manual"), Candidate(last, "manual"), backup(NOW)]
    for zone in ("America/New_York", "Pacific/Kiritimati"):
        verdicts = decide(found, replace(USUAL, zone=ZoneInfo(zone)), NOW)
        assert [verdict.keep for verdict in verdicts] == [True, True, True]


def test_no_backups_no_verdicts() -> None:
    assert decide([], USUAL, NOW) == []


def test_the_policy_is_that_of_the_settings(settings: Settings) -> None:
    assert Policy.of(settings) == USUAL
    assert Policy.of(settings.model_copy(update={"backup_timezone": "Europe/Berlin"})).zone == BERLIN
    assert USUAL.only(3) == Policy(3, 0, 0, 0, 0, 30, ZoneInfo("UTC"))


# -- a year of nights


@pytest.mark.parametrize("seed", range(4))
def test_over_a_year_of_nights_the_promises_hold_and_what_stays_is_bounded(seed: int) -> None:
    chance = random.Random(seed)
    policy = replace(USUAL, yearly=2, zone=BERLIN)
    there: dict[BackupId, Candidate] = {}
    most = 0
    for night in range(400):
        now = datetime(2026, 1, 1, 2, 0, tzinfo=UTC) + timedelta(days=night, minutes=chance.randrange(50))
        for made in nights_work(chance, now):
            there[made.id] = made
        there |= {each.id: each for each in found_out(chance, list(there.values()))}
        verdicts = decide(there.values(), policy, now)
        assert_what_must_stay_stays(list(there.values()), policy, now)
        gone = [verdict.id for verdict in verdicts if not verdict.keep]
        assert_gone_with_reason(gone, there, now)
        for id in gone:
            del there[id]
        assert not [verdict for verdict in decide(there.values(), policy, now) if not verdict.keep]
        most = max(most, len(there))
    assert len(there) >= policy.days // 2
    young_a_night = 2.2  # nights' own, late captures and safety backups together
    assert most <= policy.days * young_a_night + 2 * (7 + 4 + 12 + 2) + 4
    months = {f"{id.time.astimezone(BERLIN):%Y-%m}" for id, each in there.items() if each.good}
    assert len(months) >= 12, "a year can be gone back"


def nights_work(chance: random.Random, now: datetime) -> Iterable[Candidate]:
    """What one night brings: mostly a backup; sometimes none, a late one as well, or a restore's."""
    if chance.random() < 0.08:  # the daemon was down
        return
    if chance.random() < 0.05:
        yield backup(now - timedelta(minutes=9), "late")
    if chance.random() < 0.05:
        yield backup(now - timedelta(minutes=6), "pre_restore")
    if chance.random() < 0.05:
        yield backup(now - timedelta(minutes=3), "drill")
    if chance.random() < 0.93:
        yield backup(now, good=chance.random() < 0.9)


def found_out(chance: random.Random, there: Sequence[Candidate]) -> Iterable[Candidate]:
    """What later checks say: a drill proves the newest now and then, and a disk spoils an old one."""
    if there and chance.random() < 0.05:
        latest = max(there, key=lambda each: each.id.stamp)
        yield replace(latest, proven=latest.good)
    if there and chance.random() < 0.02:
        yield replace(chance.choice(there), good=False, proven=False)


def assert_gone_with_reason(
    gone: Sequence[BackupId], there: dict[BackupId, Candidate], now: datetime
) -> None:
    """Nothing young goes, and a good one only where a good one of its month is newer."""
    for id in gone:
        assert now - id.time >= timedelta(days=30)
        month = f"{id.time.astimezone(BERLIN):%Y-%m}"
        if there[id].good and there[id].regular and now - id.time < timedelta(days=300):
            newer = [c for c in there.values() if c.good and c.regular and c.id.stamp > id.stamp]
            assert month in {f"{c.id.time.astimezone(BERLIN):%Y-%m}" for c in newer}


def test_verdicts_are_values() -> None:
    assert decide([backup(NOW)], USUAL, NOW) == [
        Verdict(
            backup(NOW).id,
            True,
            (
                "the newest good one",
                "the newest good one of the day 2026-03-14, the week 2026-W11, the month 2026-03",
                "younger than 30 days",
            ),
        )
    ]
