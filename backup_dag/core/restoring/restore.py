"""Restore that cannot hurt: plan, safety backup, build aside, prove, swap, and the old one kept.

Until the swap the target serves as before; the swap is one transaction. Whatever fails, and wherever
this process ends, the target is what it was, or the proven replacement. What a killed run leaves is
a database that is marked as half-made; the next restore of that target drops it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Self

from backup_dag.core.audit import Entry, audited
from backup_dag.core.backup import Order, take_backup
from backup_dag.core.catalog import Backup, Catalog, Copy, find, open_stores
from backup_dag.core.databases import configured, whole_database
from backup_dag.core.errors import (
    BackupDagError,
    BackupNotFound,
    GuardRefused,
    IntegrityError,
)
from backup_dag.core.holds import held
from backup_dag.core.key import decryption_key
from backup_dag.core.manifest import Level, Manifest
from backup_dag.core.reading import Source
from backup_dag.core.restoring import history
from backup_dag.core.restoring.beside import Beside
from backup_dag.core.restoring.confirmation import check_code
from backup_dag.core.restoring.inplace import InPlace
from backup_dag.core.restoring.plan import Chosen, RestorePlan, Wish, make_plan, target_of
from backup_dag.core.restoring.proof import Proof
from backup_dag.core.restoring.roles import Roles, create_lacking, drop_created, read_roles
from backup_dag.core.restoring.target import Target, target_at
from backup_dag.core.restoring.way import Way
from backup_dag.core.settings import Settings
from backup_dag.core.stream import Observer
from backup_dag.core.verify import examine, made_check, record

Watch = Callable[[str], Observer | None]
"""From what is being done, in words, to whoever watches it."""


@dataclass
class Report:
    """What was done. Seconds of wall clock by step; the window is in milliseconds."""

    backup: str
    target: str
    mode: str
    safety_backup: str | None = None
    roles_created: list[str] = field(default_factory=list)
    proof_notes: list[str] = field(default_factory=list)
    kept_as: str | None = None
    window_ms: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class Restoration:
    """One restore, step by step, in this order: fetch, verify, plan, safety, build, prove, swap.

    A context: leaving it drops what was built and not swapped in, and lets go of lock and hold.
    """

    def __init__(self, settings: Settings, wish: Wish, watch: Watch = lambda _: None) -> None:
        self._settings, self._wish, self._watch = settings, wish, watch
        self._stack = ExitStack()
        self._finished = False
        self._roles_lost: list[str] = []  # what is wrong with the file that holds them

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)  # so that the audit log hears of the error

    def fetch(self) -> Backup:
        """Finds the backup and the nearest copy that can be used, and the target's server.

        Raises:
            BackupNotFound, IntegrityError: no such backup, or no copy that can be used.
            ConfigurationError, DatabaseUnreachable: the target's server.
        """
        self._backup, self._passed_over = _found(self._settings, self._wish)
        manifest = self._backup.manifest
        usable = [copy for copy in self._backup.copies if not copy.fault and copy.manifest]
        if not usable:
            raise IntegrityError(
                f"no copy of {self._backup.id} can be used:"
                f" {'; '.join(copy.fault for copy in self._backup.copies)}",
                hint="restore another backup; backup-dag list shows them",
            )
        self._copy: Copy = usable[0]
        self._key = decryption_key(self._settings, manifest.encryption)
        self._server, address = target_of(self._settings, self._wish, manifest)
        itself = self._wish.mode == "in-place"
        self._target: Target = self._stack.enter_context(target_at(address, or_itself=itself))
        self._report = Report(str(self._backup.id), str(address), self._wish.mode)
        return self._backup

    def verify(self, *, to_its_end: bool = True) -> None:
        """Verifies the copy; another copy, where the first is damaged. Raises IntegrityError.

        It is decrypted and read to its end. Without `to_its_end` only where that was never done: of a copy
        whose content was found good, the checksum says that it is still the same; loading it reads it to its
        end, and the proof compares what came of it, in any case.
        """
        with self._timed("verify"):
            faults: list[str] = []
            usable = [copy for copy in self._backup.copies if copy.manifest and not copy.fault]
            for copy in usable:
                level: Level = "checksum" if copy.read_to_its_end and not to_its_end else "content"
                check = examine(self._settings, copy, level, self._watch("verifying the backup"))
                with suppress(BackupDagError):  # a bucket may only be readable from here
                    record(copy.store, self._manifest, check)
                if check.passed:
                    self._copy, self._check = copy, check
                    return
                faults += check.faults
            for copy in usable:  # the data may be whole, and only the roles' file damaged
                check = examine(
                    self._settings, copy, "content", self._watch("verifying the data"), roles=False
                )
                if check.passed:
                    self._copy, self._check, self._roles_lost = copy, check, faults
                    return
        raise IntegrityError(
            f"{self._backup.id} is damaged and was not restored: {'; '.join(faults)}",
            hint="restore another backup; backup-dag list shows them",
        )

    def plan(self) -> RestorePlan:
        """What the next steps would do. Nothing has been changed yet."""
        if self._roles_lost:
            self._roles = Roles("")
        else:
            self._roles = read_roles(self._settings, self._copy.store, self._manifest, self._key)
        chosen = Chosen(self._backup, self._copy, self._check, self._passed_over, self._roles_lost)
        return make_plan(self._settings, self._wish, chosen, self._roles, self._target)

    def confirm(self, plan: RestorePlan, code: str) -> None:
        """Raises GuardRefused unless the code is for this plan and the target as it stands now."""
        check_code(self._settings.backup_dir, code, what=plan.purpose, state=self._target.state())

    def safety(self, plan: RestorePlan) -> Manifest | None:
        """Backs up the target as it is; None where there is none, or none was wished for.

        Raises:
            GuardRefused: the plan found an obstacle, or another restore of the target is running.
            BackupDagError: it could not be backed up.
        """
        self._entry = self._stack.enter_context(self._noted())
        plan.check()
        self._stack.enter_context(self._target.locked())
        self._stack.enter_context(held(self._copy.store, self._backup.id))
        self._target.sweep()
        self._way = self._begun()
        self._way.hold()
        if self._wish.mode == "new" or not self._wish.safety_backup or self._target.standing() is None:
            return None
        with self._timed("safety"):
            whole = whole_database(self._server, self._target.address)
            order = Order(whole, datetime.now(self._settings.zone).date(), "pre_restore")
            made = take_backup(self._settings, order, self._watch("backing up the target as it is"))
        self._report.safety_backup = made.backup
        return made

    def _begun(self) -> Way:
        """The way that this restore goes, undone on leaving the context unless it is finished."""
        way: Way
        if self._wish.mode == "in-place":
            way = InPlace(self.source, self._target, self._timed)
        else:
            keep = self._wish.mode == "swap"
            way = Beside(self.source, self._target, self._roles, self._timed, keep=keep)
        self._stack.callback(way.close)
        return way

    def build(self) -> str:
        """Makes the roles that are missing, and loads the backup to where nobody uses it; returns where.

        Raises:
            DatabaseError: the server refused; what was built is undone on leaving the context.
            IntegrityError: the copy has changed since it was verified.
        """
        with self._timed("build"):
            self._stack.callback(self._drop_roles)
            self._stack.callback(self._way.close)  # goes before: roles that own something cannot be dropped
            self._report.roles_created = create_lacking(self._target.session, self._roles)
            return self._way.build(self._watch("loading"))

    def _drop_roles(self) -> None:
        """Those that this restore made, unless it was finished."""
        if not self._finished:
            drop_created(self._target.session, self._report.roles_created)

    def prove(self) -> Proof:
        """Compares what was built with the manifest, and records beside the copy that it was the same.

        Raises IntegrityError where it is not. That may be the target's fault, so it is not recorded.
        """
        with self._timed("prove"):
            proof = self._way.prove(self._watch("proving what was built"))
        if not proof.holds:
            raise IntegrityError(
                f"what was built from {self._backup.id} is not what was backed up: {'; '.join(proof.faults)}",
                hint="nothing was changed; restore another backup, and report this with the lines above",
            )
        self._report.proof_notes = list(proof.notes)
        with suppress(BackupDagError):  # a bucket may only be readable from here
            record(self._copy.store, self._manifest, made_check("restore", proof.seconds, []))
        return proof

    def swap(self) -> Report:
        """Puts what was built in the target's place, in one transaction; the report of it all.

        Raises DatabaseError where it cannot; the target is as it was then.
        """
        with self._timed("swap"):
            done = self._way.finish()
        self._finished = True
        self._report.kept_as = done.kept_as
        self._report.window_ms = None if done.window is None else round(done.window * 1000, 1)
        history.record(
            self._settings.backup_dir,
            what="restore",
            database=self._manifest.database,
            **self._report.__dict__,
        )
        self._entry.done(**self._report.__dict__)
        return self._report

    @property
    def target(self) -> Target:
        """Where to, once `fetch` has found it."""
        return self._target

    @property
    def source(self) -> Source:
        """The copy that is read, once `verify` has chosen it."""
        return Source(self._settings, self._copy.store, self._manifest, self._key)

    @property
    def _manifest(self) -> Manifest:
        return self._backup.manifest

    @contextmanager
    def _noted(self) -> Iterator[Entry]:
        """From here on something is changed, so the audit log hears how it ends, wherever it does."""
        of, where = self._manifest, str(self._target.address)
        folder = self._settings.backup_dir
        with audited(folder, "restore", of.database, of.backup, target=where, mode=self._wish.mode) as entry:
            entry.failed("it ended before the swap; the target is as it was")
            yield entry

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._report.seconds[step] = round(time.monotonic() - began, 3)


def _found(settings: Settings, wish: Wish) -> tuple[Backup, list[str]]:
    """The backup that is wished for, and newer ones that would have been it, but cannot be used: why not.

    A safety backup holds the state that a restore was to undo, so it is restored only where it is asked for
    by name.
    """
    if wish.backup != "latest":
        if wish.as_of is not None:
            raise GuardRefused(
                "a backup and a time were both given", hint="leave out one of them: --as-of finds the backup"
            )
        found = find(settings, wish.backup)
        if wish.database not in (None, found.id.database):
            raise GuardRefused(
                f"{found.id} is a backup of {found.id.database}, and not of {wish.database}",
                hint="leave out --database; --target-database says where to",
            )
        return found, []
    catalog = Catalog(open_stores(settings))
    database, passed_over = _whose(settings, catalog, wish), list[str]()
    for found in catalog.newest_first(database, usable=False):
        if wish.as_of is not None and found.id.time > wish.as_of:
            continue
        if not any(not copy.fault for copy in found.copies):
            passed_over.append(f"{found.id}: {'; '.join(copy.fault for copy in found.copies)}")
        elif found.manifest.is_of_a_night:
            return found, passed_over
    when = f" from {wish.as_of:%Y-%m-%d %H:%M:%S %Z} or before" if wish.as_of else ""
    raise BackupNotFound(
        f"there is no usable backup of {database}{when} in {catalog.places}",
        hint="backup-dag list shows what there is; a safety backup is restored by its id",
    )


def _whose(settings: Settings, catalog: Catalog, wish: Wish) -> str:
    """Whose backups are meant: as wished, else the one configured database's, else the only one's there is.

    Raises GuardRefused where several could be meant.
    """
    if wish.database:
        return wish.database
    there = {backup.database for backup in catalog.survey().ids}
    ours = there & {database.name for database in configured(settings)}
    names = sorted(ours if len(ours) == 1 else there)
    if len(names) > 1:
        raise GuardRefused(
            f"there are backups of several databases: {', '.join(names)}", hint="choose one with --database"
        )
    if not names:
        raise BackupNotFound(
            f"there is no backup in {catalog.places}",
            hint="see BACKUP_DIR and AWS_S3_BUCKET; backup-dag list shows what there is",
        )
    return names[0]
