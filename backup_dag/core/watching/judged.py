"""What is found of a database against what was wished for, in words. Pure."""

from collections.abc import Sequence
from datetime import date, datetime

from backup_dag.core.errors import BackupDagError
from backup_dag.core.in_words import length
from backup_dag.core.manifest import Encryption
from backup_dag.core.nights import SLACK
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import FOREVER
from backup_dag.core.watching.places import ASK_AGAIN, Verdict

_PROVE = "backup-dag drill"
_MOST_DAYS = 5


def rpo(settings: Settings, age: float | None, *, sure: bool) -> Verdict:
    """The age in seconds of the newest good backup, None where none is known. A store that did not answer
    can only have newer ones: what is met without it is met."""
    target, said = settings.backup_rpo, "there is no good backup"
    if age is not None:
        said = f"the newest good backup is {length(age)} old, {length(target)} are allowed"
        if age <= (target + SLACK).total_seconds():
            return Verdict(holds=True, said=said)
    if not sure:
        return Verdict(holds=None, said=f"{said}, as far as was asked", advice=ASK_AGAIN)
    return Verdict(holds=False, said=said, advice="backup-dag doctor, then backup-dag backup")


def rto(settings: Settings, seconds: float | None) -> Verdict:
    """The last measured recovery. One that was never measured is not known to be fast enough."""
    target = length(settings.backup_rto)
    if seconds is None:
        said = f"how long a recovery takes was never measured here; {target} are allowed"
        return Verdict(holds=None, said=said, advice=_PROVE)
    said = f"the last recovery took {length(seconds)}, {target} are allowed"
    if seconds <= settings.backup_rto.total_seconds():
        return Verdict(holds=True, said=said)
    faster = "BACKUP_FORMAT=custom loads with several jobs (BACKUP_RESTORE_JOBS); or allow more (BACKUP_RTO)"
    return Verdict(holds=False, said=said, advice=faster)


def proof(proven: bool, *, sure: bool) -> Verdict:
    """Whether there is a proven backup, of whatever age."""
    if proven:
        return Verdict(holds=True, said="a restore has proven one")
    said = "no backup that is left was ever proven by a restore"
    if not sure:
        return Verdict(holds=None, said=f"{said}, as far as was asked", advice=ASK_AGAIN)
    return Verdict(holds=False, said=said, advice=_PROVE)


def intact(losses: Sequence[Verdict] | None, *, sure: bool, any_stored: bool) -> Verdict:
    """Whether what was stored is still there, and is what it was, as far as it was looked at. None: nothing
    could be asked."""
    if losses == [] and sure and not any_stored:
        return Verdict(holds=None, said="there is no copy that could be damaged")
    said = "no copy of the last days is known to be damaged, unproven or taken away"
    if losses is None or (not losses and not sure):
        return Verdict(holds=None, said=f"{said}, as far as was asked", advice=ASK_AGAIN)
    return _first_of(losses) or Verdict(holds=True, said=said)


def own_checks(failed: Sequence[Verdict]) -> Verdict:
    """The user's own, of the last drill, that asked some."""
    return _first_of(failed) or Verdict(holds=True, said="none of your own checks failed in the last drill")


def _first_of(wrong: Sequence[Verdict]) -> Verdict | None:
    for first in wrong[:1]:
        more = f" (and {len(wrong) - 1} more: backup-dag watch)" if len(wrong) > 1 else ""
        return Verdict(holds=False, said=f"{first.said}{more}", advice=first.advice)
    return None


def days(missing: Sequence[date] | None, window: int, *, begun: bool) -> Verdict:
    """The days without a good backup, of so many; None where that is not known."""
    if missing is None:
        return Verdict(holds=None, said="which days have a good backup is not known", advice=ASK_AGAIN)
    if not begun:
        return Verdict(holds=None, said="the first night is still to come")
    if not missing:
        return Verdict(holds=True, said=f"no day of the last {window} is without a good backup")
    named = ", ".join(map(str, missing[-_MOST_DAYS:]))
    more = f" and {len(missing) - _MOST_DAYS} before" if len(missing) > _MOST_DAYS else ""
    count = f"{len(missing)} days have" if len(missing) > 1 else "one day has"
    return Verdict(
        holds=False,
        said=f"{count} no good backup: {named}{more}",
        advice="see why (the daemon, the server, doctor); what is long past cannot be backed up any more",
    )


def encryption(
    newest: Encryption | None, unencrypted: int | None, unopened: tuple[int, BackupDagError] | None
) -> Verdict:
    """Of the newest good backup, and of how many there are that are not encrypted. `unopened`: how many good
    ones nothing that is set here opens, and why."""
    if newest is None:
        return Verdict(holds=None, said="there is no good backup whose encryption could be told")
    if newest.mode == "off":
        said, advice = "the newest good backup is NOT encrypted", "set BACKUP_ENCRYPTION=on and a key"
        return Verdict(holds=False, said=said, advice=advice)
    if unopened:
        many, why = unopened
        count = f"{many} backups" if many > 1 else "one backup"
        said = f"{count} cannot be opened here: {why.message}"
        return Verdict(holds=False, said=said, advice=why.hint)
    said = f"{newest.cipher or 'encrypted'}, {newest.mode}, {', '.join(newest.key_fingerprints)}"
    if unencrypted is None:
        return Verdict(holds=None, said=f"the newest: {said}; others are not known", advice=ASK_AGAIN)
    if unencrypted:
        others = "others are" if unencrypted > 1 else "other is"
        said = f"the newest good backup is encrypted, {unencrypted} {others} not"
        return Verdict(holds=False, said=said, advice="they go with the policy of retention, or by hand")
    return Verdict(holds=True, said=said)


def lock(until: datetime | None, *, shown: bool) -> Verdict:
    """Of the newest copy in the bucket. `shown`: whether this user would see a lock."""
    if until is not None:
        when = "without an end" if until == FOREVER else f"until {until:%Y-%m-%d %H:%M} UTC"
        return Verdict(holds=True, said=f"the newest copy in the bucket is locked {when}")
    if not shown:
        said = "whether the newest copy in the bucket is locked is not known: this user may not see it"
        return Verdict(holds=None, said=said, advice="allow s3:GetObjectRetention and s3:GetObjectLegalHold")
    return Verdict(
        holds=False,
        said="the newest copy in the bucket is not locked: whoever has the credentials may remove it",
        advice="a bucket with Object Lock, and BACKUP_S3_OBJECT_LOCK_MODE and …_DAYS",
    )


def no_copy_to_lock(*, sure: bool) -> Verdict:
    """Where no good copy in a bucket is known."""
    if not sure:
        return Verdict(holds=None, said="the bucket's locks are not known", advice=ASK_AGAIN)
    return Verdict(holds=False, said="nothing is locked: there is no good copy in a bucket")
