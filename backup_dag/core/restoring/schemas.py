"""Is the schema of a restored database that which was backed up? Its dump's text, object by object.

A table's lines are compared without their order, since columns may come back in another; so are grants. Where
two versions of pg_dump describe the same objects differently, the objects are compared by name.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

from backup_dag.core.clients import Clients
from backup_dag.core.manifest import Manifest, major

_HEADER = re.compile(
    rb"^-- (?:Data for )?Name: (?>.*?; Type: )(?>.*?; Schema: ).*$", re.MULTILINE
)  # a line is read once, whatever a function's body repeats in it
_TRAILER = b"\n--\n-- PostgreSQL database dump complete\n"
_NAME, _OWNER = "Name: ", "; Owner: "
_TYPE_AND_SCHEMA = re.compile(r"; Type: ([A-Z ]++); Schema: ")
_IN_ANY_ORDER = ("table ", "foreign table ", "acl ", "default acl ")
"""Entries that are sets of lines: of columns, of grants. A text (a function, an enum) is compared as it
stands."""
_NAMED_NOT_NULL = re.compile(rb' CONSTRAINT (?:"(?:[^"]|"")*"|[^\s"]+) NOT NULL')
"""PostgreSQL 18 names these, and otherwise if the name is taken by then: a table that was made LIKE another
has the other's names, and whichever is restored later gets new ones."""
_PART = re.compile(r'"((?:[^"]|"")*)"|([^".]+)')
_OF_DATA = ("table data ", "sequence set ", "materialized view data ", "statistics data ")
"""Entries about what is in the objects: that is compared by itself."""


class Schema:
    """The text of a schema, object by object; a table's lines without their order."""

    def __init__(self) -> None:
        self._text = bytearray()

    def write(self, data: bytes) -> None:
        self._text += data

    def entries(self, *, as_it_stands: bool = False) -> dict[str, list[str]]:
        """By pg_dump's own header, the sorted digests of what stands under it (it may stand twice)."""
        text, found = _without_trailer(bytes(self._text)), dict[str, list[str]]()
        starts = [match.start() for match in _HEADER.finditer(text)]
        for start, end in pairwise([*starts, len(text)]):
            header, _, body = text[start:end].rstrip(b"-\n").partition(b"\n")  # a frame of -- surrounds each
            said = header.decode(errors="backslashreplace").removeprefix("-- ").removeprefix("Data for ")
            name = _in_words(said)
            if name.startswith(_IN_ANY_ORDER):
                lines = list(map(_as_set, body.splitlines()))
                body = b"\n".join(lines if as_it_stands else sorted(lines))
            found.setdefault(name, []).append(hashlib.sha256(body).hexdigest())
        return {name: sorted(digests) for name, digests in found.items() if not name.startswith(_OF_DATA)}

    def in_another_order(self, other: "Schema", tables: Iterable[str]) -> list[str]:
        """Those of these tables (as SQL names them) whose columns have another order in the other.

        Their rows must be compared by their columns' names: two that have changed places, and their values
        with them, put out the same text.
        """
        ours, theirs = (each.entries(as_it_stands=True) for each in (self, other))
        named = {table: _entry_of(table) for table in tables}
        return sorted(table for table, entry in named.items() if ours.get(entry) != theirs.get(entry))

    def compared(self, other: "Schema") -> tuple[list[str], list[str], list[str]]:
        """What the other lacks, what it has besides, and what differs: by name."""
        ours, theirs = self.entries(), other.entries()
        both: Iterable[str] = ours.keys() & theirs.keys()
        return (
            sorted(ours.keys() - theirs.keys()),
            sorted(theirs.keys() - ours.keys()),
            sorted(name for name in both if ours[name] != theirs[name]),
        )


def _as_set(line: bytes) -> bytes:
    """A line of a set: the last column has no comma, and names that the server chose are none."""
    return _NAMED_NOT_NULL.sub(b" NOT NULL", line.rstrip(b","))


def _without_trailer(text: bytes) -> bytes:
    """Up to the last one: a function's body may hold that line too."""
    end = text.rfind(_TRAILER)
    return text if end < 0 else text[:end]


def _in_words(header: str) -> str:
    """A name may hold what follows names: the last of these is pg_dump's own."""
    *_, last = [None, *_TYPE_AND_SCHEMA.finditer(header, 0, max(0, header.rfind(_OWNER)))]
    if last is None or not header.startswith(_NAME):
        return header
    schema = header[last.end() : header.index(_OWNER, last.end())]
    within = "" if schema == "-" else f" in schema {schema}"
    return f"{last[1].lower()} {header[len(_NAME) : last.start()]}{within}"


def _entry_of(table: str) -> str:
    """What the entry of a table is called that SQL names so: its name without quotes, on one line."""
    schema, name = (quoted.replace('""', '"') or plain for quoted, plain in _PART.findall(table))
    return re.sub(r"[\r\n]", " ", f"table {name} in schema {schema}")


def schema_faults(
    manifest: Manifest, promised: Schema, found: Schema, clients: Clients
) -> tuple[list[str], list[str]]:
    """In words, where a restored schema, dumped by these programs, is not the one that was backed up; and
    notes on how it was compared."""
    missing, added, changed = promised.compared(found)
    if clients.major == major(manifest.dump.client_version):
        faults = [f"{entry} is missing" for entry in missing]
        faults += [f"{entry} was not in the backup" for entry in added]
        return [*faults, *(f"{entry} differs" for entry in changed)], []
    said = (
        f"the schema was compared by the names of its {len(promised.entries())} objects: pg_dump"
        f" {manifest.dump.client_version} and {clients.version} describe them differently"
    )
    return list(_named_missing(missing)), [said]


def _named_missing(missing: Iterable[str]) -> Iterator[str]:
    """Large objects are listed one by one by some versions and in groups by others: their content is
    compared."""
    return (f"{entry} is missing" for entry in missing if not entry.startswith("blob"))
