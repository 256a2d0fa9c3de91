"""The stores: the contract on each, and what each promises beyond it."""

import base64
import errno
import gc
import hashlib
import os
import resource
import stat
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from hypothesis import example, given
from hypothesis import settings as how
from hypothesis import strategies as st

from backup_dag.core.errors import (
    BackupDagError,
    BackupNotFound,
    ConfigurationError,
    DiskError,
    IntegrityError,
    StoreError,
    StoreUnreachable,
)
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import FOREVER, Store
from backup_dag.core.store.local import LocalStore
from backup_dag.core.store.s3 import S3Store, connect, part_size
from backup_dag.core.stream import BLOCK, Passed
from demo.servers import S3Server, free_port
from tests.core.made import measured, written
from tests.store_contract import NAME, Gathered, StoreContract, names
from torture.proxy import Fault, Proxy

MIB = 1 << 20


# -- local


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        folder = tmp_path / "backups"
        folder.mkdir(mode=0o700)
        return LocalStore(folder)

    def test_files_are_for_the_owner_alone(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "new" / "backups")
        store.put_note("x.verify.json", "text")
        assert (tmp_path / "new" / "backups").stat().st_mode & 0o777 == 0o700
        assert (store.folder / "x.verify.json").stat().st_mode & 0o777 == 0o600

    def test_hidden_files_and_folders_are_not_part_of_it(self, store: LocalStore) -> None:
        (store.folder / ".work").mkdir()
        (store.folder / ".hidden").touch()
        (store.folder / "folder").mkdir()
        (store.folder / "broken link").symlink_to("nowhere")
        (store.folder / "file").touch()
        assert names(store) == ["file"]

    def test_a_folder_that_is_not_there_is_empty(self, tmp_path: Path) -> None:
        assert names(LocalStore(tmp_path / "nowhere")) == []

    def test_a_put_moves_the_file(self, store: LocalStore, source: Path) -> None:
        expected = written(source, b"x")
        inode = source.stat().st_ino
        store.put(source, NAME, expected)
        assert (store.folder / NAME).stat().st_ino == inode
        assert not source.exists()

    def test_a_put_into_a_folder_that_is_gone_keeps_the_source(self, tmp_path: Path, source: Path) -> None:
        expected = written(source, b"x")
        with pytest.raises(DiskError):
            LocalStore(tmp_path / "gone").put(source, NAME, expected)
        assert source.read_bytes() == b"x"

    def test_a_put_whose_name_cannot_be_made_durable_leaves_none(
        self, store: LocalStore, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected, sync = written(source, b"x"), os.fsync

        def failing(handle: int) -> None:
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            sync(handle)

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(DiskError):
            store.put(source, NAME, expected)
        assert names(store) == []

    def test_a_note_that_cannot_take_its_place_leaves_no_temporary_file(self, store: LocalStore) -> None:
        (store.folder / "x.verify.json").mkdir()
        with pytest.raises(DiskError):
            store.put_note("x.verify.json", "text")
        assert [path.name for path in store.folder.iterdir()] == ["x.verify.json"]

    def test_a_note_that_finds_no_room_leaves_the_older_one_and_no_temporary_file(
        self, store: LocalStore
    ) -> None:
        store.put_note("x.verify.json", "older")
        with largest_file(64 * 1024), pytest.raises(DiskError):
            store.put_note("x.verify.json", "x" * 300_000)
        assert store.read("x.verify.json") == b"older"
        assert [path.name for path in store.folder.iterdir()] == ["x.verify.json"]

    def test_a_file_in_place_of_the_folder_is_a_disk_error(self, tmp_path: Path, source: Path) -> None:
        (tmp_path / "file").touch()
        store = LocalStore(tmp_path / "file")
        expected = written(source, b"x")
        for attempt in (
            lambda: store.put(source, NAME, expected),
            lambda: store.put_note(NAME, "text"),
            lambda: list(store.list()),
            store.probe,
        ):
            with pytest.raises(DiskError) as raised:
                attempt()
            assert raised.value.exit_code == 9
            assert str(tmp_path / "file") in raised.value.message


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """For the length of a block, no file of this process may grow beyond that: a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# -- S3


class TestS3Store(StoreContract):
    @pytest.fixture
    def store(self, bucket: str, s3: S3Server, settings: Settings) -> Store:
        return S3Store(s3.client(), of(settings, bucket, backup_s3_prefix="backups/prod/"))


class TestS3StoreWithoutPrefix(StoreContract):
    @pytest.fixture
    def store(self, bucket: str, settings: Settings, s3: S3Server) -> Store:
        return S3Store(connect(of(settings, bucket)), of(settings, bucket))


def of(settings: Settings, bucket: str, **changed: Any) -> Settings:
    return settings.model_copy(update={"aws_s3_bucket": bucket, **changed})


@pytest.fixture
def client(s3: S3Server) -> Any:
    return s3.client()


def open_uploads(client: Any, bucket: str) -> list[str]:
    return [upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())]


def test_listings_are_complete_over_several_pages(bucket: str, client: Any, settings: Settings) -> None:
    expected = [f"backup_{n % 7}_{n:05}" for n in range(1_040)]
    with ThreadPoolExecutor(8) as threads:
        for name in expected:
            threads.submit(client.put_object, Bucket=bucket, Key=f"p/{name}", Body=b"x")
    for other in ("p2/x", "p/folder/x", "x"):
        client.put_object(Bucket=bucket, Key=other, Body=b"x")
    assert len(client.list_objects_v2(Bucket=bucket)["Contents"]) == 1000
    store = S3Store(client, of(settings, bucket, backup_s3_prefix="p/"))
    assert names(store) == sorted(expected)
    assert names(store, "backup_3_") == sorted(name for name in expected if name.startswith("backup_3_"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of three parts, the last one short."""
    path = tmp_path_factory.mktemp("large") / "file"
    path.write_bytes(os.urandom(20 * MIB + 12_345))
    return path


def test_a_large_file_goes_up_in_parts_whose_checksum_is_ours(
    bucket: str, client: Any, settings: Settings, large: Path
) -> None:
    store, data = S3Store(client, of(settings, bucket)), large.read_bytes()
    said: list[Passed] = []
    stored = store.put(large, NAME, measured(data), said.append)
    head = client.head_object(Bucket=bucket, Key=NAME, ChecksumMode="ENABLED")
    parts = [hashlib.sha256(data[at : at + 8 * MIB]).digest() for at in range(0, len(data), 8 * MIB)]
    composite = base64.b64encode(hashlib.sha256(b"".join(parts)).digest()).decode()
    assert head["ChecksumSHA256"].split("-")[0] == composite
    assert head["ETag"].endswith('-3"')
    assert stored.details["etag"] == head["ETag"].strip('"')
    assert head["Metadata"]["sha256"] == hashlib.sha256(data).hexdigest()
    gathered = Gathered()
    store.fetch(NAME, gathered)
    assert b"".join(gathered.blocks) == data
    assert max(map(len, gathered.blocks)) <= BLOCK
    assert said
    assert open_uploads(client, bucket) == []


def test_a_large_file_of_other_bytes_is_not_taken_for_the_same(
    bucket: str, client: Any, settings: Settings, large: Path, tmp_path: Path
) -> None:
    store, data = S3Store(client, of(settings, bucket)), bytearray(large.read_bytes())
    store.put(large, NAME, measured(bytes(data)))
    data[9 * MIB] ^= 1
    with pytest.raises(IntegrityError):
        store.put(tmp_path / "other", NAME, written(tmp_path / "other", bytes(data)))
    assert hashlib.sha256(store.read(NAME)).digest() == hashlib.sha256(large.read_bytes()).digest()


def test_a_file_that_cannot_be_read_is_an_error_of_the_disk(
    bucket: str, client: Any, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DiskError) as raised:
        S3Store(client, of(settings, bucket)).put(tmp_path / "folder", NAME, measured(b""))
    assert f"reading {tmp_path / 'folder'} failed" in raised.value.message


def test_an_object_that_others_put_in_one_piece_is_compared_by_reading_it(
    bucket: str, client: Any, settings: Settings, tmp_path: Path
) -> None:
    store = S3Store(client, of(settings, bucket))
    client.put_object(Bucket=bucket, Key=NAME, Body=b"copied by hand")
    assert not store.put(tmp_path / "a", NAME, written(tmp_path / "a", b"copied by hand")).new
    with pytest.raises(IntegrityError):
        store.put(tmp_path / "b", NAME, written(tmp_path / "b", b"copied by hanD"))


def test_an_upload_that_fails_leaves_no_object_and_no_open_upload(
    bucket: str, client: Any, s3: S3Server, settings: Settings, large: Path
) -> None:
    store = S3Store(other_client(s3), of(settings, bucket))  # one attempt: boto3 would try again
    with left_open_by_boto3():
        stopped_half_way(store, large)
    assert names(store) == []
    assert open_uploads(client, bucket) == []


def stopped_half_way(store: Store, large: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(passed: Passed) -> None:
        raise Stopped

    with pytest.raises((Stopped, StoreUnreachable)):
        store.put(large, NAME, measured(large.read_bytes()), stop)


@contextmanager
def left_open_by_boto3() -> Iterator[None]:
    """s3transfer leaves the file it was reading to the garbage collector when an upload fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def test_an_upload_that_a_dead_run_left_open_is_ended_by_the_next(
    bucket: str, client: Any, settings: Settings, tmp_path: Path
) -> None:
    store = S3Store(client, of(settings, bucket, backup_s3_prefix="p/"))
    for key in (f"p/{NAME}", f"p/{NAME}.other"):
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x" * 100)
    store.put(tmp_path / "a", NAME, written(tmp_path / "a", b"whole"))
    assert open_uploads(client, bucket) == [f"p/{NAME}.other"]
    assert store.read(NAME) == b"whole"


def test_encryption_storage_class_and_lock_are_on_the_object(
    s3: S3Server, client: Any, settings: Settings, large: Path, tmp_path: Path
) -> None:
    bucket = f"locked-{os.getpid()}"
    s3.create_bucket(bucket, object_lock=True)
    chosen = {
        "backup_s3_sse": "AES256",
        "backup_s3_storage_class": "STANDARD_IA",
        "backup_s3_object_lock_mode": "GOVERNANCE",
        "backup_s3_object_lock_days": 2,
    }
    store = S3Store(client, of(settings, bucket, **chosen))
    details = store.put(tmp_path / "a", "small", written(tmp_path / "a", b"small")).details
    store.put(large, "large", measured(large.read_bytes()))
    for name in ("small", "large"):
        head = client.head_object(Bucket=bucket, Key=name)
        assert head["ServerSideEncryption"] == "AES256"
        assert head["StorageClass"] == "STANDARD_IA"
        assert head["ObjectLockMode"] == "GOVERNANCE"
        left = head["ObjectLockRetainUntilDate"] - datetime.now(UTC)
        assert timedelta(days=1, hours=23) < left <= timedelta(days=2)
    version = client.head_object(Bucket=bucket, Key="small")["VersionId"]
    assert details["version_id"] == version
    with pytest.raises(client.exceptions.ClientError, match=r"Access ?Denied|WORM|[Rr]etention|[Ll]ock"):
        client.delete_object(Bucket=bucket, Key="small", VersionId=version)


@pytest.fixture
def locking(s3: S3Server, settings: Settings, bucket: str) -> S3Store:
    """A store in a bucket with Object Lock, whose own settings lock nothing."""
    s3.create_bucket(f"{bucket}-locking", object_lock=True)
    return S3Store(s3.client(), of(settings, f"{bucket}-locking", backup_s3_prefix="p/"))


def test_a_lock_is_told_with_its_end_and_ends_by_itself(
    locking: S3Store, client: Any, bucket: str, tmp_path: Path
) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    lock = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": end}
    client.put_object(Bucket=f"{bucket}-locking", Key=f"p/{NAME}", Body=b"x", **lock)
    assert locking.locked_until(NAME) == end
    deadline = time.monotonic() + 20
    while locking.locked_until(NAME) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert datetime.now(UTC) >= end


def test_a_legal_hold_has_no_end_until_it_is_lifted(locking: S3Store, client: Any, bucket: str) -> None:
    locking.put_note(NAME, "x")
    there = {"Bucket": f"{bucket}-locking", "Key": f"p/{NAME}"}
    client.put_object_legal_hold(**there, LegalHold={"Status": "ON"})
    assert locking.locked_until(NAME) == FOREVER
    client.put_object_legal_hold(**there, LegalHold={"Status": "OFF"})
    assert locking.locked_until(NAME) is None


def test_a_bucket_that_keeps_versions_shows_no_removed_file_and_takes_it_anew(
    locking: S3Store, tmp_path: Path
) -> None:
    locking.put(tmp_path / "a", NAME, written(tmp_path / "a", b"first"))
    locking.remove(NAME)
    locking.remove(NAME)
    assert names(locking) == []
    assert locking.locked_until(NAME) is None
    with pytest.raises(BackupNotFound):
        locking.read(NAME)
    assert locking.put(tmp_path / "a", NAME, written(tmp_path / "a", b"second")).new
    assert locking.read(NAME) == b"second"


def test_unfinished_uploads_of_our_prefix_are_told_and_ended(
    bucket: str, client: Any, settings: Settings
) -> None:
    store = S3Store(client, of(settings, bucket, backup_s3_prefix="p/"))
    before = datetime.now(UTC)
    for key in ("p/backup_a", "p/backup_b", "q/backup_a"):
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x" * 100)
    assert sorted(upload.name for upload in store.unfinished()) == ["backup_a", "backup_b"]
    [found] = store.unfinished("backup_b")
    assert abs(found.begun - before) < timedelta(seconds=20)
    store.abort(found)
    store.abort(found)
    assert sorted(open_uploads(client, bucket)) == ["p/backup_a", "q/backup_a"]


def every_use(store: Store, source: Path) -> list[Any]:
    expected = written(source, b"x")
    return [
        lambda: list(store.list()),
        lambda: store.put(source, NAME, expected),
        lambda: store.put_note("note", "text"),
        lambda: store.read(NAME),
        lambda: store.fetch(NAME, Gathered()),
        lambda: list(store.unfinished()),
        store.probe,
    ]


def refusals(store: Store, source: Path) -> list[BackupDagError]:
    raised = []
    for attempt in every_use(store, source):
        with pytest.raises(BackupDagError) as refused:
            attempt()
        raised.append(refused.value)
    return raised


def test_a_bucket_that_is_not_there_is_named_with_what_to_do(
    client: Any, settings: Settings, tmp_path: Path
) -> None:
    errors = refusals(S3Store(client, of(settings, "no-such-bucket")), tmp_path / "a")
    assert all(isinstance(error, StoreError | BackupNotFound) for error in errors)
    assert [type(error) for error in errors[:4]] == [StoreError] * 4
    assert all("no-such-bucket" in error.message for error in errors)
    assert "AWS_S3_BUCKET" in errors[0].hint
    assert errors[0].exit_code == 7


def test_the_address_of_the_server_holds_no_secret_wherever_it_comes_from(
    bucket: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://k:very-secret@127.0.0.1:9")
    ours = of(settings, bucket).model_copy(update={"aws_endpoint_url_s3": None})
    with pytest.raises(ConfigurationError, match="holds a user or password") as raised:
        connect(ours)
    assert "very-secret" not in str(raised.value)


def test_the_bucket_says_what_time_it_is(bucket: str, client: Any, settings: Settings) -> None:
    apart = S3Store(client, of(settings, bucket)).clock() - datetime.now(UTC)
    assert abs(apart) < timedelta(seconds=5)


def test_without_the_servers_checksums_all_is_read_back(
    bucket: str, s3: S3Server, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS_REQUEST_CHECKSUM_CALCULATION=when_required, and a server that answers with other bytes."""
    data = os.urandom(1 << 16)
    spoiled = Fault("a byte changed in the answer", 0, lasting=True)
    for which, whole in (("when_supported", True), ("when_required", False)):
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", which)
        with Proxy(s3.port, spoiled) as wire:
            store = S3Store(other_client(s3, endpoint_url=wire.endpoint), of(settings, bucket))
            said = written(tmp_path / which, data)
            if whole:
                assert store.put(tmp_path / which, NAME, said).new, "the server's own checksum is ours"
            else:
                with pytest.raises(StoreError, match="did not hold what was uploaded, and was removed again"):
                    store.put(tmp_path / which, NAME, said)
        assert names(S3Store(other_client(s3), of(settings, bucket))) == ([NAME] if whole else [])
        store.remove(NAME)
    stored = S3Store(other_client(s3), of(settings, bucket)).put(tmp_path / which, NAME, said)
    assert stored.new


def other_client(s3: S3Server, **changed: str) -> Any:
    given = {
        "endpoint_url": s3.endpoint,
        "aws_access_key_id": s3.access_key,
        "aws_secret_access_key": s3.secret_key,
        "region_name": "us-east-1",
        **changed,
    }
    return boto3.client("s3", config=Config(retries={"total_max_attempts": 1}, connect_timeout=2), **given)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("wrong", "setting"),
    [("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY"), ("aws_access_key_id", "AWS_ACCESS_KEY_ID")],
)
def test_wrong_credentials_are_refused_with_what_to_do_and_not_shown(
    bucket: str, s3: S3Server, settings: Settings, tmp_path: Path, wrong: str, setting: str
) -> None:
    client = other_client(s3, **{wrong: "entirely-wrong-value"})
    errors = refusals(S3Store(client, of(settings, bucket)), tmp_path / "a")
    assert [type(error) for error in errors] == [StoreError] * len(errors)
    assert setting in errors[0].hint
    assert all(error.exit_code == 7 and not error.retryable for error in errors)
    if "SECRET" in setting:
        assert not any("entirely-wrong" in str(error) for error in errors)


def test_a_server_that_is_down_may_be_tried_again(
    bucket: str, s3: S3Server, settings: Settings, tmp_path: Path
) -> None:
    client = other_client(s3, endpoint_url=f"http://127.0.0.1:{free_port()}")
    errors = refusals(S3Store(client, of(settings, bucket)), tmp_path / "a")
    assert [type(error) for error in errors] == [StoreUnreachable] * len(errors)
    assert all(error.retryable and error.exit_code == 7 and error.hint for error in errors)


def test_a_client_without_credentials_is_a_matter_of_configuration(
    s3: S3Server, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers credentials
    there = of(settings, "bucket", aws_endpoint_url_s3=s3.endpoint, aws_default_region="us-east-1")
    for error in refusals(S3Store(connect(there), there), tmp_path / "a"):
        assert isinstance(error, ConfigurationError)
        assert "AWS_ACCESS_KEY_ID" in error.hint


def test_a_store_without_a_bucket_is_a_matter_of_configuration(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match="AWS_S3_BUCKET"):
        S3Store(None, settings)


GIB = 1 << 30


@given(size=st.integers(0, 40_000 * GIB))
@example(size=78 * GIB + 128 * MIB)  # 10,000 parts of 8 MiB
@example(size=10_000 * 8 * MIB)
@example(size=10_000 * 8 * MIB + 1)
@example(size=10_000 * 9 * MIB + 1)
@how(deadline=None, max_examples=500)
def test_ten_thousand_parts_of_whole_mebibytes_suffice(size: int) -> None:
    part = part_size(size)
    assert part % MIB == 0
    assert part >= 8 * MIB
    assert -(-size // part) <= 10_000
    assert part == 8 * MIB or -(-size // (part - MIB)) > 10_000, "no larger than need be"
