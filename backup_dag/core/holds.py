"""A hold: a note beside a backup that it is in use, so that cleanup passes it over."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

from backup_dag.core.errors import BackupDagError
from backup_dag.core.manifest import BackupId
from backup_dag.core.store.base import Store

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
    """Whether someone holds it. A hold whose holder died ends by itself, after two days."""
    for listed in list(store.list(backup.file(f"{_ENDING}-"))):
        with suppress(BackupDagError, ValueError, KeyError, TypeError):
            if datetime.fromisoformat(json.loads(store.read(listed.name))["until"]) > datetime.now(UTC):
                return True
    return False
