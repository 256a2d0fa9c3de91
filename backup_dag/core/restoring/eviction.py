"""Ends the sessions in a database, for as long as nobody may be in it."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from backup_dag.core.errors import DatabaseError
from backup_dag.core.postgres import Session
from backup_dag.core.sql import literal


@contextmanager
def sessions_ended(session: Session, databases: Sequence[str], but: Sequence[int] = ()) -> Iterator[None]:
    """While the block runs, every session in those databases that we may end is told to, and those that
    come after; but not the server processes named."""
    done, names = threading.Event(), ", ".join(map(literal, databases))
    end_them = f"""
        SELECT pg_terminate_backend(a.pid)
        FROM pg_stat_activity a LEFT JOIN pg_roles theirs ON theirs.oid = a.usesysid, pg_roles ours
        WHERE a.datname IN ({names}) AND ours.rolname = current_user
          AND (ours.rolsuper OR NOT theirs.rolsuper AND (pg_has_role(theirs.oid, 'USAGE')
                                                         OR pg_has_role('pg_signal_backend', 'USAGE')))
          AND NOT a.pid = ANY (ARRAY[{", ".join(map(str, but))}]::int[])
    """

    def end() -> None:
        with suppress(DatabaseError):
            while True:
                session.rows(end_them)
                if done.wait(0.05):
                    return

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
