"""What a drill restores onto: an empty database that nobody needs, with the roles that the backup knows.

It stands on a server of its own (`scratch`), or on the one that is given; there it bears the mark of what
restores make, so that the next drill drops what a killed one left.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from backup_dag.core.address import Address
from backup_dag.core.clients import Clients
from backup_dag.core.drilling.scratch import Server, server_for
from backup_dag.core.errors import (
    BackupDagError,
    ConfigurationError,
    DatabaseError,
    DiskError,
    IntegrityError,
)
from backup_dag.core.manifest import DatabaseFacts, Manifest
from backup_dag.core.options import selects_schemas
from backup_dag.core.restoring.loading import loading_clients
from backup_dag.core.restoring.roles import Roles, create_lacking, drop_created, give_application_settings
from backup_dag.core.restoring.target import Target, target_at
from backup_dag.core.settings import Settings
from backup_dag.core.sql import literal, quoted, without_values

NAME = "backup_dag_drill"
"""The database that drills would restore into; each makes its own beside it."""

_DISK_FULL, _UNDEFINED = "53100", "42704"
_OF_THE_CONTENT = ("21", "22", "23", "2B", "2F", "42", "44", "P0")
"""Classes of SQLSTATE (PostgreSQL's errcodes.txt) by which a server refuses what a statement says. All others
are about the server: its resources, its programs, who may do what."""
_OF_THE_SERVER = "42501"  # insufficient_privilege


@dataclass(frozen=True)
class Ground:
    """An empty database, and what talks to it. `notes` are for people."""

    address: Address
    clients: Clients
    server_major: int
    described: str
    notes: list[str]
    _server: Server
    other_locale: bool = False

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Around the loading: a statement that cannot be run is the backup's fault, where the server says so.

        Raises:
            IntegrityError: the backup cannot be loaded. DiskError: the server's disk is full.
            DatabaseError: the server could not do it, or nobody can tell why.
        """
        said = self._server.said()
        try:
            yield
        except DatabaseError as error:
            failure = self._server.first_failure(since=said)
            if failure is None:
                raise
            state, message = failure
            if state == _DISK_FULL:
                raise DiskError(
                    f"the disk of the throw-away server is full: {message}",
                    hint="make room, or set BACKUP_SCRATCH_DIR to a folder that has it",
                ) from error
            if self.other_locale or not _is_of_the_content(state, message):
                raise
            why = without_values(state, message)
            raise IntegrityError(f"it cannot be loaded: {why} (SQLSTATE {state})") from error


def _is_of_the_content(state: str, message: str) -> bool:
    of_a_locale = state == _UNDEFINED and message.startswith("collation ")
    if of_a_locale or message.startswith("could not create locale"):  # that this machine has not got
        return False
    return state[:2] in _OF_THE_CONTENT and state != _OF_THE_SERVER


@contextmanager
def ground_for(settings: Settings, manifest: Manifest, roles: Roles, work: Path) -> Iterator[Ground]:
    """An empty database with the backup's encoding and collation; gone with the block. Of a drill that is
    killed, whoever sweeps its work directory removes it.

    Raises:
        ConfigurationError: no server, or it lacks an extension that the backup needs.
        DiskError, GuardRefused, DatabaseError: see `scratch`.
    """
    with ExitStack() as stack:
        server = stack.enter_context(server_for(settings, manifest, work))
        target: Target = stack.enter_context(target_at(server.address.at(NAME)))
        stack.enter_context(target.locked())
        target.sweep()
        _check_extensions(manifest, target)
        _make_tablespaces(manifest, target, own=server.log is not None)
        given = server.log is None  # one that is thrown away goes as a whole
        made = create_lacking(target.session, roles)
        if given:
            stack.callback(drop_created, target.session, made)
        name, notes = _made(target, manifest)
        if given:
            stack.callback(_dropped, target, name)
        give_application_settings(target.session, roles, name)
        major = target.session.server_major
        yield Ground(
            target.address.at(name),
            loading_clients(settings, manifest, major),
            major,
            f"PostgreSQL {target.session.server().version},"
            f" {'BACKUP_SCRATCH_URL' if given else 'made for it'}",
            [*server.notes, *notes],
            server,
            other_locale=bool(notes),
        )


def _made(target: Target, manifest: Manifest) -> tuple[str, list[str]]:
    """The database's name, and what is not as it was."""
    now, facts = datetime.now(UTC), manifest.source
    name = target.aside("restoring", now)
    try:
        target.create(name, facts, manifest.backup, now)
        return name, []
    except DatabaseError:
        plain: DatabaseFacts = facts.model_copy(
            update={"collate": "C", "ctype": "C", "locale_provider": "libc", "locale": None}
        )
        target.create(name, plain, manifest.backup, now)
        locale = facts.locale or facts.collate
        return name, [f"restored with the locale C, since {locale} is not to be had on that server"]


def _dropped(target: Target, name: str) -> None:
    with suppress(BackupDagError):  # the next drill finds it by its mark
        target.drop(name)


def _check_extensions(manifest: Manifest, target: Target) -> None:
    if selects_schemas(manifest.dump.options):  # such a dump makes none
        return
    there = {row["name"] for row in target.session.rows("SELECT name FROM pg_available_extensions")}
    lacking = sorted(
        f"{name} {version}" for name, version in manifest.source.extensions.items() if name not in there
    )
    if lacking:
        raise ConfigurationError(
            f"the backup needs extensions that the server for drills lacks: {', '.join(lacking)}",
            hint="install them beside the PostgreSQL here (for instance postgresql-18-postgis-3), or set"
            " BACKUP_SCRATCH_URL to a server that has them",
        )


def _make_tablespaces(manifest: Manifest, target: Target, *, own: bool) -> None:
    there = {row["name"] for row in target.session.rows("SELECT spcname AS name FROM pg_tablespace")}
    lacking = [name for name in manifest.source.tablespaces if name not in there]
    if lacking and not own:
        raise ConfigurationError(
            f"the backup needs tablespaces that the server in BACKUP_SCRATCH_URL lacks: {', '.join(lacking)}",
            hint="make them there, or leave BACKUP_SCRATCH_URL out",
        )
    for name in lacking:
        target.session.rows(f"CREATE TABLESPACE {quoted(name)} LOCATION {literal('')}")
