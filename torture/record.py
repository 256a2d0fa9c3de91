"""What Dagster's record says of a run, held against what is there; and that no secret is in it.

Asked when the run's worker has ended and Dagster has judged that, before any other run: whatever the record
says was made must be there then, and whole.
"""

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus, EventLogEntry

from torture.world import BUCKET, DATABASE, KEY, MARKER, PASSWORD, World

_ENDS = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)
_OURS = ("Failure", "DagsterExecutionInterruptedError")
"""How a step may fail: by an error of ours in Dagster's words, or because it was told to end."""
STAGES = ("raw_dump", "compressed_artifact", "encrypted_artifact", "checksum")
_OF_THE_STAGE = {
    "raw_dump": "dump",
    "compressed_artifact": "compressed",
    "encrypted_artifact": "artifact",
    "checksum": "artifact",
}


def belied(world: World, instance: DagsterInstance, run: DagsterRun) -> Iterator[str]:
    """What the record says and is not so."""
    said = f"the run of {run.job_name}"
    if run.status not in _ENDS:
        yield f"{said} stays {run.status.value}"
    logs = instance.all_logs(run.run_id)
    stores = _stores(world)
    for name, values in _materialized(logs):
        yield from (f"{said} materialized {name}: {each}" for each in _of_an_asset(stores, name, values))
    for name, values in _passed(logs):
        yield from (f"{said} passed {name}: {each}" for each in _of_a_check(stores, name, values))
    for entry in logs:
        if entry.dagster_event_type == DagsterEventType.STEP_FAILURE:
            error = entry.get_dagster_event().step_failure_data.error
            if error is None or error.cls_name not in _OURS:
                yield f"{said} failed by no error of ours: {error.message if error else 'none'}"
    if run.status == DagsterRunStatus.SUCCESS:
        yield from (f"{said} succeeded: {each}" for each in _SUCCEEDED[run.job_name](world, logs))


def newest(world: World) -> dict[str, Any]:
    """The manifest of the folder's newest backup."""
    paths = [path for path in world.backups.glob("backup_*.json") if path.name.count(".") == 1]
    return max((json.loads(path.read_text()) for path in paths), key=lambda each: str(each["snapshot_time"]))


Store = Callable[[str], bytes | None]


def _stores(world: World) -> dict[str, Store]:
    """Each store as a function: what a file of that name holds there, None where there is none."""

    def folder(name: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return (world.backups / name).read_bytes()
        return None

    def bucket(name: str) -> bytes | None:
        with suppress(world.client.exceptions.NoSuchKey):
            return bytes(world.client.get_object(Bucket=BUCKET, Key=name)["Body"].read())
        return None

    return {"the folder": folder, "the bucket": bucket}


def _materialized(
    logs: Sequence[EventLogEntry],
) -> Iterator[tuple[str, dict[str, Any]]]:
    for entry in logs:
        made = entry.asset_materialization
        if made is not None:
            yield made.asset_key.path[-1], {key: value.value for key, value in made.metadata.items()}


def _passed(logs: Sequence[EventLogEntry]) -> Iterator[tuple[str, dict[str, Any]]]:
    for entry in logs:
        if entry.dagster_event_type == DagsterEventType.ASSET_CHECK_EVALUATION:
            found = entry.get_dagster_event().asset_check_evaluation_data
            if found.passed:
                yield found.check_name, {key: value.value for key, value in found.metadata.items()}


def _of_an_asset(stores: dict[str, Store], name: str, values: dict[str, Any]) -> Iterator[str]:
    backup = values["backup"]
    if name == "restore_drill":
        proven = values["outcome"] == "proven"
        if proven and not any(_checked(store, backup, "restore") for store in stores.values()):
            yield "that it is proven is recorded beside no copy"
        return
    where = "the bucket" if name == "s3_copy" else "the folder"
    store = stores[where]
    content = store(f"{backup}.json")
    if content is None:
        yield f"{backup} has no manifest in {where}"
        return
    manifest = json.loads(content)
    artifact = store(manifest["artifact"]["name"])
    if artifact is None or hashlib.sha256(artifact).hexdigest() != manifest["artifact"]["sha256"]:
        yield f"the artifact of {backup} in {where} is not what its manifest says"
    if values["sha256"] != manifest[_OF_THE_STAGE.get(name, "artifact")]["sha256"]:
        yield f"its SHA-256 is not that of {backup}'s manifest"


def _of_a_check(stores: dict[str, Store], name: str, values: dict[str, Any]) -> Iterator[str]:
    """A check of a copy is recorded beside that copy too. A drill takes whichever copy is nearest."""
    backup = values.get("backup", "")
    folder, bucket = stores["the folder"], stores["the bucket"]
    recorded = {
        "checksum_matches": ("checksum", [folder]),
        "content_verified": ("content", [bucket]),
        "restore_proven": ("restore", [folder, bucket]),
    }
    if name in recorded:
        level, copies = recorded[name]
        if not any(_checked(store, backup, level, values.get("checked")) for store in copies):
            yield f"no such check of {backup} that passed is recorded beside it"
    if name == "present_and_equal":
        for ending in ("json", "sha256"):
            if bucket(f"{backup}.{ending}") is None:
                yield f"{backup}.{ending} is not in the bucket"


def _checked(store: Store, backup: str, level: str, at: str | None = None) -> bool:
    """Whether a check of a copy that passed is recorded beside it: the one of that time, if one is given."""
    content = store(f"{backup}.verify.json")
    check = json.loads(content)["checks"].get(level) if content else None
    if check is None or check["faults"]:
        return False
    if at is None:
        return True
    return datetime.fromisoformat(check["time"]) == datetime.fromisoformat(at)


def _backed_up(world: World, logs: Sequence[EventLogEntry]) -> Iterator[str]:
    made = [name for name, _ in _materialized(logs)]
    for name in (*STAGES, "s3_copy"):
        if made.count(name) != 1:
            yield f"{name} was materialized {made.count(name)} times"


def _verified(world: World, logs: Sequence[EventLogEntry]) -> Iterator[str]:
    if "content_verified" not in [name for name, _ in _passed(logs)]:
        yield "nothing was verified"


def _drilled(world: World, logs: Sequence[EventLogEntry]) -> Iterator[str]:
    if "restore_proven" not in [name for name, _ in _passed(logs)]:
        yield "nothing was proven"


def _restored(world: World, logs: Sequence[EventLogEntry]) -> Iterator[str]:
    if world.content() != world.past:
        yield "the database is not what was backed up"


def _cleaned(world: World, logs: Sequence[EventLogEntry]) -> Iterator[str]:
    oldest = min(path.name.split(".")[0] for path in (world.folder / "first").glob("backup_*.json"))
    there = [*world.objects(), *(path.name for path in world.backups.iterdir())]
    yield from (f"{name} is still there" for name in there if name.startswith(oldest))


_SUCCEEDED: dict[str, Callable[[World, Sequence[EventLogEntry]], Iterator[str]]] = {
    f"{DATABASE}_backup": _backed_up,
    f"{DATABASE}_verify": _verified,
    f"{DATABASE}_drill": _drilled,
    "restore": _restored,
    "cleanup": _cleaned,
}


def told(world: World, home: Path) -> Iterator[str]:
    """Secrets, and rows, in any file of Dagster's: its databases, what workers said, what is packed there."""
    access = world.s3.environment()["AWS_SECRET_ACCESS_KEY"]
    secrets = {
        "the passphrase": (KEY,),
        "a password": (PASSWORD, quote(PASSWORD, safe="")),
        "the bucket's key": (access,),
        "a row": (MARKER,),
    }
    for path in home.rglob("*"):
        if not path.is_file():
            continue
        contents = [path.read_bytes(), *(_unpacked(path) if path.suffix == ".db" else ())]
        for name, spellings in secrets.items():
            if any(each.encode() in content for each in spellings for content in contents):
                yield f"Dagster's {path.relative_to(home)} holds {name}"


def _unpacked(path: Path) -> Iterator[bytes]:
    """What a database of Dagster's holds in compressed form: descriptions of jobs and plans."""
    with closing(sqlite3.connect(path)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in names:
            for row in connection.execute(f'SELECT * FROM "{name}"'):
                for value in row:
                    if isinstance(value, bytes):
                        with suppress(zlib.error):
                            yield zlib.decompress(value)
