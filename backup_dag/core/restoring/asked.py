"""Which tables of a backup are meant by the names that someone gives, once its definitions are loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from backup_dag.core.address import Address
from backup_dag.core.errors import BackupNotFound, GuardRefused
from backup_dag.core.manifest import Manifest
from backup_dag.core.postgres import Session, connected

_MOST_NAMED = 10


@dataclass(frozen=True)
class Asked:
    """One table that was asked for, by its name as the dump quotes it and without its schema.

    `parts` are the tables of the manifest whose rows it has: itself, or a partitioned table's partitions.
    """

    name: str
    bare: str
    parts: tuple[str, ...]
    partitioned: bool


def resolved(address: Address, manifest: Manifest, wanted: Sequence[str]) -> list[Asked]:
    """Finds each name in a database that has the backup's definitions, quoted or not.

    Raises:
        BackupNotFound: the backup has no such table.
        GuardRefused: two have the same name, and would not both fit into one schema.
    """
    with connected(address) as session:
        there = _tables(session, manifest)
    found = [_one(there, manifest, name) for name in dict.fromkeys(wanted)]
    bare = [each.bare for each in found]
    if twice := sorted({name for name in bare if bare.count(name) > 1}):
        raise GuardRefused(
            f"two of the tables are called {', '.join(twice)}, and they come into one schema",
            hint="bring them back one after the other",
        )
    return found


def _tables(session: Session, manifest: Manifest) -> dict[str, Asked]:
    """Every table that has rows in the backup, itself or by its partitions; by its quoted name."""
    rows = session.rows(
        """
        SELECT c.oid::regclass::text AS name, c.relname AS bare, c.relkind = 'p' AS partitioned,
               ARRAY(SELECT t.relid::text FROM pg_partition_tree(c.oid) t WHERE t.isleaf) AS leaves
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
        """
    )
    dumped = manifest.content.tables
    there = {}
    for row in rows:
        parts = [row["name"]] if row["name"] in dumped else [leaf for leaf in row["leaves"] if leaf in dumped]
        if parts:
            there[row["name"]] = Asked(row["name"], row["bare"], tuple(parts), row["partitioned"])
    return there


def _one(there: dict[str, Asked], manifest: Manifest, wanted: str) -> Asked:
    plain = {name.replace('"', ""): asked for name, asked in there.items()}
    if asked := there.get(wanted) or plain.get(wanted):
        return asked
    close = get_close_matches(wanted, [*plain], 3)
    like = [*close, *sorted(plain.keys() - {*close})]
    more = f" and {len(like) - _MOST_NAMED} more" if len(like) > _MOST_NAMED else ""
    raise BackupNotFound(
        f"{manifest.backup} has no table {wanted}",
        hint=f"give it as schema.name: there are {', '.join(like[:_MOST_NAMED])}{more}. Where it was dropped"
        " before this backup, an older one has it: --as-of TIME, or an id of backup-dag list",
    )
