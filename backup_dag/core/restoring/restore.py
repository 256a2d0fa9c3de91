"""Restore that cannot hurt: plan, safety backup, build aside, prove, swap, and the old one kept.

Until the swap the target serves as before; the swap is one transaction. Whatever fails, and wherever
this process ends, the target is what it was, or the proven replacement. What a killed run leaves is
a database that is marked as half-made; the next restore of that target drops it.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import TracebackType
from typing import Self

from backup_dag.core import history
from backup_dag.core.audit import Entry, audited
from backup_dag.core.authenticity import authentic_part, is_authentic
from backup_dag.core.authenticity import check as check_authenticity
from backup_dag.core.backup import Order, take_backup
from backup_dag.core.copies import Backup, Copy
from backup_dag.core.databases import whole_database
from backup_dag.core.errors import (
    BackupDagError,
    BackupNotFound,
    ConfigurationError,
    GuardRefused,
    IntegrityError,
)
from backup_dag.core.history import Stopwatch
from backup_dag.core.holds import held
from backup_dag.core.key import Key, decryption_key
from backup_dag.core.manifest import Check, Level, Manifest
from backup_dag.core.reading import Source, brought_near
from backup_dag.core.restoring.beside import Beside
from backup_dag.core.restoring.confirmation import check_code
from backup_dag.core.restoring.inplace import InPlace
from backup_dag.core.restoring.plan import Chosen, RestorePlan, Wish, make_plan, target_of
from backup_dag.core.restoring.proof import Proof
from backup_dag.core.restoring.roles import Roles, create_lacking, drop_created, read_roles
from backup_dag.core.restoring.target import Target, target_at
from backup_dag.core.restoring.way import Way
from backup_dag.core.restoring.wished import found_for, hidden
from backup_dag.core.settings import Settings
from backup_dag.core.store.local import LocalStore
from backup_dag.core.stream import Watch
from backup_dag.core.verify import examine, made_check, record, still_the_same
from backup_dag.core.work import reading_directory


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
        self._stack, self._took = ExitStack(), Stopwatch()
        self._finished = False
        self._chosen: Manifest | None = None  # the copy's own: another may be under another passphrase
        self._roles_lost: list[str] = []  # what is wrong with the file that holds them
        self._others: list[BackupDagError] = []  # what is wrong with copies that were passed over

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
            ConfigurationError: it takes another passphrase or key than this host's, or which server is meant
                is not clear.
            DatabaseUnreachable: the target's server.
        """
        found, self._passed_over = found_for(self._settings, self._wish)
        self._backup, self._left_out = authentic_part(self._settings, found)
        manifest = self._backup.manifest
        usable = [copy for copy in self._backup.copies if not copy.fault and copy.manifest]
        if not usable:
            raise IntegrityError(
                f"no copy of {self._backup.id} can be used:"
                f" {'; '.join(copy.fault for copy in self._backup.copies)}",
                hint="restore another backup; backup-dag list shows them",
            )
        self._usable, self._others = self._that_open(usable)
        self._server, address = target_of(self._settings, self._wish, manifest)
        itself = self._wish.mode == "in-place"
        self._target: Target = self._stack.enter_context(target_at(address, or_itself=itself))
        self._report = Report(str(self._backup.id), str(address), self._wish.mode)
        return self._backup

    def verify(self, *, to_its_end: bool = True) -> None:
        """Verifies the copy; another, where the first is damaged or not authentic. Raises IntegrityError.

        It is decrypted and read to its end. Without `to_its_end` only where that was never done: of a copy
        whose content was found good, the checksum says that it is still the same; loading it reads it to its
        end, and the proof compares what came of it, in any case.
        """
        with self._took("verify"):
            faults: list[str] = []
            tried = []
            for copy in self._usable:
                level = self._level(copy, to_its_end=to_its_end)
                try:
                    near = copy if to_its_end else self._near(copy)
                except (BackupNotFound, IntegrityError) as error:
                    still_the_same(copy)
                    faults.append(error.message)
                    continue
                tried.append((copy, near))
                check = examine(self._settings, near, level, self._watch("verifying the backup"))
                with suppress(BackupDagError):  # a bucket may only be readable from here
                    record(copy.store, self._manifest, check)
                if check.passed:
                    if faults:
                        self._others.append(IntegrityError("; ".join(faults), hint=self._usable[0].advice))
                    self._choose(copy, near, check)
                    return
                faults += check.faults
            for copy, near in tried:  # the data may be whole, and only the roles' file damaged
                check = examine(
                    self._settings, near, "content", self._watch("verifying the data"), roles=False
                )
                if check.passed:
                    self._choose(copy, near, check)
                    self._roles_lost = faults
                    return
        for missed in self._backup.missed:
            raise type(missed)(
                f"{self._backup.id} is damaged where it could be looked at ({'; '.join(faults)}), and may be"
                f" whole where it could not: {missed.message}",
                hint="make that store answer, and run it again; without it, restore another: backup-dag list",
            )
        raise IntegrityError(
            f"{self._backup.id} is damaged and was not restored: {'; '.join(faults)}",
            hint="restore another one: backup-dag restore latest-proven, or see backup-dag list",
        )

    def _that_open(self, usable: Sequence[Copy]) -> tuple[list[Copy], list[BackupDagError]]:
        """Those of them that something opens which is set here, and why the other copies are passed over.

        What is damaged or forged is among them: `verify` speaks of that, and records it. Raises
        ConfigurationError where nothing opens any.
        """
        found, closed = list[Copy](), list[BackupDagError]()
        others = [
            (IntegrityError if copy.damaged else GuardRefused)(copy.fault, hint=copy.hint)
            for copy in self._backup.copies
            if copy.fault
        ]
        for copy in usable:
            try:
                with suppress(IntegrityError):
                    check_authenticity(self._settings, copy)
                decryption_key(self._settings, copy.its_manifest().encryption)
                found.append(copy)
            except ConfigurationError as error:
                closed.append(error)
        if not found:
            raise closed[0]
        return found, [*others, *closed]

    def _level(self, copy: Copy, *, to_its_end: bool) -> Level:
        """How deep to look. Notes of earlier checks count only beside a manifest that is authentic."""
        read_before = copy.read_to_its_end and is_authentic(self._settings, copy)
        return "checksum" if read_before and not to_its_end else "content"

    def _near(self, copy: Copy) -> Copy:
        """A bucket's copy, brought here: what is verified is what is loaded, whoever writes there meanwhile.

        Under a passphrase nobody else can make a file that opens, so it is read there where here is no room.
        Raises DiskError.
        """
        if copy.store.label == "local" or copy.manifest is None:
            return copy
        folder = self._stack.enter_context(reading_directory(self._settings.backup_dir))
        needed = sum(file.bytes for file in copy.manifest.files)
        if copy.manifest.encryption.mode == "symmetric" and shutil.disk_usage(folder).free < needed:
            return copy
        watch = self._watch("fetching the copy")
        return replace(copy, store=brought_near(copy.store, copy.manifest, folder / "near", watch))

    def _choose(self, copy: Copy, near: Copy, check: Check) -> None:
        self._copy, self._check, self._read_from = copy, check, near.store
        self._chosen = copy.manifest
        self._key: Key = decryption_key(self._settings, self._manifest.encryption)

    def plan(self) -> RestorePlan:
        """What the next steps would do. Nothing has been changed yet."""
        if self._roles_lost:
            self._roles = Roles("")
        else:
            self._roles = read_roles(self._settings, self._read_from, self._manifest, self._key)
        chosen = Chosen(
            self._backup,
            self._copy,
            self._check,
            self._passed_over,
            self._roles_lost,
            self._left_out,
            [] if self._passed_over else hidden(self._settings, self._wish, self._copy),
            self._others,
        )
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
        if isinstance(self._copy.store, LocalStore):  # else it was brought here before it was verified
            still_the_same(self._copy)
        self._target.sweep()
        self._way = self._begun()
        self._way.hold()
        if self._wish.mode == "new" or not self._wish.safety_backup or self._target.standing() is None:
            return None
        with self._took("safety"):
            whole = whole_database(self._server, self._target.address)
            order = Order(whole, datetime.now(self._settings.zone).date(), "pre_restore")
            made = take_backup(self._settings, order, self._watch("backing up the target as it is"))
        self._report.safety_backup = made.backup
        return made

    def _begun(self) -> Way:
        """The way that this restore goes, undone on leaving the context unless it is finished."""
        way: Way
        if self._wish.mode == "in-place":
            way = InPlace(self.source, self._target, self._took)
        else:
            keep = self._wish.mode == "swap"
            way = Beside(self.source, self._target, self._roles, self._took, keep=keep)
        self._stack.callback(way.close)
        return way

    def build(self) -> str:
        """Makes the roles that are missing, and loads the backup to where nobody uses it; returns where.

        Raises:
            DatabaseError: the server refused; what was built is undone on leaving the context.
            IntegrityError: the copy has changed since it was verified.
        """
        with self._took("build"):
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
        with self._took("prove"):
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
        with self._took("swap"):
            done = self._way.finish()
        self._finished = True
        self._report.seconds = self._took.seconds
        self._report.kept_as = done.kept_as
        self._report.window_ms = None if done.window is None else round(done.window * 1000, 1)
        history.record(
            self._settings.backup_dir,
            "restore",
            self._manifest.database,
            dump_bytes=self._manifest.dump.bytes,
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
        return Source(self._settings, self._read_from, self._manifest, self._key)

    @property
    def _manifest(self) -> Manifest:
        return self._chosen or self._backup.manifest

    @contextmanager
    def _noted(self) -> Iterator[Entry]:
        """From here on something is changed, so the audit log hears how it ends, wherever it does."""
        of, where = self._manifest, str(self._target.address)
        folder = self._settings.backup_dir
        with audited(folder, "restore", of.database, of.backup, target=where, mode=self._wish.mode) as entry:
            entry.failed("it ended before the swap; the target is as it was")
            yield entry
