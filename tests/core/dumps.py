"""Real dumps for tests: pg_dump, psql and pg_restore as a user would run them."""

import os
import subprocess
from collections.abc import Iterable, Iterator
from itertools import pairwise

from backup_dag.core.manifest import Content
from backup_dag.core.stages.fingerprint import Fingerprint
from demo.servers import Postgres


def pg_dump(server: Postgres, url: str, *options: str) -> bytes:
    """A dump of a database by the server's own client."""
    program: list[str | os.PathLike[str]] = [server.bin_dir / "pg_dump", f"--dbname={url}", *options]
    return subprocess.run(program, capture_output=True, check=True).stdout


def psql(server: Postgres, url: str, text: bytes) -> None:
    """Loads a plain dump, stopping at the first error."""
    program: list[str | os.PathLike[str]] = [
        server.bin_dir / "psql",
        "-X",
        "-q",
        "-v",
        "ON_ERROR_STOP=1",
        "-o",
        "/dev/null",
        "-d",
        url,
    ]
    subprocess.run(program, input=text, check=True, capture_output=True)


def pieces(data: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """The same bytes, cut at these offsets."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in pairwise(places):
        yield data[start:end]


def content(data: bytes, cuts: Iterable[int] = ()) -> Content:
    """The fingerprint of a dump that comes in pieces."""
    fingerprint = Fingerprint()
    for piece in pieces(data, cuts):
        fingerprint.write(piece)
    return fingerprint.finish()
