"""What is known of a backup, as asset checks. What is decided here is only how Dagster shows it.

A check that passes over nothing is none: where there is no night before, or no copy, it says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckExecutionContext,
    AssetCheckKey,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetKey,
    asset_check,
)

from backup_dag.core.copies import Backup, Copy
from backup_dag.core.databases import Database
from backup_dag.core.drilling.outcome import Outcome
from backup_dag.core.drilling.own_checks import Answer
from backup_dag.core.errors import BackupDagError
from backup_dag.core.in_words import length
from backup_dag.core.manifest import Check, Manifest
from backup_dag.core.nights import SLACK, night
from backup_dag.core.settings import Settings
from backup_dag.core.verify import check_day, verify_latest
from backup_dag.core.watching import watch
from backup_dag.core.watching.usual import changes, gap
from backup_dag.defs.words import in_dagsters_words, progress

SIZE, ROWS, WINDOW, RPO = "size_as_usual", "rows_as_usual", "in_the_nights_window", "rpo_met"
CHECKSUM, COPY, CONTENT = "checksum_matches", "present_and_equal", "content_verified"
ALERTS = "alerts_delivered"
PROVEN, RTO = "restore_proven", "rto_met"

OF_A_DRILL = {
    PROVEN: "The backup, restored: every row, sequence, large object and the schema as they were backed up.",
    RTO: "The time from the copy to proven data against BACKUP_RTO.",
    RPO: "The age of the newest good backup against BACKUP_RPO: what a loss now would cost.",
}

_OF_THE_DUMP = {
    SIZE: "The dump's bytes against the median of the nights before.",
    ROWS: "The rows of all tables against the median of the nights before.",
    WINDOW: "The snapshot lies in the night it counts for: neither late, nor long after it was due.",
    RPO: "The time since the backup before: what a loss just before this one would have cost.",
}


@dataclass(frozen=True)
class Verdict:
    """One check's outcome, before it is a result of a step or an event from outside of one."""

    asset: AssetKey
    name: str
    passed: bool
    said: str
    warn: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def _severity(self) -> AssetCheckSeverity:
        return AssetCheckSeverity.WARN if self.warn else AssetCheckSeverity.ERROR

    def result(self) -> AssetCheckResult:
        return AssetCheckResult(
            passed=self.passed,
            asset_key=self.asset,
            check_name=self.name,
            severity=self._severity,
            description=self.said,
            metadata=self.metadata,
        )

    def evaluation(self) -> AssetCheckEvaluation:
        return AssetCheckEvaluation(
            asset_key=self.asset,
            check_name=self.name,
            passed=self.passed,
            severity=self._severity,
            description=self.said,
            metadata=self.metadata,
        )


def specs_of_the_dump(database: Database) -> list[AssetCheckSpec]:
    """The checks that a backup's own step answers, from its manifest and those before it."""
    raw_dump = AssetKey([database.name, "raw_dump"])
    return [AssetCheckSpec(name, asset=raw_dump, description=text) for name, text in _OF_THE_DUMP.items()]


def verdicts_on_the_dump(settings: Settings, made: Manifest, before: Sequence[Manifest]) -> list[Verdict]:
    """The answers to those. Warnings all of them: the backup is whole, and odd; and that it came late is past
    by now."""
    raw_dump, backup = AssetKey([made.database, "raw_dump"]), {"backup": made.backup}
    size, rows = changes(settings, made, before)
    outside = night(settings, made.partition_day).reason_outside(made.snapshot_time)
    if made.reason == "manual":
        outside = ""
    return [
        Verdict(raw_dump, SIZE, size.as_usual, str(size), True, {**backup, "percent": _finite(size.percent)}),
        Verdict(raw_dump, ROWS, rows.as_usual, str(rows), True, {**backup, "percent": _finite(rows.percent)}),
        Verdict(raw_dump, WINDOW, not outside, f"taken {outside or 'as it was meant to'}", True, backup),
        _on_the_rpo(settings, made, before),
    ]


def _on_the_rpo(settings: Settings, made: Manifest, before: Sequence[Manifest]) -> Verdict:
    asset, backup = AssetKey([made.database, "raw_dump"]), {"backup": made.backup}
    since = gap(made, before)
    if since is None:
        return Verdict(asset, RPO, True, "the first backup: there is none before it", True, backup)
    said = f"{since} after the one before ({_allowed(settings)})"
    metadata = {**backup, "hours": round(since / timedelta(hours=1), 3)}
    return Verdict(asset, RPO, since <= settings.backup_rpo + SLACK, said, True, metadata)


def _finite(percent: float) -> float:
    return round(min(percent, 1e9), 1)


def verdict_on_the_copy(manifest: Manifest, copy: Copy | None, *, here: bool = True) -> Verdict:
    """Whether the bucket holds all of it, as it is here; where it is not `here`, whether it is good."""
    asset, backup = AssetKey([manifest.database, "s3_copy"]), {"backup": manifest.backup}
    if copy is None:
        return Verdict(asset, COPY, False, f"{manifest.backup} is not in the bucket", metadata=backup)
    where = copy.store.address(manifest.artifact.name)
    if not copy.good:
        faults = copy.verdict.faults if copy.verdict else []
        why = copy.fault or f"{where} did not pass its last check: {'; '.join(faults)}"
        return Verdict(asset, COPY, False, why, metadata=backup)
    if not here:
        said = f"{where} is in the bucket, nothing here to compare it with"
        return Verdict(asset, COPY, True, said, metadata=backup)
    if copy.manifest != manifest and copy.manifest and copy.manifest.is_same_backup(manifest):
        said = f"{where} is what it is here, under another passphrase"
        return Verdict(asset, COPY, True, said, metadata=backup)
    if copy.manifest != manifest:
        said = f"{where} is whole, and not what is here: another backup of the same name?"
        return Verdict(asset, COPY, False, said, metadata=backup)
    return Verdict(asset, COPY, True, f"{where} is what it is here", metadata=backup)


def verified_asset(settings: Settings, database: str) -> AssetKey:
    """On which asset `content_verified` stands: the off-site copy where there is one."""
    return AssetKey([database, "s3_copy" if settings.aws_s3_bucket else "checksum"])


def content_verified_key(settings: Settings, database: Database) -> AssetCheckKey:
    return AssetCheckKey(verified_asset(settings, database.name), CONTENT)


def alerts_key(database: Database) -> AssetCheckKey:
    return AssetCheckKey(AssetKey([database.name, "database"]), ALERTS)


def verdict_on_check(asset: AssetKey, name: str, backup: str, where: str, check: Check) -> Verdict:
    """A check of a copy that was made, now or before."""
    what = "byte" if name == CHECKSUM else "digest"
    said = "; ".join(check.faults) or f"{where}: every {what} as promised"
    metadata = {"level": check.level, "seconds": check.seconds, "checked": check.time.isoformat()}
    return Verdict(asset, name, check.passed, said, metadata={"backup": backup, **metadata})


def verdicts_on_record(settings: Settings, backup: Backup) -> list[Verdict]:
    """What checks recorded beside the copies say, of a backup that Dagster did not see being checked."""
    found = []
    for copy in backup.copies:
        if copy.manifest is None or copy.verification is None:
            continue
        off_site = copy.store.label == "s3"
        asset = AssetKey([backup.id.database, "s3_copy" if off_site else "checksum"])
        where, made = copy.store.address(copy.manifest.artifact.name), copy.verification.checks
        proof, drilled = made.get("restore"), AssetKey([backup.id.database, "restore_drill"])
        if proof:
            found.append(verdict_on_check(drilled, PROVEN, str(backup.id), where, proof))
        deepest = made.get("content") or proof
        if deepest and asset == verified_asset(settings, backup.id.database):
            found.append(verdict_on_check(asset, CONTENT, str(backup.id), where, deepest))
        if "checksum" in made and not off_site:
            found.append(verdict_on_check(asset, CHECKSUM, str(backup.id), where, made["checksum"]))
    return found


def _allowed(settings: Settings) -> str:
    return f"RPO {length(settings.backup_rpo)}, and {length(SLACK)} for the night itself"


def verdicts_on_a_drill(
    settings: Settings, found: Outcome, newest: Manifest, own: Sequence[str]
) -> list[Verdict]:
    """What a drill that came to its end says; `own` are the user's checks that Dagster knows of."""
    asset, backup = AssetKey([found.database, "restore_drill"]), {"backup": found.backup}
    said = (
        "; ".join(found.faults) or f"{found.rows:,} rows in {found.tables:,} tables, as they were backed up"
    )
    took = {**backup, "seconds": found.recovery}
    checked = {**took, "level": "restore", "checked": found.time.isoformat()}
    against = f"recovered in {length(found.recovery)} (RTO {length(settings.backup_rto)})"
    if found.rto_met is None:
        against = "there is no time of recovery, since it is not proven"
    age = found.time - newest.snapshot_time
    old = f"{newest.backup} is {length(age)} old ({_allowed(settings)})"
    answers = {answer.name: answer for answer in found.answers}
    return [
        Verdict(asset, PROVEN, found.proven, said, metadata=checked),
        Verdict(asset, RTO, bool(found.rto_met), against, True, took),
        Verdict(asset, RPO, age <= settings.backup_rpo + SLACK, old, True, backup),
        *(_on_answer(asset, name, answers.get(name), backup) for name in own),
    ]


def _on_answer(asset: AssetKey, name: str, answer: Answer | None, backup: Mapping[str, Any]) -> Verdict:
    if answer is None:  # a warning: what is wrong is said elsewhere
        said = "it was not asked: the backup is not proven, or its file is gone (reload the code location)"
        return Verdict(asset, name, False, said, True, backup)
    return Verdict(asset, name, answer.passed, answer.said, metadata=backup)


def checksum_matches(settings: Settings, database: Database) -> AssetChecksDefinition:
    """Before anything is uploaded: are the bytes on the disk those of the manifest?"""
    asset = AssetKey([database.name, "checksum"])

    @asset_check(
        asset=asset,
        name=CHECKSUM,
        blocking=True,
        description="Every byte of the day's local backup against its manifest. Nothing else is uploaded.",
    )
    def check(context: AssetCheckExecutionContext) -> AssetCheckResult:
        with in_dagsters_words():
            backup, copy, made = check_day(settings, database.name, context.run.tags.get("dagster/partition"))
        where = copy.store.address((copy.manifest or backup.manifest).artifact.name)
        return verdict_on_check(asset, CHECKSUM, str(backup.id), where, made).result()

    return check


def content_verified(settings: Settings, database: Database) -> AssetChecksDefinition:
    """The latest backup, read to its end: decrypted, decompressed, every digest compared."""
    asset = verified_asset(settings, database.name)

    @asset_check(
        asset=asset,
        name=CONTENT,
        description="The latest backup, off-site where there is a bucket: read to its last row, compared.",
    )
    def check(context: AssetCheckExecutionContext) -> AssetCheckResult:
        with in_dagsters_words():
            backup, copy, made = verify_latest(settings, database.name, progress(context, "verified"))
        try:
            watch.beat(settings, datetime.now(UTC))
        except BackupDagError as error:  # the backup is verified all the same; the silence will be noticed
            context.log.warning(str(error))
        where = copy.store.address((copy.manifest or backup.manifest).artifact.name)
        return verdict_on_check(asset, CONTENT, str(backup.id), where, made).result()

    return check
