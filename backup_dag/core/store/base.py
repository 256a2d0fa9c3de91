"""What every store promises. `tests/store_contract.py` holds each of them to it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from backup_dag.core.errors import IntegrityError
from backup_dag.core.manifest import Bytes
from backup_dag.core.stream import Observer, Writer

PROBE = ".probe"
"""What an attempt to write is called in a bucket; one that was cut short may stay until the next."""

FOREVER = datetime.max.replace(tzinfo=UTC)
"""The end of a lock that has none."""


LARGEST = 64 << 20
"""Bytes of what describes a backup: the manifest of 100,000 tables has some 30 MB."""


def hold_to_largest(address: str, size: int) -> None:
    """Raises IntegrityError for what is too large to be read at once."""
    if size > LARGEST:
        raise IntegrityError(
            f"{address} has {size:,} bytes, and nothing that describes a backup has more than {LARGEST:,}",
            hint="see who can write there; compare it with the other store's copy",
        )


@dataclass(frozen=True)
class Listed:
    """A file as a listing names it. `modified` is when it came to be there, by the store's clock: good for
    telling what is still being written from what was left, and never a backup's time."""

    name: str
    bytes: int
    modified: datetime


@dataclass(frozen=True)
class Upload:
    """An upload that was begun, and neither ended nor aborted. `id` is the store's own."""

    name: str
    id: str
    begun: datetime


@dataclass(frozen=True)
class Stored:
    """A file that was put: where it is now, whether this put brought it there, and what the store
    says of it (version id, etag …)."""

    address: str
    new: bool = True
    details: dict[str, str] = field(default_factory=dict)


class Store(Protocol):
    """A flat folder of files.

    * A file is there whole or not at all; a `put` that fails leaves nothing, a second one of the same
      bytes is no error, one of other bytes is refused and changes nothing (`replace` is for that).
    * `put` returns once the bytes are durable and have been compared with `expected`.
    * Listings are complete, and come in the order of names.
    * Errors are StoreError or StoreUnreachable; IntegrityError where bytes differ; BackupNotFound
      where a file to be read is not there.
    """

    label: str

    def address(self, name: str = "") -> str:
        """Where a file is, as a person would type it: a path, or s3://…"""
        ...

    @property
    def host(self) -> str:
        """The host that serves it; "" for a folder of this machine."""
        ...

    def clock(self) -> datetime:
        """What time it is there; this host's where it does not say."""
        ...

    def list(self, beginning: str = "") -> Iterator[Listed]:
        """The files whose names begin so."""
        ...

    def put(self, source: Path, name: str, expected: Bytes, observer: Observer | None = None) -> Stored:
        """Stores a file. The source may be gone afterwards."""
        ...

    def replace(self, source: Path, name: str, expected: Bytes) -> None:
        """Stores a small file, in place of an older one of that name: whoever reads it meanwhile has the one
        or the other, whole. It is `put` in all else. Only for what describes a backup, and never for its
        data."""
        ...

    def put_note(self, name: str, text: str) -> None:
        """Stores a small text, in place of an older one of that name (results beside a backup)."""
        ...

    def fetch(self, name: str, sink: Writer) -> None:
        """Pushes a file's bytes to `sink`, in order. What the sink raises comes through."""
        ...

    def read(self, name: str) -> bytes:
        """A small file's bytes. Raises IntegrityError for more than LARGEST: whoever may write there could
        else fill the memory of who reads."""
        ...

    def remove(self, name: str) -> None:
        """Removes a file; one that is not there is no error. Ask `locked_until` first: a bucket that locks
        hides a locked file all the same."""
        ...

    def locked_until(self, name: str) -> datetime | None:
        """Until when the store protects a file from being removed: FOREVER for a lock without an end, None
        where there is no lock, it has ended, or there is no such file; or this user may not see it."""
        ...

    def shows_locks(self, name: str) -> bool:
        """Whether this user may see a file's lock, if there is one."""
        ...

    def unfinished(self, beginning: str = "") -> Iterator[Upload]:
        """The uploads, of names that begin so, that are under way or were left by a run that died."""
        ...

    def abort(self, upload: Upload) -> None:
        """Ends an upload, and frees what it holds; one that has ended is no error."""
        ...

    def probe(self) -> bool:
        """Writes, reads and removes a small file of its own; whether it may remove. Raises where the
        rest fails."""
        ...
