"""backup-dag: the same verbs from a terminal, for when all else is gone. Imports nothing of Dagster."""

import signal
import sys
import traceback
from datetime import date, datetime
from types import FrameType
from typing import Any

import click

from backup_dag import __version__, terminal
from backup_dag.core.backup import order_for, take_backup
from backup_dag.core.catalog import Backup, Catalog, find, open_stores
from backup_dag.core.databases import Database, choose, configured
from backup_dag.core.errors import EXIT_CODES, INTERRUPTED, BackupDagError, IntegrityError
from backup_dag.core.manifest import Check, Level, Manifest
from backup_dag.core.offsite import copy_offsite
from backup_dag.core.settings import Settings, load
from backup_dag.core.store.local import LocalStore
from backup_dag.core.verify import verify as verify_copy

_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
one_database = click.option("--database", metavar="NAME", help="Which of the configured databases.")


@click.group(context_settings=_HELP, epilog=_EPILOG)
@click.version_option(__version__, prog_name="backup-dag")
def cli() -> None:
    """PostgreSQL backups that come back: encrypted, checksummed, off-site.

    Settings come from the environment, or from .env in this folder; see .env.example.
    BACKUP is an id, `latest`, a path, or an s3:// address.
    """


@cli.command(epilog=_EPILOG)
@one_database
@click.option(
    "--partition", type=click.DateTime(["%Y-%m-%d"]), help="The day it counts for; today if left out."
)
@as_json
def backup(database: str | None, partition: datetime | None, as_json: bool) -> None:
    """Back up a database (all of them, if none is named), and copy it to the bucket."""
    settings = load()
    databases = configured(settings)
    made: list[tuple[Manifest, list[str]]] = []
    failed: list[BackupDagError] = []
    for each in [choose(databases, database)] if database else databases:
        try:
            made.append(_back_up(settings, each, partition.date() if partition else None, quiet=as_json))
        except BackupDagError as error:  # one database's trouble is not the others'
            failed.append(error)
            if len(databases) > 1 and not database:
                terminal.say(f"{each.name} failed: {error}")
    if as_json and made:
        done = [{"manifest": m.model_dump(mode="json"), "copies": addresses} for m, addresses in made]
        terminal.document([*done, *(_error_document(error) for error in failed)])
    if failed and made:
        raise _Told(failed[0].exit_code, failed[0].message, hint=failed[0].hint)
    if failed:
        raise failed[0]


def _back_up(
    settings: Settings, database: Database, day: date | None, *, quiet: bool
) -> tuple[Manifest, list[str]]:
    """One backup and its copies' addresses; each is said as soon as it is true, unless quiet."""
    order = order_for(database, settings, day)
    if order.reason == "late":
        terminal.say(f"late: this holds the state of now, and not that of {order.partition_day}")
    if settings.backup_encryption == "off":
        terminal.say("WARNING: BACKUP_ENCRYPTION=off, whoever gets this file can read all of it")
    with terminal.progress(f"backing up {database.name}") as observer:
        manifest = take_backup(settings, order, observer)
    local, *buckets = open_stores(settings)
    addresses = [local.address(manifest.artifact.name)]
    if not quiet:
        _show_backup(manifest, addresses[0])
    for bucket in buckets:
        with terminal.progress("copying to the bucket") as observer:
            for copied in copy_offsite(
                LocalStore(settings.backup_dir), bucket, database.name, observer=observer
            ):
                if copied.manifest.id == manifest.id:
                    addresses.append(copied.artifact.address)
                if not quiet:
                    terminal.show(f"  {copied.artifact.address}")
    if not buckets:
        terminal.say("no off-site copy: AWS_S3_BUCKET is not set")
    return manifest, addresses


def _show_backup(manifest: Manifest, address: str) -> None:
    content = manifest.content
    terminal.show(f"{manifest.backup}  ({manifest.reason}, counts for {manifest.partition_day})")
    terminal.show(
        f"  {len(content.tables):,} tables, {content.rows:,} rows;"
        f" {terminal.size(manifest.dump.bytes)} of dump in {terminal.size(manifest.artifact.bytes)},"
        f" {manifest.seconds:.1f} s"
    )
    terminal.show(f"  {address}")


@cli.command("list", epilog=_EPILOG)
@one_database
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="How many a page.")
@click.option(
    "--page", default=1, show_default=True, type=click.IntRange(1), help="Which page; 1 is the newest."
)
@as_json
def list_backups(database: str | None, limit: int, page: int, as_json: bool) -> None:
    """List backups, newest first, with their copies: from the stores alone, without Dagster."""
    catalog = Catalog(open_stores(load()))
    survey = catalog.survey(database)
    shown = [catalog.load(backup) for backup in survey.ids[(page - 1) * limit : page * limit]]
    if as_json:
        terminal.document(
            {
                "backups": [_as_document(backup) for backup in shown],
                "total": len(survey.ids),
                "page": page,
                "strays": [{"address": stray.address, "why": stray.why} for stray in survey.strays],
            }
        )
        return
    terminal.table(
        ["backup", "age", "why", "size", "rows", "copies", "checked"],
        [_as_row(backup) for backup in shown],
        right=["age", "size", "rows"],
    )
    last = page * limit
    if len(survey.ids) > last:
        terminal.say(f"{len(survey.ids) - last} older ones: backup-dag list --page {page + 1}")
    if not survey.ids:
        places = " or ".join(store.address() for store in catalog.stores)
        terminal.say(f"no backups in {places}")
    for backup in shown:
        for copy in backup.copies:
            if copy.fault:
                terminal.say(f"cannot be used: {copy.fault}")
    for stray in survey.strays:
        terminal.say(f"left alone: {stray.address} ({stray.why})")


def _as_row(backup: Backup) -> list[str]:
    copies = " ".join(f"{copy.store.label}{'!' if copy.fault else ''}" for copy in backup.copies)
    usable = next((copy.manifest for copy in backup.copies if copy.manifest), None)
    if usable is None:
        return [
            str(backup.id),
            terminal.age(backup.id.time),
            "?",
            "?",
            "?",
            copies,
            "manifest cannot be read",
        ]
    size, rows = terminal.size(usable.artifact.bytes), f"{usable.content.rows:,}"
    return [str(backup.id), terminal.age(backup.id.time), usable.reason, size, rows, copies, _checked(backup)]


def _checked(backup: Backup) -> str:
    """What is known of each copy."""
    said = []
    for copy in backup.copies:
        if check := copy.verification.verdict() if copy.verification else None:
            verdict = check.level if check.passed else f"{check.level} FAILED"
            said.append(f"{copy.store.label}: {verdict}, {terminal.age(check.time)}")
    return "; ".join(said) or "never"


def _as_document(backup: Backup) -> dict[str, Any]:
    copies = [
        {
            "store": copy.store.label,
            "address": copy.store.address(copy.manifest.artifact.name if copy.manifest else str(backup.id)),
            "fault": copy.fault or None,
            "verification": copy.verification.model_dump(mode="json") if copy.verification else None,
        }
        for copy in backup.copies
    ]
    manifest = next((copy.manifest for copy in backup.copies if copy.manifest), None)
    described = manifest.model_dump(mode="json") if manifest else None
    return {"backup": str(backup.id), "copies": copies, "manifest": described}


@cli.command(epilog=_EPILOG)
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
    checks: list[tuple[str, Check]] = []
    for found in _meant(settings, backup, database):
        copies = [copy for copy in found.copies if store in (None, copy.store.label)]
        if not copies:
            raise click.UsageError(f"{found.id} has no copy in the store {store}")
        for copy in copies:
            with terminal.progress(f"verifying the {copy.store.label} copy") as observer:
                check = verify_copy(settings, copy, level, observer)
            address = copy.store.address(found.manifest.artifact.name)
            checks.append((address, check))
            if not as_json:
                _show_check(found.manifest, address, check)
    if as_json:
        terminal.document([{"address": a, **check.model_dump(mode="json")} for a, check in checks])
    if failed := [address for address, check in checks if not check.passed]:
        raise _Told(
            IntegrityError.exit_code,
            f"{' and '.join(failed)} did not pass",
            hint="keep the copy that passed; if none did, take a backup now and look at the disk or bucket",
        )


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
            f" {terminal.size(manifest.dump.bytes)} in {check.seconds:.1f} s ({rate:,.0f} MB/s)"
        )
    elif check.passed:
        terminal.show(
            f"      every byte as promised, {terminal.size(manifest.artifact.bytes)}, {check.seconds:.1f} s"
        )
    for fault in check.faults:
        terminal.show(f"      {fault}")


@cli.command(epilog=_EPILOG)
@as_json
def doctor(as_json: bool) -> None:
    """Look at everything a backup needs, and say what is missing and what to do."""
    from backup_dag.core.doctor import examine

    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            terminal.show(f"{finding.verdict:<4}  {finding.what}: {finding.found}")
            if finding.advice:
                terminal.show(f"        → {finding.advice}")
    if as_json:
        terminal.document([finding.__dict__ for finding in findings])
    if worst := max((finding.exit_code for finding in findings), default=0):
        sys.exit(worst)


class _Told(BackupDagError):
    """An error whose verb has put its one JSON document out already."""

    def __init__(self, exit_code: int, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def main() -> None:
    """Runs a verb; every way it can end has its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BackupDagError as error:
        _end(error)
    except (KeyboardInterrupt, click.Abort):
        interrupted = BackupDagError("interrupted; nothing half-made was left behind")
        interrupted.exit_code = INTERRUPTED
        _end(interrupted)
    except Exception as error:
        traceback.print_exc()
        _end(BackupDagError(f"unexpected: {type(error).__name__}", hint="report it with the lines above"))


def _end(error: BackupDagError) -> None:
    if "--json" in sys.argv and not isinstance(error, _Told):
        terminal.document(_error_document(error))
    terminal.say(f"error: {error}")
    sys.exit(error.exit_code)


def _error_document(error: BackupDagError) -> dict[str, Any]:
    return {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
