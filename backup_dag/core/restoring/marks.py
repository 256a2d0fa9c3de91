"""What restores have made or kept on a server, by a mark on the database itself: its comment.

So any host can find it, finish it or undo it. A comment can be set by a database's owner, superuser or not;
so a mark counts only on a database whose owner is the target's, or we: nobody else can pass theirs off.
And it counts only under the name it was written for: a database that someone has renamed since is theirs.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from backup_dag.core.postgres import MARK, Session
from backup_dag.core.sql import literal

Role = Literal["restoring", "before"]


@dataclass(frozen=True)
class Made:
    """A database that a restore made or kept: which one it stands in for, since when (UTC), and the comment
    that it had before."""

    name: str
    role: Role
    of: str
    since: datetime
    backup: str
    comment: str | None = None

    @property
    def mark(self) -> str:
        """ASCII, so that it reads the same in every encoding."""
        said = {
            "role": self.role,
            "of": self.of,
            "name": self.name,
            "since": self.since.astimezone(UTC).isoformat(),
            "backup": self.backup,
            "comment": self.comment,
        }
        return MARK.removesuffix("{") + json.dumps(said)


def marked(session: Session, of: str, role: Role) -> list[Made]:
    """What restores of the database `of` made and left, or kept; the newest first. Never `of` itself."""
    rows = session.rows(
        f"""
        SELECT d.datname AS name, c.description AS said
        FROM pg_database d, shobj_description(d.oid, 'pg_database') c (description)
        WHERE starts_with(c.description, {literal(MARK)}) AND d.datname <> {literal(of)}
          AND d.datdba IN (SELECT datdba FROM pg_database WHERE datname = {literal(of)}
                           UNION SELECT oid FROM pg_roles WHERE rolname = current_user)
        """
    )
    found = (made for row in rows for made in _read(row["name"], row["said"]))
    ours = [made for made in found if (made.of, made.role) == (of, role)]
    return sorted(ours, key=lambda made: made.since, reverse=True)


def _read(name: str, said: str) -> Iterator[Made]:
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        known = json.loads(said.removeprefix(MARK.removesuffix("{")))
        if known["name"] == name:
            since = datetime.fromisoformat(known["since"])
            since = since if since.tzinfo else since.replace(tzinfo=UTC)
            yield Made(name, known["role"], known["of"], since, known["backup"], known["comment"])
