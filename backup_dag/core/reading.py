"""Stored backups, read back: fetch → decrypt → decompress, to whoever takes the plain bytes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backup_dag.core.audit import audited
from backup_dag.core.clients import find_clients
from backup_dag.core.errors import IntegrityError
from backup_dag.core.key import Key
from backup_dag.core.manifest import CHECKSUM, MANIFEST, BackupId, File, Manifest, major
from backup_dag.core.settings import Settings
from backup_dag.core.stages.compression import decompressing
from backup_dag.core.stages.dump import as_sql
from backup_dag.core.stages.encryption import decrypting
from backup_dag.core.store.base import Store
from backup_dag.core.store.local import LocalStore
from backup_dag.core.stream import Both, Hashing, Meter, Observer, Writer
from backup_dag.core.work import new_file, private_folder, reading_directory


@dataclass(frozen=True)
class Source:
    """One copy of a backup, and what opens it."""

    settings: Settings
    store: Store
    manifest: Manifest
    key: Key = field(repr=False)

    def read(self, text: Writer) -> None:
        """Pushes the dump's SQL text, to its end, whatever format it was kept in."""
        with (
            reading_directory(self.settings.backup_dir) as work,
            dump_text(self.settings, self.manifest, text) as writer,
        ):
            read_back(self.store, self.manifest.artifact, writer, self.key, work)


def brought_near(store: Store, manifest: Manifest, folder: Path, observer: Observer | None = None) -> Store:
    """A backup's files as they are in a store, in a folder that only we can write to: so that what was
    verified is what is read afterwards, whatever becomes of the store.

    Raises DiskError and what the store raises.
    """
    private_folder(folder)
    meter = Meter(observer, expected=sum(file.bytes for file in manifest.files))
    for file in manifest.files:
        with new_file(folder / file.name) as near:
            store.fetch(file.name, Both(near, meter))
    for name in (manifest.id.file(CHECKSUM), manifest.id.file(MANIFEST)):
        with new_file(folder / name) as near:
            near.write(store.read(name))
    return _Near(folder, store)


class _Near(LocalStore):
    """Named as where it came from: that is what a message is about."""

    def __init__(self, folder: Path, of: Store) -> None:
        super().__init__(folder)
        self._of = of

    def address(self, name: str = "") -> str:
        return self._of.address(name)


def read_back(store: Store, file: File, plain: Writer, key: Key, work: Path) -> tuple[Hashing, Hashing]:
    """Pushes a file's plain bytes to `plain`; returns the gzip and the encrypted stream as seen.

    Nothing that reached `plain` may be believed before this returns.

    Raises:
        IntegrityError: it could not be decrypted or decompressed to its end.
        BackupNotFound, StoreError, StoreUnreachable: the store. Whatever `plain` raised.
    """
    with _named(store, file), decompressing(plain) as gunzip:
        compressed = Hashing(gunzip)
        encrypted = _opened(store, file, compressed, key, work)
    return compressed, encrypted


def opened(store: Store, file: File, gzip: Writer, key: Key, work: Path) -> Hashing:
    """Pushes a file's bytes as they were before they were encrypted to `gzip`; returns the encrypted stream
    as seen. Raises as `read_back`, and nothing may be believed before it returns."""
    with _named(store, file):
        return _opened(store, file, gzip, key, work)


def _opened(store: Store, file: File, gzip: Writer, key: Key, work: Path) -> Hashing:
    with _noted(store, file, key), decrypting(gzip, key, work) as gpg:
        encrypted = Hashing(gpg)
        store.fetch(file.name, encrypted)
    return encrypted


@contextmanager
def _named(store: Store, file: File) -> Iterator[None]:
    """Says which file an error is about."""
    try:
        yield
    except IntegrityError as error:
        raise IntegrityError(f"{store.address(file.name)}: {error.message}", hint=error.hint) from error


def _noted(store: Store, file: File, key: Key) -> AbstractContextManager[Any]:
    """The key's use, in the audit log."""
    if key.mode == "off" or key.told_in is None:
        return nullcontext()
    stem = file.name.partition(".")[0]
    backup = BackupId.parse(stem)
    return audited(
        key.told_in,
        "key use",
        backup.database if backup else None,
        stem,
        key=list(key.fingerprints),
        file=store.address(file.name),
    )


@contextmanager
def dump_text(settings: Settings, manifest: Manifest, sink: Writer) -> Iterator[Writer]:
    """The dump as SQL: as it is, or by way of a pg_restore that can read the archive."""
    if manifest.dump.format == "sql":
        yield sink
        return
    clients = find_clients(major(manifest.dump.client_version), settings.pg_bin_dir)
    with as_sql(sink, clients, format=manifest.dump.format) as writer:
        yield writer
