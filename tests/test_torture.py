"""A small part of `make torture`, of every kind of fault; and that its questions can be answered wrongly."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from torture.case import run
from torture.oracle import unkept
from torture.suite import KINDS, cases
from torture.world import BUCKET, DATABASE, Ended, World, world

SEED = 20261125
FINE = frozenset({0})


@pytest.fixture(scope="module")
def made() -> Iterator[World]:
    with world() as one:
        yield one


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dagster"])  # see test_torture_dagster.py
def test_every_promise_is_kept(made: World, kind: str) -> None:
    few = cases(SEED, [kind], "", quick=True)
    tallies = run(made, few, lambda line: None)
    assert [found for tally in tallies.values() for found in tally.found] == []
    assert sum(tally.tried for tally in tallies.values()) >= 3


def ended(*words: str, status: int = 0, said: str = "") -> Ended:
    return Ended(words, status, said, 0.0)


def found(made: World, of: Ended) -> str:
    return "; ".join(unkept(made, of, FINE))


def test_a_promise_that_is_not_kept_is_seen(made: World) -> None:
    """Each of these is a fault that no verb of ours makes: the questions must find it all the same."""
    made.reset()
    assert found(made, ended("backup")) == ""
    made.reset()
    assert "exits 3" in found(made, ended("backup", status=3))
    made.reset()
    made.does("DELETE FROM items WHERE n = 8", database=DATABASE)
    assert "the database is not what it was" in found(made, ended("backup"))
    made.reset()
    [artifact, *_] = made.backups.glob("*.sql.gz.gpg")
    body = bytearray(artifact.read_bytes())
    body[len(body) // 2] ^= 1
    artifact.write_bytes(body)
    assert "is not what it promises" in found(made, ended("verify"))
    made.reset()
    (made.temporary / "plain").write_bytes(b"\x1f\x8b" + bytes(100))
    assert "plain text in tmp/plain" in found(made, ended("restore"))
    made.reset()
    made.client.create_multipart_upload(Bucket=BUCKET, Key="backup_shop_20200101_000000.json")
    assert "an upload of backup_shop_20200101_000000.json" in found(made, ended("backup"))
    made.reset()
    assert "a restore that ended well did not bring back" in found(made, ended("restore"))


def test_a_process_that_outlives_its_verb_is_seen(made: World) -> None:
    made.reset()
    left = subprocess.run(  # by a shell that has ended: no child of ours, as our servers are
        ["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"],
        env={**os.environ, "TMPDIR": str(made.temporary)},
        capture_output=True,
        text=True,
        check=True,
    )
    child = int(left.stdout)
    try:
        assert f"it outlived backup: {child} sleep" in found(made, ended("backup"))
    finally:
        os.kill(child, signal.SIGKILL)
