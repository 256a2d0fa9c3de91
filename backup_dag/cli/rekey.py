"""backup-dag rekey."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import click

from backup_dag import terminal
from backup_dag.cli.group import EPILOG, Told, as_json, cli, error_document
from backup_dag.core.audit import send_if_possible
from backup_dag.core.catalog import open_stores
from backup_dag.core.errors import BackupDagError, BackupNotFound, GuardRefused
from backup_dag.core.in_words import length, size
from backup_dag.core.rekey import Rekeyed, Rekeying
from backup_dag.core.settings import Settings, load
from backup_dag.core.store.base import FOREVER

_KEEP_THE_OLD = (
    "keep the old passphrase, in the settings and elsewhere, until backup-dag rekey finds nothing left to do"
)


@cli.command(epilog=EPILOG)
@click.option("--database", metavar="NAME", help="Only the backups of this database.")
@click.option("--dry-run", is_flag=True, help="Say what would be re-encrypted; change nothing.")
@as_json
def rekey(database: str | None, dry_run: bool, as_json: bool) -> None:
    """Re-encrypt every kept backup that is under another passphrase than BACKUP_ENCRYPTION_KEY.

    Give the earlier passphrase in BACKUP_ENCRYPTION_OLD_KEY, or several in BACKUP_ENCRYPTION_OLD_KEYS_FILE.
    The newest backup comes first, each in every store, streaming: no plain text touches the disk. What is new
    is read back before what is old goes. It may be killed and started again at any time. What the bucket
    locks stays as it is, and is named with the lock's end; then the exit code is 8.
    """
    settings = load()
    done: list[Rekeyed] = []
    with ExitStack() as bars:
        stores = open_stores(settings)
        rekeying = Rekeying(settings, stores, lambda what: terminal.next_progress(bars, what))
        with _saying_how_far(done, rekeying):
            for each in rekeying.each(database, dry_run=dry_run):
                bars.close()
                if not as_json and not _said_before(each, done):
                    _show(each)
                done.append(each)
    if any(each.fate in ("rekeyed", "tidied") for each in done):
        for bucket in stores[1:]:
            if bucket.address() not in rekeying.not_reached:
                send_if_possible(settings.backup_dir, bucket)
    if as_json:
        terminal.document(
            {
                "key_fingerprint": rekeying.key.fingerprints[0],
                "dry_run": dry_run,
                "copies": [each.document() for each in done],
                "missed": [error_document(error) for error in rekeying.missed],
                "not_reached": dict(rekeying.not_reached),
            }
        )
    _end(settings, rekeying, done, database, dry_run=dry_run)


@contextmanager
def _saying_how_far(done: Sequence[Rekeyed], rekeying: Rekeying) -> Iterator[None]:
    """Where it is interrupted, says how far it has come."""
    try:
        yield
    except (KeyboardInterrupt, click.Abort):
        seen = {id(each): each for each in (*done, *rekeying.at_work)}
        rekeyed = sum(each.fate == "rekeyed" for each in seen.values())
        terminal.say(
            f"{_copies(rekeyed)} re-encrypted so far; backup-dag rekey goes on with what is left."
            f" {_KEEP_THE_OLD.capitalize()}"
        )
        raise


def _said_before(each: Rekeyed, done: Sequence[Rekeyed]) -> bool:
    """Whether the same failed for another copy: a passphrase that is not set is not, for any."""
    return each.error is not None and any(
        other.error and other.error.message == each.error.message for other in done
    )


def _show(each: Rekeyed) -> None:
    """A line for each copy that something was done to, or should have been."""
    under = " ".join(each.under)
    anew = f"; made anew of another copy, and not of itself: {each.damage}" if each.damage else ""
    said = {
        "tidied": "what it took the place of was removed",
        "rekeyed": f"{size(each.bytes)} in {each.seconds:.1f} s{anew}",
        "untidy": "is under it; what it took the place of would be removed",
        "due": f"{size(each.bytes)}, under {under}: would be re-encrypted",
        "locked": f"locked {_until(each)}: it stays under {under}",
        "failed": each.error.message if each.error else "",
    }
    if each.fate in said:
        sign = "FAILED" if each.fate == "failed" else each.fate
        terminal.show(terminal.one_line(f"{sign:<7}  {each.backup}  {each.place}  {said[each.fate]}"))


def _until(each: Rekeyed) -> str:
    until = each.locked_until
    return "without an end" if until in (None, FOREVER) else f"until {until:%Y-%m-%d %H:%M} UTC"


def _end(
    settings: Settings, rekeying: Rekeying, done: Sequence[Rekeyed], database: str | None, *, dry_run: bool
) -> None:
    """Says how it went, and ends with what kept it from its work, if anything did."""
    if database and not done and not rekeying.missed:
        error = BackupNotFound(
            f"there is no backup of {database} in the stores", hint="backup-dag list shows what there is"
        )
        raise Told(error.exit_code, error.message, hint=error.hint)
    count, key = Counter(each.fate for each in done), rekeying.key.fingerprints[0]
    others = f"; {count['other']} are not under a passphrase, and stay as they are" if count["other"] else ""
    did = (
        f"{_copies(count['due'])} would be re-encrypted"
        if dry_run
        else f"{_copies(count['rekeyed'])} re-encrypted"
    )
    if worked := [each for each in done if each.seconds]:
        in_all = length(sum(each.seconds for each in worked))
        did += f" ({size(sum(each.bytes for each in worked))} in {in_all})"
    under = count["current"] + count["tidied"]
    already = f"{under:,} {'was' if under == 1 else 'were'} under it"
    terminal.say(f"{did} for the passphrase of fingerprint {key}, {already}{others}")
    for address, backups in rekeying.not_reached.items():
        many = "1 backup" if backups == 1 else f"{backups:,} backups"
        terminal.say(f"the copies of {many} in {address} were not dealt with: run it again when it answers")
    errors = [each.error for each in done if each.error] + rekeying.missed
    for message, times in Counter(each.error.message for each in done if each.error).items():
        if times > 1:
            terminal.say(f"the same of {times:,} copies in all (backup-dag list marks them): {message}")
    if count["locked"]:
        said = f"{_copies(count['locked'])} locked by a store: under the old passphrase until the lock ends"
        errors.append(GuardRefused(said, hint=_KEEP_THE_OLD))
    need_old = sum(each.needs_old for each in done)
    if need_old:
        terminal.say(
            f"{_copies(need_old)} not encrypted, and authenticated by an old passphrase:"
            " keep it, set, for as long as they are kept"
        )
    if rekeying.strays:
        terminal.say(
            f"{len(rekeying.strays):,} files belong to no whole backup, and were not looked at:"
            " backup-dag list names them"
        )
    looked_at_all = bool(done) and not (errors or rekeying.strays or need_old)
    if looked_at_all and not dry_run and database is None and settings.old_passphrases():
        terminal.say(
            "nothing here needs an old passphrase any more: take it out of the settings. Keep it on paper for"
            " as long as there are older copies elsewhere, or versions that the bucket keeps"
        )
    _raise(errors)


def _copies(count: int) -> str:
    return "1 copy" if count == 1 else f"{count:,} copies"


def _raise(errors: Sequence[BackupDagError]) -> None:
    """The first of the errors, the others being said. Raises Told."""
    if not errors:
        return
    first, *others = {error.message: error for error in errors}.values()
    for error in others:
        terminal.say(f"error: {error}")
    raise Told(first.exit_code, first.message, hint=first.hint)
