"""A user's own questions to a restored copy: `drills/*.sql`, each a query that must return rows, or none.

    -- must return rows
    SELECT FROM orders WHERE placed > current_setting('backup.snapshot_time')::timestamptz - interval '1 day'

The first line says which. Files in the folder are asked of every database, those in its folder `<database>/`
of that one alone. They may only read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backup_dag.core.address import Address
from backup_dag.core.errors import ConfigurationError, DatabaseError
from backup_dag.core.manifest import Manifest
from backup_dag.core.postgres import connected
from backup_dag.core.settings import Settings
from backup_dag.core.sql import literal, without_values
from backup_dag.core.work import disk_error

_EXPECTATION = re.compile(r"\s*--\s*must return (rows|no rows)\s*$", re.IGNORECASE | re.MULTILINE)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)
_MINUTES = 10
TAKEN = frozenset({"restore_proven", "rto_met", "rpo_met"})
"""What is checked of every drill: no file of one's own is called so."""


@dataclass(frozen=True)
class OwnCheck:
    """One file: its name without .sql, and what it must return."""

    name: str
    path: Path
    query: str
    wants_rows: bool

    @property
    def expectation(self) -> str:
        return f"must return {'rows' if self.wants_rows else 'no rows'}"


@dataclass(frozen=True)
class Answer:
    """What came of one. `said` is for people; it holds no row."""

    name: str
    passed: bool
    said: str


def own_checks(settings: Settings, database: str) -> list[OwnCheck]:
    """The checks of a database, by name.

    Raises ConfigurationError: a file does not say what it must return, or its name is no name of a check.
    """
    folder, found = settings.backup_drill_checks, dict[str, OwnCheck]()
    try:
        paths = sorted([*folder.glob("*.sql"), *(folder / database).glob("*.sql")])
        for path in paths:
            check = _read(path)
            if check.name in found:
                raise ConfigurationError(
                    f"two checks are called {check.name}: {found[check.name].path} and {path}",
                    hint="rename one of them",
                )
            found[check.name] = check
    except OSError as error:
        raise disk_error(f"reading {folder}", error) from error
    return [found[name] for name in sorted(found)]


def _read(path: Path) -> OwnCheck:
    if not _NAME.fullmatch(path.stem) or path.stem in TAKEN:
        raise ConfigurationError(
            f"{path}: the name of a check is letters, digits and _, begins with no digit, and is none of"
            f" {', '.join(sorted(TAKEN))}",
            hint="rename the file",
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8: {error}", hint="save it as UTF-8") from None
    said = _EXPECTATION.match(text)
    if said is None:
        raise ConfigurationError(
            f"{path} does not say what it must return",
            hint="make its first line '-- must return rows' or '-- must return no rows'",
        )
    return OwnCheck(path.stem, path, text[said.end() :], said[1].lower() == "rows")


def asked(checks: list[OwnCheck], restored: Address, manifest: Manifest) -> Iterator[Answer]:
    """Asks them one after the other. One that cannot be asked has not passed, and says why."""
    for check in checks:
        try:
            yield _answer(check, restored, manifest)
        except DatabaseError as error:
            said = without_values(error.sqlstate, error.message)
            yield Answer(check.name, False, f"it could not be asked: {said}")


def _answer(check: OwnCheck, restored: Address, manifest: Manifest) -> Answer:
    with connected(restored) as session:
        for name, value in {
            "backup.id": manifest.backup,
            "backup.snapshot_time": manifest.snapshot_time.isoformat(),
            "statement_timeout": f"{_MINUTES}min",
            "search_path": '"$user", public',
        }.items():
            session.rows(f"SELECT set_config({literal(name)}, {literal(value)}, false)")
        session.rows("BEGIN READ ONLY")
        found = session.returns_rows(check.query)
    if found == check.wants_rows:
        return Answer(
            check.name, True, "it returned rows, as it must" if found else "it returned none, as it must"
        )
    return Answer(
        check.name, False, "it returned rows, and must return none" if found else "it returned no rows"
    )
