"""Where one stands, as a document: of each database the newest backups against the targets, and how many, how
far, how sure. `stocktaking` finds it out, `page` says it, `picture` draws it.
"""

from datetime import date

from pydantic import AwareDatetime, BaseModel, ConfigDict

from backup_dag.core import history
from backup_dag.core.manifest import Encryption
from backup_dag.core.watching import strip
from backup_dag.core.watching.places import Place, Verdict


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True)


class Aged(_Document):
    """A backup and how old its snapshot is."""

    backup: str
    snapshot_time: AwareDatetime
    age_seconds: float


class Recovery(_Document):
    """A restore or a drill that came to its end here: how long the data took to be back and proven."""

    what: history.What
    backup: str
    time: AwareDatetime
    seconds: float
    steps: dict[str, float]


class DatabasePosture(_Document):
    """One database. None is what is not known, since a store did not answer or nothing was ever measured.

    `places` are those of the newest good backup and of the database itself; `calendar` has a sign for each
    day up to `last_day` (see strip). `retained` and `proven` count backups of nights; `unencrypted` all;
    `unopened` the good ones that no passphrase opens which is set here.
    """

    database: str
    newest_good: Aged | None
    newest_proven: Aged | None
    dated_ahead: int
    last_recovery: Recovery | None
    recoveries: list[Recovery]
    places: list[Place]
    retained: int | None
    proven: int | None
    proven_percent: float | None
    days_missing: list[date] | None
    window_days: int
    calendar: str
    last_day: date
    encryption: Encryption | None
    unencrypted: int | None
    unopened: int
    locked_until: AwareDatetime | None
    not_asked: list[str]
    verdicts: dict[str, Verdict]

    @property
    def strip(self) -> str:
        """The last thirty days."""
        return self.calendar[-strip.DAYS :]


class Posture(_Document):
    """All databases at one time. `away`: the stores that did not answer, and why; `faults`: what is wrong
    with the configuration, by database."""

    made: AwareDatetime
    rpo_target_seconds: float
    rto_target_seconds: float
    databases: list[DatabasePosture]
    away: dict[str, str]
    faults: dict[str, str]
