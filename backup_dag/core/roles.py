"""The roles that a backup holds: which of them a server lacks, and the statements that make those.

A role that is there already is never altered: it may have changed for good reasons since.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from backup_dag.core.errors import DatabaseError
from backup_dag.core.key import Key
from backup_dag.core.manifest import Manifest
from backup_dag.core.postgres import Session
from backup_dag.core.reading import read_back
from backup_dag.core.settings import Settings
from backup_dag.core.stages.checksum import compare
from backup_dag.core.stages.dump import PROPERTIES
from backup_dag.core.store.base import Store
from backup_dag.core.work import reading_directory

_NAME = r"""(?:"(?:[^"]|"")*"|[^\s;"]+)"""
_REST = r"""(?:[^;'"]|'(?:[^']|'')*'|"(?:[^"]|"")*")*;"""
_STATEMENT = re.compile(
    rf"^(?:(?:CREATE|ALTER|COMMENT ON) ROLE (?P<role>{_NAME})"
    rf"|GRANT (?P<granted>{_NAME}) TO (?P<member>{_NAME})){_REST}",
    re.MULTILINE,
)
_GRANTOR = re.compile(rf" GRANTED BY {_NAME}(?=;$)")


@dataclass(frozen=True)
class Roles:
    """What pg_dumpall wrote, read. May hold password hashes, so it is never shown."""

    text: str = field(repr=False)
    about_database: str = field(default="", repr=False)

    @property
    def names(self) -> list[str]:
        """Every role in it."""
        made = (match for match in _STATEMENT.finditer(self.text) if match[0].startswith("CREATE"))
        return [_unquoted(match["role"]) for match in made]

    def lacking(self, session: Session) -> list[str]:
        """Those that the server lacks."""
        there = {row["rolname"] for row in session.rows("SELECT rolname FROM pg_roles")}
        return [name for name in self.names if name not in there]

    def making(self, wanted: Iterable[str]) -> list[str]:
        """The statements that make these roles, and give them their memberships, in order."""
        chosen = set(wanted)
        return [
            _GRANTOR.sub("", match[0])  # whoever granted it need not be there, nor may we speak for them
            for match in _STATEMENT.finditer(self.text)
            if chosen & {_unquoted(name) for name in match.groups() if name}
        ]


def give_properties(session: Session, roles: Roles) -> None:
    """Gives a database that lies under its old name again its owner, grants and settings, as psql would."""
    for question in roles.about_database.split("\n\\gexec\n"):
        if question.strip():
            for row in session.rows(question):
                session.rows(*row.values())


def read_roles(settings: Settings, store: Store, manifest: Manifest, key: Key) -> Roles:
    """The roles of a backup, read from one copy of it. Raises IntegrityError and what a store raises."""
    text = _Text()
    with reading_directory(settings.backup_dir) as work:
        _, encrypted = read_back(store, manifest.globals, text, key, work)
    compare(store.address(manifest.globals.name), manifest.globals, encrypted.seen())
    said, _, properties = bytes(text.content).partition(PROPERTIES.encode())
    return Roles(_decoded(said), _decoded(properties))


def _decoded(text: bytes) -> str:
    """By the encoding that the text itself sets; from one that is not UTF-8, a byte a character."""
    return text.decode("utf-8" if b"\nSET client_encoding = 'UTF8'" in b"\n" + text else "latin-1")


def create_lacking(session: Session, roles: Roles) -> list[str]:
    """Makes the roles that the server lacks, all of them or none; returns their names.

    Raises DatabaseError where we may not.
    """
    lacking = roles.lacking(session)
    if not lacking:
        return []
    session.rows("BEGIN")
    try:
        for statement in roles.making(lacking):
            session.rows(statement)
        session.rows("COMMIT")
    except DatabaseError as error:
        session.rows("ROLLBACK")
        raise DatabaseError(
            f"creating the roles {', '.join(lacking)} failed: {error.message}",
            hint="create them yourself, or restore as a superuser",
        ) from error
    return lacking


class _Text:
    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes) -> None:
        self.content += data


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
