"""Another passphrase for what is kept: each copy opens before, meanwhile and after; nothing else stays."""

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from backup_dag.core import reencryption
from backup_dag.core.audit import entries
from backup_dag.core.backup import order_for, take_backup
from backup_dag.core.catalog import Catalog
from backup_dag.core.errors import GuardRefused, StoreError
from backup_dag.core.holds import held, holder, sweep_holds
from backup_dag.core.key import Key, passphrase_fingerprint
from backup_dag.core.manifest import Bytes, Verification
from backup_dag.core.rekey import Rekeyed, Rekeying
from backup_dag.core.settings import Settings
from backup_dag.core.stages import encryption
from backup_dag.core.store.local import LocalStore
from backup_dag.core.stream import Writer
from backup_dag.core.verify import examine, record
from demo.servers import S3Server, available_versions
from tests.authentic import scrypt, with_mac
from tests.conftest import KEY, MARKER, Here, Terminal, asked, database, run_sql
from tests.gate import Gate

NEW, OTHER = "another passphrase: nobody knew it before", "a third one that is lost"
MIB = 1 << 20
MID_UPLOAD = 3 * MIB
ROTATED = {"BACKUP_ENCRYPTION_KEY": NEW, "BACKUP_ENCRYPTION_OLD_KEY": KEY}
ONLY_NEW = {"BACKUP_ENCRYPTION_KEY": NEW}

MakeTerminal = Callable[[str], Terminal]
PutGate = Callable[[str, int], tuple[str, Gate]]


# -- what every test asks in the end, with gpg, gunzip and sha256sum alone


def fingerprint(passphrase: str) -> str:
    return scrypt(passphrase, "backup-dag passphrase fingerprint 1", 8).hex()


def opened(path: Path, passphrase: str) -> bytes:
    """A file's plain bytes, by gpg and gunzip."""
    with tempfile.TemporaryDirectory(prefix="bd-gpg-") as home:
        gpg = f"gpg --homedir {home} --batch --no-autostart --pinentry-mode loopback --passphrase-fd 0 -d"
        secret = passphrase.encode() + b"\n"
        done = subprocess.run([*gpg.split(), str(path)], input=secret, capture_output=True)
    assert done.returncode == 0, done.stderr
    return subprocess.run(["gunzip"], input=done.stdout, capture_output=True, check=True).stdout


def manifests(folder: Path) -> list[dict[str, Any]]:
    found = [path for path in sorted(folder.glob("backup_*.json")) if path.name.count(".") == 1]
    return [json.loads(path.read_text()) for path in found]


def assert_whole(folder: Path, *passphrases: str) -> list[str]:
    """Each manifest is authentic under the passphrase that it names, and each of its files opens with it and
    holds what was dumped; sha256sum agrees. Which passphrases these were."""
    known, found = {fingerprint(each): each for each in passphrases}, []
    for said in manifests(folder):
        [key] = said["encryption"]["key_fingerprints"]
        assert with_mac(said, known[key]) == said
        checked = subprocess.run(
            ["sha256sum", "-c", f"{said['backup']}.sha256"], cwd=folder, capture_output=True
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        dump = opened(folder / said["artifact"]["name"], known[key])
        assert hashlib.sha256(dump).hexdigest() == said["dump"]["sha256"]
        assert b"CREATE ROLE" in opened(folder / said["globals"]["name"], known[key])
        assert said["artifact"]["name"] in said["recover"][1]
        assert said["globals"]["name"] in said["recover"][1]
        found.append(known[key])
    return found


def assert_nothing_else(folder: Path) -> None:
    """What is there is what the manifests name, and the notes of checks."""
    named = {
        name for said in manifests(folder) for name in (said["artifact"]["name"], said["globals"]["name"])
    }
    named |= {f"{said['backup']}.{ending}" for said in manifests(folder) for ending in ("json", "sha256")}
    there = {path.name for path in folder.glob("backup_*") if ".verify." not in path.name}
    assert there == named
    assert not list((folder / ".work").glob("run-*"))


def fetched(server: S3Server, bucket: str, folder: Path) -> Path:
    """The bucket's backups, in a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    client = server.client()
    for each in client.list_objects_v2(Bucket=bucket).get("Contents", ()):
        if not each["Key"].startswith("audit/"):
            client.download_file(bucket, each["Key"], str(folder / each["Key"]))
    return folder


def everything_in(folder: Path) -> bytes:
    """The bytes of every file, hidden ones too."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if stat.S_ISREG(path.lstat().st_mode))


def at_bucket(server: S3Server, bucket: str, endpoint: str | None = None) -> dict[str, str]:
    given = {**server.environment(), "AWS_S3_BUCKET": bucket}
    return {**given, "AWS_ENDPOINT_URL_S3": endpoint or server.endpoint}


def keys_listed(here: Here, ours: Terminal, **changed: str) -> set[tuple[str, str]]:
    listed = json.loads(here(ours, "list", "--json", **changed).stdout)
    return {(copy["store"], copy["key"]) for backup in listed["backups"] for copy in backup["copies"]}


def assert_no_secret(done: "subprocess.CompletedProcess[str]") -> None:
    for secret in (KEY, NEW, OTHER, MARKER):
        assert secret not in done.stdout + done.stderr


# -- in both stores, from a terminal


def test_a_rotation_in_both_stores_from_the_first_day_to_the_last(
    here: Here, postgres: Any, sample: str, terminal: MakeTerminal, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    ours, there = terminal(sample), at_bucket(s3, bucket)
    for _ in range(2):
        assert here(ours, "backup", **there).returncode == 0
    assert here(ours, "verify", **there).returncode == 0
    refused = here(ours, "verify", **there, **ONLY_NEW)
    assert refused.returncode == 3
    assert "BACKUP_ENCRYPTION_OLD_KEY" in refused.stderr
    assert fingerprint(KEY) in refused.stderr
    assert fingerprint(NEW) in refused.stderr
    assert here(ours, "verify", **there, **ROTATED).returncode == 0, "an old passphrase opens what it made"
    assert here(ours, "restore", "--dry-run", **there, **ROTATED).returncode == 0
    assert keys_listed(here, ours, **there, **ROTATED) == {("local", "old"), ("s3", "old")}
    checks = sorted(path.read_bytes() for path in ours.backups.glob("*.verify.json"))
    table = here(ours, "list", **there, **ROTATED)
    assert "local* s3*" in table.stdout
    assert f"* under the passphrase {fingerprint(KEY)}, an old one: backup-dag rekey" in table.stderr
    assert "? under the passphrase" in here(ours, "list", **there, **ONLY_NEW).stderr

    planned = here(ours, "rekey", "--dry-run", **there, **ROTATED)
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.count("would be re-encrypted") == 4
    assert assert_whole(ours.backups, KEY, NEW) == [KEY, KEY]

    done = here(ours, "rekey", **there, **ROTATED)
    assert done.returncode == 0, done.stderr
    assert_no_secret(done)
    assert done.stdout.count("rekeyed") == 4
    newest_first = [line.split()[1] for line in done.stdout.splitlines()]
    assert newest_first == sorted(newest_first, reverse=True)
    assert "take it out" in done.stderr
    for folder in (ours.backups, fetched(s3, bucket, tmp_path / "fetched")):
        assert assert_whole(folder, NEW) == [NEW, NEW]
        assert_nothing_else(folder)
    assert manifests(ours.backups) == manifests(tmp_path / "fetched"), "each was re-encrypted once, for both"
    assert sorted(path.read_bytes() for path in ours.backups.glob("*.verify.json")) == checks

    again = here(ours, "rekey", **there, **ONLY_NEW)
    assert again.returncode == 0, "the old passphrase has been taken out"
    assert again.stdout == ""
    assert here(ours, "verify", **there, **ONLY_NEW).returncode == 0
    assert keys_listed(here, ours, **there, **ONLY_NEW) == {("local", "current"), ("s3", "current")}
    assert here(ours, "backup", **there, **ONLY_NEW).returncode == 0
    words = ("restore", "--mode", "new", "--target-database", "after_the_rotation", "--force")
    restored = here(ours, *words, newest_first[0], **there, **ONLY_NEW)
    assert restored.returncode == 0, restored.stderr
    count = "SELECT count(*) FROM shop.orders"
    assert asked(postgres.url("after_the_rotation"), count) == asked(sample, count)
    run_sql(postgres.url(), "DROP DATABASE after_the_rotation")
    cleaned = json.loads(here(ours, "cleanup", "--json", **there, **ONLY_NEW).stdout)
    assert cleaned["removed"] == 0
    assert [each["orphans"] for each in cleaned["cleaned"]] == [[], []]
    logged = [entry for entry in entries(ours.backups) if entry.what == "rekey"]
    assert len(logged) == 4
    assert {entry.details["new"][0] for entry in logged} == {fingerprint(NEW)}
    assert {entry.details["old"][0] for entry in logged} == {fingerprint(KEY)}
    assert not any(secret.encode() in everything_in(ours.backups) for secret in (KEY, NEW))


def test_what_the_bucket_locks_is_named_and_both_are_of_use_meanwhile(
    here: Here, sample: str, terminal: MakeTerminal, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    locking = f"{bucket}-locking"
    s3.create_bucket(locking, object_lock=True)
    ours, there = terminal(sample), at_bucket(s3, locking)
    lock = {"BACKUP_S3_OBJECT_LOCK_MODE": "GOVERNANCE", "BACKUP_S3_OBJECT_LOCK_DAYS": "2"}
    assert here(ours, "backup", **there, **lock).returncode == 0
    before = manifests(fetched(s3, locking, tmp_path / "fetched"))
    done = here(ours, "rekey", **there, **ROTATED)
    assert done.returncode == 8, done.stderr
    end = datetime.now(UTC) + timedelta(days=2)
    assert f"locked until {end:%Y-%m-%d}" in done.stdout
    assert "keep the old passphrase" in done.stderr
    assert "take it out" not in done.stderr
    assert assert_whole(ours.backups, NEW) == [NEW]
    assert manifests(fetched(s3, locking, tmp_path / "fetched")) == before
    assert keys_listed(here, ours, **there, **ROTATED) == {("local", "current"), ("s3", "old")}
    listed = here(ours, "list", **there, **ROTATED)
    assert "cannot be used" not in listed.stderr
    assert "local s3*" in listed.stdout
    assert f"under the passphrase {fingerprint(NEW)}, that of today (1 copy)" in listed.stderr
    assert here(ours, "verify", **there, **ROTATED).returncode == 0
    assert here(ours, "backup", **there, **ROTATED).returncode == 0, "the copies are of one backup"
    assert here(ours, "cleanup", "--dry-run", **there, **ROTATED).returncode == 0
    shutil.rmtree(ours.backups)
    assert here(ours, "restore", before[0]["backup"], "--dry-run", **there, **ROTATED).returncode == 0


def test_killed_in_mid_upload_it_goes_on_and_under_a_third_passphrase_too(
    here: Here,
    large: str,
    terminal: MakeTerminal,
    gated: PutGate,
    s3: S3Server,
    bucket: str,
    tmp_path: Path,
) -> None:
    """At that moment the local copy is under the new passphrase, and the bucket's under the old one."""
    ours = terminal(large)
    (tmp_path / "temporary").mkdir()
    ours.environment["TMPDIR"] = str(tmp_path / "temporary")
    assert here(ours, "backup", **at_bucket(s3, bucket)).returncode == 0
    endpoint, gate = gated(s3.endpoint, MID_UPLOAD)
    with ours.running("rekey", **at_bucket(s3, bucket, endpoint), **ROTATED) as process:
        gate.wait_until_held()
        everywhere = everything_in(ours.backups) + everything_in(tmp_path / "temporary")
        process.send_signal(signal.SIGKILL)
        gate.open()
        said = "".join(process.communicate(timeout=30))
    assert process.returncode == -signal.SIGKILL
    for secret in (MARKER, KEY, NEW):
        assert secret.encode() not in everywhere
        assert secret not in said
    assert assert_whole(ours.backups, NEW) == [NEW]
    assert assert_whole(fetched(s3, bucket, tmp_path / "fetched"), KEY) == [KEY]
    assert here(ours, "verify", **at_bucket(s3, bucket), **ROTATED).returncode == 0
    assert here(ours, "restore", "--dry-run", **at_bucket(s3, bucket), **ROTATED).returncode == 0
    (tmp_path / "old").write_text(f"{NEW}\n{KEY}\n")
    settings = {"BACKUP_ENCRYPTION_KEY": OTHER, "BACKUP_ENCRYPTION_OLD_KEYS_FILE": str(tmp_path / "old")}
    done = here(ours, "rekey", **at_bucket(s3, bucket), **settings)
    assert done.returncode == 0, done.stderr
    for folder in (ours.backups, fetched(s3, bucket, tmp_path / "fetched")):
        assert assert_whole(folder, OTHER) == [OTHER]
        assert_nothing_else(folder)
    assert s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
    assert not list(ours.backups.glob("*.hold-*"))


def test_a_bucket_that_falls_silent_keeps_no_local_copy_from_its_turn(
    here: Here,
    large: str,
    terminal: MakeTerminal,
    gated: PutGate,
    s3: S3Server,
    bucket: str,
    tmp_path: Path,
) -> None:
    ours = terminal(large)
    for _ in range(3):
        assert here(ours, "backup", **at_bucket(s3, bucket)).returncode == 0
    [oldest, *_] = manifests(ours.backups)
    for path in ours.backups.glob(f"{oldest['backup']}.*"):
        path.unlink()  # it is in the bucket alone
    endpoint, gate = gated(s3.endpoint, MID_UPLOAD)
    silent = {**at_bucket(s3, bucket, endpoint), **ROTATED, "BACKUP_STALL_SECONDS": "3"}
    done = here(ours, "rekey", **silent)
    gate.wait_until_held()
    assert done.returncode == 7, done.stderr
    assert "2 copies re-encrypted" in done.stderr
    assert f"the copies of 3 backups in s3://{bucket}/ were not dealt with" in done.stderr
    assert "take it out" not in done.stderr
    assert assert_whole(ours.backups, NEW) == [NEW, NEW]
    assert assert_whole(fetched(s3, bucket, tmp_path / "fetched"), KEY) == [KEY, KEY, KEY]
    gate.open()
    again = here(ours, "rekey", **at_bucket(s3, bucket), **ROTATED)
    assert again.returncode == 0, again.stderr
    assert assert_whole(fetched(s3, bucket, tmp_path / "fetched"), NEW) == [NEW, NEW, NEW]
    assert_nothing_else(tmp_path / "fetched")
    assert manifests(ours.backups) == manifests(tmp_path / "fetched")[1:]


def test_where_nothing_was_looked_at_nobody_is_told_to_take_the_old_passphrase_out(
    here: Here, sample: str, terminal: MakeTerminal
) -> None:
    """BACKUP_DIR may only not be mounted."""
    done = here(terminal(sample), "rekey", **ROTATED)
    assert done.returncode == 0
    assert "take it out" not in done.stderr


def test_what_is_not_encrypted_may_still_need_the_old_passphrase(
    here: Here, sample: str, terminal: MakeTerminal
) -> None:
    ours = terminal(sample)
    assert here(ours, "backup", BACKUP_ENCRYPTION="off").returncode == 0
    done = here(ours, "rekey", **ROTATED)
    assert done.returncode == 0, done.stderr
    assert "1 copy not encrypted, and authenticated by an old passphrase" in done.stderr
    assert "take it out" not in done.stderr


KILLED = """
import os, signal, sys
from backup_dag.core.stages import encryption
from backup_dag.core.store.local import LocalStore
from backup_dag.core.stream import Writer
from backup_dag.core.store.s3 import S3Store

how, label, left = signal.Signals[sys.argv.pop(1)], sys.argv.pop(1), int(sys.argv.pop(1))

def killed_before(method):
    def wrapped(self, source, *rest):
        global left
        if self.label == label:
            if left == 0:
                os.kill(os.getpid(), how)
            left -= 1
        return method(self, source, *rest)
    return wrapped

for store in (LocalStore, S3Store):
    for name in ("put", "replace"):
        setattr(store, name, killed_before(getattr(store, name)))

from backup_dag.cli.main import main
main()
"""


def ended_before(
    ours: Terminal, moment: tuple[str, int], *words: str, how: str = "SIGKILL", **changed: str
) -> "subprocess.CompletedProcess[str]":
    """A verb that is sent a signal before it puts or replaces the file of that number in that store."""
    program = [sys.executable, "-c", KILLED, how, *map(str, moment), *words]
    return subprocess.run(
        program,
        cwd=ours.folder,
        env={**ours.environment, **changed},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("store", "before", "local", "bucketed"),
    [
        ("local", 1, KEY, KEY),
        ("local", 3, KEY, KEY),
        ("local", 4, NEW, KEY),
        ("s3", 3, NEW, KEY),
        ("s3", 4, NEW, NEW),
    ],
    ids=["between the files", "before the manifest", "after it", "before the bucket's", "after the bucket's"],
)
def test_killed_between_two_files_each_copy_is_whole_and_the_next_run_ends_it(
    here: Here,
    sample: str,
    terminal: MakeTerminal,
    s3: S3Server,
    bucket: str,
    tmp_path: Path,
    store: str,
    before: int,
    local: str,
    bucketed: str,
) -> None:
    """Two of data, `.sha256`, the manifest, `.sha256`: before which of them it is killed."""
    ours, there = terminal(sample), at_bucket(s3, bucket)
    assert here(ours, "backup", **there).returncode == 0
    ended = ended_before(ours, (store, before), "rekey", **there, **ROTATED)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert assert_whole(ours.backups, KEY, NEW) == [local]
    assert assert_whole(fetched(s3, bucket, tmp_path / "fetched"), KEY, NEW) == [bucketed]
    assert here(ours, "verify", **there, **ROTATED).returncode == 0
    assert "a rekey was interrupted, and backup-dag rekey removes that" in here(ours, "list", **there).stderr
    assert "a rekey was interrupted, and left" in here(ours, "doctor", **there, **ROTATED).stdout
    done = here(ours, "rekey", **there, **ROTATED)
    assert done.returncode == 0, done.stderr
    for folder in (ours.backups, fetched(s3, bucket, tmp_path / "fetched")):
        assert assert_whole(folder, NEW) == [NEW]
        assert_nothing_else(folder)


@pytest.mark.parametrize("moment", [("local", 3), ("s3", 1), ("s3", 3)], ids=str)
def test_interrupted_between_two_files_it_leaves_each_copy_whole(
    here: Here, sample: str, terminal: MakeTerminal, s3: S3Server, bucket: str, tmp_path: Path, moment: Any
) -> None:
    ours, there = terminal(sample), at_bucket(s3, bucket)
    assert here(ours, "backup", **there).returncode == 0
    ended = ended_before(ours, moment, "rekey", how="SIGINT", **there, **ROTATED)
    assert ended.returncode == 130, ended.stderr
    assert "goes on with what is left" in ended.stderr
    assert len(assert_whole(ours.backups, KEY, NEW)) == 1
    assert assert_whole(fetched(s3, bucket, tmp_path / "fetched"), KEY) == [KEY]
    assert here(ours, "rekey", **there, **ROTATED).returncode == 0
    for folder in (ours.backups, fetched(s3, bucket, tmp_path / "fetched")):
        assert assert_whole(folder, NEW) == [NEW]
        assert_nothing_else(folder)


def test_what_an_upload_that_was_killed_left_in_the_bucket_does_not_keep_the_rekeyed_copy_out(
    here: Here, sample: str, terminal: MakeTerminal, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """Killed before the manifest: data under the old passphrase is there, and the checksums of it."""
    ours, there = terminal(sample), at_bucket(s3, bucket)
    ended = ended_before(ours, ("s3", 3), "backup", **there)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert here(ours, "rekey", **there, **ROTATED).returncode == 0
    assert assert_whole(ours.backups, NEW) == [NEW]
    assert here(ours, "backup", **there, **ROTATED).returncode == 0
    assert assert_whole(fetched(s3, bucket, tmp_path / "fetched"), NEW) == [NEW, NEW]


def test_what_a_rekey_that_was_killed_lists_goes_to_no_bucket(
    here: Here, sample: str, terminal: MakeTerminal, s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """Killed before the manifest: the folder's checksums list both, and the bucket gets the one."""
    ours, there = terminal(sample), at_bucket(s3, bucket)
    assert here(ours, "backup").returncode == 0
    ended = ended_before(ours, ("local", 3), "rekey", **ROTATED)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert here(ours, "backup", **there, **ROTATED).returncode == 0
    assert assert_whole(fetched(s3, bucket, tmp_path / "fetched"), KEY, NEW) == [KEY, NEW]
    assert here(ours, "rekey", **there, **ROTATED).returncode == 0
    for folder in (ours.backups, fetched(s3, bucket, tmp_path / "fetched")):
        assert assert_whole(folder, NEW) == [NEW, NEW]
        assert_nothing_else(folder)


def test_a_copy_that_nothing_here_opens_is_neither_forged_nor_in_the_way(
    here: Here, sample: str, terminal: MakeTerminal, s3: S3Server, bucket: str
) -> None:
    """Another host has re-encrypted the bucket, and the old passphrase is set nowhere any more."""
    ours, there = terminal(sample), at_bucket(s3, bucket)
    assert here(ours, "backup", **there).returncode == 0
    elsewhere = {"BACKUP_DIR": str(ours.folder / "elsewhere")}
    assert here(ours, "rekey", **there, **ROTATED, **elsewhere).returncode == 0
    planned = here(ours, "restore", "--dry-run", "--json", **there, **ONLY_NEW)
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    assert plan["source"].startswith("s3://")
    [said] = [each for each in plan["findings"] if "copy" in each["what"]]
    assert said["what"] == "another copy"
    assert f"this backup's passphrase has fingerprint {fingerprint(KEY)}" in said["found"]
    assert "BACKUP_ENCRYPTION_OLD_KEY" in said["advice"]


# -- in a folder


@pytest.fixture(scope="module")
def two_backups(tmp_path_factory: pytest.TempPathFactory, sample_urls: dict[int, str], request: Any) -> Path:
    """A folder with two backups of the sample database under KEY. Copy it."""
    folder = tmp_path_factory.mktemp("two") / "backups"
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    given = {
        "backup_dir": folder,
        "backup_encryption_key": SecretStr(KEY),
        "pg_bin_dir": tuple(available_versions().values()),
    }
    settings = Settings.model_construct(**{**defaults, **given})
    for _ in range(2):
        take_backup(settings, order_for(database(sample_urls[max(sample_urls)]), settings, None))
    return folder


@pytest.fixture
def kept(two_backups: Path, settings: Settings) -> LocalStore:
    shutil.copytree(two_backups, settings.backup_dir)
    return LocalStore(settings.backup_dir)


@pytest.fixture
def rotated(settings: Settings) -> Settings:
    """The settings once the passphrase was changed."""
    changed = {"backup_encryption_key": SecretStr(NEW), "backup_encryption_old_key": SecretStr(KEY)}
    return settings.model_copy(update=changed)


def rekeyed(settings: Settings, *stores: LocalStore, dry_run: bool = False) -> list[Rekeyed]:
    return list(Rekeying(settings, stores).each(None, dry_run=dry_run))


def there(store: LocalStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.folder.glob("backup_*")}


def test_a_dry_run_changes_nothing(kept: LocalStore, rotated: Settings) -> None:
    before = there(kept)
    assert [each.fate for each in rekeyed(rotated, kept, dry_run=True)] == ["due", "due"]
    assert there(kept) == before


def test_what_neither_passphrase_opens_is_named_and_the_others_go_on(
    kept: LocalStore, settings: Settings, sample: str
) -> None:
    lost = settings.model_copy(update={"backup_encryption_key": SecretStr(OTHER)})
    foreign = take_backup(lost, order_for(database(sample), lost, None))
    rotated = settings.model_copy(
        update={"backup_encryption_key": SecretStr(NEW), "backup_encryption_old_key": SecretStr(KEY)}
    )
    untouched = {name: data for name, data in there(kept).items() if name.startswith(foreign.backup)}
    done = rekeyed(rotated, kept)
    assert [each.fate for each in done] == ["failed", "rekeyed", "rekeyed"]
    assert done[0].backup == foreign.backup
    assert done[0].error is not None
    assert done[0].error.exit_code == 3
    assert fingerprint(OTHER) in done[0].error.message
    assert "BACKUP_ENCRYPTION_OLD_KEY" in done[0].error.hint
    assert untouched.items() <= there(kept).items()


@pytest.mark.parametrize("of", ["artifact", "globals"])
def test_a_damaged_one_is_named_and_left_and_the_others_go_on(
    kept: LocalStore, rotated: Settings, of: str
) -> None:
    newest, oldest = manifests(kept.folder)[1], manifests(kept.folder)[0]
    path = kept.folder / newest[of]["name"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    before = {name: data for name, data in there(kept).items() if name.startswith(newest["backup"])}
    done = rekeyed(rotated, kept)
    assert [each.fate for each in done] == ["failed", "rekeyed"]
    assert done[0].error is not None
    assert done[0].error.exit_code == 6
    assert path.name in done[0].error.message
    after = {name: data for name, data in there(kept).items() if name.startswith(newest["backup"])}
    noted = Verification.model_validate_json(after.pop(f"{newest['backup']}.verify.json"))
    assert after == before
    assert [said["encryption"]["key_fingerprints"] for said in manifests(kept.folder)] == [
        [fingerprint(NEW)],
        [fingerprint(KEY)],
    ]
    assert oldest["backup"] == done[1].backup
    check = noted.verdict()
    assert check is not None
    assert not check.passed, "list, watch and cleanup are to know of it too"
    assert path.name in check.faults[0]


def test_a_damaged_copy_does_not_stand_in_the_way_of_a_good_one(
    kept: LocalStore, rotated: Settings, tmp_path: Path
) -> None:
    shutil.copytree(kept.folder, tmp_path / "second")
    second = LocalStore(tmp_path / "second")
    broken = kept.folder / manifests(kept.folder)[0]["artifact"]["name"]
    broken.write_bytes(bytes(broken.stat().st_size))
    done = rekeyed(rotated, kept, second)
    assert [each.fate for each in done] == ["rekeyed"] * 4
    assert [bool(each.damage) for each in done] == [False, False, True, False]
    assert broken.name in done[2].damage
    for store in (kept, second):
        assert assert_whole(store.folder, NEW) == [NEW, NEW], "the good copy took the damaged one's place"
    [_, oldest] = Catalog([kept]).survey().ids
    assert Catalog([kept]).load(oldest).good


def test_a_copy_that_rotted_since_it_was_brought_keeps_no_other_under_the_old_passphrase(
    kept: LocalStore, rotated: Settings, tmp_path: Path
) -> None:
    shutil.copytree(kept.folder, tmp_path / "second")
    second = LocalStore(tmp_path / "second")
    assert [each.fate for each in rekeyed(rotated, kept)] == ["rekeyed", "rekeyed"]
    rotten = kept.folder / manifests(kept.folder)[1]["artifact"]["name"]
    rotten.write_bytes(bytes(rotten.stat().st_size))
    assert [each.fate for each in rekeyed(rotated, kept, second)] == [
        "failed",
        "rekeyed",
        "current",
        "rekeyed",
    ]
    assert assert_whole(second.folder, NEW) == [NEW, NEW]
    [newest, _] = Catalog([kept]).survey().ids
    assert not Catalog([kept]).load(newest).good, "it is noted beside it"


def test_what_two_hosts_re_encrypted_each_for_itself_is_still_one_backup(
    kept: LocalStore, rotated: Settings, tmp_path: Path
) -> None:
    """As where the bucket was away for the first of them."""
    shutil.copytree(kept.folder, tmp_path / "second")
    second = LocalStore(tmp_path / "second")
    assert [each.fate for each in rekeyed(rotated, kept)] == ["rekeyed", "rekeyed"]
    assert [each.fate for each in rekeyed(rotated, second)] == ["rekeyed", "rekeyed"]
    assert manifests(kept.folder) != manifests(second.folder)
    for backup in Catalog([kept, second]).survey().ids:
        copies = Catalog([kept, second]).load(backup).copies
        assert [copy.fault for copy in copies] == ["", ""]
        for copy in copies:
            assert examine(rotated, copy, "content").passed
    assert {each.fate for each in rekeyed(rotated, kept, second)} == {"current"}


class OneBitOff:
    """A writer that changes the time in a gzip header on its way: what it says unpacks to the same."""

    def __init__(self, sink: Writer) -> None:
        self._sink, self._begun = sink, False

    def write(self, data: bytes) -> None:
        self._sink.write(data if self._begun else data[:4] + bytes([data[4] ^ 1]) + data[5:])
        self._begun = True


@pytest.mark.parametrize("file", [1, 2], ids=["artifact", "globals"])
def test_what_does_not_hold_the_same_takes_nothings_place(
    kept: LocalStore, rotated: Settings, monkeypatch: pytest.MonkeyPatch, file: int
) -> None:
    """Memory that is broken, or a gpg: the new file is sound in itself."""
    seen = 0

    @contextmanager
    def encrypting(sink: Writer, key: Key, work: Path) -> Iterator[Writer]:
        nonlocal seen
        seen += 1
        with encryption.encrypting(sink, key, work) as gpg:
            yield OneBitOff(gpg) if seen == file else gpg

    monkeypatch.setattr(reencryption, "encrypting", encrypting)
    before = there(kept)
    done = rekeyed(rotated, kept)
    assert [each.fate for each in done] == ["failed", "rekeyed"]
    assert done[0].error is not None
    assert done[0].error.exit_code == 6
    kept_as_it_was = {name: data for name, data in before.items() if name.startswith(done[0].backup)}
    assert kept_as_it_was.items() <= there(kept).items()


def test_a_forged_manifest_is_not_followed(kept: LocalStore, rotated: Settings) -> None:
    said = manifests(kept.folder)[0]
    (kept.folder / f"{said['backup']}.json").write_text(json.dumps({**said, "reason": "late"}))
    before = {name: data for name, data in there(kept).items() if name.startswith(said["backup"])}
    assert [each.fate for each in rekeyed(rotated, kept, dry_run=True)] == ["due", "failed"]
    done = rekeyed(rotated, kept)
    assert [each.fate for each in done] == ["rekeyed", "failed"]
    assert done[1].error is not None
    assert "somebody else wrote it" in done[1].error.message
    assert before.items() <= there(kept).items()


def test_what_nothing_authenticated_before_nothing_authenticates_now(
    kept: LocalStore, rotated: Settings
) -> None:
    said = manifests(kept.folder)[1]
    del said["authentication"]
    (kept.folder / f"{said['backup']}.json").write_text(json.dumps(said))
    accepting = rotated.model_copy(update={"backup_accept_unauthenticated": "on"})
    assert [each.fate for each in rekeyed(rotated, kept, dry_run=True)] == ["failed", "due"]
    assert [each.fate for each in rekeyed(accepting, kept)] == ["rekeyed", "rekeyed"]
    oldest, newest = manifests(kept.folder)
    assert "authentication" not in newest
    assert oldest["authentication"]["key"] == fingerprint(NEW)
    [copy] = Catalog([kept]).load(Catalog([kept]).survey().ids[0]).copies
    assert not examine(rotated, copy, "content").passed
    assert examine(accepting, copy, "content").passed


def test_the_facts_of_a_manifest_stay_and_good_checks_too(kept: LocalStore, rotated: Settings) -> None:
    [newest, _] = [Catalog([kept]).load(id) for id in Catalog([kept]).survey().ids]
    old = newest.manifest
    for level in ("content", "checksum"):
        record(kept, old, examine(rotated, newest.copies[0], level))
    damaged = examine(rotated, newest.copies[0], "checksum").model_copy(update={"faults": ["bytes"]})
    record(kept, old, damaged)
    unproven = damaged.model_copy(update={"level": "restore", "faults": ["a row"]})
    record(kept, old, unproven)
    rekeyed(rotated, kept)
    new = Catalog([kept]).load(old.id)
    keys = {"encryption", "artifact", "globals", "recover", "authentication"}
    assert new.manifest.model_dump(exclude=keys) == old.model_dump(exclude=keys)
    assert new.copies[0].verification is not None
    assert set(new.copies[0].verification.checks) == {"content", "restore"}
    assert not new.good, "what a drill found is of the content"
    assert examine(rotated, new.copies[0], "content").passed


def test_what_is_in_use_is_left_and_named(kept: LocalStore, rotated: Settings) -> None:
    [newest, oldest] = Catalog([kept]).survey().ids
    kept.put_note(newest.file("hold-4711-1.json"), json.dumps({"host": "another"}))
    done = rekeyed(rotated, kept)
    assert [each.fate for each in done] == ["failed", "rekeyed"]
    assert isinstance(done[0].error, GuardRefused)
    assert "somebody is reading it: process 4711 of another" in done[0].error.message
    assert not holder(kept, oldest)


def test_one_that_was_cleaned_up_meanwhile_keeps_no_other_from_its_turn(
    kept: LocalStore, rotated: Settings
) -> None:
    [newest, oldest] = Catalog([kept]).survey().ids

    class Cleaned(LocalStore):
        def put_note(self, name: str, text: str) -> None:
            if ".hold-" in name:
                for path in self.folder.glob(f"{newest}.*"):
                    path.unlink()
            super().put_note(name, text)

    done = list(Rekeying(rotated, [Cleaned(kept.folder)]).each(None))
    assert [(each.backup, each.fate) for each in done] == [(str(oldest), "rekeyed")]


@pytest.mark.parametrize("when", ["while it is re-encrypted", "when the manifest is in its place"])
def test_who_begins_to_read_meanwhile_reads_to_the_end(
    kept: LocalStore, rotated: Settings, when: str
) -> None:
    [newest, _] = Catalog([kept]).survey().ids
    hold = newest.file("hold-4711-1.json")

    class Read(LocalStore):
        def replace(self, source: Path, name: str, expected: Bytes) -> None:
            super().replace(source, name, expected)
            if name == newest.file("json"):
                kept.put_note(hold, "{}")

    def watch(what: str) -> None:
        if what.startswith("reading back") and not (kept.folder / hold).exists():
            kept.put_note(hold, "{}")

    def of_the_newest() -> dict[str, bytes]:
        return {name: data for name, data in there(kept).items() if name.startswith(f"{newest}.")}

    before = of_the_newest()
    if when.startswith("while"):
        first, *_ = Rekeying(rotated, [kept], watch).each(None)
        assert of_the_newest().items() - {(hold, b"{}")} == before.items()
    else:
        first, *_ = Rekeying(rotated, [Read(kept.folder)]).each(None)
        changed = {name for name, data in before.items() if of_the_newest()[name] != data}
        assert changed == {newest.file("json"), newest.file("sha256")}
    assert isinstance(first.error, GuardRefused)
    assert "process 4711" in first.error.message
    for dry_run in (True, False):
        still, *_ = rekeyed(rotated, kept, dry_run=dry_run)
        assert isinstance(still.error, GuardRefused), "what is not done is not called done"
    (kept.folder / hold).unlink()
    assert rekeyed(rotated, kept)[0].fate == ("rekeyed" if when.startswith("while") else "tidied")
    assert assert_whole(kept.folder, NEW) == [NEW, NEW]
    assert_nothing_else(kept.folder)


def test_a_hold_of_a_dead_process_keeps_nobody_waiting(kept: LocalStore, rotated: Settings) -> None:
    [newest, _] = Catalog([kept]).survey().ids
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    with held(kept, newest):
        [note] = kept.folder.glob("*.hold-*")
        shutil.copy(note, note.with_name(note.name.replace(str(os.getpid()), child.stdout.strip())))
        shutil.copy(note, kept.folder / newest.file(f"hold-{os.getppid()}-1.json"))
        assert holder(kept, newest), "the parent of this process is alive"
        (kept.folder / newest.file(f"hold-{os.getppid()}-1.json")).unlink()
        assert not holder(kept, newest)
        sweep_holds(kept, newest)
        assert list(kept.folder.glob("*.hold-*")) == [note]


class Undeletable(LocalStore):
    """A folder whose user may add, and not take away."""

    def remove(self, name: str) -> None:

        raise StoreError(f"removing {name} failed")


def test_where_nothing_may_be_removed_nothing_is_made(kept: LocalStore, rotated: Settings) -> None:
    before = set(there(kept))
    done = rekeyed(rotated, Undeletable(kept.folder))
    assert [each.fate for each in done] == ["failed", "failed"]
    assert done[0].error is not None
    assert "may not remove" in done[0].error.message
    assert {name for name in there(kept) if ".hold-" not in name} == before


def test_a_copy_that_was_replaced_while_it_was_read_is_not_called_damaged(
    kept: LocalStore, rotated: Settings
) -> None:
    [newest, _] = Catalog([kept]).survey().ids
    [copy] = Catalog([kept]).load(newest).copies
    rekeyed(rotated, kept)
    with pytest.raises(GuardRefused, match="re-encrypted"):
        examine(rotated, copy, "checksum")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"BACKUP_ENCRYPTION": "off"}, "encryption is off"),
        ({"BACKUP_GPG_RECIPIENTS": "keeper@example.org"}, "keep the secret keys"),
    ],
)
def test_where_there_is_no_passphrase_to_bring_them_under_it_says_so(
    here: Here, terminal: MakeTerminal, sample: str, changed: dict[str, str], said: str
) -> None:
    refused = here(terminal(sample), "rekey", **changed)
    assert refused.returncode == 3
    assert said in refused.stderr


def test_the_same_trouble_of_many_copies_is_told_once(
    here: Here, terminal: MakeTerminal, sample: str, two_backups: Path
) -> None:
    ours = terminal(sample)
    shutil.copytree(two_backups, ours.backups)
    refused = here(ours, "rekey", **ONLY_NEW)
    assert refused.returncode == 3
    assert refused.stdout.count("FAILED") == 1
    assert "the same of 2 copies in all" in refused.stderr


def test_an_interrupted_one_says_how_far_it_has_come(
    here: Here,
    large: str,
    terminal: MakeTerminal,
    gated: PutGate,
    s3: S3Server,
    bucket: str,
) -> None:
    ours = terminal(large)
    assert here(ours, "backup", **at_bucket(s3, bucket)).returncode == 0
    endpoint, gate = gated(s3.endpoint, MID_UPLOAD)
    with ours.running("rekey", **at_bucket(s3, bucket, endpoint), **ROTATED) as process:
        gate.wait_until_held()
        process.send_signal(signal.SIGINT)
        gate.open()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "1 copy re-encrypted so far; backup-dag rekey goes on with what is left" in said, "the local one"
    assert "Keep the old passphrase" in said


def test_a_database_without_backups_is_no_success(here: Here, terminal: MakeTerminal, sample: str) -> None:
    refused = here(terminal(sample), "rekey", "--database", "shopp", **ROTATED)
    assert refused.returncode == 5
    assert "no backup of shopp" in refused.stderr


def test_the_doctor_says_what_nothing_opens(
    here: Here, terminal: MakeTerminal, sample: str, two_backups: Path
) -> None:
    ours = terminal(sample)
    shutil.copytree(two_backups, ours.backups)
    assert "passphrase" not in "".join(
        line for line in here(ours, "doctor").stdout.splitlines() if line.startswith("warn")
    )
    assert here(ours, "backup", **ONLY_NEW).returncode == 0
    newest = manifests(ours.backups)[-2]["backup"]
    changed = here(ours, "doctor", **ONLY_NEW).stdout
    [line] = [each for each in changed.splitlines() if "sample passphrase" in each]
    assert line.startswith("warn"), "the newest opens, and those before it do not"
    assert f"2 of 3 backups, {newest} the newest of them" in line
    assert fingerprint(KEY) in line
    assert "BACKUP_ENCRYPTION_OLD_KEY" in changed
    rotated = here(ours, "doctor", **ROTATED).stdout
    assert f"set here: {fingerprint(KEY)}" in rotated
    assert "ok    sample passphrase" in rotated
    assert "backup-dag rekey" in rotated


def test_a_report_for_programs_names_each_copy(
    here: Here, terminal: MakeTerminal, sample: str, two_backups: Path
) -> None:
    ours = terminal(sample)
    shutil.copytree(two_backups, ours.backups)
    done = here(ours, "rekey", "--json", **ROTATED)
    assert done.returncode == 0
    said = json.loads(done.stdout)
    assert said["key_fingerprint"] == fingerprint(NEW) == passphrase_fingerprint(NEW)
    assert [(each["fate"], each["store"], each["error"]) for each in said["copies"]] == [
        ("rekeyed", "local", None)
    ] * 2
