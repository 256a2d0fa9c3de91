"""Each database: whether it answers, what may be read there, and what restores have left."""

from collections.abc import Iterator
from datetime import UTC, datetime

from backup_dag.core.clients import find_clients
from backup_dag.core.databases import Database
from backup_dag.core.doctor.finding import Finding, ok, warn
from backup_dag.core.errors import DatabaseError
from backup_dag.core.postgres import Session, connected
from backup_dag.core.privileges import hidden_by_row_security, not_readable
from backup_dag.core.restoring.target import target_at
from backup_dag.core.settings import Settings

_MOST_SECONDS_APART = 5


def of_database(settings: Settings, database: Database) -> Iterator[Finding]:
    """Whether a backup of it could be made, and restored. Raises DatabaseError, DatabaseUnreachable."""
    with connected(database.address) as session:
        server = session.server()
        kind = "standby" if server.standby else "primary"
        yield ok(database.name, f"{database.address}: PostgreSQL {server.version}, {kind}")
        clients = find_clients(session.server_major, settings.pg_bin_dir)
        said = f"pg_dump {clients.version} in {clients.bin_dir}"
        if clients.major == session.server_major:
            yield ok(f"{database.name} client", said)
        else:
            advice = f"install postgresql-client-{session.server_major}: a newer dump may not load here"
            yield warn(f"{database.name} client", said, advice)
        if not clients.restricts:
            said = f"psql {clients.version} would run programs that a backup names (CVE-2025-8714)"
            advice = "install a newer minor version: no backup is restored with this one"
            yield warn(f"{database.name} psql", said, advice)
        yield _privileges(database, session)
        yield _clock(database, session)
    yield from _left_by_restores(database)


def _left_by_restores(database: Database) -> Iterator[Finding]:
    """Databases that restores of this one kept, or left half-made when they were killed."""
    what = f"{database.name} restores"
    try:
        with target_at(database.address) as target:
            kept, half_made = target.made("before"), target.made("restoring")
            running = target.is_locked() if half_made else False
    except DatabaseError:  # its neighbours are not ours to see
        return
    if half_made and not running:
        names = ", ".join(made.name for made in half_made)
        yield warn(
            what, f"a restore that was killed left {names}", "the next restore of it drops that; or dropdb"
        )
    if kept:
        names = ", ".join(made.name for made in kept)
        yield ok(what, f"kept from earlier ones: {names} (backup-dag restore --drop-previous drops them)")


def _privileges(database: Database, session: Session) -> Finding:
    what = f"{database.name} privileges"
    hidden, unreadable = hidden_by_row_security(session), not_readable(session)
    if hidden or unreadable:
        said = (
            f"may not read {_some(unreadable)}"
            if unreadable
            else f"row security hides rows of {_some(hidden)}"
        )
        advice = "GRANT pg_read_all_data; large objects each need GRANT SELECT"
        if hidden and not unreadable:
            advice = "ALTER ROLE … BYPASSRLS"
        if database.plan.options():
            return warn(what, said, f"no matter where backup.toml leaves them out, else {advice}")
        return Finding("fail", what, said, advice, DatabaseError.exit_code)
    if not session.may_read_password_hashes():
        advice = "roles come back without passwords; note them elsewhere, or back up as a superuser"
        return warn(what, "may read every table, but not the roles' password hashes", advice)
    return ok(what, "may read every table, sequence and role")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _clock(database: Database, session: Session) -> Finding:
    apart = abs((datetime.now(UTC) - session.now()).total_seconds())
    if apart > _MOST_SECONDS_APART:
        said = f"this host's clock and the server's are {apart:.0f} s apart"
        return warn(f"{database.name} clock", said, "run NTP on both: backups are named by the server's time")
    return ok(f"{database.name} clock", "agrees with this host's")
