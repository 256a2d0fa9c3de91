"""A hold: a note beside a backup that it is in use, so that cleanup passes it over."""

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from backup_dag.core.errors import BackupDagError, BackupNotFound, StoreError
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
    try:
        with suppress(BackupDagError):
            store.put_note(name, json.dumps(said) + "\n")
        yield
    finally:
        with suppress(BackupDagError):
            store.remove(name)


def may_let_go(store: Store, backup: BackupId) -> bool:
    """Whether this user may remove what lies beside a backup, tried out with a hold. Raises what the store
    raises in all else."""
    name, end = backup.file(f"{_ENDING}-{os.getpid()}-0.json"), datetime.now(UTC)
    store.put_note(name, json.dumps({"host": socket.gethostname(), "until": end.isoformat()}) + "\n")
    try:
        store.remove(name)
    except StoreError as error:
        if error.retryable:
            raise
        return False
    return True


def held_by_another(store: Store, backup: BackupId) -> bool:
    """Whether someone else than this process holds it; a process of this host that has ended does not.

    Raises as `is_held`.
    """
    now = datetime.now(UTC)
    holds = [hold for hold in list(store.list(backup.file(f"{_ENDING}-"))) if _end(store, hold) > now]
    return any(not (_is_ours(store, hold) or _is_dead(store, hold)) for hold in holds)


def is_hold(backup: BackupId, name: str) -> bool:
    """Whether a file is a hold of that backup, by its name."""
    return name.startswith(backup.file(f"{_ENDING}-"))


def sweep_holds(store: Store, backup: BackupId) -> None:
    """Takes away the holds that hold nothing any more: those that have ended, and those of this host's
    processes that were killed. Where that cannot be, they stay."""
    now = datetime.now(UTC)
    with suppress(BackupDagError):
        for hold in list(store.list(backup.file(f"{_ENDING}-"))):
            if _end(store, hold) <= now or _is_dead(store, hold):
                store.remove(hold.name)


def _is_ours(store: Store, hold: Listed) -> bool:
    return _process(hold) == os.getpid() and _is_of_this_host(store, hold)


def _is_dead(store: Store, hold: Listed) -> bool:
    return not Path(f"/proc/{_process(hold)}").exists() and _is_of_this_host(store, hold)


def _process(hold: Listed) -> int:
    """The process that holds, by the name; 1, which never ends, where the name does not tell."""
    match = re.search(rf"\.{_ENDING}-([0-9]{{1,18}})-", hold.name, re.ASCII)
    return int(match[1]) if match else 1


def _is_of_this_host(store: Store, hold: Listed) -> bool:
    with suppress(BackupNotFound, ValueError, KeyError, TypeError, RecursionError):
        return bool(json.loads(store.read(hold.name))["host"] == socket.gethostname())
    return False


def is_held(store: Store, backup: BackupId) -> bool:
    """Whether someone holds it. The hold of a process that died ends at once on its own host, and for others
    by itself, after two days.

    Raises what the store raises: a hold that cannot be read now may be one.
    """
    now = datetime.now(UTC)
    holds = list(store.list(backup.file(f"{_ENDING}-")))
    return any(_end(store, hold) > now and not _is_dead(store, hold) for hold in holds)


def _end(store: Store, hold: Listed) -> datetime:
    """When a hold ends; one that is not as we write them, as if it had been made when its file was."""
    try:
        end = datetime.fromisoformat(json.loads(store.read(hold.name))["until"])
        return end if end.tzinfo else end.replace(tzinfo=UTC)
    except BackupNotFound:  # let go of meanwhile
        return datetime.min.replace(tzinfo=UTC)
    except (ValueError, KeyError, TypeError, RecursionError):
        return hold.modified + timedelta(hours=_HOURS)
