"""Backups without a database, dated by us, in stores of ours: what the tests of cleanup start from."""

import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from backup_dag.core.manifest import Check, Level, Manifest, Reason, Verification
from backup_dag.core.publish import publish
from backup_dag.core.store.base import Store
from tests.core.made import lay_out, manifest

NOW = datetime.now(UTC).replace(microsecond=0)
LONG_AGO = timedelta(days=3)


def made(
    days: float, *, name: str = "orders", reason: Reason = "scheduled", dump: int = 1000, system: str = "7"
) -> Manifest:
    """A backup of so many days ago."""
    found = manifest(name, NOW - timedelta(days=days))
    return found.model_copy(
        update={
            "reason": reason,
            "dump": found.dump.model_copy(update={"bytes": dump}),
            "server": found.server.model_copy(update={"system_identifier": system}),
        }
    )


def checked(of: Manifest, level: Level = "content", faults: Iterable[str] = ()) -> str:
    """The record of a check of it."""
    check = Check(level=level, time=NOW, seconds=1, made_by="tests", faults=list(faults))
    return Verification(backup=of.backup).with_check(check).to_json()


def put(
    store: Store, work: Path, of: Manifest, level: Level | None = None, faults: Iterable[str] = ()
) -> Manifest:
    """Publishes a backup, and the record of its check if there was one."""
    publish(store, lay_out(work, of), work)
    if level:
        store.put_note(of.id.file("verify.json"), checked(of, level, faults))
    return of


def age(folder: Path, by: timedelta = LONG_AGO) -> None:
    """Makes every file of a folder so old."""
    for path in folder.iterdir():
        then = (NOW - by).timestamp()
        os.utime(path, (then, then))


def ids(store: Store) -> set[str]:
    """The backups whose manifests are there."""
    names = [listed.name for listed in store.list("backup_")]
    return {name.removesuffix(".json") for name in names if name.count(".") == 1 and name.endswith(".json")}


def assert_whole_or_not_there(store: Store) -> None:
    """Where a manifest is, all that it vouches for is too."""
    names = {listed.name for listed in store.list("backup_")}
    for backup in ids(store):
        needed = ("sql.gz.gpg", "globals.sql.gz.gpg", "sha256", "json")
        assert {f"{backup}.{ending}" for ending in needed} <= names
