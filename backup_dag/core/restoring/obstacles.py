"""What may stand in the way of a restore, or should be known before it: looked at, and nothing changed."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from backup_dag.core.clients import Clients
from backup_dag.core.databases import configured
from backup_dag.core.errors import ConfigurationError, DatabaseError
from backup_dag.core.in_words import size
from backup_dag.core.manifest import DatabaseFacts, Manifest, major
from backup_dag.core.options import leaving_out
from backup_dag.core.postgres import connected
from backup_dag.core.restoring.bystanders import holding_on, in_the_way_in_place, rights
from backup_dag.core.restoring.loading import loading_clients
from backup_dag.core.restoring.roles import Roles
from backup_dag.core.restoring.target import Standing, Target
from backup_dag.core.settings import Settings

_MOST_NAMED = 10
_SINCE_TIMEOUTS = 17  # whose pg_dump writes SET transaction_timeout
Mode = Literal["swap", "new", "in-place"]


class Found(BaseModel):
    """Something about the target. `refuse` keeps a restore from starting."""

    model_config = ConfigDict(frozen=True)

    verdict: Literal["ok", "warn", "refuse"]
    what: str
    found: str
    advice: str = ""


def fitting_clients(
    settings: Settings, manifest: Manifest, target: Target
) -> tuple[Clients | None, list[Found]]:
    """The client tools that can read the backup and talk to the server; where there are none, why."""
    made_with = major(manifest.dump.client_version)
    try:
        clients = loading_clients(settings, manifest, target.session.server_major)
    except ConfigurationError as error:
        return None, [Found(verdict="refuse", what="tools", found=error.message, advice=error.hint)]
    if made_with >= _SINCE_TIMEOUTS > target.session.server_major:
        said = (
            f"the backup was made by pg_dump {manifest.dump.client_version}, and its first lines set what"
            f" PostgreSQL {target.session.server_major} does not know (transaction_timeout)"
        )
        advice = f"restore to PostgreSQL {_SINCE_TIMEOUTS} or newer"
        return clients, [Found(verdict="refuse", what="versions", found=said, advice=advice)]
    if max(major(manifest.server.version), made_with) > target.session.server_major:
        return clients, [
            Found(
                verdict="warn",
                what="versions",
                found=f"the backup is of PostgreSQL {manifest.server.version}, made by pg_dump"
                f" {manifest.dump.client_version}, and this server is older",
                advice="what an older server does not know will fail to load; nothing is lost by trying",
            )
        ]
    return clients, []


def obstacles(
    settings: Settings, mode: Mode, manifest: Manifest, target: Target, roles: Roles, *, safety: bool
) -> list[Found]:
    """Everything but the tools, looked at in turn."""
    standing = target.standing()
    return [
        *_permission(settings, mode, target, standing),
        *_condition(mode, target, standing, safety=safety),
        *_rights(mode, target, standing, roles.lacking(target.session)),
        *_superusers(roles, target),
        *_in_place(mode, target, standing),
        *_extensions(manifest, target),
        *_likeness(manifest.source, standing),
        *_left_out(mode, manifest, target, standing),
        *_disk(manifest, target),
        *_bystanders(target, standing),
    ]


def _condition(mode: Mode, target: Target, standing: Standing | None, *, safety: bool) -> list[Found]:
    """Whether the target can be used for what is to be done with it."""
    if standing is None or mode == "new":
        return []
    if standing.invalid:
        found = f"{target.name} is half dropped, so it can be neither renamed nor read"
        advice = f'drop it to its end first: DROP DATABASE "{target.name}"'
        return [Found(verdict="refuse", what="target", found=found, advice=advice)]
    try:
        with connected(target.address):
            return []
    except DatabaseError as error:
        found = f"{target.name} cannot be connected to: {error.message}"
    if mode == "swap" and not safety:
        said = "it is kept as it is, and what is in it cannot be looked at"
        return [Found(verdict="warn", what="target", found=found, advice=said)]
    advice = "--no-safety-backup, by swap: it is kept as it is, beside the restored one"
    return [Found(verdict="refuse", what="target", found=found, advice=advice)]


def _superusers(roles: Roles, target: Target) -> list[Found]:
    """Roles that only a superuser can make."""
    above = roles.superusers(target.session)
    if not above or rights(target, None)["superuser"]:
        return []
    advice = "make them yourself, or restore as a superuser"
    said = f"only a superuser can make the roles {', '.join(above)}"
    return [Found(verdict="refuse", what="roles", found=said, advice=advice)]


def _left_out(mode: Mode, manifest: Manifest, target: Target, standing: Standing | None) -> list[Found]:
    """What would not be there after the restore: it is in no backup, or in no part of this one."""
    found = []
    if options := leaving_out(manifest.dump.options):
        said = f"was made with {' '.join(options)}, so it holds a part of its database"
        advice = "what it leaves out will not be in the restored database"
        found.append(Found(verdict="warn", what="the backup", found=said, advice=advice))
    if standing is None or mode == "new":
        return found
    with suppress(DatabaseError), connected(target.address) as session:
        rows = session.rows(
            "SELECT c.oid::regclass::text AS name"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
            " AND NOT c.relispartition AND c.relpersistence <> 't' ORDER BY 1"
        )
        new = [row["name"] for row in rows if row["name"] not in manifest.content.tables]
        if new:
            named = ", ".join(new[:_MOST_NAMED]) + (
                f" and {len(new) - _MOST_NAMED} more" * (len(new) > _MOST_NAMED)
            )
            said = f"{len(new):,} tables of the target have no rows in the backup: {named}"
            advice = "they are younger than it, were left out, or are a restore's (restored_…)"
            found.append(Found(verdict="warn", what="tables", found=said, advice=advice))
    return found


def _permission(settings: Settings, mode: Mode, target: Target, standing: Standing | None) -> list[Found]:
    """Whether the target may be overwritten: by default, only what we back up."""
    if mode == "new":
        if standing is None:
            return []
        return [
            Found(
                verdict="refuse",
                what="target",
                found=f"there is a database {target.name} already",
                advice="choose a name that is free, or --mode swap",
            )
        ]
    allowed = set(settings.backup_restore_targets) or {
        each.address.dbname for each in configured(settings) if each.address.is_beside(target.address)
    }
    if standing is None or target.name in allowed:
        return []
    return [
        Found(
            verdict="refuse",
            what="target",
            found=f"{target.name} may not be overwritten (allowed: {', '.join(sorted(allowed)) or 'none'})",
            advice="name it in BACKUP_RESTORE_TARGETS, or restore into a new database",
        )
    ]


def _rights(mode: Mode, target: Target, standing: Standing | None, lacking: list[str]) -> list[Found]:
    may = rights(target, standing.owner if standing else None)
    needed = {
        "createdb": (mode != "in-place", "create databases", "ALTER ROLE {} CREATEDB"),
        "owns": (mode == "swap", f"rename {target.name}", "GRANT {owner} TO {}"),
        "signal": (bool(standing) and mode == "swap", "end other sessions", "GRANT pg_signal_backend TO {}"),
        "createrole": (bool(lacking), f"create the roles {', '.join(lacking)}", "ALTER ROLE {} CREATEROLE"),
    }
    owner = standing.owner if standing else ""
    return [
        Found(
            verdict="refuse",
            what="privileges",
            found=f"the role {may['name']} may not {what}",
            advice=f"{advice.format(may['name'], owner=owner)}, or restore as a superuser",
        )
        for right, (wanted, what, advice) in needed.items()
        if wanted and not may[right]
    ]


def _in_place(mode: Mode, target: Target, standing: Standing | None) -> list[Found]:
    """What would keep a database from being emptied and filled again in one transaction."""
    if mode != "in-place":
        return []
    if standing is None:
        found, advice = f"there is no database {target.name}", "have your host make an empty one first"
        return [Found(verdict="refuse", what="target", found=found, advice=advice)]
    there = in_the_way_in_place(target)
    findings = [
        (there["subscriptions"], "subscriptions", "cannot be dropped in a transaction", "DROP SUBSCRIPTION"),
        (
            ", ".join(there["owners"] or []),
            "other owners",
            "own objects that this role may not drop",
            "GRANT these roles to it, or restore as a role that has them",
        ),
        (
            there["objects"] if 4 * there["objects"] > there["locks"] else 0,
            "tables, indexes, large objects and the like",
            f"need more locks than the server has room for ({there['locks']:,})",
            "raise max_locks_per_transaction",
        ),
    ]
    return [
        Found(verdict="refuse", what=what, found=f"{number} {why}", advice=advice)
        for number, what, why, advice in findings
        if number
    ]


def _extensions(manifest: Manifest, target: Target) -> list[Found]:
    there = {row["name"] for row in target.session.rows("SELECT name FROM pg_available_extensions")}
    places = {row["spcname"] for row in target.session.rows("SELECT spcname FROM pg_tablespace")}
    found = [
        Found(
            verdict="refuse",
            what="tablespaces",
            found=f"the server lacks {', '.join(no_such)}",
            advice="CREATE TABLESPACE … for each of them, wherever there is room",
        )
        for no_such in [sorted(set(manifest.source.tablespaces) - places)]
        if no_such and "--no-tablespaces" not in manifest.dump.options
    ]
    lacking = sorted(manifest.source.extensions.keys() - there)
    if not lacking:
        return found
    advice = "install its packages on the server"
    said = f"the server lacks {', '.join(lacking)}"
    return [*found, Found(verdict="refuse", what="extensions", found=said, advice=advice)]


def _likeness(source: DatabaseFacts, standing: Standing | None) -> list[Found]:
    if standing is None:
        return []
    differ = [
        f"{what} {there} there, {before} in the backup"
        for what, there, before in (
            ("encoding", standing.encoding, source.encoding),
            ("collation", standing.collate, source.collate),
            ("character type", standing.ctype, source.ctype),
        )
        if there != before
    ]
    if not differ:
        return []
    advice = "the new database gets the target's; text may sort otherwise, or not be representable"
    return [Found(verdict="warn", what="locale", found="; ".join(differ), advice=advice)]


def _disk(manifest: Manifest, target: Target) -> list[Found]:
    """Free space against need, where the server's data lies on this machine and we may know where."""
    need = max(manifest.source.bytes, manifest.dump.bytes)
    try:
        folder = Path(
            target.session.row("SELECT current_setting('data_directory', true) AS said")["said"] or ""
        )
        free = shutil.disk_usage(folder).free if folder.is_dir() and folder.is_absolute() else None
    except (DatabaseError, OSError):
        free = None
    if free is None:
        return [Found(verdict="ok", what="disk", found=f"cannot be known from here; {size(need)} are needed")]
    if free < need:
        return [
            Found(
                verdict="refuse",
                what="disk",
                found=f"{size(free)} are free for the server's data, about {size(need)} are needed",
                advice="make room, or restore to another server",
            )
        ]
    return [Found(verdict="ok", what="disk", found=f"{size(free)} free, about {size(need)} needed")]


def _bystanders(target: Target, standing: Standing | None) -> list[Found]:
    """What hangs on the old database, and would keep it from being renamed or stay behind with it."""
    if standing is None:
        return []
    rows = holding_on(target)
    found = []
    if rows["prepared"]:
        found.append(
            Found(
                verdict="refuse",
                what="prepared transactions",
                found=f"{rows['prepared']} are open in {target.name}, which cannot be renamed until they end",
                advice="COMMIT PREPARED or ROLLBACK PREPARED them (see pg_prepared_xacts)",
            )
        )
    if rows["slots"]:
        found.append(
            Found(
                verdict="warn",
                what="replication",
                found=f"{rows['slots']} logical replication slots stay with the old database",
                advice="their subscribers must be set up anew after the restore",
            )
        )
    return found
