"""The checksum of the artifact as stored: the file that `sha256sum -c` reads, and the comparison.

Works on ciphertext, so it needs no key.
"""

from collections.abc import Iterable

from backup_dag.core.errors import IntegrityError
from backup_dag.core.manifest import Bytes, File


def checksum_file(files: Iterable[File]) -> str:
    """The text of a `.sha256` file, in the format of coreutils' sha256sum."""
    return "".join(f"{file.sha256}  {file.name}\n" for file in files)


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
