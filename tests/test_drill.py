"""A drill from the terminal: what is proven, what is not, and what only broke; and that nothing stays."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from backup_dag.core.drilling.ground import _is_of_the_content
from backup_dag.core.manifest import Manifest
from demo.servers import Postgres, S3Server
from tests.authentic import rewritten
from tests.conftest import MARKER, Here, Terminal, asked, make_database, name_of, run_sql
from tests.drills import (
    EVERYTHING,
    assert_nothing_left,
    by_psql,
    checks_of,
    drilled,
    temporary_folder,
)
from tests.test_faults import at_bucket
from tests.test_restore import ASKING_FOR_A_SETTING, NASTY, NOTING_LOGINS, backed_up, databases, done

MakeTerminal = Callable[[str], Terminal]


@pytest.fixture
def small(postgres: Postgres) -> str:
    """A small database of its own; its url."""
    url = make_database(postgres)
    rows = f"SELECT n, '{MARKER}' AS what FROM generate_series(1, 500) n"
    run_sql(url, f"CREATE TABLE orders AS {rows}", "ALTER TABLE orders ADD PRIMARY KEY (n)")
    return url


@pytest.fixture
def apart(small: str, terminal: MakeTerminal) -> Iterator[Terminal]:
    """A terminal with a TMPDIR of its own, and a backup of the small database."""
    with temporary_folder() as folder:
        ours = terminal(small)
        ours.environment["TMPDIR"] = str(folder)
        done(ours.run("backup"))
        yield ours


def made(ours: Terminal) -> Manifest:
    [path] = [path for path in ours.backups.glob("backup_*.json") if path.name.count(".") == 1]
    return Manifest.model_validate_json(path.read_text())


def changed_manifest(ours: Terminal, change: Callable[[dict[str, Any]], None]) -> None:
    """As someone else would have written it."""
    rewritten(ours.backups / f"{made(ours).backup}.json", change)


# --- Proven ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["sql", "custom"])
def test_an_empty_database_is_proven(
    postgres: Postgres, terminal: MakeTerminal, here: Here, format: str
) -> None:
    """Its dump has no entry at all."""
    ours = terminal(make_database(postgres))
    backed_up(here, ours, BACKUP_FORMAT=format)
    said = drilled(here, ours)
    assert (said["outcome"], said["faults"], said["tables"]) == ("proven", [], 0)
    [check] = [each for each in checks_of(ours.backups, made(ours)) if each["level"] == "restore"]
    times = [datetime.fromisoformat(each["time"]) for each in (said, check)]
    assert times[0] == times[1], "else Dagster would be told of it twice"


@pytest.mark.parametrize("format", ["sql", "custom"])
@pytest.mark.parametrize("text", [NASTY, EVERYTHING], ids=["nasty", "everything"])
def test_everything_is_proven_on_every_version(
    each_postgres: Postgres, terminal: MakeTerminal, here: Here, format: str, text: str
) -> None:
    make_database(each_postgres, 'the "Größe" drill')
    url = each_postgres.url('the "Größe" drill')
    by_psql(each_postgres, url, text)
    ours = terminal(url)
    backup = backed_up(here, ours, BACKUP_FORMAT=format)
    said = drilled(here, ours)
    assert (said["outcome"], said["faults"], said["backup"]) == ("proven", [], backup.backup)
    assert said["tables"] == len(backup.content.tables)
    assert [check["level"] for check in checks_of(ours.backups, backup)] == ["restore"]
    assert f"PostgreSQL {each_postgres.version}" in said["server"]


OPTIONS = {
    "through the root": ["--load-via-partition-root"],
    "through the root, quoted": ["--load-via-partition-root", "--quote-all-identifiers"],
    "quoted": ["--quote-all-identifiers"],
    "few digits": ["--extra-float-digits=0"],
    "no one's": ["--no-owner", "--no-privileges", "--no-comments"],
    "by a role": ["--role=drill_reader"],
    "authorized": ["--use-set-session-authorization", "--disable-dollar-quoting", "--disable-triggers"],
    "less": ["--no-large-objects", "--no-publications", "--no-policies", "--no-security-labels"],
}


PLANS = {
    **{name: f"pg_dump_options = {options}" for name, options in OPTIONS.items()},
    "one schema": "include_schemas = ['public']",
    "all but a schema": """exclude_schemas = ['Größe*']\nexclude_tables = ['archived']""",
    "some tables": "include_tables = ['keyless', 'back*']\npg_dump_options = ['--strict-names']",
    "without some rows": "exclude_table_data = ['archived']\npg_dump_options = ['--no-unlogged-table-data']",
}


@pytest.mark.parametrize("plan", PLANS)
def test_a_backup_made_with_options_is_proven(
    postgres: Postgres, terminal: MakeTerminal, here: Here, tmp_path: Path, plan: str
) -> None:
    url = make_database(postgres)
    by_psql(postgres, url, EVERYTHING)
    run_sql(url, "DROP ROLE IF EXISTS drill_reader", "CREATE ROLE drill_reader SUPERUSER")
    ours = terminal(url)
    config = tmp_path / "backup.toml"
    config.write_text(f'[databases.chosen]\nurl_env = "CHOSEN_URL"\n{PLANS[plan]}\n')
    environment = {"BACKUP_CONFIG": str(config), "CHOSEN_URL": url}
    del ours.environment["DATABASE_URL"]
    backed_up(here, ours, **environment)
    said = drilled(here, ours, 0, **environment)
    run_sql(url, "DROP ROLE drill_reader")
    assert (said["outcome"], said["faults"]) == ("proven", [])


ENCODINGS = {
    "LATIN1": b"\xe4\xf6\xfc \xdf",
    "SQL_ASCII": b"\xff\xfe \xc3( \x80",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_other_encodings_are_proven_and_their_damage_is_found(
    postgres: Postgres, terminal: MakeTerminal, here: Here, encoding: str
) -> None:
    name, odd = f"in_{encoding.lower()}", ENCODINGS[encoding]
    run_sql(
        postgres.url(),
        f"DROP DATABASE IF EXISTS {name}",
        f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0",
    )
    text = b"""SET client_encoding TO '%b';
        CREATE TABLE "t%b" (id serial PRIMARY KEY, "c%b" text);
        INSERT INTO "t%b" ("c%b") VALUES ('%b'), (E'\\\\ %b'), (NULL);
        """ % (encoding.encode(), *[odd] * 6)
    psql: list[str | Path] = [
        postgres.bin_dir / "psql",
        "-X",
        "-q",
        "-v",
        "ON_ERROR_STOP=1",
        postgres.url(name),
    ]
    subprocess.run(psql, input=text, check=True)
    ours = terminal(postgres.url(name))
    backup = backed_up(here, ours)
    said = drilled(here, ours)
    assert (said["outcome"], said["faults"]) == ("proven", [])
    [serial] = backup.content.sequences

    def lie(said: dict[str, Any]) -> None:
        said["content"]["sequences"] = {serial: "99 true"}
        for table in said["content"]["tables"].values():
            table["sha256"] = "0" * 64

    changed_manifest(ours, lie)
    said = drilled(here, ours, status=6)
    assert said["faults"] == [f"sequence {serial} stands at 3 true, 99 true was backed up"]
    [table] = backup.content.tables
    assert said["notes"] == [f"table {table} came back with the same rows in another order"]


def test_a_locale_that_is_not_there_is_a_note(apart: Terminal) -> None:
    changed_manifest(apart, lambda said: said["source"].update(collate="xx_YY.utf8", ctype="xx_YY.utf8"))
    [said] = json.loads(done(apart.run("drill", "--json")).stdout)
    assert said["outcome"] == "proven"
    assert any("xx_YY.utf8 is not to be had" in note for note in said["notes"])


@pytest.mark.parametrize("provider", ["libc", "icu"])
def test_what_fails_for_want_of_a_locale_says_nothing_of_the_backup(
    postgres: Postgres, terminal: MakeTerminal, here: Here, provider: str
) -> None:
    """Loaded with the locale C instead, a check may refuse rows that are good where they come from."""
    url = make_database(postgres)
    run_sql(
        url,
        "CREATE FUNCTION here() RETURNS bool LANGUAGE sql AS $$ SELECT datcollate <> 'C' OR"
        f" datname = '{name_of(url)}' FROM pg_database WHERE datname = current_database() $$",
        "CREATE TABLE words (what text CHECK (here()))",
        "INSERT INTO words VALUES ('ä')",
    )
    ours = terminal(url)
    backed_up(here, ours)
    other: dict[str, Any] = {"collate": "xx_YY.utf8", "ctype": "xx_YY.utf8"}
    if provider == "icu":
        other |= {"locale_provider": "icu", "locale": "not-a-locale-at-all"}
    changed_manifest(ours, lambda said: said["source"].update(other))
    run = done(here(ours, "drill"), 4)
    assert "which says nothing of the backup" in run.stderr
    assert not list(ours.backups.glob("*.verify.json"))


def test_a_collation_that_is_not_there_says_nothing_of_the_backup() -> None:
    judged = _is_of_the_content
    assert not judged("42704", 'collation "de_XX" for encoding "UTF8" does not exist')
    assert not judged("22023", 'could not create locale "de_XX.utf8": No such file or directory')
    assert judged("42704", 'type "nowhere" does not exist')
    assert judged("22023", "something else")


def test_a_trigger_on_login_writes_nothing_into_what_is_compared(
    servers: Mapping[int, Postgres], terminal: MakeTerminal, here: Here
) -> None:
    url = make_database(servers[18])
    run_sql(url, *NOTING_LOGINS)
    ours = terminal(url)
    backed_up(here, ours)
    assert drilled(here, ours)["faults"] == []


def test_settings_that_a_constraint_asks_for_come_along(
    postgres: Postgres, terminal: MakeTerminal, here: Here
) -> None:
    url = make_database(postgres)
    run_sql(url, *ASKING_FOR_A_SETTING)
    ours = terminal(url)
    backed_up(here, ours)
    assert drilled(here, ours)["faults"] == []


def test_roles_and_tablespaces_come_along(
    postgres: Postgres, ground: Path, terminal: MakeTerminal, here: Here
) -> None:
    url, place = make_database(postgres), ground / "a tablespace"
    place.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        os.chown(place, 65534, 65534)
    run_sql(
        url,
        "DROP ROLE IF EXISTS drill_owner",
        "CREATE ROLE drill_owner LOGIN PASSWORD 'of the owner'",
        "ALTER ROLE drill_owner SET statement_timeout = '1ms'",
        f"ALTER ROLE drill_owner IN DATABASE {name_of(url)} SET work_mem = '9MB'",
        f"CREATE TABLESPACE drill_space LOCATION '{place}'",
        "CREATE TABLE owned (id serial PRIMARY KEY) TABLESPACE drill_space",
        "ALTER TABLE owned OWNER TO drill_owner",
        "CREATE TABLE plain AS SELECT 1 AS one",
    )
    ours = terminal(url)
    backed_up(here, ours)
    said = drilled(here, ours)
    run_sql(
        url,
        "DROP TABLE owned",
        "DROP TABLESPACE drill_space",
        f"ALTER ROLE drill_owner IN DATABASE {name_of(url)} RESET ALL",
        "DROP ROLE drill_owner",
    )
    assert (said["outcome"], said["faults"]) == ("proven", [])


# --- Not proven --------------------------------------------------------------------------------------


def test_a_damaged_copy_off_site_is_condemned_and_the_local_one_is_not(
    small: str, bucket: str, s3: S3Server, terminal: MakeTerminal, here: Here
) -> None:
    ours, cloud = terminal(small), at_bucket(s3, bucket=bucket)
    backup = backed_up(here, ours, **cloud)
    client, name = s3.client(), backup.artifact.name
    body = bytearray(client.get_object(Bucket=bucket, Key=name)["Body"].read())
    body[len(body) // 2] ^= 1
    client.put_object(Bucket=bucket, Key=name, Body=bytes(body))
    said = drilled(here, ours, status=6, **cloud)
    assert (said["outcome"], said["store"]) == ("not proven", "s3")
    assert any(name in fault for fault in said["faults"])
    assert checks_of(ours.backups, backup) == []
    noted = client.get_object(Bucket=bucket, Key=f"{backup.backup}.verify.json")["Body"].read()
    [check] = json.loads(noted)["checks"].values()
    assert (check["level"], check["faults"]) == ("restore", said["faults"])
    assert drilled(here, ours)["outcome"] == "proven"


@pytest.mark.parametrize("format", ["sql", "custom"])
def test_what_cannot_be_loaded_is_not_proven(
    postgres: Postgres, terminal: MakeTerminal, here: Here, format: str
) -> None:
    """A check whose answer depends on who asks, as one does that looks at another table."""
    url = make_database(postgres)
    run_sql(
        url,
        "CREATE TABLE more AS SELECT n, repeat('x', 500) AS what FROM generate_series(1, 20000) n",
        "CREATE FUNCTION known(text) RETURNS bool LANGUAGE plpgsql AS"
        " $$ BEGIN RETURN current_setting('app.open', true) IS NOT DISTINCT FROM 'yes'; END $$",
        "CREATE TABLE addresses (what text CHECK (known(what)))",
        f"SET app.open = yes; INSERT INTO addresses VALUES ('{MARKER}')",
    )
    ours = terminal(url)
    backup = backed_up(here, ours, BACKUP_FORMAT=format)
    said = drilled(here, ours, status=6)
    assert said["outcome"] == "not proven"
    [fault] = said["faults"]
    assert "it cannot be loaded" in fault
    assert "addresses_what_check" in fault
    assert checks_of(ours.backups, backup)[0]["faults"] == said["faults"]


def test_rows_that_were_left_out_and_are_referred_to_make_it_unproven(
    postgres: Postgres, terminal: MakeTerminal, here: Here, tmp_path: Path
) -> None:
    url = make_database(postgres)
    run_sql(
        url,
        "CREATE TABLE a (id int PRIMARY KEY)",
        "CREATE TABLE b (id int REFERENCES a)",
        "INSERT INTO a VALUES (1)",
        "INSERT INTO b VALUES (1)",
    )
    ours = terminal(url)
    (tmp_path / "backup.toml").write_text('[databases.x]\nurl_env = "X"\nexclude_table_data = ["a"]\n')
    environment = {"BACKUP_CONFIG": str(tmp_path / "backup.toml"), "X": url}
    del ours.environment["DATABASE_URL"]
    backed_up(here, ours, **environment)
    said = drilled(here, ours, status=6, **environment)
    assert "violates foreign key constraint" in said["faults"][0]


# --- Broken ------------------------------------------------------------------------------------------


def broken(ours: Terminal, status: int, *words: str, **changed: str) -> str:
    """What is said of a drill that broke. It says nothing of the backup, and leaves nothing."""
    run = done(ours.run("drill", **changed), status)
    assert "which says nothing of the backup" in run.stderr
    assert [word for word in words if word not in run.stderr] == [], run.stderr
    assert not list(ours.backups.glob("*.verify.json"))
    assert_nothing_left(ours)
    return run.stderr


def test_the_wrong_passphrase_breaks_the_drill(apart: Terminal) -> None:
    broken(apart, 3, "passphrase", BACKUP_ENCRYPTION_KEY="another passphrase altogether 17")


def test_a_bucket_that_is_down_breaks_the_drill(
    apart: Terminal, s3: S3Server, bucket: str, here: Here
) -> None:
    cloud = at_bucket(s3, bucket=bucket)
    done(here(apart, "backup", **cloud))
    run = done(apart.run("drill", **{**cloud, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}), 7)
    assert "says nothing of the backup" in run.stderr
    assert not list(apart.backups.glob("*.verify.json"))


def test_without_initdb_the_drill_breaks_and_says_what_to_install(
    apart: Terminal, postgres: Postgres, tmp_path: Path
) -> None:
    clients = tmp_path / "clients"
    clients.mkdir()
    for name in ("pg_dump", "pg_dumpall", "pg_restore", "psql"):
        (clients / name).symlink_to(postgres.bin_dir / name)
    said = broken(apart, 3, "initdb", f"postgresql-{postgres.version}", PG_BIN_DIR=str(clients))
    assert "BACKUP_SCRATCH_URL" in said


def test_an_extension_that_is_not_there_breaks_the_drill_by_name(apart: Terminal) -> None:
    changed_manifest(apart, lambda said: said["source"]["extensions"].update(postgis="3.5.0"))
    broken(apart, 3, "postgis 3.5.0")


def test_a_disk_without_room_breaks_the_drill(apart: Terminal) -> None:
    changed_manifest(apart, lambda said: said["dump"].update(bytes=1 << 60))
    broken(apart, 9, "bytes free")


def test_a_server_whose_disk_is_full_breaks_the_drill(
    postgres: Postgres, terminal: MakeTerminal, tmp_path: Path
) -> None:
    """A limit on the size of files is to PostgreSQL what a full disk is."""
    url = make_database(postgres)
    run_sql(
        url, "CREATE TABLE large AS SELECT repeat(md5(n::text), 60) AS what FROM generate_series(1, 40000) n"
    )
    with temporary_folder() as folder:
        ours = terminal(url)
        ours.environment["TMPDIR"] = str(folder)
        done(ours.run("backup"))
        run = ours.run_with_small_files(40, "drill")
        assert run.returncode in (4, 9), run.stderr
        assert "which says nothing of the backup" in run.stderr
        assert not list(ours.backups.glob("*.verify.json"))
        assert_nothing_left(ours)


# --- A server that is given --------------------------------------------------------------------------


def test_a_given_server_is_left_as_it_was(
    servers: Mapping[int, Postgres], terminal: MakeTerminal, here: Here
) -> None:
    old, new = servers[16], servers[18]
    url = make_database(old)
    by_psql(old, url, EVERYTHING)
    run_sql(url, "DROP ROLE IF EXISTS given_owner", "CREATE ROLE given_owner", "CREATE TABLE owned (a int)")
    run_sql(url, "ALTER TABLE owned OWNER TO given_owner")
    ours = terminal(url)
    backed_up(here, ours)
    before = databases(new), asked(new.url(), "SELECT rolname FROM pg_roles ORDER BY 1")
    said = drilled(here, ours, BACKUP_SCRATCH_URL=new.url())
    assert (said["outcome"], said["faults"]) == ("proven", [])
    assert "BACKUP_SCRATCH_URL" in said["server"]
    assert (databases(new), asked(new.url(), "SELECT rolname FROM pg_roles ORDER BY 1")) == before
    run_sql(url, "DROP TABLE owned", "DROP ROLE given_owner")


def test_the_source_itself_is_refused_as_the_given_server(apart: Terminal, postgres: Postgres) -> None:
    broken(apart, 8, "is the server that", BACKUP_SCRATCH_URL=postgres.url())


def test_a_given_server_that_is_too_old_or_away_breaks_the_drill(
    apart: Terminal, servers: Mapping[int, Postgres]
) -> None:
    broken(apart, 3, "is a PostgreSQL 16", BACKUP_SCRATCH_URL=servers[16].url())
    broken(apart, 4, BACKUP_SCRATCH_URL="postgresql://postgres@127.0.0.1:9/postgres")


# --- Questions of one's own --------------------------------------------------------------------------


def answers(run: "subprocess.CompletedProcess[str]") -> dict[str, bool]:
    [said] = json.loads(run.stdout)
    assert said["outcome"] == "proven"
    return {answer["name"]: answer["passed"] for answer in said["answers"]}


CHECKS = {
    "rows_there": ("-- must return rows\nSELECT FROM orders", True),
    "no_rows": ("-- must return no rows\nSELECT FROM orders WHERE n > 500;", True),
    "none_there": ("-- MUST return rows\nSELECT FROM orders WHERE n > 500", False),
    "too_many": ("-- must return no rows\nSELECT FROM orders", False),
    "when": (
        "-- must return rows\nSELECT WHERE now() >= current_setting('backup.snapshot_time')::timestamptz",
        True,
    ),
    "which": ("-- must return rows\nSELECT WHERE current_setting('backup.id') LIKE 'backup_%'", True),
    "nonsense": ("-- must return rows\nSELEKT", False),
    "empty": ("-- must return rows\n", False),
    "writes": ("-- must return rows\nDELETE FROM orders RETURNING n", False),
    "writes_within": ("-- must return rows\nWITH d AS (DELETE FROM orders RETURNING n) SELECT FROM d", False),
    "calls": ("-- must return rows\nSELECT nextval('s')", False),
    "zero_byte": ("-- must return rows\nSELECT '\0'", False),
    "quotes_a_row": ("-- must return rows\nSELECT what::int FROM orders", False),
    "two_statements": ("-- must return no rows\nSELECT 1 WHERE false; SELECT 2", False),
    "commits": ("-- must return no rows\nSELECT 1 WHERE false; COMMIT; DELETE FROM orders", False),
    "commits_within": ("-- must return rows\nSELECT 1) AS x; COMMIT; DELETE FROM orders; SELECT (1", False),
    "byte_order_mark": ("\ufeff-- must return rows\nSELECT FROM orders", True),
    "percent": ("-- must return rows\nSELECT FROM orders WHERE n % 2 = 0 AND what LIKE '%row%'", True),
}


def test_own_checks_are_asked_and_say_nothing_of_the_rows(apart: Terminal) -> None:
    folder = apart.folder / "drills"
    folder.mkdir()
    for name, (text, _) in CHECKS.items():
        (folder / f"{name}.sql").write_text(text)
    run = done(apart.run("drill", "--json"), 10)
    assert answers(run) == {name: passed for name, (_, passed) in CHECKS.items()}
    assert MARKER not in run.stdout + run.stderr
    assert [check["faults"] for check in checks_of(apart.backups, made(apart))] == [[]]
    assert_nothing_left(apart)


def test_own_checks_of_one_database_lie_in_its_folder(apart: Terminal, small: str) -> None:
    for folder, text in ((name_of(small), "SELECT FROM orders"), ("another", "SELECT FROM nowhere")):
        (apart.folder / "drills" / folder).mkdir(parents=True)
        (apart.folder / "drills" / folder / f"of_{folder}.sql").write_text(f"-- must return rows\n{text}")
    assert answers(done(apart.run("drill", "--json"))) == {f"of_{name_of(small)}": True}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("silent.sql", "SELECT 1", "does not say what it must return"),
        ("no name.sql", "-- must return rows\nSELECT 1", "the name of a check"),
        ("latin.sql", "-- must return rows\nSELECT '\udce4'", "is not UTF-8"),
    ],
)
def test_an_own_check_that_cannot_be_read_breaks_the_drill_at_once(
    apart: Terminal, name: str, text: str, words: str
) -> None:
    (apart.folder / "drills").mkdir()
    (apart.folder / "drills" / name).write_bytes(text.encode(errors="surrogateescape"))
    broken(apart, 3, words)


def test_two_own_checks_of_one_name_break_the_drill(apart: Terminal, small: str) -> None:
    for folder in (apart.folder / "drills", apart.folder / "drills" / name_of(small)):
        folder.mkdir()
        (folder / "same.sql").write_text("-- must return rows\nSELECT 1")
    broken(apart, 3, "two checks are called same")
