"""Where backups lie, and where they are proven: room, stores, the programs for drills."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress

from backup_dag.core.address import Address
from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.clients import find_clients
from backup_dag.core.databases import Database
from backup_dag.core.doctor.finding import Finding, failed, ok, warn
from backup_dag.core.drilling.confinement import can_shut_in
from backup_dag.core.drilling.own_checks import own_checks
from backup_dag.core.drilling.scratch import server_programs
from backup_dag.core.errors import (
    BackupDagError,
    BackupNotFound,
    ConfigurationError,
    DatabaseError,
    DiskError,
)
from backup_dag.core.in_words import size
from backup_dag.core.postgres import connected
from backup_dag.core.settings import Settings
from backup_dag.core.store.local import LocalStore
from backup_dag.core.work import work_directory


def disk(settings: Settings, databases: tuple[Database, ...]) -> Iterator[Finding]:
    """Whether there is room for the next night. Raises DiskError."""
    with work_directory(settings.backup_dir) as work:
        free = shutil.disk_usage(work).free
    found = settings.backup_dir.stat()
    if found.st_mode & 0o022 or found.st_uid not in (os.geteuid(), 0):
        mode = f"mode {found.st_mode & 0o7777:04o}, owner {found.st_uid}"
        said = f"others may write to {settings.backup_dir} ({mode})"
        yield warn("BACKUP_DIR", said, "give it to this user alone: chown, chmod 700")
    need = 0
    for database in databases:
        try:
            latest = Catalog([LocalStore(settings.backup_dir)]).latest(database.name)
            need += latest.manifest.artifact.bytes
        except BackupNotFound:
            with (
                suppress(DatabaseError),
                connected(database.address) as session,
            ):  # said of the database itself
                need += session.expected_dump_bytes() // 2
    said = f"{size(free)} free in {settings.backup_dir}, the next night needs about {size(need)}"
    if free < need:
        yield Finding("fail", "disk", said, "make room, or move BACKUP_DIR", DiskError.exit_code)
    elif free < 3 * need:
        yield warn("disk", said, "that is less than three nights; make room")
    else:
        yield ok("disk", said)


def drills(settings: Settings, databases: tuple[Database, ...]) -> Iterator[Finding]:
    """Whether a backup could be restored here to prove it."""
    if settings.backup_drill == "off":
        yield ok("drills", "off (BACKUP_DRILL): no backup is proven by itself")
        return
    for database in databases:
        own_checks(settings, database.name)
    if settings.backup_scratch_url is not None:
        address = Address.of(settings.backup_scratch_url.get_secret_value(), "BACKUP_SCRATCH_URL")
        with connected(address) as session:
            yield ok("drills", f"on {address}, PostgreSQL {session.server().version}")
        return
    shut_in = can_shut_in()
    if not shut_in and (os.geteuid() == 0 or settings.backup_drill_unconfined == "on"):
        yield warn(
            "drills",
            "bubblewrap may not be used here: functions in a backup run with the rights of"
            f" {'nobody' if os.geteuid() == 0 else 'this user'} while it is drilled",
            "install bubblewrap, and let this user have namespaces; or set BACKUP_SCRATCH_URL",
        )
    elif not shut_in:
        said = "bubblewrap may not be used here, and without it no drill is made (BACKUP_DRILL_UNCONFINED)"
        yield warn("drills", said, "install bubblewrap, and let this user have namespaces")
    majors = (_major(settings, database) for database in databases)
    for wanted in sorted({each for each in majors if each is not None}):
        try:
            found = server_programs(settings.pg_bin_dir, wanted)
        except ConfigurationError as error:
            yield warn("drills", error.message, f"{error.hint}; or BACKUP_DRILL=off")
        else:
            yield ok(
                "drills", f"{settings.backup_drill}, by the PostgreSQL {found.version} in {found.bin_dir}"
            )


def _major(settings: Settings, database: Database) -> int | None:
    """That of the client programs that a backup would be made with."""
    with suppress(BackupDagError), connected(database.address) as session:
        return find_clients(session.server_major, settings.pg_bin_dir).major
    return None


def stores(settings: Settings) -> Iterator[Finding]:
    """Each store, tried out; and whether there is one elsewhere."""
    for store in open_stores(settings):
        began = time.monotonic()
        try:
            may_remove = store.probe()
        except BackupDagError as error:
            yield failed(f"{store.label} store", error)
        else:
            did = "wrote, read and removed" if may_remove else "wrote and read, but may not remove,"
            said = f"{did} a file in {store.address()} in {time.monotonic() - began:.2f} s"
            yield ok(f"{store.label} store", said)
    if not settings.aws_s3_bucket:
        yield warn(
            "s3 store", "AWS_S3_BUCKET is not set: there is NO off-site copy", "set a bucket elsewhere"
        )
