"""backup-dag cleanup."""

import click

from backup_dag import terminal
from backup_dag.cli.group import EPILOG, Told, as_json, cli, one_database
from backup_dag.core.catalog import open_stores
from backup_dag.core.databases import choose, configured
from backup_dag.core.in_words import size
from backup_dag.core.keeping.cleaned import Report
from backup_dag.core.keeping.cleanup import Leave, clean_up
from backup_dag.core.settings import load


@cli.command(epilog=EPILOG)
@one_database
@click.option("--dry-run", is_flag=True, help="Say what stays, what goes, and why; remove nothing.")
@click.option("--force", is_flag=True, help="Although many would go, or sizes or clocks look wrong.")
@click.option("--unverified", is_flag=True, help="Although the newest backup was never read to its end.")
@as_json
def cleanup(database: str | None, dry_run: bool, force: bool, unverified: bool, as_json: bool) -> None:
    """Remove the backups that the policy lets go (BACKUP_RETENTION_DAYS, BACKUP_KEEP_…).

    The newest good and the newest proven backup always stay. Nothing goes while the newest is not verified,
    or looks wrong. What is not ours, or of a database that is not configured, is left alone.
    """
    settings = load()
    databases = configured(settings)
    report = clean_up(
        settings,
        open_stores(settings),
        [each.name for each in databases],
        Leave(dry_run, force, unverified),
        only=choose(databases, database).name if database else None,
    )
    if as_json:
        terminal.document(report.document())
    else:
        for line in report.lines():
            terminal.show(terminal.one_line(line))
        _say_what_was_done(report)
    _end(report)


def _say_what_was_done(report: Report) -> None:
    if report.dry_run:
        terminal.say("a dry run: nothing was removed")
    else:
        terminal.say(f"removed {len(report.removed)}, {size(report.freed)}")


def _end(report: Report) -> None:
    """Ends with what kept it from its work, if anything did: failures before refusals."""
    if not report.errors:
        return
    first, *others = report.errors
    for error in others:
        terminal.say(f"error: {error}")
    raise Told(first.exit_code, first.message, hint=first.hint)
