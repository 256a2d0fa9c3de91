"""Large objects, compared by the content of each: as they pass in a dump's text, or as a session sees
them."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping

from backup_dag.core.psql import Conversation

_OPEN = re.compile(rb"SELECT pg_catalog\.lo_open\('(\d+)', ")
_WRITE = re.compile(rb"SELECT pg_catalog\.lowrite\(0, E?'\\?\\x([0-9a-f]*)'\);")
_CHUNK = 1 << 20
_THERE = f"""COPY (
    SELECT o.oid, encode(pg_catalog.lo_get(o.oid, n * {_CHUNK}, {_CHUNK}), 'hex')
    FROM pg_largeobject_metadata o,
         LATERAL (SELECT pg_catalog.lo_open(o.oid, 262144) AS fd) f,
         LATERAL (SELECT pg_catalog.lo_lseek64(f.fd, 0, 2) AS bytes) s,
         LATERAL (SELECT pg_catalog.lo_close(f.fd) AS done) c,
         LATERAL generate_series(0, (s.bytes - 1 + c.done) / {_CHUNK}) n
    ORDER BY o.oid, n
) TO STDOUT"""
_MOST_NAMED = 10


class LargeObjects:
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


def large_object_faults(promised: LargeObjects, found: LargeObjects) -> list[str]:
    """In words, which of them are missing, too many, or of other content."""
    return _faults(promised.digests, found.digests)


def faults_within(promised: LargeObjects, psql: Conversation) -> list[str]:
    """The same, of an open transaction that nobody else can dump. Raises DatabaseError."""
    there = _LargeObjectsThere()
    psql.ask(_THERE.encode(), there)
    return _faults(promised.digests, there.digests)


def _faults(promised: Mapping[bytes, "hashlib._Hash"], found: Mapping[bytes, "hashlib._Hash"]) -> list[str]:
    before, now = (
        {int(number): digest.hexdigest() for number, digest in each.items()} for each in (promised, found)
    )
    differ = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
    if not differ:
        return []
    said = ", ".join(map(str, differ[:_MOST_NAMED])) + (", …" if len(differ) > _MOST_NAMED else "")
    count = f"{len(now):,} large objects are there, {len(before):,} were backed up"
    return [f"{count}; of other content, missing or added: {said}"]
