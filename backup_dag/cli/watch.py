"""backup-dag watch."""

from collections.abc import Callable
from datetime import UTC, datetime

import click

from backup_dag import terminal
from backup_dag.cli.group import EPILOG, Told, as_json, cli
from backup_dag.core.errors import DeliveryFailed
from backup_dag.core.settings import load
from backup_dag.core.watching.alerts import deliver
from backup_dag.core.watching.delivery import receivers
from backup_dag.core.watching.watch import Looked, digest, look


@cli.command(epilog=EPILOG)
@click.option("--digest", "summary", is_flag=True, help="Send a summary instead, whether or not all is well.")
@as_json
def watch(summary: bool, as_json: bool) -> None:
    """Look for what is wrong with the backups, and tell those who have to know: once.

    For cron, where no Dagster daemon runs. Overdue, unverified, damaged, not off-site, out of line in size,
    a night that was missed: each is told once (BACKUP_NOTIFY_EMAIL, BACKUP_NOTIFY_URLS), and once more when
    it is well again. The exit code is 0 where everyone was told, whatever there was to tell. Where nobody is
    set to be told, what is wrong is said at each look on stderr, and not on stdout, for cron to mail it.
    """
    settings, now = load(), datetime.now(UTC)
    if summary:
        alert = digest(settings, now)
        deliver(settings, alert)
        terminal.document({"digest": alert.body}) if as_json else terminal.show(alert.body)
        return
    looked = look(settings, now)
    unheard = bool(looked.concerns) and not receivers(settings)
    if as_json:
        terminal.document(_as_document(looked))
    elif not unheard:
        _show(looked, terminal.show)
    if unheard:
        terminal.say("nobody is set to be told of this (BACKUP_NOTIFY_EMAIL, BACKUP_NOTIFY_URLS):")
        _show(looked, terminal.say)
    if looked.undelivered:
        raise Told(DeliveryFailed.exit_code, "; ".join(looked.undelivered), hint="the next look tries again")
    if looked.unkept is not None:
        raise Told(looked.unkept.exit_code, looked.unkept.message, hint=looked.unkept.hint)


def _as_document(looked: Looked) -> dict[str, object]:
    return {
        "concerns": [
            {"kind": c.kind, "database": c.database, "happened": c.happened, "since": c.since.isoformat()}
            for c in looked.concerns
        ],
        "told": [alert.subject for alert in looked.told],
        "undelivered": looked.undelivered,
    }


def _show(looked: Looked, put: Callable[[str], None]) -> None:
    for concern in looked.concerns:
        put(f"{concern.kind:<12}  {concern.happened}  (since {concern.since:%Y-%m-%d %H:%M} UTC)")
        put(f"              → {concern.advice}")
    if not looked.concerns:
        put("all is well")
    for alert in looked.told:
        terminal.say(f"told: {alert.subject}")
