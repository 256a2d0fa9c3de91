"""backup-dag verify."""

from datetime import UTC, datetime

import click

from backup_dag import terminal
from backup_dag.cli.group import EPILOG, Told, as_json, cli, one_database, say_what_was_missed
from backup_dag.core.catalog import Backup, Catalog, find, open_stores
from backup_dag.core.errors import (
    BackupDagError,
    BackupNotFound,
    ConfigurationError,
    IntegrityError,
)
from backup_dag.core.in_words import size
from backup_dag.core.manifest import Check, Level, Manifest
from backup_dag.core.settings import Settings, load
from backup_dag.core.verify import examine, record
from backup_dag.core.watching.watch import beat


@cli.command(epilog=EPILOG)
@click.argument("backup", default="latest")
@one_database
@click.option("--level", type=click.Choice(["checksum", "content"]), default="content", show_default=True)
@click.option("--store", type=click.Choice(["local", "s3"]), help="Only the copy that lies there.")
@as_json
def verify(backup: str, database: str | None, level: Level, store: str | None, as_json: bool) -> None:
    """Verify every copy of a backup: is it what it was? `latest` is that of each database.

    checksum compares every byte with the manifest and needs no key; content also decrypts, decompresses and
    reads the dump to its end, and compares every digest. The result is recorded beside the copy.
    """
    settings = load()
    if store == "s3" and not settings.aws_s3_bucket:
        raise ConfigurationError(
            "there is no bucket: AWS_S3_BUCKET is not set", hint="set it, or --store local"
        )
    checks: list[tuple[str, Check]] = []
    meant = _meant(settings, backup, database)
    for found in meant:
        copies = [copy for copy in found.copies if store in (None, copy.store.label)]
        if not copies and not found.missed:
            raise BackupNotFound(
                f"{found.id} has no copy in the store {store}", hint="backup-dag list shows where it is"
            )
        for copy in copies:
            with terminal.progress(f"verifying the {copy.store.label} copy") as observer:
                check = examine(settings, copy, level, observer)
            address = copy.store.address(found.manifest.artifact.name)
            checks.append((address, check))
            if not as_json:
                _show_check(found.manifest, address, check)
            try:
                record(copy.store, found.manifest, check)
            except BackupDagError as error:  # read only: the verdict stands all the same
                terminal.say(f"not recorded: {error.message}")
    if as_json:
        terminal.document([{"address": a, **check.model_dump(mode="json")} for a, check in checks])
    if failed := [address for address, check in checks if not check.passed]:
        raise Told(
            IntegrityError.exit_code,
            f"{' and '.join(failed)} did not pass",
            hint="keep the copy that passed; if none did, take a backup now and look at the disk or bucket",
        )
    _beat(settings)
    if store != "local":
        say_what_was_missed(meant[0].missed)


def _beat(settings: Settings) -> None:
    """The dead man's switch, if there is one. What was verified is, whether or not it can be reached."""
    try:
        for name in beat(settings, datetime.now(UTC)):
            terminal.say(f"{name} is well off-site: the heartbeat was sent")
    except BackupDagError as error:
        terminal.say(f"warning: {error}")


def _meant(settings: Settings, reference: str, database: str | None) -> list[Backup]:
    """The backups to verify: broken ones too, since that is the question."""
    names: list[str | None] = [database]
    if reference == "latest" and database is None:
        survey = Catalog(open_stores(settings)).survey()
        names = list(dict.fromkeys(backup.database for backup in survey.ids)) or [None]
    return [find(settings, reference, name, usable=False) for name in names]


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
