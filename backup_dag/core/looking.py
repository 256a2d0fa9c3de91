"""Connections, and what a server says of the sessions that we wait for: that it works, waits, or is gone."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extras import RealDictCursor

from backup_dag.core.address import Address
from backup_dag.core.errors import DatabaseUnreachable
from backup_dag.core.in_words import length
from backup_dag.core.stall import Look, allowed, within

_SECONDS_TO_LOOK = 10.0  # in which a server that works on something can say so
_LOOKS, _SECONDS_BETWEEN_LOOKS = 5, 0.2
_OTHER_DATABASES = ("postgres", "template1")

NOT_ANSWERING = "the server does not answer"
"""What is said of one that a look got no answer from."""


_DISK_FULL = ("No space left on device", "could not extend file", "Disk full")


def connection_to(address: Address, seconds: float, **changed: str) -> Connection:
    """A connection in autocommit mode, if it comes to be in so many seconds. Raises DatabaseUnreachable."""
    password = address.parts.get("password")
    try:
        made = within(seconds, lambda: psycopg2.connect(address.for_argv(**changed), password=password))
    except (psycopg2.Error, TimeoutError) as error:
        why = first_line(error) if isinstance(error, psycopg2.Error) else f"no answer for {length(seconds)}"
        raise DatabaseUnreachable(
            f"connecting to {address} failed: {why}",
            hint=advice(why)
            or "check that the server runs and is reachable from here, and the user, password and"
            " database name in its url",
        ) from error
    made.autocommit = True
    return made


def look_at(address: Address, which: str) -> Look:
    """What a server says of sessions of ours, asked by another one: those that `which`, a condition on
    pg_stat_activity, holds of. They work where one of them does that waits neither for us nor for a lock."""
    try:
        return within(min(_SECONDS_TO_LOOK, max(5.0, allowed())), lambda: _looked_at(address, which))
    except (DatabaseUnreachable, psycopg2.Error, TimeoutError) as error:
        why = "" if isinstance(error, TimeoutError) else f": {next(iter(str(error).splitlines()))}"
        return Look(False, f"{NOT_ANSWERING}{why}")


def _looked_at(address: Address, which: str) -> Look:
    """Looks a few times: between two statements, or two rows, any session waits for us."""
    with _anywhere_on(address) as connection:
        first = rows = _activity(connection, which)
        for _ in range(_LOOKS):
            if any(row["works"] for row in rows) or _how_far(rows) != _how_far(first):
                return Look(True, "the server says that it still works on it", _how_far(rows))
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            rows = _activity(connection, which)
    if held := next((row for row in rows if row["locked"]), None):
        return Look(False, f"it waits for a lock{_held_by(held)}")
    if rows:
        return Look(False, "the server has done its part and waits for ours: nothing comes through between")
    return Look(False, "the server knows nothing of it any more")


@contextmanager
def _anywhere_on(address: Address) -> Iterator[Connection]:
    """A connection to whatever database of a server lets us in. Raises DatabaseUnreachable."""
    names = (address.dbname, *_OTHER_DATABASES)
    for name in names:
        try:
            connection = connection_to(address.at(name), _SECONDS_TO_LOOK, connect_timeout="5")
        except DatabaseUnreachable:
            if name == names[-1]:
                raise
            continue
        with closing(connection):
            yield connection
        return


def cancel(address: Address, pid: int) -> None:
    """Has a server give up what one of its sessions asks for."""
    with _anywhere_on(address) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_catalog.pg_cancel_backend(%s)", (pid,))


def _activity(connection: Connection, which: str) -> list[dict[str, Any]]:
    copied = "(SELECT bytes_processed FROM pg_catalog.pg_stat_progress_copy p WHERE p.pid = a.pid)"
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(
            f"""
            SELECT a.pid, a.query_start, {copied if connection.server_version >= 140_000 else "0"} AS copied,
                   a.wait_event_type IS NOT DISTINCT FROM 'Lock' AS locked,
                   a.state NOT LIKE 'idle%' AND a.wait_event_type IS DISTINCT FROM 'Client'
                   AND a.wait_event_type IS DISTINCT FROM 'Lock' AS works,
                   b.pid AS by, b.usename AS whose, b.state AS doing
            FROM pg_catalog.pg_stat_activity a
                 LEFT JOIN pg_catalog.pg_stat_activity b
                 ON b.pid = (pg_catalog.pg_blocking_pids(a.pid))[1]
            WHERE a.{which} ORDER BY a.pid
            """
        )
        return [dict(row) for row in cursor.fetchall()]


def _how_far(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple((row["pid"], row["query_start"], row["copied"]) for row in rows)


def _held_by(row: Mapping[str, Any]) -> str:
    if row["by"] is None:
        return ""
    doing = f", {row['doing']}" if row["doing"] else ""
    return f" that server process {row['by']} holds (user {row['whose']}{doing})"


def stood_still(doing: str, how: str) -> DatabaseUnreachable:
    """The error for what stood still at a server; trying again may help."""
    if NOT_ANSWERING in how:
        hint = "see whether the server and the network to it stand still; then try again"
    elif "waits for a lock" in how:
        hint = "see what that session does (pg_stat_activity), end it or wait for it; then try again"
    else:
        hint = "try again; where it honestly takes longer than that, raise BACKUP_STALL_SECONDS"
    return DatabaseUnreachable(f"{doing} failed: {how}", hint=hint)


def advice(said: str) -> str:
    """What to do about words of a server's that come wherever its own disk is full; else nothing."""
    full = any(each in said for each in _DISK_FULL)
    return "the server's own disk is full: make room there, then run it again" if full else ""


def first_line(error: psycopg2.Error) -> str:
    """Of what the server said."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
