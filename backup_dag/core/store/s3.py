"""An S3 bucket, through boto3 and its transfer manager. The only room that knows boto3."""

import base64
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from s3transfer.exceptions import RetriesExceededError

from backup_dag.core.errors import (
    BackupDagError,
    BackupNotFound,
    ConfigurationError,
    IntegrityError,
    StoreError,
    StoreUnreachable,
)
from backup_dag.core.manifest import Bytes
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import FOREVER, PROBE, Listed, Stored, Upload, hold_to_largest
from backup_dag.core.stream import BLOCK, Hashing, Meter, Observer, Writer
from backup_dag.core.work import disk_error

_SMALLEST_PART = 8 * BLOCK
_MOST_PARTS = 10_000  # S3's limit for one object (Amazon S3 User Guide, "multipart upload limits")
_AT_A_TIME = 4
_SECONDS_TO_CONNECT, _SECONDS_TO_ANSWER = 10, 60
_MOST_TRIES, _SHORTEST_TRY = 5, 12  # seconds
_MOST_TRIES_TO_READ = 3  # a part of an object, with _MOST_TRIES each
_NOT_FOUND = {"404", "NoSuchKey", "NotFound"}
_DENIED = {"AccessDenied", "403"}
_MAY_NOT_REMOVE = (
    "let this user delete in the bucket (deploy/s3-policy-cleanup.json), or clean up with one who may"
)
_REFUSALS = {
    "NoSuchBucket": "see AWS_S3_BUCKET, or create the bucket",
    "AccessDenied": "let this user list, get and put in the bucket; deploy/ has a policy to copy",
    "403": "let this user list, get and put in the bucket; deploy/ has a policy to copy",
    "InvalidAccessKeyId": "see AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "see AWS_SECRET_ACCESS_KEY",
    "PermanentRedirect": "set AWS_DEFAULT_REGION to the bucket's region",
    "NotImplemented": "this server lacks a feature that was asked for (SSE, storage class, Object Lock)",
}


def connect(settings: Settings) -> Any:
    """A client of boto3's, with credentials from wherever boto3 looks (environment, ~/.aws, role)."""
    client = client_from(
        lambda: boto3.session.Session().client(
            "s3",
            region_name=settings.aws_default_region,
            endpoint_url=settings.aws_endpoint_url_s3,
            config=bounded(settings),
        )
    )
    if "@" in urlsplit(str(client.meta.endpoint_url)).netloc:  # from wherever boto3 has it
        raise ConfigurationError(
            "the address of the S3 server holds a user or password, which would stand in every message",
            hint="see AWS_ENDPOINT_URL, and endpoint_url in ~/.aws/config; give keys in AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY",
        )
    return client


def bounded(settings: Settings) -> Config:
    """How a call is made that may never get an answer: all its tries take about BACKUP_STALL_SECONDS."""
    tries = _tries(settings)
    seconds = min(_SECONDS_TO_ANSWER, settings.backup_stall_seconds / tries)
    return Config(
        connect_timeout=min(_SECONDS_TO_CONNECT, seconds),
        read_timeout=seconds,
        retries={"mode": "standard", "total_max_attempts": tries},
    )


def _tries(settings: Settings) -> int:
    """Fewer, where there is not the time for all of them."""
    return max(1, min(_MOST_TRIES, settings.backup_stall_seconds // _SHORTEST_TRY))


def client_from(make: Callable[[], Any]) -> Any:
    """A client that someone else makes. Raises ConfigurationError where the settings do not allow one."""
    try:
        return make()
    except (ValueError, BotoCoreError) as error:
        raise ConfigurationError(
            f"the settings for S3 cannot be used: {error}",
            hint="see AWS_ENDPOINT_URL_S3 (https://host:port), AWS_DEFAULT_REGION and AWS_PROFILE",
        ) from error


@dataclass(frozen=True)
class _Digests:
    """A file's SHA-256 as we write it, and as S3 tells it for an upload in parts of `part` bytes."""

    whole: Bytes
    part: int
    as_s3: str


class S3Store:
    """Objects under one prefix of one bucket."""

    label = "s3"

    def __init__(self, client: Any, settings: Settings) -> None:
        if not settings.aws_s3_bucket:
            raise ConfigurationError("AWS_S3_BUCKET is not set", hint="set it to the bucket's name")
        self._s3, self._settings = client, settings
        self._bucket, self._prefix = settings.aws_s3_bucket, settings.backup_s3_prefix

    def address(self, name: str = "") -> str:
        return f"s3://{self._bucket}/{self._prefix}{name}"

    @property
    def host(self) -> str:
        return urlsplit(str(self._s3.meta.endpoint_url)).hostname or ""

    def clock(self) -> datetime:
        """By the Date of an answer (RFC 9110)."""
        with self._explained(f"asking {self.address()} for the time"):
            answer = self._s3.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
        with suppress(KeyError, TypeError, ValueError):
            said = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
            return said.astimezone(UTC)
        return datetime.now(UTC)

    def list(self, beginning: str = "") -> Iterator[Listed]:
        with self._explained(f"listing {self.address()}"):
            pages = self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + beginning, Delimiter="/"
            )
            for page in pages:
                for found in page.get("Contents", ()):
                    name = found["Key"].removeprefix(self._prefix)
                    yield Listed(name, found["Size"], found["LastModified"].astimezone(UTC))

    def put(self, source: Path, name: str, expected: Bytes, observer: Observer | None = None) -> Stored:
        """Uploads in parts sized for the file; counts only once the server's checksum is ours."""
        digests = _expected(source, expected)
        new = self._head(name) is None
        if new:
            self._abort_unfinished(name)
            try:
                self._upload(source, name, digests, observer)
            except StoreError:  # the answer may be all that was lost
                with suppress(BackupDagError):
                    return Stored(self.address(name), new, self._read_back(name, digests))
                raise
            return Stored(self.address(name), new, self._read_back_what_is_ours(name, digests))
        return Stored(self.address(name), new, self._read_back(name, digests))

    def replace(self, source: Path, name: str, expected: Bytes) -> None:
        digests = _expected(source, expected)
        self._upload(source, name, digests, None)
        self._read_back(name, digests)

    def _upload(self, source: Path, name: str, digests: _Digests, observer: Observer | None) -> None:
        with _reading(source), self._explained(f"uploading {self.address(name)}"):
            self._s3.upload_file(
                str(source),
                self._bucket,
                self._prefix + name,
                ExtraArgs=self._extra_arguments(digests.whole.sha256),
                Callback=Meter(observer, expected=digests.whole.bytes).count,
                Config=TransferConfig(
                    multipart_threshold=digests.part + 1,
                    multipart_chunksize=digests.part,
                    max_concurrency=_AT_A_TIME,
                ),
            )

    def _extra_arguments(self, sha256: str) -> dict[str, Any]:
        settings = self._settings
        chosen = {
            "ServerSideEncryption": settings.backup_s3_sse,
            "SSEKMSKeyId": settings.backup_s3_sse_kms_key_id,
            "StorageClass": settings.backup_s3_storage_class,
        }
        if settings.backup_s3_object_lock_mode and settings.backup_s3_object_lock_days:
            chosen["ObjectLockMode"] = settings.backup_s3_object_lock_mode
            until = datetime.now(UTC) + timedelta(days=settings.backup_s3_object_lock_days)
            chosen["ObjectLockRetainUntilDate"] = until.isoformat()
        given = {name: value for name, value in chosen.items() if value}
        # some servers know no checksums: boto3's own setting says so, and then all is read back instead
        if self._s3.meta.config.request_checksum_calculation != "when_required":
            given["ChecksumAlgorithm"] = "SHA256"
        return {"Metadata": {"sha256": sha256}, **given}

    def _read_back(self, name: str, digests: _Digests) -> dict[str, str]:
        """Holds the object to our digest, by the server's own checksum or else by reading it all;
        returns what the server says of it."""
        head = self._head(name)
        if head is None:
            raise StoreError(
                f"{self.address(name)} is not there right after it was uploaded",
                hint="see the bucket's lifecycle rules and who else deletes from it",
            )
        same = head["ContentLength"] == digests.whole.bytes and head.get("ChecksumSHA256") == digests.as_s3
        if not same and self._whole(name) != digests.whole:
            raise IntegrityError(
                f"{self.address(name)} holds other bytes than {name} on this machine; it was left as it is",
                hint="see who wrote it; a backup is never uploaded over another",
            )
        details = {"etag": head.get("ETag", "").strip('"'), "version_id": head.get("VersionId", "")}
        return {key: value for key, value in details.items() if value}

    def _read_back_what_is_ours(self, name: str, digests: _Digests) -> dict[str, str]:
        """The same right after an upload: where other bytes came to be there, they are ours to remove."""
        try:
            return self._read_back(name, digests)
        except IntegrityError as error:
            self.remove(name)
            raise StoreError(
                f"{self.address(name)} did not hold what was uploaded, and was removed again",
                hint="run it again; where it happens again, see the network and the store",
            ) from error

    def _whole(self, name: str) -> Bytes:
        hashing = Hashing()
        self.fetch(name, hashing)
        return hashing.seen()

    def _head(self, name: str) -> Any:
        """What the server says of an object; None where there is none."""
        try:
            with self._explained(f"asking for {self.address(name)}"):
                return self._s3.head_object(
                    Bucket=self._bucket, Key=self._prefix + name, ChecksumMode="ENABLED"
                )
        except BackupNotFound:
            return None

    def _abort_unfinished(self, name: str) -> None:
        """Uploads of this very object that a dead run left open. Not being allowed to look is no error."""
        with suppress(StoreError):
            for upload in [upload for upload in self.unfinished(name) if upload.name == name]:
                self.abort(upload)

    def unfinished(self, beginning: str = "") -> Iterator[Upload]:
        with self._explained(f"looking for unfinished uploads in {self.address()}"):
            for page in self._s3.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket, Prefix=self._prefix + beginning
            ):
                for found in page.get("Uploads", ()):
                    name = found["Key"].removeprefix(self._prefix)
                    yield Upload(name, found["UploadId"], found["Initiated"].astimezone(UTC))

    def abort(self, upload: Upload) -> None:
        with (
            self._explained(f"ending the upload of {self.address(upload.name)}"),
            suppress(self._s3.exceptions.NoSuchUpload),
        ):
            self._s3.abort_multipart_upload(
                Bucket=self._bucket, Key=self._prefix + upload.name, UploadId=upload.id
            )

    def put_note(self, name: str, text: str) -> None:
        with self._explained(f"writing {self.address(name)}"):
            self._s3.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=text.encode())

    def fetch(self, name: str, sink: Writer) -> None:
        guarded = _Sink(sink)
        try:
            with self._explained(f"reading {self.address(name)}"):
                self._s3.download_fileobj(
                    self._bucket, self._prefix + name, guarded, Config=self._downloading()
                )
        finally:
            if guarded.error:  # the transfer manager has words of its own for it, or none
                raise guarded.error from None

    def _downloading(self) -> TransferConfig:
        tries = min(_MOST_TRIES_TO_READ, _tries(self._settings))
        config = TransferConfig(num_download_attempts=tries, max_concurrency=_AT_A_TIME)
        # of 8 MiB each, that wait for their turn; else ten of them
        config.max_in_memory_download_chunks = _AT_A_TIME
        return config

    def read(self, name: str) -> bytes:
        with self._explained(f"reading {self.address(name)}"):
            found = self._s3.get_object(Bucket=self._bucket, Key=self._prefix + name)
            hold_to_largest(self.address(name), found["ContentLength"])
            return bytes(found["Body"].read())

    def remove(self, name: str) -> None:
        with self._explained(f"removing {self.address(name)}", denied=_MAY_NOT_REMOVE):
            self._s3.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def locked_until(self, name: str) -> datetime | None:
        """As the server tells those who may see it (s3:GetObjectRetention, s3:GetObjectLegalHold)."""
        head = self._head(name) or {}
        if head.get("ObjectLockLegalHoldStatus") == "ON":
            return FOREVER
        until: datetime | None = head.get("ObjectLockRetainUntilDate")
        return until.astimezone(UTC) if until and until > datetime.now(UTC) else None

    def shows_locks(self, name: str) -> bool:
        with self._explained(f"asking for the lock of {self.address(name)}"):
            try:
                self._s3.get_object_retention(Bucket=self._bucket, Key=self._prefix + name)
            except ClientError as error:  # also where there is none: that is seen
                return error.response["Error"].get("Code", "") not in _DENIED
        return True

    def probe(self) -> bool:
        name, text = PROBE, "write, read, remove"
        self.put_note(name, text)
        if self.read(name) != text.encode():
            raise StoreError(f"{self.address(name)} gave back other bytes than were written")
        try:
            self.remove(name)
        except StoreError as error:
            if error.retryable:
                raise
            return False
        return True

    @contextmanager
    def _explained(self, doing: str, denied: str = "") -> Iterator[None]:
        """Errors in our words; `denied` is the hint where the user may not do this."""
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise ConfigurationError(
                f"{doing} failed: {error}",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
            ) from error
        except ParamValidationError as error:
            raise ConfigurationError(
                f"{doing} failed: {' '.join(str(error).split())}",
                hint="see AWS_S3_BUCKET (a bucket's name alone) and BACKUP_S3_PREFIX",
            ) from error
        except RetriesExceededError as error:  # of a download, that broke off or stood still each time
            raise _in_our_words(doing, error.last_exception, denied) from error
        except (ClientError, BotoCoreError, Boto3Error) as error:
            raise _in_our_words(doing, error, denied) from error


class _Sink:
    """Shows the transfer manager a stream that cannot seek, and keeps the sink's own error."""

    def __init__(self, sink: Writer) -> None:
        self._sink = sink
        self.error: BaseException | None = None

    def write(self, data: bytes) -> None:
        try:
            self._sink.write(data)
        except BaseException as error:
            self.error = error
            raise


def part_size(size: int) -> int:
    """Bytes a part for an object of `size` bytes: whole MiB, at least 8, so that 10,000 parts suffice."""
    return max(_SMALLEST_PART, -(-size // _MOST_PARTS // BLOCK) * BLOCK)


def _expected(source: Path, expected: Bytes) -> _Digests:
    """A file's digests. Raises IntegrityError where it is not what was expected, DiskError where it cannot be
    read."""
    with _reading(source):
        digests = _digests(source)
    if digests.whole != expected:
        raise IntegrityError(
            f"{source} is not what its manifest promises; it was not uploaded",
            hint="the local copy has changed since it was made: check the disk, and verify other backups",
        )
    return digests


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(f"reading {source}", error) from error


def _digests(source: Path) -> _Digests:
    size = source.stat().st_size
    part = part_size(size)
    whole, parts = hashlib.sha256(), []
    with source.open("rb") as file:
        for _ in range(0, size, part):
            digest, left = hashlib.sha256(), part
            while left and (block := file.read(min(BLOCK, left))):
                whole.update(block)
                digest.update(block)
                left -= len(block)
            parts.append(digest.digest())
    if len(parts) > 1:
        as_s3 = f"{_base64(hashlib.sha256(b''.join(parts)).digest())}-{len(parts)}"
    else:
        as_s3 = _base64(whole.digest())
    return _Digests(Bytes(bytes=size, sha256=whole.hexdigest()), part, as_s3)


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _in_our_words(doing: str, error: BaseException, denied: str) -> BackupDagError:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ClientError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:  # never got an answer: no such host, refused, timed out, cut off
        return StoreUnreachable(
            f"{doing} failed: {error}",
            hint="check AWS_ENDPOINT_URL_S3, the network and the server; then run it again",
        )
    answer = cause.response
    code = answer["Error"].get("Code", "")
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _NOT_FOUND:
        return BackupNotFound(f"{doing} failed: it is not there", hint="backup-dag list shows what there is")
    said = f"{doing} failed: {answer['Error'].get('Message') or code} ({code})"
    if status >= 500 and code not in _REFUSALS:
        return StoreUnreachable(said, hint="the server had trouble; run it again in a while")
    if denied and code in _DENIED:
        return StoreError(said, hint=denied)
    return StoreError(said, hint=_REFUSALS.get(code, "see what the server refuses, and its log"))
