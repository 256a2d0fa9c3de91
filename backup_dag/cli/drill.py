"""backup-dag drill."""

from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import click

from backup_dag import terminal
from backup_dag.cli.group import EPILOG, Told, as_json, cli, databases_meant, error_document, one_database
from backup_dag.cli.telling import tell_where_nobody_looks
from backup_dag.core import history
from backup_dag.core.drilling.drill import drill as drilled
from backup_dag.core.drilling.drill import to_drill
from backup_dag.core.drilling.outcome import Outcome
from backup_dag.core.errors import (
    OWN_CHECK_FAILED,
    BackupDagError,
    BackupNotFound,
    DrillBroke,
    IntegrityError,
)
from backup_dag.core.in_words import length, size
from backup_dag.core.nights import drill_is_due
from backup_dag.core.settings import Settings, load

_SEE_THE_DATABASE = "see what they ask for, and whether the database is as it should be"


@cli.command(epilog=EPILOG)
@click.argument("backup", default="latest")
@one_database
@click.option("--due", is_flag=True, help="For the nights: only where BACKUP_DRILL says that it is time.")
@as_json
def drill(backup: str, database: str | None, due: bool, as_json: bool) -> None:
    """Prove a backup: restore it into a throw-away PostgreSQL, compare every row, take the time.

    The copy in the bucket is taken where there is one. Nothing of yours is touched, and nothing stays: the
    server has no network, lies in BACKUP_DIR or BACKUP_SCRATCH_DIR (for root, in a temporary folder), and is
    removed whatever happens. `latest` is that of each configured database. Your own questions in the folder
    drills/ are asked of the restored copy.

    Exit code 6 says that the backup is not proven; 10 that it is, and a question of your own failed. Any
    other but 0 says that the drill broke, and nothing of the backup.
    """
    settings = load()
    outcomes: list[Outcome] = []
    broke: dict[str, BackupDagError] = {}
    names: list[str | None] = [database]
    if backup == "latest" and database is None:
        names, broke = databases_meant(settings)
    for name in names:
        if due and name is not None and not _is_due(settings, name):
            terminal.say(f"{name}: no drill is due")
            continue
        try:
            outcomes.append(_drilled(settings, backup, name))
            if not as_json:
                _show(outcomes[-1])
        except BackupDagError as error:  # one database's trouble is not the others'
            broke[name or backup] = error
            tell_where_nobody_looks(settings, "drill broke", name, error.message, error.hint)
            if len(names) > 1:
                terminal.say(str(error))
    if not outcomes and len(broke) == 1 and not as_json:
        raise next(iter(broke.values()))
    if as_json:
        said: list[dict[str, Any]] = [each.document() for each in outcomes]
        terminal.document([*said, *({"outcome": "broke", **error_document(each)} for each in broke.values())])
    _end(outcomes, broke)


def _is_due(settings: Settings, database: str) -> bool:
    last = history.last_proof(settings.backup_dir, database)
    return drill_is_due(settings, last, datetime.now(UTC))


def _drilled(settings: Settings, reference: str, database: str | None) -> Outcome:
    with ExitStack() as bars:
        try:
            backup = to_drill(settings, reference, database)
        except BackupNotFound:
            raise
        except BackupDagError as error:
            raise DrillBroke(database or reference, error) from error
        return drilled(settings, backup, lambda what: terminal.next_progress(bars, what))


def _show(outcome: Outcome) -> None:
    terminal.show(f"{'proven' if outcome.proven else 'NOT PROVEN'}  {outcome.backup}  ({outcome.source})")
    if outcome.proven:
        terminal.show(
            f"        {outcome.tables:,} tables and {outcome.rows:,} rows came back as they were backed up,"
            f" {size(outcome.dump_bytes)}, on {outcome.server}"
        )
        terminal.show(f"        {outcome.authentication}")
    for fault in outcome.faults:
        terminal.show(f"        {fault}")
    for note in outcome.notes:
        terminal.show(f"        note: {note}")
    for answer in outcome.answers:
        terminal.show(f"        {'passed' if answer.passed else 'FAILED'}  {answer.name}: {answer.said}")
    took = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in outcome.seconds.items())
    if outcome.proven:
        against = "within" if outcome.rto_met else "MORE THAN"
        target = length(outcome.rto_seconds)
        terminal.show(f"        recovered in {outcome.recovery:.1f} s, {against} the RTO of {target}:")
    if took:
        terminal.show(f"        {took}")


def _end(outcomes: list[Outcome], broke: dict[str, BackupDagError]) -> None:
    """What is not proven goes before what broke."""
    unproven = [each.backup for each in outcomes if not each.proven]
    failed = [f"{answer.name} of {each.backup}" for each in outcomes for answer in each.failed_answers]
    said = []
    if unproven:
        said.append(f"not proven: {', '.join(unproven)}")
    if failed:
        said.append(f"proven, but your own checks failed: {', '.join(failed)}")
    if said:
        hint = "do not count on it: see whether another copy is good (backup-dag list), and make a backup now"
        status = IntegrityError.exit_code if unproven else OWN_CHECK_FAILED
        raise Told(status, "; ".join(said), hint=hint if unproven else _SEE_THE_DATABASE)
    for first in broke.values():
        raise Told(first.exit_code, f"drills broke: {', '.join(broke)}; {first.message}", hint=first.hint)
