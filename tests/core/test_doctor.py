"""The doctor says ok, warn or fail of everything a backup needs, and leaves nothing behind."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import boto3
import pytest

from backup_dag.core.doctor.examine import examine
from backup_dag.core.doctor.finding import Finding
from backup_dag.core.drilling.confinement import can_shut_in
from demo.servers import Postgres, S3Server, available_versions, free_port
from tests.conftest import KEY, make_database, run_sql
from tests.test_restricted import saying

Doctor = Callable[..., dict[str, Finding]]


@pytest.fixture
def doctor(
    sample: str, tmp_path: Path, bin_dirs: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> Doctor:
    """Examines a host that is well but for what is changed; the findings by what they are about."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "BACKUP_", "DATABASE_", "DAGSTER_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def look(**changed: str) -> dict[str, Finding]:
        ours = {
            "DATABASE_URL": sample,
            "BACKUP_DIR": str(tmp_path / "backups"),
            "BACKUP_ENCRYPTION_KEY": KEY,
            "PG_BIN_DIR": os.pathsep.join(map(str, bin_dirs)),
        }
        for name, value in {**ours, **changed}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials it has seen
        findings = list(examine())
        assert_each_bad_one_has_advice(findings)
        return {finding.what: finding for finding in findings}

    return look


def assert_each_bad_one_has_advice(findings: list[Finding]) -> None:
    for finding in findings:
        assert bool(finding.advice) == (finding.verdict != "ok"), finding
        assert bool(finding.exit_code) == (finding.verdict == "fail"), finding


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def with_bucket(s3: S3Server, bucket: str) -> dict[str, str]:
    return {**s3.environment(), "AWS_S3_BUCKET": bucket}


def test_all_is_well(doctor: Doctor, with_bucket: dict[str, str], tmp_path: Path) -> None:
    home = tmp_path / "dagster"
    home.mkdir()
    told = "json://127.0.0.1/told"
    found = doctor(**with_bucket, DAGSTER_HOME=str(home), BACKUP_NOTIFY_URLS=told)
    not_well = {what for what, finding in found.items() if finding.verdict != "ok"}
    assert not_well == (set() if can_shut_in() else {"drills"})
    assert set(found) == {
        "settings",
        "gpg",
        "setpriv",
        "key",
        "authenticity",
        "sample",
        "sample client",
        "sample privileges",
        "sample clock",
        "disk",
        "drills",
        "local store",
        "s3 store",
        "time zone",
        "alerts",
        "heartbeat",
        "audit log",
        "Dagster",
    }
    assert "PostgreSQL 18" in found["sample"].found
    assert "primary" in found["sample"].found
    assert with_bucket["AWS_S3_BUCKET"] in found["s3 store"].found


def test_it_leaves_nothing_behind(
    doctor: Doctor, with_bucket: dict[str, str], s3: S3Server, tmp_path: Path
) -> None:
    doctor(**with_bucket)
    assert files_in(tmp_path) == []
    assert list((tmp_path / "backups" / ".work").iterdir()) == []
    assert "Contents" not in s3.client().list_objects_v2(Bucket=with_bucket["AWS_S3_BUCKET"])


def test_it_shows_no_secret(doctor: Doctor, with_bucket: dict[str, str], guarded_postgres: Postgres) -> None:
    found = doctor(**with_bucket, DATABASE_URL=guarded_postgres.url())
    said = "".join(finding.found + finding.advice for finding in found.values())
    assert found["postgres"].verdict == "ok"
    for secret in (KEY, guarded_postgres.password, with_bucket["AWS_SECRET_ACCESS_KEY"]):
        assert secret
        assert secret not in said


def test_a_missing_setting_is_told_and_the_rest_is_looked_at(doctor: Doctor) -> None:
    found = doctor(DATABASE_URL="")
    assert {"settings", "key", "disk", "local store"} <= set(found)
    assert (found["settings"].verdict, found["settings"].exit_code) == ("fail", 3)
    assert "DATABASE_URL" in found["settings"].found


UNSIGNED = {"BACKUP_ENCRYPTION": "off", "BACKUP_ENCRYPTION_KEY": ""}


@pytest.mark.parametrize(
    ("changed", "verdict", "said"),
    [
        ({}, "ok", "by the passphrase"),
        (UNSIGNED, "warn", "BACKUP_GPG_SIGNING_KEY"),
        ({"BACKUP_ACCEPT_UNAUTHENTICATED": "on"}, "warn", "anyone could have made"),
        ({"BACKUP_GPG_SIGNING_KEY": "A" * 40}, "fail", "BACKUP_GPG_HOME"),
    ],
)
def test_what_tells_ours_from_others_is_looked_at(
    doctor: Doctor, changed: dict[str, str], verdict: str, said: str
) -> None:
    found = doctor(**changed)["authenticity"]
    assert found.verdict == verdict
    assert said in found.found + found.advice


KEYS = {
    "a weak one": ({"BACKUP_ENCRYPTION_KEY": "secret123"}, "warn", 0, "too weak"),
    "one letter, often": ({"BACKUP_ENCRYPTION_KEY": "a" * 60}, "warn", 0, "too weak"),
    "none": ({"BACKUP_ENCRYPTION_KEY": ""}, "fail", 3, "no key"),
    "off": ({"BACKUP_ENCRYPTION": "off"}, "warn", 0, "NOT encrypted"),
    "an unknown recipient": (
        {"BACKUP_GPG_RECIPIENTS": "nobody@example.org"},
        "fail",
        3,
        "nobody@example.org",
    ),
    "with a line break": ({"BACKUP_ENCRYPTION_KEY": KEY + "\nand more"}, "fail", 3, "line"),
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_none_or_weak_is_told(doctor: Doctor, tmp_path: Path, key: str) -> None:
    changed, verdict, code, said = KEYS[key]
    (tmp_path / "keyring").mkdir(mode=0o700)
    found = doctor(**changed, BACKUP_GPG_HOME=str(tmp_path / "keyring"))
    assert (found["key"].verdict, found["key"].exit_code) == (verdict, code)
    assert said in found["key"].found
    assert "secret123" not in found["key"].found
    assert found["sample privileges"].verdict == "ok"  # the rest is looked at all the same


def test_no_bucket_is_a_warning(doctor: Doctor) -> None:
    found = doctor()["s3 store"]
    assert (found.verdict, found.exit_code) == ("warn", 0)
    assert "NO off-site copy" in found.found


BUCKETS = {
    "not there": ({"AWS_S3_BUCKET": "no-such-bucket"}, 7),
    "another's": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, 7),
    "without credentials": ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, 3),
}


@pytest.mark.parametrize("wrong", BUCKETS)
def test_a_bucket_that_cannot_be_used_fails(
    doctor: Doctor, with_bucket: dict[str, str], tmp_path: Path, wrong: str
) -> None:
    changed, code = BUCKETS[wrong]
    alone = {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    found = doctor(**{**with_bucket, **alone, **changed})
    assert (found["s3 store"].verdict, found["s3 store"].exit_code) == ("fail", code)
    assert found["local store"].verdict == "ok"


def test_a_folder_that_cannot_be_used_fails(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    found = doctor(BACKUP_DIR=str(tmp_path / "file"))
    failed = {what: finding.exit_code for what, finding in found.items() if finding.verdict == "fail"}
    assert failed == {"disk": 9, "local store": 9}


def test_an_unreachable_database_fails_and_the_rest_is_looked_at(doctor: Doctor) -> None:
    found = doctor(DATABASE_URL=f"postgresql://u@127.0.0.1:{free_port()}/gone")
    assert (found["gone"].verdict, found["gone"].exit_code) == ("fail", 4)
    assert "refused" in found["gone"].found
    assert found["local store"].verdict == "ok"
    assert found["time zone"].verdict == "ok"


def test_a_folder_that_others_may_write_to_is_told(doctor: Doctor, tmp_path: Path) -> None:
    assert "BACKUP_DIR" not in doctor()
    (tmp_path / "backups").chmod(0o777)
    found = doctor()["BACKUP_DIR"]
    assert (found.verdict, "mode 0777" in found.found) == ("warn", True)


def test_an_unreachable_database_is_no_fault_of_the_disk(doctor: Doctor) -> None:
    found = doctor(DATABASE_URL=f"postgresql://u@127.0.0.1:{free_port()}/gone")
    assert found["disk"].exit_code == 0


@pytest.fixture
def poor(postgres: Postgres) -> Iterator[tuple[str, str]]:
    """A database with a table in private and one with row security: its url for a role that may only
    connect, and for the superuser."""
    admin = make_database(postgres, "poor_house")
    run_sql(
        admin,
        "CREATE ROLE beggar LOGIN",
        "CREATE SCHEMA closed",
        "CREATE TABLE closed.vault (t text)",
        "CREATE TABLE secrets (id serial, t text)",
        "CREATE TABLE tenants (t text)",
        "ALTER TABLE tenants ENABLE ROW LEVEL SECURITY",
    )
    yield admin.replace("postgres@", "beggar@"), admin
    run_sql(admin, "DROP OWNED BY beggar", "DROP ROLE beggar")


def test_tables_that_may_not_be_read_are_named(doctor: Doctor, poor: tuple[str, str]) -> None:
    found = doctor(DATABASE_URL=poor[0])["poor_house privileges"]
    assert (found.verdict, found.exit_code) == ("fail", 4)
    for name in ("secrets", "secrets_id_seq", "closed.vault"):
        assert name in found.found
    assert "pg_read_all_data" in found.advice


def test_rows_that_are_hidden_are_told_and_the_advice_helps(doctor: Doctor, poor: tuple[str, str]) -> None:
    url, admin = poor
    run_sql(admin, "GRANT pg_read_all_data TO beggar")
    found = doctor(DATABASE_URL=url)["poor_house privileges"]
    assert (found.verdict, found.exit_code) == ("fail", 4)
    assert "row security hides rows of public.tenants" in found.found
    run_sql(admin, "ALTER ROLE beggar BYPASSRLS")
    assert doctor(DATABASE_URL=url)["poor_house privileges"].verdict == "ok"


def test_password_hashes_that_may_not_be_read_are_a_warning(doctor: Doctor, poor: tuple[str, str]) -> None:
    url, admin = poor
    run_sql(
        admin,
        "GRANT USAGE ON SCHEMA closed TO beggar",
        "GRANT SELECT ON closed.vault, secrets, secrets_id_seq, tenants TO beggar",
        "ALTER ROLE beggar BYPASSRLS",
    )
    found = doctor(DATABASE_URL=url)["poor_house privileges"]
    assert found.verdict == "warn"
    assert "password hashes" in found.found


def test_a_table_that_the_plan_may_leave_out_is_a_warning(
    doctor: Doctor, poor: tuple[str, str], tmp_path: Path
) -> None:
    url, admin = poor
    run_sql(admin, "GRANT pg_read_all_data TO beggar")
    text = '[databases.house]\nurl_env = "HOUSE"\nexclude_tables = ["public.tenants"]\n'
    (tmp_path / "backup.toml").write_text(text)
    found = doctor(DATABASE_URL="", HOUSE=url)["house privileges"]
    assert found.verdict == "warn"
    assert "backup.toml" in found.advice


def test_a_client_that_is_newer_than_the_server_is_a_warning(
    doctor: Doctor, servers: dict[int, Postgres], sample_urls: dict[int, str], tmp_path: Path
) -> None:
    only = {"PG_BIN_DIR": str(available_versions()[18]), "PATH": f"{tmp_path}"}
    for program in ("gpg", "setpriv"):
        (tmp_path / program).symlink_to(f"/usr/bin/{program}")
    found = doctor(DATABASE_URL=sample_urls[16], **only)["sample client"]
    assert found.verdict == "warn"
    assert "postgresql-client-16" in found.advice


def test_a_client_that_is_too_old_fails(doctor: Doctor, tmp_path: Path) -> None:
    if Path("/usr/lib/postgresql/18/bin/pg_dump").exists():
        pytest.skip("this system has a pg_dump of that version where we always look")
    (tmp_path / "gpg").symlink_to("/usr/bin/gpg")
    found = doctor(PG_BIN_DIR=str(available_versions()[16]), PATH=str(tmp_path))
    assert [(f.what, f.exit_code) for f in found.values() if f.verdict == "fail"] == [("sample", 3)]


def test_without_gpg_it_says_how_to_get_it(doctor: Doctor, tmp_path: Path) -> None:
    found = doctor(PATH=str(tmp_path))
    [failed] = [finding for finding in found.values() if finding.verdict == "fail"]
    assert failed.exit_code == 3
    assert "apt-get install gnupg" in failed.advice


def test_whether_a_drill_could_be_made_here_is_said(doctor: Doctor, tmp_path: Path) -> None:
    assert "monthly, by the PostgreSQL 18" in doctor()["drills"].found
    assert doctor(BACKUP_DRILL="off")["drills"].verdict == "ok"
    clients = tmp_path / "clients"  # as where only a client package is installed
    clients.mkdir()
    for name in ("pg_dump", "pg_dumpall", "pg_restore", "psql"):
        (clients / name).symlink_to(available_versions()[18] / name)
    found = doctor(PG_BIN_DIR=str(clients), BACKUP_DRILL="weekly")["drills"]
    assert (found.verdict, "install postgresql-18" in found.advice) == ("warn", True)
    assert "there is no initdb of PostgreSQL 18 or newer here" in found.found
    found = doctor(BACKUP_SCRATCH_URL="postgresql://postgres@127.0.0.1:1/postgres")["drills"]
    assert (found.verdict, found.exit_code) == ("fail", 4)
    checks = tmp_path / "drills"
    checks.mkdir()
    (checks / "vague.sql").write_text("SELECT 1")
    found = doctor(BACKUP_DRILL_CHECKS=str(checks))["drills"]
    assert (found.verdict, "vague.sql" in found.found) == ("fail", True)


def test_without_a_home_for_dagster_it_says_who_sets_one(doctor: Doctor) -> None:
    found = doctor()["Dagster"]
    assert (found.verdict, "make ui" in found.found) == ("ok", True)


def test_a_dotenv_that_others_may_read_and_names_that_nothing_reads_are_told(
    doctor: Doctor, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("BACKUP_DIRR=/x\n")
    (tmp_path / ".env").chmod(0o644)
    found = doctor()
    assert found[".env's mode"].advice == "chmod 600 .env"
    assert (found["BACKUP_DIRR"].found, found["BACKUP_DIRR"].advice) == (
        "nothing reads it",
        "is it BACKUP_DIR?",
    )


def test_a_home_that_dagster_cannot_open_fails(doctor: Doctor, tmp_path: Path) -> None:
    found = doctor(DAGSTER_HOME=str(tmp_path / "nowhere"))["Dagster"]
    assert (found.verdict, found.exit_code) == ("fail", 3)
    assert "nowhere" in found.found


def test_a_zone_that_is_none_is_told_as_a_setting(doctor: Doctor) -> None:
    found = doctor(BACKUP_TIMEZONE="Mars/Olympus")
    assert "BACKUP_TIMEZONE" in found["settings"].found


def test_a_psql_that_no_backup_is_restored_with_is_told(
    doctor: Doctor, servers: Mapping[int, Postgres], tmp_path: Path
) -> None:
    old = saying(tmp_path / "old", servers[16].bin_dir, "16.9")
    found = doctor(DATABASE_URL=servers[16].url(), PG_BIN_DIR=str(old), PATH="/usr/bin:/bin")
    assert found["postgres psql"].verdict == "warn"
    assert "16.9" in found["postgres psql"].found
