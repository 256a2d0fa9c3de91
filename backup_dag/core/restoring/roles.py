"""The roles that a backup holds: which of them a server lacks, and the statements that make those.

A role that is there already is never altered: it may have changed for good reasons since.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from backup_dag.core.errors import DatabaseError
from backup_dag.core.key import Key
from backup_dag.core.manifest import Manifest
from backup_dag.core.postgres import Session, quoted
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
_ABOVE = re.compile(r"^ALTER ROLE .* WITH (?:[A-Z]+ )*(?:SUPERUSER|REPLICATION|BYPASSRLS)\b", re.DOTALL)
_BELOW = re.compile(r" NO(?:SUPERUSER|REPLICATION|BYPASSRLS)\b")
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

    def superusers(self, session: Session) -> list[str]:
        """Those of the lacking ones that have a right which only a superuser can give."""
        lacking = set(self.lacking(session))
        above = (match for match in _STATEMENT.finditer(self.text) if _ABOVE.search(match[0]))
        return sorted(lacking & {_unquoted(match["role"]) for match in above if match["role"]})

    def making(self, wanted: Iterable[str], *, superuser: bool) -> list[str]:
        """The statements that make these roles, and give them their memberships, in order.

        Who is no superuser may not even say that a role is none.
        """
        chosen = set(wanted)
        return [
            # whoever granted it need not be there, nor may we speak for them
            _GRANTOR.sub("", match[0] if superuser else _without_what_is_above(match))
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
    superuser = session.row("SELECT rolsuper AS so FROM pg_roles WHERE rolname = current_user")["so"]
    session.rows("BEGIN")
    try:
        if superuser:  # password hashes need not stand in the server's log
            session.rows("SET LOCAL log_statement = 'none'")
        for statement in roles.making(lacking, superuser=superuser):
            session.rows(statement)
        session.rows("COMMIT")
    except DatabaseError as error:
        session.rows("ROLLBACK")
        raise DatabaseError(
            f"creating the roles {', '.join(lacking)} failed: {error.message}",
            hint="create them yourself, or restore as a superuser",
        ) from error
    return lacking


def drop_created(session: Session, names: Iterable[str]) -> None:
    """Takes roles away again that were made for what has failed. One that is in use by now stays."""
    for name in names:
        with suppress(DatabaseError):
            session.rows(f"DROP ROLE {quoted(name)}")


def _without_what_is_above(match: "re.Match[str]") -> str:
    """An ALTER ROLE without the words that only a superuser may say, even to deny."""
    if match["role"] is None:
        return match[0]
    end = match.end("role") - match.start()
    attributes, password, rest = match[0][end:].partition(" PASSWORD '")
    return match[0][:end] + _BELOW.sub("", attributes) + password + rest


class _Text:
    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes) -> None:
        self.content += data


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
