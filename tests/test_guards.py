"""What is refused, and what is wrong before a backup can begin: each has its exit code, names its cause,
says what to do, and leaves nothing."""

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import which

import psycopg2
import pytest

from backup_dag.core.backup import order_for, take_backup
from backup_dag.core.manifest import BackupId
from backup_dag.core.settings import Settings
from demo.servers import Postgres, S3Server, available_versions, free_port
from tests.conftest import KEY, PASSWORD, Here, Terminal, database, make_database, run_sql
from tests.gate import Gate

MakeTerminal = Callable[[str], Terminal]
PutGate = Callable[[str, int], tuple[str, Gate]]

# one at a time


@pytest.fixture
def first(large: str, terminal: MakeTerminal, gated: PutGate) -> Iterator[Terminal]:
    """A terminal whose backup of the large database is in the middle of its dump until the test ends."""
    with first_backup(large, terminal, gated) as (ours, _):
        yield ours


@contextmanager
def first_backup(
    large: str, terminal: MakeTerminal, gated: PutGate
) -> Iterator[tuple[Terminal, Callable[[], int]]]:
    """The terminal, and what lets its backup go on and waits for its end."""
    through_gate, gate = gated(large, 8 << 20)
    ours = terminal(through_gate)
    with ours.running("backup") as process:
        gate.wait_until_held()

        def finish() -> int:
            gate.open()
            process.communicate(timeout=30)
            return process.returncode

        yield terminal(large), finish


def lock_holder(url: str) -> int:
    """The server process that holds an advisory lock on a database."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_locks JOIN pg_database d ON d.oid = database"
            " WHERE locktype = 'advisory' AND datname = current_database()"
        )
        [(pid,)] = cursor.fetchall()
        return int(pid)


def test_a_second_backup_of_a_database_is_refused_until_the_first_has_ended(
    large: str, terminal: MakeTerminal, gated: PutGate
) -> None:
    with first_backup(large, terminal, gated) as (ours, finish):
        refused = ours.run("backup")
        assert refused.returncode == 8, refused.stderr
        assert f"another backup of large on 127.0.0.1:{large.split(':')[-1].split('/')[0]}" in refused.stderr
        assert f"server process {lock_holder(large)} from 127.0.0.1" in refused.stderr
        assert "wait for it to end" in refused.stderr
        assert finish() == 0
    assert ours.run("backup").returncode == 0
    assert len(list(ours.backups.glob("*.json"))) == 2


def test_another_host_is_refused_too(here: Here, large: str, first: Terminal, tmp_path: Path) -> None:
    """The lock is the server's: another BACKUP_DIR, as on another host, makes no difference."""
    elsewhere = tmp_path / "elsewhere"
    refused = first.run("backup", BACKUP_DIR=str(elsewhere))
    assert refused.returncode == 8, refused.stderr
    assert f"server process {lock_holder(large)}" in refused.stderr
    assert {p.name for p in elsewhere.iterdir()} == {".audit", ".work"}
    assert list((elsewhere / ".work").iterdir()) == []


def test_another_database_can_be_backed_up_meanwhile(first: Terminal, sample: str) -> None:
    other = first.run("backup", DATABASE_URL=sample)
    assert other.returncode == 0, other.stderr
    assert len(list(first.backups.glob("backup_sample_*.json"))) == 1
    assert len(list((first.backups / ".work").iterdir())) == 1  # the first one's is left alone


def test_two_backups_within_a_second_have_two_names(postgres: Postgres, settings: Settings) -> None:
    tiny = database(make_database(postgres), name="tiny")
    made = [take_backup(settings, order_for(tiny, settings, None)) for _ in range(3)]
    assert len({manifest.backup for manifest in made}) == 3
    assert [manifest.backup for manifest in made] == sorted(manifest.backup for manifest in made)
    assert len(list(settings.backup_dir.glob("backup_tiny_*.json"))) == 3


def test_seconds_that_have_a_backup_already_are_passed_over(postgres: Postgres, settings: Settings) -> None:
    """As after a clock was put back."""
    tiny, now = database(make_database(postgres), name="tiny"), datetime.now(UTC)
    taken = [BackupId.of("tiny", now + timedelta(seconds=ahead)) for ahead in range(4)]
    settings.backup_dir.mkdir(exist_ok=True)
    for backup in taken:
        (settings.backup_dir / backup.file("sql.gz.gpg")).write_bytes(b"another")
    made = take_backup(settings, order_for(tiny, settings, None))
    assert made.id.time > taken[-1].time
    assert {(settings.backup_dir / backup.file("sql.gz.gpg")).read_bytes() for backup in taken} == {
        b"another"
    }


# what is wrong before it can begin


@dataclass(frozen=True)
class Wrong:
    """Something wrong, and what the terminal makes of it."""

    code: int
    says: tuple[str, ...]
    environment: Mapping[str, str]
    words: tuple[str, ...] = ("backup",)


def assert_refused(here: Here, ours: Terminal, wrong: Wrong) -> None:
    """The right code, a message with its cause and a hint, no secret, no traceback, nothing left."""
    ended = here(ours, *wrong.words, **wrong.environment)
    assert ended.returncode == wrong.code, ended.stderr
    assert [word for word in wrong.says if word not in ended.stderr] == [], ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    for secret in (KEY, PASSWORD, *(v for k, v in wrong.environment.items() if "SECRET" in k)):
        assert secret not in ended.stderr
    assert left_in(ours.backups) == []


def left_in(folder: Path) -> list[str]:
    found = [str(path.relative_to(folder)) for path in folder.rglob("*")] if folder.exists() else []
    return [name for name in found if name != ".work" and not name.startswith(".audit")]


def test_a_wrong_password(here: Here, guarded_postgres: Postgres, terminal: MakeTerminal) -> None:
    url = guarded_postgres.url("postgres", password="not the password")
    said = ("connecting to postgres on 127.0.0.1", "password authentication failed", "→ check")
    assert_refused(here, terminal(url), Wrong(4, said, {}))


def test_no_password_where_one_is_wanted(
    here: Here, guarded_postgres: Postgres, terminal: MakeTerminal
) -> None:
    url = f"postgresql://postgres@127.0.0.1:{guarded_postgres.port}/postgres"
    assert_refused(here, terminal(url), Wrong(4, ("no password supplied",), {}))


def test_an_unreachable_server_is_told_within_seconds(here: Here, terminal: MakeTerminal) -> None:
    port = free_port()
    began = time.monotonic()
    said = (f"connecting to shop on 127.0.0.1:{port} failed", "refused", "→ check that the server runs")
    assert_refused(here, terminal(f"postgresql://u:{'hidden'}@127.0.0.1:{port}/shop"), Wrong(4, said, {}))
    assert time.monotonic() - began < 5


def test_an_unknown_database(here: Here, postgres: Postgres, terminal: MakeTerminal) -> None:
    said = ('database "nowhere" does not exist', "→ check")
    assert_refused(here, terminal(postgres.url("nowhere")), Wrong(4, said, {}))


@pytest.fixture
def with_poor_role(postgres: Postgres) -> Iterator[str]:
    """The url, as a role that may connect and no more, of a database with one table in private and one
    with row security."""
    url = make_database(postgres)
    run_sql(
        url,
        "CREATE ROLE poor LOGIN",
        "CREATE TABLE secrets (t text)",
        "CREATE TABLE tenants (t text)",
        "INSERT INTO tenants VALUES ('mine'), ('theirs')",
        "ALTER TABLE tenants ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON tenants USING (t = 'mine')",
    )
    yield url.replace("postgres@", "poor@")
    run_sql(url, "DROP OWNED BY poor", "DROP ROLE poor")


def test_a_table_that_may_not_be_read_is_named(
    here: Here, with_poor_role: str, terminal: MakeTerminal
) -> None:
    said = ("dumping", "permission denied for table secrets", "pg_read_all_data")
    assert_refused(here, terminal(with_poor_role), Wrong(4, said, {}))


def test_a_role_from_which_rows_are_hidden_gets_an_error_and_no_backup(
    here: Here, with_poor_role: str, terminal: MakeTerminal
) -> None:
    run_sql(with_poor_role.replace("poor@", "postgres@"), "GRANT pg_read_all_data TO poor")
    said = ("row-level security", 'table "tenants"', "BYPASSRLS")
    assert_refused(here, terminal(with_poor_role), Wrong(4, said, {}))


def test_the_same_role_can_back_up_once_it_bypasses_row_security(
    with_poor_role: str, terminal: MakeTerminal
) -> None:
    admin = with_poor_role.replace("poor@", "postgres@")
    run_sql(admin, "GRANT pg_read_all_data TO poor", "ALTER ROLE poor BYPASSRLS")
    ended = terminal(with_poor_role).run("backup")
    assert ended.returncode == 0, ended.stderr
    assert "2 tables, 2 rows" in ended.stdout


def only(folder: Path, *programs: str) -> str:
    """A PATH on which there are these programs and no others."""
    folder.mkdir()
    for program in programs:
        found = which(program)
        assert found
        (folder / program).symlink_to(found)
    return str(folder)


def test_without_gpg(sample: str, terminal: MakeTerminal, tmp_path: Path) -> None:
    ours = terminal(sample)
    ended = ours.run("backup", PATH=only(tmp_path / "bin", "setpriv"))
    assert ended.returncode == 3, ended.stderr
    assert "gpg" in ended.stderr
    assert "apt-get install gnupg" in ended.stderr
    assert left_in(ours.backups) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_gpg_that_does_not_start_leaves_no_pipe_open(
    here: Here, sample: str, terminal: MakeTerminal, tmp_path: Path
) -> None:
    """Dagster's daemon lives for months, and so would what each failed run leaves open."""
    nowhere = only(tmp_path / "bin", "setpriv")
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert here(terminal(sample), "backup", PATH=nowhere).returncode == 3
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_without_a_pg_dump_that_is_new_enough(
    here: Here, postgres: Postgres, sample: str, terminal: MakeTerminal, tmp_path: Path
) -> None:
    if Path(f"/usr/lib/postgresql/{postgres.version}/bin/pg_dump").exists():
        pytest.skip("this system has a pg_dump of that version where we always look")
    path = only(tmp_path / "bin", "setpriv", "gpg")
    said = (
        "no pg_dump is new enough for a PostgreSQL 18",
        "found: 16.",
        "postgresql-client-18",
        "PG_BIN_DIR",
    )
    environment = {"PATH": path, "PG_BIN_DIR": str(available_versions()[16])}
    assert_refused(here, terminal(sample), Wrong(3, said, environment))


def key_file(folder: Path, text: str) -> dict[str, str]:
    path = folder / "key"
    path.write_text(text)
    return {"BACKUP_ENCRYPTION_KEY": "", "BACKUP_ENCRYPTION_KEY_FILE": str(path)}


WRONG_KEYS: dict[str, tuple[Callable[[Path], dict[str, str]], tuple[str, ...]]] = {
    "no key": (lambda folder: {"BACKUP_ENCRYPTION_KEY": ""}, ("there is no key", "openssl rand")),
    "a line break in the key": (
        lambda folder: {"BACKUP_ENCRYPTION_KEY": "first line\nand a second"},
        ("BACKUP_ENCRYPTION_KEY", "line"),
    ),
    "an empty key file": (lambda folder: key_file(folder, "\nsecond"), ("first line", "is empty")),
    "no such key file": (
        lambda folder: {"BACKUP_ENCRYPTION_KEY": "", "BACKUP_ENCRYPTION_KEY_FILE": str(folder / "none")},
        ("reading the passphrase", "No such file"),
    ),
    "two keys": (lambda folder: {**key_file(folder, "a"), "BACKUP_ENCRYPTION_KEY": KEY}, ("are both set",)),
    "an unknown recipient": (
        lambda folder: {"BACKUP_GPG_RECIPIENTS": "nobody@example.org", "BACKUP_GPG_HOME": str(folder)},
        ("nobody@example.org", "--import"),
    ),
}


@pytest.mark.parametrize("wrong", WRONG_KEYS)
def test_a_key_that_cannot_be_used(
    here: Here, sample: str, terminal: MakeTerminal, tmp_path: Path, wrong: str
) -> None:
    make_environment, said = WRONG_KEYS[wrong]
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    assert_refused(here, terminal(sample), Wrong(3, said, make_environment(folder)))


def test_the_first_line_of_a_key_file_is_the_key(
    here: Here, sample: str, terminal: MakeTerminal, tmp_path: Path
) -> None:
    ours = terminal(sample)
    made = ours.run("backup", **key_file(tmp_path, "the key of the house\nand a remark\n"))
    assert made.returncode == 0, made.stderr
    assert ours.run("verify", BACKUP_ENCRYPTION_KEY="the key of the house").returncode == 0


WRONG_BUCKETS = {
    "a bucket that is not there": (
        {"AWS_S3_BUCKET": "no-such-bucket"},
        7,
        ("no-such-bucket", "AWS_S3_BUCKET"),
    ),
    "a wrong access key": ({"AWS_ACCESS_KEY_ID": "SOMEBODY"}, 7, ("AWS_ACCESS_KEY_ID",)),
    "a wrong secret": ({"AWS_SECRET_ACCESS_KEY": "not-the-secret"}, 7, ("AWS_SECRET_ACCESS_KEY",)),
    "no credentials": ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, 3, ("AWS_ACCESS_KEY_ID",)),
}


@pytest.mark.parametrize("wrong", WRONG_BUCKETS)
def test_a_bucket_that_cannot_be_used_costs_the_copy_and_not_the_backup(
    here: Here,
    s3: S3Server,
    bucket: str,
    sample: str,
    terminal: MakeTerminal,
    tmp_path: Path,
    wrong: str,
) -> None:
    changed, code, said = WRONG_BUCKETS[wrong]
    ours = terminal(sample)
    ours.environment |= {**s3.environment(), "AWS_S3_BUCKET": bucket, "HOME": str(tmp_path)}
    ours.environment["AWS_EC2_METADATA_DISABLED"] = "true"
    ended = here(ours, "backup", **changed)
    assert ended.returncode == code, ended.stderr
    assert [word for word in said if word not in ended.stderr] == [], ended.stderr
    assert "not-the-secret" not in ended.stderr
    assert "demo-secret-key" not in ended.stderr
    assert here(ours, "verify", "--store", "local", "--level", "checksum", AWS_S3_BUCKET="").returncode == 0


WORDS: dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]] = {
    "an unknown database's name": (3, ("backup", "--database", "other"), ("'other'", "--database: sample")),
    "an unknown option": (2, ("backup", "--fast"), ("--fast",)),
    "an unknown verb": (2, ("bakcup",), ("bakcup",)),
    "a day that is none": (2, ("backup", "--partition", "2026-02-30"), ("2026-02-30",)),
    "an unknown level": (2, ("verify", "--level", "deep"), ("deep", "checksum")),
    "a store that is none": (2, ("list", "--page", "0"), ("--page",)),
    "no backup yet": (5, ("verify",), ("there is no backup of", "backup-dag backup")),
    "no such backup": (5, ("verify", "backup_sample_20260101_020000"), ("backup_sample_20260101_020000",)),
    "what is no backup's name": (5, ("verify", "yesterday"), ("'yesterday' is not a backup", "latest")),
    "an impossible time in the name": (5, ("verify", "backup_sample_20261301_020000"), ("is not a backup",)),
    "a path to nowhere": (5, ("verify", "/nowhere/backup_sample_20260101_020000.json"), ("/nowhere",)),
}


@pytest.mark.parametrize("wrong", WORDS)
def test_words_that_cannot_be_followed(here: Here, sample: str, terminal: MakeTerminal, wrong: str) -> None:
    code, words, said = WORDS[wrong]
    assert_refused(here, terminal(sample), Wrong(code, said, {}, words))


SETTINGS = {
    "no database": ({"DATABASE_URL": ""}, ("no database is configured", "DATABASE_URL=postgresql://")),
    "a url that is none": ({"DATABASE_URL": f"postgres//u:{PASSWORD}@h/d"}, ("DATABASE_URL is not",)),
    "a zone that is none": ({"BACKUP_TIMEZONE": "Mars/Olympus"}, ("BACKUP_TIMEZONE", "Europe/Berlin")),
    "a format that is none": ({"BACKUP_FORMAT": "tar"}, ("BACKUP_FORMAT", "'sql' or 'custom'")),
}


@pytest.mark.parametrize("wrong", SETTINGS)
def test_settings_that_cannot_be_used_are_named(
    here: Here, sample: str, terminal: MakeTerminal, wrong: str
) -> None:
    environment, said = SETTINGS[wrong]
    assert_refused(here, terminal(sample), Wrong(3, said, environment))


TOML = {
    "not TOML": ("[databases.a\n", ("is not TOML", "line 1")),
    "no table": ("\n", ("no [databases.NAME] table",)),
    "a table of another name": ("[database.a]\n", ("line 1", "database: unknown")),
    "an unknown key": ('[databases.a]\nurl_env = "A"\nspeed = 9\n', ("line 3", "databases.a.speed")),
    "a url's variable that is not set": (
        '[databases.a]\nurl_env = "UNSET"\n',
        ("line 2", "UNSET is not set"),
    ),
    "a name that is none": ('[databases."../a"]\nurl_env = "A"\n', ("line 1", "letters, digits")),
    "the same name twice": ('[databases.sample]\nurl_env = "A"\n', ("two databases", "'sample'")),
    "an option that would change the stream": (
        '[databases.a]\nurl_env = "A"\npg_dump_options = ["--jobs=4"]\n',
        ("line 3", "--jobs"),
    ),
    "a password in it": ('[databases.a]\nurl = "postgresql://u:in-the-file@h/d"\n', ("databases.a",)),
}


@pytest.mark.parametrize("wrong", TOML)
def test_a_bad_backup_toml_is_refused_with_line_and_key(
    here: Here, sample: str, terminal: MakeTerminal, wrong: str
) -> None:
    text, said = TOML[wrong]
    ours = terminal(sample)
    (ours.folder / "backup.toml").write_text(text)
    assert_refused(
        here, ours, Wrong(3, ("backup.toml" if "two" not in said[0] else "", *said), {"A": sample})
    )
    assert "in-the-file" not in here(ours, "backup", A=sample).stderr
