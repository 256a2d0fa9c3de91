"""Everything a backup needs, looked at before it is needed; each finding with what to do about it."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from math import log2
from pathlib import Path
from typing import Literal

from dotenv import dotenv_values

from backup_dag.core import process
from backup_dag.core.address import Address
from backup_dag.core.audit import entries, log_file
from backup_dag.core.authenticity import authenticator, demanded
from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.clients import find_clients
from backup_dag.core.copies import Backup, Copy
from backup_dag.core.databases import Database, configured
from backup_dag.core.drilling.confinement import can_shut_in
from backup_dag.core.drilling.own_checks import own_checks
from backup_dag.core.drilling.scratch import server_programs
from backup_dag.core.errors import (
    BackupDagError,
    BackupNotFound,
    ConfigurationError,
    DatabaseError,
    DeliveryFailed,
    DiskError,
    StoreError,
)
from backup_dag.core.gpg import gpg_at
from backup_dag.core.in_words import size
from backup_dag.core.key import Fingerprints, encryption_key, known_fingerprints
from backup_dag.core.postgres import Session, connected
from backup_dag.core.privileges import hidden_by_row_security, not_readable
from backup_dag.core.restoring.target import target_at
from backup_dag.core.settings import Settings, environment_value, load
from backup_dag.core.store.local import LocalStore
from backup_dag.core.watching.alerts import Alert, deliver_each, heartbeat_host
from backup_dag.core.watching.delivery import receivers
from backup_dag.core.watching.telling import waiting
from backup_dag.core.work import work_directory

_ENOUGH_BITS = 80
_MOST_SECONDS_APART = 5


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's. `exit_code` is 0 unless the verdict is fail."""

    verdict: Literal["ok", "warn", "fail"]
    what: str
    found: str
    advice: str = ""
    exit_code: int = 0


def ok(what: str, found: str) -> Finding:
    return Finding("ok", what, found)


def warn(what: str, found: str, advice: str) -> Finding:
    return Finding("warn", what, found, advice)


def examine(*, send_test_alert: bool = False) -> Iterator[Finding]:
    """Looks at one thing after the other; what fails does not keep the rest from being looked at.

    With `send_test_alert`, everyone who is told of trouble is told that there is none.
    """
    databases: tuple[Database, ...] = ()
    try:
        settings = load()
    except BackupDagError as error:
        yield _failed("settings", error)
        return
    yield from _env_file()
    try:
        databases = configured(settings)
        yield ok("settings", f"databases: {', '.join(each.name for each in databases)}")
    except BackupDagError as error:
        yield _failed("settings", error)
    looks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("tools", _tools),
        ("key", lambda: _key(settings)),
        ("old passphrases", lambda: _old_passphrases(settings, databases)),
        ("authenticity", lambda: _authenticity(settings)),
        *((each.name, lambda each=each: _database(settings, each)) for each in databases),
        ("disk", lambda: _disk(settings, databases)),
        ("drills", lambda: _drills(settings, databases)),
        ("stores", lambda: _stores(settings)),
        ("alerts", lambda: _waiting(settings)),
        ("time zone", lambda: _zone(settings)),
        ("alerts", lambda: _told_of_trouble(settings, send_test_alert=send_test_alert)),
        ("heartbeat", lambda: _heartbeat(settings)),
        ("audit log", lambda: _audit_log(settings)),
        ("Dagster", _dagster),
    ]
    for what, look in looks:
        try:
            yield from look()
        except BackupDagError as error:
            yield _failed(what, error)


def _failed(what: str, error: BackupDagError) -> Finding:
    return Finding("fail", what, error.message, error.hint, error.exit_code)


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


def _key(settings: Settings) -> Iterator[Finding]:
    key = encryption_key(settings)
    if key.mode == "off":
        yield warn(
            "key", "BACKUP_ENCRYPTION=off: backups are NOT encrypted", "set BACKUP_ENCRYPTION_KEY, and on"
        )
    elif key.mode == "recipients":
        yield ok("key", f"encrypts to {', '.join(key.fingerprints)}; keep the secret key off this host")
    else:
        bits = _strength(key.passphrase or "")
        advice = "openssl rand -base64 32 makes a good one; keep the old one for the old backups"
        said = f"passphrase of fingerprint {key.fingerprints[0]}, at most {bits:.0f} bits"
        yield ok("key", said) if bits >= _ENOUGH_BITS else warn("key", f"{said}: too weak", advice)


def _old_passphrases(settings: Settings, databases: tuple[Database, ...]) -> Iterator[Finding]:
    """Whether what is set here opens every copy of each database's backups."""
    keys, catalog = known_fingerprints(settings), Catalog(open_stores(settings))
    if keys.old:
        yield ok("old passphrases", f"set here: {', '.join(keys.old)}")
    for database in databases:
        with suppress(DiskError, StoreError):  # of a store that fails is spoken elsewhere
            yield from _opens(database.name, catalog.every(database.name), keys)


def _opens(database: str, backups: Sequence[Backup], keys: Fingerprints) -> Iterator[Finding]:
    """`backups`: the newest first."""
    under: dict[str, list[str]] = {}
    for backup in backups:
        copies = [copy for copy in backup.copies if copy.manifest]
        for print_ in {p for copy in copies for p in _under_a_passphrase(copy)}:
            under.setdefault(print_, []).append(str(backup.id))
    what = f"{database} passphrase"
    for print_, ids in under.items():
        many = f"{len(ids)} of {len(backups)} backups, {ids[0]} the newest of them,"
        if keys.what_is(print_) == "unknown":
            advice = (
                "set BACKUP_ENCRYPTION_KEY to it; where you changed it on purpose, give the earlier one in"
                " BACKUP_ENCRYPTION_OLD_KEY (BACKUP_ENCRYPTION_OLD_KEYS_FILE) as well"
            )
            said = f"{many} have copies that cannot be read: their passphrase {print_} is not set here"
            yield warn(what, said, advice)
        elif keys.what_is(print_) == "old":
            said = f"{many} have copies under an old passphrase, {print_}, that is set here"
            yield ok(what, f"{said}; backup-dag rekey re-encrypts them")


def _under_a_passphrase(copy: Copy) -> list[str]:
    """The fingerprint of the one that it is under; none where it is under none."""
    made_with = copy.manifest.encryption if copy.manifest else None
    return made_with.key_fingerprints if made_with and made_with.mode == "symmetric" else []


def _authenticity(settings: Settings) -> Iterator[Finding]:
    """What tells our backups from those that somebody else puts into the bucket."""
    authenticator(settings)  # a signing key is tried out by it
    if settings.backup_gpg_signing_key:
        yield ok("authenticity", f"manifests are signed by {' or '.join(settings.backup_gpg_signing_key)}")
    elif demanded(settings):
        yield ok("authenticity", "manifests are authenticated by the passphrase")
    else:
        said = "nothing tells our backups from what somebody else puts into the bucket"
        yield warn("authenticity", said, "set BACKUP_GPG_SIGNING_KEY to a key of this host's own")
    if demanded(settings) and settings.backup_accept_unauthenticated == "on":
        said = "BACKUP_ACCEPT_UNAUTHENTICATED=on: backups that anyone could have made are accepted"
        yield warn("authenticity", said, "turn it off once no backup from before is needed")


def _strength(passphrase: str) -> float:
    """An upper bound in bits: as if each character were drawn at random from those of its kinds."""
    kinds = ((str.islower, 26), (str.isupper, 26), (str.isdigit, 10), (lambda c: not c.isalnum(), 32))
    alphabet = sum(count for kind, count in kinds if any(kind(character) for character in passphrase))
    return min(len(passphrase), 2 * len(set(passphrase))) * log2(alphabet or 1)


def _database(settings: Settings, database: Database) -> Iterator[Finding]:
    with connected(database.address) as session:
        server = session.server()
        kind = "standby" if server.standby else "primary"
        yield ok(database.name, f"{database.address}: PostgreSQL {server.version}, {kind}")
        clients = find_clients(session.server_major, settings.pg_bin_dir)
        said = f"pg_dump {clients.version} in {clients.bin_dir}"
        if clients.major == session.server_major:
            yield ok(f"{database.name} client", said)
        else:
            advice = f"install postgresql-client-{session.server_major}: a newer dump may not load here"
            yield warn(f"{database.name} client", said, advice)
        if not clients.restricts:
            said = f"psql {clients.version} would run programs that a backup names (CVE-2025-8714)"
            advice = "install a newer minor version: no backup is restored with this one"
            yield warn(f"{database.name} psql", said, advice)
        yield _privileges(database, session)
        yield _clock(database, session)
    yield from _left_by_restores(database)


def _left_by_restores(database: Database) -> Iterator[Finding]:
    """Databases that restores of this one kept, or left half-made when they were killed."""
    what = f"{database.name} restores"
    try:
        with target_at(database.address) as target:
            kept, half_made = target.made("before"), target.made("restoring")
            running = target.is_locked() if half_made else False
    except DatabaseError:  # its neighbours are not ours to see
        return
    if half_made and not running:
        names = ", ".join(made.name for made in half_made)
        yield warn(
            what, f"a restore that was killed left {names}", "the next restore of it drops that; or dropdb"
        )
    if kept:
        names = ", ".join(made.name for made in kept)
        yield ok(what, f"kept from earlier ones: {names} (backup-dag restore --drop-previous drops them)")


def _privileges(database: Database, session: Session) -> Finding:
    what = f"{database.name} privileges"
    hidden, unreadable = hidden_by_row_security(session), not_readable(session)
    if hidden or unreadable:
        said = (
            f"may not read {_some(unreadable)}"
            if unreadable
            else f"row security hides rows of {_some(hidden)}"
        )
        advice = "GRANT pg_read_all_data; large objects each need GRANT SELECT"
        if hidden and not unreadable:
            advice = "ALTER ROLE … BYPASSRLS"
        if database.plan.options():
            return warn(what, said, f"no matter where backup.toml leaves them out, else {advice}")
        return Finding("fail", what, said, advice, DatabaseError.exit_code)
    if not session.may_read_password_hashes():
        advice = "roles come back without passwords; note them elsewhere, or back up as a superuser"
        return warn(what, "may read every table, but not the roles' password hashes", advice)
    return ok(what, "may read every table, sequence and role")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _clock(database: Database, session: Session) -> Finding:
    apart = abs((datetime.now(UTC) - session.now()).total_seconds())
    if apart > _MOST_SECONDS_APART:
        said = f"this host's clock and the server's are {apart:.0f} s apart"
        return warn(f"{database.name} clock", said, "run NTP on both: backups are named by the server's time")
    return ok(f"{database.name} clock", "agrees with this host's")


def _waiting(settings: Settings) -> Iterator[Finding]:
    """Alerts that have not reached everybody."""
    for said in waiting(settings):
        yield warn("alerts", said, "it is tried again at the next look; --send-test-alert says what is wrong")


def _disk(settings: Settings, databases: tuple[Database, ...]) -> Iterator[Finding]:
    with work_directory(settings.backup_dir) as work:
        free = shutil.disk_usage(work).free
    need = 0
    for database in databases:
        try:
            latest = Catalog([LocalStore(settings.backup_dir)]).latest(database.name)
            need += latest.manifest.artifact.bytes
        except BackupNotFound:
            with (
                suppress(DatabaseError),
                connected(database.address) as session,
            ):  # said of the database itself
                need += session.expected_dump_bytes() // 2
    said = f"{size(free)} free in {settings.backup_dir}, the next night needs about {size(need)}"
    if free < need:
        yield Finding("fail", "disk", said, "make room, or move BACKUP_DIR", DiskError.exit_code)
    elif free < 3 * need:
        yield warn("disk", said, "that is less than three nights; make room")
    else:
        yield ok("disk", said)


def _drills(settings: Settings, databases: tuple[Database, ...]) -> Iterator[Finding]:
    """Whether a backup could be restored here to prove it."""
    if settings.backup_drill == "off":
        yield ok("drills", "off (BACKUP_DRILL): no backup is proven by itself")
        return
    for database in databases:
        own_checks(settings, database.name)
    if settings.backup_scratch_url is not None:
        address = Address.of(settings.backup_scratch_url.get_secret_value(), "BACKUP_SCRATCH_URL")
        with connected(address) as session:
            yield ok("drills", f"on {address}, PostgreSQL {session.server().version}")
        return
    shut_in = can_shut_in()
    if not shut_in and (os.geteuid() == 0 or settings.backup_drill_unconfined == "on"):
        yield warn(
            "drills",
            "bubblewrap may not be used here: functions in a backup run with the rights of"
            f" {'nobody' if os.geteuid() == 0 else 'this user'} while it is drilled",
            "install bubblewrap, and let this user have namespaces; or set BACKUP_SCRATCH_URL",
        )
    elif not shut_in:
        said = "bubblewrap may not be used here, and without it no drill is made (BACKUP_DRILL_UNCONFINED)"
        yield warn("drills", said, "install bubblewrap, and let this user have namespaces")
    majors = (_major(settings, database) for database in databases)
    for wanted in sorted({each for each in majors if each is not None}):
        try:
            found = server_programs(settings.pg_bin_dir, wanted)
        except ConfigurationError as error:
            yield warn("drills", error.message, f"{error.hint}; or BACKUP_DRILL=off")
        else:
            yield ok(
                "drills", f"{settings.backup_drill}, by the PostgreSQL {found.version} in {found.bin_dir}"
            )


def _major(settings: Settings, database: Database) -> int | None:
    """That of the client programs that a backup would be made with."""
    with suppress(BackupDagError), connected(database.address) as session:
        return find_clients(session.server_major, settings.pg_bin_dir).major
    return None


def _stores(settings: Settings) -> Iterator[Finding]:
    for store in open_stores(settings):
        began = time.monotonic()
        try:
            may_remove = store.probe()
        except BackupDagError as error:
            yield _failed(f"{store.label} store", error)
        else:
            did = "wrote, read and removed" if may_remove else "wrote and read, but may not remove,"
            said = f"{did} a file in {store.address()} in {time.monotonic() - began:.2f} s"
            yield ok(f"{store.label} store", said)
    if not settings.aws_s3_bucket:
        yield warn(
            "s3 store", "AWS_S3_BUCKET is not set: there is NO off-site copy", "set a bucket elsewhere"
        )


def _zone(settings: Settings) -> Iterator[Finding]:
    now = datetime.now(settings.zone)
    yield ok(
        "time zone", f"{settings.backup_timezone}: the partition day is now {now.date()} (it is {now:%H:%M})"
    )


def _told_of_trouble(settings: Settings, *, send_test_alert: bool) -> Iterator[Finding]:
    """Who is told when something fails, and whether they can be."""
    everyone = receivers(settings)
    if not everyone:
        advice = "set BACKUP_NOTIFY_EMAIL with BACKUP_SMTP_HOST, or BACKUP_NOTIFY_URLS"
        yield warn("alerts", "nobody is told when a backup fails or is missing", advice)
    for each in everyone:
        if each.fault:
            advice = "see BACKUP_NOTIFY_… and BACKUP_SMTP_… in .env.example"
            said = f"{each.name} cannot be told: {each.fault}"
            yield Finding("fail", "alerts", said, advice, ConfigurationError.exit_code)
    if well := [each.name for each in everyone if not each.fault]:
        yield ok("alerts", f"told of trouble: {'; '.join(well)}")
    if send_test_alert:
        yield from _test_alert(settings)


def _test_alert(settings: Settings) -> Iterator[Finding]:
    happened = "This is a test: whoever reads it would be told of a backup that failed."
    alert = Alert("test", None, happened, datetime.now(UTC), advice="nothing")
    for outcome in deliver_each(settings, alert):
        name = outcome.receiver.name
        if outcome.reason:
            advice = "mend the setting, or the server, and send it again"
            said = f"{name} did not get it: {outcome.reason}"
            yield Finding("fail", "test alert", said, advice, DeliveryFailed.exit_code)
        else:
            yield ok("test alert", f"{name} took it; see whether it arrived")


def _heartbeat(settings: Settings) -> Iterator[Finding]:
    host = heartbeat_host(settings)
    said = f"{host} hears of each verified off-site backup" if host else "no BACKUP_HEARTBEAT_URL is set"
    yield ok("heartbeat", said)


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
    except process.ChildFailed as failed:
        last = failed.stderr.splitlines()[-1] if failed.stderr else str(failed)
        yield Finding(
            "fail", "Dagster", f"its instance in {home} cannot be opened: {last}", "see dagster.yaml", 3
        )
    else:
        yield ok("Dagster", f"its instance in {home} opens")
