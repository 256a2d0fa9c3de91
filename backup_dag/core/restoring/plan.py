"""What a restore would do, found out without doing any of it.

The artifact is read to its end, the target is asked what it is and what we may do there, and each step
is named with the time it should take. A plan that finds an obstacle refuses; nothing has changed then.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict

from backup_dag.core import history
from backup_dag.core.address import Address
from backup_dag.core.authenticity import LeftOut, in_words
from backup_dag.core.authenticity import check as check_authenticity
from backup_dag.core.copies import Backup, Copy
from backup_dag.core.databases import Database, configured
from backup_dag.core.errors import BackupDagError, ConfigurationError, DiskError, GuardRefused, IntegrityError
from backup_dag.core.in_words import length, size
from backup_dag.core.manifest import Check, Manifest
from backup_dag.core.restoring.bystanders import sessions
from backup_dag.core.restoring.confirmation import MINUTES, code_for
from backup_dag.core.restoring.obstacles import Found, Mode, fitting_clients, obstacles
from backup_dag.core.restoring.roles import Roles
from backup_dag.core.restoring.target import LONGEST_NAME, Standing, Target
from backup_dag.core.settings import Settings

_LOAD, _PROVE, _ANALYZE = 40e6, 120e6, 400e6  # bytes of dump a second, where nothing was measured yet


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True)


class Step(_Document):
    """One step, the seconds it should take (None: no telling), and where that number comes from."""

    name: str
    does: str
    seconds: float | None
    basis: str


class RestorePlan(_Document):
    """Times are UTC, sizes bytes, durations seconds."""

    backup: str
    database: str
    snapshot_time: datetime
    made: datetime
    reason: str
    partition_day: str
    proven: bool
    checked: Check
    authenticity: str
    source: str
    artifact_bytes: int
    dump_bytes: int
    tables: int
    rows: int
    source_version: str
    target: str
    target_version: str
    client_version: str
    mode: Mode
    safety_backup: bool
    target_bytes: int | None
    roles_lacking: list[str]
    sessions: dict[str, int]
    findings: list[Found]
    steps: list[Step]
    remains: str
    confirmation_code: str

    @property
    def refusals(self) -> list[Found]:
        return [found for found in self.findings if found.verdict == "refuse"]

    @property
    def purpose(self) -> str:
        """What a confirmation code is for."""
        safely = "with" if self.safety_backup else "without"
        return f"{self.mode} {self.backup} {self.target} {safely} a safety backup"

    @property
    def lines(self) -> list[str]:
        """The plan as a person reads it."""
        proven = "proven by a restore" if self.proven else "never restored yet"
        said = [
            f"backup      {self.backup}",
            f"            holds the state of {self._moment()}, {length(self.made - self.snapshot_time)} ago",
            f"            made because: {self.reason}; {proven}; {self._checked()}",
            f"            {self.authenticity}",
            f"            {self.tables:,} tables, {self.rows:,} rows; {size(self.artifact_bytes)},"
            f" {size(self.dump_bytes)} of dump",
            f"            {self.source}",
            f"target      {self.target}, PostgreSQL {self.target_version} (the backup's was"
            f" {self.source_version}; client {self.client_version})",
            f"            {self._target_now()}",
        ]
        for who, number in self.sessions.items():
            ended = "" if self.mode == "new" else "; will be disconnected"
            said.append(f"            connected now: {number} × {who}{ended}")
        if self.roles_lacking:
            said.append(f"roles       will be created, with their passwords: {', '.join(self.roles_lacking)}")
        for found in self.findings:
            said.append(f"{found.verdict:<11} {found.what}: {found.found}")
            if found.advice:
                said.append(f"            → {found.advice}")
        if self.refusals:
            return [*said, "            nothing can be done before that is mended"]
        for number, step in enumerate(self.steps, 1):
            how_long = "" if step.seconds is None else f"; about {length(step.seconds)} ({step.basis})"
            said.append(f"step {number}      {step.name}: {step.does}{how_long}")
        said.append(f"remains     {self.remains}")
        if self.confirmation_code:
            what = f"for Dagster's job restore, as confirmation_code; good for {MINUTES} minutes"
            said.append(f"code        {self.confirmation_code}  ({what})")
        return said

    def _moment(self) -> str:
        """In UTC, and in local time where that is another."""
        local = self.snapshot_time.astimezone()
        here = "" if not local.utcoffset() else f" ({local:%Y-%m-%d %H:%M:%S %Z})"
        return f"{self.snapshot_time:%Y-%m-%d %H:%M:%S} UTC{here}"

    def _checked(self) -> str:
        if self.checked.level == "checksum":
            return "unchanged since it was last read to its end"
        return f"read to its end in {self.checked.seconds:.1f} s"

    def _target_now(self) -> str:
        if self.target_bytes is None:
            return "there is no such database yet; it will be made"
        if self.mode == "new":
            return f"it is there already, {size(self.target_bytes)}"
        if self.mode == "in-place":
            return (
                f"it is there, {size(self.target_bytes)}, and will be emptied and filled in one transaction"
            )
        return f"it is there, {size(self.target_bytes)}, and stays as it is until the last step"

    def check(self) -> None:
        """Raises GuardRefused where something stands in the way."""
        if self.refusals:
            said = "; ".join(f"{each.what}: {each.found}" for each in self.refusals)
            advice = "; ".join(each.advice for each in self.refusals if each.advice)
            raise GuardRefused(f"the restore was not begun: {said}", hint=advice)


@dataclass(frozen=True)
class Chosen:
    """What is to be restored: the copy that was verified, newer backups that were passed over and why, and
    what is wrong with the file that holds the roles. `left_out`: copies that are not authentic; `hidden`:
    newer backups that were there and are gone; `others`: why other copies of it were passed over."""

    backup: Backup
    copy: Copy
    check: Check
    passed_over: Sequence[str] = ()
    roles_lost: Sequence[str] = ()
    left_out: Sequence[LeftOut] = ()
    hidden: Sequence[str] = ()
    others: Sequence[BackupDagError] = ()

    @property
    def findings(self) -> Iterator[Found]:
        for error in self.backup.missed:
            yield Found(verdict="warn", what="stores", found=error.message, advice=error.hint)
        for why in self.passed_over:
            advice = "this restores an older state; see whether that backup can be mended, or copied again"
            yield Found(verdict="warn", what="a NEWER backup", found=f"cannot be used: {why}", advice=advice)
        for other in self.others:
            what = "a DAMAGED copy" if isinstance(other, IntegrityError) else "another copy"
            yield Found(verdict="warn", what=what, found=other.message, advice=other.hint)
        for each in self.left_out:
            what = "a FORGED copy" if each.forged else "another copy"
            said = f"the one in {each.address} is left out: {each.why.message}"
            yield Found(verdict="warn", what=what, found=said, advice=each.why.hint)
        for why in self.hidden:
            advice = (
                "this restores an older state; look elsewhere for the newer, and at the bucket's versions"
            )
            yield Found(verdict="warn", what="a NEWER backup", found=why, advice=advice)
        if self.roles_lost:
            said = f"cannot be read, so roles that are missing cannot be made: {'; '.join(self.roles_lost)}"
            advice = "the data is whole; make roles that are missing yourself"
            yield Found(verdict="warn", what="the roles' file", found=said, advice=advice)


class Wish(_Document):
    """What is asked for. `database` names whose backups; `target_database` where to, by default where
    they came from."""

    backup: str = "latest"
    as_of: datetime | None = None
    database: str | None = None
    target_database: str | None = None
    mode: Mode = "swap"
    safety_backup: bool = True


def moment(text: str | None, zone: ZoneInfo) -> datetime | None:
    """A time as people write it; without a zone of its own, in `zone`. Raises ConfigurationError."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"{text!r} is not a time", hint="write it as 2026-01-31T02:00 or 2026-01-31T02:00:00+01:00"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=zone)


def target_of(settings: Settings, wish: Wish, manifest: Manifest) -> tuple[Database, Address]:
    """The configured database whose server is restored to, and the address of the target there.

    Raises:
        ConfigurationError: which server is not clear.
        GuardRefused: `new` without a name.
    """
    databases = configured(settings)
    ours = next((each for each in databases if each.name == manifest.database), None)
    server = ours or (databases[0] if len(databases) == 1 else None)
    if server is None:
        known = ", ".join(each.name for each in databases)
        raise ConfigurationError(
            f"no configured database is called {manifest.database!r}, so it is not clear on which server to"
            f" restore it (there are {known})",
            hint="give DATABASE_URL alone, pointing at that server",
        )
    if wish.mode == "new" and not wish.target_database:
        raise GuardRefused(
            "a restore into a new database needs its name", hint="give it with --target-database"
        )
    default = server.address.dbname if ours else manifest.source.dbname
    name = wish.target_database or default
    if len(name.encode()) > LONGEST_NAME:
        raise GuardRefused(
            f"{name!r} is longer than the {LONGEST_NAME} bytes that PostgreSQL keeps of a name",
            hint="choose a shorter --target-database",
        )
    return server, server.address.at(name)


def make_plan(settings: Settings, wish: Wish, chosen: Chosen, roles: Roles, target: Target) -> RestorePlan:
    """Looks at everything a restore needs, once the copy has been read to its end."""
    backup, standing = chosen.backup, target.standing()
    manifest = chosen.copy.manifest or backup.manifest
    clients, said_of_clients = fitting_clients(settings, manifest, target)
    lacking = roles.lacking(target.session)
    findings = [
        *chosen.findings,
        *said_of_clients,
        *obstacles(settings, wish.mode, manifest, target, roles, safety=wish.safety_backup),
    ]
    plan = RestorePlan(
        backup=str(backup.id),
        database=manifest.database,
        snapshot_time=manifest.snapshot_time,
        made=datetime.now(UTC),
        reason=manifest.reason,
        partition_day=str(manifest.partition_day),
        proven=backup.proven,
        checked=chosen.check,
        authenticity=in_words(check_authenticity(settings, chosen.copy)),
        source=chosen.copy.store.address(manifest.artifact.name),
        artifact_bytes=manifest.artifact.bytes,
        dump_bytes=manifest.dump.bytes,
        tables=len(manifest.content.tables),
        rows=manifest.content.rows,
        source_version=manifest.server.version,
        target=str(target.address),
        target_version=target.session.server().version,
        client_version=clients.version if clients else "none that fits",
        mode=wish.mode,
        safety_backup=wish.safety_backup,
        target_bytes=standing.bytes if standing else None,
        roles_lacking=lacking,
        sessions=sessions(target),
        findings=findings,
        steps=_steps(settings, wish, manifest, standing, chosen.check),
        remains=_remains(wish, target, standing),
        confirmation_code="",
    )
    return plan if plan.refusals else _with_code(settings, plan, target)


def _with_code(settings: Settings, plan: RestorePlan, target: Target) -> RestorePlan:
    try:
        code = code_for(settings.backup_dir, what=plan.purpose, state=target.state())
    except DiskError as error:  # a terminal needs no code
        said = f"no confirmation code could be made, which Dagster's job needs: {error.message}"
        found = Found(verdict="warn", what="code", found=said, advice=error.hint)
        return plan.model_copy(update={"findings": [*plan.findings, found]})
    return plan.model_copy(update={"confirmation_code": code})


def _steps(
    settings: Settings, wish: Wish, manifest: Manifest, standing: Standing | None, check: Check
) -> list[Step]:
    last, measured = history.estimate(settings.backup_dir, manifest.database)
    bytes = manifest.dump.bytes

    def step(key: str, does: str, otherwise: float, basis: str, name: str = "") -> Step:
        seconds, said = (last[key], f"as in its last {measured}") if key in last else (otherwise, basis)
        return Step(name=name or key, does=does, seconds=seconds, basis=said)

    steps = [step("verify", "the copy, once more", check.seconds, "as just now")]
    if standing is not None and wish.mode != "new" and wish.safety_backup:
        held = "; what writes to it waits from here on" if wish.mode == "in-place" else ""
        steps.append(
            step("safety", f"back up the target as it is{held}", manifest.seconds, "as the backup took")
        )
    loading, proving = bytes / _LOAD + bytes / _ANALYZE, bytes / _PROVE
    if wish.mode == "in-place":
        build, last_step = "in one transaction: empty the database, load, ANALYZE; all others wait", "commit"
    else:
        beside = " beside it" if standing is not None else ""
        build, last_step = f"load into a new database{beside}, ANALYZE", "swap"
    steps.append(step("build", build, loading, "guessed from its size"))
    steps.append(step("prove", "compare every digest with the manifest", proving, "guessed from its size"))
    done = {"commit": "the transaction", "swap": "rename, in one transaction"}[last_step]
    steps.append(step("swap", done, 1.0, "it takes no longer", last_step))
    return steps


def _remains(wish: Wish, target: Target, standing: Standing | None) -> str:
    if wish.mode == "new" or standing is None:
        return "nothing was there before, so nothing is kept"
    if wish.mode == "in-place":
        if wish.safety_backup:
            return "the safety backup alone: what the database holds now is dropped with the commit"
        return "NOTHING: what the database holds now is dropped with the commit, and no backup is made first"
    kept = [f"{made.name} (from {made.since:%Y-%m-%d %H:%M} UTC)" for made in target.made("before")]
    earlier = f"; kept from earlier restores: {', '.join(kept)}" if kept else ""
    return (
        f"the database as it is now, renamed to {target.name}__before_<time>, for"
        f" backup-dag restore --rollback{earlier}"
    )
