"""`backup-dag status`: the truth after a backup, a copy, a restore, on real servers, as a user sees it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backup_dag.core.watching import page
from demo.servers import Postgres, S3Server, free_port
from tests.conftest import Here, Terminal, asked, make_database, name_of, run_sql


@pytest.fixture
def url(postgres: Postgres) -> Iterator[str]:
    made = make_database(postgres)
    run_sql(made, "CREATE TABLE people AS SELECT n FROM generate_series(1, 50) n")
    yield made
    for (name,) in asked(postgres.url(), "SELECT datname FROM pg_database"):
        if name.startswith(name_of(made)):
            run_sql(postgres.url(), f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def ours(terminal: Callable[[str], Terminal], url: str) -> Terminal:
    return terminal(url)


@pytest.fixture
def locking(ours: Terminal, s3: S3Server, bucket: str) -> Terminal:
    """The same, with a bucket that locks what comes for two days."""
    s3.create_bucket(f"{bucket}-locking", object_lock=True)
    ours.environment |= {
        **s3.environment(),
        "AWS_S3_BUCKET": f"{bucket}-locking",
        "BACKUP_S3_OBJECT_LOCK_MODE": "GOVERNANCE",
        "BACKUP_S3_OBJECT_LOCK_DAYS": "2",
    }
    return ours


def document(here: Here, ours: Terminal, code: int = 0, **changed: str) -> dict[str, Any]:
    ended = here(ours, "status", "--json", **changed)
    assert ended.returncode == code, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def the_one(found: dict[str, Any]) -> dict[str, Any]:
    [one] = found["databases"]
    return dict(one)


def test_it_says_the_truth_after_each_step(here: Here, locking: Terminal, url: str) -> None:
    before = the_one(document(here, locking))
    assert (before["database"], before["newest_good"], before["retained"]) == (name_of(url), None, 0)
    assert before["verdicts"]["rpo"]["holds"] is False
    made = json.loads(here(locking, "backup", "--json").stdout)[0]["manifest"]["backup"]
    backed = the_one(document(here, locking))
    assert backed["newest_good"]["backup"] == made
    assert 0 <= backed["newest_good"]["age_seconds"] < 60
    assert (backed["newest_proven"], backed["last_recovery"]) == (None, None)
    assert [place["what"] for place in backed["places"]] == ["database", "local", "s3"]
    assert backed["encryption"]["mode"] == "symmetric"
    assert backed["locked_until"] is not None
    said = {name: verdict["holds"] for name, verdict in backed["verdicts"].items()}
    assert said == {
        "rpo": True,
        "rto": None,
        "copies": True,
        "media": False,
        "off_site": False,
        "proof": False,
        "intact": True,
        "days": True,
        "encryption": True,
        "immutability": True,
    }
    words = ("restore", "--mode", "new", "--target-database", f"{name_of(url)}_proof", "--force")
    assert here(locking, *words).returncode == 0
    proven = the_one(document(here, locking))
    assert proven["newest_proven"]["backup"] == made
    assert (proven["proven"], proven["retained"], proven["proven_percent"]) == (1, 1, 100)
    measured = proven["last_recovery"]
    assert (measured["what"], measured["backup"]) == ("restore", made)
    counted = ("verify", "build", "prove", "swap")
    assert measured["seconds"] == pytest.approx(sum(measured["steps"][step] for step in counted), abs=0.01)
    assert proven["verdicts"]["rto"]["holds"]
    assert proven["verdicts"]["proof"]["holds"]


def test_a_table_for_people_and_what_does_not_hold_below_it(here: Here, ours: Terminal, url: str) -> None:
    assert here(ours, "backup").returncode == 0
    ended = here(ours, "status")
    assert ended.returncode == 0, "what does not hold is no error"
    head, _, row, strip, *rest = ended.stdout.splitlines()
    assert head.split() == page.COLUMNS
    assert row.split()[0] == name_of(url)
    assert "3✗ 2✗ 1✗" in row
    assert strip == f"{'·' * 29}○  {name_of(url)}, the last 30 days"
    at = rest.index(f"✗ 1 off-site ({name_of(url)}): no bucket is set")
    assert rest[at + 1] == "    → set AWS_S3_BUCKET and its credentials"
    assert "✓ holds   ✗ does not   ? not known" in ended.stderr


def test_a_store_that_does_not_answer_is_an_error_once_all_else_is_told(
    here: Here, locking: Terminal
) -> None:
    assert here(locking, "backup").returncode == 0
    away = {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{free_port()}"}
    found = document(here, locking, 7, **away)
    assert [error["exit_code"] for error in found["missed"]] == [7]
    assert the_one(found)["verdicts"]["rpo"]["holds"] is True
    assert the_one(found)["verdicts"]["off_site"]["holds"] is None
    ended = here(locking, "status", **away)
    assert ended.returncode == 7
    assert "not asked: s3; what it would have to say is not known" in ended.stderr
    assert "3? 2? 1?" in ended.stdout
    unset = document(here, locking, 7, **away, BACKUP_ENCRYPTION_KEY="another that never was")
    assert the_one(unset)["unopened"] == 0, "the bucket's copy may be under it"
    refused = here(locking, "restore", "latest-proven", "--dry-run", **away)
    assert refused.returncode == 7
    assert "is known to be proven, and where it may be, nobody answers" in refused.stderr
    assert "restore latest, or an id" in refused.stderr


def test_one_database_by_its_name_and_one_that_nobody_knows(here: Here, ours: Terminal, url: str) -> None:
    assert f"{name_of(url)}, the last 30 days" in here(ours, "status", "--database", name_of(url)).stdout
    ended = here(ours, "status", "--database", "nobody")
    assert ended.returncode == 5
    assert f"there are: {name_of(url)}" in ended.stderr


def test_on_a_bare_server_the_stores_are_asked_what_there_was(
    here: Here, ours: Terminal, url: str, tmp_path: Path
) -> None:
    assert here(ours, "backup").returncode == 0
    found = document(here, ours, DATABASE_URL="")
    assert the_one(found)["database"] == name_of(url)
    assert the_one(found)["verdicts"]["copies"]["holds"] is None, "whether the database is left is not known"
    assert "no database is configured" in found["faults"]["configuration"]
    empty = here(ours, "status", DATABASE_URL="", BACKUP_DIR=str(tmp_path / "none"))
    assert empty.returncode == 0
    assert "no database is configured, and there is no backup" in empty.stderr
