"""Is what an open transaction has loaded what was backed up? Asked through the session that loaded it,
since nobody else can see it: rows, sequences and large objects.

A table's rows are first compared in order, and where they differ, without: as `proof` does.
"""

import hashlib
import re
import time
from collections import defaultdict

from backup_dag.core.manifest import Content
from backup_dag.core.postgres import AS_PG_DUMP_READS
from backup_dag.core.reading import Source
from backup_dag.core.restoring.proof import Proof, with_other_rows
from backup_dag.core.stages.dump import Conversation
from backup_dag.core.stream import Meter, Observer

_OPEN = re.compile(rb"SELECT pg_catalog\.lo_open\('(\d+)', ")
_WRITE = re.compile(rb"SELECT pg_catalog\.lowrite\(0, E?'\\?\\x([0-9a-f]*)'\);")
_CHUNK = 1 << 20
_LARGE_OBJECTS = f"""COPY (
    SELECT o.oid, encode(pg_catalog.lo_get(o.oid, n * {_CHUNK}, {_CHUNK}), 'hex')
    FROM pg_largeobject_metadata o,
         LATERAL (SELECT pg_catalog.lo_open(o.oid, 262144) AS fd) f,
         LATERAL (SELECT pg_catalog.lo_lseek64(f.fd, 0, 2) AS bytes) s,
         LATERAL (SELECT pg_catalog.lo_close(f.fd) AS done) c,
         LATERAL generate_series(0, (s.bytes - 1 + c.done) / {_CHUNK}) n
    ORDER BY o.oid, n
) TO STDOUT"""


def prove_within(
    source: Source, psql: Conversation, objects: "LargeObjectsRead", observer: Observer | None
) -> Proof:
    """Compares what the transaction holds with the manifest, and with the large objects as they were read.

    Raises DatabaseError where the session has ended, and what reading the artifact again raises.
    """
    began, content = time.monotonic(), source.manifest.content
    for setting in [*AS_PG_DUMP_READS, f"SET client_encoding TO '{source.manifest.source.encoding}'"]:
        psql.write(f"{setting};\n".encode())
    meter = Meter(observer, expected=sum(table.bytes for table in content.tables.values()))
    faults, again = _tables(content, psql, meter)
    notes = []
    if again:
        others = with_other_rows(source, psql, again)
        faults += [f"table {name} has other content in the same number of rows" for name in others]
        same = sorted(again - set(others))
        notes = [f"table {name} came back with the same rows in another order" for name in same]
    faults += [*_sequences(content, psql), *_large_objects(content, psql, objects)]
    return Proof(tuple(faults), tuple(notes), round(time.monotonic() - began, 3))


def _tables(content: Content, psql: Conversation, meter: Meter) -> tuple[list[str], set[str]]:
    """What is certainly wrong, and which tables must be compared again without regard to order."""
    faults, again = [], set()
    roots = set(psql.answer(b"SELECT oid::regclass FROM pg_class WHERE relkind = 'p'"))
    for name, promised in content.tables.items():
        if name in roots or "\\" in name:  # loaded through the root; a name in no encoding
            again.add(name)
            continue
        rows = _Rows(meter)
        psql.ask(f"COPY {name} TO STDOUT".encode(), rows)
        if rows.count != promised.rows:
            faults.append(f"table {name} has {rows.count:,} rows, {promised.rows:,} were backed up")
        elif rows.sha256.hexdigest() != promised.sha256:
            again.add(name)
    return faults, again


class _Rows:
    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.count, self.sha256 = 0, hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.count += data.count(b"\n")
        self.sha256.update(data)
        self._meter.count(len(data))


def _sequences(content: Content, psql: Conversation) -> list[str]:
    faults = []
    for name, promised in content.sequences.items():
        if "\\" in name:
            continue
        said = f"SELECT last_value || CASE WHEN is_called THEN ' true' ELSE ' false' END FROM {name}"
        [found] = psql.answer(said.encode())
        if found != promised:
            faults.append(f"sequence {name} stands at {found}, {promised} was backed up")
    return faults


class LargeObjectsRead:
    """Large objects as they pass in a dump's text: a digest of each one's content, by its number."""

    def __init__(self) -> None:
        self._held = b""
        self._number = b""
        self.digests: dict[bytes, hashlib._Hash] = defaultdict(hashlib.sha256)

    def write(self, data: bytes) -> None:
        *lines, self._held = (self._held + data).split(b"\n")
        for line in lines:
            if opened := _OPEN.match(line):
                self._number = opened[1]
                self.digests[self._number].update(b"")
            elif written := _WRITE.match(line):
                self.digests[self._number].update(written[1])


class _LargeObjectsThere:
    """The same, as the server tells them: a line for each piece."""

    def __init__(self) -> None:
        self._held = b""
        self.digests: dict[bytes, hashlib._Hash] = defaultdict(hashlib.sha256)

    def write(self, data: bytes) -> None:
        *lines, self._held = (self._held + data).split(b"\n")
        for line in lines:
            number, _, content = line.partition(b"\t")
            self.digests[number].update(content)


def _large_objects(content: Content, psql: Conversation, read: LargeObjectsRead) -> list[str]:
    if not content.large_objects.count:
        return []
    there = _LargeObjectsThere()
    psql.ask(_LARGE_OBJECTS.encode(), there)
    before, now = (
        {number: digest.hexdigest() for number, digest in each.digests.items()} for each in (read, there)
    )
    if before == now:
        return []
    differ = sorted(int(n) for n in before.keys() | now.keys() if before.get(n) != now.get(n))
    said = ", ".join(map(str, differ[:10]))
    return [f"{len(differ):,} large objects have other content or are missing ({said})"]
