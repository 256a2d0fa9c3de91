"""What a cleanup did, or would do: typed, in lines for people, and as a document for programs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from backup_dag.core.errors import BackupDagError, GuardRefused
from backup_dag.core.in_words import size
from backup_dag.core.manifest import BackupId
from backup_dag.core.store.base import FOREVER, Upload

Fate = Literal["stays", "locked", "goes"]


@dataclass
class Judged:
    """A copy, or what is left of one: `reasons` are in words. It goes unless something refused; `removed`
    once it is gone. `locked`: it would go, but the store protects it until `locked_until`."""

    id: BackupId
    fate: Fate
    reasons: tuple[str, ...]
    bytes: int
    locked_until: datetime | None = None
    removed: bool = False

    def document(self) -> dict[str, Any]:
        until = self.locked_until
        return {
            "backup": str(self.id),
            "fate": self.fate,
            "reasons": list(self.reasons),
            "bytes": self.bytes,
            "locked_until": "forever" if until == FOREVER else until and until.isoformat(),
            "removed": self.removed,
        }


@dataclass
class Cleaned:
    """One database in one store. `refused`: nothing was removed, by a guard; `failed`: nothing further
    was, since the store failed. `uploads` are dead; `holds` are backups that have some, maybe of the dead.
    `remarks` are for people."""

    database: str
    store: str
    place: str
    judged: list[Judged]
    orphans: list[Judged]
    uploads: list[Upload] = field(default_factory=list)
    holds: list[BackupId] = field(default_factory=list)
    refused: GuardRefused | None = None
    failed: BackupDagError | None = None
    remarks: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[Judged]:
        return [*self.judged, *self.orphans]

    @property
    def going(self) -> list[Judged]:
        return [each for each in self.all if each.fate == "goes"]

    def lines(self) -> Iterator[str]:
        """The calendar: what stays, what goes, and why. The same before and after."""
        count = {fate: sum(each.fate == fate for each in self.all) for fate in ("stays", "locked", "goes")}
        said = [f"{count['stays']} stay", *([f"{count['locked']} locked"] if count["locked"] else [])]
        would = "would go" if self.refused else "go"
        freed = sum(each.bytes for each in self.going)
        yield f"{self.database} in {self.place}: {', '.join(said)}, {count['goes']} {would} ({size(freed)})"
        if self.refused:
            yield f"  nothing is removed: {self.refused.message}"
        for each in self.all:
            fate = "would go" if self.refused and each.fate == "goes" else each.fate
            yield f"  {fate:<6}  {each.id}  {'; '.join(each.reasons)}"
        for upload in self.uploads:
            yield f"  goes    unfinished upload of {upload.name}, begun {upload.begun:%Y-%m-%d %H:%M} UTC"
        for remark in self.remarks:
            yield f"  {remark}"
        if self.failed:
            yield f"  not all of that was removed: {self.failed.message}"

    def document(self) -> dict[str, Any]:
        return {
            "database": self.database,
            "store": self.store,
            "address": self.place,
            "backups": [each.document() for each in self.judged],
            "orphans": [each.document() for each in self.orphans],
            "uploads": [{"name": each.name, "begun": each.begun.isoformat()} for each in self.uploads],
            "refused": _error(self.refused),
            "failed": _error(self.failed),
            "remarks": self.remarks,
        }


@dataclass
class Report:
    """One run. `foreign` counts the backups of databases that are not configured, `failed` says which
    databases could not be looked at."""

    dry_run: bool
    cleaned: list[Cleaned] = field(default_factory=list)
    foreign: dict[str, int] = field(default_factory=dict)
    failed: dict[str, BackupDagError] = field(default_factory=dict)

    @property
    def removed(self) -> list[Judged]:
        return [each for cleaned in self.cleaned for each in cleaned.all if each.removed]

    @property
    def freed(self) -> int:
        """Bytes. A bucket that keeps versions keeps these too, until its lifecycle rule ends them."""
        return sum(each.bytes for each in self.removed)

    @property
    def errors(self) -> list[BackupDagError]:
        """Everything that kept it from what it was to do, failures before refusals."""
        failed = [*self.failed.values(), *(each.failed for each in self.cleaned if each.failed)]
        return [*failed, *(each.refused for each in self.cleaned if each.refused)]

    def lines(self) -> Iterator[str]:
        for cleaned in self.cleaned:
            yield from cleaned.lines()
        for database, error in self.failed.items():
            yield f"{database}: nothing is removed: {error.message}"
        for database, count in sorted(self.foreign.items()):
            yield f"left alone: {count} of {database}, which is not configured"

    def document(self) -> dict[str, Any]:
        return {
            "dry_run": self.dry_run,
            "removed": len(self.removed),
            "freed_bytes": self.freed,
            "cleaned": [cleaned.document() for cleaned in self.cleaned],
            "failed": {database: _error(error) for database, error in self.failed.items()},
            "foreign": self.foreign,
        }


def _error(error: BackupDagError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
