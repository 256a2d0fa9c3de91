"""Digests of the content, read off pg_dump's plain text while it passes.

What is user text and what is pg_dump's own is told apart as the server would: by following quotes.
A function body may hold a line that looks like COPY, or like one of pg_dump's comments; it stands
between quotes, and pg_dump's own never do. COPY's rows are not read one by one: their end is a line
that holds only `\\.`, which no row can (the COPY text format escapes every backslash).

The source of the format: pg_dump's `pg_backup_archiver.c` and the COPY page of PostgreSQL's manual.
"""

import hashlib
import json
import re
from collections.abc import Callable
from enum import Enum, auto

from pydantic import ValidationError

from backup_dag.core.errors import IntegrityError
from backup_dag.core.manifest import Content, LargeObjects, Table
from backup_dag.core.stream import Writer

_TOKEN = re.compile(
    rb"""['"]|\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$"""
    rb"|--[^\n]*\n|^\\(?:un)?restrict [^\n]*\n|^COPY ",
    re.MULTILINE,
)
_QUOTED = rb'"(?:[^"]++|"")*+"'
_COPY = re.compile(rb"COPY ((?:%b|[^\s\"(])++) (\((?:%b|[^\")])*+\))? ?FROM stdin;\n" % (_QUOTED, _QUOTED))
_HEADER = re.compile(rb"-- (?:Data for )?Name: ")
_SEQUENCE = re.compile(rb"-- Name: .*; Type: SEQUENCE SET; Schema: ")
_LARGE_OBJECTS = re.compile(rb"-- Data for Name: (?:BLOBS|[0-9.]+); Type: BLOBS; Schema: -; Owner: ")
_AFTER_THE_ROWS = re.compile(
    rb"-- Name: .*; Type: (?:INDEX|CONSTRAINT|FK CONSTRAINT|TRIGGER|PUBLICATION|EVENT TRIGGER|POLICY"
    rb"|MATERIALIZED VIEW DATA); Schema: "
)
_UNSTEADY = (b"-- Dumped from database version ", b"-- Dumped by pg_dump version ")
_TRAILER = b"-- PostgreSQL database dump complete\n"
_TRANSACTION = re.compile(rb"^(?:BEGIN|COMMIT);\n", re.MULTILINE)
"""What pg_dump writes around the large objects, in a text."""

_SETVAL = re.compile(rb"SELECT pg_catalog\.setval\('((?:[^']++|'')*+)', (-?\d+), (true|false)\);\n")
_LARGE_OBJECT = b"SELECT pg_catalog.lo_open("
_ROWS_END = re.compile(rb"\n\\\.\n")  # a search for it runs faster than bytes.find
_LONGEST_PART = 3  # of that end, which may stand at the end of a block


class _Section(Enum):
    """What the text belongs to. Only before the first header, and after the trailer, is it nothing's."""

    PREAMBLE = auto()
    SCHEMA = auto()
    SEQUENCE = auto()
    LARGE_OBJECTS = auto()
    END = auto()


def _section_of(header: bytes) -> _Section:
    """A hostile name can move text from one digest to another, and never out of all of them."""
    if _LARGE_OBJECTS.match(header):
        return _Section.LARGE_OBJECTS
    return _Section.SEQUENCE if _SEQUENCE.match(header) else _Section.SCHEMA


RowsWriter = Callable[[str, bytes], Writer | None]
"""From a table's name, and name and columns as COPY takes them, to a writer for its rows (or None)."""


class Fingerprint:
    """Takes a plain dump block by block; `finish` tells its content. Memory does not grow with rows.

    The outcome does not depend on where the blocks are cut. Whoever wants to read along is handed the
    rows of single tables (`rows`), the rest of the SQL text (`schema`), and that of the large
    objects (`objects`); and all of it in order, but for pg_dump's own BEGIN and COMMIT around large objects,
    for who runs it within one transaction (`whole`).
    """

    def __init__(
        self,
        *,
        rows: RowsWriter | None = None,
        schema: Writer | None = None,
        objects: Writer | None = None,
        whole: Writer | None = None,
    ) -> None:
        self._whole_writer = whole
        self._left_out: list[tuple[int, int]] = []  # of what is being read, what `whole` is not to get
        self._rows_writer, self._schema_writer, self._objects_writer = rows, schema, objects
        self._held = b""  # come, but not yet read
        self._quote = b""  # what ends the quoted text we are in, if we are
        self._rows: _Rows | None = None  # the table whose rows we are in, if we are
        self._section = _Section.PREAMBLE
        self._tables: dict[str, _Rows] = {}
        self._sequence_text = bytearray()
        self._sequences: dict[str, str] = {}
        self._schema = hashlib.sha256()
        self._large_objects = hashlib.sha256()
        self._large_object_count = 0
        self._complete = False
        self.after_the_rows = False
        """Whether what pg_dump writes after the last rows has begun: indexes, constraints, triggers."""

    def write(self, data: bytes) -> None:
        data = self._held + data if self._held else data
        at, before = 0, -1
        while at != before:
            before = at
            at = self._read_rows(data, at) if self._rows else self._read_text(data, at)
        self._hand_on(data, at)
        self._held = data[at:]

    def _hand_on(self, data: bytes, end: int) -> None:
        """What has been read, to who wants all of it."""
        start, left_out, self._left_out = 0, self._left_out, []
        if self._whole_writer is not None:
            for out, again in left_out:
                self._whole_writer.write(data[start:out])
                start = again
            self._whole_writer.write(data[start:end])

    def finish(self) -> Content:
        """The content. Raises IntegrityError where the dump ended before its own last line, or names what it
        holds in a way that is not pg_dump's."""
        if not self._complete or self._held or self._quote or self._rows:
            raise IntegrityError(
                "the dump ends in the middle: pg_dump's closing line is missing",
                hint="use another backup; this one was cut short",
            )
        self._end_of_sequences()
        tables = {name: rows.table() for name, rows in sorted(self._tables.items())}
        objects = LargeObjects(count=self._large_object_count, sha256=self._large_objects.hexdigest())
        sequences, schema = dict(sorted(self._sequences.items())), self._schema.hexdigest()
        everything = (
            [[n, t.rows, t.sha256] for n, t in tables.items()],
            sequences,
            objects.model_dump(),
            schema,
        )
        try:
            return Content(
                tables=tables,
                sequences=sequences,
                large_objects=objects,
                schema_sha256=schema,
                sha256=hashlib.sha256(json.dumps(everything).encode()).hexdigest(),
            )
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][1])[:100]
            raise IntegrityError(
                f"the dump names a table or a sequence as pg_dump never does: {name!r}",
                hint="use another backup; see what wrote this one",
            ) from None

    def _read_rows(self, data: bytes, at: int) -> int:
        """Reads rows up to their end, or as far as is certain. `at` is the line break before them."""
        assert self._rows is not None
        ended = _ROWS_END.search(data, at)
        end = ended.start() if ended else max(at, len(data) - _LONGEST_PART)
        self._rows.take(data, at + 1, end + 1)
        if ended is None:
            return end
        self._rows = None
        return ended.end()

    def _read_text(self, data: bytes, at: int) -> int:
        """Reads whole lines outside of COPY's rows, as far as they have come or to the next rows."""
        if self._quote and data.find(self._quote, at) < 0:  # quoted text may be long, and one line
            stop = max(at, len(data) - len(self._quote) + 1)
            self._take(data, at, stop)
            return stop
        stop = data.rfind(b"\n", at) + 1
        taken = at
        while at < stop:
            if self._quote:
                end = data.find(self._quote, at, stop)
                at = stop if end < 0 else end + len(self._quote)
                self._quote = self._quote if end < 0 else b""
            elif (token := _TOKEN.search(data, at, stop)) is None:
                at = stop
            elif token.group() == b"COPY ":
                self._take(data, taken, token.start())
                return self._begin_rows(data, token.start(), stop)
            else:
                at = token.end()
                taken = self._pass(data, taken, token)
        self._take(data, taken, at)
        return at

    def _pass(self, data: bytes, taken: int, token: "re.Match[bytes]") -> int:
        """Passes a quote or a comment; returns up to where the text has been taken."""
        word = token.group()
        if not word.startswith((b"--", b"\\")):
            self._quote = word
            return taken
        header = _HEADER.match(word)
        if header is None and not word.startswith((b"\\", *_UNSTEADY)):
            if word == _TRAILER:
                self._complete = True
                self._take(data, taken, token.end())
                self._end_of_sequences()
                self._section = _Section.END
                return token.end()
            return taken
        self._take(data, taken, token.start())
        if header is None:
            return token.end()
        self._end_of_sequences()
        self._section = _section_of(word)
        self.after_the_rows = self.after_the_rows or _AFTER_THE_ROWS.match(word) is not None
        return token.start()

    def _take(self, data: bytes, start: int, end: int, *, copy: bool = False) -> None:
        """Text of the current section. A COPY statement is schema too, but is told with its rows."""
        text = memoryview(data)[start:end]
        told = self._section in (_Section.PREAMBLE, _Section.SCHEMA) and not copy
        if told and self._schema_writer is not None:
            self._schema_writer.write(bytes(text))
        if self._section is _Section.SEQUENCE:
            self._sequence_text += text
        elif self._section is _Section.LARGE_OBJECTS:
            self._large_objects.update(text)
            self._left_out += [found.span() for found in _TRANSACTION.finditer(data, start, end)]
            self._large_object_count += data.count(_LARGE_OBJECT, start, end)
            if self._objects_writer is not None:
                self._objects_writer.write(bytes(text))
        elif self._section is _Section.SCHEMA:
            self._schema.update(text)

    def _end_of_sequences(self) -> None:
        """Positions become values; whatever else stands in their sections counts as schema."""
        if not self._sequence_text:
            return
        for name, last, called in _SETVAL.findall(self._sequence_text):
            self._sequences[_text(name.replace(b"''", b"'"))] = f"{_text(last)} {_text(called)}"
        self._schema.update(_SETVAL.sub(b"", self._sequence_text))
        self._sequence_text.clear()

    def _begin_rows(self, data: bytes, start: int, stop: int) -> int:
        """Rows follow a whole COPY statement; where its end has not come yet, wait for it."""
        statement = _COPY.match(data, start, stop)
        if statement is None:
            return start
        self._take(data, start, statement.end() - 1, copy=True)
        name = _text(statement.group(1))
        if name not in self._tables:  # partitions loaded through their root come one after the other
            what = statement.group(1) + b" " + (statement.group(2) or b"")
            self._tables[name] = _Rows(self._rows_writer(name, what) if self._rows_writer else None)
        self._rows = self._tables[name]
        return statement.end() - 1


class _Rows:
    """What is known of one table's rows so far."""

    def __init__(self, writer: Writer | None) -> None:
        self._writer = writer
        self._rows = self._bytes = 0
        self._sha256 = hashlib.sha256()

    def take(self, data: bytes, start: int, end: int) -> None:
        self._sha256.update(memoryview(data)[start:end])
        if self._writer is not None:
            self._writer.write(data[start:end])
        self._rows += data.count(b"\n", start, end)
        self._bytes += end - start

    def table(self) -> Table:
        return Table(rows=self._rows, bytes=self._bytes, sha256=self._sha256.hexdigest())


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def differences(promised: Content, found: Content) -> list[str]:
    """In words, everything in which two fingerprints differ: none where they are equal."""
    said = []
    for name in sorted(promised.tables.keys() | found.tables.keys()):
        before, now = promised.tables.get(name), found.tables.get(name)
        if before is None or now is None:
            said.append(f"table {name} {'was not promised' if before is None else 'is missing'}")
        elif before.rows != now.rows:
            said.append(f"table {name} has {now.rows:,} rows where {before.rows:,} were promised")
        elif before != now:
            said.append(f"table {name} has other content in the same number of rows")
    for name in sorted(promised.sequences.keys() | found.sequences.keys()):
        if promised.sequences.get(name) != found.sequences.get(name):
            said.append(f"sequence {name} stands elsewhere")
    if promised.large_objects != found.large_objects:
        said.append("the large objects differ")
    if promised.schema_sha256 != found.schema_sha256:
        said.append("the schema differs")
    if not said and promised.sha256 != found.sha256:
        said.append("the manifest's digest of all content does not follow from its parts")
    return said
