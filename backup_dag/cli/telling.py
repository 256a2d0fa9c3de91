"""Where nobody is looking, as under cron, those who have to know are told by the verb itself."""

import sys
from datetime import UTC, datetime

from backup_dag import terminal
from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.errors import BackupDagError
from backup_dag.core.settings import Settings
from backup_dag.core.watching.alerts import Alert, Kind, protection
from backup_dag.core.watching.watch import tell


def tell_where_nobody_looks(
    settings: Settings, kind: Kind, database: str | None, happened: str, advice: str
) -> None:
    """Tells of something that happened once, unless a person sees it on a terminal, or none is set to be
    told. That it cannot be told is said, and fails nothing."""
    if sys.stderr.isatty() or not (settings.backup_notify_email or settings.backup_notify_urls):
        return
    now = datetime.now(UTC)
    try:
        guard = protection(Catalog(open_stores(settings)), database, now) if database else ""
        undelivered = tell(settings, Alert(kind, database, happened, now, guard, advice))
    except BackupDagError as also:
        undelivered = [also.message]
    for each in undelivered:
        terminal.say(f"nobody was told: {each}")
