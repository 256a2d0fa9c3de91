"""After a restore: back to the database that was kept, or rid of it."""

from datetime import UTC, datetime

from backup_dag.core.address import Address
from backup_dag.core.audit import audited
from backup_dag.core.databases import choose, configured
from backup_dag.core.errors import GuardRefused
from backup_dag.core.restoring.bystanders import holding_on, sessions
from backup_dag.core.restoring.marks import Made
from backup_dag.core.restoring.target import Target, target_at
from backup_dag.core.settings import Settings


def target_address(settings: Settings, database: str | None, target_database: str | None) -> Address:
    """The address of what was restored to. Raises ConfigurationError where it is not clear."""
    address = choose(configured(settings), database).address
    return address.at(target_database) if target_database else address


def kept(settings: Settings, address: Address) -> tuple[list[Made], dict[str, int]]:
    """The databases that restores of this one kept, the newest first; and who is connected to it now.

    Raises GuardRefused: there are none.
    """
    with target_at(address) as target:
        return _kept(target), sessions(target)


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
        keep = None
        if target.standing():
            _check_nothing_holds_on(target)
            aside, comment = target.aside("before", now), target.facts().comment
            keep = Made(aside, "before", target.name, now, back.backup, comment)
        seconds = target.swap(back.name, keep=keep)
        target.comment(back.comment)
        entry.done(back=back.name, kept_as=keep.name if keep else None)
    return back, keep.name if keep else "nothing", seconds


def _check_nothing_holds_on(target: Target) -> None:
    if prepared := holding_on(target)["prepared"]:
        raise GuardRefused(
            f"{prepared} prepared transactions are open in {target.name}, and it is renamed only after them",
            hint="COMMIT PREPARED or ROLLBACK PREPARED them (see pg_prepared_xacts)",
        )


def drop_kept(settings: Settings, address: Address) -> list[Made]:
    """Drops what restores of this database kept; returns what that was. Raises as `roll_back` does."""
    dropped: list[str] = []
    with (
        audited(settings.backup_dir, "drop", address.dbname, target=str(address), dropped=dropped),
        target_at(address) as target,
        target.locked(),
    ):
        gone = _kept(target)
        if target.standing() is None:
            raise GuardRefused(
                f"there is no database {target.name} any more: what is kept is all there is of it",
                hint="backup-dag restore --rollback puts it in its place",
            )
        for made in gone:
            target.drop(made.name)
            dropped.append(made.name)
    return gone


def _kept(target: Target) -> list[Made]:
    found = target.made("before")
    if not found:
        raise GuardRefused(
            f"no database that stood in the place of {target.address} is kept",
            hint="only a restore by swap keeps one; after one in place its safety backup leads back: see its"
            " id in backup-dag list (pre_restore), and restore it the same way",
        )
    return found
