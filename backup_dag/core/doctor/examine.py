"""Everything a backup needs, looked at before it is needed; each finding with what to do about it."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path

from dotenv import dotenv_values

from backup_dag.core import process
from backup_dag.core.audit import entries, log_file
from backup_dag.core.databases import Database, configured
from backup_dag.core.doctor.databases import of_database
from backup_dag.core.doctor.finding import Finding, failed, ok, warn
from backup_dag.core.doctor.keys import authenticity, key, old_passphrases
from backup_dag.core.doctor.people import heartbeat, told_of_trouble, waiting_alerts
from backup_dag.core.doctor.places import disk, drills, stores
from backup_dag.core.errors import BackupDagError
from backup_dag.core.gpg import gpg_at
from backup_dag.core.settings import Settings, environment_value, load


def examine(*, send_test_alert: bool = False) -> Iterator[Finding]:
    """Looks at one thing after the other; what fails does not keep the rest from being looked at.

    With `send_test_alert`, everyone who is told of trouble is told that there is none.
    """
    databases: tuple[Database, ...] = ()
    try:
        settings = load()
    except BackupDagError as error:
        yield failed("settings", error)
        return
    yield from _env_file()
    try:
        databases = configured(settings)
        yield ok("settings", f"databases: {', '.join(each.name for each in databases)}")
    except BackupDagError as error:
        yield failed("settings", error)
    looks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("tools", _tools),
        ("key", lambda: key(settings)),
        ("old passphrases", lambda: old_passphrases(settings, databases)),
        ("authenticity", lambda: authenticity(settings)),
        *((each.name, lambda each=each: of_database(settings, each)) for each in databases),
        ("disk", lambda: disk(settings, databases)),
        ("drills", lambda: drills(settings, databases)),
        ("stores", lambda: stores(settings)),
        ("alerts", lambda: waiting_alerts(settings)),
        ("time zone", lambda: _zone(settings)),
        ("alerts", lambda: told_of_trouble(settings, send_test_alert=send_test_alert)),
        ("heartbeat", lambda: heartbeat(settings)),
        ("audit log", lambda: _audit_log(settings)),
        ("Dagster", _dagster),
    ]
    for what, look in looks:
        try:
            yield from look()
        except BackupDagError as error:
            yield failed(what, error)


def _env_file() -> Iterator[Finding]:
    """Who may read .env, and names in it that nothing reads."""
    path = Path(".env")
    if not path.is_file():
        return
    if path.stat().st_mode & 0o077:
        yield warn(
            ".env's mode", "others on this machine may read it, and the secrets in it", "chmod 600 .env"
        )
    ours = [name for name in dotenv_values(path) if name.startswith("BACKUP_")]
    for name in ours:
        if name.lower() not in Settings.model_fields:
            like = get_close_matches(name, [known.upper() for known in Settings.model_fields], 1)
            yield warn(name, "nothing reads it", f"is it {like[0]}?" if like else "see .env.example")


def _tools() -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as home, gpg_at(Path(home), []) as gpg:
        yield ok("gpg", f"version {'.'.join(map(str, gpg.version))}")
    if process.dies_with_us():
        yield ok("setpriv", "children die with us, even when we are killed")
    else:
        yield warn("setpriv", "not found: a pg_dump could outlive us", "install util-linux")


def _zone(settings: Settings) -> Iterator[Finding]:
    now = datetime.now(settings.zone)
    yield ok(
        "time zone", f"{settings.backup_timezone}: the partition day is now {now.date()} (it is {now:%H:%M})"
    )


def _audit_log(settings: Settings) -> Iterator[Finding]:
    path = log_file(settings.backup_dir)
    count = sum(1 for _ in entries(settings.backup_dir))
    yield ok("audit log", f"{path}: {count:,} entries" if count else f"{path}: nothing has been done yet")


def _dagster() -> Iterator[Finding]:
    """Asks Dagster itself, in a process of its own: this program does without it."""
    home = environment_value("DAGSTER_HOME")
    if not home:
        yield ok("Dagster", "DAGSTER_HOME is not set; make ui sets it to the project's folder")
        return
    try:
        process.output(
            [sys.executable, "-m", "dagster", "instance", "info"], env={**os.environ, "DAGSTER_HOME": home}
        )
    except process.ChildFailed as ended:
        last = ended.stderr.splitlines()[-1] if ended.stderr else str(ended)
        yield Finding(
            "fail", "Dagster", f"its instance in {home} cannot be opened: {last}", "see dagster.yaml", 3
        )
    else:
        yield ok("Dagster", f"its instance in {home} opens")
