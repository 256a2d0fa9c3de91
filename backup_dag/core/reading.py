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
from backup_dag.core.manifest import BackupId, File, Manifest, major
from backup_dag.core.settings import Settings
from backup_dag.core.stages.compression import decompressing
from backup_dag.core.stages.dump import as_sql
from backup_dag.core.stages.encryption import decrypting
from backup_dag.core.store.base import Store
from backup_dag.core.stream import Hashing, Writer
from backup_dag.core.work import reading_directory


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


def read_back(store: Store, file: File, plain: Writer, key: Key, work: Path) -> tuple[Hashing, Hashing]:
    """Pushes a file's plain bytes to `plain`; returns the gzip and the encrypted stream as seen.

    Nothing that reached `plain` may be believed before this returns.

    Raises:
        IntegrityError: it could not be decrypted or decompressed to its end.
        BackupNotFound, StoreError, StoreUnreachable: the store. Whatever `plain` raised.
    """
    try:
        with _noted(store, file, key), decompressing(plain) as gunzip:
            compressed = Hashing(gunzip)
            with decrypting(compressed, key, work) as gpg:
                encrypted = Hashing(gpg)
                store.fetch(file.name, encrypted)
    except IntegrityError as error:
        raise IntegrityError(f"{store.address(file.name)}: {error.message}", hint=error.hint) from error
    return compressed, encrypted


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
