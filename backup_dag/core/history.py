"""How long restores took here, one JSON document a line, for the next plan's estimate."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backup_dag.core.errors import DiskError

_FILE = ".restores.jsonl"


def record(backup_dir: Path, **said: Any) -> None:
    """Adds a line. Raises DiskError."""
    line = json.dumps({"time": datetime.now(UTC).isoformat(), **said}, default=str)
    try:
        with (backup_dir / _FILE).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    except OSError as error:
        raise DiskError(
            f"writing {backup_dir / _FILE} failed: {error.strerror}", hint="make BACKUP_DIR writable"
        ) from error


def last_seconds(backup_dir: Path, database: str) -> dict[str, float]:
    """Seconds by step of this database's last finished restore; empty where there was none."""
    lines: list[str] = []
    with suppress(OSError):
        lines = (backup_dir / _FILE).read_text(encoding="utf-8").splitlines()
    for line in reversed(lines):
        with suppress(ValueError, AttributeError):
            said = json.loads(line)
            if said.get("what") == "restore" and said.get("database") == database:
                return {str(step): float(seconds) for step, seconds in said["seconds"].items()}
    return {}
