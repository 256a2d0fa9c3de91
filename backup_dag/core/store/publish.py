"""The order of writing, in every store: data first, then what describes it, the manifest last.

So a manifest that is there vouches for files that are there. Removal goes the other way round.
"""

from contextlib import suppress
from pathlib import Path

from backup_dag.core.errors import BackupDagError
from backup_dag.core.manifest import Bytes, Manifest
from backup_dag.core.store.base import Store, Stored
from backup_dag.core.stream import Hashing, Observer


def publish(
    store: Store, manifest: Manifest, folder: Path, observer: Observer | None = None
) -> dict[str, Stored]:
    """Puts every file of a backup, found in `folder`, into a store; returns where each is now.

    Where one cannot be put, those that this call brought there are taken away again, and the error
    is raised: the store has the whole backup or nothing of it.
    """
    promised = {file.name: Bytes(bytes=file.bytes, sha256=file.sha256) for file in manifest.files}
    stored: dict[str, Stored] = {}
    try:
        for name in manifest.names:
            expected = promised.get(name) or _measured(folder / name)
            stored[name] = store.put(folder / name, name, expected, observer)
    except BaseException:
        for name in reversed([name for name, put in stored.items() if put.new]):
            with suppress(BackupDagError):
                store.remove(name)
        raise
    return stored


def _measured(path: Path) -> Bytes:
    hashing = Hashing()
    hashing.write(path.read_bytes())
    return hashing.seen()
