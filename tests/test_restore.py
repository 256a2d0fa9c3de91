"""Restores that cannot hurt: whatever happens, the target is what it was, or what was backed up."""

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from backup_dag.core.manifest import Manifest, read_manifest
from demo.sample import load
from demo.servers import Postgres
from tests.authentic import with_mac
from tests.conftest import KEY, MARKER, Here, Terminal, asked, fill, make_database, name_of, run_sql

MakeTerminal = Callable[[str], Terminal]
ASKING_FOR_A_SETTING = (
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET app.tenant = %L', current_database(),"
    " E'it''s \\\\ \"1\"'); END $$",
    "CREATE TABLE orders (n int CHECK (current_setting('app.tenant') = E'it''s \\\\ \"1\"'))",
    "SET app.tenant = E'it''s \\\\ \"1\"'; INSERT INTO orders VALUES (1)",
)
"""A constraint that only holds where the database has a setting of its own."""
NOTING_LOGINS = (
    "CREATE TABLE logins (at timestamptz)",
    "CREATE FUNCTION note_login() RETURNS event_trigger LANGUAGE plpgsql AS"
    " $$ BEGIN INSERT INTO logins VALUES (now()); END $$",
    "CREATE EVENT TRIGGER on_login ON login EXECUTE FUNCTION note_login()",
    "ALTER EVENT TRIGGER on_login DISABLE",
    "ALTER EVENT TRIGGER on_login ENABLE ALWAYS",
)
"""Whoever logs in writes a row (PostgreSQL 17 and newer)."""
NASTY = Path(__file__).with_name("nasty.sql").read_text(encoding="utf-8")
NAME = 'the "Größe" shop'


def databases(server: Postgres) -> set[str]:
    return {row[0] for row in asked(server.url(), "SELECT datname FROM pg_database")}


def made_by_restores(server: Postgres, name: str) -> list[str]:
    return sorted(each for each in databases(server) if each.startswith(f"{name}__"))


def dump_of(server: Postgres, url: str) -> str:
    """pg_dump's text, without the lines that differ from run to run."""
    said = subprocess.run(
        [server.bin_dir / "pg_dump", url],
        check=True,
        capture_output=True,
        text=True,
        errors="surrogateescape",
    ).stdout
    return re.sub(r"^\\(?:un)?restrict .*$", "", said, flags=re.MULTILINE)


def without_order(dump: str) -> list[str]:
    """Its lines, and the columns and values in them, in whatever order: of tables that inherit."""
    return sorted(" ".join(sorted(re.split(r"[(),\s]+", line))) for line in dump.splitlines())


def done(run: "subprocess.CompletedProcess[str]", status: int = 0) -> "subprocess.CompletedProcess[str]":
    assert run.returncode == status, run.stderr
    assert KEY not in run.stdout + run.stderr
    return run


def backed_up(here: Here, ours: Terminal, **changed: str) -> Manifest:
    said = json.loads(done(here(ours, "backup", "--json", **changed)).stdout)
    return read_manifest(json.dumps(said[0]["manifest"]).encode(), f"{said[0]['manifest']['backup']}.json")


@contextmanager
def small_shop(server: Postgres) -> Iterator[str]:
    """A small database of its own, with what it holds in one table; its url. It goes with all that restores
    made beside it."""
    url = make_database(server)
    run_sql(url, "CREATE TABLE orders AS SELECT n, 'order ' || n AS what FROM generate_series(1, 500) n")
    yield url
    for each in [*made_by_restores(server, name_of(url)), name_of(url)]:
        run_sql(server.url(), f'DROP DATABASE IF EXISTS "{each}" WITH (FORCE)')


@pytest.fixture
def shop(postgres: Postgres) -> Iterator[str]:
    with small_shop(postgres) as url:
        yield url


def orders(url: str) -> int:
    return int(asked(url, "SELECT count(*) FROM orders")[0][0])


def spoil(url: str) -> None:
    """What the restore is to undo."""
    run_sql(url, "DELETE FROM orders WHERE n % 2 = 0", "CREATE TABLE spoilt AS SELECT 1 AS one")


def made_nasty(server: Postgres) -> str:
    """A database that holds everything that a restore may lose; its url."""
    make_database(server, NAME)
    url = server.url(NAME)
    psql = [str(server.bin_dir / "psql"), "-X", "-q", "-o", "/dev/null", "-v", "ON_ERROR_STOP=1", url]
    subprocess.run(psql, input=NASTY, text=True, check=True, capture_output=True)
    return url


# --- Round trips -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["sql", "custom"])
def test_everything_comes_back(
    each_postgres: Postgres, terminal: MakeTerminal, here: Here, format: str
) -> None:
    url = made_nasty(each_postgres)
    run_sql(url, "VACUUM")
    before, ours = dump_of(each_postgres, url), terminal(url)
    made = backed_up(here, ours, BACKUP_FORMAT=format)
    run_sql(url, "DROP TABLE parent CASCADE", "DELETE FROM every_type")

    said = json.loads(done(here(ours, "restore", made.backup, "--force", "--json")).stdout)
    after = dump_of(each_postgres, url)
    assert without_order(after) == without_order(before)
    assert said["kept_as"] in databases(each_postgres)
    assert asked(each_postgres.url(said["kept_as"]), "SELECT count(*) FROM every_type") == [(0,)]
    done(here(ours, "restore", "--drop-previous", "--force"))
    assert made_by_restores(each_postgres, NAME) == []


def test_the_sample_comes_back_on_every_version(
    each_postgres: Postgres, terminal: MakeTerminal, here: Here
) -> None:
    url = make_database(each_postgres, "sample_restored")
    load(url, rows=1500)
    before, ours = dump_of(each_postgres, url), terminal(url)
    backed_up(here, ours)
    run_sql(url, "DROP SCHEMA shop CASCADE")
    done(here(ours, "restore", "--force"))
    assert sorted(dump_of(each_postgres, url).splitlines()) == sorted(before.splitlines())
    done(here(ours, "restore", "--drop-previous", "--force"))


def test_an_older_servers_backup_comes_back_on_a_newer_one(
    servers: Mapping[int, Postgres], terminal: MakeTerminal, here: Here
) -> None:
    old, new = servers[16], servers[18]
    url = make_database(old)
    name = name_of(url)
    load(url, rows=1500)
    ours = terminal(url)
    backed_up(here, ours)
    done(here(ours, "restore", "--force", DATABASE_URL=new.url(name)))
    for query in ("SELECT count(*), sum(total) FROM shop.orders", "SELECT * FROM shop.revenue ORDER BY 1"):
        with suppress(psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn):
            assert asked(new.url(name), query) == asked(url, query)


# --- What is promised of the target ------------------------------------------------------------------


def test_the_target_keeps_its_properties_and_the_old_one_is_kept(
    postgres: Postgres, shop: str, terminal: MakeTerminal, here: Here
) -> None:
    name = name_of(shop)
    backed_up(here, terminal(shop))
    run_sql(
        postgres.url(),
        f"DROP ROLE IF EXISTS {name}_owner",
        f"CREATE ROLE {name}_owner",
        f"ALTER DATABASE {name} OWNER TO {name}_owner",
        f"ALTER DATABASE {name} CONNECTION LIMIT 21",
        f"COMMENT ON DATABASE {name} IS 'it''s ours'",
        f"REVOKE ALL ON DATABASE {name} FROM PUBLIC",
        f"GRANT TEMPORARY ON DATABASE {name} TO pg_monitor",
        f"ALTER DATABASE {name} SET app.secret = 'it''s \\ so'",
        f"ALTER DATABASE {name} SET default_transaction_read_only = on",
    )
    properties = f"""
        SELECT pg_get_userbyid(datdba), datconnlimit, datacl::text, encoding, datcollate,
               shobj_description(oid, 'pg_database'),
               (SELECT array_agg(s ORDER BY s) FROM pg_db_role_setting r, unnest(setconfig) s
                WHERE r.setdatabase = d.oid AND s NOT LIKE 'backup_dag.%')
        FROM pg_database d WHERE datname = '{name}'
        """
    before = asked(postgres.url(), properties)
    run_sql(shop, "SET default_transaction_read_only = off", "DELETE FROM orders")
    done(here(terminal(shop), "restore", "--force"))
    assert asked(postgres.url(), properties) == before
    assert orders(shop) == 500
    [kept] = made_by_restores(postgres, name)
    assert orders(postgres.url(kept)) == 0


@pytest.mark.parametrize("lost", [False, True])
def test_settings_that_a_constraint_asks_for_come_back_before_the_rows(
    postgres: Postgres, terminal: MakeTerminal, here: Here, lost: bool
) -> None:
    url = make_database(postgres)
    run_sql(url, *ASKING_FOR_A_SETTING)
    ours = terminal(url)
    backed_up(here, ours)
    if lost:
        run_sql(postgres.url(), f"DROP DATABASE {name_of(url)}")
    done(here(ours, "restore", "--force"))
    assert asked(url, "SELECT n FROM orders") == [(1,)]
    assert asked(url, "SHOW app.tenant") == [('it\'s \\ "1"',)]


@pytest.mark.parametrize("mode", ["swap", "in-place"])
def test_a_trigger_on_login_writes_nothing_into_what_is_compared(
    servers: Mapping[int, Postgres], terminal: MakeTerminal, here: Here, mode: str
) -> None:
    url = make_database(servers[18])
    run_sql(url, *NOTING_LOGINS)
    ours = terminal(url)
    backed_up(here, ours)
    done(here(ours, "restore", "--force", "--mode", mode))
    [(before,)] = asked(url, "SELECT count(*) FROM logins")  # this login is the last of them
    assert asked(url, "SELECT count(*) FROM logins") == [(before + 1,)]


def test_rollback_and_back_again(postgres: Postgres, shop: str, terminal: MakeTerminal, here: Here) -> None:
    ours = terminal(shop)
    backed_up(here, ours)
    spoil(shop)
    done(here(ours, "restore", "--force"))
    assert orders(shop) == 500
    done(here(ours, "restore", "--rollback"), 8)
    assert orders(shop) == 500
    done(here(ours, "restore", "--rollback", "--force"))
    assert orders(shop) == 250
    done(here(ours, "restore", "--rollback", "--force"))
    assert orders(shop) == 500
    assert len(made_by_restores(postgres, name_of(shop))) == 1
    said = done(here(ours, "restore", "--drop-previous", "--force", "--json"))
    assert len(json.loads(said.stdout)["dropped"]) == 1
    assert made_by_restores(postgres, name_of(shop)) == []
    assert "is kept" in done(here(ours, "restore", "--rollback", "--force"), 8).stderr


def test_the_state_before_is_in_a_safety_backup_that_latest_passes_over(
    shop: str, terminal: MakeTerminal, here: Here
) -> None:
    ours = terminal(shop)
    first = backed_up(here, ours)
    spoil(shop)
    said = json.loads(done(here(ours, "restore", "--force", "--json")).stdout)
    listed = json.loads(done(here(ours, "list", "--json")).stdout)["backups"]
    assert [(b["backup"], b["manifest"]["reason"]) for b in listed] == [
        (said["safety_backup"], "pre_restore"),
        (first.backup, "manual"),
    ]
    again = json.loads(done(here(ours, "restore", "--force", "--json")).stdout)
    assert again["backup"] == first.backup
    back = json.loads(done(here(ours, "restore", said["safety_backup"], "--force", "--json")).stdout)
    assert (back["backup"], orders(shop)) == (said["safety_backup"], 250)
    without = json.loads(done(here(ours, "restore", "--force", "--json", "--no-safety-backup")).stdout)
    assert (without["safety_backup"], orders(shop)) == (None, 500)


def test_a_dry_run_tells_all_and_touches_nothing(
    postgres: Postgres, shop: str, terminal: MakeTerminal, here: Here
) -> None:
    ours = terminal(shop)
    made = backed_up(here, ours)
    spoil(shop)
    before = (
        dump_of(postgres, shop),
        databases(postgres),
        sorted(p.name for p in ours.backups.glob("backup_*")),
    )
    with closing(psycopg2.connect(shop, application_name="the till")):
        said = done(here(ours, "restore", "--dry-run")).stdout
        plan = json.loads(done(here(ours, "restore", "--dry-run", "--json")).stdout)
    after = (
        dump_of(postgres, shop),
        databases(postgres),
        sorted(p.name for p in ours.backups.glob("backup_*")),
    )
    assert (after[0], after[1]) == (before[0], before[1])
    assert set(after[2]) - set(before[2]) == {f"{made.backup}.verify.json"}
    for word in (
        made.backup,
        "500 rows",
        "the till",
        "safety",
        "build",
        "prove",
        "swap",
        "__before_",
        "code",
    ):
        assert word in said
    assert plan["sessions"] == {"the till (postgres)": 1}
    assert [step["name"] for step in plan["steps"]] == ["verify", "safety", "build", "prove", "swap"]
    assert all(step["seconds"] is not None and step["basis"] for step in plan["steps"])
    assert (plan["rows"], plan["tables"], plan["proven"]) == (500, 1, False)


def test_estimates_come_from_the_last_restore(shop: str, terminal: MakeTerminal, here: Here) -> None:
    ours = terminal(shop)
    backed_up(here, ours)
    done(here(ours, "restore", "--force"))
    plan = json.loads(done(here(ours, "restore", "--dry-run", "--json")).stdout)
    assert {step["basis"] for step in plan["steps"]} == {"as in its last restore"}


def test_a_new_database_leaves_the_old_alone(
    postgres: Postgres, shop: str, terminal: MakeTerminal, here: Here
) -> None:
    ours, new = terminal(shop), f"{name_of(shop)}__copy"
    backed_up(here, ours)
    spoil(shop)
    before = dump_of(postgres, shop)
    done(here(ours, "restore", "--force", "--mode", "new"), 8)
    done(here(ours, "restore", "--force", "--mode", "new", "--target-database", new))
    assert (orders(postgres.url(new)), dump_of(postgres, shop)) == (500, before)
    assert (
        "already"
        in done(here(ours, "restore", "--force", "--mode", "new", "--target-database", new), 8).stderr
    )
    refused = done(here(ours, "restore", "--force", "--target-database", new), 8)
    assert "BACKUP_RESTORE_TARGETS" in refused.stderr
    run_sql(postgres.url(new), "DELETE FROM orders")
    done(here(ours, "restore", "--force", "--target-database", new, BACKUP_RESTORE_TARGETS=new))
    assert orders(postgres.url(new)) == 500


def test_as_of_goes_by_snapshot_time(shop: str, terminal: MakeTerminal, here: Here) -> None:
    ours = terminal(shop)
    first = backed_up(here, ours)
    time.sleep(1.1)
    late = backed_up(here, ours, BACKUP_START_DATE="2020-01-01")
    assert first.snapshot_time < late.snapshot_time
    between = f"{first.snapshot_time.isoformat()}"
    plan = json.loads(done(here(ours, "restore", "--dry-run", "--json", "--as-of", between)).stdout)
    assert plan["backup"] == first.backup
    said = done(here(ours, "restore", "--dry-run", "--as-of", "2099-01-01"))
    assert late.backup in said.stdout
    assert "older than the time asked for" in said.stderr
    done(here(ours, "restore", "--dry-run", "--as-of", "2001-01-01"), 5)
    done(here(ours, "restore", "--dry-run", "--as-of", "yesterday"), 3)
    done(here(ours, "restore", late.backup, "--dry-run", "--as-of", between), 8)


def test_from_a_path_and_from_the_bucket(
    bucket: str, s3: Any, shop: str, terminal: MakeTerminal, here: Here, tmp_path: Path
) -> None:
    ours, cloud = terminal(shop), {**s3.environment(), "AWS_S3_BUCKET": bucket}
    made = backed_up(here, ours, **cloud)
    for source in (str(ours.backups / made.artifact.name), f"s3://{bucket}/{made.artifact.name}"):
        spoil(shop)
        said = json.loads(done(here(ours, "restore", source, "--force", "--json", **cloud)).stdout)
        assert (said["backup"], orders(shop)) == (made.backup, 500)
    bare = {**cloud, "BACKUP_DIR": str(tmp_path / "bare server")}
    spoil(shop)
    done(here(ours, "restore", made.backup, "--force", **bare))
    assert orders(shop) == 500


def test_everything_lost_but_the_bucket_and_the_passphrase(
    bucket: str,
    s3: Any,
    servers: Mapping[int, Postgres],
    ground: Path,
    terminal: MakeTerminal,
    here: Here,
    tmp_path: Path,
) -> None:
    """A new machine, a new and empty server: database, roles, memberships, settings and grants come back."""
    old = servers[18]
    url = make_database(old, "all_lost")
    load(url, rows=1500)
    run_sql(
        url,
        "DROP ROLE IF EXISTS lost_reader, lost_owner",
        "CREATE ROLE lost_reader NOLOGIN",
        "CREATE ROLE lost_owner LOGIN PASSWORD 'of the owner' CREATEDB",
        "GRANT lost_reader TO lost_owner",
        "ALTER DATABASE all_lost OWNER TO lost_owner",
        "ALTER DATABASE all_lost SET app.secret = 'hidden'",
        "GRANT CONNECT ON DATABASE all_lost TO lost_reader",
        "ALTER ROLE lost_owner IN DATABASE all_lost SET work_mem = '9MB'",
    )
    cloud = {**s3.environment(), "AWS_S3_BUCKET": bucket}
    ours = terminal(url)
    backed_up(here, ours, **cloud)
    before = dump_of(old, url)
    with Postgres(ground / "new server", 18) as new:
        bare = {**cloud, "DATABASE_URL": new.url("all_lost"), "BACKUP_DIR": str(tmp_path / "new")}
        plan = json.loads(done(here(ours, "restore", "--dry-run", "--json", **bare)).stdout)
        assert {"lost_reader", "lost_owner"} <= set(plan["roles_lacking"])
        said = json.loads(done(here(ours, "restore", "--force", "--json", **bare)).stdout)
        assert (said["kept_as"], said["safety_backup"]) == (None, None)
        there = new.url("all_lost")
        assert sorted(dump_of(new, there).splitlines()) == sorted(before.splitlines())
        assert asked(there, "SELECT current_setting('app.secret')") == [("hidden",)]
        for query in (
            "SELECT rolcanlogin, rolcreatedb FROM pg_roles WHERE rolname = 'lost_owner'",
            "SELECT rolpassword FROM pg_authid WHERE rolname = 'lost_owner'",
            "SELECT pg_has_role('lost_owner', 'lost_reader', 'USAGE')",
            "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'all_lost'",
            "SELECT a::text FROM pg_database, unnest(datacl) a WHERE datname = 'all_lost' ORDER BY 1",
            "SELECT setconfig FROM pg_db_role_setting WHERE setrole = 'lost_owner'::regrole",
        ):
            assert asked(there, query) == asked(url, query), query
        assert made_by_restores(new, "all_lost") == []


def test_five_thousand_tables_come_back(postgres: Postgres, terminal: MakeTerminal, here: Here) -> None:
    url = make_database(postgres)
    for start in range(0, 5000, 1000):
        run_sql(
            url,
            f"DO $$ BEGIN FOR n IN {start} .. {start + 999} LOOP EXECUTE format("
            "'CREATE TABLE t%s AS SELECT %s AS n, now()::text AS what', n, n); END LOOP; END $$",
        )
    ours, before = terminal(url), dump_of(postgres, url)
    manifest = backed_up(here, ours)
    assert len(manifest.content.tables) == 5000
    run_sql(url, "DROP TABLE t7, t4999", "UPDATE t42 SET n = 0")
    done(here(ours, "restore", "--force", "--no-safety-backup"))
    assert dump_of(postgres, url) == before
    for each in [*made_by_restores(postgres, name_of(url)), name_of(url)]:
        run_sql(postgres.url(), f'DROP DATABASE "{each}" WITH (FORCE)')


# --- One table back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["sql", "custom"])
def test_tables_come_back_beside_the_live_ones(
    each_postgres: Postgres, terminal: MakeTerminal, here: Here, format: str
) -> None:
    url = made_nasty(each_postgres)
    ours = terminal(url)
    backed_up(here, ours, BACKUP_FORMAT=format)
    tables = {
        "every_type": "public.every_type",
        '"Wéird ""Schema"""."täble; DROP"': "Wéird Schema.täble; DROP",
        "parts_old": "public.parts_old",
        "child": "public.child",
        "no_columns": "public.no_columns",
    }
    wanted = tables.values()

    def rows(name: str) -> list[tuple[Any, ...]]:
        return sorted(asked(url, f"SELECT to_jsonb(t)::text FROM {name} t"), key=str)

    before = {name: rows(name) for name in tables}
    run_sql(url, "DELETE FROM every_type", "DROP TABLE parts CASCADE", "UPDATE child SET b = 'spoilt'")
    live = dump_of(each_postgres, url)
    words = [word for name in wanted for word in ("--table", name)]
    said = json.loads(done(here(ours, "restore", *words, "--json")).stdout)
    schema = said["schema"]
    for name, held in before.items():
        assert rows(f"{schema}.{name.rpartition('.')[2]}") == held, name
    assert made_by_restores(each_postgres, NAME) == []
    run_sql(url, f"DROP SCHEMA {schema} CASCADE")
    assert dump_of(each_postgres, url) == live
    unknown = done(here(ours, "restore", "--table", "public.every_tipe"), 5)
    assert "public.every_type" in unknown.stderr


# --- What is refused, before anything is changed -----------------------------------------------------


def test_a_damaged_or_foreign_backup_changes_nothing(
    postgres: Postgres, shop: str, terminal: MakeTerminal, here: Here
) -> None:
    ours = terminal(shop)
    made = backed_up(here, ours)
    spoil(shop)
    before = dump_of(postgres, shop), databases(postgres)
    artifact = ours.backups / made.artifact.name
    whole = artifact.read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    for content in (bytes(flipped), whole[:-40], b""):
        artifact.write_bytes(content)
        assert done(here(ours, "restore", "--force", made.backup), 6).stderr
        assert (dump_of(postgres, shop), databases(postgres)) == before
    artifact.write_bytes(whole)
    wrong = done(here(ours, "restore", "--force", BACKUP_ENCRYPTION_KEY="another passphrase"), 3)
    assert "fingerprint" in wrong.stderr
    done(here(ours, "restore", "--force", "backup_nothing_20260101_000000"), 5)
    assert (dump_of(postgres, shop), databases(postgres)) == before
    done(here(ours, "restore", "--force"))
    assert orders(shop) == 500


def test_a_damaged_local_copy_is_passed_over_for_the_buckets(
    bucket: str, s3: Any, shop: str, terminal: MakeTerminal, here: Here
) -> None:
    ours, cloud = terminal(shop), {**s3.environment(), "AWS_S3_BUCKET": bucket}
    made = backed_up(here, ours, **cloud)
    artifact = ours.backups / made.artifact.name
    content = bytearray(artifact.read_bytes())
    content[100] ^= 1
    artifact.write_bytes(bytes(content))
    spoil(shop)
    plan = json.loads(done(here(ours, "restore", "--dry-run", "--json", **cloud)).stdout)
    assert plan["source"].startswith("s3://")
    [said] = [each for each in plan["findings"] if each["what"] == "a DAMAGED copy"]
    assert artifact.name in said["found"]
    done(here(ours, "restore", "--force", **cloud))
    assert orders(shop) == 500


def test_what_we_may_not_do_is_said_in_the_plan(
    postgres: Postgres, shop: str, terminal: MakeTerminal, here: Here
) -> None:
    name = name_of(shop)
    run_sql(postgres.url(), f"CREATE ROLE {name}_weak LOGIN")
    ours = terminal(shop)
    backed_up(here, ours)
    weak = shop.replace("postgres@", f"{name}_weak@")
    refused = done(here(ours, "restore", "--force", "--no-safety-backup", DATABASE_URL=weak), 8)
    for word in ("create databases", f"rename {name}", "end other sessions", "superuser"):
        assert word in refused.stderr
    assert made_by_restores(postgres, name) == []


def test_a_missing_extension_and_an_open_prepared_transaction_are_found_first(
    shop: str, terminal: MakeTerminal, here: Here, postgres: Postgres
) -> None:
    ours = terminal(shop)
    made = backed_up(here, ours)
    path = ours.backups / f"{made.backup}.json"
    known = json.loads(path.read_text())
    known["source"]["extensions"]["no_such_extension"] = "1.0"
    path.write_text(json.dumps(with_mac(known)))
    refused = done(here(ours, "restore", "--force"), 8)
    assert "no_such_extension" in refused.stderr
    assert made_by_restores(postgres, name_of(shop)) == []


def test_a_missing_role_that_we_may_not_make_is_found_first(
    postgres: Postgres, shop: str, terminal: MakeTerminal, here: Here
) -> None:
    name = name_of(shop)
    run_sql(
        postgres.url(),
        f"CREATE ROLE {name}_gone",
        f"CREATE ROLE {name}_maker LOGIN CREATEDB IN ROLE pg_signal_backend, pg_read_all_data",
        f"ALTER DATABASE {name} OWNER TO {name}_maker",
    )
    run_sql(shop, f"ALTER TABLE orders OWNER TO {name}_gone")
    ours = terminal(shop)
    backed_up(here, ours)
    run_sql(shop, f"ALTER TABLE orders OWNER TO {name}_maker", f"DROP ROLE {name}_gone")
    maker = shop.replace("postgres@", f"{name}_maker@")
    plan = json.loads(done(here(ours, "restore", "--dry-run", "--json", DATABASE_URL=maker), 8).stdout)
    assert plan["roles_lacking"] == [f"{name}_gone"]
    refused = done(here(ours, "restore", "--force", "--no-safety-backup", DATABASE_URL=maker), 8)
    assert f"create the roles {name}_gone" in refused.stderr
    assert "CREATEROLE" in refused.stderr
    assert (orders(shop), made_by_restores(postgres, name)) == (500, [])
    done(here(ours, "restore", "--force", "--no-safety-backup"))
    assert asked(shop, "SELECT tableowner FROM pg_tables WHERE tablename = 'orders'") == [(f"{name}_gone",)]


def test_too_old_a_client_is_found_first(
    servers: Mapping[int, Postgres], terminal: MakeTerminal, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup of PostgreSQL 18, on a machine that has only 16's programs (and 15's, if the system has)."""
    old, new = servers[16], servers[18]
    url = make_database(new)
    run_sql(url, "CREATE TABLE orders AS SELECT n FROM generate_series(1, 9) n")
    ours = terminal(url)
    backed_up(here, ours)
    only = {"PG_BIN_DIR": str(old.bin_dir), "PATH": f"{old.bin_dir}:/usr/bin:/bin"}
    known = databases(new)
    refused = here(ours, "restore", "--force", "--no-safety-backup", **only)
    assert refused.returncode in (3, 8), refused.stderr
    assert "18" in refused.stderr
    assert (orders(url), databases(new)) == (9, known)
    run_sql(new.url(), f"DROP DATABASE {name_of(url)} WITH (FORCE)")


def test_nobody_is_there_to_confirm(postgres: Postgres, shop: str, terminal: MakeTerminal) -> None:
    ours = terminal(shop)
    assert ours.run("backup").returncode == 0
    spoil(shop)
    for words in (["restore"], ["restore", "--json"]):
        asked_of = subprocess.run(
            ["bash", "-c", '"$0" -m backup_dag.cli "$@" < /dev/null', "python3", *words],
            cwd=ours.folder,
            env={
                **ours.environment,
                "PATH": f"{Path(psutil.Process().exe()).parent}:{ours.environment['PATH']}",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert asked_of.returncode != 0
    assert orders(shop) == 250
    assert made_by_restores(postgres, name_of(shop)) == []


# --- The swap -----------------------------------------------------------------------------------------


def test_sessions_that_hammer_the_target_see_the_old_or_the_new(
    postgres: Postgres, shop: str, terminal: MakeTerminal, here: Here
) -> None:
    ours = terminal(shop)
    backed_up(here, ours)
    spoil(shop)
    seen: list[tuple[float, int | None]] = []
    stop = threading.Event()

    def hammer() -> None:
        while not stop.is_set():
            try:
                seen.append((time.monotonic(), orders(shop)))
            except psycopg2.OperationalError:
                seen.append((time.monotonic(), None))

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        said = json.loads(done(here(ours, "restore", "--force", "--json")).stdout)
        time.sleep(0.3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    seen.sort()
    assert {found for _, found in seen} <= {250, 500, None}
    answers = [found for _, found in seen if found is not None]
    assert answers == sorted(answers)  # the old ones, then the new ones
    without = [moment for moment, found in seen if found is None]
    if without:
        assert max(without) - min(without) <= said["window_ms"] / 1000 + 0.5
    assert said["window_ms"] < 5000


# --- Deaths -------------------------------------------------------------------------------------------


@pytest.fixture
def big(postgres: Postgres) -> Iterator[str]:
    url = make_database(postgres)
    fill(url, 6000)
    yield url
    for each in [*made_by_restores(postgres, name_of(url)), name_of(url)]:
        run_sql(postgres.url(), f'DROP DATABASE IF EXISTS "{each}" WITH (FORCE)')


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.01)


def kill_ourselves(process: "subprocess.Popen[str]") -> None:
    process.kill()


def kill_the_loader(process: "subprocess.Popen[str]") -> None:
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            if child.name() in ("psql", "pg_restore"):
                child.kill()
                return


@pytest.mark.parametrize("format", ["sql", "custom"])
@pytest.mark.parametrize("death", [kill_ourselves, kill_the_loader], ids=["our process", "the loader"])
def test_a_death_while_loading_leaves_the_original_serving(
    postgres: Postgres,
    big: str,
    terminal: MakeTerminal,
    here: Here,
    death: Callable[["subprocess.Popen[str]"], None],
    format: str,
) -> None:
    ours, name = terminal(big), name_of(big)
    backed_up(here, ours, BACKUP_FORMAT=format)
    before = dump_of(postgres, big)

    for _ in range(MOST_TRIES):
        with ours.running("restore", "--force", "--no-safety-backup") as process:
            if come_to(postgres, MOMENTS["loading"], process):
                death(process)
            _, said = process.communicate(timeout=60)
        if process.returncode != 0:
            break
        done(here(ours, "restore", "--drop-previous", "--force"))
    assert process.returncode in (1, 4, -9)
    assert MARKER not in said
    assert dump_of(postgres, big) == before
    left = made_by_restores(postgres, name)
    assert left == [] if death is kill_the_loader else len(left) == 1
    wait_until(lambda: all(p.name() not in ("psql", "pg_restore", "gpg") for p in children_in(ours.folder)))
    done(here(ours, "restore", "--force", "--no-safety-backup"))
    assert len(made_by_restores(postgres, name)) == 1  # the kept one
    assert dump_of(postgres, big) == before
    assert list((ours.backups / ".work").iterdir()) == []
    assert [
        path for path in ours.backups.iterdir() if ".hold-" in path.name and process.returncode != -9
    ] == []


def children_in(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(folder) in process.cwd():
                found.append(process)
    return found


def test_two_restores_of_one_target_do_not_overlap(
    postgres: Postgres, big: str, terminal: MakeTerminal, here: Here
) -> None:
    ours = terminal(big)
    backed_up(here, ours)
    with closing(psycopg2.connect(postgres.url())) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(x'72657374'::int, hashtext(%s))", [name_of(big)])
        refused = done(here(ours, "restore", "--force"), 8)
        assert "another restore" in refused.stderr
        assert made_by_restores(postgres, name_of(big)) == []
        assert (
            len(list(ours.backups.glob("backup_*.json"))) == 2
        )  # its manifest and its check: no safety backup
    done(here(ours, "restore", "--force", "--no-safety-backup"))


def come_to(server: Postgres, seen: str, process: "subprocess.Popen[str]") -> bool:
    """Waits until a restore has come so far that a query like this runs; False: it ended, and none did."""
    query = f"SELECT FROM pg_stat_activity WHERE query ILIKE '{seen}'"
    with closing(psycopg2.connect(server.url())) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        while process.poll() is None:
            cursor.execute(query)
            if cursor.rowcount:
                return True
    return False


def killed_when(server: Postgres, seen: str, process: "subprocess.Popen[str]") -> bool:
    """Kills it there; whether it was seen at all."""
    if met := come_to(server, seen, process):
        process.kill()
    process.communicate()
    return met and process.returncode == -signal.SIGKILL


MOST_TRIES = 8  # some moments are short
MOMENTS = {
    "the safety backup": "COPY public.large%TO stdout%",
    "loading": "COPY public.large%FROM stdin%",
    "analyzing": "ANALYZE%",
    "proving": "COPY public.large%TO stdout%",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_death_at_every_step_leaves_the_original_serving(
    postgres: Postgres, big: str, terminal: MakeTerminal, here: Here, moment: str
) -> None:
    ours, name = terminal(big), name_of(big)
    backed_up(here, ours)
    before = dump_of(postgres, big)
    words = ["restore", "--force", *([] if moment == "the safety backup" else ["--no-safety-backup"])]
    for _ in range(MOST_TRIES):
        with ours.running(*words) as process:
            if killed_when(postgres, MOMENTS[moment], process):
                break
        done(here(ours, "restore", "--drop-previous", "--force"))
    else:
        pytest.fail("it was never seen")
    assert dump_of(postgres, big) == before
    kept = [each for each in made_by_restores(postgres, name) if "__before_" in each]
    assert kept == []
    doctor = done(here(ours, "doctor")).stdout
    assert ("a restore that was killed left" in doctor) == (moment != "the safety backup")
    done(here(ours, "restore", "--force", "--no-safety-backup"))
    assert dump_of(postgres, big) == before
    assert [each for each in made_by_restores(postgres, name) if "__restoring_" in each] == []
    assert "kept from earlier ones" in done(here(ours, "doctor")).stdout


def test_a_server_that_crashes_while_loading_has_the_original_when_it_is_back(
    guarded_postgres: Postgres, terminal: MakeTerminal, here: Here
) -> None:
    url = make_database(guarded_postgres, "crashing")
    fill(url, 6000)
    ours = terminal(url)
    backed_up(here, ours)
    before = asked(url, "SELECT count(*), sum(hashtext(noise)) FROM large")
    with ours.running("restore", "--force", "--no-safety-backup") as process:
        assert come_to(guarded_postgres, "COPY public.large%FROM stdin%", process)
        guarded_postgres.kill()
        _, said = process.communicate(timeout=60)
    guarded_postgres.start()
    assert process.returncode == 4, said
    assert asked(url, "SELECT count(*), sum(hashtext(noise)) FROM large") == before
    done(here(ours, "restore", "--force", "--no-safety-backup"))
    assert asked(url, "SELECT count(*), sum(hashtext(noise)) FROM large") == before
    assert [each for each in made_by_restores(guarded_postgres, "crashing") if "restoring" in each] == []
    done(here(ours, "restore", "--drop-previous", "--force"))


def test_a_swap_that_the_server_refuses_changes_nothing(
    postgres: Postgres, shop: str, terminal: MakeTerminal, here: Here
) -> None:
    """By a name that is taken in the last moment: a session that makes it while the restore loads."""
    ours, name = terminal(shop), name_of(shop)
    backed_up(here, ours)
    spoil(shop)
    run_sql(postgres.url(), f"CREATE ROLE {name}_other LOGIN SUPERUSER")
    with ours.running("restore", "--force", "--no-safety-backup") as process:
        wait_until(lambda: made_by_restores(postgres, name) != [])
        [new] = made_by_restores(postgres, name)
        wait_until(lambda: try_to_rename(postgres, new))
        _, said = process.communicate(timeout=60)
    assert process.returncode == 4, said
    assert orders(shop) == 250
    run_sql(postgres.url(), f'DROP DATABASE IF EXISTS "{name}__gone" WITH (FORCE)', f"DROP ROLE {name}_other")


def try_to_rename(postgres: Postgres, new: str) -> bool:
    """Takes the new database away from the restore, as soon as nobody is connected to it."""
    with suppress(psycopg2.Error):
        run_sql(postgres.url(), f'ALTER DATABASE "{new}" RENAME TO "{new.split("__")[0]}__gone"')
    return new not in databases(postgres)


def test_a_death_in_the_swap_leaves_the_old_in_its_place(
    postgres: Postgres, big: str, terminal: MakeTerminal, here: Here
) -> None:
    """Held up in the middle of its transaction, by a lock on the row that it renames, until it has died."""
    ours, name = terminal(big), name_of(big)
    backed_up(here, ours)
    run_sql(big, "CREATE TABLE later AS SELECT 1 AS one")
    before = dump_of(postgres, big)
    renaming = "query ILIKE 'ALTER DATABASE%RENAME TO%__before_%' AND wait_event_type = 'Lock'"
    seen = f"SELECT FROM pg_stat_activity WHERE {renaming}"
    with closing(psycopg2.connect(postgres.url())) as other, other.cursor() as cursor:
        cursor.execute(f"SELECT FROM pg_database WHERE datname = '{name}' FOR UPDATE")
        with ours.running("restore", "--force", "--no-safety-backup") as process:
            wait_until(lambda: process.poll() is not None or bool(asked(postgres.url(), seen)), 60)
            assert process.poll() is None
            process.kill()
            process.communicate()
    wait_until(lambda: not asked(postgres.url(), seen))
    assert dump_of(postgres, big) == before
    assert [each for each in made_by_restores(postgres, name) if "__before_" in each] == []
    done(here(ours, "restore", "--force", "--no-safety-backup"))
    assert [each for each in made_by_restores(postgres, name) if "__restoring_" in each] == []
    assert asked(big, "SELECT to_regclass('later')") == [(None,)]
