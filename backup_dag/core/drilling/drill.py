"""A drill: restore a backup where nobody needs it, compare every row, take the time, leave nothing.

It takes the off-site copy where there is one, since that is what is left on the worst day. Its outcome is one
of three, and they never mix: the backup is proven; it is *not* proven, and where it differs; or the drill
itself broke (`DrillBroke`), which says nothing of the backup. Only the second condemns it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from backup_dag.core import history
from backup_dag.core.address import Address
from backup_dag.core.audit import Entry, audited
from backup_dag.core.authenticity import authentic_part, in_words
from backup_dag.core.authenticity import check as check_authenticity
from backup_dag.core.catalog import Catalog, find, open_stores
from backup_dag.core.copies import Backup, Copy
from backup_dag.core.drilling.differing import with_keys
from backup_dag.core.drilling.ground import Ground, ground_for
from backup_dag.core.drilling.outcome import Outcome
from backup_dag.core.drilling.own_checks import Answer, asked, own_checks
from backup_dag.core.errors import BackupDagError, BackupNotFound, DrillBroke, IntegrityError, StoreError
from backup_dag.core.history import Stopwatch
from backup_dag.core.holds import held
from backup_dag.core.key import decryption_key
from backup_dag.core.known import taken_away
from backup_dag.core.manifest import Manifest
from backup_dag.core.postgres import connected
from backup_dag.core.reading import Source, brought_near
from backup_dag.core.restoring.loading import load
from backup_dag.core.restoring.noted import Noted
from backup_dag.core.restoring.proof import prove
from backup_dag.core.restoring.roles import read_roles
from backup_dag.core.restoring.rows import Differing
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import Store
from backup_dag.core.stream import Watch
from backup_dag.core.verify import SOMEBODY_REMOVED, before_the_future, examine, made_check, record
from backup_dag.core.work import one_at_a_time, work_directory


def drill(settings: Settings, backup: Backup, watch: Watch = lambda _: None) -> Outcome:
    """Drills a backup to its end, and records the outcome beside the copy.

    Raises:
        DrillBroke: it came to no end. Whatever it was, the backup is what it was before.
    """
    try:
        with Drill(settings, backup, watch) as running:
            running.fetch()
            running.verify()
            running.load()
            running.prove()
            running.ask()
            return running.outcome()
    except NotProven as found:
        return found.outcome
    except BackupDagError as error:
        raise DrillBroke(str(backup.id), error) from error


class NotProven(Exception):
    """The backup is not what it promised; the outcome has been recorded."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__("; ".join(outcome.faults))
        self.outcome = outcome


def to_drill(settings: Settings, reference: str, database: str | None) -> Backup:
    """The backup that is meant: `latest` is a database's newest one that counts for a day, whatever is wrong
    with it, since that is the question. Raises BackupNotFound."""
    if reference != "latest":
        return find(settings, reference, database, usable=False)
    catalog = Catalog(open_stores(settings))
    whose = database or catalog.latest(usable=False).id.database
    until = before_the_future(catalog, whose)
    for store in catalog.stores:
        if store.label != "local" and (fault := taken_away(settings, store, whose, until)):
            raise BackupNotFound(fault, hint=SOMEBODY_REMOVED)
    for backup in catalog.newest_first(whose, usable=False, until=until):
        if backup.manifest_or_none is None or backup.manifest.is_of_a_night:
            return backup
    raise catalog.lacking(
        f"there is no backup of {whose} in {catalog.places}", hint="make one: backup-dag backup"
    )


def of_day(settings: Settings, database: str, day: date) -> Backup:
    """The newest backup that counts for a day. Raises BackupNotFound."""
    catalog = Catalog(open_stores(settings))
    for backup in catalog.nights(database):
        if backup.manifest.partition_day == day:
            return backup
    raise catalog.lacking(
        f"there is no backup of {database} for {day} in {catalog.places}", hint="backup-dag list shows them"
    )


def unproven(settings: Settings, database: str) -> Iterator[Backup]:
    """A database's good backups that nobody has tried to prove, the newest first."""
    for backup in Catalog(open_stores(settings)).nights(database):
        tried = any(copy.verification and "restore" in copy.verification.checks for copy in backup.copies)
        if backup.good and not tried:
            yield backup


def off_site_first(backup: Backup) -> Copy:
    """The copy that a drill takes: one that cannot be used too, since that is what is to be found out.

    Raises why the bucket could not be asked, where it could not: its copy is the one that is meant.
    """
    for error in backup.missed:
        if isinstance(error, StoreError):
            raise error
    return max(backup.copies, key=lambda copy: copy.store.label != "local")


class Drill:
    """One drill, step by step, in this order: fetch, verify, load, prove, ask, outcome.

    A context: leaving it removes the server, and all that was fetched. A step that finds that the backup is
    not what it promised records that, and raises NotProven; whatever else is raised says nothing of the
    backup.
    """

    def __init__(self, settings: Settings, backup: Backup, watch: Watch = lambda _: None) -> None:
        self._settings, self._watch = settings, watch
        self._backup, left_out = authentic_part(settings, backup)
        self._copy = off_site_first(self._backup)
        self._stack = ExitStack()
        self._took = Stopwatch()
        self._notes = [f"the copy in {each.address} is left out: {each.why.message}" for each in left_out]
        if settings.aws_s3_bucket and self._copy.store.label == "local":
            self._notes.append("it is not in the bucket, so the local copy was drilled")
        self._answers: list[Answer] = []
        self._server = ""
        self._authentication = "not looked at"

    def __enter__(self) -> Self:
        with self._stack as begun:
            folder, of = self._settings.backup_dir, self._backup.id
            store = self._copy.store
            entry = audited(folder, "drill", of.database, str(of), store=store.label)
            self._entry: Entry = begun.enter_context(entry)
            # one that is none is better known now than at the end
            self._checks = own_checks(self._settings, of.database)
            begun.enter_context(one_at_a_time(folder, "drill"))
            begun.enter_context(held(store, of))
            self._work: Path = begun.enter_context(work_directory(folder))
            self._stack = begun.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, NotProven):  # it came to its end: the audit log hears of it as that
            self._entry.failed("; ".join(error.outcome.faults))
            self._stack.__exit__(None, None, None)
        else:
            self._stack.__exit__(kind, error, trace)

    @property
    def manifest(self) -> Manifest:
        """The copy's own. Raises IntegrityError where it is none; StoreError, DiskError if none can tell."""
        return self._copy.its_manifest()

    @property
    def restored(self) -> Address:
        """The restored copy, once it is loaded."""
        return self._ground.address

    def fetch(self) -> None:
        """Brings the copy here, as it is: encrypted. One that lies here already is read where it is."""
        with self._finding_faults():
            manifest, store = self.manifest, self._copy.store
            if self._copy.fault:
                raise IntegrityError(self._copy.fault)
            self._authentication = in_words(check_authenticity(self._settings, self._copy))
        self._near: Store = store
        with self._finding_faults(), self._took("fetch"):
            if store.label != "local":
                watch = self._watch("fetching the copy")
                self._near = brought_near(store, manifest, self._work / "near", watch)

    def verify(self) -> None:
        """Compares every byte with the manifest."""
        manifest = self.manifest
        with self._took("verify"):
            near = Copy(self._near, manifest, None)
            check = examine(self._settings, near, "checksum", self._watch("verifying the copy"))
        with self._finding_faults():
            if not check.passed:
                raise IntegrityError("; ".join(check.faults))

    def load(self) -> None:
        """Makes a server, and loads the backup into it."""
        manifest = self.manifest
        key = decryption_key(self._settings, manifest.encryption)
        self._source = Source(self._settings, self._near, manifest, key)
        with self._finding_faults():
            roles = read_roles(self._settings, self._near, manifest, key)
        self._ground: Ground = self._stack.enter_context(
            ground_for(self._settings, manifest, roles, self._work)
        )
        self._notes += self._ground.notes
        self._server = self._ground.described
        with self._finding_faults(), self._ground.judging():
            loaded = load(
                self._source,
                self._ground.address,
                self._ground.clients,
                self._ground.server_major,
                self._watch("loading"),
            )
        self._noted: Noted = loaded.noted
        with loaded.took("index"), connected(self._ground.address) as session:
            session.rows("ANALYZE")
        self._took.take_over(loaded.took)

    def prove(self) -> None:
        """Compares every digest with the manifest."""
        with self._finding_faults(), self._took("prove"):
            proof = prove(self._source, self._noted, self._ground.address, self._watch("proving"))
        self._notes += proof.notes
        if not proof.holds:
            where = (self._source, self._ground.address, self._ground.clients, self._ground.server_major)
            tables = with_keys(*where, proof.tables)
            self._not_proven([*map(str, tables), *proof.others], tables)

    def ask(self) -> None:
        """Asks the user's own questions of the restored copy. They say nothing of whether it is proven."""
        self._answers = list(asked(self._checks, self._ground.address, self.manifest))

    def outcome(self) -> Outcome:
        """The backup is proven: records it beside the copy, and how long it took."""
        found = self._found([], [])
        self._record(found)
        return found

    def _not_proven(self, faults: list[str], tables: tuple[Differing, ...] = ()) -> None:
        found = self._found(faults, list(tables))
        self._record(found)
        raise NotProven(found)

    def _record(self, found: Outcome) -> None:
        """In the audit log, in this host's history, and beside the copy."""
        self._entry.done(recovery=found.recovery, seconds=found.seconds, proven=found.proven)
        history.record(
            self._settings.backup_dir,
            "drill",
            found.database,
            backup=found.backup,
            dump_bytes=found.dump_bytes,
            seconds=found.seconds,
            store=found.store,
            faults=found.faults,
            asked=len(found.answers),
            failed={answer.name: answer.said for answer in found.failed_answers},
        )
        if self._copy.manifest is not None:
            with suppress(BackupDagError):  # a bucket may only be readable from here
                made = made_check("restore", found.recovery, found.faults, found.time)
                record(self._copy.store, self._copy.manifest, made)

    def _found(self, faults: list[str], differing: list[Differing]) -> Outcome:
        manifest = self._copy.manifest or self._backup.manifest
        return Outcome(
            backup=manifest.backup,
            database=manifest.database,
            partition_day=str(manifest.partition_day),
            snapshot_time=manifest.snapshot_time,
            time=datetime.now(UTC),
            store=self._copy.store.label,
            source=self._copy.store.address(manifest.artifact.name),
            tables=len(manifest.content.tables),
            rows=manifest.content.rows,
            dump_bytes=manifest.dump.bytes,
            server=self._server,
            authentication=self._authentication,
            faults=faults,
            differing=differing,
            notes=self._notes,
            seconds=self._took.seconds,
            answers=self._answers,
            rto_seconds=self._settings.backup_rto.total_seconds(),
        )

    @contextmanager
    def _finding_faults(self) -> Iterator[None]:
        """What the copy is not, is found out; what cannot be asked is not."""
        try:
            yield
        except IntegrityError as error:
            self._not_proven([error.message])
