"""Whoever has to know is told once, at the right hour, and once more when it is well: by real receivers."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest
from apprise import NotifyBase
from pydantic import SecretStr

from backup_dag.core import history
from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.errors import DeliveryFailed, IntegrityError
from backup_dag.core.keeping.cleanup import Leave, clean_up
from backup_dag.core.key import passphrase_fingerprint
from backup_dag.core.manifest import Manifest, named_for
from backup_dag.core.settings import Settings
from backup_dag.core.store.local import LocalStore
from backup_dag.core.store.s3 import S3Store, connect
from backup_dag.core.verify import examine, made_check, record
from backup_dag.core.watching import alerts, delivery, telling
from backup_dag.core.watching.alerts import Alert
from backup_dag.core.watching.concern import Concern
from backup_dag.core.watching.concerns import concerns
from backup_dag.core.watching.watch import beat, look, tell, waiting
from demo.servers import S3Server, free_port
from tests.cleaning import checked, ids
from tests.conftest import KEY, Here, Terminal
from tests.core.made import FINGERPRINT
from tests.nights import PASSWORD, TWO, at, fill, made, of_shop
from tests.test_alerts import Mailbox, by_mail, by_urls, mail_server
from tests.web import Web

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
ON_TIME = timedelta(hours=26)  # the RPO, and what a night takes itself


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No courtesy between tries: the servers are ours."""
    monkeypatch.setattr(NotifyBase, "request_rate_per_sec", 0)
    monkeypatch.setattr(delivery, "_SECONDS_BETWEEN", 0.02)
    monkeypatch.setattr(alerts, "_SECONDS_BETWEEN_PINGS", 0.02)


@pytest.fixture
def shop(settings: Settings) -> Settings:
    return of_shop(settings)


@pytest.fixture
def told(shop: Settings, web: Web) -> Settings:
    """The shop, with somebody to be told."""
    return by_urls(shop, address(web))


@pytest.fixture
def local(shop: Settings) -> LocalStore:
    shop.backup_dir.mkdir(exist_ok=True)
    return LocalStore(shop.backup_dir)


@pytest.fixture
def off_site(told: Settings, bucket: str, s3: S3Server) -> Settings:
    return told.model_copy(update={"aws_s3_bucket": bucket, "aws_endpoint_url_s3": s3.endpoint})


def address(web: Web) -> str:
    return f"json://127.0.0.1:{web.port}/"


def unplugged(settings: Settings) -> Settings:
    """The same, with a bucket that has stopped answering."""
    return settings.model_copy(update={"aws_endpoint_url_s3": f"http://127.0.0.1:{free_port()}"})


def heard(web: Web) -> list[str]:
    """The subjects that arrived."""
    return [json.loads(body)["title"] for _, _, body in web.requests]


def found(settings: Settings, now: datetime, name: str = "shop") -> list[Concern]:
    return list(concerns(settings, Catalog(open_stores(settings)), name, now))


def kinds(settings: Settings, now: datetime) -> list[str]:
    return [each.kind for each in found(settings, now)]


def seven_nights(local: LocalStore, work: Path, **how: Any) -> None:
    """Those of the 3rd to the 9th, read to their ends."""
    fill([local], work, [made(at(day), **how) for day in range(3, 10)])


def under(passphrase: SecretStr, manifest: Manifest) -> Manifest:
    key = [passphrase_fingerprint(passphrase.get_secret_value())]
    return manifest.model_copy(
        update={"encryption": manifest.encryption.model_copy(update={"key_fingerprints": key})}
    )


# when there is something to tell


def test_what_no_passphrase_here_opens_is_told_and_an_old_one_ends_it(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    seven_nights(local, work)
    changed = shop.model_copy(update={"backup_encryption_key": SecretStr("another: it was changed at once")})
    [unopened] = found(changed, at(9, 3))
    assert (unopened.kind, unopened.database) == ("unopened", "shop")
    assert FINGERPRINT in unopened.happened
    assert "BACKUP_ENCRYPTION_OLD_KEY" in unopened.advice
    assert "7 of the last 7 good backups" in unopened.happened
    fill([local], work, [under(SecretStr("another: it was changed at once"), made(at(10)))])
    [still] = found(changed, at(10, 3))
    assert (still.kind, "7 of the last 8" in still.happened) == ("unopened", True)
    rotated = changed.model_copy(update={"backup_encryption_old_key": SecretStr(KEY)})
    assert found(rotated, at(10, 3)) == []
    lost = changed.model_copy(update={"backup_encryption_key_file": local.folder / "none"})
    assert kinds(lost, at(10, 3)) == ["unopened"]
    bare = shop.model_copy(update={"backup_encryption_key": None})
    assert found(bare, at(10, 3)) == [], "a machine that only looks needs no passphrase"


def test_a_shop_whose_nights_are_as_they_should_be_is_no_concern(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    seven_nights(local, work)
    for hour in (2, 9, 25.5):
        assert found(shop, at(9, hour)) == []


def test_overdue_is_what_is_older_than_the_rpo_and_a_nights_own_length(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    seven_nights(local, work)
    assert found(shop, at(9) + ON_TIME) == []
    [overdue] = found(shop, at(9) + ON_TIME + SECOND)
    assert (overdue.kind, overdue.since) == ("overdue", at(9) + timedelta(hours=24))
    assert overdue.happened == "the newest good backup of shop is 26 h old, 24 h are allowed"


def test_where_there_is_no_backup_at_all_that_is_said_at_once_and_no_night_is_lost(shop: Settings) -> None:
    [none] = found(shop, at(9))
    assert (none.kind, none.happened) == ("overdue", "there is no good backup of shop")


def test_a_backup_that_is_damaged_protects_from_nothing(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    fill([local], work, [made(at(8)), made(at(9))])
    local.put_note(made(at(9)).id.file("verify.json"), checked(made(at(9)), faults=["rows of t differ"]))
    [damaged] = found(shop, at(9, 4))
    assert (damaged.kind, "rows of t differ" in damaged.happened) == ("damaged", True)
    assert kinds(shop, at(8) + ON_TIME + SECOND) == ["overdue", "damaged"]


def test_a_backup_that_did_not_come_back_is_told_as_that_and_not_as_damage(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    fill([local], work, [made(at(8)), made(at(9))])
    record(local, made(at(9)), made_check("restore", 3.0, ["table public.t has 3 rows, 4 were backed up"]))
    [unproven] = found(shop, at(9, 4))
    assert (unproven.kind, unproven.backup) == ("unproven", made(at(9)).backup)
    assert "table public.t has 3 rows" in unproven.happened
    record(local, made(at(9)), made_check("restore", 3.0, []))
    assert found(shop, at(9, 4)) == []


def test_what_a_drill_here_found_out_is_told_where_it_stands_beside_no_copy(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    """Of a backup that is long past, say, or where the store may only be read."""
    seven_nights(local, work)
    about: dict[str, Any] = {"backup": made(at(9)).backup, "store": "local", "seconds": {}}
    history.record(shop.backup_dir, "drill", "shop", **about, faults=["table public.t has 3 rows"])
    [unproven] = found(shop, at(9, 4))
    assert (unproven.kind, unproven.backup) == ("unproven", made(at(9)).backup)
    assert "table public.t has 3 rows" in unproven.happened
    history.record(shop.backup_dir, "drill", "shop", **{**about, "store": "s3"}, faults=["gone since"])
    assert len(found(shop, at(9, 4))) == 1
    artifact = local.folder / made(at(9)).artifact.name
    later = (datetime.now(UTC) + 2 * HOUR).timestamp()
    os.utime(artifact, (later, later))
    assert found(shop, at(9, 4)) == [], "it was removed, and put there again since"
    os.utime(artifact)
    record(local, made(at(9)), made_check("restore", 3.0, ["table public.t has 3 rows"]))
    assert kinds(shop, at(9, 4)) == ["unproven"]
    record(local, made(at(9)), made_check("restore", 3.0, []))
    assert found(shop, at(9, 4)) == []


def test_a_copy_that_has_lost_its_manifest_is_told(shop: Settings, local: LocalStore, work: Path) -> None:
    seven_nights(local, work)
    local.remove(made(at(8)).id.file("json"))
    [damaged] = [each for each in found(shop, at(9, 4)) if each.kind == "damaged"]
    assert f"a copy of {made(at(8)).id} has lost its manifest" in damaged.happened
    local.put_note(made(at(8)).id.file("going.json"), "{}")
    assert "damaged" not in kinds(shop, at(9, 4)), "a clean-up takes it away"


def test_a_rekey_that_was_interrupted_is_told_after_a_while(
    told: Settings, local: LocalStore, work: Path, web: Web
) -> None:
    seven_nights(local, work)
    night = made(at(9))
    (local.folder / named_for(night.artifact.name, FINGERPRINT)).write_bytes(b"under another")
    [unfinished] = found(told, at(9, 4))
    assert (unfinished.kind, unfinished.patience) == ("unfinished", 6 * HOUR)
    assert named_for(night.artifact.name, FINGERPRINT) in unfinished.happened
    assert Catalog([local]).load(night.id).good


def test_another_servers_backup_of_the_same_name_is_not_told_as_damage(
    off_site: Settings, local: LocalStore, work: Path
) -> None:
    """Whoever followed the advice for damage would remove what may be its only copy."""
    bucket = S3Store(connect(off_site), off_site)
    night = made(at(9))
    other = night.model_copy(update={"server": night.server.model_copy(update={"system_identifier": "8"})})
    fill([local], work, [night])
    fill([bucket], work, [other])
    [unusable] = [each for each in found(off_site, at(9, 4)) if each.kind == "unusable"]
    assert "another backup of the same name, from the server 8" in unusable.happened
    assert unusable.advice.startswith("remove nothing of it")
    [_, copy] = Catalog(open_stores(off_site)).load(night.id).copies
    with pytest.raises(IntegrityError, match="another backup of the same name"):
        examine(off_site, copy, "checksum")
    assert Catalog([bucket]).load(night.id).good, "nothing is noted against it there"


def test_a_check_of_ones_own_is_wrong_until_the_next_drill(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    seven_nights(local, work)
    about: dict[str, Any] = {"backup": made(at(9)).backup, "store": "local", "seconds": {}}
    failed = {"young_orders": "it returned no rows"}
    history.record(shop.backup_dir, "drill", "shop", **about, asked=2, failed=failed)
    [own] = found(shop, at(9, 4))
    assert (own.kind, own.about, own.may_end) == ("own check", "young_orders", True)
    assert "your own check young_orders of it failed: it returned no rows" in own.happened
    history.record(shop.backup_dir, "drill", "shop", **about, asked=2)
    assert found(shop, at(9, 4)) == []


def test_that_nothing_was_proven_for_long_is_told_by_how_often_drills_are_meant_to_be(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    now, off, nightly = (
        datetime.now(UTC),
        shop.model_copy(update={"backup_drill": "off"}),
        shop.model_copy(update={"backup_drill": "nightly"}),
    )
    fill([local], work, [made(now - timedelta(days=60)), made(now)])
    assert "drill overdue" in kinds(shop, now)
    assert "drill overdue" not in kinds(off, now)
    history.record(shop.backup_dir, "drill", "other", backup="", seconds={"load": 1.0})
    assert "drill overdue" in kinds(shop, now)
    history.record(shop.backup_dir, "drill", "shop", backup="", seconds={"load": 1.0})
    assert "drill overdue" not in kinds(shop, now)
    assert "drill overdue" not in kinds(shop, now + timedelta(days=31 + 7))
    assert "drill overdue" in kinds(shop, now + timedelta(days=31 + 8))
    assert "drill overdue" in kinds(nightly, now + timedelta(days=4))


def test_unverified_is_what_was_not_read_hours_after_the_nightly_verification(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    fill([local], work, [made(at(9))])
    fill([local], work, [made(at(10))], level="checksum")
    limit = at(9) + timedelta(hours=24 + 1 + 5)
    assert found(shop, limit) == []
    [unverified] = found(shop, limit + SECOND)
    assert (unverified.kind, unverified.since) == ("unverified", limit)
    fill([local], work, [made(at(11))], level="checksum")
    assert kinds(shop, at(11) + ON_TIME + SECOND) == ["overdue", "unverified"]
    evening = shop.model_copy(update={"backup_verify_time": time(22, 0)})
    assert found(evening, at(11, 3)) == [], "its next verification is at ten in the evening"


def test_a_new_shop_has_until_after_its_first_verification(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    fill([local], work, [made(at(9, 10), reason="manual")], level=None)
    fill([local], work, [made(at(10))], level=None)
    assert found(shop, at(9, 10) + timedelta(hours=30)) == []
    assert kinds(shop, at(9, 10) + timedelta(hours=30) + SECOND) == ["unverified"]


def test_a_manifest_that_nobody_can_read_is_damage_and_makes_no_night(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    seven_nights(local, work)
    torn = made(at(9)).id.file("json")
    (shop.backup_dir / torn).write_text('{"schema_version": 1, "backup"')
    [damaged] = found(shop, at(9, 4))
    assert (damaged.kind, torn in damaged.happened) == ("damaged", True)
    assert kinds(shop, at(8) + ON_TIME + SECOND) == ["overdue", "damaged"]


@pytest.mark.parametrize(
    ("dump", "rows", "said"),
    [
        (500, 50, []),
        (499, 100, ["shrunk"]),
        (100, 0, ["shrunk"]),
        (3000, 300, []),
        (3001, 100, ["grown"]),
        (1, 301, ["shrunk", "grown"]),
    ],
)
def test_size_is_out_of_line_beyond_the_limits(
    shop: Settings, local: LocalStore, work: Path, dump: int, rows: int, said: list[str]
) -> None:
    seven_nights(local, work)
    fill([local], work, [made(at(10), dump=dump, rows=rows)])
    assert [(each.kind, each.about) for each in found(shop, at(10, 3))] == [("size", way) for way in said]


def test_a_night_is_lost_when_its_day_cannot_be_captured_any_more(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    fill([local], work, [made(at(7)), made(at(9)), made(at(10))])
    lost = at(9, 0) + timedelta(hours=36)  # the 8th has ended, and its grace too
    assert found(shop, lost - SECOND) == []
    [missed] = found(shop, lost)
    assert (missed.kind, missed.about, missed.since) == ("missed", "2025-05-08", lost)
    fill([local], work, [made(lost, day=date(2025, 5, 8), reason="late")])
    assert "missed" not in kinds(shop, lost), "allow_late_capture gave it one after all"


def test_what_was_to_be_undone_by_a_restore_makes_no_night(
    shop: Settings, local: LocalStore, work: Path
) -> None:
    fill([local], work, [made(at(8)), made(at(9), reason="pre_restore")])
    assert kinds(shop, at(8) + ON_TIME + SECOND) == ["overdue"]


def test_what_is_dated_in_the_future_hides_nothing(shop: Settings, local: LocalStore, work: Path) -> None:
    fill([local], work, [made(at(8)), made(at(300))])
    [ahead] = found(shop, at(8) + ON_TIME)
    said = f"{made(at(300)).backup} is dated in the future: a clock is wrong, or was"
    assert (ahead.kind, ahead.happened) == ("ahead", said)
    assert kinds(shop, at(8) + ON_TIME + SECOND) == ["overdue", "ahead"]
    none, _ = found(shop, at(1))
    assert none.happened.endswith("dated in the future: a clock is wrong, or was")
    assert "ahead" not in kinds(shop, at(300) - HOUR), "clocks are never quite the same"


def test_a_copy_that_is_not_in_the_bucket_after_two_hours_is_told(
    off_site: Settings, local: LocalStore, work: Path
) -> None:
    bucket = S3Store(connect(off_site), off_site)
    fill([local, bucket], work, [made(at(8))])
    fill([local], work, [made(at(9))])
    assert found(off_site, at(9) + TWO) == []
    [missing] = found(off_site, at(9) + TWO + SECOND)
    assert missing.happened == f"{made(at(9)).backup}, the latest backup, is not in the bucket"
    fill([bucket], work, [made(at(9))])
    assert found(off_site, at(9) + TWO + SECOND) == []


# told once, and once more


def test_each_is_told_once_and_once_more_when_it_is_well(
    told: Settings, web: Web, local: LocalStore, work: Path
) -> None:
    """Overdue, unverified, damaged and out of line: four troubles, and then the ends of all of them."""
    fill([local], work, [made(at(day)) for day in range(3, 9)])
    fill([local], work, [made(at(9))], level=None)
    torn = made(at(10), dump=1, rows=1)
    fill([local], work, [torn], level=None)
    local.put_note(torn.id.file("verify.json"), checked(torn, faults=["the rows of t"]))
    troubled = at(11, 12)
    for minutes in (0, 5, 10):
        look(told, troubled + timedelta(minutes=minutes))
    assert sorted(heard(web)) == [
        "shop: a backup is DAMAGED",
        "shop: a backup's SIZE is out of line",
        "shop: backup OVERDUE",
        "shop: the latest backup is NOT VERIFIED",
    ]
    web.requests.clear()
    fill([local], work, [made(at(11, 13))])
    local.put_note(torn.id.file("verify.json"), checked(torn))
    for minutes in (0, 5, 10):
        look(told, at(11, 13) + timedelta(minutes=minutes))
    assert heard(web) == ["shop: RECOVERED"] * 4


def test_an_alert_says_what_protects_and_what_to_do_and_no_secret(
    told: Settings, web: Web, local: LocalStore, work: Path
) -> None:
    seven_nights(local, work)
    look(told, at(10, 12))
    [(_, _, body)] = web.requests
    said = json.loads(body)["message"]
    assert "the newest good backup of shop is 34 h old" in said
    assert f"Still protected by: {made(at(9)).backup}, 34 h old, in local, read to its end" in said
    assert "What to do: backup-dag doctor, then backup-dag backup --database shop" in said
    assert PASSWORD not in str(web.requests) + (told.backup_dir / ".watch.json").read_text()


def test_what_is_still_wrong_is_said_with_what_is_well_again(
    told: Settings, web: Web, local: LocalStore, work: Path
) -> None:
    fill([local], work, [made(at(8))], level=None)
    look(told, at(10, 12))
    fill([local], work, [made(at(10, 13))], level=None)
    web.requests.clear()
    look(told, at(10, 13))
    [(_, _, body)] = web.requests
    assert json.loads(body)["title"] == "shop: RECOVERED"
    assert "this is still to be seen to: no backup of shop from the last 2 d" in json.loads(body)["message"]


def test_a_mail_is_sent_once_as_well(shop: Settings, local: LocalStore, work: Path) -> None:
    seven_nights(local, work)
    box = Mailbox()
    with mail_server(box) as port:
        for minute in (0, 5):
            look(by_mail(shop, port), at(10, 12) + timedelta(minutes=minute))
    assert [mail["Subject"] for _, mail in box.mails] == ["shop: backup OVERDUE"]


def test_a_lost_night_is_told_once_and_is_never_well_again(
    told: Settings, web: Web, local: LocalStore, work: Path
) -> None:
    """Not when it is out of sight after a week, nor when a clock that is put back brings it into it."""
    days = [day for day in range(3, 25) if day != 6]
    for day in days:
        fill([local], work, [made(at(day))])
        look(told, at(day, 13))
    look(told, at(10, 13))
    assert heard(web) == ["shop: a night was MISSED", "shop: a backup is DATED IN THE FUTURE"]
    assert "no backup for 2025-05-06, and none can be made any more" in str(web.requests)


def test_a_shop_that_stays_shrunk_is_told_of_once_and_is_well_again_when_somebody_accepts_it(
    told: Settings, web: Web, local: LocalStore, work: Path
) -> None:
    """And not because the nights before are soon as empty as the newest."""
    seven_nights(local, work)
    for day in range(10, 26):
        fill([local], work, [made(at(day), dump=10, rows=1)])
        look(told, at(day, 4))
    assert heard(web) == ["shop: a backup's SIZE is out of line"]
    clean_up(told, [local], ["shop"], Leave(dry_run=False, force=True), now=at(25, 5))
    look(told, at(25, 6))
    assert heard(web) == ["shop: a backup's SIZE is out of line", "shop: RECOVERED"]


def test_damage_that_is_out_of_sight_is_not_well(
    told: Settings, web: Web, local: LocalStore, work: Path
) -> None:
    seven_nights(local, work)
    artifact = told.backup_dir / made(at(9)).artifact.name
    artifact.write_bytes(b"short")
    for day in range(10, 21):
        fill([local], work, [made(at(day))])
        look(told, at(day, 4))
    assert heard(web) == ["shop: a backup is DAMAGED"]


def test_two_looks_at_once_tell_it_once(
    terminal: Callable[[str], Terminal], web: Web, local: LocalStore, work: Path
) -> None:
    """Three processes, begun together, of a shop without a backup."""
    ours = terminal(f"postgresql://shop:{PASSWORD}@127.0.0.1:1/shop")
    looking = [ours.start("watch", BACKUP_NOTIFY_URLS=address(web)) for _ in range(3)]
    ended = [process.communicate(timeout=60) for process in looking]
    assert [process.returncode for process in looking] == [0, 0, 0], ended
    assert heard(web) == ["shop: backup OVERDUE"]


def test_several_databases_are_each_told_of(
    told: Settings, web: Web, local: LocalStore, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = two_databases(told, work, monkeypatch)
    fill([local], work, [made(at(9))])
    fill([local], work, [made(at(10), name="stock")])
    look(both, at(10, 12))
    look(both, at(10, 13))
    assert heard(web) == ["shop: backup OVERDUE"]


def two_databases(settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return databases(settings, folder, ["stock"], monkeypatch)


def databases(
    settings: Settings, folder: Path, names: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """The shop, and others beside it."""
    folder.mkdir(exist_ok=True)
    config = folder / "backup.toml"
    config.write_text("".join(f'[databases.{each}]\nurl_env = "{each.upper()}_URL"\n' for each in names))
    for each in names:
        monkeypatch.setenv(f"{each.upper()}_URL", f"postgresql://{each}:{PASSWORD}@127.0.0.1:1/{each}")
    return settings.model_copy(update={"backup_config": config})


def test_a_database_that_is_no_longer_configured_is_not_told_to_be_well(
    told: Settings, web: Web, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(two_databases(told, work, monkeypatch), at(9))
    assert heard(web) == ["shop: backup OVERDUE", "stock: backup OVERDUE"]
    look(told, at(9, 3))
    assert len(heard(web)) == 2


def test_a_clock_that_was_ahead_keeps_no_trouble_from_being_told(
    off_site: Settings, web: Web, local: LocalStore, work: Path
) -> None:
    """It was seen first in a year that has not come."""
    seven_nights(local, work)
    ours = unplugged(off_site)
    look(ours, at(400))
    web.requests.clear()
    look(ours, at(9, 3))
    look(ours, at(9, 4) + SECOND)
    assert "backups: a place of backups is OUT OF REACH" in heard(web)


def test_a_database_that_is_set_up_wrongly_is_told_and_keeps_no_other_from_being_looked_at(
    told: Settings, web: Web, local: LocalStore, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = two_databases(told, work, monkeypatch)
    fill([local], work, [made(at(9), name="stock")])
    monkeypatch.delenv("STOCK_URL")
    for hour in (3, 4):
        look(both, at(9, hour))
    assert heard(web) == ["shop: backup OVERDUE", "stock: FAILED"]
    assert "the environment variable STOCK_URL is not set" in str(web.requests)
    wrong = both.model_copy(update={"database_url": SecretStr(f"postgresql://a:{PASSWORD}@[/shop")})
    look(wrong, at(9, 5))
    assert heard(web)[2:] == ["backups: FAILED"]
    monkeypatch.setenv("STOCK_URL", f"postgresql://stock:{PASSWORD}@127.0.0.1:1/stock")
    look(both, at(9, 6))
    assert sorted(heard(web)[3:]) == ["backups: RECOVERED", "shop: backup OVERDUE", "stock: RECOVERED"]
    assert PASSWORD not in str(web.requests)


# receivers that are down


def test_what_nobody_could_be_told_waits_is_seen_waiting_and_arrives(
    shop: Settings, web: Web, local: LocalStore, work: Path
) -> None:
    seven_nights(local, work)
    nobody = by_urls(shop, f"json://127.0.0.1:{free_port()}/")
    looked = look(nobody, at(10, 12))
    assert (looked.told, len(looked.undelivered)) == ([], 1)
    [said] = waiting(nobody)
    assert said.startswith("not delivered yet: shop: backup OVERDUE (")
    assert "Connection refused" in said
    look(nobody, at(10, 13))
    assert len(waiting(nobody)) == 1, "it waits once"
    somebody = by_urls(shop, address(web))
    look(somebody, at(10, 14))
    look(somebody, at(10, 15))
    assert (heard(web), waiting(somebody)) == (["shop: backup OVERDUE"], [])


def test_one_that_is_down_keeps_nothing_from_the_others_and_gets_it_later(
    shop: Settings, web: Web, local: LocalStore, work: Path
) -> None:
    seven_nights(local, work)
    late = Web()
    late.answers = [500] * 6 + [200]  # three tries at each of two looks
    try:
        ours = by_urls(shop, address(late), address(web))
        look(ours, at(10, 12))
        fill([local], work, [made(at(10, 13))])
        look(ours, at(10, 13))
        assert heard(web) == ["shop: backup OVERDUE", "shop: RECOVERED"]
        assert len(waiting(ours)) == 2
        late.requests.clear()
        look(ours, at(10, 14))
        look(ours, at(10, 15))
    finally:
        late.close()
    assert heard(late) == ["shop: backup OVERDUE", "shop: RECOVERED"]
    assert heard(web) == ["shop: backup OVERDUE", "shop: RECOVERED"], "nothing is told twice"


def test_what_happened_once_waits_too(shop: Settings, web: Web) -> None:
    alert = Alert("failed", "shop", "a run failed", at(9))
    nobody = by_urls(shop, f"json://127.0.0.1:{free_port()}/")
    [said] = tell(nobody, alert)
    assert "Connection refused" in said
    somebody = by_urls(shop, address(web))
    assert tell(somebody, Alert("failed", "shop", "another one", at(9, 3))) == []
    assert heard(web) == ["shop: FAILED", "shop: FAILED"]
    assert waiting(somebody) == []


def test_whoever_is_set_to_be_told_later_hears_of_what_is_wrong_then(
    shop: Settings, web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    assert [each.kind for each in look(shop, at(9)).concerns] == ["overdue"]
    assert look(shop, at(9, 3)).told == []
    assert tell(shop, Alert("failed", "shop", "a run failed", at(9))) == []
    assert "nobody is set to be told of this: shop: FAILED" in caplog.text
    look(by_urls(shop, address(web)), at(9, 4))
    assert heard(web) == ["shop: backup OVERDUE"]


@pytest.mark.parametrize("left", [b"", b'{"seen": {"overdue', b"\xff\xfe", b"[]"])
def test_a_note_that_was_torn_is_begun_anew(
    told: Settings, web: Web, local: LocalStore, work: Path, left: bytes
) -> None:
    """Better told twice than never."""
    seven_nights(local, work)
    note = told.backup_dir / ".watch.json"
    note.write_bytes(left)
    (told.backup_dir / ".watch.new").write_bytes(b"of one that was killed")
    look(told, at(10, 12))
    look(told, at(10, 13))
    assert heard(web) == ["shop: backup OVERDUE"]
    assert not (told.backup_dir / ".watch.new").exists()


def test_where_nothing_can_be_kept_all_is_told_and_that_too_once_by_a_process(
    told: Settings, web: Web
) -> None:
    told.backup_dir.write_text("not a folder")
    for minute in (0, 5, 10):
        looked = look(told, at(9) + timedelta(minutes=minute))
    assert heard(web) == ["backups: a place of backups is OUT OF REACH"]
    assert "so no backup can be made there" in str(web.requests)
    assert looked.unkept is not None
    said = tell(told, Alert("failed", "shop", "a run failed", at(9)))
    assert "Not a directory" in " ".join(said) or "File exists" in " ".join(said)
    assert heard(web)[1:] == ["shop: FAILED"]
    told.backup_dir.unlink()
    look(told, at(9, 3))
    assert heard(web)[2:] == ["shop: backup OVERDUE", "backups: RECOVERED"]


def test_a_folder_that_may_only_be_read_keeps_no_concern_from_being_told(
    here: Here, terminal: Callable[[str], Terminal], web: Web, local: LocalStore, work: Path
) -> None:
    """Nor does the new process tell what the note in it says was told."""
    ours = terminal(f"postgresql://shop:{PASSWORD}@127.0.0.1:1/shop")
    now = datetime.now(at(1).tzinfo).replace(microsecond=0)
    fill([local], work, [made(now - timedelta(days=3))])
    assert here(ours, "watch", BACKUP_NOTIFY_URLS=address(web)).returncode == 0
    web.requests.clear()
    shutil.rmtree(local.folder / ".work")
    (local.folder / ".work").write_text("in the way of the lock")
    (local.folder / ".watch.new").mkdir()
    ended = here(ours, "watch", BACKUP_NOTIFY_URLS=address(web))
    assert ended.returncode == 9
    assert f"writing {local.folder / '.watch.json'} failed" in ended.stderr
    assert heard(web) == ["backups: a place of backups is OUT OF REACH"]


def test_however_many_there_are_at_once_each_is_told(
    told: Settings, web: Web, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = databases(told, work, [f"shop{number:03}" for number in range(130)], monkeypatch)
    look(many, at(9))
    look(many, at(9, 3))
    assert sorted(heard(web)) == sorted(
        [f"shop{number:03}: backup OVERDUE" for number in range(130)] + ["shop: backup OVERDUE"]
    )


def test_what_does_not_fit_is_not_taken_for_told(
    told: Settings, web: Web, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "_MOST_WAITING", 2)
    many = databases(told, work, ["a", "b", "c"], monkeypatch)
    for hour in (0, 1, 2):
        look(many, at(9, hour))
    assert sorted(heard(web)) == [f"{name}: backup OVERDUE" for name in ("a", "b", "c", "shop")]
    nobody = by_urls(many, f"json://127.0.0.1:{free_port()}/")
    for name in ("one", "two", "three"):
        assert tell(nobody, Alert("failed", name, "a run failed", at(9)))
    assert len(waiting(nobody)) == 2


# a bucket that does not answer


def test_a_bucket_that_is_away_is_told_after_an_hour_and_once_for_all(
    off_site: Settings, web: Web, local: LocalStore, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And makes nothing else look bad: the nights that it alone has, and what was read there."""
    bucket = S3Store(connect(off_site), off_site)
    both = two_databases(off_site, work, monkeypatch)
    for name in ("shop", "stock"):
        fill([bucket], work, [made(at(day), name=name) for day in range(3, 9)])
        fill([local], work, [made(at(9), name=name)], level=None)
        fill([bucket], work, [made(at(9), name=name)])
    away, seen = unplugged(both), at(9, 4)
    assert look(both, seen - HOUR).concerns == []
    assert {each.about for each in look(away, seen).concerns} == {"s3"}
    look(away, seen + HOUR - SECOND)
    assert heard(web) == []
    look(away, seen + HOUR)
    look(away, seen + 2 * HOUR)
    assert heard(web) == ["backups: a place of backups is OUT OF REACH"]
    assert "shop: backup_shop_20250509_020000, 3 h old, in local, not verified" in str(web.requests)
    look(both, seen + 3 * HOUR)
    look(both, seen + 4 * HOUR)
    assert heard(web)[1:] == ["backups: RECOVERED"]


def test_nothing_becomes_well_because_it_cannot_be_looked_at(
    off_site: Settings, web: Web, local: LocalStore, work: Path
) -> None:
    bucket = S3Store(connect(off_site), off_site)
    fill([local, bucket], work, [made(at(9))])
    bucket.put_note(made(at(9)).id.file("verify.json"), checked(made(at(9)), faults=["rows of t"]))
    look(off_site, at(9, 4.5))
    assert heard(web) == ["shop: a backup is DAMAGED", "shop: the latest backup is NOT OFF-SITE"]
    for hour in (5, 6, 7):
        look(unplugged(off_site), at(9, hour))
    look(off_site, at(9, 8))
    assert heard(web)[2:] == ["backups: a place of backups is OUT OF REACH", "backups: RECOVERED"]


def test_an_empty_folder_beside_a_bucket_that_is_away_is_no_proof_that_there_is_nothing(
    off_site: Settings, web: Web
) -> None:
    look(unplugged(off_site), at(9))
    assert heard(web) == []
    look(unplugged(off_site), at(9) + HOUR)
    assert heard(web) == ["shop: backup OVERDUE", "backups: a place of backups is OUT OF REACH"]


# the heartbeat


@pytest.fixture
def beating(off_site: Settings, web: Web) -> Settings:
    return off_site.model_copy(
        update={"backup_heartbeat_url": SecretStr(f"http://127.0.0.1:{web.port}/beat")}
    )


def beats(web: Web) -> list[str]:
    return [path for path, _, _ in web.requests]


def test_the_heart_beats_only_where_the_latest_is_young_off_site_and_was_read_to_its_end(
    beating: Settings, web: Web, local: LocalStore, work: Path
) -> None:
    bucket = S3Store(connect(beating), beating)
    assert beat(beating, at(9)) == [], "there is none"
    fill([local], work, [made(at(9))])
    assert beat(beating, at(9, 4)) == [], "it is not off-site"
    fill([bucket], work, [made(at(9))], level="checksum")
    assert beat(beating, at(9, 4)) == [], "its rows were not read"
    fill([bucket], work, [made(at(9))])
    assert beat(beating, at(9) + ON_TIME) == ["shop"]
    assert beat(beating, at(9) + ON_TIME + SECOND) == [], "it is old"
    fill([local], work, [made(at(10))])
    assert beat(beating, at(10, 3)) == [], "a newer one is not off-site"
    assert beat(unplugged(beating), at(9, 4)) == [], "nobody can say"
    fill([local, bucket], work, [made(at(11))])
    assert beat(beating, at(11) - HOUR - SECOND) == [], "it is dated in the future"
    torn = made(at(11, 5))
    fill([local], work, [torn])
    (local.folder / torn.id.file("json")).write_text("{")
    assert beat(beating, at(11, 6)) == [], "nobody knows what the newest is"
    assert beats(web) == ["/beat"]


def test_one_address_for_all_needs_all_and_one_for_each_does_not(
    beating: Settings, web: Web, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, bucket = two_databases(beating, work, monkeypatch), S3Store(connect(beating), beating)
    fill([bucket], work, [made(at(9), name="stock")])
    assert beat(both, at(9, 4)) == []
    each = both.model_copy(
        update={"backup_heartbeat_url": SecretStr(f"http://127.0.0.1:{web.port}/{{database}}")}
    )
    assert beat(each, at(9, 4)) == ["stock"]
    fill([bucket], work, [made(at(9))])
    assert beat(both, at(9, 4)) == ["shop", "stock"]
    web.answers = [404, 200]
    with pytest.raises(DeliveryFailed, match="the heartbeat of shop did not reach"):
        beat(each, at(9, 4))
    assert beats(web) == ["/stock", "/beat", "/shop", "/stock"], "one that fails keeps no other from it"


# from a terminal


@pytest.fixture
def run(here: Here, terminal: Callable[[str], Terminal]) -> Callable[..., tuple[int, str, str]]:
    def watch(*words: str, **changed: str) -> tuple[int, str, str]:
        ours = terminal(f"postgresql://shop:{PASSWORD}@127.0.0.1:1/shop")
        ended = here(ours, "watch", *words, **changed)
        assert PASSWORD not in ended.stdout + ended.stderr
        return ended.returncode, ended.stdout, ended.stderr

    return watch


Run = Callable[..., tuple[int, str, str]]


def test_watch_shows_what_is_wrong_and_ends_well_where_everyone_was_told(
    run: Run, web: Web, local: LocalStore, work: Path
) -> None:
    code, out, err = run(BACKUP_NOTIFY_URLS=address(web))
    assert code == 0
    assert "overdue" in out
    assert "there is no good backup of shop" in out
    assert "→ backup-dag doctor, then backup-dag backup" in out
    assert "told: shop: backup OVERDUE" in err
    now = datetime.now(at(1).tzinfo)
    fill([local], work, [made(now - HOUR)])
    code, out, err = run(BACKUP_NOTIFY_URLS=address(web))
    assert (code, out) == (0, "all is well\n")
    assert "told: shop: RECOVERED" in err


def test_watch_as_a_document_and_its_exit_code_where_nobody_is_reached(run: Run) -> None:
    code, out, err = run("--json", BACKUP_NOTIFY_URLS=f"json://127.0.0.1:{free_port()}/")
    document = json.loads(out)
    assert code == 1
    [concern] = document["concerns"]
    assert (concern["kind"], concern["database"]) == ("overdue", "shop")
    assert document["told"] == []
    assert "Connection refused" in document["undelivered"][0]
    assert "the next look tries again" in err
    code, out, _ = run("--json")
    assert (code, json.loads(out)["told"]) == (0, [])


def test_where_nobody_is_set_to_be_told_cron_has_something_to_mail(
    run: Run, local: LocalStore, work: Path
) -> None:
    for words in ((), ("--json",)):
        code, out, err = run(*words)
        assert code == 0
        assert "nobody is set to be told of this (BACKUP_NOTIFY_EMAIL, BACKUP_NOTIFY_URLS):" in err
        assert err.count("there is no good backup of shop") == 1
        assert bool(out) == bool(words), "it is said once"
        assert "→ backup-dag doctor" in err
    fill([local], work, [made(datetime.now(at(1).tzinfo) - HOUR)])
    assert run() == (0, "all is well\n", "")


def test_a_digest_goes_out_whether_or_not_all_is_well(
    run: Run, web: Web, local: LocalStore, work: Path
) -> None:
    code, out, _ = run("--digest", BACKUP_NOTIFY_URLS=address(web))
    assert code == 0
    assert "one thing is wrong" in out
    assert "! there is no good backup of shop" in out
    fill([local], work, [made(datetime.now(at(1).tzinfo) - HOUR)])
    code, out, _ = run("--digest", "--json", BACKUP_NOTIFY_URLS=address(web))
    assert code == 0
    assert json.loads(out)["digest"].startswith("all is well")
    assert heard(web) == ["backups: summary"] * 2
    code, _, err = run("--digest", BACKUP_NOTIFY_URLS=f"json://127.0.0.1:{free_port()}/")
    assert code == 1
    assert "Connection refused" in err


def test_a_verification_from_the_terminal_sends_the_heartbeat_and_fails_for_none(
    here: Here,
    terminal: Callable[[str], Terminal],
    sample: str,
    bucket: str,
    s3: S3Server,
    web: Web,
) -> None:
    ours = terminal(sample)
    ours.environment |= {**s3.environment(), "AWS_S3_BUCKET": bucket}
    url = f"http://127.0.0.1:{web.port}/{{database}}"
    assert here(ours, "backup").returncode == 0
    local_only = here(ours, "verify", "--store", "local", BACKUP_HEARTBEAT_URL=url)
    assert (local_only.returncode, web.requests) == (0, [])
    ended = here(ours, "verify", BACKUP_HEARTBEAT_URL=url)
    assert ended.returncode == 0
    assert "sample is well off-site: the heartbeat was sent" in ended.stderr
    assert beats(web) == ["/sample"]
    web.answers = [404]
    for bad in (url, "ftp://nowhere"):
        ended = here(ours, "verify", "--level", "checksum", BACKUP_HEARTBEAT_URL=bad)
        assert ended.returncode == 0
        assert "warning: " in ended.stderr


def test_one_database_that_cannot_be_verified_keeps_the_others_from_nothing(
    here: Here,
    terminal: Callable[[str], Terminal],
    sample: str,
    bucket: str,
    s3: S3Server,
    web: Web,
    work: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its manifest is torn; of another none is of this time; what is not configured is not asked for."""
    ours = terminal(sample)
    (ours.folder / "backup.toml").write_text(
        "".join(f'[databases.{each}]\nurl_env = "{each.upper()}_URL"\n' for each in ("broken", "never"))
    )
    ours.environment |= {
        **s3.environment(),
        "AWS_S3_BUCKET": bucket,
        "BROKEN_URL": sample,
        "NEVER_URL": sample,
        "BACKUP_HEARTBEAT_URL": f"http://127.0.0.1:{web.port}/{{database}}",
    }
    assert here(ours, "backup", "--database", "sample").returncode == 0
    now = datetime.now(at(1).tzinfo).replace(microsecond=0)
    local = LocalStore(ours.backups)
    fill([local], work, [made(now, name="broken"), made(now, name="gone")])
    (ours.backups / made(now, name="broken").id.file("json")).write_text("{")
    ahead = made(now + timedelta(days=400), name="never")
    fill([local], work, [ahead])
    ended = here(ours, "verify")
    assert ended.returncode == 6
    assert ended.stdout.count("good  ") == 2
    assert "broken" in ended.stderr
    assert "there is no backup of never" in ended.stderr
    assert f"{ahead.backup} is dated in the future, and is passed over" in caplog.text
    assert "gone" not in ended.stdout + ended.stderr
    assert beats(web) == ["/sample"]
    document = json.loads(here(ours, "verify", "--level", "checksum", "--json").stdout)
    assert [each["exit_code"] for each in document if "not_verified" in each] == [6, 5]
    assert [each["faults"] for each in document if "address" in each] == [[], []]


# a backup that shrinks to nothing, and is valid


def test_a_backup_that_shrank_to_nothing_is_told_and_removes_nothing(
    told: Settings, web: Web, local: LocalStore, work: Path
) -> None:
    keep = {f"backup_keep_{each}": 0 for each in ("daily", "weekly", "monthly")}
    few = {**keep, "backup_retention_days": 1, "backup_cleanup_most_percent": 100}
    ours = told.model_copy(update=few)
    seven_nights(local, work)
    fill([local], work, [made(at(10), dump=10, rows=0)])
    before = ids(local)
    look(ours, at(10, 4))
    assert heard(web) == ["shop: a backup's SIZE is out of line"]
    report = clean_up(ours, [local], ["shop"], Leave(dry_run=False), now=at(10, 4))
    assert ids(local) == before
    assert "shrank" in str(report.errors[0])
    fill([local], work, [made(at(11))])
    clean_up(ours, [local], ["shop"], Leave(dry_run=False), now=at(11, 4))
    assert len(before - ids(local)) > 1, "a night that is as usual lets the old ones go"
