"""The order of writing, in every store: data first, then what describes it, the manifest last.

So a manifest that is there vouches for files that are there. Removal goes the other way round.
"""

from contextlib import suppress
from pathlib import Path

from backup_dag.core.errors import BackupDagError, IntegrityError
from backup_dag.core.manifest import CHECKSUM, Manifest
from backup_dag.core.stages.checksum import checksum_file, is_listed, measured, written
from backup_dag.core.store.base import Store, Stored
from backup_dag.core.stream import Observer
from backup_dag.core.work import disk_error, work_directory


def publish(
    store: Store, manifest: Manifest, folder: Path, observer: Observer | None = None
) -> dict[str, Stored]:
    """Puts every file of a backup, found in `folder`, into a store; returns where each is now.

    Where one cannot be put, those that this call brought there are taken away again, and the error
    is raised: the store has the whole backup or nothing of it. It has the whole where the manifest came to be
    there although putting it failed, as when the answer to it was lost.
    """
    promised = {file.name: file.measured for file in manifest.files}
    stored: dict[str, Stored] = {}
    try:
        for name in manifest.names:
            if name == manifest.id.file(CHECKSUM):
                stored[name] = _put_checksums(store, manifest, folder, observer)
            else:
                expected = promised.get(name) or measured(_read(folder / name))
                stored[name] = store.put(folder / name, name, expected, observer)
    except BaseException as error:
        only_the_manifest_failed = len(stored) == len(manifest.names) - 1
        if (
            only_the_manifest_failed
            and not isinstance(error, IntegrityError)
            and _may_be_there(store, manifest)
        ):
            raise
        for name in reversed([name for name, put in stored.items() if put.new]):
            with suppress(BackupDagError):
                store.remove(name)
        raise
    return stored


def _put_checksums(store: Store, manifest: Manifest, folder: Path, observer: Observer | None) -> Stored:
    """Puts those of its own data alone: during a rekey, what lies in the folder lists more."""
    name, text = manifest.id.file(CHECKSUM), checksum_file(manifest.files).encode()
    try:
        if _read(folder / name) == text:
            return store.put(folder / name, name, measured(text), observer)
        with work_directory(folder) as work:
            return store.put(work / name, name, written(work / name, text), observer)
    except IntegrityError:
        if not _is_right_there(store, manifest, folder):
            raise
        return Stored(store.address(name), new=False)


def _is_right_there(store: Store, manifest: Manifest, folder: Path) -> bool:
    """Whether the other checksums that are there are right for it all the same, or were made so.

    They list more where a rekey has not ended. Where they list other data of the same backup alone, an upload
    was killed before its manifest, and the backup was re-encrypted since: ours are listed before it then. If
    that was not killed, and its manifest comes all the same, they are still right for it.
    """
    name = manifest.id.file(CHECKSUM)
    there = store.read(name)
    if is_listed(there, manifest.files):
        return True
    both = checksum_file(manifest.files).encode() + there
    if not is_listed(both, manifest.files):
        return False
    with work_directory(folder) as work:
        store.replace(work / name, name, written(work / name, both))
    return True


def _may_be_there(store: Store, manifest: Manifest) -> bool:
    """Whether the store has the manifest, or nobody can tell: then it may vouch for the other files."""
    name = manifest.names[-1]
    try:
        return any(listed.name == name for listed in store.list(name))
    except BackupDagError:
        return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise disk_error(f"reading {path}", error) from error
