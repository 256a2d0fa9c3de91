"""The checksum of the artifact as stored: the file that `sha256sum -c` reads, and the comparison.

Works on ciphertext, so it needs no key.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from backup_dag.core.errors import IntegrityError
from backup_dag.core.manifest import Bytes, File, holds_data, owner_of
from backup_dag.core.stream import Hashing
from backup_dag.core.work import new_file

_LARGEST = 1 << 16  # bytes of a `.sha256`: it has four lines at most
_LINE = re.compile(r"[0-9a-f]{64}  (?P<name>\S+)\n", re.ASCII)


def checksum_file(files: Iterable[File]) -> str:
    """The text of a `.sha256` file, in the format of coreutils' sha256sum."""
    return "".join(f"{file.sha256}  {file.name}\n" for file in files)


def is_listed(text: bytes, files: Sequence[File]) -> bool:
    """Whether a `.sha256` file is that of these files. While a backup is being re-encrypted, it also lists
    those that they take the place of, or that take theirs: other files of the same backup, each once."""
    if len(text) > _LARGEST:
        return False
    said, promised = text.decode(errors="replace"), checksum_file(files)
    others = said.removesuffix(promised) if said.endswith(promised) else said.removeprefix(promised)
    if len(others) == len(said):
        return False
    listed = [_LINE.fullmatch(line) for line in others.splitlines(keepends=True)]
    names = {found["name"] for found in listed if found}
    owners = {owner_of(file.name) for file in files}
    ours = all(holds_data(name) and {owner_of(name)} == owners for name in names)
    return ours and len(names) == len(listed) and names.isdisjoint(file.name for file in files)


def measured(text: bytes) -> Bytes:
    """Length and digest of what is in memory."""
    hashing = Hashing()
    hashing.write(text)
    return hashing.seen()


def written(path: Path, text: bytes) -> Bytes:
    """Writes a new file that only its owner may read; returns its length and digest. Raises DiskError."""
    with new_file(path) as file:
        file.write(text)
    return measured(text)


def compare(name: str, expected: Bytes, found: Bytes) -> None:
    """Raises IntegrityError where length or digest differ from what the manifest promises."""
    if found.bytes != expected.bytes:
        raise IntegrityError(
            f"{name} has {found.bytes:,} bytes where the manifest promises {expected.bytes:,}",
            hint="it was cut short or written over; use the other store's copy, or another backup",
        )
    if found.sha256 != expected.sha256:
        raise IntegrityError(
            f"{name} has SHA-256 {found.sha256} where the manifest promises {expected.sha256}",
            hint="its bytes have changed since it was written; use the other store's copy, or another backup",
        )
