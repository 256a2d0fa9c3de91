"""backup-dag list."""

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from backup_dag import terminal
from backup_dag.cli.group import EPILOG, as_json, cli, error_document, one_database, say_what_was_missed
from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.copies import Backup, Copy
from backup_dag.core.errors import ConfigurationError
from backup_dag.core.in_words import size
from backup_dag.core.key import Fingerprints, known_fingerprints
from backup_dag.core.manifest import BackupId
from backup_dag.core.nights import today
from backup_dag.core.settings import Settings, load
from backup_dag.core.watching.strip import DAYS, LEGEND, strip


@cli.command("list", epilog=EPILOG)
@one_database
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="How many a page.")
@click.option(
    "--page", default=1, show_default=True, type=click.IntRange(1), help="Which page; 1 is the newest."
)
@as_json
def list_backups(database: str | None, limit: int, page: int, as_json: bool) -> None:
    """List backups, newest first, with their copies: from the stores alone, without Dagster."""
    settings = load()
    catalog = Catalog(open_stores(settings))
    survey = catalog.survey(database)
    shown = _loaded(catalog, survey.ids[(page - 1) * limit : page * limit])
    keys = _known(settings)
    latest_proven = _latest_proven(shown) if page == 1 else {}
    strips = _strips(settings, catalog, survey.ids, database) if as_json or page == 1 else {}
    missed = list(catalog.away.values())  # once all has been asked
    if as_json:
        terminal.document(
            {
                "backups": [_as_document(backup, keys) for backup in shown],
                "total": len(survey.ids),
                "page": page,
                "latest_proven": latest_proven,
                "last_days": strips,
                "strays": [{"address": stray.address, "why": stray.why} for stray in survey.strays],
                "missed": [error_document(error) for error in missed],
            }
        )
        say_what_was_missed(missed)
        return
    terminal.table(
        ["backup", "age", "why", "size", "rows", "copies", "checked"],
        [_as_row(backup, keys, catalog.away) for backup in shown],
        right=["age", "size", "rows"],
    )
    if page == 1:
        for name, signs in strips.items():
            proven = latest_proven.get(name)
            known = f"; latest-proven: {proven}" if proven else ""
            terminal.show(f"{signs}  {name}, the last {DAYS} days{known}")
        terminal.say(LEGEND if survey.ids else "")
    last = page * limit
    if len(survey.ids) > last:
        terminal.say(f"{len(survey.ids) - last} older ones: backup-dag list --page {page + 1}")
    if survey.ids and not shown:
        terminal.say(f"there is no page {page}: {len(survey.ids)} backups, {limit} a page")
    if not survey.ids:
        terminal.say(f"no backups in {catalog.places}")
    _say_what_opens_them([copy for backup in shown for copy in backup.copies], keys)
    for backup in shown:
        for copy in backup.copies:
            if copy.fault:
                terminal.say(f"cannot be used: {copy.fault}")
            if copy.remark:
                terminal.say(f"left alone: {copy.remark}")
    for stray in survey.strays:
        terminal.say(f"left alone: {terminal.one_line(stray.address)} ({stray.why})")
    say_what_was_missed(missed)


def _loaded(catalog: Catalog, ids: Sequence[BackupId]) -> list[Backup]:
    return [found for each in ids if (found := catalog.load_if_there(each))]


def _known(settings: Settings) -> Fingerprints:
    """The passphrases here. Backups are listed, too, where none can be had."""
    try:
        return known_fingerprints(settings)
    except ConfigurationError as error:
        terminal.say(f"warning: what is set here opens no copy, so all are marked: {error}")
        return Fingerprints(None, ())


def _latest_proven(newest_first: Sequence[Backup]) -> dict[str, str]:
    """What `latest-proven` means for each database, as far as these go back."""
    found: dict[str, str] = {}
    for backup in newest_first:
        if backup.proven and backup.manifest.is_of_a_night:
            found.setdefault(backup.id.database, str(backup.id))
    return found


def _strips(
    settings: Settings, catalog: Catalog, ids: Sequence[BackupId], database: str | None
) -> dict[str, str]:
    """The last thirty days of each database. Reads the manifests of that time, and of no other."""
    now = datetime.now(UTC)
    first = now - timedelta(days=DAYS + 1)
    recent = [backup for backup in ids if first <= backup.time <= now]
    names = [database] if database else sorted({backup.database for backup in ids})
    return {
        name: strip(
            _loaded(catalog, [each for each in recent if each.database == name]),
            today(settings, now),
            zone=settings.zone,
        )
        for name in names
    }


_SIGNS = {"old": "*", "unknown": "?"}
_KEYS = {
    "current": "under the passphrase {}, that of today",
    "old": "* under the passphrase {}, an old one: backup-dag rekey re-encrypts it",
    "unknown": "? under the passphrase {}, not set here: BACKUP_ENCRYPTION_OLD_KEY is for an earlier one",
    "public": "for the public key {}",
    "off": "NOT encrypted{}",
}


def _say_what_opens_them(copies: Sequence[Copy], keys: Fingerprints) -> None:
    """Under which keys the copies are: an id takes the room that a column of fingerprints would need."""
    found = Counter(
        (keys.what_opens(made_with), ", ".join(made_with.key_fingerprints))
        for copy in copies
        if copy.manifest and (made_with := copy.manifest.encryption)
    )
    for (key, fingerprints), count in found.items():
        said = _KEYS[key].format(fingerprints)
        terminal.say(f"{terminal.one_line(said)} ({count} {'copy' if count == 1 else 'copies'})")


def _where(copy: Copy, keys: Fingerprints) -> str:
    """The store, with a sign where the copy is not good, or is under another passphrase than today's."""
    key = keys.what_opens(copy.manifest.encryption) if copy.manifest else ""
    return f"{copy.store.label}{_SIGNS.get(key, '')}{'' if copy.good else '!'}"


def _as_row(backup: Backup, keys: Fingerprints, away: Collection[str]) -> list[str]:
    """`away`: the stores that could not be asked; whether they have it is not known."""
    asked = " ".join(_where(copy, keys) for copy in backup.copies)
    copies = f"{asked} ({', '.join(away)} not asked)" if away else asked
    usable = backup.manifest_or_none
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
    rows, age = f"{usable.content.rows:,}", terminal.age(backup.id.time)
    stored = size(usable.artifact.bytes)
    return [str(backup.id), age, usable.reason, stored, rows, copies, _checked(backup)]


def _checked(backup: Backup) -> str:
    """What is known of each copy."""
    said = []
    for copy in backup.copies:
        if check := copy.verification.verdict() if copy.verification else None:
            proof = check.level == "restore"
            passed, failed = ("proven", "NOT PROVEN") if proof else (check.level, f"{check.level} FAILED")
            verdict = passed if check.passed else failed
            said.append(f"{copy.store.label}: {verdict}, {terminal.age(check.time)}")
    return "; ".join(said) or "never"


def _as_document(backup: Backup, keys: Fingerprints) -> dict[str, Any]:
    copies = [
        {
            "store": copy.store.label,
            "address": copy.store.address(copy.manifest.artifact.name if copy.manifest else str(backup.id)),
            "fault": copy.fault or None,
            "key_fingerprints": copy.manifest.encryption.key_fingerprints if copy.manifest else None,
            "key": keys.what_opens(copy.manifest.encryption) if copy.manifest else None,
            "verification": copy.verification.model_dump(mode="json") if copy.verification else None,
        }
        for copy in backup.copies
    ]
    manifest = backup.manifest_or_none
    described = manifest.model_dump(mode="json") if manifest else None
    return {"backup": str(backup.id), "copies": copies, "manifest": described}
