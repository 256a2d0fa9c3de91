"""A backup and its copies: what one store holds of it, read off its listing, its manifest and its notes."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

from backup_dag.core.errors import (
    BackupDagError,
    BackupNotFound,
    DiskError,
    IntegrityError,
    StoreError,
    StoreUnreachable,
)
from backup_dag.core.manifest import (
    MANIFEST,
    VERIFICATION,
    BackupId,
    Check,
    Manifest,
    Verification,
    holds_data,
    read_manifest,
)
from backup_dag.core.store.base import Store

KEEP_THE_OTHER = (
    "keep the other copy if there is one, and verify it; make a backup now, and look at the disk or the"
    " bucket; see the README, A copy is damaged"
)
"""What to do about a copy that is damaged, where it is not known which."""

_KEEP_BOTH = (
    "remove nothing of it: it may be the only copy that there is of it; give each server a BACKUP_S3_PREFIX"
    " (and BACKUP_DIR) of its own, and see who writes there"
)
_FIND_OUT = (
    "see who can write there; backup-dag verify ID --store local, and --store s3, each by itself, say which"
    " is authentic and whole; remove nothing before that is known"
)
_AT_A_TIME = 8  # documents of one store


def keep_the_other(store: str, address: str, backup: str) -> str:
    """What to do about a damaged copy in the store of that label. `address` is all of its files', as a person
    would type it."""
    other = "s3" if store == "local" else "local"
    then = (
        "it is not brought back here by itself, and need not be"
        if store == "local"
        else "the next backup-dag backup copies it there again, if it is good here"
    )
    return (
        f"keep the other copy, if there is one: backup-dag verify {backup} --store {other}. Once that is"
        f" known to be good, remove all of {address}; {then}. Else make a backup now. Look at the"
        f" {'disk' if store == 'local' else 'bucket, and who writes there'}"
    )


@dataclass(frozen=True)
class Copy:
    """One store's copy of a backup. `fault` says why it cannot be used, "" where it can, and `hint` what to
    do about it; `remark` what else is not as it should be. `damaged`: the fault is one of its bytes; else it
    is another backup of the same name, or nobody can tell. `unnamed`: files of data beside it that its
    manifest does not name, as a rekey leaves them that was killed. `document` is what the manifest was read
    from; `refused` is why that could not be read at all, which says nothing of what it holds."""

    store: Store
    manifest: Manifest | None
    verification: Verification | None
    fault: str = ""
    remark: str = ""
    hint: str = ""
    damaged: bool = False
    unnamed: tuple[str, ...] = ()
    document: bytes = field(default=b"", repr=False)
    refused: StoreError | DiskError | None = None

    def its_manifest(self, hint: str = "see the other copy, or another backup") -> Manifest:
        """Raises IntegrityError where there is none that can be used; StoreError, DiskError: nobody knows."""
        if self.refused is not None:
            raise self.refused
        if self.manifest is None:
            raise IntegrityError(self.fault, hint=self.hint or hint)
        return self.manifest

    @property
    def advice(self) -> str:
        """What to do about it where it is not good."""
        if self.hint or self.manifest is None:
            return self.hint
        return _keep_the_other(self.store, self.manifest.id)

    @property
    def verdict(self) -> Check | None:
        """What its checks say of it now. None where it was never checked."""
        return self.verification.verdict() if self.verification else None

    @property
    def good(self) -> bool:
        """Whether it can be used, and no check has found it damaged."""
        return self.manifest is not None and not self.fault and (self.verdict is None or self.verdict.passed)

    @property
    def checked(self) -> bool:
        """Whether it is good, and a check of whatever level has found it so."""
        return self.good and self.verdict is not None

    @property
    def read_to_its_end(self) -> bool:
        """Whether it is good, and its content was read to its end and found as promised."""
        return self.good and self.verdict is not None and self.verdict.level != "checksum"

    @property
    def proven(self) -> bool:
        """Whether it is good, and a restore of it brought back what was promised."""
        return self.good and self.verification is not None and self.verification.proven


@dataclass(frozen=True)
class Backup:
    """A backup and its copies, the nearest store's first; `missed`: why other stores could not be asked."""

    id: BackupId
    copies: tuple[Copy, ...]
    missed: tuple[BackupDagError, ...] = ()

    @property
    def manifest(self) -> Manifest:
        """Raises IntegrityError where no copy has one that can be read."""
        if self.manifest_or_none is None:
            raise IntegrityError(
                f"no copy of {self.id} can be used: {'; '.join(copy.fault for copy in self.copies)}",
                hint="its artifact may still be recovered by hand, see docs/format.md",
            )
        return self.manifest_or_none

    @property
    def manifest_or_none(self) -> Manifest | None:
        """The nearest copy's that can be read, whatever else is wrong with that copy."""
        return next((copy.manifest for copy in self.copies if copy.manifest), None)

    @property
    def good(self) -> bool:
        """Whether there is a good copy of it."""
        return any(copy.good for copy in self.copies)

    @property
    def proven(self) -> bool:
        """Whether a copy of it is proven."""
        return any(copy.proven for copy in self.copies)


def copy_in(store: Store, backup: BackupId) -> Copy | None:
    """A store's copy. Raises StoreUnreachable where it stopped answering: then nothing is known of it."""
    sizes = {listed.name: listed.bytes for listed in store.list(f"{backup}.")}
    return _copy(store, backup, sizes) if backup.file(MANIFEST) in sizes else None


def copies_in(store: Store, database: str) -> list[tuple[BackupId, Copy]]:
    """A store's copies of a database's backups. Raises as `copy_in`, and is not waited for then."""
    sizes: dict[BackupId, dict[str, int]] = defaultdict(dict)
    for listed in store.list(f"backup_{database}_"):
        backup = BackupId.parse(listed.name.partition(".")[0])
        if backup is not None and backup.database == database:
            sizes[backup][listed.name] = listed.bytes
    whole = [backup for backup, names in sizes.items() if backup.file(MANIFEST) in names]

    def copy(backup: BackupId) -> Copy | None:
        with suppress(BackupNotFound):  # removed meanwhile
            return _copy(store, backup, sizes[backup])
        return None

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        found = zip(whole, pool.map(copy, whole), strict=True)
        return [(backup, there) for backup, there in found if there]


def _copy(store: Store, backup: BackupId, sizes: dict[str, int]) -> Copy:
    name = backup.file(MANIFEST)
    try:
        document = store.read(name)
        manifest = read_manifest(document, name)
    except StoreUnreachable:
        raise
    except BackupDagError as error:
        refused = error if isinstance(error, StoreError | DiskError) else None
        torn = isinstance(error, IntegrityError | BackupNotFound)
        fault = f"{store.address(name)}: {error.message}"
        hint = _keep_the_other(store, backup) if torn else error.hint
        return Copy(store, None, None, fault, hint=hint, damaged=torn, refused=refused)
    fault = ""
    for file in manifest.files:
        there = _bytes_of(store, file.name, sizes)
        if there != file.bytes:
            found = "not there" if there is None else f"{there:,} bytes"
            fault = f"{store.address(file.name)} is {found}, {file.bytes:,} bytes were promised"
    known, remark = _noted(store, backup, sizes)
    named = {file.name for file in manifest.files}
    unnamed = tuple(sorted(name for name in sizes if holds_data(name) and name not in named))
    if unnamed:
        left = f"its manifest does not name {' and '.join(map(store.address, unnamed))}: a rekey was"
        remark = "; ".join(filter(None, (remark, f"{left} interrupted, and backup-dag rekey removes that")))
    hint = _keep_the_other(store, backup) if fault else ""
    return Copy(store, manifest, known, fault, remark, hint, bool(fault), unnamed, document)


def _keep_the_other(store: Store, backup: BackupId) -> str:
    return keep_the_other(store.label, store.address(f"{backup}.*"), str(backup))


def _noted(store: Store, backup: BackupId, names: Collection[str]) -> tuple[Verification | None, str]:
    """What earlier checks found, and why nobody can tell: one note that cannot be read hides no backup."""
    name = backup.file(VERIFICATION)
    try:
        known = verification(store, backup, names)
    except StoreUnreachable:
        raise
    except (StoreError, DiskError, IntegrityError) as error:
        return None, f"the record of this backup's checks cannot be read: {error.message}"
    unread = known is None and name in names
    return known, f"{store.address(name)} is no record of this backup's checks" if unread else ""


def _bytes_of(store: Store, name: str, sizes: dict[str, int]) -> int | None:
    """None where there is no such file. What a listing lacks is asked for by name before that is believed,
    since a copy is condemned for it."""
    if name in sizes:
        return sizes[name]
    return next((listed.bytes for listed in store.list(name) if listed.name == name), None)


def of_one_backup(copies: list[Copy]) -> Iterator[Copy]:
    """The copies; one whose manifest is not the first one's, under whatever passphrase, is another backup
    that has the same name."""
    first = next((copy.manifest for copy in copies if copy.manifest), None)
    for copy in copies:
        if first and copy.manifest and not copy.manifest.is_same_backup(first):
            yield _another(copy, copy.manifest, first)
        else:
            yield copy


def _another(copy: Copy, manifest: Manifest, first: Manifest) -> Copy:
    """The copy, with how its manifest differs from the nearest one's. Another server's is not damaged."""
    server = manifest.server.system_identifier
    if server == first.server.system_identifier:
        where = copy.store.address(manifest.id.file(MANIFEST))
        fault = (
            f"{where} does not say what the nearest copy's manifest says: it is another backup of the same"
            " name, or one of the two was changed"
        )
        return replace(copy, fault=fault, hint=_FIND_OUT, damaged=True)
    fault = (
        f"{copy.store.address(manifest.artifact.name)} is another backup of the same name, from the server"
        f" {server}: give each server a BACKUP_S3_PREFIX of its own"
    )
    return replace(copy, fault=fault, hint=_KEEP_BOTH, damaged=False)


def verification(store: Store, backup: BackupId, names: Iterable[str]) -> Verification | None:
    """The results of earlier checks of a copy; None where there are none that can be read."""
    name = backup.file(VERIFICATION)
    if name not in names:
        return None
    try:
        found = Verification.model_validate_json(store.read(name))
    except ValueError:
        return None
    return found if found.backup == str(backup) else None
