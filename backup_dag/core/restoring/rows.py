"""Are the rows of restored tables those that were backed up? First in order, then without.

In order, a table's rows are one digest of its COPY text, taken block by block, several tables at a time. A
restore may bring rows back in another order (pages with a low fill factor) or columns (tables that inherit):
where a digest differs, the artifact is read again for that table alone, and its rows are summed without
regard to order, with the columns in the order in which they were backed up.
"""

import hashlib
import io
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from backup_dag.core.errors import DatabaseError
from backup_dag.core.manifest import Content, Table
from backup_dag.core.psql import Conversation
from backup_dag.core.reading import Source
from backup_dag.core.sql import AS_PG_DUMP_READS, literal
from backup_dag.core.stages.fingerprint import Fingerprint, RowsWriter
from backup_dag.core.stream import Meter, Writer

_NAME_AND_COLUMNS = re.compile(rb'((?:"(?:[^"]|"")*"|[^\s"(])+) (?:\((.*)\))?', re.DOTALL)
_DIGITS = "--extra-float-digits="
_OTHER_COLUMNS = ("42703", "42P01")  # undefined_column, undefined_table (PostgreSQL's errcodes.txt)
_QUOTING = "--quote-all-identifiers"
_TABLES, _ROOTS, _SEQUENCES = "r", "pf", "S"
"""Relkinds. A foreign table, like a partitioned one, is no source of COPY."""
_AT_ONCE = 200  # names in one statement


@dataclass(frozen=True)
class Differing:
    """A table that is not what was backed up. None: there is no such table. `keys` are the first rows that
    differ, by their primary key and in what; where there is none, or nobody looked, there are none. `why` it
    could not be read with the columns that it had."""

    table: str
    expected: int | None
    found: int | None
    keys: tuple[str, ...] = ()
    why: str = ""

    def __str__(self) -> str:
        if self.why:
            return f"table {self.table} cannot be read as it was backed up: {self.why}"
        if self.found is None or self.expected is None:
            return f"table {self.table} {'is missing' if self.found is None else 'was not in the backup'}"
        said = f"table {self.table} has {self.found:,} rows, {self.expected:,} were backed up"
        if self.expected == self.found:
            said = f"table {self.table} has other content in the same number of rows ({self.found:,})"
        return f"{said}; first: {', '.join(self.keys)}" if self.keys else said


class Copying(Protocol):
    """Whoever can run a COPY … TO STDOUT in a database."""

    def copy_out(self, statement: bytes, sink: Writer, encoding: str) -> None: ...


def set_to_read(psql: Conversation, encoding: str, options: Sequence[str]) -> None:
    """Has a psql put values out as a dump with those options has them, and take nothing but SQL: what it is
    asked from here on holds names of a backup's."""
    psql.restrict()
    digits = [option.removeprefix(_DIGITS) for option in options if option.startswith(_DIGITS)]
    said = [*AS_PG_DUMP_READS, f"SET client_encoding TO {literal(encoding)}"]
    said += [f"SET extra_float_digits TO {literal(each)}" for each in digits]
    said += ["SET quote_all_identifiers TO on"] * (_QUOTING in options)
    psql.write("".join(f"{each};\n" for each in said).encode())


def in_order(
    content: Content, psqls: Sequence[Conversation], meter: Meter
) -> tuple[list[Differing], list[str]]:
    """Compares every table of a backup by its rows in their order, as many at a time as there are psqls.

    What certainly differs, and the names of those that must be compared again without regard to order.
    Raises DatabaseError where a psql has ended.
    """
    names = _as_bytes(psqls[0], content.tables)
    roots = frozenset(_of_kind(psqls[0], names, _ROOTS))
    tables = frozenset(_of_kind(psqls[0], names, _TABLES))
    work = _Work(content, names, tables, roots, meter)
    with ThreadPoolExecutor(len(psqls)) as pool, _ended_on_error(psqls):
        for each in [pool.submit(work.through, psql) for psql in psqls]:
            each.result()
    return sorted(work.differing, key=lambda each: each.table), sorted(work.again)


@contextmanager
def _ended_on_error(psqls: Sequence[Conversation]) -> Iterator[None]:
    """One that fails, or an interruption, ends them all: nobody waits for a large table then."""
    try:
        yield
    except BaseException:
        for psql in psqls:
            psql.end()
        raise


def _as_bytes(psql: Conversation, names: Iterable[str]) -> dict[str, bytes]:
    """Names as the server takes them. In a manifest, bytes of them that are not UTF-8 stand escaped."""
    there = dict[str, bytes]()
    if any("\\" in name for name in names):
        said = io.BytesIO()
        psql.ask(b"SELECT oid::regclass FROM pg_class", said)
        there = {each.decode(errors="backslashreplace"): each for each in said.getvalue().splitlines()}
    return {name: there.get(name, name.encode()) for name in names}


def _of_kind(psql: Conversation, names: dict[str, bytes], kinds: str) -> Iterator[str]:
    """Those of these relations that are there, and of one of these kinds."""
    known = list(names)
    for some in (known[at : at + _AT_ONCE] for at in range(0, len(known), _AT_ONCE)):
        psql.ask(
            b"SELECT at FROM unnest(ARRAY[%b]) WITH ORDINALITY n (name, at) JOIN pg_class ON"
            b" oid = to_regclass(name) WHERE strpos(%b, relkind::text) > 0"
            % (b", ".join(_literal(names[name]) for name in some), _literal(kinds.encode())),
            said := io.BytesIO(),
        )
        yield from (some[int(at) - 1] for at in said.getvalue().split())


def _literal(value: bytes) -> bytes:
    return b"E'" + value.replace(b"\\", b"\\\\").replace(b"'", b"''") + b"'"


@dataclass
class _Work:
    """The tables that are still to be compared, the largest first, and what was found."""

    content: Content
    names: Mapping[str, bytes]
    tables: frozenset[str]
    roots: frozenset[str]
    meter: Meter
    differing: list[Differing] = field(default_factory=list)
    again: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._left = iter(sorted(self.content.tables.items(), key=lambda each: -each[1].bytes))
        self._lock = threading.Lock()

    def through(self, psql: Conversation) -> None:
        """Compares one after the other, until there are none left."""
        while (item := self._next()) is not None:
            name, promised = item
            if name in self.tables:
                self._compare(psql, name, promised)
            elif name in self.roots:
                self.again.append(name)
            else:
                self.differing.append(Differing(name, promised.rows, None))

    def _next(self) -> tuple[str, Table] | None:
        with self._lock:
            return next(self._left, None)

    def _compare(self, psql: Conversation, name: str, promised: Table) -> None:
        rows = _InOrder(self.meter)
        psql.ask(b"COPY %b TO STDOUT" % self.names[name], rows)
        if rows.count != promised.rows:
            self.differing.append(Differing(name, promised.rows, rows.count))
        elif rows.sha256.hexdigest() != promised.sha256:
            self.again.append(name)


class _InOrder:
    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.count, self.sha256 = 0, hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.count += data.count(b"\n")
        self.sha256.update(data)
        self._meter.count(len(data))


def sequences(content: Content, psql: Conversation) -> list[str]:
    """In words, the sequences that are missing or stand elsewhere. Raises DatabaseError."""
    names = _as_bytes(psql, content.sequences)
    there = list(_of_kind(psql, names, _SEQUENCES))
    faults = [f"sequence {name} is missing" for name in sorted(content.sequences.keys() - set(there))]
    for some in (there[at : at + _AT_ONCE] for at in range(0, len(there), _AT_ONCE)):
        said = io.BytesIO()
        asked = b"SELECT last_value || CASE WHEN is_called THEN ' true' ELSE ' false' END FROM "
        psql.ask(b";\n".join(asked + names[name] for name in some), said)
        for name, found in zip(some, said.getvalue().decode().splitlines(), strict=True):
            if found != content.sequences[name]:
                faults.append(f"sequence {name} stands at {found}, {content.sequences[name]} was backed up")
    return faults


class Rows:
    """Rows without their order: the sum of their hashes (BLAKE2b, 128 bits, modulo 2¹²⁸)."""

    def __init__(self) -> None:
        self.what = b""  # name and columns, as COPY takes them
        self._row = hashlib.blake2b(digest_size=16)  # the row that has begun, however long it is
        self._sum = 0
        self._count = 0

    def write(self, data: bytes) -> None:
        end, *rows = data.split(b"\n")
        self._row.update(end)
        for row in rows:
            self._sum += int.from_bytes(self._row.digest(), "big")
            self._row = hashlib.blake2b(row, digest_size=16)
        self._count += len(rows)

    @property
    def total(self) -> tuple[int, int]:
        """How many, and the sum."""
        return self._count, self._sum % (1 << 128)


def whatever_their_order(
    source: Source, where: Copying, tables: Iterable[str], encoding: str, *, first: Copying | None = None
) -> list[Differing]:
    """Which of these tables hold other rows, whatever their order. Reads the artifact again.

    `first` is asked whether a table can be read as it was; without it, one that cannot is an error.
    """
    rows = {name: Rows() for name in tables}
    source.read(Fingerprint(rows=_handed_to(rows)))
    compared = (_compared(name, read, where, encoding, first) for name, read in sorted(rows.items()))
    return [each for each in compared if each is not None]


def _compared(
    name: str, read: "Rows", where: Copying, encoding: str, first: Copying | None
) -> Differing | None:
    """None where the rows are the same. A column that is not there any more is no failure to look."""
    try:
        if first is not None:
            first.copy_out(_copying(read.what, b"false"), Rows(), encoding)
    except DatabaseError as error:
        if error.sqlstate not in _OTHER_COLUMNS:
            raise
        return Differing(name, read.total[0], None, why=error.message)
    there = rows_of(where, read, encoding)
    return None if read.total == there.total else Differing(name, read.total[0], there.total[0])


def _handed_to(rows: dict[str, Rows]) -> RowsWriter:
    def choose(name: str, what: bytes) -> Writer | None:
        if name in rows:
            rows[name].what = what
        return rows.get(name)

    return choose


def rows_of(where: Copying, backed_up: Rows, encoding: str) -> Rows:
    """The rows of a table now, with its columns in the order in which they were backed up.

    Of a partitioned table, through which its partitions' rows were backed up, those of all of them.
    """
    rows = Rows()
    where.copy_out(_copying(backed_up.what, b"true"), rows, encoding)
    return rows


def _copying(what: bytes, which: bytes) -> bytes:
    """The statement that puts out those rows of a table, `what` being its name and columns."""
    match = _NAME_AND_COLUMNS.fullmatch(what)
    assert match is not None
    table, columns = match.groups(b"")
    itself = _literal(table) + b"::regclass"
    return (
        b"COPY (SELECT %b FROM %b AS one WHERE %b AND (one.tableoid = %b"
        b" OR EXISTS (SELECT FROM pg_class WHERE oid = %b AND relkind = 'p'))) TO STDOUT"
        % (columns, table, which, itself, itself)
    )
