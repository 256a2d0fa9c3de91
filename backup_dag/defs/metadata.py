"""A manifest in Dagster's words. Names and units stay the same from night to night, for the plots.

Sizes are bytes, durations seconds, speeds MB/s of 10⁶ bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster import MetadataValue, TableColumn, TableRecord, TableSchema

from backup_dag.core.drilling.outcome import Outcome
from backup_dag.core.history import RECOVERY
from backup_dag.core.manifest import CHECKSUM, MANIFEST, Bytes, Manifest
from backup_dag.core.offsite import Copied

Values = Mapping[str, Any]
_MOST_TABLES = 1000  # rows of a table in one event; the manifest has them all


def of_database(made: Manifest) -> Values:
    return {
        "bytes": made.source.bytes,
        "server_version": made.server.version,
        "encoding": made.source.encoding,
        "snapshot_time": MetadataValue.timestamp(made.snapshot_time),
    }


def of_dump(made: Manifest) -> Values:
    return {
        **_stage(made, made.dump),
        "rows": made.content.rows,
        "dagster/row_count": made.content.rows,
        "tables": len(made.content.tables),
        "content_sha256": made.content.sha256,
        "snapshot_time": MetadataValue.timestamp(made.snapshot_time),
        "why": made.reason,
        "warnings": "\n".join(made.warnings) or "none",
        "format": made.dump.format,
        "server_version": made.server.version,
        "client_version": made.dump.client_version,
        "rows_by_table": _tables(made),
        "manifest": MetadataValue.json(made.model_dump(mode="json")),
    }


def of_compressed(made: Manifest) -> Values:
    return {
        **_stage(made, made.compressed),
        "ratio": round(made.dump.bytes / max(1, made.compressed.bytes), 3),
        "level": made.compressed.level,
    }


def of_encrypted(made: Manifest, folder: Path) -> Values:
    return {
        **_stage(made, made.artifact),
        "path": MetadataValue.path(folder / made.artifact.name),
        "encryption": made.encryption.mode,
        "cipher": made.encryption.cipher or "none",
        "key_fingerprint": ", ".join(made.encryption.key_fingerprints) or "none",
    }


def of_checksum(made: Manifest, folder: Path) -> Values:
    return {
        "sha256": made.artifact.sha256,
        "path": MetadataValue.path(folder / made.id.file(CHECKSUM)),
        "manifest_path": MetadataValue.path(folder / made.id.file(MANIFEST)),
        "backup": made.backup,
        "recover_by_hand": MetadataValue.md("```sh\n" + "\n".join(made.recover) + "\n```"),
    }


def of_copy(copied: Copied, seconds: float) -> Values:
    stored, artifact = copied.artifact, copied.manifest.artifact
    return {
        "bytes": artifact.bytes,
        "seconds": round(seconds, 3),
        "mb_per_s": _speed(artifact.bytes, seconds),
        "sha256": artifact.sha256,
        "uri": stored.address,
        "dagster/uri": stored.address,
        "backup": copied.manifest.backup,
        "uploaded_now": copied.new,
        "version_id": stored.details.get("version_id", "not versioned"),
        "etag": stored.details.get("etag", "none"),
    }


def of_known_copy(made: Manifest, address: str) -> Values:
    """Of a copy that is there, and was not made by the run that reports it."""
    return {
        "bytes": made.artifact.bytes,
        "sha256": made.artifact.sha256,
        "uri": address,
        "dagster/uri": address,
        "backup": made.backup,
        "uploaded_now": False,
    }


def of_drill(found: Outcome) -> Values:
    """The seconds of each step are numbers of their own, so that each has its plot."""
    return {
        "outcome": "proven" if found.proven else "NOT PROVEN",
        "faults": "\n".join(found.faults) or "none",
        "notes": "\n".join(found.notes) or "none",
        "backup": found.backup,
        "snapshot_time": MetadataValue.timestamp(found.snapshot_time),
        "copy": found.source,
        "restored_on": found.server,
        "authentication": found.authentication,
        "bytes": found.dump_bytes,
        "rows": found.rows,
        "tables": found.tables,
        "recovery_seconds": found.recovery,
        **{f"{step}_seconds": found.seconds.get(step, 0.0) for step in RECOVERY},
        "recovery_mb_per_s": _speed(found.dump_bytes, found.recovery),
        "rto_seconds": found.rto_seconds,
        **({"differing_tables": _differing(found)} if found.differing else {}),
        "as_json": MetadataValue.json(found.document()),
    }


def _differing(found: Outcome) -> MetadataValue:
    """-1: there is no such table."""
    names = {"table": "string", "expected_rows": "int", "found_rows": "int", "first_rows": "string"}
    return MetadataValue.table(
        records=[
            TableRecord(
                {
                    "table": each.table,
                    "expected_rows": -1 if each.expected is None else each.expected,
                    "found_rows": -1 if each.found is None else each.found,
                    "first_rows": ", ".join(each.keys) or each.why or "unknown",
                }
            )
            for each in found.differing[:_MOST_TABLES]
        ],
        schema=TableSchema(columns=[TableColumn(name, kind) for name, kind in names.items()]),
    )


def _stage(made: Manifest, passed: Bytes) -> Values:
    return {
        "bytes": passed.bytes,
        "seconds": made.seconds,
        "mb_per_s": _speed(passed.bytes, made.seconds),
        "sha256": passed.sha256,
        "backup": made.backup,
    }


def _speed(count: int, seconds: float) -> float:
    return round(count / 1e6 / max(seconds, 1e-3), 3)


def _tables(made: Manifest) -> MetadataValue:
    columns = [TableColumn("table", "string"), TableColumn("rows", "int"), TableColumn("bytes", "int")]
    largest = sorted(made.content.tables.items(), key=lambda item: -item[1].bytes)[:_MOST_TABLES]
    return MetadataValue.table(
        records=[TableRecord({"table": n, "rows": t.rows, "bytes": t.bytes}) for n, t in largest],
        schema=TableSchema(columns=columns),
    )
