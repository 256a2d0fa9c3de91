"""Where one stands: each statement by itself, and what is not known rather than guessed."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from PIL import Image
from pydantic import SecretStr

from backup_dag.core import history
from backup_dag.core.errors import BackupNotFound
from backup_dag.core.manifest import Encryption, Manifest
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import FOREVER, Listed
from backup_dag.core.store.local import LocalStore
from backup_dag.core.store.s3 import S3Store, connect
from backup_dag.core.watching import judged
from backup_dag.core.watching.page import COLUMNS, markdown, not_holding, remarks, row
from backup_dag.core.watching.picture import MOST, png
from backup_dag.core.watching.places import Place, machine_of, one_off_site, three_copies, two_media
from backup_dag.core.watching.posture import DatabasePosture, Posture
from backup_dag.core.watching.stocktaking import take_stock
from demo.servers import S3Server, free_port
from tests.cleaning import checked
from tests.core.made import FINGERPRINT
from tests.nights import at, fill, made, of_shop

NOW = at(10, 9)
ELSEWHERE = "s3.eu-central-1.amazonaws.com"
PLAIN = Encryption(mode="off", cipher=None, key_fingerprints=[])


@pytest.fixture
def shop(settings: Settings) -> Settings:
    return of_shop(settings)


@pytest.fixture
def local(shop: Settings) -> LocalStore:
    shop.backup_dir.mkdir(exist_ok=True)
    return LocalStore(shop.backup_dir)


@pytest.fixture
def off_site(shop: Settings, bucket: str, s3: S3Server) -> Settings:
    """The shop, with a bucket. It is served by this machine, as its address says."""
    return shop.model_copy(update={"aws_s3_bucket": bucket, "aws_endpoint_url_s3": s3.endpoint})


def everything(settings: Settings, now: datetime = NOW) -> Posture:
    return take_stock(settings, now)[0]


def of(settings: Settings, now: datetime = NOW, name: str = "shop") -> DatabasePosture:
    [found] = [each for each in everything(settings, now).databases if each.database == name]
    return found


def holds(found: DatabasePosture) -> dict[str, bool | None]:
    return {name: verdict.holds for name, verdict in found.verdicts.items()}


def ten_nights(stores: list[Any], work: Path) -> list[Manifest]:
    nights = [made(at(day)) for day in range(1, 11)]
    fill(stores, work, nights)
    return nights


def recovered(settings: Settings, what: history.What, **seconds: float) -> None:
    history.record(settings.backup_dir, what, "shop", backup="backup_shop_x", seconds=seconds)
    path = settings.backup_dir / ".restores.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1]["time"] = (NOW - timedelta(hours=1)).isoformat()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


# newest good, newest proven, RPO


def test_the_newest_good_and_the_newest_proven_with_their_ages(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    nights = ten_nights([local], work)
    local.put_note(nights[4].id.file("verify.json"), checked(nights[4], "restore"))
    local.put_note(nights[9].id.file("verify.json"), checked(nights[9], "content", ["rows of t"]))
    found = of(shop)
    assert found.newest_good is not None
    assert found.newest_proven is not None
    assert (found.newest_good.backup, found.newest_good.age_seconds) == (nights[8].backup, 31 * 3600)
    assert (found.newest_proven.backup, found.newest_proven.age_seconds) == (nights[4].backup, 127 * 3600)
    assert (found.proven, found.retained, found.proven_percent) == (1, 10, 10.0)
    assert found.verdicts["proof"].holds


@pytest.mark.parametrize(("hours", "met"), [(26.0, True), (26.001, False)])
def test_the_rpo_is_met_up_to_a_nights_own_length(
    shop: Settings, local: LocalStore, work: Path, hours: float, met: bool
) -> None:
    fill([local], work, [made(at(9))])
    verdict = of(shop, at(9) + timedelta(hours=hours)).verdicts["rpo"]
    assert (verdict.holds, verdict.said) == (met, "the newest good backup is 26 h old, 24 h are allowed")


def test_where_there_is_no_backup_nothing_is_good_and_no_day_is_missing(shop: Settings) -> None:
    found = of(shop)
    assert (found.newest_good, found.newest_proven, found.days_missing, found.retained) == (None, None, [], 0)
    assert found.proven_percent is None
    assert holds(found) == {
        "rpo": False,
        "rto": None,
        "copies": False,
        "media": False,
        "off_site": False,
        "proof": False,
        "intact": None,
        "days": None,
        "encryption": None,
        "immutability": False,
    }


def test_what_is_dated_in_the_future_is_not_the_newest_and_is_told(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    ahead, little = made(at(12)), made(NOW + timedelta(minutes=30))
    fill([local], work, [made(at(9)), ahead], "restore")
    found = of(shop)
    assert found.newest_good is not None
    assert found.newest_good.backup == found.newest_proven.backup == made(at(9)).backup  # type: ignore[union-attr]
    assert found.dated_ahead == 1
    assert "shop: 1 dated in the future, which count for no newest one" in remarks(everything(shop))
    fill([local], work, [little])
    newest = of(shop).newest_good
    assert newest is not None
    assert (newest.backup, newest.age_seconds) == (little.backup, 0), "clocks may be apart by so much"


def test_a_safety_backup_stands_for_no_night(shop: Settings, local: LocalStore, work: Path) -> None:
    fill([local], work, [made(at(9)), made(at(10, 8), reason="pre_restore")], "restore")
    found = of(shop)
    assert found.newest_good is not None
    assert found.newest_good.backup == made(at(9)).backup
    assert (found.proven, found.retained, found.calendar[-2:]) == (1, 1, "●·")


# Copies intact, and the user's own checks


def test_a_copy_that_is_not_what_it_was_is_said_whatever_else_is_well(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    nights = ten_nights([local], work)
    assert of(shop).verdicts["intact"].holds
    local.put_note(nights[9].id.file("verify.json"), checked(nights[9], "restore", ["rows of t"]))
    local.put_note(nights[8].id.file("verify.json"), checked(nights[8], faults=["a byte"]))
    verdict = of(shop).verdicts["intact"]
    assert verdict.holds is False
    assert f"{nights[9].backup} did not come back as it was backed up: rows of t" in verdict.said
    assert "1 more" in verdict.said
    assert "keep the other copy" in verdict.advice


def test_what_the_last_drill_asked_for_the_user_is_said(shop: Settings, local: LocalStore) -> None:
    assert "own_checks" not in of(shop).verdicts
    for failed, holds in (({}, True), ({"young_orders": "it returned no rows"}, False)):
        history.record(shop.backup_dir, "drill", "shop", backup="b", seconds={}, asked=1, failed=failed)
        assert of(shop).verdicts["own_checks"].holds is holds
    assert "young_orders" in of(shop).verdicts["own_checks"].said


# RTO


def test_a_recovery_that_was_never_measured_is_not_known_to_be_fast_enough(shop: Settings) -> None:
    found = of(shop)
    assert (found.last_recovery, found.verdicts["rto"].holds) == (None, None)
    assert "never measured" in found.verdicts["rto"].said


def test_a_drill_goes_before_a_restore_and_each_counts_its_own_steps(
    shop: Settings, local: LocalStore
) -> None:
    recovered(shop, "drill", fetch=1, verify=2, decrypt=3, load=4, index=5, prove=6, start=1000)
    recovered(shop, "restore", verify=10, safety=5000, load=90, analyze=9, build=100, prove=20, swap=1)
    found = of(shop)
    assert [(each.what, each.seconds) for each in found.recoveries] == [("drill", 21), ("restore", 131)]
    assert found.last_recovery == found.recoveries[0]
    assert found.verdicts["rto"].said == "the last recovery took 21 s, 2 h are allowed"


@pytest.mark.parametrize(("seconds", "met"), [(7200, True), (7201, False)])
def test_the_rto_is_what_the_last_recovery_may_take(
    shop: Settings, local: LocalStore, seconds: float, met: bool
) -> None:
    recovered(shop, "restore", build=1)
    recovered(shop, "restore", build=seconds)
    assert of(shop).verdicts["rto"].holds is met


def test_a_recovery_of_the_future_is_none(shop: Settings, local: LocalStore) -> None:
    recovered(shop, "restore", build=1)
    assert of(shop, NOW - timedelta(days=1)).recoveries == []


# three copies, two media, one off-site


def place(what: str, machine: str | None) -> Place:
    return Place(what=what, address=f"/{what}", machine=machine)


HERE = "this machine"
DB_HERE, DB_FAR, DB_LOST = place("database", HERE), place("database", "db1"), place("database", None)
FOLDER, BUCKET, BUCKET_HERE = place("local", HERE), place("s3", ELSEWHERE), place("s3", HERE)


@pytest.mark.parametrize(
    ("places", "three", "two", "one"),
    [
        ([DB_FAR, FOLDER, BUCKET], True, True, True),
        ([DB_HERE, FOLDER, BUCKET], True, True, True),
        ([DB_HERE, FOLDER, BUCKET_HERE], True, False, False),
        ([DB_FAR, FOLDER, BUCKET_HERE], True, True, False),
        ([DB_FAR, FOLDER, place("s3", "db1")], True, True, False),
        ([DB_HERE, FOLDER], False, False, False),
        ([DB_FAR, FOLDER], False, True, False),
        ([DB_LOST, FOLDER], False, None, False),
        ([DB_LOST, BUCKET], False, None, True),
        ([DB_HERE], False, False, False),
    ],
)
def test_which_of_the_three_hold(places: list[Place], three: bool, two: bool | None, one: bool) -> None:
    assert three_copies(places, True, ()).holds is three
    assert two_media(places, True, ()).holds is two
    assert one_off_site(places, True, ()).holds is one


def test_what_was_not_asked_can_only_add_to_the_three() -> None:
    places, away = [DB_HERE, FOLDER], ["s3"]
    for found in (
        three_copies(places, True, away),
        two_media(places, True, away),
        one_off_site(places, True, away),
    ):
        assert found.holds is None
        assert "s3 did not answer" in found.said
        assert "AWS_S3_BUCKET" not in found.advice, "there is a bucket"
    assert "AWS_S3_BUCKET" in one_off_site(places, False, ()).advice


def test_a_database_that_is_not_known_here_may_be_a_copy_more() -> None:
    assert three_copies([FOLDER, BUCKET], False, ()).holds is None
    assert two_media([FOLDER], False, ()).holds is None


@pytest.mark.parametrize(
    ("host", "machine"),
    [
        ("", HERE),
        ("localhost", HERE),
        ("127.0.1.1", HERE),
        ("::1", HERE),
        ("/var/run/postgresql", HERE),
        ("DB1.example.com", "db1.example.com"),
        ("10.0.0.3", "10.0.0.3"),
        (None, None),
    ],
)
def test_the_machine_is_told_by_the_address(host: str | None, machine: str | None) -> None:
    assert machine_of(host) == machine


def test_a_bucket_of_this_machine_is_not_off_site_and_one_elsewhere_is(
    off_site: Settings, local: LocalStore, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ten_nights([local, S3Store(connect(off_site), off_site)], work)
    found = of(off_site)
    assert [(each.what, each.machine) for each in found.places] == [
        ("database", HERE),
        ("local", HERE),
        ("s3", HERE),
    ]
    assert [holds(found)[each] for each in ("copies", "media", "off_site")] == [True, False, False]
    assert "lost with what it backs up" in found.verdicts["off_site"].said
    monkeypatch.setattr(S3Store, "host", ELSEWHERE)
    found = of(off_site)
    assert [holds(found)[each] for each in ("copies", "media", "off_site")] == [True, True, True]
    assert ELSEWHERE in found.verdicts["off_site"].said


def test_a_damaged_copy_is_none(off_site: Settings, local: LocalStore, work: Path) -> None:
    store = S3Store(connect(off_site), off_site)
    *_, newest = ten_nights([local, store], work)
    store.put_note(newest.id.file("verify.json"), checked(newest, "content", ["rows of t"]))
    found = of(off_site)
    assert [each.what for each in found.places] == ["database", "local"]
    assert found.verdicts["off_site"].said == "the newest good backup has no good copy in the bucket"


# days


def test_the_days_without_a_good_backup_are_named(shop: Settings, local: LocalStore, work: Path) -> None:
    fill([local], work, [made(at(day)) for day in (1, 2, 4, 5, 6, 8, 9)])
    fill([local], work, [made(at(7))], None)
    local.put_note(made(at(7)).id.file("verify.json"), checked(made(at(7)), faults=["rows of t"]))
    missing = [date(2025, 5, day) for day in (3, 7, 10)]
    found = of(shop)
    assert (found.days_missing, found.strip[-10:]) == (missing, "○○·○○○!○○·")
    assert found.verdicts["days"].said == "3 days have no good backup: 2025-05-03, 2025-05-07, 2025-05-10"
    assert of(shop, at(10, 2.5)).days_missing == missing[:-1], "the night has just begun"


def test_a_day_is_the_calendars_in_the_settings_zone(shop: Settings, local: LocalStore, work: Path) -> None:
    ours = shop.model_copy(update={"backup_timezone": "Pacific/Auckland"})
    fill([local], work, [made(at(8, 14), day=date(2025, 5, 9))])
    assert of(ours, at(9, 12.5)).days_missing == [], "half past midnight of the tenth"
    assert of(ours, at(9, 15.5)).days_missing == [date(2025, 5, 10)]
    assert of(ours, at(9, 15.5)).last_day == date(2025, 5, 10)


def test_no_day_is_missed_that_the_policy_may_have_removed(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    fill([local], work, [made(at(1)), made(at(9)), made(at(10))])
    assert len(of(shop).days_missing or ()) == 7
    found = of(shop.model_copy(update={"backup_retention_days": 4}))
    assert (found.days_missing, found.window_days) == ([date(2025, 5, 7), date(2025, 5, 8)], 4)


@hypothesis(max_examples=25, deadline=None)
@given(
    nights=st.dictionaries(
        st.integers(-40, 12), st.sampled_from([None, "content", "restore", "bad"]), max_size=12
    ),
    hour=st.floats(0, 23.9),
    retention=st.integers(1, 60),
)
def test_whatever_there_is_the_numbers_stay_within_their_bounds(
    tmp_path_factory: pytest.TempPathFactory, nights: dict[int, Any], hour: float, retention: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    ours = of_shop(
        Settings.model_construct(
            **{name: field.default for name, field in Settings.model_fields.items()}
            | {"backup_dir": folder / "backups", "backup_retention_days": retention}
        )
    )
    store, now = LocalStore(ours.backup_dir), at(10, hour)
    store.folder.mkdir()
    for day, level in nights.items():
        fill([store], folder / "work", [made(at(day))], None if level == "bad" else level)
        if level == "bad":
            store.put_note(made(at(day)).id.file("verify.json"), checked(made(at(day)), faults=["x"]))
    found = of(ours, now)
    assert found.retained == len(nights)
    assert 0 <= (found.proven or 0) <= len(nights)
    assert found.proven_percent is None or 0 <= found.proven_percent <= 100
    assert (found.proven_percent == 100) == (bool(nights) and found.proven == found.retained)
    days = found.days_missing or []
    assert days == sorted(set(days))
    assert all(found.last_day - timedelta(days=min(30, retention)) < day <= found.last_day for day in days)
    assert not {at(day).date() for day, level in nights.items() if level != "bad"} & set(days)
    assert (len(found.calendar), len(found.strip)) == (91, 30)
    for aged in filter(None, (found.newest_good, found.newest_proven)):
        assert aged.age_seconds >= 0
        assert aged.snapshot_time <= now + timedelta(hours=1)


# encryption, locks


def test_the_newest_ones_encryption_and_how_many_have_none(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    fill([local], work, [made(at(8)).model_copy(update={"encryption": PLAIN}), made(at(9))])
    found = of(shop)
    assert (found.encryption, found.unencrypted) == (made(at(9)).encryption, 1)
    assert found.verdicts["encryption"].said == "the newest good backup is encrypted, 1 other is not"
    fill([local], work, [made(at(10)).model_copy(update={"encryption": PLAIN})])
    found = of(shop)
    assert found.unencrypted == 2
    assert found.verdicts["encryption"].said == "the newest good backup is NOT encrypted"


def test_a_newest_one_that_nothing_here_opens_is_not_as_it_should_be(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    fill([local], work, [made(at(9))])
    changed = shop.model_copy(update={"backup_encryption_key": SecretStr("another: it was changed at once")})
    found = of(changed).verdicts["encryption"]
    assert found.holds is False
    assert FINGERPRINT in found.said
    assert "BACKUP_ENCRYPTION_OLD_KEY" in found.advice


def test_a_lock_is_told_with_its_end(s3: S3Server, off_site: Settings, bucket: str, work: Path) -> None:
    s3.create_bucket(f"{bucket}-locking", object_lock=True)
    days = {"backup_s3_object_lock_mode": "COMPLIANCE", "backup_s3_object_lock_days": 2}
    ours = off_site.model_copy(update={"aws_s3_bucket": f"{bucket}-locking"})
    locking = S3Store(connect(ours), ours.model_copy(update=days))
    fill([S3Store(connect(ours), ours)], work, [made(at(8))])
    found = of(ours)
    assert (found.locked_until, found.verdicts["immutability"].holds) == (None, False)
    fill([locking], work, [made(at(9))])
    found = of(ours)
    assert found.locked_until is not None
    assert found.locked_until == locking.locked_until(made(at(9)).artifact.name)
    assert found.verdicts["immutability"].holds
    assert row(found)[-1] == f"{found.locked_until:%Y-%m-%d}"


def test_a_lock_that_may_not_be_seen_is_not_known(
    s3: S3Server, off_site: Settings, bucket: str, work: Path
) -> None:
    store = S3Store(connect(off_site), off_site)
    fill([store], work, [made(at(9))])
    assert of(off_site).verdicts["immutability"].holds is False
    denied = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:GetObjectRetention"],
        "Resource": f"arn:aws:s3:::{bucket}/*",
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [denied]})
    s3.client().put_bucket_policy(Bucket=bucket, Policy=policy)
    found = of(off_site)
    assert (found.locked_until, found.verdicts["immutability"].holds) == (None, None)
    assert "s3:GetObjectRetention" in found.verdicts["immutability"].advice
    assert judged.lock(FOREVER, shown=True).said.endswith("without an end")


# what is not known


def test_what_a_store_would_say_that_does_not_answer_is_not_known(
    off_site: Settings, local: LocalStore, work: Path
) -> None:
    """But for what can only be better with it: an RPO that is met is met."""
    fill([local], work, [made(at(day)) for day in (7, 8, 10)], "restore")
    ours = off_site.model_copy(update={"aws_endpoint_url_s3": f"http://127.0.0.1:{free_port()}"})
    found, missed = take_stock(ours, NOW)
    [shop] = found.databases
    assert [each.retryable for each in missed] == [True]
    assert list(found.away) == shop.not_asked == ["s3"]
    unknown = (shop.retained, shop.proven, shop.proven_percent, shop.days_missing, shop.unencrypted)
    assert unknown == (None,) * 5
    assert holds(shop) == {
        "rpo": True,
        "rto": None,
        "copies": None,
        "media": None,
        "off_site": None,
        "proof": True,
        "intact": None,
        "days": None,
        "encryption": None,
        "immutability": None,
    }
    assert of(ours, at(13)).verdicts["rpo"].holds is None
    assert row(shop)[1:3] == ["7 h?", "7 h?"]
    assert "not asked: s3" in markdown(found)


def test_where_no_store_answers_nothing_is_known_and_nothing_raised(shop: Settings) -> None:
    shop.backup_dir.write_text("no folder")
    found, missed = take_stock(shop, NOW)
    assert [each.exit_code for each in missed] == [9]
    [one] = found.databases
    assert (one.newest_good, one.retained, one.verdicts["rpo"].holds) == (None, None, None)
    assert row(one)[1:3] == ["?", "?"]


def test_a_faulty_database_is_looked_at_by_its_name_and_its_fault_is_told(
    shop: Settings, tmp_path: Path, local: LocalStore, work: Path
) -> None:
    (tmp_path / "backup.toml").write_text('[databases.crm]\nurl_env = "NOBODY_SET_THIS"\n')
    ours = shop.model_copy(update={"backup_config": tmp_path / "backup.toml"})
    fill([local], work, [made(at(10), name="crm")])
    found = everything(ours)
    assert [each.database for each in found.databases] == ["shop", "crm"]
    assert "NOBODY_SET_THIS" in found.faults["crm"]
    crm = found.databases[1]
    assert (crm.verdicts["rpo"].holds, crm.verdicts["copies"].holds) == (True, None)
    assert [each.what for each in crm.places] == ["local"]


def test_on_a_bare_server_it_is_those_that_there_are_backups_of(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    fill([local], work, [made(at(9)), made(at(10), name="shop_old")])
    ours = shop.model_copy(update={"database_url": None})
    found = everything(ours)
    assert [each.database for each in found.databases] == ["shop", "shop_old"]
    assert [each.retained for each in found.databases] == [1, 1], "one name begins with the other"
    assert "no database is configured" in found.faults["configuration"]
    ours = shop.model_copy(update={"database_url": SecretStr("nonsense")})
    assert [each.database for each in everything(ours).databases] == ["shop", "shop_old"]


def test_one_that_nobody_knows_is_an_error(shop: Settings, local: LocalStore, work: Path) -> None:
    fill([local], work, [made(at(9), name="old")])
    [old] = take_stock(shop, NOW, "old")[0].databases
    assert old.newest_good is not None, "not configured any more, and there"
    with pytest.raises(BackupNotFound, match="no database is called 'none'"):
        take_stock(shop, NOW, "none")


def test_a_manifest_that_nobody_can_read_is_a_failure_of_its_day(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    fill([local], work, [made(at(9)), made(at(10))])
    (local.folder / made(at(10)).id.file("json")).write_text("{")
    found = of(shop)
    assert (found.retained, found.strip[-2:], found.days_missing) == (1, "○!", [date(2025, 5, 10)])


def test_two_hundred_backups_cost_two_listings_and_two_documents_each(
    shop: Settings, local: LocalStore, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill([local], work, [made(NOW - timedelta(hours=n)) for n in range(200)])
    asked: list[str] = []
    listing, reading = LocalStore.list, LocalStore.read

    def listed(self: LocalStore, beginning: str = "") -> Iterator[Listed]:
        asked.append("list")
        return listing(self, beginning)

    def read(self: LocalStore, name: str) -> bytes:
        asked.append("read")
        return reading(self, name)

    monkeypatch.setattr(LocalStore, "list", listed)
    monkeypatch.setattr(LocalStore, "read", read)
    assert of(shop).retained == 200
    assert (asked.count("list"), asked.count("read")) == (2, 400)


# in words, and drawn


def test_the_page_has_a_row_for_each_the_picture_and_what_does_not_hold(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    ten_nights([local], work)
    found = everything(shop)
    page = markdown(found, "data:image/png;base64,AAAA")
    assert f"| {' | '.join(COLUMNS)} |" in page
    assert "| shop | 7 h | none | ✓ | ? | 3✗ 2✗ 1✗ | 0 of 10 | 0 | ✓ | ✗ |" in page
    assert "![the last weeks of each database, and its recovery times](data:image/png;base64,AAAA)" in page
    assert "- **✗ 1 off-site (shop)**: no bucket is set  \n  → set AWS\\_S3\\_BUCKET" in page
    assert "of 10 statements on one database 4 hold, 5 do not, 1 not known" in page


def test_the_same_of_several_is_said_once(shop: Settings, local: LocalStore) -> None:
    found = everything(shop)
    [one] = found.databases
    many = [one.model_copy(update={"database": f"d{n}"}) for n in range(10)]
    told = list(not_holding(found.model_copy(update={"databases": many})))
    assert len(told) == 10
    assert told[0][0] == "✗ RPO (d0, d1, d2, d3, d4, d5, d6, d7 and 2 more)"


def test_no_text_of_others_is_markup_of_ours(shop: Settings, local: LocalStore) -> None:
    found = everything(shop).model_copy(update={"away": {"s3": "<script>|[x](y)\n# z"}})
    assert "(\\<script>\\|\\[x\\](y) # z)" in markdown(found)


@pytest.mark.parametrize(("count", "rows"), [(0, 1), (1, 1), (3, 3), (MOST + 5, MOST)])
def test_the_picture_is_a_png_of_a_size_that_dagster_can_keep(
    shop: Settings, local: LocalStore, work: Path, count: int, rows: int
) -> None:
    ten_nights([local], work)
    recovered(shop, "drill", load=30)
    recovered(shop, "restore", build=0.01)
    found = everything(shop)
    [one] = found.databases
    many = [one.model_copy(update={"database": f"$d_{n}^"}) for n in range(count)]
    drawn = png(found.model_copy(update={"databases": many}))
    image = Image.open(io.BytesIO(drawn))
    assert image.format == "PNG"
    assert image.width == 960
    assert image.height == pytest.approx(110 + 145 * rows, abs=2)
    assert len(drawn) < 200_000


def test_a_verb_does_not_load_what_draws() -> None:
    code = "import sys, backup_dag.cli.main; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
