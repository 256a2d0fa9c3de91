"""Cleanup on real stores: what goes, what stays, what is refused, and what is left when it is killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from backup_dag.core.audit import audited, entries, log_file
from backup_dag.core.errors import BackupDagError, GuardRefused, StoreError, StoreUnreachable
from backup_dag.core.holds import held
from backup_dag.core.in_words import size
from backup_dag.core.keeping.cleaned import Report
from backup_dag.core.keeping.cleanup import Leave, clean_up
from backup_dag.core.manifest import Manifest
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import Listed, Store, Upload
from backup_dag.core.store.local import LocalStore
from backup_dag.core.store.s3 import S3Store
from backup_dag.core.work import one_at_a_time
from demo.servers import S3Server, free_port
from tests.cleaning import LONG_AGO, NOW, age, assert_whole_or_not_there, checked, ids, made, put
from tests.conftest import Here, Terminal
from tests.core.made import ARTIFACT, ROLES, manifest

Put = Callable[..., Manifest]
FULL = Leave(force=True)
ENDED = json.dumps(dict.fromkeys(("since", "until"), "2020-01-01T00:00:00+00:00"))
"""A hold that has ended."""


@pytest.fixture
def policy(settings: Settings) -> Settings:
    """A week, and the newest of two months."""
    few = {"backup_retention_days": 7, "backup_keep_daily": 1, "backup_keep_weekly": 0}
    return settings.model_copy(update={**few, "backup_keep_monthly": 0})


@pytest.fixture
def local(policy: Settings) -> LocalStore:
    policy.backup_dir.mkdir(mode=0o700)
    return LocalStore(policy.backup_dir)


@pytest.fixture
def offsite(policy: Settings, s3: S3Server, bucket: str) -> S3Store:
    there = {"aws_s3_bucket": bucket, "backup_s3_prefix": "prod/"}
    return S3Store(s3.client(), policy.model_copy(update=there))


@pytest.fixture
def lay(tmp_path: Path) -> Put:
    """Puts a backup of so many days ago into a store."""

    def lay(store: Store, days: float, level: Any = None, faults: Any = (), **about: Any) -> Manifest:
        return put(store, tmp_path / "backups" / ".made", made(days, **about), level, faults)

    return lay


def run(policy: Settings, *stores: Store, leave: Leave = FULL, **how: Any) -> Report:
    return clean_up(policy, stores, how.pop("configured", ["orders"]), leave, now=how.pop("now", NOW), **how)


def fates(report: Report, store: str = "local") -> dict[str, str]:
    return {str(j.id): j.fate for c in report.cleaned if c.store == store for j in c.judged}


def why(report: Report, backup: Manifest) -> str:
    said = [j.reasons for cleaned in report.cleaned for j in cleaned.all if j.id == backup.id]
    return "; ".join(reason for reasons in said for reason in reasons)


def files(store: LocalStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.folder.iterdir() if path.is_file()}


# -- what goes


def test_what_the_policy_lets_go_goes_with_all_its_notes_and_nothing_else_does(
    policy: Settings, local: LocalStore, lay: Put
) -> None:
    new, old = lay(local, 1, "content"), lay(local, 9, "content")
    before = files(local)
    local.put_note(old.id.file("hold-1-120000000000.json"), ENDED)
    strangers = ["notes.txt", f"{old.id}.sql", f"{old.id}", f"{old.id}.sql.gz.gpg.part", "backup_orders.json"]
    for name in strangers:
        (local.folder / name).write_text("someone else's")
    report = run(policy, local)
    assert fates(report) == {str(new.id): "stays", str(old.id): "goes"}
    left = {name: content for name, content in before.items() if name.startswith(str(new.id))}
    assert files(local) == left | dict.fromkeys(strangers, b"someone else's")
    gone = sum(len(content) for name, content in before.items() if name.startswith(str(old.id)))
    assert report.freed == gone + len(ENDED)
    assert [str(each.id) for each in report.removed] == [str(old.id)]
    assert report.errors == []
    assert not run(policy, local).removed


def test_a_dry_run_removes_nothing(policy: Settings, local: LocalStore, lay: Put) -> None:
    lay_a_mix(local, lay)
    before = files(local)
    report = run(policy, local, leave=Leave(dry_run=True, force=True))
    assert [str(each.id) for each in report.cleaned[0].going] == [str(made(n).id) for n in (9, 10, 11)]
    assert (report.removed, report.freed) == ([], 0)
    assert files(local) == before
    assert not (local.folder / ".work").exists(), "not even a lock"


def test_the_lines_of_a_dry_run_are_those_of_the_real_one(
    policy: Settings, local: LocalStore, lay: Put
) -> None:
    for days, level in ((1, "content"), (9, None), (10, None)):
        lay(local, days, level)
    freed = sum(len(data) for name, data in files(local).items() if not name.startswith(str(made(1).id)))
    said = list(run(policy, local, leave=Leave(dry_run=True)).lines())
    assert said == list(run(policy, local, leave=Leave()).lines())
    assert said == [
        f"orders in {local.folder}: 1 stay, 2 go ({size(freed)})",
        f"  stays   {made(1).id}  the newest good one; the newest good one of the day"
        f" {made(1).id.time:%Y-%m-%d}; younger than 7 days",
        f"  goes    {made(9).id}  older than 7 days, and not the newest of a period that is kept",
        f"  goes    {made(10).id}  older than 7 days, and not the newest of a period that is kept",
    ]
    assert ids(local) == {str(made(1).id)}


def test_only_what_is_configured_is_cleaned_and_the_rest_is_named(
    policy: Settings, local: LocalStore, lay: Put
) -> None:
    for name in ("orders", "orders_eu", "crm"):
        lay(local, 1, "content", name=name)
        lay(local, 9, name=name)
    report = run(policy, local, configured=["orders", "orders_eu"], only="orders")
    assert [cleaned.database for cleaned in report.cleaned] == ["orders"]
    assert report.foreign == {"crm": 2}
    assert "left alone: 2 of crm, which is not configured" in list(report.lines())
    assert ids(local) == {
        str(made(days, name=name).id)
        for name, days in [("orders", 1), ("orders_eu", 1), ("orders_eu", 9), ("crm", 1), ("crm", 9)]
    }
    report = run(policy, local, configured=["orders", "orders_eu"])
    assert [str(each.id) for each in report.removed] == [str(made(9, name="orders_eu").id)]
    assert str(made(9, name="crm").id) in ids(local)


def test_nothing_is_nothing_to_do(policy: Settings, local: LocalStore) -> None:
    report = run(policy, local)
    assert (report.errors, report.removed, report.foreign) == ([], [], {})
    assert list(report.lines()) == [f"orders in {local.folder}: 0 stay, 0 go (0 B)"]


# -- what stays all the same


def test_one_that_is_held_stays_until_it_is_let_go_of(policy: Settings, local: LocalStore, lay: Put) -> None:
    lay(local, 1, "content")
    old = lay(local, 9)
    with held(local, old.id):
        report = run(policy, local)
        assert "held" in why(report, old)
        assert str(old.id) in ids(local)
    assert str(old.id) in {str(each.id) for each in run(policy, local).removed}


def test_one_that_is_held_in_the_bucket_stays_here_too(
    policy: Settings, local: LocalStore, offsite: S3Store, lay: Put
) -> None:
    for store in (offsite, local):
        lay(store, 1, "content")
        lay(store, 9)
    with held(offsite, made(9).id):
        assert run(policy, local, offsite).removed == []
    assert len(run(policy, local, offsite).removed) == 2


def test_one_that_is_taken_hold_of_after_the_look_stays(
    policy: Settings, local: LocalStore, lay: Put
) -> None:
    lay(local, 1, "content")
    younger, older = lay(local, 9), lay(local, 10)

    class Taken(LocalStore):
        def remove(self, name: str) -> None:
            super().remove(name)
            note = younger.id.file("hold-1-120000000000.json")
            self.put_note(note, "{}")

    report = run(policy, Taken(local.folder))
    assert [each.id for each in report.removed] == [older.id]
    assert why(report, younger) == "held: somebody is reading it"
    assert str(younger.id) in ids(local)


def test_holds_that_hold_nothing_any_more_go_and_their_backup_stays(
    policy: Settings, local: LocalStore, lay: Put
) -> None:
    new = lay(local, 1, "content")
    of = new.id.file
    with held(local, new.id):
        [note] = local.folder.glob("*.hold-*")
        text = note.read_text()
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True)
    killed, ended, living = (
        of(f"hold-{gone.stdout.decode().strip()}-1.json"),
        of("hold-1-1.json"),
        of(f"hold-{os.getppid()}-1.json"),
    )
    for name, said in ((killed, text), (ended, ENDED), (living, text)):
        local.put_note(name, said)
    run(policy, local, leave=Leave(dry_run=True))
    assert {killed, ended, living} < files(local).keys()
    run(policy, local)
    assert files(local).keys() & {killed, ended, living} == {living}
    assert ids(local) == {str(new.id)}


def test_the_newest_proven_one_stays_whatever_its_age(policy: Settings, local: LocalStore, lay: Put) -> None:
    lay(local, 1, "content")
    proven = lay(local, 400, "restore")
    lay(local, 500, "restore")
    assert "proven" in why(run(policy, local), proven)
    assert ids(local) == {str(made(1).id), str(proven.id)}


def test_one_whose_manifest_cannot_be_read_stays(policy: Settings, local: LocalStore, lay: Put) -> None:
    lay(local, 1, "content")
    old = lay(local, 9)
    (local.folder / old.id.file("json")).write_text("{")
    report = run(policy, local)
    assert why(report, old) == "its manifest cannot be read"
    assert len(list(local.list(str(old.id)))) == 4


# -- the folder, and the bucket behind it


@pytest.fixture
def short(policy: Settings) -> Settings:
    """The folder keeps three days, the bucket 30."""
    return policy.model_copy(update={"backup_local_retention_days": 3, "backup_retention_days": 30})


def test_the_folder_keeps_its_days_and_the_bucket_all(
    short: Settings, local: LocalStore, offsite: S3Store, lay: Put
) -> None:
    for days in (1, 2, 5, 9, 40):
        for store in (local, offsite):
            lay(store, days, "content" if days == 1 else "checksum")
    report = run(short, local, offsite)
    assert ids(local) == {str(made(days).id) for days in (1, 2)}
    assert ids(offsite) == {str(made(days).id) for days in (1, 2, 5, 9)}
    assert "older than 3 days; s3 has a copy that was checked" in why(report, made(5))


def test_without_a_bucket_the_folder_keeps_all(short: Settings, local: LocalStore, lay: Put) -> None:
    for days in (1, 2, 5, 9, 40):
        lay(local, days, "content")
    report = run(short, local)
    assert ids(local) == {str(made(days).id) for days in (1, 2, 5, 9)}
    assert why(report, made(9)) == "younger than 30 days"


def spoil_nothing(offsite: S3Store, backup: Manifest) -> None:
    """It was never copied."""
    for name in reversed(backup.names):
        offsite.remove(name)


def spoil_size(offsite: S3Store, backup: Manifest) -> None:
    offsite.put_note(backup.artifact.name, "cut")


def spoil_file(offsite: S3Store, backup: Manifest) -> None:
    offsite.remove(backup.globals.name)


def spoil_check(offsite: S3Store, backup: Manifest) -> None:
    offsite.put_note(backup.id.file("verify.json"), checked(backup, "checksum", ["it is damaged"]))


def spoil_manifest(offsite: S3Store, backup: Manifest) -> None:
    offsite.put_note(backup.id.file("json"), "{")


def never_checked(offsite: S3Store, backup: Manifest) -> None:
    """It has the right size, and may hold anything."""
    offsite.remove(backup.id.file("verify.json"))


@pytest.mark.parametrize(
    "spoil", [spoil_nothing, spoil_size, spoil_file, spoil_check, spoil_manifest, never_checked]
)
def test_a_local_copy_stays_where_the_bucket_has_no_good_one(
    short: Settings,
    local: LocalStore,
    offsite: S3Store,
    lay: Put,
    spoil: Callable[[S3Store, Manifest], None],
) -> None:
    for days in (1, 5, 6):
        for store in (local, offsite):
            lay(store, days, "content" if days == 1 else "checksum")
    spoil(offsite, made(5))
    report = run(short, local, offsite)
    assert ids(local) == {str(made(days).id) for days in (1, 5)}
    assert "no other store has a copy that was checked" in why(report, made(5))


def test_the_last_copy_goes_when_the_full_policy_lets_it_go(
    short: Settings, local: LocalStore, offsite: S3Store, lay: Put
) -> None:
    lay(local, 1, "content")
    lay(local, 40)
    run(short, local, offsite)
    assert ids(local) == {str(made(1).id)}


def test_a_copy_that_was_proven_elsewhere_stays_in_the_bucket(
    policy: Settings, local: LocalStore, offsite: S3Store, lay: Put
) -> None:
    for store in (local, offsite):
        lay(store, 1, "content")
    lay(local, 50, "restore")
    lay(offsite, 50)
    run(policy, local, offsite)
    assert str(made(50).id) in ids(local) & ids(offsite)


def test_another_servers_backup_of_the_same_name_stays(
    policy: Settings, local: LocalStore, offsite: S3Store, lay: Put
) -> None:
    for store in (local, offsite):
        lay(store, 1, "content")
    lay(local, 9)
    lay(offsite, 9, system="another")
    report = run(policy, local, offsite)
    assert str(made(9).id) in ids(offsite) - ids(local)
    assert "another backup of the same name" in why(report, made(9))


# -- refusals


def refusal(report: Report) -> GuardRefused:
    [error] = report.errors
    assert isinstance(error, GuardRefused)
    assert error.exit_code == 8
    assert error.hint
    return error


@pytest.mark.parametrize(("level", "faults"), [(None, []), ("checksum", []), ("content", ["damaged"])])
def test_nothing_goes_before_the_newest_good_one_was_read_to_its_end(
    policy: Settings, local: LocalStore, lay: Put, level: str | None, faults: list[str]
) -> None:
    lay(local, 1, level, faults)
    lay(local, 2)
    lay(local, 9)
    lay(local, 10)
    for ending in ("json", "sha256"):
        (local.folder / made(10).id.file(ending)).unlink()
    age(local.folder)
    before = files(local)
    report = run(policy, local)
    newest = made(2 if faults else 1)
    assert str(newest.id) in refusal(report).message
    assert "never read to its end" in refusal(report).message
    assert files(local) == before
    assert any("would go" in line for line in report.lines())
    assert len(run(policy, local, leave=Leave(unverified=True)).removed) == 2


def test_it_is_enough_that_one_copy_of_the_newest_was_read_to_its_end(
    policy: Settings, local: LocalStore, offsite: S3Store, lay: Put
) -> None:
    lay(local, 1)
    lay(local, 9)
    lay(offsite, 1, "content")
    assert len(run(policy, local, offsite).removed) == 1


def test_a_safety_backup_is_not_the_newest_that_must_be_verified(
    policy: Settings, local: LocalStore, lay: Put
) -> None:
    lay(local, 0.5, "content", reason="pre_restore")
    lay(local, 1)
    lay(local, 9)
    assert str(made(1).id) in refusal(run(policy, local)).message


def test_nothing_goes_where_nothing_is_good(policy: Settings, local: LocalStore, lay: Put) -> None:
    for days in (9, 10, 11):
        lay(local, days, "checksum", ["damaged"])
    assert "no good backup" in refusal(run(policy, local)).message
    assert len(ids(local)) == 3


def test_nothing_to_remove_is_nothing_to_refuse(policy: Settings, local: LocalStore, lay: Put) -> None:
    lay(local, 1)
    assert run(policy, local, leave=Leave()).errors == []


@pytest.mark.parametrize(
    ("newest", "word"), [(499, "shrank"), (500, ""), (3000, ""), (3001, "grew"), (1, "shrank")]
)
def test_nothing_goes_because_of_a_backup_that_shrank_or_grew(
    policy: Settings, local: LocalStore, lay: Put, newest: int, word: str
) -> None:
    """Against the median of the seven before: one that was odd itself does not count for much."""
    lay(local, 0.2, dump=1, reason="drill")
    lay(local, 0.5, "content", dump=newest)
    for days, dump in (
        (1, 1000),
        (2, 1000),
        (3, 5),
        (4, 1000),
        (5, 90_000),
        (6, 1000),
        (6.5, 1000),
        (6.9, 7),
    ):
        lay(local, days, dump=dump)
    lay(local, 9)
    report = run(policy, local, leave=Leave())
    if word:
        assert f"{word}: {newest:,} bytes of dump" in refusal(report).message
        assert "1,000" in refusal(report).message
        assert report.removed == []
        assert len(run(policy, local, leave=Leave(force=True)).removed) == 1
    else:
        assert [each.id for each in report.removed] == [made(9).id]


def test_one_backup_before_it_is_enough_to_see_that_it_shrank(
    policy: Settings, local: LocalStore, lay: Put
) -> None:
    lay(local, 1, "content", dump=400)
    lay(local, 9, dump=1000)
    assert "the 1,000 of the nights before" in refusal(run(policy, local, leave=Leave())).message


def emptied(local: LocalStore, lay: Put, nights: int) -> None:
    """Eleven nights with all of it, and then so many with next to nothing."""
    for days in range(nights + 11, 0, -1):
        lay(local, days, "content", dump=100_000 if days <= nights else 10_000_000)


@pytest.fixture
def wide(policy: Settings) -> Settings:
    """As many may go at once as the policy lets go."""
    return policy.model_copy(update={"backup_cleanup_most_percent": 100})


@pytest.mark.parametrize("nights", [5, 7, 20, 40])
def test_nothing_goes_where_nobody_looked_until_long_after_the_loss(
    wide: Settings, local: LocalStore, lay: Put, nights: int
) -> None:
    """No note says then what was usual, and most of what would go may be as empty as the newest."""
    emptied(local, lay, nights)
    there = ids(local)
    for _ in range(2):
        assert "10,000,000 of those that would go" in refusal(run(wide, local, leave=Leave())).message
    assert ids(local) == there
    run(wide, local, leave=Leave(force=True))
    assert len(ids(local)) == 6
    assert run(wide, local, leave=Leave()).errors == []


def test_nothing_goes_where_the_note_of_what_was_usual_is_lost(
    wide: Settings, local: LocalStore, lay: Put
) -> None:
    emptied(local, lay, 3)
    assert run(wide, local, leave=Leave()).errors
    (local.folder / ".usual.json").write_text('{"usual": []}')
    for days in (0.1, 0.2):
        lay(local, days, "content", dump=100_000)
    assert "those that would go" in refusal(run(wide, local, leave=Leave())).message


def test_what_shrinks_a_little_every_night_removes_nothing(
    wide: Settings, local: LocalStore, lay: Put
) -> None:
    for days in range(40):
        lay(local, days + 1, "content", dump=int(10_000_000 * 0.92 ** (40 - days)))
    assert "those that would go" in refusal(run(wide, local, leave=Leave())).message


def test_one_odd_night_keeps_none_of_those_that_go(wide: Settings, local: LocalStore, lay: Put) -> None:
    """But where it alone would go, nothing tells it from the last one before a loss."""
    for days in range(1, 7):
        lay(local, days, "content")
    lay(local, 9, dump=5000)
    assert "those that would go" in refusal(run(wide, local, leave=Leave())).message
    lay(local, 10)
    assert len(run(wide, local, leave=Leave()).removed) == 2


def test_a_size_that_was_accepted_lets_the_larger_ones_go_as_they_become_old(
    wide: Settings, local: LocalStore, lay: Put
) -> None:
    emptied(local, lay, 3)
    run(wide, local, leave=Leave(force=True))
    lay(local, 0.5, "content", dump=100_000)
    later = run(wide, local, leave=Leave(), now=NOW + timedelta(days=3))
    assert later.errors == []
    assert [each.id for each in later.removed] == [made(days).id for days in (6, 5, 4)][::-1]


def test_a_size_that_was_accepted_long_ago_is_no_excuse_for_a_second_loss(
    wide: Settings, local: LocalStore, lay: Put
) -> None:
    for days in range(120, 109, -1):
        lay(local, days, "content", dump=10_000_000 if days > 110 else 100_000)
    run(wide, local, leave=Leave(force=True), now=NOW - timedelta(days=109.5))
    for days in range(20, 1, -1):
        lay(local, days, "content", dump=10_000_000)
    assert run(wide, local, leave=Leave(), now=NOW - timedelta(days=1.5)).errors == []
    lay(local, 1, "content", dump=100_000)
    assert "shrank" in refusal(run(wide, local, leave=Leave())).message


def test_a_dry_run_notes_no_size_and_what_was_refused_accepts_none(
    policy: Settings, local: LocalStore, lay: Put
) -> None:
    lay(local, 1, dump=100)
    lay(local, 9)
    for leave in (Leave(dry_run=True, unverified=True), Leave(force=True)):
        assert refusal(run(policy, local, leave=leave))
        assert not (local.folder / ".usual.json").exists()


def test_nothing_goes_while_one_is_dated_in_the_future(policy: Settings, local: LocalStore, lay: Put) -> None:
    lay(local, -2, "content")
    lay(local, 1, "content")
    lay(local, 9)
    assert "in the future" in refusal(run(policy, local, leave=Leave())).message
    run(policy, local, leave=Leave(force=True))
    assert ids(local) == {str(made(-2).id), str(made(1).id)}


def test_one_of_the_future_does_not_speak_for_the_newest_of_now(
    policy: Settings, local: LocalStore, lay: Put
) -> None:
    lay(local, -2, "content")
    lay(local, 1)
    lay(local, 9)
    assert str(made(1).id) in refusal(run(policy, local, leave=Leave(force=True))).message


def test_a_clock_a_few_minutes_apart_is_none_that_is_wrong(
    policy: Settings, local: LocalStore, lay: Put
) -> None:
    lay(local, -0.01, "content")
    lay(local, 1, "content")
    lay(local, 9)
    assert len(run(policy, local, leave=Leave()).removed) == 1


def test_more_than_a_share_does_not_go_at_once(policy: Settings, local: LocalStore, lay: Put) -> None:
    lay(local, 1, "content")
    for days in (2, 3, 4, 5, 9, 10, 11):
        lay(local, days)
    before = files(local)
    said = refusal(run(policy, local, leave=Leave()))
    assert f"3 of 8 backups in {local.folder} would go, and 2 may in one run" in said.message
    assert "--force" in said.hint
    assert files(local) == before
    wider = policy.model_copy(update={"backup_cleanup_most_percent": 38})
    assert len(run(wider, local, leave=Leave()).removed) == 3


def test_what_an_outage_left_to_be_cleaned_up_is_no_more_than_usual(
    policy: Settings, local: LocalStore, lay: Put
) -> None:
    """Else one night that was missed would stop every clean-up after it."""
    lay(local, 1, "content")
    for days in (2, 3, 4, 5, 9, 10, 11):
        lay(local, days)
    with audited(policy.backup_dir, "cleanup", "orders"):
        pass
    refusal(run(policy, local, leave=Leave()))
    path = log_file(policy.backup_dir)
    line = json.loads(path.read_text().splitlines()[0])
    past = {**line, "time": (NOW - timedelta(days=2, hours=1)).isoformat()}
    path.write_text(json.dumps(past) + "\n")
    assert len(run(policy, local, leave=Leave()).removed) == 3


def test_manifests_that_somebody_deleted_do_not_take_their_data_with_them(
    policy: Settings, local: LocalStore, offsite: S3Store, lay: Put
) -> None:
    """`rm *.json`: what is left may be whole, and is nobody's to remove but a person's; unless the bucket has
    it, and somebody has looked at that."""
    lay(offsite, 1, "content")
    for days in range(1, 8):
        lay(local, days)
        (local.folder / made(days).id.file("json")).unlink()
    age(local.folder)
    report = run(policy, local, offsite, leave=Leave(force=True), now=NOW + LONG_AGO)
    assert "recover it by hand" in why(report, made(7))
    assert "s3 has a copy that was checked" in why(report, made(1))
    assert len(list(local.list())) == 6 * 3


def test_a_database_that_shrank_stays_so_until_somebody_accepts_it(
    policy: Settings, local: LocalStore, lay: Put
) -> None:
    """After some nights the nights before are as empty as the newest, and that is no reason to forget."""
    for days in range(40, 20, -1):
        lay(local, days, "content", dump=100_000)
    full = ids(local)
    for days in range(20, 0, -1):
        lay(local, days, "content", dump=1000)
        report = run(policy, local, leave=Leave(), now=NOW - timedelta(days=days) + timedelta(hours=2))
        assert "shrank" in refusal(report).message
        assert full <= ids(local)
    run(policy, local, leave=Leave(force=True))
    assert ids(local).isdisjoint(full)
    lay(local, 0.5, "content", dump=1100)
    assert run(policy, local, leave=Leave(), now=NOW + timedelta(hours=1)).errors == []


def test_backups_of_two_servers_under_one_name_are_not_thinned_out(
    policy: Settings, local: LocalStore, lay: Put
) -> None:
    for days, system in ((1, "7"), (2, "8"), (9, "7"), (10, "8")):
        lay(local, days, "content", system=system)
    assert "several servers" in refusal(run(policy, local, leave=Leave())).message
    assert len(ids(local)) == 4


def test_a_move_to_another_server_is_none_of_that(policy: Settings, local: LocalStore, lay: Put) -> None:
    for days, system in ((1, "8"), (2, "8"), (9, "7"), (10, "7")):
        lay(local, days, "content", system=system)
    assert len(run(policy, local, leave=Leave()).removed) == 2


def test_a_clean_up_that_fails_half_way_notes_what_is_gone(
    policy: Settings, local: LocalStore, lay: Put
) -> None:
    for days in (1, 9, 10):
        lay(local, days, "content")

    class Denied(LocalStore):
        def remove(self, name: str) -> None:
            if name.startswith(str(made(9).id)) and name.endswith(".sha256"):
                raise StoreError("denied", hint="x")
            super().remove(name)

    report = run(policy, Denied(local.folder))
    assert any("not all of that was removed: denied" in line for line in report.lines())
    [entry] = [entry for entry in entries(local.folder) if entry.what == "cleanup"]
    assert (entry.outcome, entry.message) == ("failed", "denied")
    assert entry.details[str(local.folder)] == [str(made(10).id), str(made(9).id)]
    assert run(policy, local).errors == []
    assert ids(local) == {str(made(1).id)}
    assert not list(local.list(str(made(9).id)))


def test_one_databases_refusal_is_not_the_others(policy: Settings, local: LocalStore, lay: Put) -> None:
    for name, level in (("crm", None), ("orders", "content")):
        lay(local, 1, level, name=name)
        lay(local, 9, name=name)
    report = run(policy, local, configured=["crm", "orders"], leave=Leave())
    assert "crm" in refusal(report).message
    assert [str(each.id) for each in report.removed] == [str(made(9).id)]


# -- stores that fail


def test_where_a_store_cannot_be_asked_nothing_goes_from_any(
    policy: Settings, local: LocalStore, s3: S3Server, lay: Put
) -> None:
    import boto3
    from botocore.config import Config

    gone = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{free_port()}",
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2),
    )
    lay(local, 1, "content")
    lay(local, 9)
    before = files(local)
    bucket = S3Store(gone, policy.model_copy(update={"aws_s3_bucket": "orders"}))
    for leave in (Leave(), Leave(force=True, unverified=True)):
        with pytest.raises(StoreUnreachable, match="nothing was removed from any store") as raised:
            run(policy, local, bucket, leave=leave)
        assert raised.value.exit_code == 7
    assert files(local) == before


def test_credentials_that_may_not_delete_remove_nothing_and_are_told_what_they_lack(
    policy: Settings, offsite: S3Store, s3: S3Server, bucket: str, lay: Put
) -> None:
    lay(offsite, 1, "content")
    lay(offsite, 9)
    deny(s3, bucket, "s3:DeleteObject", f"arn:aws:s3:::{bucket}/*")
    report = run(policy, offsite)
    [error] = report.errors
    assert isinstance(error, StoreError)
    assert made(9).id.file("json") in error.message
    assert "deploy/s3-policy-cleanup.json" in error.hint
    assert report.removed == []
    assert ids(offsite) == {str(made(1).id), str(made(9).id)}
    assert_whole_or_not_there(offsite)


def test_a_bucket_whose_uploads_may_not_be_listed_is_cleaned_all_the_same(
    policy: Settings, offsite: S3Store, s3: S3Server, bucket: str, lay: Put
) -> None:
    lay(offsite, 1, "content")
    lay(offsite, 9)
    deny(s3, bucket, "s3:ListBucketMultipartUploads", f"arn:aws:s3:::{bucket}")
    report = run(policy, offsite)
    assert [str(each.id) for each in report.removed] == [str(made(9).id)]
    assert "looking for unfinished uploads" in "".join(report.cleaned[0].remarks)


def deny(s3: S3Server, bucket: str, action: str, resource: str) -> None:
    """Takes a right from everybody."""
    statement = {"Effect": "Deny", "Principal": "*", "Action": action, "Resource": resource}
    document = {"Version": "2012-10-17", "Statement": [statement]}
    s3.client().put_bucket_policy(Bucket=bucket, Policy=json.dumps(document))


class Failing(LocalStore):
    """A real folder that fails at the n-th use of it, from 0, and then goes on failing."""

    def __init__(self, folder: Path, at: int, error: BaseException) -> None:
        super().__init__(folder)
        self.uses, self._at, self._error = 0, at, error

    def _use(self) -> None:
        self.uses += 1
        if self.uses > self._at:
            raise self._error

    def list(self, beginning: str = "") -> Iterator[Listed]:
        self._use()
        return super().list(beginning)

    def read(self, name: str) -> bytes:
        self._use()
        return super().read(name)

    def remove(self, name: str) -> None:
        self._use()
        super().remove(name)

    def locked_until(self, name: str) -> datetime | None:
        self._use()
        return super().locked_until(name)

    def unfinished(self, beginning: str = "") -> Iterator[Upload]:
        self._use()
        return super().unfinished(beginning)


def torn(local: LocalStore, backup: Manifest) -> None:
    """As a run leaves it that died before it came to the checksums."""
    for ending in ("json", "sha256", "verify.json"):
        (local.folder / backup.id.file(ending)).unlink(missing_ok=True)


def lay_a_mix(local: LocalStore, lay: Put) -> None:
    """Two that go, two that stay, and what a dead run left."""
    lay(local, 1, "content")
    for days in (2, 9, 10, 11):
        lay(local, days, "checksum" if days > 2 else None)
    torn(local, made(11))
    age(local.folder)


@pytest.mark.parametrize(
    "error",
    [StoreUnreachable("gone", hint="x"), StoreError("denied", hint="x"), KeyboardInterrupt()],
    ids=repr,
)
def test_a_failure_at_any_use_of_a_store_leaves_whole_backups_and_the_next_run_ends_the_work(
    policy: Settings, local: LocalStore, lay: Put, error: BaseException
) -> None:
    lay_a_mix(local, lay)
    before, half_way = files(local), 0
    for uses in range(1000):
        for name, content in before.items():
            (local.folder / name).write_bytes(content)
        age(local.folder)
        failed = fails(policy, Failing(local.folder, uses, error), error=error)
        assert_whole_or_not_there(local)
        assert {str(made(1).id), str(made(2).id)} <= ids(local)
        half_way += LEFT < len(list(local.list())) < len(before)
        assert run(policy, local).errors == []
        assert len(list(local.list())) == LEFT
        if not failed:
            break
    assert 40 < uses < 999
    assert half_way >= 10


class Flaky(Failing):
    """Fails once, and is well again. As the bucket behind a folder."""

    label = "s3"

    def _use(self) -> None:
        self.uses += 1
        if self.uses == self._at + 1:
            raise self._error


def test_a_bucket_that_fails_once_is_told_of_and_no_last_copy_goes(
    short: Settings, local: LocalStore, tmp_path: Path, lay: Put
) -> None:
    offsite = LocalStore(tmp_path / "bucket")
    offsite.folder.mkdir()
    for uses in range(1000):
        for store in (local, offsite):
            for days in (1, 5, 40):
                lay(store, days, "content" if days == 1 else "checksum")
        flaky = Flaky(offsite.folder, uses, StoreUnreachable("gone"))
        failed = fails(short, local, flaky, error=StoreUnreachable("gone"))
        assert failed == (flaky.uses > uses), "it was told of"
        for store in (local, offsite):
            assert_whole_or_not_there(store)
        assert {str(made(1).id), str(made(5).id)} <= ids(offsite)
        if not failed:
            break
    assert 15 < uses < 999


def test_when_a_store_stops_answering_the_other_databases_do_not_wait_for_it_too(
    policy: Settings, local: LocalStore, lay: Put
) -> None:
    for name in ("crm", "orders"):
        lay(local, 1, "content", name=name)
    for error, tried in ((StoreUnreachable("gone"), ["crm"]), (StoreError("denied"), ["crm", "orders"])):
        report = run(policy, Failing(local.folder, 1, error), configured=["crm", "orders"])
        assert list(report.failed) == tried
        assert report.errors == [error] * len(tried)


LEFT = 9
"""Files of a mix that stay: two whole backups, one of them with the record of its check."""


def fails(policy: Settings, *stores: Store, error: BaseException) -> bool:
    """Whether a run fails, if only in its report; it must be with such an error."""
    try:
        report = run(policy, *stores)
    except type(error):
        return True
    assert [type(each) for each in report.errors] in ([], [type(error)])
    return bool(report.errors)


KILLED = """
import os, signal, sys
from datetime import datetime
from pathlib import Path
from backup_dag.core.keeping.cleanup import Leave, clean_up
from backup_dag.core.settings import Settings
from backup_dag.core.store.local import LocalStore

class Killed(LocalStore):
    left = int(sys.argv[2])
    def remove(self, name):
        super().remove(name)
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)

settings = Settings(backup_dir=sys.argv[1], backup_retention_days=7, backup_keep_daily=1,
                    backup_keep_weekly=0, backup_keep_monthly=0, _env_file=None)
clean_up(settings, [Killed(Path(sys.argv[1]))], ["orders"], Leave(force=True),
         now=datetime.fromisoformat(sys.argv[3]))
"""


@pytest.mark.parametrize("removals", [1, 2, 4, 5, 8])
def test_one_that_is_killed_leaves_whole_backups_and_the_next_run_ends_the_work(
    policy: Settings, local: LocalStore, lay: Put, removals: int
) -> None:
    lay_a_mix(local, lay)
    there = len(list(local.list()))
    program = [sys.executable, "-c", KILLED, str(local.folder), str(removals), NOW.isoformat()]
    root = str(Path(__file__).parents[1])
    ended = subprocess.run(
        program, cwd=root, env={"PATH": os.environ["PATH"]}, capture_output=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    left = [listed for listed in local.list() if not listed.name.endswith(".going.json")]
    assert there - removals <= len(left) < there
    assert_whole_or_not_there(local)
    report = run(policy, local)
    assert report.errors == []
    assert ids(local) == {str(made(1).id), str(made(2).id)}
    assert len(list(local.list())) == LEFT


def test_it_waits_for_an_upload_of_that_database(policy: Settings, local: LocalStore, lay: Put) -> None:
    lay(local, 1, "content")
    lay(local, 9)
    done: list[Report] = []
    with one_at_a_time(local.folder, "copy-orders"):
        other = threading.Thread(target=lambda: done.append(run(policy, local)))
        other.start()
        time.sleep(0.5)
        assert done == []
        assert len(ids(local)) == 2
        assert run(policy, local, leave=Leave(dry_run=True)).removed == [], "a dry run need not wait"
    other.join(timeout=20)
    assert [str(each.id) for each in done[0].removed] == [str(made(9).id)]


# -- what dead runs left


def test_files_without_a_manifest_go_when_they_are_old(policy: Settings, local: LocalStore, lay: Put) -> None:
    lay(local, 0.5, "content")
    lay(local, 4)
    torn(local, made(4))
    assert run(policy, local).removed == [], "the files are of today: they may still be being written"
    age(local.folder, timedelta(hours=23))
    assert run(policy, local).removed == []
    age(local.folder, timedelta(hours=25))
    with held(local, made(4).id):
        age(local.folder, timedelta(hours=25))
        assert why(run(policy, local, leave=Leave(dry_run=True)), made(4)) == "held: somebody is reading it"
        assert run(policy, local).removed == []
    (local.folder / f"{made(4).id}.txt").write_text("someone else's")
    others = {f"backup_{name}_20200101_000000.sql.gz" for name in ("crm", "orders_eu")}
    for name in others:
        (local.folder / name).write_text("of another database")
    age(local.folder, timedelta(hours=25))
    report = run(policy, local)
    assert why(report, made(4)) == "files without a manifest: left by a run that died"
    assert report.freed >= len(ARTIFACT) + len(ROLES)
    assert files(local).keys() >= others
    assert [listed.name for listed in local.list(str(made(4).id))] == [f"{made(4).id}.txt"]


def test_files_of_a_backup_whose_name_is_of_today_stay(policy: Settings, local: LocalStore, lay: Put) -> None:
    """Their dates may be anyone's: copied with cp -p, or by a clock that was wrong."""
    lay(local, 1.5, "content")
    lay(local, 0.9)
    torn(local, made(0.9))
    age(local.folder)
    assert run(policy, local).removed == []


def test_one_that_became_whole_after_the_look_stays(policy: Settings, local: LocalStore, lay: Put) -> None:
    lay(local, 1, "content")
    lay(local, 9)
    lay(local, 5)
    checksums = (local.folder / made(5).id.file("sha256")).read_text()
    torn(local, made(5))
    age(local.folder)

    class Late(LocalStore):
        def remove(self, name: str) -> None:
            super().remove(name)
            self.put_note(made(5).id.file("sha256"), checksums)
            self.put_note(made(5).id.file("json"), made(5).to_json())

    report = run(policy, Late(local.folder))
    assert [str(each.id) for each in report.removed] == [str(made(9).id)]
    assert {str(made(1).id), str(made(5).id)} == ids(local)
    assert_whole_or_not_there(local)


def test_the_bucket_is_swept_of_files_and_uploads_that_dead_runs_left(
    policy: Settings, offsite: S3Store, s3: S3Server, bucket: str, lay: Put
) -> None:
    client = s3.client()
    for name in (
        "prod/backup_orders_20260101_000000.sql.gz.gpg",
        "prod/backup_orders_20260101_000000.notes.gz",
        "prod/backup_orders_eu_20260101_000000.sql.gz.gpg",
        "prod/deeper/backup_orders_20260101_000000.sql.gz.gpg",
        "backup_orders_20260101_000000.sql.gz.gpg",
    ):
        client.create_multipart_upload(Bucket=bucket, Key=name)
    lay(offsite, 1, "content")
    lay(offsite, 4)
    for ending in ("json", "sha256"):
        offsite.remove(made(4).id.file(ending))

    def uploads() -> set[str]:
        return {each["Key"] for each in client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())}

    assert run(policy, offsite).removed == []
    assert len(uploads()) == 5, "of today: they may still be under way"
    dry = run(policy, offsite, now=NOW + LONG_AGO, leave=Leave(dry_run=True))
    assert len(uploads()) == 5
    report = run(policy, offsite, now=NOW + LONG_AGO)
    assert list(dry.lines()) == list(report.lines())
    assert [upload.name for upload in report.cleaned[0].uploads] == [
        "backup_orders_20260101_000000.sql.gz.gpg"
    ]
    assert len(uploads()) == 4
    assert "prod/backup_orders_20260101_000000.sql.gz.gpg" not in uploads()
    assert [str(each.id) for each in report.removed] == [str(made(4).id)]
    assert ids(offsite) == {str(made(1).id)}


# -- Object Lock


def test_what_the_bucket_locks_is_told_with_its_end_and_stays(
    policy: Settings, s3: S3Server, bucket: str, lay: Put
) -> None:
    s3.create_bucket(f"{bucket}-locking", object_lock=True)
    settings = policy.model_copy(update={"aws_s3_bucket": f"{bucket}-locking"})
    days = {"backup_s3_object_lock_mode": "COMPLIANCE", "backup_s3_object_lock_days": 2}
    locking, plain = S3Store(s3.client(), settings.model_copy(update=days)), S3Store(s3.client(), settings)
    lay(locking, 1, "content")
    locked, legal, free = lay(locking, 9), lay(plain, 10), lay(plain, 11)
    s3.client().put_object_legal_hold(
        Bucket=f"{bucket}-locking", Key=legal.globals.name, LegalHold={"Status": "ON"}
    )
    report = run(policy, plain)
    assert fates(report, "s3") == {
        str(made(1).id): "stays",
        str(locked.id): "locked",
        str(legal.id): "locked",
        str(free.id): "goes",
    }
    [end] = [each.locked_until for each in report.cleaned[0].judged if each.id == locked.id]
    assert end is not None
    assert timedelta(days=1, hours=23) < end - datetime.now(UTC) <= timedelta(days=2)
    assert f"locked until {end:%Y-%m-%d %H:%M} UTC; older than 7 days" in why(report, locked)
    assert "locked without an end" in why(report, legal)
    assert report.errors == []
    assert ids(plain) == {str(made(1).id), str(locked.id), str(legal.id)}
    said = {each["backup"]: each["locked_until"] for each in report.document()["cleaned"][0]["backups"]}
    assert said == {
        str(made(1).id): None,
        str(locked.id): end.isoformat(),
        str(legal.id): "forever",
        str(free.id): None,
    }


# -- the terminal


@pytest.fixture
def ours(terminal: Callable[[str], Terminal], policy: Settings) -> Terminal:
    ours = terminal("postgresql://nobody@127.0.0.1:1/orders")  # cleanup never asks the database
    ours.environment |= {
        "BACKUP_RETENTION_DAYS": "7",
        "BACKUP_KEEP_DAILY": "1",
        "BACKUP_KEEP_WEEKLY": "0",
        "BACKUP_KEEP_MONTHLY": "0",
    }
    return ours


def test_the_terminal_shows_the_calendar_and_cleans_up(
    here: Here, ours: Terminal, local: LocalStore, lay: Put
) -> None:
    lay(local, 1, "content")
    lay(local, 9)
    dry = here(ours, "cleanup", "--dry-run")
    assert (dry.returncode, len(ids(local))) == (0, 2)
    assert "a dry run: nothing was removed" in dry.stderr
    real = here(ours, "cleanup", "--database", "orders")
    assert (real.returncode, real.stdout) == (0, dry.stdout)
    assert f"goes    {made(9).id}  older than 7 days" in real.stdout
    assert "removed 1, " in real.stderr
    assert ids(local) == {str(made(1).id)}


def test_the_terminal_gives_one_document(here: Here, ours: Terminal, local: LocalStore, lay: Put) -> None:
    lay(local, 1, "content")
    lay(local, 9)
    ended = here(ours, "cleanup", "--json")
    document = json.loads(ended.stdout)
    assert (document["dry_run"], document["removed"]) == (False, 1)
    [there] = document["cleaned"]
    assert [(each["backup"], each["fate"], each["removed"]) for each in there["backups"]] == [
        (str(made(1).id), "stays", False),
        (str(made(9).id), "goes", True),
    ]
    assert document["freed_bytes"] == there["backups"][1]["bytes"] > 0


def test_the_terminal_ends_with_the_refusal_and_how_to_go_on(
    here: Here, ours: Terminal, local: LocalStore, lay: Put
) -> None:
    lay(local, 1)
    lay(local, 9)
    ended = here(ours, "cleanup")
    assert ended.returncode == 8
    assert "never read to its end" in ended.stderr
    assert f"backup-dag verify {made(1).id}" in ended.stderr
    assert "would go" in ended.stdout
    refused = json.loads(here(ours, "cleanup", "--json").stdout)["cleaned"][0]["refused"]
    assert refused["exit_code"] == 8
    assert here(ours, "cleanup", "--unverified").returncode == 0
    assert ids(local) == {str(made(1).id)}


def test_the_terminal_knows_only_configured_databases(here: Here, ours: Terminal) -> None:
    ended = here(ours, "cleanup", "--database", "crm")
    assert ended.returncode == 3
    assert "orders" in ended.stderr


def test_errors_of_the_report_come_failures_first() -> None:
    report = Report(dry_run=False, failed={"orders": BackupDagError("x")})
    assert [error.message for error in report.errors] == ["x"]
    assert "orders: nothing is removed: x" in list(report.lines())


def test_what_a_host_whose_clock_is_ahead_finds_old_is_judged_by_the_stores_clock(
    policy: Settings, local: LocalStore, tmp_path: Path
) -> None:
    """Else it would take what another host is uploading for what a dead run left."""

    class Behind(LocalStore):
        def clock(self) -> datetime:
            return datetime.now(UTC) - timedelta(hours=12)

    then = datetime.now(UTC) - timedelta(hours=30)
    put(local, tmp_path / "made", manifest("orders", datetime.now(UTC) - timedelta(hours=20)), "content")
    left = local.folder / f"backup_orders_{then:%Y%m%d_%H%M%S}.sql.gz.gpg"
    left.write_bytes(b"on its way")
    os.utime(left, (then.timestamp(), then.timestamp()))
    clean_up(policy, [Behind(local.folder)], ["orders"], Leave())
    assert left.exists()
    clean_up(policy, [local], ["orders"], Leave())
    assert not left.exists()
