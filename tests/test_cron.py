"""Backups where nobody is looking: by cron, or a timer."""

import json
from collections.abc import Callable
from urllib.parse import quote

from demo.servers import free_port
from tests.conftest import PASSWORD, Here, Terminal
from tests.web import Web

MakeTerminal = Callable[[str], Terminal]


def test_a_backup_that_fails_is_told_at_once_and_says_what_still_protects(
    sample: str, terminal: MakeTerminal, here: Here, web: Web
) -> None:
    ours = terminal(sample)
    made = here(ours, "backup", "--scheduled", "--json")
    assert made.returncode == 0, made.stderr
    manifest = json.loads(made.stdout)[0]["manifest"]
    assert manifest["reason"] == "scheduled"
    down = f"postgresql://postgres:{quote(PASSWORD, safe='')}@127.0.0.1:{free_port()}/sample"
    told = {"BACKUP_NOTIFY_URLS": f"json://127.0.0.1:{web.port}/", "DATABASE_URL": down}
    failed = here(ours, "backup", **told)
    assert failed.returncode == 4, failed.stderr
    [(_, _, body)] = web.requests
    said = body.decode()
    assert "the backup of sample failed" in said
    assert manifest["backup"] in said
    assert "check that the server runs" in said
    assert PASSWORD not in said
    assert down not in said


def test_where_nobody_can_be_told_the_backups_own_failure_is_what_counts(
    terminal: MakeTerminal, here: Here
) -> None:
    ours = terminal(f"postgresql://postgres@127.0.0.1:{free_port()}/sample")
    failed = here(ours, "backup", BACKUP_NOTIFY_URLS=f"json://127.0.0.1:{free_port()}/")
    assert failed.returncode == 4
    assert "nobody was told" in failed.stderr
    doctor = here(ours, "doctor").stdout
    assert "not delivered yet" in doctor
