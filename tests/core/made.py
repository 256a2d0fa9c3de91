"""Small backups made without a database: a manifest and its files, as bytes of our choosing."""

from datetime import UTC, date, datetime
from pathlib import Path

from backup_dag.core.manifest import (
    SCHEMA_VERSION,
    BackupId,
    Bytes,
    Compressed,
    Content,
    DatabaseFacts,
    Dumped,
    Encryption,
    File,
    Globals,
    LargeObjects,
    Manifest,
    Server,
    Table,
)
from backup_dag.core.stages.checksum import checksum_file
from backup_dag.core.stream import Hashing

NOON = datetime(2026, 3, 14, 12, 0, 0, tzinfo=UTC)
FINGERPRINT = "b3e215d3d6c5d003"  # of the passphrase that the tests' settings have
ARTIFACT, ROLES = b"not really a dump", b"not really roles"


def measured(data: bytes) -> Bytes:
    hashing = Hashing()
    hashing.write(data)
    return hashing.seen()


def written(path: Path, data: bytes) -> Bytes:
    """Writes a file; its length and digest."""
    path.write_bytes(data)
    return measured(data)


def manifest(name: str = "orders", time: datetime = NOON) -> Manifest:
    """A manifest whose files are ARTIFACT and ROLES."""
    backup = BackupId.of(name, time)
    artifact, roles = measured(ARTIFACT), measured(ROLES)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        backup=str(backup),
        database=name,
        partition_day=date(2026, 3, 14),
        reason="manual",
        snapshot_time=time,
        started=time,
        finished=time,
        seconds=1.5,
        made_by="backup-dag tests",
        server=Server(version="18.4", standby=False, system_identifier="7"),
        source=_facts(name),
        dump=Dumped(format="sql", client_version="18.4", options=[], bytes=3, sha256="aa"),
        compressed=Compressed(algorithm="gzip", level=2, bytes=2, sha256="bb"),
        encryption=Encryption(mode="symmetric", cipher="AES256", key_fingerprints=[FINGERPRINT]),
        artifact=File(name=backup.file("sql.gz.gpg"), **artifact.model_dump()),
        globals=Globals(name=backup.file("globals.sql.gz.gpg"), password_hashes=True, **roles.model_dump()),
        content=_content(),
        recover=["one", "two"],
    )


def _facts(name: str) -> DatabaseFacts:
    return DatabaseFacts(
        dbname=name,
        owner="postgres",
        encoding="UTF8",
        collate="C.UTF-8",
        ctype="C.UTF-8",
        locale_provider="libc",
        locale=None,
        connection_limit=-1,
        grants=None,
        comment="größe",
        settings=[],
        extensions={"plpgsql": "1.0"},
        bytes=1,
    )


def _content() -> Content:
    return Content(
        tables={"public.t": Table(rows=1, bytes=2, sha256="cc")},
        sequences={"public.s": "1 true"},
        large_objects=LargeObjects(count=0, sha256="dd"),
        schema_sha256="ee",
        sha256="ff",
    )


def lay_out(folder: Path, of: Manifest | None = None) -> Manifest:
    """Writes every file of a backup into a folder."""
    of = of or manifest()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / of.artifact.name).write_bytes(ARTIFACT)
    (folder / of.globals.name).write_bytes(ROLES)
    (folder / of.id.file("sha256")).write_text(checksum_file(of.files))
    (folder / of.id.file("json")).write_text(of.to_json())
    return of
