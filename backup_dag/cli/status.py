"""backup-dag status."""

from datetime import UTC, datetime

from backup_dag import terminal
from backup_dag.cli.group import EPILOG, as_json, cli, error_document, one_database, say_what_was_missed
from backup_dag.core.settings import load
from backup_dag.core.watching import page
from backup_dag.core.watching.posture import Posture
from backup_dag.core.watching.stocktaking import take_stock
from backup_dag.core.watching.strip import DAYS, LEGEND


@cli.command(epilog=EPILOG)
@one_database
@as_json
def status(database: str | None, as_json: bool) -> None:
    """Say where you stand: newest backups, RPO, RTO, 3-2-1, proof, missing days, encryption, locks.

    Of every database against what is wished for, from the stores and this host's record of restores alone.
    What does not hold is said with what to do, and is no error: the exit code is 0, and `watch` is what
    alarms. It is an error where a store did not answer: what it would have said is shown as not known.
    """
    found, missed = take_stock(load(), datetime.now(UTC), database)
    if as_json:
        document = found.model_dump(mode="json")
        terminal.document({**document, "missed": [error_document(error) for error in missed]})
    else:
        _show(found)
    say_what_was_missed(missed)


def _show(found: Posture) -> None:
    rows = [page.row(each) for each in found.databases]
    terminal.table(page.COLUMNS, rows, right=["newest", "proven", "missing"])
    for each in found.databases:
        terminal.show(f"{each.strip}  {each.database}, the last {DAYS} days")
    terminal.say(f"{page.SIGNS}\n{LEGEND}" if rows else "no database is configured, and there is no backup")
    for what, said, advice in page.not_holding(found):
        terminal.show(f"{what}: {said}")
        if advice:
            terminal.show(f"    → {advice}")
    for remark in page.remarks(found):
        terminal.say(terminal.one_line(remark))
