"""SQL as text: what is quoted, what stands for a value, and how our sessions read values. Pure."""

import re

from backup_dag.core.manifest import Setting

DUMPING = {"timezone": "UTC", "bytea_output": "hex", "quote_all_identifiers": "off"}
"""What pg_dump leaves to the session's settings, and changes its text: set for every dump, so that the same
content is the same text wherever and whenever it is dumped."""

AS_PG_DUMP_READS = (
    "SET search_path TO ''",
    "SET DateStyle TO ISO",
    "SET IntervalStyle TO postgres",
    "SET extra_float_digits TO 3",
    "SET row_security TO off",
    "SET synchronize_seqscans TO off",
    *(f"SET {name} TO '{value}'" for name, value in DUMPING.items()),
)
"""What makes COPY write values as our dumps have them (`setup_connection` in pg_dump.c, and DUMPING)."""

_VALUE = re.compile(r'"[^\n]*"')
_ELEMENT = re.compile(r'"(?:[^"]|"")*"|[^\s,"]+')
_LIST = re.compile(rf"\s*(?:(?:{_ELEMENT.pattern})\s*(?:,\s*(?:{_ELEMENT.pattern})\s*)*)?")
_QUOTED_LISTS = {
    "local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries",
    "temp_tablespaces", "unix_socket_directories",
}  # fmt: skip


def quoted(identifier: str) -> str:
    """An identifier as SQL text."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(value: str) -> str:
    """A string as an SQL literal, whatever standard_conforming_strings says."""
    text = "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
    return f"E{text}" if "\\" in value else text


def without_values(state: str | None, message: str) -> str:
    """What a server says, without the values of rows that it quotes: it is kept where others can read it.

    Data exceptions (class 22) quote them; what a function raises (class P0) may be anything.
    """
    if state is not None and state.startswith("P0"):
        return "a function raised an exception"
    return _VALUE.sub('"…"', message) if state is not None and state.startswith("22") else message


def setting_sql(setting: Setting, dbname: str) -> str:
    """The statement that gives a database, or a role in it, a setting."""
    database = quoted(dbname)
    whose = f"ROLE {quoted(setting.role)} IN DATABASE {database}" if setting.role else f"DATABASE {database}"
    value = setting.value or ""
    said = _list_sql(value) if setting.name in _QUOTED_LISTS else literal(value)
    name = ".".join(quoted(part) for part in setting.name.split("."))
    return f"ALTER {whose} SET {name} TO {said}"


def _list_sql(value: str) -> str:
    """A list that is stored quoted already (GUC_LIST_QUOTE in PostgreSQL's guc_tables.c), element by element:
    it may come from a manifest, and stands in a statement of ours."""
    if not _LIST.fullmatch(value):
        return literal(value)
    elements = [found[0] for found in _ELEMENT.finditer(value)]
    plain = (each[1:-1].replace('""', '"') if each.startswith('"') else each for each in elements)
    return ", ".join(map(literal, plain)) or "''"
