"""What a drill found: the backup is proven, or it is not. A drill that broke has found nothing: that is an
error (`DrillBroke`), and no outcome."""

from pydantic import AwareDatetime, BaseModel, ConfigDict

from backup_dag.core.drilling.own_checks import Answer
from backup_dag.core.history import RECOVERY
from backup_dag.core.restoring.rows import Differing


class Outcome(BaseModel):
    """`faults` are why it is not proven, in words; `tables` those of them that are about a table's rows.

    `seconds` are those of a recovery, step by step: each second counts once, for what was waited for. Where
    the backup is not proven they end with the step that found it out. `server` says what it was restored on.
    """

    model_config = ConfigDict(frozen=True)

    backup: str
    database: str
    partition_day: str
    snapshot_time: AwareDatetime
    time: AwareDatetime
    store: str
    source: str
    tables: int
    rows: int
    dump_bytes: int
    server: str
    authentication: str
    faults: list[str]
    differing: list[Differing]
    notes: list[str]
    seconds: dict[str, float]
    answers: list[Answer]
    rto_seconds: float

    @property
    def proven(self) -> bool:
        return not self.faults

    @property
    def recovery(self) -> float:
        """Seconds from the copy to proven data."""
        return round(sum(self.seconds.get(step, 0.0) for step in RECOVERY), 3)

    @property
    def rto_met(self) -> bool | None:
        """Whether that is within the RTO. None: it came to no end."""
        return self.recovery <= self.rto_seconds if self.proven else None

    @property
    def failed_answers(self) -> list[Answer]:
        """Those of the user's own checks that did not pass."""
        return [answer for answer in self.answers if not answer.passed]

    def document(self) -> dict[str, object]:
        """All of it, for programs."""
        said = self.model_dump(mode="json")
        return {
            "outcome": "proven" if self.proven else "not proven",
            **said,
            "recovery_seconds": self.recovery,
        }
