"""A hold: a note beside a backup that it is in use, so that cleanup passes it over."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

from backup_dag.core.errors import BackupDagError, BackupNotFound
from backup_dag.core.manifest import BackupId
from backup_dag.core.store.base import Listed, Store

_HOURS = 48
_ENDING = "hold"


@contextmanager
def held(store: Store, backup: BackupId) -> Iterator[None]:
    """Holds a backup while the block runs. Where the store may only be read, it goes on without."""
    host, now = socket.gethostname(), datetime.now(UTC)
    name = backup.file(f"{_ENDING}-{os.getpid()}-{now:%H%M%S%f}.json")
    said = {"host": host, "since": now.isoformat(), "until": (now + timedelta(hours=_HOURS)).isoformat()}
    with suppress(BackupDagError):
        store.put_note(name, json.dumps(said) + "\n")
    try:
        yield
    finally:
        with suppress(BackupDagError):
            store.remove(name)


def is_held(store: Store, backup: BackupId) -> bool:
    """Whether someone holds it. A hold whose holder died ends by itself, after two days.

    Raises what the store raises: a hold that cannot be read now may be one.
    """
    now = datetime.now(UTC)
    return any(_end(store, listed) > now for listed in list(store.list(backup.file(f"{_ENDING}-"))))


def _end(store: Store, hold: Listed) -> datetime:
    """When a hold ends; one that is not as we write them, as if it had been made when its file was."""
    try:
        end = datetime.fromisoformat(json.loads(store.read(hold.name))["until"])
        return end if end.tzinfo else end.replace(tzinfo=UTC)
    except BackupNotFound:  # let go of meanwhile
        return datetime.min.replace(tzinfo=UTC)
    except (ValueError, KeyError, TypeError, RecursionError):
        return hold.modified + timedelta(hours=_HOURS)
