"""The order of writing, in every store: data first, then what describes it, the manifest last.

So a manifest that is there vouches for files that are there. Removal goes the other way round.
"""

from contextlib import suppress
from pathlib import Path

from backup_dag.core.errors import BackupDagError, IntegrityError
from backup_dag.core.manifest import CHECKSUM, Bytes, Manifest
from backup_dag.core.stages.checksum import checksum_file, is_listed
from backup_dag.core.store.base import Store, Stored
from backup_dag.core.stream import Hashing, Observer
from backup_dag.core.work import disk_error, new_file, work_directory


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
            expected = promised.get(name) or _measured(folder / name)
            try:
                stored[name] = store.put(folder / name, name, expected, observer)
            except IntegrityError:
                if name != manifest.id.file(CHECKSUM) or not _listed_besides(store, manifest, folder):
                    raise
                stored[name] = Stored(store.address(name), new=False)
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


def _listed_besides(store: Store, manifest: Manifest, folder: Path) -> bool:
    """Where the checksums that are there list other data of the same backup, lists ours before it; else
    returns False.

    An upload that was killed before its manifest left them, and the backup has been re-encrypted since. If it
    was not killed, and its manifest comes all the same, they are still right for it.
    """
    name = manifest.id.file(CHECKSUM)
    both = checksum_file(manifest.files).encode() + store.read(name)
    if not is_listed(both, manifest.files):
        return False
    with work_directory(folder) as work:
        with new_file(work / name) as file:
            hashing = Hashing(file)
            hashing.write(both)
        store.replace(work / name, name, hashing.seen())
    return True


def _may_be_there(store: Store, manifest: Manifest) -> bool:
    """Whether the store has the manifest, or nobody can tell: then it may vouch for the other files."""
    name = manifest.names[-1]
    try:
        return any(listed.name == name for listed in store.list(name))
    except BackupDagError:
        return True


def _measured(path: Path) -> Bytes:
    hashing = Hashing()
    try:
        hashing.write(path.read_bytes())
    except OSError as error:
        raise disk_error(f"reading {path}", error) from error
    return hashing.seen()
