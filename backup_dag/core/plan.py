"""What a restore would do, found out without doing any of it.

The artifact is read to its end, the target is asked what it is and what we may do there, and each step
is named with the time it should take. A plan that finds an obstacle refuses; nothing has changed then.
"""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict

from backup_dag.core import history
from backup_dag.core.address import Address
from backup_dag.core.catalog import Backup, Copy
from backup_dag.core.confirmation import MINUTES, code_for
from backup_dag.core.databases import Database, configured
from backup_dag.core.errors import ConfigurationError, GuardRefused
from backup_dag.core.manifest import Check, DatabaseFacts, Manifest
from backup_dag.core.obstacles import Found, Mode, fitting_clients, obstacles
from backup_dag.core.postgres import connected
from backup_dag.core.roles import Roles
from backup_dag.core.settings import Settings
from backup_dag.core.target import Standing, Target, sessions

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
        return f"{self.mode} {self.backup} {self.target}"

    @property
    def lines(self) -> list[str]:
        """The plan as a person reads it."""
        age = self.made - self.snapshot_time
        proven = "proven by a restore" if self.proven else "never restored yet"
        local = self.snapshot_time.astimezone()
        said = [
            f"backup      {self.backup}",
            f"            holds the state of {self.snapshot_time:%Y-%m-%d %H:%M:%S} UTC"
            f" ({local:%Y-%m-%d %H:%M:%S %Z}), {_duration(age.total_seconds())} ago",
            f"            made because: {self.reason}; {proven}; {self._checked()}",
            f"            {self.tables:,} tables, {self.rows:,} rows; {self.artifact_bytes:,} bytes,"
            f" {self.dump_bytes:,} of dump",
            f"            {self.source}",
            f"target      {self.target}, PostgreSQL {self.target_version} (the backup's was"
            f" {self.source_version}; client {self.client_version})",
            f"            {self._target_now()}",
        ]
        for who, number in self.sessions.items():
            said.append(f"            connected now: {number} × {who}")
        if self.roles_lacking:
            said.append(f"roles       will be created, with their passwords: {', '.join(self.roles_lacking)}")
        for found in self.findings:
            said.append(f"{found.verdict:<11} {found.what}: {found.found}")
            if found.advice:
                said.append(f"            → {found.advice}")
        for number, step in enumerate(self.steps, 1):
            how_long = "" if step.seconds is None else f"about {_duration(step.seconds)} ({step.basis})"
            said.append(f"step {number}      {step.name}: {step.does}; {how_long}")
        said.append(f"remains     {self.remains}")
        if self.confirmation_code:
            said.append(f"code        {self.confirmation_code}  (good for {MINUTES} minutes)")
        return said

    def _checked(self) -> str:
        if self.checked.level == "checksum":
            return f"the bytes that were read to their end before, compared in {self.checked.seconds:.1f} s"
        return f"read to its end in {self.checked.seconds:.1f} s"

    def _target_now(self) -> str:
        if self.target_bytes is None:
            return "there is no such database yet; it will be made"
        if self.mode == "new":
            return f"it is there already, {self.target_bytes:,} bytes"
        if self.mode == "in-place":
            return (
                f"it is there, {self.target_bytes:,} bytes, and will be emptied and filled in one transaction"
            )
        return f"it is there, {self.target_bytes:,} bytes, and stays as it is until the last step"

    def check(self) -> None:
        """Raises GuardRefused where something stands in the way."""
        if self.refusals:
            said = "; ".join(f"{each.what}: {each.found}" for each in self.refusals)
            advice = "; ".join(each.advice for each in self.refusals if each.advice)
            raise GuardRefused(f"the restore was not begun: {said}", hint=advice)


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "1 s"


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
    return server, server.address.at(wish.target_database or default)


def make_plan(
    settings: Settings, wish: Wish, backup: Backup, copy: Copy, check: Check, roles: Roles, target: Target
) -> RestorePlan:
    """Looks at everything a restore needs, once the copy has been read to its end (`check`)."""
    manifest, standing = backup.manifest, target.standing()
    clients, said_of_clients = fitting_clients(settings, manifest, target)
    lacking = roles.lacking(target.session)
    connected_now = sessions(target)
    findings = [
        *(Found(verdict="warn", what="stores", found=e.message, advice=e.hint) for e in backup.missed),
        *said_of_clients,
        *obstacles(settings, wish.mode, manifest, target, lacking),
    ]
    plan = RestorePlan(
        backup=str(backup.id),
        database=manifest.database,
        snapshot_time=manifest.snapshot_time,
        made=datetime.now(UTC),
        reason=manifest.reason,
        partition_day=str(manifest.partition_day),
        proven=backup.proven,
        checked=check,
        source=copy.store.address(manifest.artifact.name),
        artifact_bytes=manifest.artifact.bytes,
        dump_bytes=manifest.dump.bytes,
        tables=len(manifest.content.tables),
        rows=manifest.content.rows,
        source_version=manifest.server.version,
        target=str(target.address),
        target_version=target.session.server().version,
        client_version=clients.version if clients else "none that fits",
        mode=wish.mode,
        target_bytes=standing.bytes if standing else None,
        roles_lacking=lacking,
        sessions=connected_now,
        findings=findings,
        steps=_steps(settings, wish, manifest, standing, check),
        remains=_remains(wish, target, standing),
        confirmation_code="",
    )
    if plan.refusals:
        return plan
    code = code_for(settings.backup_dir, what=plan.purpose, state=target.state())
    return plan.model_copy(update={"confirmation_code": code})


def _steps(
    settings: Settings, wish: Wish, manifest: Manifest, standing: Standing | None, check: Check
) -> list[Step]:
    last = history.last_seconds(settings.backup_dir, manifest.database)
    size = manifest.dump.bytes

    def step(name: str, does: str, otherwise: float | None, basis: str) -> Step:
        if name in last:
            return Step(name=name, does=does, seconds=last[name], basis="its last restore")
        return Step(name=name, does=does, seconds=otherwise, basis=basis)

    steps = [
        step(
            "verify",
            "verify the copy once more, as this plan has done",
            check.seconds,
            "this plan's own",
        )
    ]
    if standing is not None and wish.mode != "new" and wish.safety_backup:
        steps.append(
            step("safety", "back up the target as it is", manifest.seconds, "as long as the backup took")
        )
    loading = size / _LOAD + size / _ANALYZE
    if wish.mode == "in-place":
        build = "in one transaction: empty the database, load, ANALYZE; other sessions wait from here on"
        swap = "commit"
    else:
        build, swap = "load into a new database beside it, ANALYZE", "rename, in one transaction"
    steps.append(step("build", build, loading, "its size"))
    steps.append(step("prove", "compare every digest with the manifest", size / _PROVE, "its size"))
    steps.append(step("swap", swap, 1.0, "no restore was measured yet"))
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


def facts_for(target: Target, manifest: Manifest) -> DatabaseFacts:
    """The properties of the new database: those of the target it replaces, else those of the backup."""
    if target.standing() is None:
        return manifest.source
    with connected(target.address) as session:
        return session.facts()
