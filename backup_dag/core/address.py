"""Where a database is: a url taken apart, and put together for programs without its password."""

import os
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from backup_dag.core import process
from backup_dag.core.errors import ConfigurationError

_PARTS_UNLESS_GIVEN = {
    "application_name": "backup-dag",
    "keepalives_idle": "60",  # a session that waits for hours for the dump is not taken for dead on the way
    "keepalives_interval": "15",
    "keepalives_count": "8",
}


@dataclass(frozen=True)
class Address:
    """Where a database is. Shown and passed on without its password."""

    parts: dict[str, Any]

    @classmethod
    def of(cls, url: str, variable: str = "DATABASE_URL") -> "Address":
        """Raises ConfigurationError, naming the variable that held the url and not the url."""
        try:
            parts = {} if _ambiguous(url) else parse_dsn(url)
        except (psycopg2.ProgrammingError, UnicodeDecodeError):
            parts = {}
        if not parts.get("dbname"):
            raise ConfigurationError(
                f"{variable} is not a PostgreSQL address that names a database",
                hint="write it as postgresql://user:password@host:5432/name, a password's special characters"
                " percent-encoded (@ is %40, / is %2F, : is %3A, ? is %3F, # is %23, % is %25)",
            )
        return cls(parts)

    def __str__(self) -> str:
        where = self.parts.get("host") or self.parts.get("hostaddr") or "local socket"
        port = f":{self.parts['port']}" if "port" in self.parts else ""
        return f"{self.parts.get('dbname')} on {where}{port}"

    __repr__ = __str__

    @property
    def dbname(self) -> str:
        return str(self.parts["dbname"])

    def at(self, dbname: str) -> "Address":
        """Another database of the same server."""
        return Address({**self.parts, "dbname": dbname})

    def with_password(self) -> str:
        """The connection string with all that is in it. Never to be shown."""
        return str(make_dsn(**self.parts))

    def dbname_for_argv(self) -> str:
        """The database's name, for a program that takes `a=b` or `postgresql://…` for a connection string."""
        return str(make_dsn(dbname=self.dbname))

    def for_argv(self, **changed: str) -> str:
        """A connection string without the password, fit for a command line."""
        open_parts = {name: value for name, value in self.parts.items() if name != "password"}
        return str(make_dsn(**{**_PARTS_UNLESS_GIVEN, **open_parts, **changed}))

    def environment(self) -> dict[str, str]:
        """A client's environment: libpq's own variables, and the password where there is one."""
        libpq = {name: value for name, value in os.environ.items() if name.startswith(("PG", "KRB5"))}
        password = self.parts.get("password")
        return process.environment({**libpq, **({"PGPASSWORD": str(password)} if password else {})})


def _ambiguous(url: str) -> bool:
    """Whether a password in it is not encoded: what follows its / or @ would be taken for something else."""
    scheme, found, rest = url.partition("://")
    if not found or scheme not in ("postgresql", "postgres"):
        return False
    login, _, address = rest.partition("@")
    return "@" in address or ("@" in rest and any(character in login for character in "/?#"))
