"""A small part of the torture of Dagster's runs; and that its record's questions can be answered wrongly."""

import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetMaterialization,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    Output,
    job,
    op,
)

from torture.case import run
from torture.orchestra import orchestra
from torture.record import belied, newest, told
from torture.world import DATABASE, KEY, World, world

SEED = 20261125
FEW = ("dagster/backup/before it begins", "dagster/backup/pg_dump", "dagster/backup/the host")
Event = AssetMaterialization | AssetCheckEvaluation


@pytest.fixture(scope="module")
def made() -> Iterator[World]:
    with world() as one:
        yield one


@pytest.mark.timeout(400)
def test_dagsters_record_says_nothing_that_is_not_so(made: World) -> None:
    tallies = run(made, [case for case in orchestra(SEED) if case.name in FEW], lambda line: None, times=5)
    assert [found for tally in tallies.values() for found in tally.found] == []
    assert sum(tally.tried for tally in tallies.values()) == len(FEW)


def said(made: World, *events: Event, error: Exception | None = None) -> str:
    """What is found of a backup's run that records these events, and then ends so."""

    @op
    def pretend() -> Iterator[Event | Output[None]]:
        yield from events
        if error:
            raise error
        yield Output(None)

    @job(name=f"{DATABASE}_backup")
    def pretending() -> None:
        pretend()

    with DagsterInstance.ephemeral() as instance:
        ended = pretending.execute_in_process(instance=instance, raise_on_error=False)
        recorded = instance.get_run_by_id(ended.run_id)
        assert recorded is not None
        return "; ".join(belied(made, instance, recorded))


def test_a_record_that_says_what_is_not_so_is_seen(made: World) -> None:
    """Each of these is a lie that no run of ours tells: the questions must find it all the same."""
    made.reset()
    manifest = newest(made)
    backup, sha256 = manifest["backup"], manifest["artifact"]["sha256"]

    def materialized(name: str, **values: str) -> AssetMaterialization:
        of_it = {"backup": backup, "sha256": sha256, **values}
        return AssetMaterialization([DATABASE, name], metadata=of_it)

    assert "failed by no error of ours" in said(made, error=RuntimeError("lost"))
    assert "raw_dump was materialized 0 times" in said(made)
    nowhere = materialized("s3_copy", backup=f"backup_{DATABASE}_20200101_000000")
    assert "has no manifest in the bucket" in said(made, nowhere)
    assert "is not that of" in said(made, materialized("checksum", sha256="0" * 64))
    drilled = AssetMaterialization(
        [DATABASE, "restore_drill"], metadata={"backup": backup, "outcome": "proven"}
    )
    assert "is recorded beside no copy" in said(made, drilled)
    passed = AssetCheckEvaluation(
        asset_key=drilled.asset_key, check_name="restore_proven", passed=True, metadata={"backup": backup}
    )
    assert "no such check of" in said(made, passed)
    (made.backups / manifest["artifact"]["name"]).write_bytes(b"another")
    assert "is not what its manifest says" in said(made, materialized("checksum"))
    made.reset()


def test_a_run_that_never_ends_is_seen(made: World) -> None:
    with DagsterInstance.ephemeral() as instance:
        left = instance.add_run(DagsterRun(job_name=f"{DATABASE}_backup", status=DagsterRunStatus.STARTED))
        assert "stays STARTED" in "; ".join(belied(made, instance, left))


def test_a_secret_in_dagsters_files_is_seen_packed_or_not(made: World, tmp_path: Path) -> None:
    assert list(told(made, tmp_path)) == []
    with closing(sqlite3.connect(tmp_path / "runs.db")) as connection, connection:
        connection.execute("CREATE TABLE snapshots (body)")
        connection.execute("INSERT INTO snapshots VALUES (?)", (zlib.compress(KEY.encode()),))
    assert list(told(made, tmp_path)) == ["Dagster's runs.db holds the passphrase"]
    (tmp_path / "said").write_text(made.url)
    assert "Dagster's said holds a password" in list(told(made, tmp_path))
