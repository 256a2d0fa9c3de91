"""The audit log: every line whole, none lost on the way to the bucket, no verb that fails for its sake."""

import json
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from backup_dag import __version__
from backup_dag.core import audit, history, journal
from backup_dag.core.audit import acting_for, audited, entries, log_file, send, send_if_possible
from backup_dag.core.backup import order_for, take_backup
from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.databases import configured
from backup_dag.core.errors import DiskError, GuardRefused, StoreError
from backup_dag.core.restoring.plan import Wish
from backup_dag.core.restoring.restore import Restoration
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import Store
from demo.servers import S3Server
from tests.conftest import KEY, Here, Terminal, make_database, run_sql

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _not_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are said once in the life of a process, which here is all tests'."""
    monkeypatch.setattr(journal, "_said", set())


def lines(folder: Path) -> list[dict[str, Any]]:
    """Every line of the log; each has to be whole."""
    return [json.loads(line) for line in log_file(folder).read_text().splitlines()]


def in_a_process(code: str, *words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT)


# a line


def test_a_line_says_who_did_what_to_which_backup_and_how_it_ended(tmp_path: Path) -> None:
    with acting_for("a-run"), audited(tmp_path, "verify", "shop", "backup_shop_x", level="content") as entry:
        entry["store"] = "s3"
    [line] = lines(tmp_path)
    assert (line["what"], line["database"], line["backup"]) == ("verify", "shop", "backup_shop_x")
    assert (line["outcome"], line["message"], line["run"]) == ("done", "", "a-run")
    assert line["details"] == {"level": "content", "store": "s3"}
    assert line["time"].endswith("+00:00")
    assert (line["version"], line["host"] != "", line["user"] != "") == (__version__, True, True)


@pytest.mark.parametrize(
    ("error", "outcome", "message"),
    [
        (GuardRefused("the lock is held"), "refused", "the lock is held"),
        (StoreError("no bucket"), "failed", "no bucket"),
        (ValueError(f"could not use {KEY}"), "failed", "unexpected: ValueError"),
        (KeyboardInterrupt(), "failed", "interrupted"),
    ],
)
def test_what_ends_a_block_is_its_outcome_and_only_our_own_errors_words_are_kept(
    tmp_path: Path, error: BaseException, outcome: str, message: str
) -> None:
    with pytest.raises(type(error)), audited(tmp_path, "backup", "shop"):
        raise error
    [line] = lines(tmp_path)
    assert (line["outcome"], line["message"]) == (outcome, message)


def test_the_log_is_its_owners_alone(tmp_path: Path) -> None:
    with audited(tmp_path / "new" / "backups", "backup"):
        pass
    log = log_file(tmp_path / "new" / "backups")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (log, *log.parents[:3])]
    assert modes == [0o600, 0o700, 0o700, 0o700]


def test_processes_that_write_at_a_time_lose_and_mix_nothing(tmp_path: Path) -> None:
    """Lines of 20 kB: longer than what a kernel writes in one piece by chance."""
    code = """
import sys; from pathlib import Path; from backup_dag.core.audit import audited
for n in range(60):
    with audited(Path(sys.argv[1]), "backup", sys.argv[2], n=n, long="x" * 20_000): pass
"""
    writers = [in_a_process(code, str(tmp_path), name) for name in "abcd"]
    assert [writer.wait() for writer in writers] == [0] * 4
    found = [(line["database"], line["details"]["n"]) for line in lines(tmp_path)]
    assert sorted(found) == [(name, n) for name in "abcd" for n in range(60)]


def test_a_line_that_a_crash_tore_spoils_no_other(tmp_path: Path) -> None:
    with audited(tmp_path, "backup", "one"):
        pass
    with log_file(tmp_path).open("a") as log:
        log.write('{"what": "backup", "datab')
    with audited(tmp_path, "backup", "two"):
        pass
    assert [entry.database for entry in entries(tmp_path)] == ["one", "two"]


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """As on a disk that fills up in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_fails_no_verb_and_tears_no_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with audited(tmp_path, "backup", "one"):
        pass
    before, done = log_file(tmp_path).read_bytes(), []
    with files_no_longer_than(len(before) + 40), audited(tmp_path, "backup", "two"):
        done.append("two")
    assert done == ["two"]
    assert log_file(tmp_path).read_bytes() == before
    assert f"noting it in {log_file(tmp_path)} failed" in caplog.text
    with audited(tmp_path, "backup", "three"):
        pass
    assert [entry.database for entry in entries(tmp_path)] == ["one", "three"]


def test_a_folder_that_cannot_be_written_is_said_once_and_fails_no_verb(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(3):
        with audited(Path("/dev/null"), "verify"):
            pass
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_how_long_restores_took_is_read_back_and_what_cannot_be_noted_fails_none(tmp_path: Path) -> None:
    for seconds in (1.0, 2.0):
        history.record(tmp_path, what="restore", database="shop", seconds={"load": seconds})
    history.record(tmp_path, what="restore", database="other", seconds={"load": 9.0})
    assert history.estimate(tmp_path, "shop") == ({"load": 2.0}, "restore")
    history.record(Path("/dev/null"), what="restore", database="shop", seconds={})
    assert history.estimate(Path("/dev/null"), "shop") == ({}, "")


# to the bucket


@pytest.fixture
def with_bucket(settings: Settings, s3: S3Server, bucket: str) -> Settings:
    return settings.model_copy(update={"aws_s3_bucket": bucket, "backup_s3_prefix": "ours/"})


@pytest.fixture
def store(with_bucket: Settings) -> Store:
    _, bucket = open_stores(with_bucket)
    return bucket


class Sent:
    """What lies in the bucket of the log, in the order of sending."""

    def __init__(self, s3: S3Server, bucket: str) -> None:
        self._client, self._bucket = s3.client(), bucket

    @property
    def names(self) -> list[str]:
        found = self._client.list_objects_v2(Bucket=self._bucket).get("Contents", ())
        return sorted(each["Key"] for each in found if "audit/" in each["Key"])

    def text(self) -> bytes:
        whole = (self._client.get_object(Bucket=self._bucket, Key=name)["Body"].read() for name in self.names)
        return b"".join(whole)


@pytest.fixture
def sent(s3: S3Server, bucket: str) -> Sent:
    return Sent(s3, bucket)


def note(folder: Path, *names: str) -> None:
    for name in names:
        with audited(folder, "backup", name):
            pass


def test_what_was_not_sent_yet_goes_into_a_new_object_and_nothing_goes_twice(
    with_bucket: Settings, store: Store, sent: Sent
) -> None:
    folder = with_bucket.backup_dir
    assert send(folder, store) == 0
    assert not folder.exists()
    note(folder, "a", "b")
    assert send(folder, store) == log_file(folder).stat().st_size
    assert send(folder, store) == 0
    note(folder, "c")
    send(folder, store)
    assert [key.rsplit("/", 1)[0] for key in sent.names] == [f"ours/audit/{audit._host()}"] * 2
    assert sent.text() == log_file(folder).read_bytes()


def test_the_catalog_sees_nothing_of_it(with_bucket: Settings, store: Store) -> None:
    note(with_bucket.backup_dir, "a")
    send(with_bucket.backup_dir, store)
    survey = Catalog(open_stores(with_bucket)).survey()
    assert (survey.ids, survey.strays, survey.missed) == ([], [], ())


def test_a_run_killed_between_upload_and_note_sends_lines_twice_and_loses_none(
    with_bucket: Settings, store: Store, sent: Sent
) -> None:
    folder = with_bucket.backup_dir
    note(folder, "a", "b")
    code = """
import os, sys; from pathlib import Path
from backup_dag.core import audit; from backup_dag.core.backup import order_for, take_backup
from backup_dag.core.catalog import open_stores
from backup_dag.core.settings import Settings
audit._note_sent = lambda *_: os._exit(9)
settings = Settings(backup_dir=sys.argv[1], aws_s3_bucket=sys.argv[2], backup_s3_prefix="ours/")
audit.send(settings.backup_dir, open_stores(settings)[1])
"""
    killed = in_a_process(code, str(folder), str(with_bucket.aws_s3_bucket))
    assert killed.wait() == 9
    assert sent.text() == log_file(folder).read_bytes()
    note(folder, "c")
    send(folder, store)
    found = [json.loads(line)["database"] for line in sent.text().splitlines()]
    assert sorted(found) == ["a", "a", "b", "b", "c"]


def test_a_large_log_goes_in_pieces_of_whole_lines(
    with_bucket: Settings, store: Store, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_MOST_AT_ONCE", 1000)
    note(with_bucket.backup_dir, *(f"db{n}" for n in range(12)))
    send(with_bucket.backup_dir, store)
    assert len(sent.names) > 2
    assert sent.text() == log_file(with_bucket.backup_dir).read_bytes()


def test_a_line_that_is_still_being_written_waits(with_bucket: Settings, store: Store, sent: Sent) -> None:
    folder = with_bucket.backup_dir
    note(folder, "a")
    whole = log_file(folder).read_bytes()
    with log_file(folder).open("ab") as log:
        log.write(b'{"what": "back')
    send(folder, store)
    assert sent.text() == whole
    note(folder, "b")
    send(folder, store)
    assert sent.text() == log_file(folder).read_bytes()


def test_a_log_that_was_begun_anew_is_sent_from_its_beginning(
    with_bucket: Settings, store: Store, sent: Sent
) -> None:
    folder = with_bucket.backup_dir
    note(folder, "a", "b")
    send(folder, store)
    log_file(folder).rename(folder / "set-aside")
    note(folder, "c", "d", "e", "f")
    send(folder, store)
    assert sent.text() == (folder / "set-aside").read_bytes() + log_file(folder).read_bytes()


def test_a_note_of_what_was_sent_that_is_spoilt_costs_a_second_sending(
    with_bucket: Settings, store: Store, sent: Sent
) -> None:
    folder = with_bucket.backup_dir
    note(folder, "a")
    send(folder, store)
    (log_file(folder).parent / "sent").write_text("[]")
    note(folder, "b")
    send(folder, store)
    assert log_file(folder).read_bytes() in sent.text()


def test_a_bucket_that_does_not_take_it_is_said_and_gets_it_later(
    with_bucket: Settings, store: Store, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_bucket.backup_dir
    note(folder, "a")
    nowhere = with_bucket.model_copy(update={"aws_s3_bucket": "no-such-bucket"})
    send_if_possible(folder, open_stores(nowhere)[1])
    assert "the audit log was not sent, and the next copy makes up for it" in caplog.text
    send(folder, store)
    assert sent.text() == log_file(folder).read_bytes()


# the verbs


@pytest.fixture
def ours(postgres: Any, terminal: Callable[[str], Terminal], s3: S3Server, bucket: str) -> Iterator[Terminal]:
    """A terminal with a small database of its own and a bucket."""
    url = make_database(postgres)
    run_sql(url, "CREATE TABLE t AS SELECT n FROM generate_series(1, 50) n")
    made = terminal(url)
    made.environment |= {**s3.environment(), "AWS_S3_BUCKET": bucket}
    yield made
    name = url.rpartition("/")[2]
    run_sql(postgres.url(), f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def noted(ours: Terminal) -> list[tuple[str, str]]:
    return [(entry.what, entry.outcome) for entry in entries(ours.backups)]


def test_backup_copy_verify_and_each_use_of_the_key_are_noted_here_and_in_the_bucket(
    here: Here, ours: Terminal, sent: Sent
) -> None:
    assert here(ours, "backup").returncode == 0
    assert noted(ours) == [("backup", "done"), ("copy", "done")]
    assert here(ours, "verify").returncode == 0
    of_one_copy = [("key use", "done"), ("key use", "done"), ("verify", "done")]
    assert noted(ours)[2:] == of_one_copy * 2
    assert here(ours, "backup").returncode == 0
    whole = [json.loads(line) for line in log_file(ours.backups).read_bytes().splitlines()]
    assert sent.text() == log_file(ours.backups).read_bytes()
    [fingerprint] = {key for line in whole for key in line["details"].get("key", [])}
    assert len(fingerprint) == 16
    assert KEY not in log_file(ours.backups).read_text()
    assert {line["backup"] for line in whole} >= {whole[0]["backup"]}


def test_what_fails_and_what_is_refused_is_noted_with_its_reason(here: Here, ours: Terminal) -> None:
    assert here(ours, "backup").returncode == 0
    wrong = {"BACKUP_ENCRYPTION_KEY": "another passphrase, of enough length"}
    assert here(ours, "backup", AWS_S3_BUCKET="no-such-bucket").returncode == 7
    assert here(ours, "backup", DATABASE_URL="postgresql://u@127.0.0.1:1/d").returncode == 4
    assert here(ours, "verify", "--store", "local", **wrong).returncode == 3
    artifact = min(ours.backups.glob("*[0-9].sql.gz.gpg"))
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"?")
    here(ours, "verify", artifact.name.partition(".")[0], "--store", "local")
    failed = [entry for entry in entries(ours.backups) if entry.outcome != "done"]
    assert [entry.what for entry in failed] == ["copy", "backup", "verify", "key use", "verify"]
    assert all(entry.outcome == "failed" and entry.message for entry in failed)


def test_a_restore_its_rollback_and_the_dropping_after_it_are_noted(here: Here, ours: Terminal) -> None:
    assert here(ours, "backup").returncode == 0
    assert here(ours, "restore", "--force").returncode == 0
    assert here(ours, "restore", "--rollback", "--force").returncode == 0
    assert here(ours, "restore", "--drop-previous", "--force").returncode == 0
    assert here(ours, "restore", "--drop-previous", "--force").returncode == 8
    what = [each for each in noted(ours) if each[0] not in ("key use", "verify", "backup", "copy")]
    assert what == [("restore", "done"), ("rollback", "done"), ("drop", "done")]
    [restore] = [entry for entry in entries(ours.backups) if entry.what == "restore"]
    assert restore.details["kept_as"]
    assert restore.details["seconds"]["build"] > 0


def test_notes_that_cannot_be_written_fail_no_restore_that_is_done(here: Here, ours: Terminal) -> None:
    """Both are written after the swap, when the restore is beyond undoing."""
    assert here(ours, "backup").returncode == 0
    log_file(ours.backups).unlink()
    for path in (log_file(ours.backups), ours.backups / ".restores.jsonl"):
        path.mkdir()
    ended = here(ours, "restore", "--force")
    assert ended.returncode == 0, ended.stderr
    assert "restored" in ended.stdout
    assert here(ours, "restore", "--rollback", "--force").returncode == 0
    assert here(ours, "restore", "--drop-previous", "--force").returncode == 0


def test_a_restore_that_ends_half_way_is_noted_as_failed(settings: Settings, ours: Terminal) -> None:
    """With an error, or without one: as in Dagster, where what failed is another step."""
    url = SecretStr(ours.environment["DATABASE_URL"])
    settings = settings.model_copy(update={"database_url": url, "backup_config": Path("/dev/null")})
    [source] = configured(settings)
    made = take_backup(settings, order_for(source, settings, None))
    half_way(settings, made.backup)
    with pytest.raises(DiskError):
        half_way(settings, made.backup, DiskError("the disk is full"))
    noted = [entry for entry in entries(settings.backup_dir) if entry.what == "restore"]
    assert [entry.outcome for entry in noted] == ["failed"] * 2
    assert [entry.message for entry in noted] == [
        "it ended before the swap; the target is as it was",
        "the disk is full",
    ]
    assert {entry.backup for entry in noted} == {made.backup}


def half_way(settings: Settings, backup: str, error: Exception | None = None) -> None:
    with Restoration(settings, Wish(backup=backup, safety_backup=False)) as restoration:
        restoration.fetch()
        restoration.verify()
        restoration.safety(restoration.plan())
        if error:
            raise error


@pytest.mark.parametrize("which", ["what", "database", "outcome", "message", "time"])
def test_a_line_with_half_a_character_is_passed_over(tmp_path: Path, which: str) -> None:
    with audited(tmp_path, "backup", "shop"):
        pass
    said = json.loads(log_file(tmp_path).read_text())
    with log_file(tmp_path).open("a") as log:
        log.write(json.dumps({**said, which: "\ud800"}) + "\n")
    assert len(list(entries(tmp_path))) == 1


@pytest.mark.parametrize("number", ["9" * 400, "9" * 5000, '"x"', "[" * 100_000])
def test_a_line_that_nobody_can_compute_with_is_passed_over(tmp_path: Path, number: str) -> None:
    with audited(tmp_path, "backup", "shop"):
        pass
    [good] = entries(tmp_path)
    line = log_file(tmp_path).read_text()
    said = json.loads(line)
    with log_file(tmp_path).open("a") as log:
        log.write(line.replace(f'"seconds": {said["seconds"]}', f'"seconds": {number}'))
    assert list(entries(tmp_path)) == [good]


@pytest.mark.parametrize("number", ["Infinity", "9" * 5000, "[" * 100_000, "null"])
def test_a_note_of_what_was_sent_that_says_nothing_is_none(tmp_path: Path, number: str) -> None:
    with audited(tmp_path, "backup", "shop"):
        pass
    log_file(tmp_path).with_name("sent").write_text(f'{{"file": 1, "bytes": {number}}}')
    assert audit._sent(tmp_path) == (0, 0)
