"""Which databases are backed up, and how: DATABASE_URL, and `backup.toml` for more.

A `backup.toml` holds one table a database, and never a secret: a url is given by the *name* of the
environment variable that holds it.

    [databases.orders]
    url_env = "ORDERS_DATABASE_URL"
    exclude_table_data = ["public.sessions"]
"""

import os
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from backup_dag.core.address import Address
from backup_dag.core.errors import ConfigurationError
from backup_dag.core.options import PASSED_ON, SELECTING
from backup_dag.core.settings import CompressionLevel, Format, Settings, environment_value

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,62}", re.ASCII)


class Plan(BaseModel):
    """How one database is dumped. Patterns are pg_dump's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    include_schemas: tuple[str, ...] = ()
    exclude_schemas: tuple[str, ...] = ()
    include_tables: tuple[str, ...] = ()
    exclude_tables: tuple[str, ...] = ()
    exclude_table_data: tuple[str, ...] = ()
    format: Format = "sql"
    compression_level: Annotated[CompressionLevel, Field(strict=True)] = 2
    pg_dump_options: tuple[str, ...] = ()

    @field_validator("pg_dump_options")
    @classmethod
    def _leaves_our_options_alone(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            if option.split("=")[0] not in PASSED_ON:
                raise ValueError(
                    f"{option.split('=')[0]!r} cannot be passed on: an entry is --name or --name=value,"
                    f" the name one of {' '.join(sorted(PASSED_ON))}"
                )
        return options

    def options(self) -> list[str]:
        """These choices in pg_dump's own words."""
        patterns = (
            *(self.include_schemas, self.exclude_schemas, self.include_tables),
            *(self.exclude_tables, self.exclude_table_data),
        )
        chosen = zip(SELECTING, patterns, strict=True)
        named = [f"--{option}={pattern}" for option, each in chosen for pattern in each]
        return [*named, *self.pg_dump_options]


class Database(BaseModel):
    """One database to back up. `name` stands in asset keys and file names."""

    model_config = ConfigDict(frozen=True)

    name: str
    url: SecretStr
    plan: Plan

    @property
    def address(self) -> Address:
        return Address.of(self.url.get_secret_value())


class _Entry(Plan):
    url_env: str


def configured(settings: Settings, env_file: Path | None = Path(".env")) -> tuple[Database, ...]:
    """Every configured database, in order: DATABASE_URL's first, then the file's.

    Raises:
        ConfigurationError: there is none, two share a name, a url is malformed, or the file is bad
            (then the line and the key are named).
    """
    usable, faults = told_apart(settings, env_file)
    for fault in faults.values():
        raise fault
    return usable


def told_apart(
    settings: Settings, env_file: Path | None = Path(".env")
) -> tuple[tuple[Database, ...], dict[str, ConfigurationError]]:
    """The databases that can be used, and why others cannot: by their names, or DATABASE_URL's own.

    For whoever looks after all of them, and must not be kept from it by one. Raises ConfigurationError:
    there is none, two share a name, or the file as a whole cannot be read.
    """
    found: list[Database] = []
    faults: dict[str, ConfigurationError] = {}
    defaults: dict[str, Any] = {
        "format": settings.backup_format,
        "compression_level": settings.backup_compression_level,
    }
    if settings.database_url is not None:
        try:
            url = _checked_url(settings.database_url.get_secret_value(), "DATABASE_URL")
            name = _name_of(Address.of(url).dbname)
            found.append(Database(name=name, url=SecretStr(url), plan=Plan(**defaults)))
        except ConfigurationError as error:
            faults["DATABASE_URL"] = error
    given = settings.backup_config != Path("backup.toml")
    text, tables = _tables(settings.backup_config, given=given)
    for name, table in tables.items():
        try:
            found.append(_one(settings.backup_config, text, name, table, defaults, env_file))
        except ConfigurationError as error:
            faults[name] = error
    _check_names(settings, [database.name for database in found] + [*faults])
    return tuple(found), faults


def _check_names(settings: Settings, names: Sequence[str]) -> None:
    if not names:
        raise ConfigurationError(
            f"no database is configured: DATABASE_URL is not set, and there is no {settings.backup_config}",
            hint="set DATABASE_URL=postgresql://user:password@host:5432/name in the environment or .env",
        )
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigurationError(
                f"two databases are called {name!r}",
                hint=f"give one of them another name in {settings.backup_config} ([databases.NAME])",
            )


def choose(databases: Sequence[Database], name: str | None) -> Database:
    """The database of that name, or the only one. Raises ConfigurationError, naming those there are."""
    if name is None and len(databases) == 1:
        return databases[0]
    for database in databases:
        if database.name == name:
            return database
    known = ", ".join(database.name for database in databases)
    said = "several databases are configured" if name is None else f"no database is called {name!r}"
    raise ConfigurationError(said, hint=f"choose one with --database: {known}")


def whole_database(like: Database, address: Address) -> Database:
    """All of another database of the same server, whatever the nightly backup of this one leaves out."""
    name = like.name if address.dbname == like.address.dbname else _name_of(address.dbname)
    plan = Plan(format=like.plan.format, compression_level=like.plan.compression_level)
    return Database(name=name, url=SecretStr(address.with_password()), plan=plan)


def _tables(path: Path, *, given: bool) -> tuple[str, dict[str, Any]]:
    """The file's text, and its tables by the databases' names."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        if given:
            raise ConfigurationError(
                f"there is no {path}",
                hint="see BACKUP_CONFIG, which names it; leave it out to use DATABASE_URL alone",
            ) from None
        return "", {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"reading {path} failed: {error}", hint="make it readable UTF-8") from None
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of a number without end, or of lists within lists
        raise ConfigurationError(f"{path} is not TOML: {error}", hint="mend that line") from None
    if path == Path(os.devnull):
        return "", {}
    for key in document:
        if key != "databases":
            raise ConfigurationError(
                f"{path}, line {_line_of_table(text, key)}, {key[:100]}: unknown",
                hint="only [databases.NAME] is known",
            )
    tables = document.get("databases")
    if not isinstance(tables, dict):
        raise ConfigurationError(f"{path} has no [databases.NAME] table", hint="add one for each database")
    return text, tables


def _one(
    path: Path, text: str, name: str, table: Any, defaults: dict[str, Any], env_file: Path | None
) -> Database:
    if not _NAME.fullmatch(name):
        raise _bad_file(path, text, name, None, "a name is letters, digits and _, at most 63 of them")
    try:
        entry = _Entry.model_validate({**defaults, **table} if isinstance(table, dict) else table)
    except ValidationError as error:
        fault = error.errors()[0]
        key = str(fault["loc"][0]) if fault["loc"] else None
        raise _bad_file(path, text, name, key, _in_words(fault["type"], fault["msg"])) from None
    if not _VARIABLE.fullmatch(entry.url_env):
        raise _bad_file(
            path, text, name, "url_env", "not the name of an environment variable (and never a url)"
        )
    url = environment_value(entry.url_env, env_file)
    if url is None:
        why = f"the environment variable {entry.url_env} is not set"
        raise _bad_file(path, text, name, "url_env", why, hint="set it in the environment or in .env")
    plan = Plan(**entry.model_dump(exclude={"url_env"}))
    return Database(name=name, url=SecretStr(_checked_url(url, entry.url_env)), plan=plan)


def _in_words(type: str, message: str) -> str:
    """What pydantic says of a value, as it would be said of a line in this file."""
    said = {
        "extra_forbidden": f"unknown; there are {', '.join(_Entry.model_fields)}",
        "missing": "missing; give the name of the environment variable that holds the url",
        "tuple_type": "must be a list, such as ['public.orders']",
    }
    return said.get(type, message)


def _bad_file(
    path: Path,
    text: str,
    name: str,
    key: str | None,
    why: str,
    hint: str = "mend that key; backup.toml.example shows every one",
) -> ConfigurationError:
    place = f"databases.{name}" + (f".{key}" if key else "")
    return ConfigurationError(
        f"{path}, line {_line_of(text, name, key)}, {place}: {why}",
        hint=hint,
    )


def _line_of(text: str, name: str, key: str | None) -> int:
    """The line of a key in its table, or of the table's header where the key isn't there (counted from 1)."""
    header = re.compile(rf"""\s*\[\s*databases\s*\.\s*["']?{re.escape(name)}["']?\s*\]""")
    wanted = re.compile(rf"""\s*["']?{re.escape(key or "")}["']?\s*=""")
    at = 1
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        if header.match(line):
            at, inside = number, True
        elif inside and line.lstrip().startswith("["):
            break
        elif inside and key and wanted.match(line):
            return number
    if at == 1 and not inside and key:  # written as a dotted key, or as a table on one line
        anywhere = re.compile(rf"""(?:^|[.{{,\s])["']?{re.escape(key)}["']?\s*=""")
        return next((n for n, line in enumerate(text.splitlines(), 1) if anywhere.search(line)), 1)
    return at


def _line_of_table(text: str, key: str) -> int:
    """The line where a top-level key or table first stands (counted from 1)."""
    wanted = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[].=]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if wanted.match(line)), 1)


def _checked_url(url: str, variable: str) -> str:
    parts = Address.of(url, variable).parts
    if "sslpassword" in parts:
        raise ConfigurationError(
            f"{variable} holds an sslpassword, which can only reach pg_dump on its command line",
            hint="use a client key without a passphrase, readable by this user alone",
        )
    return url


def _name_of(dbname: str) -> str:
    """A database's name as a name of ours: what is not a letter, a digit or _ becomes _."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", dbname)[:63]
    return name if _NAME.fullmatch(name) else f"db{name}"[:63]
