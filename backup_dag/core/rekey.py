"""Another passphrase for the backups that are kept: each is encrypted anew, one after the other.

Plain text never touches the disk: what is decrypted flows into the next gpg. What came of it is read back
with the new passphrase, and held to the manifest's digests of the plain dump, before anything that is there
is touched. Whatever ends this half-way, each copy is whole under the one or the other passphrase; the next
run goes on with what is left.
"""

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from backup_dag.core.audit import audited
from backup_dag.core.authenticity import authenticator, is_authentic
from backup_dag.core.authenticity import check as check_authenticity
from backup_dag.core.catalog import Catalog, Stray
from backup_dag.core.copies import Backup, Copy, verification
from backup_dag.core.errors import (
    BackupDagError,
    BackupNotFound,
    ConfigurationError,
    GuardRefused,
    IntegrityError,
    StoreError,
    StoreUnreachable,
)
from backup_dag.core.holds import held, holder, may_let_go, sweep_holds
from backup_dag.core.key import Key, decryption_key, encryption_key
from backup_dag.core.manifest import VERIFICATION, BackupId, ByPassphrase, Manifest
from backup_dag.core.reading import brought_near
from backup_dag.core.reencryption import reencrypt
from backup_dag.core.replacement import replace_copy, tidy, untidy
from backup_dag.core.settings import Settings
from backup_dag.core.stages.checksum import compare
from backup_dag.core.store.base import FOREVER, Store
from backup_dag.core.store.local import LocalStore
from backup_dag.core.stream import Hashing, Observer, Watch
from backup_dag.core.verify import examine, record
from backup_dag.core.work import disk_error, one_at_a_time, work_directory

Fate = Literal["current", "untidy", "tidied", "other", "due", "rekeyed", "locked", "failed"]


@dataclass
class Rekeyed:
    """What became of one copy.

    `current`: it is under today's passphrase already. `untidy`: it is, and what it took the place of lies
    beside it still; `tidied`: that has been removed. `other`: under none (public keys, or not encrypted).
    `due`: it would be re-encrypted (a dry run). `locked`: its store protects it until `locked_until`.
    `failed`: it is as it was, or whole under the new passphrase with the old files beside it; `error` says
    why. `damage`: what was wrong with it before it was made anew from another copy. `needs_old`: it is not
    encrypted, and authenticated by a passphrase that is not today's. `seconds`: what was done for it alone,
    and for the first of a backup's copies what was done for all.
    """

    copy: Copy
    backup: str
    database: str
    fate: Fate
    under: list[str]
    bytes: int = 0
    seconds: float = 0.0
    error: BackupDagError | None = None
    locked_until: datetime | None = None
    damage: str = ""
    needs_old: bool = False

    @property
    def place(self) -> str:
        return self.copy.store.address()

    def failed(self, error: BackupDagError) -> "Rekeyed":
        self.fate, self.error = "failed", error
        return self

    def be_made_anew(self) -> None:
        """It failed, being damaged; another copy takes its place."""
        self.damage = self.error.message if self.error else ""
        self.fate, self.error = "due", None

    def document(self) -> dict[str, Any]:
        until = self.locked_until
        said = {"error": self.error.message, "hint": self.error.hint} if self.error else {"error": None}
        return {
            "backup": self.backup,
            "database": self.database,
            "store": self.copy.store.label,
            "address": self.place,
            "fate": self.fate,
            "key_fingerprints": self.under,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "damage": self.damage or None,
            "locked_until": "forever" if until == FOREVER else until and until.isoformat(),
            **said,
        }


def new_key(settings: Settings) -> Key:
    """The key that backups are re-encrypted with: that of new ones. Raises ConfigurationError where it is not
    a passphrase."""
    if settings.backup_gpg_recipients and settings.backup_encryption == "on":
        raise ConfigurationError(
            "backups are made for public keys (BACKUP_GPG_RECIPIENTS), and what was made for them cannot be"
            " opened here, so it cannot be re-encrypted",
            hint="keep the secret keys for as long as the backups that were made for them; a new key in"
            " BACKUP_GPG_RECIPIENTS is for new backups. To re-encrypt backups that are under a passphrase,"
            " run this with BACKUP_GPG_RECIPIENTS empty and the passphrases set",
        )
    if settings.backup_encryption == "off":
        raise ConfigurationError(
            "encryption is off (BACKUP_ENCRYPTION=off), so there is no passphrase to re-encrypt backups with",
            hint="set BACKUP_ENCRYPTION=on and BACKUP_ENCRYPTION_KEY to the new passphrase, and the one"
            " before in BACKUP_ENCRYPTION_OLD_KEY",
        )
    return encryption_key(settings)


class Rekeying:
    """Brings every copy under the passphrase of today; `key` is that one.

    Making it raises ConfigurationError where there is no passphrase to bring them under, or a signing key
    that cannot sign.
    """

    def __init__(self, settings: Settings, stores: Sequence[Store], watch: Watch = lambda _: None) -> None:
        self.key = new_key(settings)
        self._settings, self._watched, self._which = settings, watch, ""
        self._authenticated = authenticator(settings)
        self._catalog = Catalog(stores)
        self._may_remove_in: dict[Store, bool] = {}
        self.strays: list[Stray] = []
        self.at_work: list[Rekeyed] = []
        """The copies of the backup that is being dealt with; `each` has not yielded them yet."""
        self.not_reached: Counter[str] = Counter()
        """How many backups may have a copy that could not be dealt with, by the address of its store."""

    @property
    def missed(self) -> list[BackupDagError]:
        """Why stores could not be asked."""
        return list(self._catalog.away.values())

    def each(self, database: str | None, *, dry_run: bool = False) -> Iterator[Rekeyed]:
        """Every copy (of one database), the newest backup's first, once it has been dealt with.

        What is wrong with one copy stands in its `error`, and keeps no other from its turn. A store that
        stops answering is not asked again (`missed`, `not_reached`); the others go on. A dry run changes
        nothing. Raises what asking the stores for their listings raises, where none answers.
        """
        survey = self._catalog.survey(database)
        backups, self.strays = survey.ids, survey.strays
        for number, backup in enumerate(backups, 1):
            self._which = f"{backup} ({number} of {len(backups)})"
            if found := self._catalog.load_if_there(backup):
                yield from self._looked_at(found) if dry_run else self._rekeyed(found)
            self.not_reached.update(store.address() for store in self._catalog.silent)

    def _looked_at(self, backup: Backup) -> list[Rekeyed]:
        return [self._look(copy, backup) for copy in backup.copies]

    def _look(self, copy: Copy, backup: Backup) -> Rekeyed:
        """What should become of a copy, and whether it can."""
        found = Rekeyed(copy, str(backup.id), backup.id.database, "due", [])
        try:
            manifest = copy.its_manifest(hint="see the other copy; docs/format.md says how to read it")
            found.under = manifest.encryption.key_fingerprints
            found.bytes = sum(file.bytes for file in manifest.files)
            if copy.fault:
                raise IntegrityError(copy.fault, hint=copy.hint)
            if manifest.encryption.mode != "symmetric":
                found.fate, by = "other", manifest.authentication
                found.needs_old = isinstance(by, ByPassphrase) and by.key not in self.key.fingerprints
            elif found.under == [*self.key.fingerprints]:
                found.fate = "current"
                if untidy(copy, manifest):
                    _refuse_while_read(copy.store, manifest)
                    found.fate = "untidy"
            else:
                self._hold_to_what_it_takes(copy, manifest, found)
        except BackupDagError as error:
            self._failed(found, error)
        return found

    def _watch(self, doing: str, where: str = "") -> Observer | None:
        return self._watched(f"{doing} {self._which}{where}")

    def _failed(self, found: Rekeyed, error: BackupDagError) -> Rekeyed:
        """By what its own store did; one that does not answer is not asked again."""
        if isinstance(error, StoreUnreachable):
            self._catalog.leave_out(found.copy.store, error)
        return found.failed(error)

    def _hold_to_what_it_takes(self, copy: Copy, manifest: Manifest, found: Rekeyed) -> None:
        """Raises why a copy cannot be re-encrypted."""
        check_authenticity(self._settings, copy)
        decryption_key(self._settings, manifest.encryption)
        locks = [until for name in manifest.names if (until := copy.store.locked_until(name))]
        if locks:
            found.fate, found.locked_until = "locked", max(locks)
        else:
            _refuse_while_read(copy.store, manifest)

    def _rekeyed(self, backup: Backup) -> list[Rekeyed]:
        """Deals with all copies of one backup: it is re-encrypted once, for all of them."""
        looked = self._looked_at(backup)
        if not any(each.fate in ("due", "untidy") for each in looked):
            return looked
        folder, of = self._settings.backup_dir, backup.id
        with ExitStack() as stack:
            try:
                stack.enter_context(one_at_a_time(folder, f"copy-{of.database}"))
                for store in [copy.store for copy in backup.copies]:
                    if store not in self._catalog.silent:
                        sweep_holds(store, of)
                        stack.enter_context(held(store, of))
                # again, now that nobody else changes it
                self.at_work = looked = self._looked_at(self._catalog.load(of))
                work = stack.enter_context(work_directory(folder))
                for each in looked:
                    if each.fate == "untidy":
                        self._tidy(each, work)
                self._replace(looked, of, work)
            except BackupNotFound:  # cleaned up meanwhile
                return []
            except BackupDagError as error:
                for each in looked:
                    if each.fate in ("due", "untidy"):
                        each.failed(error)
        return looked

    def _tidy(self, found: Rekeyed, work: Path) -> None:
        """Ends what a killed run did not: only beside a manifest that is authentic."""
        manifest = found.copy.manifest
        assert manifest is not None
        try:
            check_authenticity(self._settings, found.copy)
            tidy(found.copy.store, manifest, work)
            found.fate = "tidied"
        except BackupDagError as error:
            self._failed(found, error)

    def _replace(self, looked: list[Rekeyed], of: BackupId, work: Path) -> None:
        due = [each for each in looked if each.fate == "due" and self._may_remove(each, of)]
        if not due:
            return
        began = time.monotonic()
        new = self._new_files(looked, due, work)
        for each in due:
            if each.fate != "due" or new is None:
                continue
            try:
                self._replace_one(each, new, work)
                each.fate = "rekeyed"
            except BackupDagError as error:
                self._failed(each, error)
            each.seconds = round(time.monotonic() - began, 3)
            began = time.monotonic()

    def _may_remove(self, found: Rekeyed, backup: BackupId) -> bool:
        """Whether this user may remove in the store: else the old files would stay for ever."""
        store = found.copy.store
        try:
            if store not in self._may_remove_in:
                self._may_remove_in[store] = may_let_go(store, backup)
        except BackupDagError as error:
            self._failed(found, error)
            return False
        if not self._may_remove_in[store]:
            found.failed(
                StoreError(
                    f"this user may not remove in {store.address()}, so the files under the old passphrase"
                    " would stay there",
                    hint="run it as a user who may (deploy/s3-policy-cleanup.json)",
                )
            )
        return self._may_remove_in[store]

    def _new_files(self, looked: list[Rekeyed], due: list[Rekeyed], work: Path) -> "_New | None":
        """The backup under the new passphrase: from a whole copy that a run before has brought there, so that
        all copies stay the same; else made anew of the first that is whole, for those before it too. None
        where there is none."""
        for each in looked:
            manifest = each.copy.manifest
            brought = each.fate in ("current", "tidied", "rekeyed") and each.copy.good
            if manifest is not None and brought and is_authentic(self._settings, each.copy):
                try:
                    return self._fetched(each.copy.store, manifest, work)
                except (IntegrityError, BackupNotFound) as error:
                    self._condemned_if_damaged(each.failed(error))
        damaged: list[Rekeyed] = []
        for each in due:
            try:
                new = self._made(each.copy, work)
                for other in damaged:
                    other.be_made_anew()
                return new
            except (IntegrityError, BackupNotFound) as error:
                self._condemned_if_damaged(each.failed(error))
                damaged.append(each)
            except StoreUnreachable as error:
                self._failed(each, error)
        return None

    def _condemned_if_damaged(self, found: Rekeyed) -> None:
        """A copy that could not be re-encrypted is read once more, and what is found of it is recorded beside
        it, for whoever lists, watches or cleans up: it may have been the work directory's fault."""
        with suppress(BackupDagError):
            check = examine(self._settings, found.copy, "content", self._watch("verifying"))
            record(found.copy.store, found.copy.its_manifest(), check)

    def _fetched(self, store: Store, manifest: Manifest, work: Path) -> "_New":
        """Brought here, and compared. Raises IntegrityError where it is not what its manifest promises."""
        if isinstance(store, LocalStore):
            _compare(store, manifest, store.address)
            return _New(manifest, store.folder)
        near = work / "near"
        try:
            brought_near(store, manifest, near, self._watch("fetching"))
        except StoreUnreachable as error:
            self._catalog.leave_out(store, error)
            raise
        _compare(LocalStore(near), manifest, store.address)
        return _New(manifest, near)

    def _made(self, copy: Copy, work: Path) -> "_New":
        """Re-encrypts the files of a copy into a folder, and reads back what came of it. Raises
        IntegrityError where either is not what it should be. What nothing authenticated before
        (BACKUP_ACCEPT_UNAUTHENTICATED), nothing authenticates now."""
        old = copy.manifest
        assert old is not None
        folder = _folder_in(work, "new-")
        opens = decryption_key(self._settings, old.encryption)
        manifest = reencrypt(copy.store, old, opens, self.key, folder, work, self._watch)
        known = check_authenticity(self._settings, copy) is not None
        return _New(self._authenticated(manifest) if known else manifest, folder)

    def _replace_one(self, found: Rekeyed, new: "_New", work: Path) -> None:
        copy, old = found.copy, found.copy.manifest
        assert old is not None
        keys = {"old": found.under, "new": list(self.key.fingerprints)}
        with audited(
            self._settings.backup_dir,
            "rekey",
            found.database,
            found.backup,
            store=copy.store.address(),
            **keys,
        ):
            observer = self._watch("storing", f" in {copy.store.label}")
            _refuse_while_read(copy.store, old)
            replace_copy(copy.store, old, new.manifest, new.for_one(work), observer)
        with suppress(BackupDagError):  # else an old verdict stays until the next check
            _keep_what_is_still_true(copy.store, new.manifest)


@dataclass(frozen=True)
class _New:
    """A backup under the new passphrase, and the folder where its data lies."""

    manifest: Manifest
    folder: Path

    def for_one(self, work: Path) -> Path:
        """A folder of its own for one store, which may move what it is given."""
        folder = _folder_in(work, "for-")
        for file in self.manifest.files:
            source, copy = self.folder / file.name, folder / file.name
            try:
                os.link(source, copy)
            except OSError:  # a file system without hard links
                _copy(source, copy)
        return folder


def _refuse_while_read(store: Store, manifest: Manifest) -> None:
    """Raises GuardRefused where somebody else holds it: what they have opened is not to go."""
    if by := holder(store, manifest.id):
        raise GuardRefused(
            f"{store.address(manifest.artifact.name)} is held, somebody is reading it: {by}",
            hint="run it again when that is done",
        )


def _compare(store: Store, manifest: Manifest, address: Callable[[str], str]) -> None:
    for file in manifest.files:
        found = Hashing()
        store.fetch(file.name, found)
        compare(address(file.name), file, found.seen())


def _folder_in(work: Path, prefix: str) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=prefix, dir=work))
    except OSError as error:
        raise disk_error(f"making a folder in {work}", error) from error


def _copy(source: Path, copy: Path) -> None:
    try:
        shutil.copyfile(source, copy)
    except OSError as error:
        raise disk_error(f"copying {source} to {copy}", error) from error


def _keep_what_is_still_true(store: Store, manifest: Manifest) -> None:
    """Earlier checks stay beside the copy, but those that found bytes damaged which are no more."""
    name = manifest.id.file(VERIFICATION)
    found = verification(store, manifest.id, [listed.name for listed in store.list(name)])
    if found is not None and found.of_the_content() != found:
        store.put_note(name, found.of_the_content().to_json())
