"""After a restore: back to the database that was kept, or rid of it."""

from datetime import UTC, datetime

from backup_dag.core.address import Address
from backup_dag.core.audit import audited
from backup_dag.core.databases import choose, configured
from backup_dag.core.errors import GuardRefused
from backup_dag.core.settings import Settings
from backup_dag.core.target import Made, Target, target_at


def target_address(settings: Settings, database: str | None, target_database: str | None) -> Address:
    """The address of what was restored to. Raises ConfigurationError where it is not clear."""
    address = choose(configured(settings), database).address
    return address.at(target_database) if target_database else address


def kept(settings: Settings, address: Address) -> list[Made]:
    """The databases that restores of this one kept, the newest first. Raises GuardRefused: there are none."""
    with target_at(address) as target:
        return _kept(target)


def roll_back(settings: Settings, address: Address) -> tuple[Made, str, float]:
    """Puts the newest kept database back in its place, in one transaction.

    Returns it, the name under which what stood there is kept now, and the window in seconds.

    Raises:
        GuardRefused: none is kept, or a restore is running.
        DatabaseError: it could not be done; nothing has changed then.
    """
    with (
        audited(settings.backup_dir, "rollback", address.dbname, target=str(address)) as entry,
        target_at(address) as target,
        target.locked(),
    ):
        back, now = _kept(target)[0], datetime.now(UTC)
        aside = target.aside("before", now) if target.standing() else None
        seconds = target.swap(back.name, keep_as=aside, backup=back.backup, now=now)
        entry.done(back=back.name, kept_as=aside)
    return back, aside or "nothing", seconds


def drop_kept(settings: Settings, address: Address) -> list[Made]:
    """Drops what restores of this database kept; returns what that was. Raises as `roll_back` does."""
    dropped: list[str] = []
    with (
        audited(settings.backup_dir, "drop", address.dbname, target=str(address), dropped=dropped),
        target_at(address) as target,
        target.locked(),
    ):
        gone = _kept(target)
        for made in gone:
            target.drop(made.name)
            dropped.append(made.name)
    return gone


def _kept(target: Target) -> list[Made]:
    found = target.made("before")
    if not found:
        raise GuardRefused(
            f"no database that stood in the place of {target.address} is kept",
            hint="only a restore with --mode swap keeps one; restore an older backup instead",
        )
    return found
