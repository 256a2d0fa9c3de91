"""What every store promises. `tests/store_contract.py` holds each of them to it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from backup_dag.core.manifest import Bytes
from backup_dag.core.stream import Observer, Writer


@dataclass(frozen=True)
class Listed:
    """A file as a listing names it."""

    name: str
    bytes: int


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
      bytes is no error, one of other bytes is refused and changes nothing.
    * `put` returns once the bytes are durable and have been compared with `expected`.
    * Listings are complete, and come in the order of names.
    * Errors are StoreError or StoreUnreachable; IntegrityError where bytes differ; BackupNotFound
      where a file to be read is not there.
    """

    label: str

    def address(self, name: str = "") -> str:
        """Where a file is, as a person would type it: a path, or s3://…"""
        ...

    def list(self, beginning: str = "") -> Iterator[Listed]:
        """The files whose names begin so."""
        ...

    def put(self, source: Path, name: str, expected: Bytes, observer: Observer | None = None) -> Stored:
        """Stores a file. The source may be gone afterwards."""
        ...

    def put_note(self, name: str, text: str) -> None:
        """Stores a small text, in place of an older one of that name (results beside a backup)."""
        ...

    def fetch(self, name: str, sink: Writer) -> None:
        """Pushes a file's bytes to `sink`, in order. What the sink raises comes through."""
        ...

    def read(self, name: str) -> bytes:
        """A small file's bytes."""
        ...

    def remove(self, name: str) -> None:
        """Removes a file; one that is not there is no error."""
        ...

    def probe(self) -> bool:
        """Writes, reads and removes a small file of its own; whether it may remove. Raises where the
        rest fails."""
        ...
