"""What others own or set: names, settings, files and neighbours that mean no good, or merely differ."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backup_dag.core.address import Address
from backup_dag.core.catalog import Catalog
from backup_dag.core.clients import installed_clients
from backup_dag.core.databases import Plan
from backup_dag.core.errors import BackupDagError, ConfigurationError
from backup_dag.core.offsite import copy_offsite
from backup_dag.core.restoring.marks import Made
from backup_dag.core.settings import Settings, load
from backup_dag.core.stages.dump import PROPERTIES
from backup_dag.core.store.local import LocalStore
from backup_dag.core.store.s3 import S3Store
from backup_dag.core.work import work_directory
from demo.servers import Postgres, S3Server, free_port
from tests.conftest import Here, Terminal, asked, fill, make_database, name_of, run_sql

MakeTerminal = Callable[[str], Terminal]


@pytest.mark.parametrize("verb", ["backup", "doctor"])
def test_a_databases_owner_does_not_get_our_rights(
    postgres: Postgres, terminal: MakeTerminal, here: Here, verb: str
) -> None:
    """By functions of the names that we use, put before PostgreSQL's own by a setting of the database."""
    url = make_database(postgres)
    owner = f"{name_of(url)}_owner"
    body = "BEGIN IF current_setting('transaction_read_only') = 'off' THEN"
    body += f" ALTER ROLE {owner} SUPERUSER; END IF; RETURN pg_catalog.%s; END"
    run_sql(
        url,
        f"CREATE ROLE {owner}",
        f"CREATE SCHEMA evil AUTHORIZATION {owner}",
        f"GRANT CREATE ON DATABASE {name_of(url)} TO {owner}",
    )
    functions = {
        "clock_timestamp()": "timestamptz",
        "pg_database_size(oid)": "bigint",
        "pg_get_userbyid(oid)": "name",
        "pg_table_size(regclass)": "bigint",
    }
    for function, returns in functions.items():
        call = function.replace("(oid)", "($1)").replace("(regclass)", "($1)")
        run_sql(
            url, f"CREATE FUNCTION evil.{function} RETURNS {returns} LANGUAGE plpgsql AS $$ {body % call} $$"
        )
    run_sql(url, f"ALTER DATABASE {name_of(url)} SET search_path = evil, pg_catalog")
    here(terminal(url), verb)
    assert asked(postgres.url(), f"SELECT rolsuper FROM pg_roles WHERE rolname = '{owner}'") == [(False,)]


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_what_is_not_ascii_comes_back_from_other_encodings(
    servers: Mapping[int, Postgres], terminal: MakeTerminal, here: Here, encoding: str
) -> None:
    """Comment, setting and rows: the comment and the setting from the globals."""
    server = servers[16]
    name = f"in_{encoding.lower()}"
    url = server.url(name)
    said = "'Caf' || chr(233)" if encoding == "LATIN1" else "convert_from('\\x436166e9', 'SQL_ASCII')"
    run_sql(
        server.url(),
        f"DROP DATABASE IF EXISTS {name} WITH (FORCE)",
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'",
    )
    run_sql(
        url,
        f"CREATE TABLE words AS SELECT {said} AS word",
        f"DO $$ BEGIN EXECUTE format('COMMENT ON DATABASE {name} IS %L', {said}); END $$",
        f"DO $$ BEGIN EXECUTE format('ALTER DATABASE {name} SET app.city = %L', {said}); END $$",
    )
    words = f"""
        SELECT encode(convert_to(word, 'SQL_ASCII'), 'hex'),
               encode(convert_to(shobj_description(d.oid, 'pg_database'), 'SQL_ASCII'), 'hex'),
               encode(convert_to(current_setting('app.city'), 'SQL_ASCII'), 'hex')
        FROM words, pg_database d WHERE datname = '{name}'
        """
    before = asked(url, words)
    ours = terminal(url)
    made = here(ours, "backup")
    assert made.returncode == 0, made.stderr
    run_sql(server.url(), f"DROP DATABASE {name} WITH (FORCE)")
    restored = here(ours, "restore", "--force")
    assert restored.returncode == 0, restored.stderr
    assert asked(url, words) == before


def test_our_session_outlives_the_databases_timeouts(
    postgres: Postgres, terminal: MakeTerminal, here: Here
) -> None:
    url = make_database(postgres)
    fill(url, 2000)
    timeouts = ["statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"]
    if postgres.version >= 17:
        timeouts.append("transaction_timeout")
    for timeout in timeouts:
        run_sql(url, f"ALTER DATABASE {name_of(url)} SET {timeout} = '300ms'")
    made = here(terminal(url), "backup")
    assert made.returncode == 0, made.stderr


def test_a_name_that_another_server_took_in_the_bucket_is_no_copy(
    s3: Any,
    bucket: str,
    sample: str,
    postgres: Postgres,
    terminal: MakeTerminal,
    here: Here,
    settings: Settings,
    tmp_path: Path,
) -> None:
    cloud = {**s3.environment(), "AWS_S3_BUCKET": bucket}
    ours, theirs = terminal(sample), terminal(postgres.url("postgres"))
    assert here(ours, "backup").returncode == 0
    [manifest] = ours.backups.glob("backup_*.json")
    elsewhere = tmp_path / "their backups"
    assert here(theirs, "backup", **cloud, BACKUP_DIR=str(elsewhere)).returncode == 0
    for path in elsewhere.glob("backup_*"):  # as if it had been made in the same second
        stem = path.name.split(".")[0]
        content = path.read_bytes()
        if path.suffix in (".json", ".sha256"):
            content = content.replace(stem.encode(), manifest.stem.encode())
            content = content.replace(b'"database": "postgres"', b'"database": "sample"')
        s3.client().put_object(Bucket=bucket, Key=path.name.replace(stem, manifest.stem), Body=content)
    listed = here(ours, "list", **cloud)
    assert "s3!" in listed.stdout
    assert "another backup of the same name" in listed.stderr
    again = here(ours, "backup", **cloud)  # another one, and the older is still not there
    assert again.returncode == 6
    assert "BACKUP_S3_PREFIX" in again.stderr


def test_two_that_copy_the_same_backup_do_not_hinder_each_other(
    s3: Any, bucket: str, large: str, terminal: MakeTerminal, here: Here
) -> None:
    ours, cloud = terminal(large), {**s3.environment(), "AWS_S3_BUCKET": bucket}
    assert here(ours, "backup").returncode == 0
    with ours.running("backup", **cloud) as one, ours.running("verify", **cloud):
        store = LocalStore(ours.backups)
        settings = Settings.model_construct(
            **{
                **{name: field.default for name, field in Settings.model_fields.items()},
                "aws_s3_bucket": bucket,
                "backup_dir": ours.backups,
            }
        )
        time.sleep(0.5)
        list(copy_offsite(store, S3Store(s3.client(), settings), "large"))
        _, said = one.communicate(timeout=60)
        assert one.returncode in (0, 8), said
    assert list((ours.backups / ".work").glob("*.lock")) == []


def test_a_fresh_work_directory_is_nobodys_to_sweep(tmp_path: Path) -> None:
    gone: list[str] = []

    def enter_and_leave() -> None:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            with work_directory(tmp_path) as work:
                if not (work / "lock").exists():
                    gone.append(str(work))

    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            ended = 2
            try:
                enter_and_leave()
                ended = 1 if gone else 0
            finally:
                os._exit(ended)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://backup:ab/cdSECRETef@127.0.0.1:1/shop",
        "postgresql://backup:S3cr@tPart@127.0.0.1/shop",
        "postgresql://backup:what?SECRET@127.0.0.1/shop",
        "postgresql://backup:100%cd@127.0.0.1/shop",
    ],
)
def test_a_password_that_is_not_encoded_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Address.of(url)
    assert "percent-encoded" in raised.value.hint
    for part in ("SECRET", "S3cr", "tPart", "ab/", "cd"):
        assert part not in raised.value.message


def test_a_passphrase_that_dotenv_would_change_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = tmp_path / ".env"
    monkeypatch.delenv("BACKUP_ENCRYPTION_KEY", raising=False)
    env.write_text("BACKUP_ENCRYPTION_KEY='Zk9${HOME}x#pq7 $9'\n")
    with pytest.raises(ConfigurationError, match="replaced"):
        load(env)
    env.write_text("BACKUP_ENCRYPTION_KEY='Zk9$HOME x#pq7 $9'\n")
    assert load(env).passphrase() == "Zk9$HOME x#pq7 $9"


def test_the_examples_passphrase_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BACKUP_ENCRYPTION_KEY", raising=False)
    (tmp_path / ".env").write_text("BACKUP_ENCRYPTION_KEY='PUT-THE-PASSPHRASE-HERE'\n")
    with pytest.raises(ConfigurationError, match="example"):
        load(tmp_path / ".env").passphrase()


def test_a_bucket_that_is_down_hides_no_local_backup(sample: str, terminal: MakeTerminal, here: Here) -> None:
    ours = terminal(sample)
    assert here(ours, "backup").returncode == 0
    with closing(socket.create_server(("127.0.0.1", 0))) as nobody:
        port = nobody.getsockname()[1]
    away = {
        "AWS_S3_BUCKET": "bucket",
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    listed = here(ours, "list", **away)
    assert (listed.returncode, "local" in listed.stdout) == (7, True)
    said = json.loads(here(ours, "list", "--json", **away).stdout)
    assert (len(said["backups"]), said["missed"][0]["exit_code"]) == (1, 7)
    verified = here(ours, "verify", **away)
    assert (verified.returncode, "good " in verified.stdout) == (7, True)
    assert here(ours, "verify", "--store", "local", **away).returncode == 0
    made = json.loads(here(ours, "backup", "--json", **away).stdout)
    assert made[0]["manifest"]["backup"] in made[0]["copies"][0]
    assert made[0]["exit_code"] == 7


def test_a_damaged_local_copy_says_nothing_of_one_in_a_bucket_that_is_away(
    sample: str, terminal: MakeTerminal, here: Here, s3: S3Server, bucket: str
) -> None:
    ours = terminal(sample)
    there = {**s3.environment(), "AWS_S3_BUCKET": bucket}
    assert here(ours, "backup", **there).returncode == 0
    [artifact] = [path for path in ours.backups.glob("*.sql.gz.gpg") if ".globals." not in path.name]
    artifact.write_bytes(bytes(artifact.stat().st_size))
    words = ("restore", artifact.name.partition(".")[0], "--dry-run")
    away = here(ours, *words, **{**there, "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{free_port()}"})
    assert away.returncode == 7
    assert "may be whole where it could not" in away.stderr
    assert here(ours, *words, **there).returncode == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"AWS_PROFILE": "nobody"},
        {"AWS_ENDPOINT_URL_S3": "notaurl"},
        {"AWS_DEFAULT_REGION": "bad region!"},
        {"AWS_REQUEST_CHECKSUM_CALCULATION": "foo"},
        {"AWS_S3_BUCKET": "Bad_Bucket!"},
        {"AWS_ENDPOINT_URL_S3": "http://user:SECRET@127.0.0.1:1"},
        {"BACKUP_TIMEZONE": "Europe"},
        {"BACKUP_OWNER": "bob"},
        {"BACKUP_CONFIG": "/nowhere/backup.toml"},
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_used_is_a_matter_of_configuration(
    s3: Any, bucket: str, sample: str, terminal: MakeTerminal, here: Here, changed: dict[str, str]
) -> None:
    cloud = {**s3.environment(), "AWS_S3_BUCKET": bucket, **changed}
    ended = here(terminal(sample), "backup", **cloud)
    assert ended.returncode == 3, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "SECRET" not in ended.stderr


def test_names_from_elsewhere_cannot_write_on_the_terminal(
    sample: str, terminal: MakeTerminal, here: Here
) -> None:
    ours = terminal(sample)
    ours.backups.mkdir()
    (ours.backups / "evil\033[31mRED\nerror: a faked line").touch()
    said = here(ours, "list").stderr
    assert "\033" not in said
    assert not any(line.startswith("error:") for line in said.splitlines())


def test_another_backups_record_of_checks_does_not_count(
    sample: str, terminal: MakeTerminal, here: Here
) -> None:
    ours = terminal(sample)
    for _ in range(2):
        assert here(ours, "backup").returncode == 0
    assert here(ours, "verify").returncode == 0
    [record] = ours.backups.glob("*.verify.json")
    [older] = [p for p in ours.backups.glob("*.json") if not p.name.startswith(record.name.split(".")[0])]
    for content in (record.read_text(), "{}", '{"backup": 1', record.read_text().replace("Z", "")):
        (ours.backups / f"{older.stem}.verify.json").write_text(content)
        listed = here(ours, "list")
        assert listed.returncode == 0
        assert listed.stdout.count("local: content") == 1
        assert "no record of this backup's checks" in listed.stderr


def test_what_pg_dump_warns_of_is_told(postgres: Postgres, terminal: MakeTerminal, here: Here) -> None:
    url = make_database(postgres)
    role = f"{name_of(url)}_reader"
    run_sql(
        url,
        f"CREATE ROLE {role} LOGIN IN ROLE pg_read_all_data",
        "CREATE SUBSCRIPTION lost CONNECTION 'host=nowhere' PUBLICATION p WITH (connect = false)",
    )
    made = here(terminal(url.replace("postgres@", f"{role}@")), "backup", "--json")
    assert made.returncode == 0, made.stderr
    [said] = json.loads(made.stdout)
    assert any("subscriptions not dumped" in warning for warning in said["manifest"]["warnings"])
    run_sql(url, "ALTER SUBSCRIPTION lost SET (slot_name = NONE)", "DROP SUBSCRIPTION lost")


def test_a_stdout_that_cannot_be_written_costs_no_copy(
    s3: Any, bucket: str, sample: str, terminal: MakeTerminal
) -> None:
    ours = terminal(sample)
    environment = {**ours.environment, **s3.environment(), "AWS_S3_BUCKET": bucket}
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "backup_dag.cli", "backup"],
            cwd=ours.folder,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    names = [found["Key"] for found in s3.client().list_objects_v2(Bucket=bucket)["Contents"]]
    assert len([name for name in names if not name.startswith("audit/")]) == 4
    assert Catalog([LocalStore(ours.backups)]).survey().ids


def test_options_that_cannot_work_are_refused_when_they_are_read() -> None:
    for option in ("--serializable-deferrable", "--with-statistics"):
        with pytest.raises(ValueError, match="cannot be passed on"):
            Plan(pg_dump_options=(option,))


def test_what_a_role_set_for_itself_is_never_run_where_it_is_restored(
    postgres: Postgres, terminal: MakeTerminal, here: Here
) -> None:
    """Anyone may set a setting of their own role: here to the line that divides a globals file, and SQL."""
    url = make_database(postgres)
    name = name_of(url)
    run_sql(
        url,
        f"CREATE ROLE {name}_mallory",
        f"ALTER ROLE {name}_mallory SET app.x = E'{PROPERTIES}ALTER ROLE {name}_mallory SUPERUSER; -- '",
        f"ALTER DATABASE {name} SET app.tenant = 'ours'",
        f"COMMENT ON DATABASE {name} IS 'what is lost'",
    )
    ours = terminal(url)
    assert here(ours, "backup").returncode == 0
    run_sql(postgres.url(), f"DROP DATABASE {name}")
    ended = here(ours, "restore", "--force", DATABASE_URL=url)
    assert ended.returncode == 0, ended.stderr
    assert asked(url, "SELECT current_setting('app.tenant')") == [("ours",)]
    assert asked(url, f"SELECT rolsuper FROM pg_roles WHERE rolname = '{name}_mallory'") == [(False,)]
    run_sql(postgres.url(), f"DROP DATABASE {name} WITH (FORCE)", f"DROP ROLE {name}_mallory")


@pytest.mark.parametrize("since", ['"2026-01-01T00:00:00"', "[" * 100_000, '"9999-12-31T23:59:59-14:00"'])
def test_a_comment_that_looks_like_a_restores_mark_hinders_none(
    postgres: Postgres, terminal: MakeTerminal, here: Here, since: str
) -> None:
    """The owner of a database writes its comment."""
    url = make_database(postgres)
    name = name_of(url)
    ours = terminal(url)
    assert here(ours, "backup").returncode == 0
    mark = Made("x", "before", name, datetime.now(UTC), "b").mark
    for other in ("one", "two"):
        said = mark.replace('"x"', f'"{name}_{other}"')
        if other == "one":
            said = re.sub(r'"since": "[^"]*"', f'"since": {since}', said)
        quoted = said.replace("'", "''")
        run_sql(postgres.url(), f"CREATE DATABASE {name}_{other}")
        run_sql(postgres.url(), f"COMMENT ON DATABASE {name}_{other} IS '{quoted}'")
    planned = here(ours, "restore", "--rollback", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    for each in (f"{name}_one", f"{name}_two", name):
        run_sql(postgres.url(), f"DROP DATABASE {each} WITH (FORCE)")


# programs that are killed before they have said who they are


def suicidal(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text("#!/bin/sh\nkill -9 $$\n")
        (folder / name).chmod(0o755)
    return folder


def test_a_pg_dump_that_was_killed_is_no_broken_installation(tmp_path: Path) -> None:
    there = suicidal(tmp_path / "bin", "pg_dump", "pg_dumpall", "pg_restore", "psql")
    with pytest.raises(BackupDagError, match="pg_dump was killed by SIGKILL") as raised:
        installed_clients((there,))
    assert raised.value.exit_code == 1


def test_a_gpg_that_was_killed_is_no_missing_one(
    sample: str, terminal: MakeTerminal, here: Here, tmp_path: Path
) -> None:
    there = suicidal(tmp_path / "bin", "gpg")
    ended = here(terminal(sample), "backup", PATH=f"{there}:{os.environ['PATH']}")
    assert (ended.returncode, "it was killed" in ended.stderr) == (1, True)
