"""One thing that is wrong with the backups of a database, or of all: what it is, and what to do."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from backup_dag.core.watching.alerts import Kind


@dataclass(frozen=True)
class Concern:
    """One thing that is wrong. Two of the same `key` are the same one, seen twice.

    `patience` is how long it must have been so before anyone is told of it. `backup` is the id of the one
    that it is about, if it is about one. `database` is None where it concerns all of them.
    """

    kind: Kind
    database: str | None
    about: str
    happened: str
    since: datetime
    advice: str
    patience: timedelta = timedelta()
    backup: str = ""

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.database or ''}/{self.about}"

    @property
    def may_end(self) -> bool:
        """Whether it can become well again. A night that is lost stays lost."""
        return self.kind != "missed"
