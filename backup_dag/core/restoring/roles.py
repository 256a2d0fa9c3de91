"""The roles that a backup holds: which of them a server lacks, and the statements that make those.

A role that is there already is never altered: it may have changed for good reasons since.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

from backup_dag.core.errors import DatabaseError, IntegrityError
from backup_dag.core.key import Key
from backup_dag.core.manifest import Manifest
from backup_dag.core.postgres import Session
from backup_dag.core.reading import read_back
from backup_dag.core.settings import Settings
from backup_dag.core.sql import quoted
from backup_dag.core.stages.checksum import compare
from backup_dag.core.stages.dump import PROPERTIES
from backup_dag.core.store.base import Store
from backup_dag.core.work import reading_directory

_NAME = r"""(?:"(?:[^"]++|"")*+"|[^\s;"]++)"""
_PIECE = re.compile(
    r"""--[^\n]*+|\\[^\n]*+|'(?:[^']++|'')*+'|"(?:[^"]++|"")*+"|;|[^;'"\\-]++|-""",
)
"""What a text of pg_dumpall's is made of: comments, psql's own commands, quoted text, the ends of statements,
and all else. Quotes within quotes are doubled there, and nothing else escapes one."""
_STATEMENT = re.compile(
    rf"(?:(?:CREATE|ALTER|COMMENT ON) ROLE (?P<role>{_NAME})"
    rf"|GRANT (?P<granted>{_NAME}) TO (?P<member>{_NAME})).*;",
    re.DOTALL,
)
_APPLICATIONS = re.compile(
    r'ALTER DATABASE "(?:[^"]++|"")*+" SET ((?:"(?:[^"]++|"")*+"\.)++"(?:[^"]++|"")*+" TO .*)', re.DOTALL
)
_RIGHTS = "SUPERUSER|REPLICATION|BYPASSRLS"
_ABOVE = re.compile(rf"ALTER ROLE {_NAME} WITH (?:(?!{_RIGHTS})[A-Z]++ )*+(?:{_RIGHTS})\b")
_BELOW = re.compile(rf" NO(?:{_RIGHTS})\b")
_GRANTOR = re.compile(rf" GRANTED BY {_NAME}(?=;$)")


@dataclass(frozen=True)
class Roles:
    """What pg_dumpall wrote, read. May hold password hashes, so it is never shown."""

    text: str = field(repr=False)
    about_database: str = field(default="", repr=False)

    @cached_property
    def _statements(self) -> list["re.Match[str]"]:
        """Those that are about roles."""
        return [match for each in _statements(self.text) if (match := _STATEMENT.fullmatch(each))]

    @property
    def names(self) -> list[str]:
        """Every role in it."""
        return [_unquoted(match["role"]) for match in self._statements if match[0].startswith("CREATE")]

    def lacking(self, session: Session) -> list[str]:
        """Those that the server lacks."""
        there = {row["rolname"] for row in session.rows("SELECT rolname FROM pg_roles")}
        return [name for name in self.names if name not in there]

    def superusers(self, session: Session) -> list[str]:
        """Those of the lacking ones that have a right which only a superuser can give."""
        lacking = set(self.lacking(session))
        above = (match for match in self._statements if _ABOVE.match(match[0]))
        return sorted(lacking & {_unquoted(match["role"]) for match in above if match["role"]})

    def making(self, wanted: Iterable[str], *, superuser: bool) -> list[str]:
        """The statements that make these roles, and give them their memberships, in order.

        Who is no superuser may not even say that a role is none.
        """
        chosen = set(wanted)
        return [
            # whoever granted it need not be there, nor may we speak for them
            _GRANTOR.sub("", match[0] if superuser else _without_what_is_above(match))
            for match in self._statements
            if chosen & {_unquoted(name) for name in match.groups() if name}
        ]


def give_properties(session: Session, roles: Roles) -> None:
    """Gives a database that lies under its old name again its owner, grants and settings, as psql would."""
    for question in roles.about_database.split("\n\\gexec\n"):
        if question.strip():
            for row in session.rows(question):
                session.rows(*row.values())


def give_application_settings(session: Session, roles: Roles, name: str) -> None:
    """Gives a database called `name` the settings of an application's own (`app.tenant`) that the backup's
    had: its constraints may ask for them while rows are loaded. One that we may not give is passed over."""
    for question in roles.about_database.split("\n\\gexec\n"):
        before, found, _ = question.rpartition(" WHERE EXISTS (SELECT FROM pg_database")
        _, _, asked = before.partition("SELECT ")
        for row in session.rows(f"SELECT {asked}") if found and asked else ():
            if said := _APPLICATIONS.fullmatch(*row.values()):
                with suppress(DatabaseError):
                    session.rows(f"ALTER DATABASE {quoted(name)} SET {said[1]}")


def read_roles(settings: Settings, store: Store, manifest: Manifest, key: Key) -> Roles:
    """The roles of a backup, read from one copy of it. Raises IntegrityError and what a store raises."""
    text, where = _Text(), store.address(manifest.globals.name)
    with reading_directory(settings.backup_dir) as work:
        _, encrypted = read_back(store, manifest.globals, text, key, work)
    compare(where, manifest.globals, encrypted.seen())
    return roles_in(bytes(text.content), where)


def roles_in(text: bytes, where: str) -> Roles:
    """The roles, and what is said of the database, in the text of a globals file, which lies there.

    Where these are told apart, quotes are heeded: anyone may set a setting of their own role to a text that
    looks like the line between them. Raises IntegrityError where it is no text.
    """
    mark = PROPERTIES.encode()
    at = next((at for at in _outside_quotes(text) if text.startswith(mark, at - 1)), len(text) + 1) - 1
    try:
        return Roles(_decoded(text[:at]), _decoded(text[at + len(mark) :]))
    except UnicodeDecodeError as error:
        raise IntegrityError(
            f"{where} holds no text: {error.reason} at byte {error.start:,}",
            hint="use another copy, or another backup; or make the roles yourself",
        ) from None


def _outside_quotes(text: bytes) -> Iterator[int]:
    """Where comments begin. Server encodings have no quote within a longer character."""
    for piece in _pieces(text.decode("latin-1")):
        if piece[0].startswith("--"):
            yield piece.start()


def _statements(text: str) -> Iterator[str]:
    """Each statement, up to its semicolon. What follows a quote that has no end is none."""
    begin: int | None = None
    for piece in _pieces(text):
        if begin is None and not piece[0].startswith(("--", "\\")) and piece[0].strip():
            begin = piece.end() - len(piece[0].lstrip())
        if piece[0] == ";" and begin is not None:
            yield text[begin : piece.end()]
            begin = None


def _pieces(text: str) -> Iterator["re.Match[str]"]:
    at = 0
    while piece := _PIECE.match(text, at):
        yield piece
        at = piece.end()


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
    end = match.end("role")
    if match["role"] is None or not match[0].startswith(" WITH ", end):  # a setting's value is the user's
        return match[0]
    attributes, password, rest = match[0][end:].partition(" PASSWORD '")
    return match[0][:end] + _BELOW.sub("", attributes) + password + rest


class _Text:
    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes) -> None:
        self.content += data


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
