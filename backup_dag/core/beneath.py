"""What can change beneath a dump although it reads one snapshot, and would be missing without a word.

A snapshot does not hide everything (PostgreSQL's manual, "Caveats" of concurrency control). A table that is
emptied by TRUNCATE, rewritten by ALTER TABLE, or dropped and made again, once the snapshot is taken and
before pg_dump has its lock, holds other rows for it, or none. And what a definition says pg_dump asks the
server for as it is now: of a function, an index or a trigger that was dropped meanwhile it gets none, and
leaves it out, or writes what nobody can load.

pg_dump gives its first byte once it has all its locks and all definitions, in either format. So whoever looks
right then sees all of it, and nothing that comes later matters. What was only moved (VACUUM FULL, CLUSTER) in
that moment cannot be told from what was emptied, and counts as changed: it takes another try, and no more.
"""

import time
from collections.abc import Callable

from backup_dag.core.errors import ChangedBeneath
from backup_dag.core.postgres import Session

_FIRST_OID = 16384  # of what is not PostgreSQL's own (FirstNormalObjectId in access/transam.h)
_MOST_NAMED = 5
_SECONDS_TO_END = 0.2

_CHANGED = f"""
    WITH locked AS (
        SELECT l.relation FROM pg_locks l
        WHERE l.locktype = 'relation' AND l.granted AND l.mode = 'AccessShareLock'
          AND l.pid <> pg_backend_pid()
          AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    ), members AS (
        SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
    ), lasting AS (
        SELECT oid AS namespace, nspname FROM pg_namespace WHERE nspname !~ '^pg_temp'
    ), tables AS (
        SELECT c.oid, c.relkind, c.relfilenode, format('%I.%I', nspname, c.relname) AS name
        FROM pg_class c JOIN lasting ON namespace = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'm') AND c.oid >= {_FIRST_OID}
    ), seen AS (
        SELECT t.*, t.oid IN (SELECT relation FROM locked)
                 OR to_regclass(t.name) IN (SELECT relation FROM locked) AS dumped
        FROM tables t
    )
    SELECT 'table ' || name AS what, dumped FROM seen
    WHERE relkind = 'r' AND relfilenode IS DISTINCT FROM pg_relation_filenode(oid)
    UNION ALL
    SELECT format('index %I of %s', c.relname, name), dumped
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN seen ON seen.oid = i.indrelid
    WHERE pg_get_indexdef(i.indexrelid) IS NULL
    UNION ALL
    SELECT format('trigger %I of %s', g.tgname, name), dumped
    FROM pg_trigger g JOIN seen ON seen.oid = g.tgrelid
    WHERE NOT g.tgisinternal AND pg_get_triggerdef(g.oid) IS NULL
    UNION ALL
    SELECT format('statistics %I.%I', nspname, x.stxname), true
    FROM pg_statistic_ext x JOIN lasting ON namespace = x.stxnamespace
    WHERE pg_get_statisticsobjdef(x.oid) IS NULL
    UNION ALL
    SELECT format('function %I.%I', nspname, p.proname), true
    FROM pg_proc p JOIN lasting ON namespace = p.pronamespace
    WHERE p.oid >= {_FIRST_OID} AND pg_get_function_arguments(p.oid) IS NULL
      AND ('pg_proc'::regclass, p.oid) NOT IN (SELECT classid, objid FROM members)
    UNION ALL
    SELECT format('type %I.%I', nspname, y.typname), true
    FROM pg_type y JOIN lasting ON namespace = y.typnamespace
    WHERE y.oid >= {_FIRST_OID} AND y.typtype IN ('c', 'd', 'e', 'r') AND format_type(y.oid, NULL) = '???'
      AND (y.typrelid = 0 OR EXISTS (SELECT FROM pg_class c WHERE c.oid = y.typrelid AND c.relkind = 'c'))
      AND ('pg_type'::regclass, y.oid) NOT IN (SELECT classid, objid FROM members)
    ORDER BY 1
"""
"""`dumped`: others read it, as pg_dump does. What that was told to leave out may change as it likes."""


def see_that_nothing_changed(session: Session, has_ended: Callable[[], bool]) -> None:
    """To be asked in the session whose snapshot pg_dump reads, right after pg_dump's first byte. `has_ended`:
    whether pg_dump has, and its locks with it, as of a small database it may: then all counts as dumped.

    Raises:
        ChangedBeneath: something that the snapshot has would be missing, or not be as it was. DatabaseError.
    """
    found = session.rows(_CHANGED)
    locks_may_be_gone = any(not row["dumped"] for row in found) and _ends_soon(has_ended)
    if changed := [row["what"] for row in found if row["dumped"] or locks_may_be_gone]:
        more = f" and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
        raise ChangedBeneath(
            f"dumping {session.address} failed: just as it began these were changed beneath it, and would be"
            f" missing, or without their rows: {', '.join(changed[:_MOST_NAMED])}{more}",
            hint="run it again; and where some job does this every night (TRUNCATE, ALTER TABLE, DROP), have"
            " the backup begin at another time",
        )


def _ends_soon(has_ended: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _SECONDS_TO_END
    while not (ended := has_ended()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return ended
