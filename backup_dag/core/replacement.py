"""A copy of a backup, replaced by one under another key: in every store, and whoever is killed meanwhile.

New data is put under names of its own. Then `.sha256` lists old and new, then the manifest is replaced in one
step, then `.sha256` lists the new alone, and the old data goes last. So the manifest that is there vouches at
every moment for files that are there, whole, and the files of both are there while either may be read. What a
run that was killed left beside a manifest is told by its name, and `tidy` ends it, whichever manifest it is.
"""

from contextlib import suppress
from pathlib import Path

from backup_dag.core.catalog import Catalog
from backup_dag.core.copies import Copy
from backup_dag.core.errors import BackupDagError, GuardRefused, IntegrityError, StoreError
from backup_dag.core.holds import holder
from backup_dag.core.manifest import CHECKSUM, MANIFEST, Manifest, holds_data
from backup_dag.core.stages.checksum import checksum_file, is_listed, written
from backup_dag.core.store.base import Store
from backup_dag.core.stream import Observer


def replace_copy(
    store: Store, old: Manifest, new: Manifest, folder: Path, observer: Observer | None = None
) -> None:
    """Puts the files of `new`, found in `folder`, in the place of those of `old`; returns once the old are
    gone.

    Where new data cannot be put, what this call brought is taken away again. From when the manifest may have
    been replaced nothing is taken back: the next run sees what is there, and goes on.

    Raises:
        IntegrityError: what is there is not `old`, or not whole. Nothing was changed then.
        GuardRefused: somebody holds the old files. The new ones are in their place; `tidy` ends it.
        DiskError, StoreError, StoreUnreachable: the store.
    """
    tidy(store, old, folder)
    _put_data(store, new, folder, observer)
    _describe(store, folder, new.id.file(CHECKSUM), checksum_file([*old.files, *new.files]))
    _describe(store, folder, new.id.file(MANIFEST), new.to_json())
    if by := holder(store, new.id):
        raise GuardRefused(
            f"{store.address(new.artifact.name)} is in its place, and the old files stay, since somebody"
            f" reads them: {by}",
            hint="run it again when that is done",
        )
    tidy(store, new, folder)


def tidy(store: Store, manifest: Manifest, folder: Path) -> list[str]:
    """Removes the data beside a copy that its manifest does not name, and ends uploads of it that a dead run
    left open; returns the names. Nobody else may be changing the copy. `folder` is for what
    has to be written on the way.

    It looks first: nothing is removed unless this manifest is the one that is there, and all its files are.
    Raises IntegrityError where it is not so, and what the store raises.
    """
    name = manifest.id.file(CHECKSUM)
    [copy] = Catalog([store]).load(manifest.id).copies
    if copy.manifest != manifest or copy.fault or not is_listed(store.read(name), manifest.files):
        raise IntegrityError(
            copy.fault or f"{store.address(name)} or the manifest beside it is not what it was a moment ago",
            hint="see who else writes there; backup-dag verify says whether what is there is whole",
        )
    if store.read(name) != checksum_file(manifest.files).encode():
        _describe(store, folder, name, checksum_file(manifest.files))
    with suppress(StoreError):  # not being allowed to look is no error
        for upload in [each for each in store.unfinished(f"{manifest.id}.") if holds_data(each.name)]:
            store.abort(upload)
    for each in copy.unnamed:
        store.remove(each)
    return [*copy.unnamed]


def untidy(copy: Copy, manifest: Manifest) -> bool:
    """Whether there is something for `tidy` to do: data beside a copy, or checksums that list it too."""
    listed = copy.store.read(manifest.id.file(CHECKSUM))
    more = listed != checksum_file(manifest.files).encode() and is_listed(listed, manifest.files)
    return more or bool(copy.unnamed)


def _put_data(store: Store, new: Manifest, folder: Path, observer: Observer | None) -> None:
    brought: list[str] = []
    try:
        for file in new.files:
            if store.put(folder / file.name, file.name, file.measured, observer).new:
                brought.append(file.name)
    except BaseException:
        for name in reversed(brought):
            with suppress(BackupDagError):
                store.remove(name)
        raise


def _describe(store: Store, folder: Path, name: str, text: str) -> None:
    """Replaces what describes a backup."""
    path = folder / f"{name}.new"
    path.unlink(missing_ok=True)
    store.replace(path, name, written(path, text.encode()))
