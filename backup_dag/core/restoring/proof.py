"""Does a restored database hold what its backup promised? By content: every digest of the manifest.

The restored database is dumped again, with the options that the backup was made with, and its dump is
read as the first one was. Digests that are equal prove. One that differs is looked at again, without
regard to order, since a restore may bring rows or columns back in another order (pages with a low
fill factor, tables that inherit): the artifact is read again for those tables alone. Where that
differs too, the restored database is not what was backed up.
"""

import hashlib
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from backup_dag.core.address import Address
from backup_dag.core.clients import Clients, find_clients
from backup_dag.core.manifest import Content, Manifest, major
from backup_dag.core.postgres import Session, connected
from backup_dag.core.reading import Source
from backup_dag.core.stages.dump import dumping
from backup_dag.core.stages.fingerprint import Fingerprint, RowsWriter
from backup_dag.core.stream import Meter, Observer, Writer

_NAME_AND_COLUMNS = re.compile(rb'((?:"(?:[^"]|"")*"|[^\s"(])+) (?:\((.*)\))?', re.DOTALL)
_HEADER = re.compile(rb"^-- (?:Data for )?Name: .*; Type: .*; Schema: .*$", re.MULTILINE)
_TRAILER = b"\n--\n-- PostgreSQL database dump complete\n"
_MOST_SAID = 20


@dataclass(frozen=True)
class Proof:
    """`faults` is empty where every table, sequence, large object and the schema are as promised.
    `notes` say what had to be looked at twice. Seconds of wall clock."""

    faults: tuple[str, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        return not self.faults


class Copying(Protocol):
    """Whoever can run a COPY … TO STDOUT in a database."""

    def copy_out(self, statement: bytes, sink: Writer, encoding: str) -> None: ...


def prove(source: Source, restored: Address, observer: Observer | None = None) -> Proof:
    """Compares the database at `restored` with the manifest.

    Raises:
        DatabaseError: it could not be read. BackupDagError: the artifact could not be read again.
    """
    began = time.monotonic()
    with connected(restored) as session:
        clients = find_clients(session.server_major, source.settings.pg_bin_dir)
        read_along = _ReadAlong()
        found = _content_of(session, clients, source.manifest, read_along, observer)
        faults, again = _at_first_sight(source.manifest.content, found)
        notes: list[str] = []
        if again:
            more, notes = _looked_at_again(source, session, again, read_along, clients)
            faults += more
    said = faults[:_MOST_SAID] + ([f"… and {len(faults) - _MOST_SAID} more"] * (len(faults) > _MOST_SAID))
    return Proof(tuple(said), tuple(notes), round(time.monotonic() - began, 3))


class _ReadAlong:
    """What a fingerprint hands on of everything but rows."""

    def __init__(self) -> None:
        self.schema, self.objects = Schema(), _Objects()


def _content_of(
    session: Session, clients: Clients, manifest: Manifest, along: _ReadAlong, observer: Observer | None
) -> Content:
    fingerprint = Fingerprint(schema=along.schema, objects=along.objects)
    meter = Meter(observer, expected=manifest.dump.bytes)
    options = [*manifest.dump.options, f"--encoding={_encoding(manifest, session)}"]
    with (
        session.snapshot() as snapshot,
        dumping(session.address, clients, snapshot, format="sql", options=options) as dump,
    ):
        while block := dump.read():
            fingerprint.write(block)
            meter.count(len(block))
    return fingerprint.finish()


def _encoding(manifest: Manifest, session: Session) -> str:
    """That of the backup, whatever the restored database's is. SQL_ASCII is none, and is not turned into
    another or from one."""
    return "SQL_ASCII" if session.is_sql_ascii else manifest.source.encoding


_OBJECTS, _SCHEMA = " large objects", " schema"  # no table is called so: a dump quotes such names


def _at_first_sight(promised: Content, found: Content) -> tuple[list[str], list[str]]:
    """What is certainly wrong, and what must be compared again without regard to order."""
    faults, again = [], []
    for name in sorted(promised.tables.keys() | found.tables.keys()):
        before, now = promised.tables.get(name), found.tables.get(name)
        if before is None or now is None:
            faults.append(f"table {name} {'was not in the backup' if before is None else 'is missing'}")
        elif before.rows != now.rows:
            faults.append(f"table {name} has {now.rows:,} rows, {before.rows:,} were backed up")
        elif before.sha256 != now.sha256:
            again.append(name)
    for name in sorted(promised.sequences.keys() | found.sequences.keys()):
        if promised.sequences.get(name) != found.sequences.get(name):
            faults.append(
                f"sequence {name} stands at {found.sequences.get(name, 'nothing')},"
                f" {promised.sequences.get(name, 'nothing')} was backed up"
            )
    if promised.large_objects.count != found.large_objects.count:
        faults.append(
            f"there are {found.large_objects.count:,} large objects,"
            f" {promised.large_objects.count:,} were backed up"
        )
    elif promised.large_objects != found.large_objects:
        again.append(_OBJECTS)
    if promised.schema_sha256 != found.schema_sha256:
        again.append(_SCHEMA)
    return faults, again


def _looked_at_again(
    source: Source, session: Session, again: list[str], found: _ReadAlong, clients: Clients
) -> tuple[list[str], list[str]]:
    """Reads the artifact once more, for these alone: faults, and notes on what proved to be the same."""
    rows, promised = {name: Rows() for name in again if name not in (_OBJECTS, _SCHEMA)}, _ReadAlong()
    source.read(Fingerprint(rows=_handed_to(rows), schema=promised.schema, objects=promised.objects))
    faults: list[str] = []
    notes: list[str] = []
    if _SCHEMA in again:
        faults, notes = _schemas_compared(source.manifest, promised.schema, found.schema, clients)
    if _OBJECTS in again and promised.objects.total != found.objects.total:
        faults.append("the large objects have other content")
    for name, there in rows.items():
        if there.total == rows_of(session, there, _encoding(source.manifest, session)).total:
            notes.append(f"table {name} came back with the same rows in another order")
        else:
            faults.append(f"table {name} has other content in the same number of rows")
    return faults, notes


def with_other_rows(source: Source, where: Copying, tables: Iterable[str]) -> list[str]:
    """Which of these tables hold other rows, whatever their order. Reads the artifact again."""
    rows, encoding = {name: Rows() for name in tables}, source.manifest.source.encoding
    source.read(Fingerprint(rows=_handed_to(rows)))
    return [name for name, read in rows.items() if read.total != rows_of(where, read, encoding).total]


def _schemas_compared(
    manifest: Manifest, promised: "Schema", found: "Schema", clients: Clients
) -> tuple[list[str], list[str]]:
    missing, added, changed = promised.compared(found)
    if clients.major == major(manifest.dump.client_version):
        faults = [f"{entry} is missing" for entry in missing]
        faults += [f"{entry} was not in the backup" for entry in added]
        faults += [f"{entry} differs" for entry in changed]
        return faults, [] if faults else ["the schema came back with columns or objects in another order"]
    said = (
        f"the schema was compared by the names of its {len(promised.entries())} objects: pg_dump"
        f" {manifest.dump.client_version} and {clients.version} describe them differently"
    )
    # large objects are listed one by one by some versions and in groups by others: their content is compared
    return [f"{entry} is missing" for entry in missing if not entry.startswith("blob")], [said]


class _Objects:
    """Large objects without their order: the sum of one hash for each, over its number and its content."""

    def __init__(self) -> None:
        self._held, self._sum = b"", 0
        self._one = hashlib.blake2b(digest_size=16)

    def write(self, data: bytes) -> None:
        *lines, self._held = (self._held + data).split(b"\n")
        for line in lines:
            if line.startswith(b"SELECT pg_catalog.lo"):
                self._one.update(line)
            if line.startswith(b"SELECT pg_catalog.lo_close("):
                self._sum += int.from_bytes(self._one.digest(), "big")
                self._one = hashlib.blake2b(digest_size=16)

    @property
    def total(self) -> int:
        return self._sum % (1 << 128)


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
    match = _NAME_AND_COLUMNS.fullmatch(backed_up.what)
    assert match is not None
    table, columns = match.groups(b"")
    itself = b"'" + table.replace(b"'", b"''") + b"'::regclass"
    rows = Rows()
    where.copy_out(
        b"COPY (SELECT "
        + columns
        + b" FROM "
        + table
        + b" AS one WHERE one.tableoid = "
        + itself
        + b" OR EXISTS (SELECT FROM pg_class WHERE oid = "
        + itself
        + b" AND relkind = 'p')) TO STDOUT",
        rows,
        encoding,
    )
    return rows


class Schema:
    """The text of a schema, object by object; each one's lines without their order."""

    def __init__(self) -> None:
        self._text = bytearray()

    def write(self, data: bytes) -> None:
        self._text += data

    def entries(self) -> dict[str, list[str]]:
        """By pg_dump's own header, the sorted digests of what stands under it (it may stand twice)."""
        text, found = bytes(self._text).partition(_TRAILER)[0], dict[str, list[str]]()
        starts = [match.start() for match in _HEADER.finditer(text)]
        for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
            header, _, body = text[start:end].rstrip(b"-\n").partition(b"\n")  # a frame of -- surrounds each
            lines = sorted(line.rstrip(b",") for line in body.splitlines())  # the last column has no comma
            name = header.decode(errors="backslashreplace").removeprefix("-- ").removeprefix("Data for ")
            found.setdefault(_in_words(name), []).append(hashlib.sha256(b"\n".join(lines)).hexdigest())
        return {name: sorted(digests) for name, digests in found.items()}

    def compared(self, other: "Schema") -> tuple[list[str], list[str], list[str]]:
        """What the other lacks, what it has besides, and what differs: by name."""
        ours, theirs = self.entries(), other.entries()
        both: Iterable[str] = ours.keys() & theirs.keys()
        return (
            sorted(ours.keys() - theirs.keys()),
            sorted(theirs.keys() - ours.keys()),
            sorted(name for name in both if ours[name] != theirs[name]),
        )


_ENTRY = re.compile(
    r"Name: (?P<name>.*); Type: (?P<type>[A-Z ]+); Schema: (?P<schema>.*?); Owner: .*", re.DOTALL
)


def _in_words(header: str) -> str:
    match = _ENTRY.fullmatch(header)
    if match is None:
        return header
    within = "" if match["schema"] == "-" else f" in schema {match['schema']}"
    return f"{match['type'].lower()} {match['name']}{within}"


_DATA = ("table data ", "sequence set ", "blob", "materialized view data ", "statistics data ")


def schema_faults(manifest: Manifest, promised: Schema, restored: Address, clients: Clients) -> list[str]:
    """What differs in the schema alone, of a database whose rows others write to by now. By the client
    programs that loaded it."""
    found = Schema()
    with connected(restored) as session:
        options = [*manifest.dump.options, f"--encoding={_encoding(manifest, session)}", "--schema-only"]
        with (
            session.snapshot() as snapshot,
            dumping(session.address, clients, snapshot, format="sql", options=options) as dump,
        ):
            fingerprint = Fingerprint(schema=found)
            while block := dump.read():
                fingerprint.write(block)
    faults, _ = _schemas_compared(manifest, promised, found, clients)
    return [fault for fault in faults if not fault.startswith(_DATA)]
