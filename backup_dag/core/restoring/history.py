"""How long restores took here, one JSON document a line, for the next plan's estimate."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backup_dag.core import journal
from backup_dag.core.errors import DiskError

_FILE = ".restores.jsonl"


def record(backup_dir: Path, **said: Any) -> None:
    """Adds a line. One that cannot be written is said, and fails nothing: what it is about is done."""
    journal.append(backup_dir / _FILE, {"time": datetime.now(UTC).isoformat(), **said})


def last_seconds(backup_dir: Path, database: str) -> dict[str, float]:
    """Seconds by step of this database's last finished restore; empty where there was none."""
    last: dict[str, float] = {}
    with suppress(DiskError):
        for said in journal.read(backup_dir / _FILE):
            with suppress(ValueError, TypeError, KeyError, AttributeError):
                if said["what"] == "restore" and said["database"] == database:
                    last = {str(step): float(seconds) for step, seconds in said["seconds"].items()}
    return last
