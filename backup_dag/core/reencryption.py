"""A backup, streamed from one passphrase to another, and read back: into a folder, with nothing replaced
yet."""

from dataclasses import dataclass
from pathlib import Path

from backup_dag.core.key import Key
from backup_dag.core.manifest import Bytes, File, Globals, Manifest, named_for
from backup_dag.core.reading import opened, read_back
from backup_dag.core.stages.checksum import compare
from backup_dag.core.stages.encryption import encrypting
from backup_dag.core.store.base import Store
from backup_dag.core.store.local import LocalStore
from backup_dag.core.stream import Both, Hashing, Meter, Watch
from backup_dag.core.work import new_file


def reencrypt(
    store: Store, old: Manifest, opens: Key, key: Key, folder: Path, work: Path, watch: Watch
) -> Manifest:
    """Writes the files of a backup, encrypted with `key`, into a folder; returns their manifest, which
    nothing authenticates yet.

    Plain text is in memory only, a block at a time. Each new file was opened again, and holds the gzip stream
    that the old one held, byte for byte, and the dump that the manifest promises. `opens` is the key of the
    old ones, `work` a private folder for gpg.

    Raises:
        IntegrityError: an old file is not what the manifest promises, or a new one does not hold the same.
        BackupNotFound, StoreError, StoreUnreachable, DiskError: the store, or the folder.
    """
    meter = Meter(watch("re-encrypting"), expected=sum(file.bytes for file in old.files))
    made = [_reencrypted(store, file, opens, key, folder, work, meter) for file in old.files]
    meter = Meter(watch("reading back"), expected=old.dump.bytes)
    for each in made:
        _hold_to(each, LocalStore(folder), key, work, meter, old)
    artifact, roles = (each.file for each in made)
    return _described_anew(old, key, artifact, roles)


@dataclass(frozen=True)
class _Made:
    """A file under the new passphrase, and the gzip stream that it has to hold."""

    file: File
    gzip: Bytes
    is_artifact: bool


def _reencrypted(
    store: Store, file: File, opens: Key, key: Key, folder: Path, work: Path, meter: Meter
) -> _Made:
    """Streams a file from one passphrase to the other. Raises IntegrityError where it is not as promised."""
    name = named_for(file.name, key.fingerprints[0])
    with new_file(folder / name) as new:
        encrypted = Hashing(Both(new, meter))
        with encrypting(encrypted, key, work) as gpg:
            gzip = Hashing(gpg)
            seen = opened(store, file, gzip, opens, work)
            compare(store.address(file.name), file, seen.seen())
    made = File(name=name, **encrypted.seen().model_dump())
    return _Made(made, gzip.seen(), is_artifact=not isinstance(file, Globals))


def _hold_to(made: _Made, near: Store, key: Key, work: Path, meter: Meter, old: Manifest) -> None:
    """Raises IntegrityError unless the new file opens with the new passphrase, and holds what it should."""
    plain = Hashing(meter)
    compressed, encrypted = read_back(near, made.file, plain, key, work)
    compare(near.address(made.file.name), made.file, encrypted.seen())
    promised = [(made.gzip, compressed)]
    if made.is_artifact:
        promised += [(old.compressed, compressed), (old.dump, plain)]
    for expected, found in promised:
        compare(f"what {near.address(made.file.name)} holds", expected, found.seen())


def _described_anew(old: Manifest, key: Key, artifact: File, roles: File) -> Manifest:
    """The manifest with what the passphrase changes; nothing authenticates it yet."""
    hashes = old.globals.password_hashes
    by_hand = [
        line.replace(old.artifact.name, artifact.name).replace(old.globals.name, roles.name)
        for line in old.recover
    ]
    return old.model_copy(
        update={
            "encryption": key.described(),
            "artifact": artifact,
            "globals": Globals(password_hashes=hashes, **roles.model_dump()),
            "recover": by_hand,
            "authentication": None,
        }
    )
