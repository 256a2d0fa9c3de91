"""Take one backup: one pass over the database, from pg_dump to a whole backup in the local store.

Plain text never touches the disk, memory does not grow with the database, and a failure anywhere
leaves nothing behind.
"""

import re
import shlex
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from backup_dag import __version__
from backup_dag.core import beneath, nights, postgres
from backup_dag.core.audit import audited
from backup_dag.core.authenticity import authenticator
from backup_dag.core.clients import Clients, find_clients
from backup_dag.core.databases import Database
from backup_dag.core.errors import DatabaseError, GuardRefused
from backup_dag.core.key import Key, encryption_key
from backup_dag.core.manifest import (
    CHECKSUM,
    MANIFEST,
    SCHEMA_VERSION,
    BackupId,
    Compressed,
    Content,
    DatabaseFacts,
    Dumped,
    File,
    Globals,
    Manifest,
    Reason,
)
from backup_dag.core.options import selects_schemas
from backup_dag.core.postgres import Session, Snapshot
from backup_dag.core.publish import publish
from backup_dag.core.settings import Settings
from backup_dag.core.stages.checksum import checksum_file, written
from backup_dag.core.stages.compression import compressing
from backup_dag.core.stages.dump import EXTENSION, as_sql, dumping, dumping_roles, properties_sql
from backup_dag.core.stages.encryption import encrypting
from backup_dag.core.stages.fingerprint import Fingerprint
from backup_dag.core.store.local import LocalStore
from backup_dag.core.stream import Hashing, Meter, Observer
from backup_dag.core.work import new_file, work_directory


@dataclass(frozen=True)
class Order:
    """What is asked for: a database, the day it counts for, and why."""

    database: Database
    partition_day: date
    reason: Reason


def order_for(
    database: Database,
    settings: Settings,
    day: date | None,
    *,
    scheduled: bool = False,
    allow_late: bool = False,
    now: datetime | None = None,
) -> Order:
    """An order for a day (None: today, in the settings' zone).

    A backup made after its day has passed says so: what it holds is today's state, not that day's.
    Raises GuardRefused for a day that has not come, and without `allow_late` for one that ended longer ago
    than BACKUP_LATE_GRACE.
    """
    now = now or datetime.now(UTC)
    today = nights.today(settings, now)
    if day is not None and day > today:
        raise GuardRefused(
            f"{day} has not come yet (today is {today} in {settings.backup_timezone})",
            hint="back up today's day, or see BACKUP_TIMEZONE",
        )
    if day is None or not nights.is_late(settings, day, now):
        return Order(database, day or today, "scheduled" if scheduled else "manual")
    if not allow_late and not nights.can_still_be_captured(settings, day, now):
        raise GuardRefused(
            f"a logical backup of {day} cannot be made any more: it would hold the state of now",
            hint="where that is what you want, say so (--allow-late-capture, or allow_late_capture: true in"
            " Dagster), and it will be marked late; a backup of that day may lie in another store",
        )
    return Order(database, day, "late")


def take_backup(settings: Settings, order: Order, observer: Observer | None = None) -> Manifest:
    """Makes the backup that is ordered, and returns once it is durable in BACKUP_DIR.

    Raises:
        ConfigurationError: no key, a signing key that cannot sign, no client tools that fit the server.
        DatabaseError: unreachable, or it refused part of the dump.
        GuardRefused: another backup of this database is running, on whatever host.
        DiskError: no room for the artifact.
    """
    with audited(settings.backup_dir, "backup", order.database.name, why=order.reason) as entry:
        made = _taken(settings, order, observer)
        entry.backup = made.backup
        entry.done(bytes=made.artifact.bytes, partition_day=made.partition_day)
    return made


def _taken(settings: Settings, order: Order, observer: Observer | None) -> Manifest:
    key, authenticated = encryption_key(settings), authenticator(settings)
    store = LocalStore(settings.backup_dir)
    with (
        work_directory(settings.backup_dir) as work,
        postgres.connected(order.database.address) as session,
        session.locked(),
    ):
        clients = find_clients(session.server_major, settings.pg_bin_dir)
        with _snapshot_of_a_free_second(session, store, order.database.name) as snapshot:
            run = _Run(order, key, work, clients, session, snapshot)
            manifest = authenticated(run.make(observer))
        written(work / manifest.id.file(CHECKSUM), checksum_file(manifest.files).encode())
        written(work / manifest.id.file(MANIFEST), manifest.to_json().encode())
        publish(store, manifest, work)
        _wait_for_the_seconds_end(session, manifest.id)
    return manifest


@contextmanager
def _snapshot_of_a_free_second(session: Session, store: LocalStore, name: str) -> Iterator[Snapshot]:
    """Ids count seconds: where a snapshot's second has a backup already (a clock may have been put back), the
    next is tried. The lock keeps others out."""
    while True:
        with session.snapshot() as snapshot:
            if next(store.list(str(BackupId.of(name, snapshot.time))), None) is None:
                yield snapshot
                return
        time.sleep(0.1)


def _wait_for_the_seconds_end(session: Session, made: BackupId) -> None:
    """With the lock still held: so another host's next backup of this database has another id."""
    with suppress(DatabaseError):  # the session was cut, and the lock with it
        while BackupId.of(made.database, session.now()) == made:
            time.sleep(0.05)


@dataclass(frozen=True)
class _Run:
    """One backup while it is being made: into a work directory, from one snapshot."""

    order: Order
    key: Key
    work: Path
    clients: Clients
    session: Session
    snapshot: Snapshot

    def make(self, observer: Observer | None) -> Manifest:
        began, started = time.monotonic(), datetime.now(UTC)
        plan, backup = self.order.database.plan, self.id
        facts = self.session.facts()
        server = self.session.server()  # now, since an idle session may be cut while the dump runs
        with ThreadPoolExecutor(1) as aside:  # small, and done before the dump is: it costs no time
            globals_made = aside.submit(self._roles, facts)
            dumped = self._dump(observer)
            roles, with_hashes = globals_made.result()
        passed = dumped.passed
        artifact = File(name=self._name(EXTENSION[plan.format]), **passed.encrypted.seen().model_dump())
        globals_file = self._name("globals.sql")
        return Manifest(
            schema_version=SCHEMA_VERSION,
            backup=str(backup),
            database=backup.database,
            partition_day=self.order.partition_day,
            reason=self.order.reason,
            snapshot_time=self.snapshot.time.astimezone(UTC),
            started=started,
            finished=datetime.now(UTC),
            seconds=round(time.monotonic() - began, 3),
            made_by=f"backup-dag {__version__}",
            server=server,
            source=facts,
            dump=Dumped(
                format=plan.format,
                client_version=self.clients.version,
                options=plan.options(),
                **passed.plain.seen().model_dump(),
            ),
            compressed=Compressed(
                algorithm="gzip", level=plan.compression_level, **passed.compressed.seen().model_dump()
            ),
            encryption=self.key.described(),
            artifact=artifact,
            globals=Globals(name=globals_file, password_hashes=with_hashes, **roles.seen().model_dump()),
            content=dumped.content,
            warnings=[*dumped.warnings, *self._warnings(facts)],
            recover=recovery_by_hand(
                backup, artifact.name, globals_file, facts, schemas_chosen=selects_schemas(plan.options())
            ),
        )

    def _warnings(self, facts: DatabaseFacts) -> list[str]:
        said = []
        if self.clients.major > self.session.server_major:
            said.append(
                f"made by pg_dump {self.clients.version}: the PostgreSQL {self.session.server_major} server"
                f" it is from may not load it; install postgresql-client-{self.session.server_major}"
            )
        if facts.tablespaces:
            names = ", ".join(facts.tablespaces)
            said.append(f"a server to restore it on must have the tablespaces {names} (or --no-tablespaces)")
        return said

    @property
    def id(self) -> BackupId:
        return BackupId.of(self.order.database.name, self.snapshot.time)

    def _name(self, kind: str) -> str:
        return self.id.file(f"{kind}.gz" if self.key.mode == "off" else f"{kind}.gz.gpg")

    def _dump(self, observer: Observer | None) -> "_Dumped":
        """The one pass: pg_dump's blocks go to the fingerprint, and down to the artifact."""
        address, plan = self.order.database.address, self.order.database.plan
        meter = Meter(observer, expected=self.session.expected_dump_bytes())
        fingerprint = Fingerprint()
        with (
            dumping(address, self.clients, self.snapshot, format=plan.format, options=plan.options()) as dump,
            as_sql(fingerprint, self.clients, format=plan.format) as read_along,
            self._artifact(self._name(EXTENSION[plan.format])) as passed,
        ):
            block = dump.read()
            beneath.see_that_nothing_changed(self.session, lambda: dump.is_over)
            while block:
                passed.plain.write(block)
                read_along.write(block)
                meter.count(len(block))
                block = dump.read()
        return _Dumped(passed, fingerprint.finish(), dump.warnings)

    def _roles(self, facts: DatabaseFacts) -> tuple[Hashing, bool]:
        """The globals file as it was written, and whether password hashes are in it."""
        address, hashes = self.order.database.address, self.session.may_read_password_hashes()
        with (
            dumping_roles(address, self.clients, hashes=hashes) as roles,
            self._artifact(self._name("globals.sql")) as passed,
        ):
            while block := roles.read():
                passed.plain.write(block)
            said = self.session.properties_sql(facts, self.session.settings(), address.dbname)
            said += self.session.grants_sql(facts, address.dbname)
            passed.plain.write(properties_sql(address, said, raw=self.session.is_sql_ascii))
        return passed.encrypted, hashes

    @contextmanager
    def _artifact(self, name: str) -> Iterator["_Stages"]:
        """What is written to `plain` in this block is in the file afterwards, compressed and encrypted."""
        with new_file(self.work / name) as file:
            encrypted = Hashing(file)
            with encrypting(encrypted, self.key, self.work) as gpg:
                compressed = Hashing(gpg)
                with compressing(compressed, self.order.database.plan.compression_level) as gzip:
                    yield _Stages(Hashing(gzip), compressed, encrypted)


@dataclass(frozen=True)
class _Dumped:
    """What one pass brought: the stages it passed, its content, and pg_dump's warnings."""

    passed: "_Stages"
    content: Content
    warnings: list[str]


@dataclass(frozen=True)
class _Stages:
    """The stream as each stage sees it."""

    plain: Hashing
    compressed: Hashing
    encrypted: Hashing


def recovery_by_hand(
    backup: BackupId, artifact: str, globals_file: str, facts: DatabaseFacts, *, schemas_chosen: bool = False
) -> list[str]:
    """Two lines for a shell that bring a backup back without us, on an empty server.

    `schemas_chosen`: the dump makes `public` itself, which is there already.
    """
    name = shlex.quote(facts.dbname)
    if facts.dbname.startswith("-"):
        name = f"-- {name}"
    # psql and pg_restore take a name with = or :// for a connection string
    target = shlex.quote(
        f"dbname={_in_conninfo(facts.dbname)}" if re.search("=|://", facts.dbname) else facts.dbname
    )
    options = {"encoding": facts.encoding, "lc-collate": facts.collate, "lc-ctype": facts.ctype}
    if facts.locale_provider != "libc" and facts.locale:
        options |= {"locale-provider": facts.locale_provider, f"{facts.locale_provider}-locale": facts.locale}
    chosen = " ".join(f"--{option}={shlex.quote(value)}" for option, value in options.items())
    without_public = " | sed '0,/^CREATE SCHEMA public;$/s//-- &/'" if schemas_chosen else ""
    load = "PGOPTIONS='-c default_transaction_read_only=off' psql -X -q -o /dev/null -v ON_ERROR_STOP=1"
    if ".dump." in artifact:
        without_public = ""
        load = "PGOPTIONS='-c default_transaction_read_only=off' pg_restore --exit-on-error"
    return [
        f"sha256sum -c {backup}.{CHECKSUM} && createdb --template=template0 {chosen} {name}",
        f"set -o pipefail; {_plain(globals_file)} | psql -X -q -o /dev/null -d {target}"
        f" && {_plain(artifact)}{without_public} | {load} -d {target}",
    ]


def _in_conninfo(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _plain(file: str) -> str:
    return (
        f"${{GPG:-gpg --pinentry-mode loopback -d}} {file} | gunzip"
        if file.endswith(".gpg")
        else f"gunzip -c {file}"
    )
