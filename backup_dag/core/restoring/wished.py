"""Which backup a restore is about, by what was wished for."""

from backup_dag.core.catalog import Catalog, find, open_stores
from backup_dag.core.copies import Backup, Copy
from backup_dag.core.databases import configured
from backup_dag.core.errors import GuardRefused
from backup_dag.core.known import served_as_newest
from backup_dag.core.restoring.plan import Wish
from backup_dag.core.settings import Settings


def found_for(settings: Settings, wish: Wish) -> tuple[Backup, list[str]]:
    """The backup that is wished for, and newer ones that would have been it, but cannot be used: why not.

    A safety backup holds the state that a restore was to undo, so it is restored only where it is asked for
    by name.
    """
    if wish.backup not in ("latest", "latest-proven"):
        if wish.as_of is not None:
            raise GuardRefused(
                "a backup and a time were both given", hint="leave out one of them: --as-of finds the backup"
            )
        found = find(settings, wish.backup)
        if wish.database not in (None, found.id.database):
            raise GuardRefused(
                f"{found.id} is a backup of {found.id.database}, and not of {wish.database}",
                hint="leave out --database; --target-database says where to",
            )
        return found, []
    catalog = Catalog(open_stores(settings))
    database, passed_over = _whose(settings, catalog, wish), list[str]()
    for found in catalog.newest_first(database, usable=False):
        if wish.as_of is not None and found.id.time > wish.as_of:
            continue
        if wish.backup == "latest-proven" and not found.proven:
            continue
        if not any(not copy.fault for copy in found.copies):
            passed_over.append(f"{found.id}: {'; '.join(copy.fault for copy in found.copies)}")
        elif found.manifest.is_of_a_night:
            return found, passed_over
    when = f" from {wish.as_of:%Y-%m-%d %H:%M:%S %Z} or before" if wish.as_of else ""
    if wish.backup == "latest-proven":
        raise catalog.unproven(f"{database}{when}")
    raise catalog.lacking(
        f"there is no usable backup of {database}{when} in {catalog.places}",
        hint="backup-dag list shows what there is; a safety backup is restored by its id",
    )


def hidden(settings: Settings, wish: Wish, copy: Copy) -> list[str]:
    """Whether a newer backup was put where the latest was found, and is not there any more."""
    manifest = copy.manifest
    if wish.backup != "latest" or wish.as_of is not None or manifest is None:
        return []
    fault = served_as_newest(settings, copy.store, manifest.database, manifest.id)
    return [fault] if fault else []


def _whose(settings: Settings, catalog: Catalog, wish: Wish) -> str:
    """Whose backups are meant: as wished, else the one configured database's, else the only one's there is.

    Raises GuardRefused where several could be meant.
    """
    if wish.database:
        return wish.database
    there = {backup.database for backup in catalog.survey().ids}
    ours = there & {database.name for database in configured(settings)}
    names = sorted(ours if len(ours) == 1 else there)
    if len(names) > 1:
        raise GuardRefused(
            f"there are backups of several databases: {', '.join(names)}", hint="choose one with --database"
        )
    if not names:
        raise catalog.lacking(
            f"there is no backup in {catalog.places}",
            hint="see BACKUP_DIR and AWS_S3_BUCKET; backup-dag list shows what there is",
        )
    return names[0]
