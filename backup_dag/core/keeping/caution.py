"""What stands against removing anything: signs that the newest backups are not what they should be.

An old backup is worth most when the new ones are bad, so nothing goes until they are known to be good.
"""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime

from backup_dag.core.copies import Backup
from backup_dag.core.errors import GuardRefused
from backup_dag.core.manifest import BackupId, Manifest
from backup_dag.core.nights import CLOCKS_APART
from backup_dag.core.settings import Settings
from backup_dag.core.watching.usual import judged, losses

_FEW = 2  # so many may go for each night: its own, and one that was late
_LONGEST = 31  # nights whose clean-ups are made up for


def against_removing(
    settings: Settings,
    database: str,
    backups: Sequence[Backup],
    now: datetime,
    *,
    force: bool = False,
    unverified: bool = False,
    note: bool = True,
) -> GuardRefused | None:
    """Why nothing of a database may be removed now; None where something may.

    `backups` are all of it, the newest first. `force` goes on although sizes or clocks look wrong,
    `unverified` although nobody has read the newest to its end. `note`: what was usual may be written down.
    """
    if not force and (ahead := [backup for backup in backups if backup.id.time > now + CLOCKS_APART]):
        return GuardRefused(
            f"{ahead[0].id} is dated in the future: a clock is wrong, or was",
            hint="see the clocks of this host and of the database server (backup-dag doctor); if they are"
            " right now, move that backup's files away, or use --force",
        )
    nights = [(backup, manifest) for backup, manifest in _regular(backups) if backup.id.time <= now]
    if not nights:
        return GuardRefused(
            f"there is no good backup of {database}", hint="make one and verify it: backup-dag backup"
        )
    if not force and (servers := against_two_servers(database, backups)):
        return servers
    newest = nights[0][0]
    if not unverified and not any(copy.read_to_its_end for copy in newest.copies):
        return GuardRefused(
            f"the newest good backup of {database}, {newest.id}, was never read to its end",
            hint=f"backup-dag verify {newest.id}; or clean up all the same with --unverified",
        )
    return None if force else against_size(settings, backups, now, note=note)


def _regular(backups: Sequence[Backup]) -> Iterator[tuple[Backup, Manifest]]:
    """The good ones that stand for their days, with their manifests."""
    return ((backup, manifest) for backup, manifest in _good(backups) if manifest.is_of_a_night)


def _good(backups: Sequence[Backup]) -> Iterator[tuple[Backup, Manifest]]:
    for backup in backups:
        if backup.good:
            yield backup, next(copy.manifest for copy in backup.copies if copy.good and copy.manifest)


def newest_good(backups: Sequence[Backup], now: datetime) -> Manifest | None:
    """The newest good one that stands for its day, of those before now."""
    return next((manifest for backup, manifest in _regular(backups) if backup.id.time <= now), None)


def against_size(
    settings: Settings, backups: Sequence[Backup], now: datetime, *, note: bool
) -> GuardRefused | None:
    """Why nothing may go while the newest good backup is out of line; None where it is not."""
    nights = [manifest for backup, manifest in _regular(backups) if backup.id.time <= now]
    if not nights:
        return None
    newest, *before = nights
    odd = [each for each in judged(settings, newest, before, note=note) if not each.as_usual]
    if not odd:
        return None
    did = "shrank" if odd[0].percent < 0 else "grew"
    return GuardRefused(
        f"the newest backup of {newest.database}, {newest.backup}, {did}: {'; '.join(map(str, odd))}",
        hint="see whether the database is as it should be (BACKUP_SHRINK_PERCENT, BACKUP_GROWTH_PERCENT); if"
        " it is, backup-dag cleanup --force, which makes that size the usual one",
    )


def against_losing(
    settings: Settings, place: str, backups: Sequence[Backup], going: Collection[BackupId], now: datetime
) -> GuardRefused | None:
    """Why those of `going` may not be removed from a place: they hold much more than the newest good one.

    A database that was emptied looks as usual after a few nights, to whoever did not look before; what it
    held must not go for it.
    """
    newest = newest_good(backups, now)
    them = [manifest for backup, manifest in _good(backups) if backup.id in going]
    lost = losses(settings, newest, them, "those that would go") if newest else []
    if newest is None or not lost:
        return None
    return GuardRefused(
        f"the backups of {newest.database} that would go from {place} hold much more than the newest,"
        f" {newest.backup}: {'; '.join(map(str, lost))}",
        hint="see whether the database lost something (BACKUP_SHRINK_PERCENT); if it was meant to shrink,"
        " backup-dag cleanup --force, which makes that size the usual one",
    )


def against_two_servers(database: str, backups: Sequence[Backup]) -> GuardRefused | None:
    """Why nothing may go where two servers' backups lie under one name, and one would push out the other's.
    A migration is from one server to another, and not back."""
    servers = [
        manifest.server.system_identifier
        for _, manifest in _regular(backups)
        if manifest.server.system_identifier is not None
    ]
    turns = [server for at, server in enumerate(servers) if at == 0 or servers[at - 1] != server]
    if len(turns) == len(set(turns)):
        return None
    return GuardRefused(
        f"backups of several servers lie under the name {database}: {', '.join(sorted(set(turns)))}",
        hint="give each server a BACKUP_S3_PREFIX (and BACKUP_DIR) of its own; or --force, if that is meant",
    )


def against_so_many(
    settings: Settings, place: str, going: int, there: int, nights: int = 1
) -> GuardRefused | None:
    """Why so many of the backups in a place may not go at once; None where they may. After `nights` without a
    clean-up, what those would have removed is no more than usual."""
    few = _FEW * min(nights, _LONGEST)
    most = max(few, there * settings.backup_cleanup_most_percent // 100)
    if going <= most:
        return None
    return GuardRefused(
        f"{going} of {there} backups in {place} would go, and {most} may in one run",
        hint="look at them with backup-dag cleanup --dry-run; if that is meant, backup-dag cleanup --force"
        " (BACKUP_CLEANUP_MOST_PERCENT is the limit)",
    )
