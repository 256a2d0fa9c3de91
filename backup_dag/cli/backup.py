"""backup-dag backup."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import click

from backup_dag import terminal
from backup_dag.cli.group import EPILOG, Told, as_json, cli, error_document, one_database
from backup_dag.cli.telling import tell_where_nobody_looks
from backup_dag.core.backup import Order, order_for, take_backup
from backup_dag.core.catalog import open_stores
from backup_dag.core.databases import choose, configured
from backup_dag.core.errors import BackupDagError
from backup_dag.core.in_words import size
from backup_dag.core.manifest import Manifest
from backup_dag.core.offsite import copy_offsite
from backup_dag.core.settings import Settings, load
from backup_dag.core.store.local import LocalStore


@cli.command(epilog=EPILOG)
@one_database
@click.option(
    "--partition", type=click.DateTime(["%Y-%m-%d"]), help="The day it counts for; today if left out."
)
@click.option("--allow-late-capture", is_flag=True, help="Even for a day that is long past; marked late.")
@click.option("--scheduled", is_flag=True, help="It is the night's, by cron or a timer.")
@as_json
def backup(
    database: str | None,
    partition: datetime | None,
    allow_late_capture: bool,
    scheduled: bool,
    as_json: bool,
) -> None:
    """Back up a database (all of them, if none is named), and copy it to the bucket."""
    settings = load()
    databases = configured(settings)
    chosen = [choose(databases, database)] if database else databases
    done: list[dict[str, Any]] = []
    failed: dict[str, BackupDagError] = {}
    for each in chosen:
        made = _Made()
        try:
            day = partition.date() if partition else None
            order = order_for(each, settings, day, scheduled=scheduled, allow_late=allow_late_capture)
            _back_up(settings, order, made, quiet=as_json)
        except Exception as error:  # one database's trouble is not the others'
            failed[each.name] = ours = _in_our_words(error)
            if len(chosen) > 1:
                terminal.say(f"{each.name} failed: {ours}")
            happened = f"the backup of {each.name} failed: {ours.message}"
            tell_where_nobody_looks(settings, "failed", each.name, happened, ours.hint)
        said = error_document(failed[each.name]) if each.name in failed else {}
        done.append({"database": each.name, **made.document(), **said})
    first = next(iter(failed.values()), None)
    if first and not any(each["manifest"] for each in done):
        raise first
    if as_json:
        terminal.document(done)
    if first is None:
        return
    if len(chosen) == 1:
        raise Told(first.exit_code, first.message, hint=first.hint)
    raise Told(
        first.exit_code, f"{len(failed)} of {len(chosen)} databases failed: {', '.join(failed)}", hint=""
    )


def _in_our_words(error: Exception) -> BackupDagError:
    if isinstance(error, BackupDagError):
        return error
    traceback.print_exception(error)
    return BackupDagError(f"unexpected: {type(error).__name__}", hint="report it with the lines above")


@dataclass
class _Made:
    """What has come to be, as far as it has: the backup, and the addresses of its copies."""

    manifest: Manifest | None = None
    copies: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        return {
            "manifest": self.manifest.model_dump(mode="json") if self.manifest else None,
            "copies": self.copies,
        }


def _back_up(settings: Settings, order: Order, made: _Made, *, quiet: bool) -> None:
    """One backup and its copies; each is said as soon as it is true, unless quiet."""
    database = order.database
    if order.reason == "late":
        terminal.say(f"late: this holds the state of now, and not that of {order.partition_day}")
    if settings.backup_encryption == "off":
        terminal.say("WARNING: BACKUP_ENCRYPTION=off, whoever gets this file can read all of it")
    with terminal.progress(f"backing up {database.name}") as observer:
        made.manifest = manifest = take_backup(settings, order, observer)
    local, *buckets = open_stores(settings)
    made.copies.append(local.address(manifest.artifact.name))
    if not quiet:
        _show_backup(manifest, made.copies[0])
    for bucket in buckets:
        with _saying_what_is_left(manifest), terminal.progress("copying to the bucket") as observer:
            for copied in copy_offsite(
                LocalStore(settings.backup_dir), bucket, database.name, observer=observer
            ):
                tonight = copied.manifest.id == manifest.id
                if tonight:
                    made.copies.append(copied.artifact.address)
                if not quiet:
                    terminal.show(f"  {copied.artifact.address}{'' if tonight else '  (made up for)'}")
    if not buckets:
        terminal.say("no off-site copy: AWS_S3_BUCKET is not set")


@contextmanager
def _saying_what_is_left(manifest: Manifest) -> Iterator[None]:
    """Where the copying fails, that the backup is there all the same."""
    try:
        yield
    except BackupDagError:
        terminal.say(
            f"{manifest.backup} is whole in BACKUP_DIR; the next backup copies what the bucket lacks, and so"
            " does s3_copy in Dagster"
        )
        raise


def _show_backup(manifest: Manifest, address: str) -> None:
    content = manifest.content
    terminal.show(f"{manifest.backup}  ({manifest.reason}, counts for {manifest.partition_day})")
    terminal.show(
        f"  {len(content.tables):,} tables, {content.rows:,} rows;"
        f" {size(manifest.dump.bytes)} of dump in {size(manifest.artifact.bytes)},"
        f" {manifest.seconds:.1f} s"
    )
    terminal.show(f"  {address}")
    for warning in manifest.warnings:
        terminal.say(f"warning: {warning}")
