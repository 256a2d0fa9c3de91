"""Where a database is: a url taken apart, and put together for programs without its password."""

import ipaddress
import os
import socket
from collections.abc import Mapping
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
        except (psycopg2.ProgrammingError, ValueError):  # a byte that is no text, or a NUL
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

    @property
    def host(self) -> str | None:
        """The machine that serves it, "" where that is this one (`this_machine`). None where that stands
        elsewhere, in a service's file."""
        where = self.parts.get("hostaddr") or self.parts.get("host")
        if not where and (self.parts.get("service") or os.environ.get("PGSERVICE")):
            return None
        where = str(where or os.environ.get("PGHOSTADDR") or os.environ.get("PGHOST") or "")
        others = [host for host in where.split(",") if not this_machine(host)]
        return others[0] if others else ""

    def at(self, dbname: str) -> "Address":
        """Another database of the same server."""
        return Address({**self.parts, "dbname": dbname})

    def having(self, parameters: Mapping[str, str]) -> "Address":
        """The same database, for sessions that begin with these parameters, after those that were given."""
        given = self.parts.get("options", os.environ.get("PGOPTIONS", ""))
        said = " ".join([given, *(f"-c {name}={value}" for name, value in parameters.items())]).strip()
        return Address({**self.parts, "options": said}) if parameters else self

    def named(self, name: str) -> "Address":
        """The same database, for sessions that the server shows by that name, behind one that was given."""
        given = str(self.parts.get("application_name", _PARTS_UNLESS_GIVEN["application_name"]))
        return Address(
            {**self.parts, "application_name": f"{given.encode()[:40].decode(errors='ignore')} {name}"}
        )

    @property
    def session_name(self) -> str:
        """By which the server shows its sessions."""
        return str(self.parts.get("application_name", _PARTS_UNLESS_GIVEN["application_name"]))

    def is_beside(self, other: "Address") -> bool:
        """Whether the other is a database of the same server, reached in the same way."""
        apart = ("dbname", "options")
        ours, theirs = (
            {name: value for name, value in each.parts.items() if name not in apart} for each in (self, other)
        )
        return ours == theirs

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


def this_machine(host: str) -> bool:
    """Whether a host's name or address is this machine's, or a socket's: by what it says, nobody is asked."""
    name = host.strip("[]").lower()
    if not name or name.startswith(("/", "@")) or name in ("localhost", socket.gethostname().lower()):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.endswith(".localhost")


def _ambiguous(url: str) -> bool:
    """Whether a password in it is not encoded: what follows its / or @ would be taken for something else. And
    what follows a NUL for nothing at all."""
    if "\0" in url:
        return True
    scheme, found, rest = url.partition("://")
    if not found or scheme not in ("postgresql", "postgres"):
        return False
    login, _, address = rest.partition("@")
    return "@" in address or ("@" in rest and any(character in login for character in "/?#"))
