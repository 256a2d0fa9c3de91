"""One line of the doctor's: what was looked at, what was found, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

from backup_dag.core.errors import BackupDagError


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's. `exit_code` is 0 unless the verdict is fail."""

    verdict: Literal["ok", "warn", "fail"]
    what: str
    found: str
    advice: str = ""
    exit_code: int = 0


def ok(what: str, found: str) -> Finding:
    return Finding("ok", what, found)


def warn(what: str, found: str, advice: str) -> Finding:
    return Finding("warn", what, found, advice)


def failed(what: str, error: BackupDagError) -> Finding:
    return Finding("fail", what, error.message, error.hint, error.exit_code)
