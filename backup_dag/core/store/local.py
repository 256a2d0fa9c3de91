"""A folder on this machine: BACKUP_DIR."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from errno import EEXIST
from pathlib import Path

from backup_dag.core.errors import BackupNotFound, DiskError, IntegrityError
from backup_dag.core.manifest import Bytes
from backup_dag.core.private import make_private
from backup_dag.core.store.base import Listed, Stored, Upload, hold_to_largest
from backup_dag.core.stream import BLOCK, Observer, Writer
from backup_dag.core.work import NOTE, disk_error


class LocalStore:
    """Files of mode 0600 in a folder of mode 0700. Hidden files and folders are not part of it."""

    label = "local"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def address(self, name: str = "") -> str:
        return str(self.folder / name) if name else str(self.folder)

    @property
    def host(self) -> str:
        return ""

    def clock(self) -> datetime:
        return datetime.now(UTC)

    def list(self, beginning: str = "") -> Iterator[Listed]:
        with self._explained("listing", ""):
            if not self.folder.exists():
                return
            entries = sorted(os.scandir(self.folder), key=lambda entry: entry.name)
        for entry in entries:
            if entry.name.startswith(beginning) and not entry.name.startswith(".") and entry.is_file():
                with suppress(FileNotFoundError):  # removed meanwhile
                    found = entry.stat()
                    yield Listed(entry.name, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    def put(self, source: Path, name: str, expected: Bytes, observer: Observer | None = None) -> Stored:
        """Moves a file of the same file system into place: durable first, then named, never over another."""
        target = self.folder / name
        with self._explained("writing", name):
            self._hold_to(source, expected)
            _sync(source)
            if not _named(source, target):
                return self._already_there(target, expected)
            try:
                source.unlink(missing_ok=True)
                _sync(self.folder)
            except BaseException:
                with suppress(OSError):  # whoever put it is told that it is not there
                    target.unlink()
                raise
        return Stored(str(target))

    def replace(self, source: Path, name: str, expected: Bytes) -> None:
        with self._explained("replacing", name):
            self._hold_to(source, expected)
            _sync(source)
            source.replace(self.folder / name)
            _sync(self.folder)

    def _hold_to(self, source: Path, expected: Bytes) -> None:
        if _digest(source) != expected.sha256:
            raise IntegrityError(
                f"{source} is not what its manifest promises; it was not stored",
                hint="it changed right after it was written: check the disk and the memory",
            )

    def _already_there(self, target: Path, expected: Bytes) -> Stored:
        if _digest(target) != expected.sha256:
            raise IntegrityError(
                f"{target} exists already, with other content; it was left as it is",
                hint="see what wrote it, and move it away",
            )
        return Stored(str(target), new=False)

    def put_note(self, name: str, text: str) -> None:
        with self._explained("writing", name):
            make_private(self.folder)
            with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=NOTE, delete=False) as file:
                note = Path(file.name)
            try:
                note.write_text(text)
                _sync(note)
                note.replace(self.folder / name)
            finally:
                note.unlink(missing_ok=True)
            _sync(self.folder)

    def fetch(self, name: str, sink: Writer) -> None:
        for block in self._blocks(name):
            sink.write(block)

    def read(self, name: str) -> bytes:
        with self._explained("reading", name), suppress(FileNotFoundError):
            hold_to_largest(str(self.folder / name), (self.folder / name).stat().st_size)
        return b"".join(self._blocks(name))

    def _blocks(self, name: str) -> Iterator[bytes]:
        path = self.folder / name
        with self._explained("reading", name):
            if not path.is_file():
                raise BackupNotFound(f"there is no {path}", hint="backup-dag list shows what there is")
        with self._explained("reading", name), path.open("rb", buffering=0) as file:
            while block := file.read(BLOCK):
                yield block

    def remove(self, name: str) -> None:
        with self._explained("removing", name):
            (self.folder / name).unlink(missing_ok=True)
            _sync(self.folder)

    def locked_until(self, name: str) -> datetime | None:
        return None

    def shows_locks(self, name: str) -> bool:
        return True

    def unfinished(self, beginning: str = "") -> Iterator[Upload]:
        yield from ()  # what is being written lies in a run's work directory, which the next run sweeps

    def abort(self, upload: Upload) -> None:
        pass

    def probe(self) -> bool:
        name, text = f".probe-{os.getpid()}", "write, read, remove"
        self.put_note(name, text)
        try:
            if self.read(name) != text.encode():
                raise DiskError(
                    f"{self.folder} gave back other bytes than were written", hint="check the disk"
                )
        finally:
            self.remove(name)
        return True

    @contextmanager
    def _explained(self, doing: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise disk_error(f"{doing} {self.folder / name}", error) from error


def _named(source: Path, target: Path) -> bool:
    """Gives a file another name too, or, where the file system has no hard links, instead. False: there is a
    file of that name."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno == EEXIST:
            return False
        if target.exists():
            raise
        source.rename(target)
    return True


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Returns once a file's bytes, or a folder's names, would survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
