"""Someone who can read and write all of the bucket, and has no key of ours: nothing of theirs passes."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from backup_dag.core.backup import order_for, take_backup
from backup_dag.core.catalog import Catalog, find, open_stores
from backup_dag.core.copies import Copy
from backup_dag.core.drilling.drill import drill, to_drill
from backup_dag.core.errors import BackupNotFound, ConfigurationError, IntegrityError
from backup_dag.core.manifest import BackupId, Manifest
from backup_dag.core.offsite import copy_offsite
from backup_dag.core.rekey import Rekeying
from backup_dag.core.restoring.plan import Wish
from backup_dag.core.restoring.restore import Restoration
from backup_dag.core.settings import Settings
from backup_dag.core.stages.checksum import checksum_file
from backup_dag.core.store.local import LocalStore
from backup_dag.core.verify import examine, verify_latest
from demo.servers import Postgres, S3Server
from tests.authentic import agents, end_agent, keyring, new_key, public_keys, with_mac
from tests.conftest import KEY, Here, Terminal, asked, database, make_database, name_of, run_sql

MakeTerminal = Callable[[str], Terminal]
EVIL = "rows of the attacker"


@dataclass(frozen=True)
class Keyrings:
    """The backup host's home, with public keys and its signing key; the vault's, with all secret keys but
    that; the attacker's, with public keys and one of their own."""

    host: Path
    vault: Path
    attackers: Path
    recipient: str
    signer: str
    mallory: str


@pytest.fixture(scope="module")
def keys() -> Iterator[Keyrings]:
    with keyring() as host, keyring() as vault, keyring() as attackers:
        recipient = new_key(vault, "vault", algorithm="rsa2048", use="encrypt,sign")
        signer = new_key(host, "host")
        mallory = new_key(attackers, "mallory")
        for into in (host, attackers):
            public_keys(vault, into)
        public_keys(host, vault)
        yield Keyrings(host, vault, attackers, recipient, signer, mallory)
        assert not any(agents(home) for home in (host, vault, attackers))


@contextmanager
def orders(server: Postgres, what: str) -> Iterator[str]:
    """A database of three hundred orders, dropped in the end."""
    url = make_database(server)
    run_sql(url, f"CREATE TABLE orders AS SELECT n, {what} AS what FROM generate_series(1, 300) n")
    yield url
    run_sql(server.url(), f"DROP DATABASE IF EXISTS {name_of(url)} WITH (FORCE)")


@pytest.fixture
def shop(postgres: Postgres) -> Iterator[str]:
    with orders(postgres, "'order ' || n") as url:
        yield url


@pytest.fixture
def evil(postgres: Postgres) -> Iterator[str]:
    with orders(postgres, f"'{EVIL}'") as url:
        yield url


@dataclass(frozen=True)
class Bucket:
    """A bucket as the attacker has it: every object's bytes, by name."""

    s3: S3Server
    name: str

    def read(self, name: str) -> bytes:
        body: bytes = self.s3.client().get_object(Bucket=self.name, Key=name)["Body"].read()
        return body

    def write(self, name: str, content: bytes) -> None:
        self.s3.client().put_object(Bucket=self.name, Key=name, Body=content)

    def remove(self, backup: str) -> None:
        listed = self.s3.client().list_objects_v2(Bucket=self.name, Prefix=f"{backup}.")
        for found in listed.get("Contents", ()):
            self.s3.client().delete_object(Bucket=self.name, Key=found["Key"])

    def document(self, backup: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.read(f"{backup}.json"))
        return found

    def change(self, backup: str, document: dict[str, Any]) -> None:
        self.write(f"{backup}.json", json.dumps(document).encode())


@pytest.fixture
def attacked(s3: S3Server, bucket: str) -> Bucket:
    return Bucket(s3, bucket)


@pytest.fixture
def ours(settings: Settings, shop: str, bucket: str, s3: S3Server) -> Settings:
    """Settings of the host with the passphrase and the bucket."""
    chosen = {"database_url": SecretStr(shop), "aws_s3_bucket": bucket, "aws_default_region": "us-east-1"}
    return settings.model_copy(
        update={**chosen, "aws_endpoint_url_s3": s3.environment()["AWS_ENDPOINT_URL_S3"]}
    )


def backed_up(settings: Settings, url: str, name: str = "shop") -> Manifest:
    """A backup, here and in the bucket if there is one."""
    made = take_backup(settings, order_for(database(url, name), settings, None))
    for bucket in open_stores(settings)[1:]:
        list(copy_offsite(LocalStore(settings.backup_dir), bucket, name))
    return made


def elsewhere(settings: Settings, **changed: Any) -> Settings:
    """The same on a new host, which has the bucket alone."""
    folder = settings.backup_dir.parent / "elsewhere"
    return settings.model_copy(update={"backup_dir": folder, **changed})


def faults(settings: Settings, backup: str, label: str = "s3") -> list[str]:
    """What verifying the copy finds."""
    found = BackupId.parse(backup)
    assert found is not None
    return examine(settings, copy_in(settings, found, label), "content").faults


def not_proven(settings: Settings, backup: str) -> str:
    """What a drill finds, which is not that it is proven."""
    outcome = drill(settings, find(settings, backup))
    assert not outcome.proven
    return "; ".join(outcome.faults)


def copy_in(settings: Settings, backup: BackupId, label: str = "s3") -> Copy:
    copies = Catalog(open_stores(settings)).load(backup).copies
    return next(copy for copy in copies if copy.store.label == label)


def assert_refused(settings: Settings, shop: str, wish: Wish) -> str:
    """That nothing is restored, beside the target or in place; what is said."""
    before = asked(shop, "SELECT count(*), min(what) FROM orders")
    said = ""
    for mode in ("swap", "in-place"):
        with Restoration(settings, wish.model_copy(update={"mode": mode})) as restoration:
            restoration.fetch()
            for to_its_end in (True, False):
                with pytest.raises(IntegrityError) as refused:
                    restoration.verify(to_its_end=to_its_end)
                said = refused.value.message
    assert asked(shop, "SELECT count(*), min(what) FROM orders") == before
    return said


# -- under a passphrase


def test_what_we_made_is_authentic_everywhere(ours: Settings, shop: str) -> None:
    made = backed_up(ours, shop)
    assert made.authentication is not None
    assert faults(ours, made.backup) == faults(ours, made.backup, "local") == []
    new = elsewhere(ours)
    assert faults(new, made.backup) == []
    with Restoration(new, Wish()) as restoration:
        restoration.fetch()
        restoration.verify()
        assert "authenticated by the passphrase" in "\n".join(restoration.plan().lines)


def test_an_old_state_under_a_newer_name_is_found(ours: Settings, shop: str, attacked: Bucket) -> None:
    """All files renamed, and everything in them: nothing but the MAC is out of place."""
    old = backed_up(ours, shop)
    newer = BackupId.of("shop", old.snapshot_time.replace(year=old.snapshot_time.year + 1))
    for name in old.names:
        content = attacked.read(name)
        if name.endswith((".json", ".sha256")):
            content = content.replace(old.backup.encode(), str(newer).encode())
        attacked.write(name.replace(old.backup, str(newer)), content)
    document = attacked.document(str(newer))
    attacked.change(str(newer), {**document, "snapshot_time": newer.time.isoformat()})
    new = elsewhere(ours)
    assert examine(new, copy_in(new, newer), "checksum").faults == []  # all of it fits
    [fault] = faults(new, str(newer))
    assert f"{newer}.json was changed" in fault
    assert f"{newer}.json" in assert_refused(new, shop, Wish(backup=str(newer)))
    assert f"{newer}.json was changed" in not_proven(new, str(newer))


def test_the_globals_of_another_backup_are_found(ours: Settings, shop: str, attacked: Bucket) -> None:
    old = backed_up(ours, shop)
    run_sql(shop, f"COMMENT ON DATABASE {name_of(shop)} IS 'from now on'")
    made = backed_up(ours, shop)
    theirs = old.globals.model_copy(update={"name": made.globals.name})
    attacked.write(made.globals.name, attacked.read(old.globals.name))
    attacked.write(f"{made.backup}.sha256", checksum_file([made.artifact, theirs]).encode())
    attacked.change(
        made.backup, {**attacked.document(made.backup), "globals": theirs.model_dump(mode="json")}
    )
    [fault] = faults(elsewhere(ours), made.backup)
    assert "was changed" in fault


def test_an_unencrypted_backup_of_theirs_does_not_get_round_the_passphrase(
    ours: Settings, shop: str, evil: str, attacked: Bucket
) -> None:
    """A whole other backup that says encryption was off, with a MAC of no passphrase or of theirs."""
    made = backed_up(ours, shop)
    off = elsewhere(ours, backup_encryption="off", backup_encryption_key=None, aws_s3_bucket=None)
    theirs = backed_up(off, evil)
    put_in_the_place_of(attacked, off.backup_dir, theirs, made)
    document = attacked.document(made.backup)
    assert "not authenticated" in faults(elsewhere(ours), made.backup)[0]
    attacked.change(made.backup, with_mac(document, "a passphrase of the attacker's"))
    with pytest.raises(ConfigurationError, match="fingerprint"):
        faults(elsewhere(ours), made.backup)
    attacked.change(made.backup, document)
    assert "not authenticated" in assert_refused(elsewhere(ours), shop, Wish(backup=made.backup))


def put_in_the_place_of(attacked: Bucket, folder: Path, theirs: Manifest, ours: Manifest) -> None:
    """Replaces a backup in the bucket by another, renamed throughout."""
    attacked.remove(ours.backup)
    for name in theirs.names:
        content = (folder / name).read_bytes()
        if name.endswith((".json", ".sha256")):
            content = content.replace(theirs.backup.encode(), ours.backup.encode())
        attacked.write(name.replace(theirs.backup, ours.backup), content)


def test_a_local_copy_that_was_changed_gives_way_to_the_buckets(
    ours: Settings, shop: str, attacked: Bucket
) -> None:
    made = backed_up(ours, shop)
    path = ours.backup_dir / f"{made.backup}.json"
    changed = json.loads(path.read_text())
    changed["source"]["owner"] = "mallory"
    path.write_text(json.dumps(changed))
    with Restoration(ours, Wish(backup=made.backup)) as restoration:
        assert restoration.fetch().manifest.source.owner == made.source.owner
        restoration.verify()
        plan = restoration.plan()
    assert plan.source.startswith("s3://")
    assert any("FORGED" in found.what and str(ours.backup_dir) in found.found for found in plan.findings)
    outcome = drill(ours, find(ours, made.backup))
    assert (outcome.proven, outcome.store) == (True, "s3")
    assert any("is left out" in note and "was changed" in note for note in outcome.notes)


def test_a_bucket_that_was_changed_gives_way_to_the_local_copy(
    ours: Settings, shop: str, attacked: Bucket
) -> None:
    made = backed_up(ours, shop)
    changed = attacked.document(made.backup)
    changed["content"]["tables"]["public.orders"]["rows"] = 7
    attacked.change(made.backup, changed)
    assert "one of the two was changed" in faults(ours, made.backup)[0]
    assert "one of the two was changed" in not_proven(ours, made.backup)
    with Restoration(ours, Wish()) as restoration:
        restoration.fetch()
        restoration.verify()
        assert restoration.plan().source.startswith(str(ours.backup_dir))


def test_a_note_that_all_was_well_does_not_spare_a_forgery_the_question(
    ours: Settings, shop: str, attacked: Bucket
) -> None:
    made = backed_up(ours, shop)
    new = elsewhere(ours)
    verify_latest(new, "shop")
    changed = attacked.document(made.backup)
    changed["partition_day"] = "2020-01-01"
    attacked.change(made.backup, changed)
    assert copy_in(new, made.id).read_to_its_end
    assert "was changed" in assert_refused(new, shop, Wish(backup=made.backup))


def test_a_forgery_is_recorded_as_damage_of_that_copy(
    ours: Settings, shop: str, attacked: Bucket, here: Here, terminal: MakeTerminal, s3: S3Server
) -> None:
    made = backed_up(ours, shop)
    new = elsewhere(ours)
    document = attacked.document(made.backup)
    stripped = {name: value for name, value in document.items() if name != "authentication"}
    attacked.change(made.backup, stripped)
    check = verify_latest(new, "shop")[2]
    assert "not authenticated" in check.faults[0]
    assert not copy_in(new, made.id).good
    accepting = new.model_copy(update={"backup_accept_unauthenticated": "on"})
    assert verify_latest(accepting, "shop")[2].passed
    attacked.change(made.backup, document)
    assert verify_latest(new, "shop")[2].passed
    cloud = {**s3.environment(), "AWS_S3_BUCKET": attacked.name, "BACKUP_DIR": str(new.backup_dir)}
    attacked.change(made.backup, stripped)
    at = terminal(shop)
    ended = here(at, "verify", "--database", "shop", **cloud)
    assert (ended.returncode, "not authenticated" in ended.stdout) == (6, True)
    table = here(at, "restore", made.backup, "--table", "orders", "--target-database", name_of(shop), **cloud)
    assert (table.returncode, "not authenticated" in table.stderr) == (6, True)
    ended = here(at, "verify", "--database", "shop", **cloud, BACKUP_ACCEPT_UNAUTHENTICATED="on")
    assert ended.returncode == 0, ended.stderr
    planned = here(at, "restore", made.backup, "--dry-run", **cloud, BACKUP_ACCEPT_UNAUTHENTICATED="on")
    assert "NOT authenticated" in planned.stdout, planned.stderr


def test_what_is_put_into_the_bucket_between_verifying_and_loading_is_not_loaded(
    ours: Settings, shop: str, attacked: Bucket
) -> None:
    made = backed_up(ours, shop)
    new = elsewhere(ours)
    wish = Wish(backup=made.backup, mode="new", target_database=f"{name_of(shop)}_new")
    with Restoration(new, wish) as restoration:
        restoration.fetch()
        restoration.verify(to_its_end=False)
        plan = restoration.plan()
        for name in made.names:
            attacked.write(name, b"something else")
        restoration.safety(plan)
        restoration.build()
        assert restoration.prove().holds
    assert [path for path in (new.backup_dir / ".work").iterdir() if path.name != "lock"] == []


# -- an older one, served as the newest


def test_newer_backups_that_were_taken_away_are_missed(
    ours: Settings, shop: str, attacked: Bucket, here: Here, terminal: MakeTerminal, s3: S3Server
) -> None:
    older, newest = backed_up(ours, shop), backed_up(ours, shop)
    assert verify_latest(ours, "shop")[0].id == newest.id
    for name in newest.names:
        (ours.backup_dir / name).unlink()  # as BACKUP_LOCAL_RETENTION_DAYS does in time
    (ours.backup_dir / f"{newest.backup}.verify.json").unlink(missing_ok=True)
    attacked.remove(newest.backup)
    with pytest.raises(BackupNotFound, match=f"shows {older.backup}.*{newest.backup} was put there"):
        verify_latest(ours, "shop")
    with pytest.raises(BackupNotFound, match=f"shows {older.backup}.*{newest.backup} was put there"):
        to_drill(ours, "latest", "shop")
    with Restoration(ours, Wish(database="shop")) as restoration:
        restoration.fetch()
        restoration.verify()
        assert any(newest.backup in found.found for found in restoration.plan().findings)
    cloud = {**s3.environment(), "AWS_S3_BUCKET": attacked.name, "BACKUP_DIR": str(ours.backup_dir)}
    ended = here(terminal(shop), "verify", "--database", "shop", **cloud)
    assert ended.returncode == 5
    assert f"{newest.backup} was put there" in ended.stderr
    assert "good" in ended.stdout  # what there is of the older one is verified all the same
    assert verify_latest(elsewhere(ours), "shop")[2].passed  # a new host cannot know


# -- who only reads


def everything_in(bucket: Bucket) -> dict[str, bytes]:
    listed = bucket.s3.client().list_objects_v2(Bucket=bucket.name)["Contents"]
    return {found["Key"]: bucket.read(found["Key"]) for found in listed}


def opened(content: bytes, home: Path, *words: str) -> tuple[int, bytes]:
    """What gpg makes of it, with all that lies in that home."""
    gpg = ["gpg", "--homedir", str(home), "--batch", "--pinentry-mode", "loopback", *words, "--decrypt"]
    done = subprocess.run(gpg, input=content, capture_output=True, check=False)
    end_agent(home)
    return done.returncode, done.stdout


def test_a_thief_of_the_bucket_reads_no_row_and_no_secret(
    ours: Settings, shop: str, attacked: Bucket, keys: Keyrings
) -> None:
    made = backed_up(ours, shop)
    stolen = everything_in(attacked)
    for name, content in stolen.items():
        for secret in (b"order 1", b"CREATE TABLE", b"SCRAM-SHA-256", KEY.encode()):
            assert secret not in content, name
    artifact = stolen[made.artifact.name]
    assert opened(artifact, keys.attackers, "--passphrase", "a guess") == (2, b"")
    assert opened(artifact, keys.attackers, "--passphrase", KEY)[0] == 0


def test_a_thief_of_a_host_with_public_keys_reads_no_old_backup(
    ours: Settings, shop: str, attacked: Bucket, keys: Keyrings
) -> None:
    host = to_public_keys(ours, keys, keys.host, keys.signer)
    made = backed_up(host, shop)
    for name in (made.artifact.name, made.globals.name):
        stolen = everything_in(attacked)[name]
        assert opened(stolen, keys.host, "--passphrase", "") == (2, b"")
        assert opened(stolen, keys.vault, "--passphrase", "")[0] == 0
    with pytest.raises(ConfigurationError, match="secret key"):
        examine(host, copy_in(host, made.id), "content")


# -- with public keys, or without encryption


def to_public_keys(settings: Settings, keys: Keyrings, home: Path, *signers: str) -> Settings:
    chosen: dict[str, Any] = {"backup_gpg_recipients": (keys.recipient,), "backup_gpg_home": home}
    chosen |= {"backup_gpg_signing_key": signers, "backup_encryption_key": None}
    return settings.model_copy(update=chosen)


@pytest.mark.parametrize("theirs_signed", [False, True])
def test_a_whole_other_backup_to_our_public_key_is_found_by_its_signature(
    ours: Settings, shop: str, evil: str, attacked: Bucket, keys: Keyrings, theirs_signed: bool
) -> None:
    """Made by this very program, with sizes, digests and checksums that fit, and encrypted so that we can
    read it: all that is wrong with it is who made it."""
    made = backed_up(to_public_keys(ours, keys, keys.host, keys.signer), shop)
    vault = to_public_keys(elsewhere(ours), keys, keys.vault, keys.signer)
    assert faults(vault, made.backup) == []
    signers = [keys.mallory] if theirs_signed else []
    attacker = to_public_keys(elsewhere(ours, aws_s3_bucket=None), keys, keys.attackers, *signers)
    attacker = attacker.model_copy(update={"backup_dir": ours.backup_dir.parent / "attacker"})
    put_in_the_place_of(attacked, attacker.backup_dir, backed_up(attacker, evil), made)
    assert examine(vault, copy_in(vault, made.id), "checksum").faults == []
    [fault] = faults(vault, made.backup)
    assert ("no good one" if theirs_signed else "not authenticated") in fault
    assert_refused(vault, shop, Wish(backup=made.backup, target_database=name_of(shop)))
    assert ("no good one" if theirs_signed else "not authenticated") in not_proven(vault, made.backup)
    blind = vault.model_copy(update={"backup_gpg_signing_key": ()})
    if not theirs_signed:  # and it is the signing key that finds it
        assert faults(blind, made.backup) == []


def test_a_signed_backup_comes_back_and_its_plan_says_whose_it_is(
    ours: Settings, shop: str, keys: Keyrings, here: Here, terminal: MakeTerminal, s3: S3Server
) -> None:
    made = backed_up(to_public_keys(ours, keys, keys.host, keys.signer), shop)
    run_sql(shop, "DELETE FROM orders")
    changed = {**s3.environment(), "AWS_S3_BUCKET": ours.aws_s3_bucket or "", "BACKUP_ENCRYPTION_KEY": ""}
    changed |= {"BACKUP_GPG_RECIPIENTS": keys.recipient, "BACKUP_GPG_HOME": str(keys.vault)}
    changed |= {"BACKUP_GPG_SIGNING_KEY": keys.signer}
    at, words = terminal(shop), (made.backup, "--target-database", name_of(shop))
    planned = here(at, "restore", *words, "--dry-run", **changed)
    assert f"authenticated by the signature of {keys.signer}" in planned.stdout, planned.stderr
    refused = here(at, "restore", *words, "--force", **changed)
    assert (refused.returncode, asked(shop, "SELECT count(*) FROM orders")) == (3, [(0,)])
    assert "can sign here" in refused.stderr  # the safety backup: the vault has no signing key
    done = here(at, "restore", *words, "--force", "--no-safety-backup", **changed)
    assert (done.returncode, asked(shop, "SELECT count(*) FROM orders")) == (0, [(300,)]), done.stderr
    dropped = here(at, "restore", "--drop-previous", "--force", "--target-database", name_of(shop))
    assert dropped.returncode == 0, dropped.stderr


def test_without_encryption_a_signature_tells_ours_from_theirs(
    ours: Settings, shop: str, evil: str, attacked: Bucket, keys: Keyrings
) -> None:
    off = {"backup_encryption": "off", "backup_encryption_key": None, "backup_gpg_home": keys.host}
    signed = ours.model_copy(update={**off, "backup_gpg_signing_key": (keys.signer,)})
    made = backed_up(signed, shop)
    new = elsewhere(signed)
    assert faults(new, made.backup) == []
    attacker = elsewhere(ours, **off, aws_s3_bucket=None)
    put_in_the_place_of(attacked, attacker.backup_dir, backed_up(attacker, evil), made)
    shutil.rmtree(attacker.backup_dir)
    assert "not authenticated" in faults(new, made.backup)[0]


def test_under_another_passphrase_a_backup_is_signed_anew(ours: Settings, shop: str, keys: Keyrings) -> None:
    signing = {"backup_gpg_home": keys.host, "backup_gpg_signing_key": (keys.signer,)}
    signed = ours.model_copy(update=signing)
    made = backed_up(signed, shop)
    new = {"backup_encryption_key": SecretStr("another passphrase"), "backup_encryption_old_key": None}
    rotated = signed.model_copy(update={**new, "backup_encryption_old_key": SecretStr(KEY)})
    done = list(Rekeying(rotated, open_stores(rotated)).each(None))
    assert [each.fate for each in done] == ["rekeyed", "rekeyed"]
    for label in ("local", "s3"):
        copy = copy_in(signed.model_copy(update=new), made.id, label)
        assert copy.manifest is not None
        assert copy.manifest.authentication != made.authentication
        assert faults(signed.model_copy(update=new), made.backup, label) == []
    by_another = ours.model_copy(update={**new, **signing, "backup_gpg_signing_key": (keys.mallory,)})
    with pytest.raises(ConfigurationError):
        faults(by_another, made.backup)


def test_a_signing_key_that_cannot_sign_is_said_before_the_dump(ours: Settings, shop: str) -> None:
    with keyring() as empty:
        lacking = ours.model_copy(update={"backup_gpg_home": empty, "backup_gpg_signing_key": ("A" * 40,)})
        nowhere = lacking.model_copy(update={"database_url": None})
        with pytest.raises(ConfigurationError, match="BACKUP_GPG_SIGNING_KEY"):
            take_backup(nowhere, order_for(database("postgresql://127.0.0.1:1/x", "shop"), nowhere, None))


def test_the_safety_backup_is_authenticated_too(
    ours: Settings, shop: str, postgres: Postgres, here: Here, terminal: MakeTerminal
) -> None:
    at = terminal(shop)
    assert here(at, "backup").returncode == 0
    said = json.loads(here(at, "restore", "--force", "--json").stdout)
    document = json.loads((at.backups / f"{said['safety_backup']}.json").read_text())
    assert document == with_mac(document, KEY)
    assert here(at, "restore", "--drop-previous", "--force").returncode == 0
