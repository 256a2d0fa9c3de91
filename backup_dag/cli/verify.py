"""backup-dag verify."""

from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import Any

import click

from backup_dag import terminal
from backup_dag.cli.group import (
    EPILOG,
    Told,
    as_json,
    cli,
    databases_meant,
    error_document,
    one_database,
    say_what_was_missed,
)
from backup_dag.core.catalog import find
from backup_dag.core.copies import KEEP_THE_OTHER, Backup, Copy
from backup_dag.core.errors import (
    BackupDagError,
    BackupNotFound,
    ConfigurationError,
    IntegrityError,
)
from backup_dag.core.in_words import size
from backup_dag.core.known import served_as_newest
from backup_dag.core.manifest import Check, Level, Manifest
from backup_dag.core.settings import Settings, load
from backup_dag.core.verify import SOMEBODY_REMOVED, examine, latest_to_verify, record
from backup_dag.core.watching.watch import beat


@cli.command(epilog=EPILOG)
@click.argument("backup", default="latest")
@one_database
@click.option("--level", type=click.Choice(["checksum", "content"]), default="content", show_default=True)
@click.option("--store", type=click.Choice(["local", "s3"]), help="Only the copy that lies there.")
@as_json
def verify(backup: str, database: str | None, level: Level, store: str | None, as_json: bool) -> None:
    """Verify every copy of a backup: is it what it was? `latest` is that of each configured database.

    checksum compares every byte with the manifest and needs no key; content also decrypts, decompresses and
    reads the dump to its end, and compares every digest. The result is recorded beside the copy.
    """
    settings = load()
    if store == "s3" and not settings.aws_s3_bucket:
        raise ConfigurationError(
            "there is no bucket: AWS_S3_BUCKET is not set", hint="set it, or --store local"
        )
    asked = _Asked(settings, level, store, quiet=as_json)
    names: list[str | None] = [database]
    if backup == "latest" and database is None:
        names, asked.refused = databases_meant(settings)
    for name in names:
        asked.verify(backup, name)
    if len(names) == 1 and not asked.checks:
        for error in asked.refused.values():
            raise error
    if as_json:
        terminal.document(asked.as_documents())
    _beat(settings, asked.not_well)
    asked.say_what_failed()
    if store != "local":
        say_what_was_missed(asked.missed)


class _Asked:
    """What was asked for, and how it went: one database's trouble keeps no other from being verified."""

    def __init__(self, settings: Settings, level: Level, store: str | None, *, quiet: bool) -> None:
        self._settings, self._level, self._store, self._quiet = settings, level, store, quiet
        self.checks: list[tuple[str, Check]] = []
        self.refused: dict[str, BackupDagError] = {}  # what could not be checked, and why
        self._failures: list[BackupDagError] = []
        self.not_well: set[str] = set()
        self.missed: list[BackupDagError] = []

    def verify(self, reference: str, database: str | None) -> None:
        """Every copy that was meant of one backup."""
        try:
            if reference == "latest":
                found = latest_to_verify(self._settings, database)
            else:
                found = find(self._settings, reference, database, usable=False)
        except BackupDagError as error:
            self._refuse(database or reference, database or "", error)
            return
        self.missed += found.missed
        if reference == "latest":
            self._hold_to_what_is_known(found)
        copies = [copy for copy in found.copies if self._store in (None, copy.store.label)]
        if not copies and not found.missed:
            why = f"{found.id} has no copy in the store {self._store}"
            missing = BackupNotFound(why, hint="backup-dag list shows where it is")
            self._refuse(str(found.id), found.id.database, missing)
        results = [(copy, *each) for copy in copies for each in self._of_copy(found, copy)]
        self.checks += [(address, check) for _, address, check in results]
        if failed := [(copy, address) for copy, address, check in results if not check.passed]:
            self.not_well.add(found.id.database)
            said = f"{' and '.join(address for _, address in failed)} did not pass"
            hint = failed[0][0].advice if len(failed) == 1 else KEEP_THE_OTHER
            self._failures.append(IntegrityError(said, hint=hint))

    def _hold_to_what_is_known(self, found: Backup) -> None:
        """That a newer one was put into the bucket is said beside what is found of this one."""
        for copy in found.copies:
            if copy.store.label == "s3" and self._store != "local":
                of = found.id.database
                if fault := served_as_newest(self._settings, copy.store, of, found.id):
                    self._refuse(f"the latest of {of}", of, BackupNotFound(fault, hint=SOMEBODY_REMOVED))

    def _of_copy(self, found: Backup, copy: Copy) -> Iterator[tuple[str, Check]]:
        """One check, unless it could not be made."""
        try:
            with terminal.progress(f"verifying the {copy.store.label} copy") as observer:
                check = examine(self._settings, copy, self._level, observer)
        except BackupDagError as error:
            self._refuse(f"{found.id} in {copy.store.label}", found.id.database, error)
            return
        address = copy.store.address((copy.manifest or found.manifest).artifact.name)
        if not self._quiet:
            _show_check(found.manifest, address, check)
        try:
            record(copy.store, found.manifest, check)
        except BackupDagError as error:  # read only: the verdict stands all the same
            terminal.say(f"not recorded: {error.message}")
        yield address, check

    def _refuse(self, what: str, database: str, error: BackupDagError) -> None:
        self.refused[what] = error
        self._failures.append(error)
        self.not_well.add(database)
        terminal.say(f"not verified: {what}")

    def as_documents(self) -> list[dict[str, Any]]:
        """The checks, and then what none could be made of."""
        return [
            *({"address": address, **check.model_dump(mode="json")} for address, check in self.checks),
            *({"not_verified": what, **error_document(error)} for what, error in self.refused.items()),
        ]

    def say_what_failed(self) -> None:
        """All of it, with the exit code of the first. Raises Told."""
        failures = dict.fromkeys([*self._failures, *self.refused.values()])
        for first in failures:
            said = "; ".join(error.message for error in failures)
            raise Told(first.exit_code, said, hint=first.hint)


def _beat(settings: Settings, but: Collection[str]) -> None:
    """The dead man's switch, if there is one. What was verified is, whether or not it can be reached."""
    try:
        for name in beat(settings, datetime.now(UTC), but):
            terminal.say(f"{name} is well off-site: the heartbeat was sent")
    except BackupDagError as error:
        terminal.say(f"warning: {error}")


def _show_check(manifest: Manifest, address: str, check: Check) -> None:
    rate = manifest.dump.bytes / check.seconds / 1e6 if check.seconds else 0
    terminal.show(f"{'good' if check.passed else 'BAD '}  {address}")
    if check.passed and check.level == "content":
        tables, rows = len(manifest.content.tables), manifest.content.rows
        terminal.show(
            f"      read to its end: {tables:,} tables and {rows:,} rows as promised,"
            f" {size(manifest.dump.bytes)} in {check.seconds:.1f} s ({rate:,.0f} MB/s)"
        )
    elif check.passed:
        terminal.show(f"      every byte as promised, {size(manifest.artifact.bytes)}, {check.seconds:.1f} s")
    for fault in check.faults:
        terminal.show(f"      {fault}")
