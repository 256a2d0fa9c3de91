"""backup-dag restore."""

import sys
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import click
from click.core import ParameterSource

from backup_dag import terminal
from backup_dag.cli.group import EPILOG, Told, as_json, cli, one_database
from backup_dag.core.address import Address
from backup_dag.core.errors import GuardRefused
from backup_dag.core.in_words import length
from backup_dag.core.restoring.obstacles import Mode
from backup_dag.core.restoring.plan import RestorePlan, Wish, moment
from backup_dag.core.restoring.restore import Report, Restoration
from backup_dag.core.restoring.rollback import drop_kept, kept, roll_back, target_address
from backup_dag.core.restoring.tables import TablesBack, bring_back
from backup_dag.core.settings import Settings, load


@cli.command(epilog=EPILOG)
@click.argument("backup", default="latest")
@one_database
@click.option("--as-of", metavar="TIME", help="The newest backup whose snapshot is not later than that.")
@click.option("--target-database", metavar="NAME", help="Where to; by default where it came from.")
@click.option(
    "--mode",
    type=click.Choice(["swap", "new", "in-place"]),
    default="swap",
    show_default=True,
    help="swap: into the place of the target, which is kept; new: into a new database, given by name;"
    " in-place: where none may be made, within one transaction.",
)
@click.option(
    "--table",
    "tables",
    multiple=True,
    metavar="SCHEMA.NAME",
    help="Only this table (may be repeated), into a schema restored_<time> beside the live one.",
)
@click.option(
    "--no-safety-backup",
    is_flag=True,
    help="Do not back up the target first (by swap it is kept anyway; in place it is then lost).",
)
@click.option("--dry-run", is_flag=True, help="Plan only: reads the backup to its end, changes nothing.")
@click.option("--force", is_flag=True, help="Ask nothing.")
@click.option("--rollback", is_flag=True, help="Put the database back that the last restore kept.")
@click.option("--drop-previous", is_flag=True, help="Drop the databases that restores kept.")
@as_json
def restore(
    backup: str,
    database: str | None,
    as_of: str | None,
    target_database: str | None,
    mode: Mode,
    tables: tuple[str, ...],
    no_safety_backup: bool,
    dry_run: bool,
    force: bool,
    rollback: bool,
    drop_previous: bool,
    as_json: bool,
) -> None:
    """Restore a backup: plan, safety backup, build aside, prove, swap. The old database is kept.

    Until the last step the target serves as it did, and that step is one transaction. --force is for
    scripts; without it the plan is shown and the target's name asked for.
    """
    _check_they_go_together()
    settings = load()
    if rollback or drop_previous:
        address = target_address(settings, database, target_database)
        _after_a_restore(settings, address, drop=drop_previous, dry_run=dry_run, force=force, as_json=as_json)
        return
    wish = Wish(
        backup=backup,
        as_of=moment(as_of, settings.zone),
        database=database,
        target_database=target_database,
        mode=mode,
        safety_backup=not no_safety_backup,
    )
    with (
        ExitStack() as bars,
        Restoration(settings, wish, lambda what: terminal.next_progress(bars, what)) as restoration,
    ):
        restoration.fetch()
        restoration.verify(to_its_end=dry_run)
        if tables:
            back = bring_back(settings, restoration, tables)
            bars.close()
            _show_tables(back, as_json=as_json)
            return
        plan = restoration.plan()
        bars.close()
        if wish.as_of is not None:
            before = length((wish.as_of - plan.snapshot_time).total_seconds())
            terminal.say(f"the state held is {before} older than the time asked for")
        for line in [] if as_json and dry_run else plan.lines:
            (terminal.show if dry_run else terminal.say)(line)
        if dry_run:
            if as_json:
                terminal.document(plan.model_dump(mode="json"))
            _end_where_refused(plan)
            return
        plan.check()
        if not force:
            _ask_for(plan.target.partition(" on ")[0])
        restoration.safety(plan)
        restoration.build()
        restoration.prove()
        report = restoration.swap()
        bars.close()
    if as_json:
        terminal.document(report.__dict__)
    else:
        _show_report(report)


def _end_where_refused(plan: RestorePlan) -> None:
    """The plan has been put out, refusals and all: what is left to say is the exit code."""
    try:
        plan.check()
    except GuardRefused as refused:
        raise Told(refused.exit_code, refused.message, hint=refused.hint) from None


def _ask_for(name: str) -> None:
    """Has the name typed in. Raises GuardRefused where it is not, or nobody is there to do it."""
    if not sys.stdin.isatty():
        raise GuardRefused("nobody is there to confirm it", hint="--force asks nothing; --dry-run only plans")
    typed = click.prompt(f"Type {name} to go on", default="", show_default=False, err=True)
    if typed != name:
        raise GuardRefused("it was not confirmed; nothing was changed")


_ALONE = ("backup", "as_of", "mode", "tables", "no_safety_backup")
_NOT_WITH_TABLES = ("mode", "no_safety_backup", "dry_run")


def _check_they_go_together() -> None:
    """Raises UsageError for what would be passed over in silence."""
    context = click.get_current_context()
    given = {
        name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    verbs = given & {"rollback", "drop_previous"}
    if len(verbs) == 2:
        raise click.UsageError("--rollback and --drop-previous are two things: do one, and then the other")
    if verbs and (besides := given & set(_ALONE)):
        raise click.UsageError(f"--rollback and --drop-previous take no {_named(besides)}")
    if "tables" in given and (besides := given & set(_NOT_WITH_TABLES)):
        raise click.UsageError(f"--table takes no {_named(besides)}: it changes nothing that is there")


def _named(parameters: set[str]) -> str:
    names = {"backup": "BACKUP"}
    return ", ".join(sorted(names.get(each, f"--{each.replace('_', '-')}") for each in parameters))


def _after_a_restore(
    settings: Settings, address: Address, *, drop: bool, dry_run: bool, force: bool, as_json: bool
) -> None:
    """Rolls back to the database that was kept, or drops it."""
    kept_now, connected_now = kept(settings, address)
    doing = "drops" if drop else "puts back"
    for made in kept_now if drop else kept_now[:1]:
        terminal.say(f"{doing} {made.name}, kept since {made.since:%Y-%m-%d %H:%M:%S} UTC")
    for who, number in {} if drop else connected_now.items():
        terminal.say(f"connected now: {number} × {who}; will be disconnected")
    if dry_run:
        terminal.say("a dry run: nothing was changed")
        if as_json:
            terminal.document({"would": doing, "kept": [made.name for made in kept_now]})
        return
    if not force:
        _ask_for(address.dbname)
    if drop:
        gone = drop_kept(settings, address)
        said: dict[str, Any] = {"dropped": [made.name for made in gone]}
    else:
        back, aside, seconds = roll_back(settings, address)
        said = {"back": back.name, "kept_as": aside, "window_ms": round(seconds * 1000, 1)}
    if as_json:
        terminal.document(said)
    elif drop:
        terminal.show(f"dropped {', '.join(said['dropped'])}")
    else:
        terminal.show(
            f"{address.dbname} is {back.name} again, the database that stood there until"
            f" {back.since:%Y-%m-%d %H:%M:%S} UTC"
        )
        terminal.show(
            f"what stood there now is kept as {said['kept_as']} ({said['window_ms']} ms without a database)"
        )


def _show_tables(back: TablesBack, *, as_json: bool) -> None:
    if as_json:
        terminal.document(asdict(back))
        return
    terminal.show(f"back in the schema {back.schema} of {back.target}, from {back.backup}:")
    for table in back.tables:
        terminal.show(f"  {table.now}: {table.rows:,} rows, as backed up")
        if table.live:
            terminal.show(
                f"    what was lost:  SELECT * FROM {table.now} EXCEPT ALL SELECT * FROM {table.name};"
            )
        else:
            terminal.show(f"    there is no {table.name} any more: see the runbook, day two")
    terminal.show(f"when done:  DROP SCHEMA {back.schema} CASCADE;")


def _show_report(report: Report) -> None:
    terminal.show(f"restored  {report.backup} → {report.target}, every digest as promised")
    for note in report.proof_notes:
        terminal.show(f"          {note}")
    if report.safety_backup:
        terminal.show(f"          the state before is in {report.safety_backup}, in BACKUP_DIR")
        if report.mode == "in-place":
            terminal.show(f"          back again: backup-dag restore {report.safety_backup} --mode in-place")
    if report.kept_as:
        terminal.show(
            f"          the database before is kept as {report.kept_as}"
            f" ({report.window_ms} ms without a database)"
        )
        terminal.show("          backup-dag restore --rollback puts it back, --drop-previous drops it")
    elif report.window_ms is not None:
        terminal.show(f"          others waited for {report.window_ms} ms, from the first drop to the commit")
    if report.roles_created:
        terminal.show(f"          roles created: {', '.join(report.roles_created)}")
    took = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in report.seconds.items())
    terminal.show(f"          {took}")
