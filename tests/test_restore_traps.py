"""Traps that restores once fell into: each was found by someone who tried to lose data, and stays here."""

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from pydantic import SecretStr

from backup_dag.core.errors import GuardRefused
from backup_dag.core.manifest import Manifest
from backup_dag.core.restoring.plan import Wish
from backup_dag.core.restoring.restore import Restoration
from backup_dag.core.settings import Settings
from demo.servers import Postgres
from tests.authentic import with_mac
from tests.conftest import Here, Terminal, asked, make_database, name_of, run_sql
from tests.test_restore import backed_up, databases, done, made_by_restores, orders, spoil

MakeTerminal = Callable[[str], Terminal]


@pytest.fixture
def shop(postgres: Postgres) -> Iterator[str]:
    url = make_database(postgres)
    run_sql(url, "CREATE TABLE orders AS SELECT n, 'order ' || n AS what FROM generate_series(1, 500) n")
    yield url
    for each in [*made_by_restores(postgres, name_of(url)), name_of(url)]:
        run_sql(postgres.url(), f'ALTER DATABASE "{each}" IS_TEMPLATE false') if each in databases(
            postgres
        ) else None
        run_sql(postgres.url(), f'DROP DATABASE IF EXISTS "{each}" WITH (FORCE)')


@pytest.fixture
def ours(shop: str, terminal: MakeTerminal) -> Terminal:
    return terminal(shop)


def rename(server: Postgres, old: str, new: str) -> None:
    run_sql(server.url(), f'ALTER DATABASE "{old}" RENAME TO "{new}"')


def edited(ours: Terminal, made: Manifest, change: Callable[[dict[str, Any]], None]) -> None:
    """As someone would who can write to the store, and has the passphrase."""
    path = ours.backups / f"{made.backup}.json"
    known = json.loads(path.read_text())
    change(known)
    path.write_text(json.dumps(with_mac(known)))


# --- What is kept, and what is taken for it ---------------------------------------------------------------


def test_a_dry_run_of_a_rollback_or_a_drop_changes_nothing(
    ours: Terminal, shop: str, postgres: Postgres, here: Here
) -> None:
    backed_up(here, ours)
    spoil(shop)
    done(here(ours, "restore", "--force", "--no-safety-backup"))
    before = databases(postgres)
    for word in ("--rollback", "--drop-previous"):
        said = done(here(ours, "restore", word, "--dry-run"))
        assert "__before_" in said.stderr
        assert "nothing was changed" in said.stderr
    assert (orders(shop), databases(postgres)) == (500, before)
    for words in (
        ("--rollback", "--drop-previous", "--force"),
        ("latest", "--rollback"),
        ("--rollback", "--mode", "swap"),
        ("--table", "public.orders", "--mode", "new"),
        ("--table", "public.orders", "--dry-run"),
    ):
        done(here(ours, "restore", *words), 2)
    assert databases(postgres) == before


def test_a_database_that_was_renamed_by_hand_is_no_longer_ours_to_drop(
    ours: Terminal, shop: str, postgres: Postgres, here: Here
) -> None:
    backed_up(here, ours)
    done(here(ours, "restore", "--force", "--no-safety-backup"))
    name = name_of(shop)
    [kept] = made_by_restores(postgres, name)
    rename(postgres, name, f"{name}__bad")
    rename(postgres, kept, name)
    done(here(ours, "restore", "--drop-previous", "--force"), 8)
    done(here(ours, "restore", "--rollback", "--force"), 8)
    assert orders(shop) == 500


def test_a_half_made_database_that_someone_took_is_not_swept(
    ours: Terminal, shop: str, postgres: Postgres, here: Here
) -> None:
    made = backed_up(here, ours)
    name = name_of(shop)
    run_sql(postgres.url(), f"CREATE DATABASE {name}__restoring_20260101_000000")
    mark: dict[str, Any] = {"role": "restoring", "of": name, "name": f"{name}__restoring_20260101_000000"}
    mark |= {"since": "2026-01-01T00:00:00+00:00", "backup": made.backup, "comment": None}
    run_sql(
        postgres.url(),
        f"COMMENT ON DATABASE {name}__restoring_20260101_000000 IS 'backup-dag {json.dumps(mark)}'",
    )
    rename(postgres, name, f"{name}__bad")
    rename(postgres, f"{name}__restoring_20260101_000000", name)
    run_sql(shop, "CREATE TABLE precious AS SELECT 1 AS one")
    said = json.loads(done(here(ours, "restore", "--force", "--json")).stdout)
    assert said["safety_backup"]
    assert asked(postgres.url(said["kept_as"]), "SELECT one FROM precious") == [(1,)]


def test_what_the_server_made_for_a_restore_that_was_killed_meanwhile_is_swept_and_nothing_else(
    ours: Terminal, shop: str, postgres: Postgres, here: Here
) -> None:
    """CREATE DATABASE goes on without whoever asked for it, and nobody is left to mark what comes of it."""
    backed_up(here, ours)
    name = name_of(shop)
    unmarked, filled, used, said, another = (
        *(f"{name}__restoring_20260101_00000{number}" for number in range(4)),
        f"{name}_2__restoring_20260101_000000",
    )
    for each in (unmarked, filled, used, said, another):
        run_sql(postgres.url(), f"CREATE DATABASE {each} TEMPLATE template0")
    run_sql(postgres.url(filled), "CREATE FUNCTION precious() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    run_sql(postgres.url(), f"COMMENT ON DATABASE {said} IS 'mine'")
    with closing(psycopg2.connect(postgres.url(used))):
        done(here(ours, "restore", "--force"))
    there = {row[0] for row in asked(postgres.url(), "SELECT datname FROM pg_database")}
    assert {unmarked, filled, used, said, another} & there == {filled, used, said, another}


def test_the_last_that_is_left_is_not_dropped(
    ours: Terminal, shop: str, postgres: Postgres, here: Here
) -> None:
    backed_up(here, ours)
    done(here(ours, "restore", "--force", "--no-safety-backup"))
    run_sql(postgres.url(), f"DROP DATABASE {name_of(shop)} WITH (FORCE)")
    refused = done(here(ours, "restore", "--drop-previous", "--force"), 8)
    assert "--rollback" in refused.stderr
    done(here(ours, "restore", "--rollback", "--force"))
    assert orders(shop) == 500


def test_a_mark_counts_only_on_a_database_of_the_same_owner(
    ours: Terminal, shop: str, postgres: Postgres, here: Here
) -> None:
    """Another tenant of the server says of his database that it is ours, kept."""
    name = name_of(shop)
    backed_up(here, ours)
    mark: dict[str, Any] = {
        "role": "before",
        "of": name,
        "name": f"{name}__evil",
        "since": "2099-01-01T00:00:00+00:00",
    }
    mark |= {"backup": "backup_x_20260101_000000", "comment": None}
    run_sql(postgres.url(), f"CREATE ROLE {name}_evil", f"CREATE DATABASE {name}__evil OWNER {name}_evil")
    run_sql(postgres.url(), f"COMMENT ON DATABASE {name}__evil IS 'backup-dag {json.dumps(mark)}'")
    done(here(ours, "restore", "--rollback", "--force"), 8)
    done(here(ours, "restore", "--drop-previous", "--force"), 8)
    run_sql(postgres.url(), f"DROP DATABASE {name}__evil", f"DROP ROLE {name}_evil")


# --- Nothing written is lost ------------------------------------------------------------------------------


def test_in_place_every_row_that_was_acknowledged_is_in_the_safety_backup(
    ours: Terminal, shop: str, postgres: Postgres, here: Here
) -> None:
    run_sql(shop, "CREATE TABLE log (n int)")
    backed_up(here, ours)
    acknowledged: list[int] = []
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            with suppress(psycopg2.Error), closing(psycopg2.connect(shop)) as connection:
                connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute("INSERT INTO log VALUES (%s)", [number := number + 1])
                acknowledged.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        said = json.loads(done(here(ours, "restore", "--mode", "in-place", "--force", "--json")).stdout)
    finally:
        stop.set()
        writer.join()
    kept = f"{name_of(shop)}__safe"
    done(here(ours, "restore", said["safety_backup"], "--mode", "new", "--target-database", kept, "--force"))
    found = {row[0] for row in asked(postgres.url(kept), "SELECT n FROM log")}
    found |= {row[0] for row in asked(shop, "SELECT n FROM log")}
    assert set(acknowledged) <= found
    assert acknowledged
    run_sql(postgres.url(), f"DROP DATABASE {kept}")


@pytest.mark.parametrize("format", ["sql", "custom"])
def test_in_place_what_fails_after_the_large_objects_changes_nothing_either(
    ours: Terminal, shop: str, here: Here, format: str
) -> None:
    """pg_dump has a transaction of its own around them, whose COMMIT would be that of the restore."""
    run_sql(
        shop,
        "SELECT lo_from_bytea(0, 'an object')",
        "CREATE FUNCTION f(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('app.open', true) IS DISTINCT FROM 'yes' THEN RAISE 'not open'; END IF;"
        " RETURN $1; END $$",
        "SET app.open = yes; CREATE INDEX ON orders (f(n))",
    )
    backed_up(here, ours, BACKUP_FORMAT=format)
    run_sql(shop, "DROP FUNCTION f CASCADE")
    spoil(shop)
    failed = done(here(ours, "restore", "--mode", "in-place", "--force"), 4)
    assert "not open" in failed.stderr
    assert orders(shop) == 250
    assert asked(shop, "SELECT one FROM spoilt") == [(1,)]


def test_a_code_for_a_plan_with_a_safety_backup_is_none_for_one_without(
    settings: Settings, shop: str, here: Here, ours: Terminal
) -> None:
    backed_up(here, ours)
    mine = settings.model_copy(update={"database_url": SecretStr(shop), "backup_config": Path("/dev/null")})
    codes = {}
    for safely in (True, False):
        wish = Wish(mode="in-place", safety_backup=safely)
        with Restoration(mine, wish) as restoration:
            restoration.fetch()
            restoration.verify()
            plan = restoration.plan()
            codes[safely] = plan.confirmation_code
            restoration.confirm(plan, codes[safely])
            if not safely:
                with pytest.raises(GuardRefused, match="not for this"):
                    restoration.confirm(plan, codes[True])


# --- What is restored is what was meant --------------------------------------------------------------------


def test_a_newer_backup_that_cannot_be_used_is_named(ours: Terminal, shop: str, here: Here) -> None:
    first = backed_up(here, ours)
    time.sleep(1)
    newest = backed_up(here, ours)
    artifact = ours.backups / newest.artifact.name
    os.truncate(artifact, newest.artifact.bytes - 1)
    said = done(here(ours, "restore", "--force"))
    assert first.backup in said.stdout
    assert "a NEWER backup" in said.stderr
    assert newest.backup in said.stderr


def test_a_part_of_a_database_says_that_it_is_one(ours: Terminal, shop: str, here: Here) -> None:
    (ours.folder / "backup.toml").write_text(
        f'[databases.{name_of(shop)}]\nurl_env = "SHOP"\nexclude_schemas = ["other"]\n'
    )
    alone = {"SHOP": shop, "DATABASE_URL": ""}
    run_sql(shop, "CREATE SCHEMA other CREATE TABLE later (a int)")
    backed_up(here, ours, **alone)
    said = done(here(ours, "restore", "--dry-run", **alone)).stdout
    assert "--exclude-schema=other" in said
    assert "other.later" in said


@pytest.mark.parametrize("mode", ["swap", "in-place"])
def test_a_backup_of_chosen_schemas_comes_back(
    ours: Terminal, shop: str, here: Here, mode: str, postgres: Postgres
) -> None:
    """pg_dump makes `public` itself, where it was told which schemas to dump."""
    (ours.folder / "backup.toml").write_text(
        f'[databases.{name_of(shop)}]\nurl_env = "SHOP"\ninclude_schemas = ["public"]\n'
    )
    alone = {"SHOP": shop, "DATABASE_URL": ""}
    backed_up(here, ours, **alone)
    spoil(shop)
    done(here(ours, "restore", "--mode", mode, "--force", **alone))
    assert orders(shop) == 500


def test_the_id_of_one_database_is_not_restored_as_anothers(ours: Terminal, shop: str, here: Here) -> None:
    made = backed_up(here, ours)
    refused = done(here(ours, "restore", made.backup, "--database", "another", "--force"), 8)
    assert "not of another" in refused.stderr


def test_only_the_configured_databases_backups_are_meant(
    ours: Terminal, shop: str, here: Here, postgres: Postgres
) -> None:
    """In a folder, or a bucket, where others' backups lie too."""
    other = make_database(postgres)
    backed_up(here, ours, DATABASE_URL=other)
    backed_up(here, ours)
    spoil(shop)
    done(here(ours, "restore", "--force"))
    assert orders(shop) == 500
    run_sql(postgres.url(), f"DROP DATABASE {name_of(other)} WITH (FORCE)")


def test_partitions_come_back_as_the_table_that_they_are(ours: Terminal, shop: str, here: Here) -> None:
    run_sql(
        shop,
        "CREATE TABLE ev (id int, at date) PARTITION BY HASH (id)",
        *(
            f"CREATE TABLE ev_{n} PARTITION OF ev FOR VALUES WITH (MODULUS 3, REMAINDER {n})"
            for n in range(3)
        ),
        "INSERT INTO ev SELECT n, date '2026-01-01' + n FROM generate_series(1, 1000) n",
    )
    plain = backed_up(here, ours)
    (ours.folder / "backup.toml").write_text(
        f'[databases.{name_of(shop)}]\nurl_env = "SHOP"\npg_dump_options = ["--load-via-partition-root"]\n'
    )
    rooted = {"SHOP": shop, "DATABASE_URL": ""}
    through_root = backed_up(here, ours, **rooted)
    run_sql(shop, "DELETE FROM ev WHERE id <= 100")
    for made in (plain, through_root):
        words = ("restore", made.backup, "--table", "public.ev", "--json")
        said = json.loads(done(here(ours, *words, **rooted)).stdout)
        [table] = said["tables"]
        assert (table["rows"], table["live"]) == (1000, True)
        assert asked(shop, f"SELECT count(*) FROM {table['now']}") == [(1000,)]
        lost = f"SELECT * FROM {table['now']} EXCEPT ALL SELECT * FROM public.ev"
        assert len(asked(shop, lost)) == 100
        run_sql(shop, f"DROP SCHEMA {said['schema']} CASCADE")


def test_a_table_comes_back_although_roles_and_checks_would_not_let_it(
    ours: Terminal, shop: str, here: Here, postgres: Postgres
) -> None:
    name = name_of(shop)
    run_sql(
        shop,
        f"CREATE ROLE {name}_gone",
        "CREATE TABLE allowed (n int)",
        "INSERT INTO allowed SELECT generate_series(1, 500)",
        "CREATE FUNCTION known(int) RETURNS bool LANGUAGE sql AS"
        " 'SELECT EXISTS (SELECT FROM public.allowed WHERE n = $1)'",
        "ALTER TABLE orders ADD CONSTRAINT known CHECK (known(n))",
        f"ALTER TABLE allowed OWNER TO {name}_gone",
        "ALTER TABLE orders ADD COLUMN later serial",
        'CREATE TABLE "a.b" (c int)',
        "CREATE SCHEMA other CREATE TABLE orders (a int)",
    )
    backed_up(here, ours)
    run_sql(shop, "ALTER TABLE allowed OWNER TO postgres", f"DROP ROLE {name}_gone", "DROP TABLE orders")
    said = done(here(ours, "restore", "--table", "public.orders", "--table", "public.a.b"))
    assert "any more: see the runbook" in said.stdout
    [schema] = [row[0] for row in asked(shop, "SELECT nspname FROM pg_namespace WHERE nspname ~ '^restored'")]
    assert f'"{schema}"."a.b"' in said.stdout
    assert asked(shop, f"SELECT count(*), count(later) FROM {schema}.orders") == [(500, 500)]
    assert asked(
        shop,
        f"SELECT count(*) FROM pg_attrdef d JOIN pg_class c ON c.oid = d.adrelid"
        f" WHERE c.relnamespace = '{schema}'::regnamespace",
    ) == [(0,)]
    twice = done(here(ours, "restore", "--table", "public.orders", "--table", "other.orders"), 8)
    assert "one schema" in twice.stderr


# --- Other surroundings than the backup's ------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["swap", "in-place"])
def test_another_time_zone_and_another_look_of_bytea_are_the_same_content(
    ours: Terminal, shop: str, here: Here, mode: str
) -> None:
    name = name_of(shop)
    run_sql(
        shop,
        "CREATE TABLE moments AS SELECT timestamptz '2026-01-31 02:00+01' AS at, '\\x00ff'::bytea AS raw",
        "CREATE TABLE since (at timestamptz DEFAULT '2026-01-31 02:00+01'::timestamptz)",
        f"ALTER DATABASE {name} SET timezone TO 'Asia/Tokyo'",
    )
    backed_up(here, ours)
    run_sql(
        shop,
        f"ALTER DATABASE {name} SET timezone TO 'America/New_York'",
        f"ALTER DATABASE {name} SET bytea_output TO 'escape'",
        f"ALTER DATABASE {name} SET quote_all_identifiers TO on",
    )
    done(here(ours, "restore", "--force", "--mode", mode))
    assert asked(
        shop, "SELECT at = timestamptz '2026-01-31 02:00+01', raw = '\\x00ff'::bytea FROM moments"
    ) == [(True, True)]
    done(here(ours, "restore", "--table", "public.moments"))


def test_an_owner_who_is_no_superuser_restores_by_swap_and_back(
    each_postgres: Postgres, terminal: MakeTerminal, here: Here
) -> None:
    url = make_database(each_postgres)
    name = name_of(url)
    run_sql(
        each_postgres.url(),
        f"CREATE ROLE {name}_maker LOGIN CREATEDB CREATEROLE",
        f"GRANT pg_signal_backend, pg_read_all_data TO {name}_maker",
        f"ALTER DATABASE {name} OWNER TO {name}_maker",
        f"CREATE ROLE {name}_reader NOLOGIN PASSWORD 'x'",
        f"COMMENT ON DATABASE {name} IS 'the größe of it'",
    )
    theirs = url.replace("postgres@", f"{name}_maker@")
    run_sql(theirs, "CREATE TABLE orders AS SELECT n FROM generate_series(1, 500) n")
    run_sql(theirs, f"GRANT SELECT ON orders TO {name}_reader", f"CREATE SCHEMA s AUTHORIZATION {name}_maker")
    ours = terminal(theirs)
    backed_up(here, ours, DATABASE_URL=url)
    run_sql(theirs, "DELETE FROM orders WHERE n > 100", f"REVOKE ALL ON orders FROM {name}_reader")
    run_sql(each_postgres.url(), f"DROP ROLE {name}_reader")
    # other tests' roles are in the cluster's globals too, and may be superusers that are gone
    plan = json.loads(here(ours, "restore", "--dry-run", "--json").stdout)
    assert f"{name}_reader" in plan["roles_lacking"]
    if not [f for f in plan["findings"] if f["verdict"] == "refuse"]:
        done(here(ours, "restore", "--force", "--no-safety-backup"))
        assert asked(theirs, "SELECT count(*) FROM orders") == [(500,)]
        comment = (
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()"
        )
        assert asked(theirs, comment) == [("the größe of it",)]
        done(here(ours, "restore", "--rollback", "--force"))
        assert asked(theirs, "SELECT count(*) FROM orders") == [(100,)]
        assert asked(theirs, comment) == [("the größe of it",)]
    for each in [*made_by_restores(each_postgres, name), name]:
        run_sql(each_postgres.url(), f'DROP DATABASE IF EXISTS "{each}" WITH (FORCE)')


@pytest.mark.parametrize("state", ["closed", "damaged"])
def test_a_target_that_nobody_can_connect_to_is_replaced_and_kept(
    ours: Terminal, shop: str, postgres: Postgres, here: Here, state: str
) -> None:
    backed_up(here, ours)
    name = name_of(shop)
    [(oid,)] = asked(postgres.url(), f"SELECT oid FROM pg_database WHERE datname = '{name}'")
    version = postgres.data_dir / "base" / str(oid) / "PG_VERSION"
    if state == "closed":
        run_sql(postgres.url(), f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    else:
        version.rename(version.with_name("elsewhere"))
    try:
        refused = done(here(ours, "restore", "--force"), 8)
        assert "cannot be connected to" in refused.stderr
        assert "--no-safety-backup" in refused.stderr
        done(here(ours, "restore", "--force", "--no-safety-backup"))
        assert orders(shop) == 500
        assert len(made_by_restores(postgres, name)) == 1
    finally:
        if state == "damaged":
            version.with_name("elsewhere").rename(version)


def test_timeouts_of_the_role_do_not_end_a_restore(
    shop: str, terminal: MakeTerminal, here: Here, postgres: Postgres
) -> None:
    name = name_of(shop)
    run_sql(
        postgres.url(),
        f"CREATE ROLE {name}_hasty LOGIN SUPERUSER",
        f"ALTER ROLE {name}_hasty SET statement_timeout = '300ms'",
        f"ALTER ROLE {name}_hasty SET idle_session_timeout = '300ms'",
        f"ALTER ROLE {name}_hasty SET idle_in_transaction_session_timeout = '300ms'",
        f"ALTER ROLE {name}_hasty SET transaction_timeout = '300ms'",
        f"ALTER ROLE {name}_hasty SET lock_timeout = '1ms'",
    )
    ours = terminal(shop.replace("postgres@", f"{name}_hasty@"))
    backed_up(here, ours)
    for mode in ("swap", "in-place"):
        spoil(shop)
        done(here(ours, "restore", "--force", "--mode", mode))
        assert orders(shop) == 500


def test_a_read_only_folder_does_not_keep_a_restore_from_being_made(
    ours: Terminal, shop: str, here: Here
) -> None:
    made = backed_up(here, ours)
    spoil(shop)
    nowhere = {"BACKUP_DIR": "/proc/no such folder"}
    source = str(ours.backups / made.artifact.name)
    said = done(here(ours, "restore", source, "--dry-run", **nowhere))
    assert "no confirmation code" in said.stdout
    done(here(ours, "restore", source, "--force", "--no-safety-backup", **nowhere))
    assert orders(shop) == 500


def test_a_damaged_file_of_roles_does_not_take_the_data_with_it(
    ours: Terminal, shop: str, here: Here
) -> None:
    made = backed_up(here, ours)
    spoil(shop)
    path = ours.backups / made.globals.name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    said = done(here(ours, "restore", "--force"))
    assert "the roles' file" in said.stderr
    assert orders(shop) == 500


def test_an_older_server_is_refused_what_it_cannot_read(
    servers: Mapping[int, Postgres], terminal: MakeTerminal, here: Here
) -> None:
    url = make_database(servers[18])
    run_sql(url, "CREATE TABLE orders (n int)")
    ours, old = terminal(url), servers[16]
    backed_up(here, ours)
    known = asked(old.url(), "SELECT count(*) FROM pg_roles"), databases(old)
    refused = done(here(ours, "restore", "--force", DATABASE_URL=old.url(name_of(url))), 8)
    assert "transaction_timeout" in refused.stderr
    assert (asked(old.url(), "SELECT count(*) FROM pg_roles"), databases(old)) == known
    run_sql(servers[18].url(), f"DROP DATABASE {name_of(url)}")


def test_tablespace_and_being_a_template_are_kept(
    ours: Terminal, shop: str, postgres: Postgres, here: Here
) -> None:
    name = name_of(shop)
    place = Path(tempfile.mkdtemp(prefix="bd-"))  # that the server can reach: it may run as another user
    os.chown(place, *(getattr(postgres.data_dir.stat(), each) for each in ("st_uid", "st_gid")))
    run_sql(postgres.url(), f"CREATE TABLESPACE {name}_place LOCATION '{place}'")
    run_sql(postgres.url(), f"ALTER DATABASE {name} SET TABLESPACE {name}_place")
    run_sql(postgres.url(), f"ALTER DATABASE {name} IS_TEMPLATE true")
    backed_up(here, ours)
    done(here(ours, "restore", "--force"))
    found = asked(
        postgres.url(),
        "SELECT spcname, datistemplate FROM pg_database d JOIN pg_tablespace t ON t.oid = dattablespace"
        f" WHERE datname = '{name}'",
    )
    assert found == [(f"{name}_place", True)]
    done(here(ours, "restore", "--drop-previous", "--force"))
    run_sql(postgres.url(), f"ALTER DATABASE {name} IS_TEMPLATE false", f"DROP DATABASE {name} WITH (FORCE)")
    run_sql(postgres.url(), f"DROP TABLESPACE {name}_place")
    shutil.rmtree(place)


def test_in_place_what_was_changed_of_the_system_goes_back_too(
    ours: Terminal, shop: str, postgres: Postgres, here: Here
) -> None:
    name = name_of(shop)
    run_sql(postgres.url(), f"CREATE ROLE {name}_alice")
    backed_up(here, ours)
    run_sql(
        shop,
        f"ALTER SCHEMA public OWNER TO {name}_alice",
        f"GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_file(text) TO {name}_alice",
        f"GRANT SELECT ON pg_catalog.pg_authid TO {name}_alice",
    )
    done(here(ours, "restore", "--mode", "in-place", "--force"))
    for query in (
        "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'public'",
        f"SELECT has_function_privilege('{name}_alice', 'pg_read_file(text)', 'EXECUTE')",
        f"SELECT has_table_privilege('{name}_alice', 'pg_authid', 'SELECT')",
    ):
        assert asked(shop, query) in ([("pg_database_owner",)], [(False,)]), query
    run_sql(shop, f"DROP OWNED BY {name}_alice", f"DROP ROLE {name}_alice")


# --- What lies in a bucket may be anybody's ----------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["dump"].update(options=["--dbname=host=127.0.0.1 port=1 sslmode=disable"]),
        lambda m: m["dump"].update(options=["--file=/tmp/elsewhere"]),
        lambda m: m["dump"].update(options=["--schema"]),
        lambda m: m["source"].update(encoding="UTF8';\n\\! touch here\nSET x TO '"),
        lambda m: m["content"]["tables"].update(
            {"orders TO PROGRAM 'touch here'; --": {"rows": 1, "bytes": 1, "sha256": ""}}
        ),
        lambda m: m["content"]["sequences"].update({"s; SELECT 1": "1 true"}),
    ],
)
def test_a_manifest_that_would_run_something_is_none(
    ours: Terminal, shop: str, here: Here, change: Callable[[dict[str, Any]], None]
) -> None:
    made = backed_up(here, ours)
    edited(ours, made, change)
    for words in (("--dry-run",), ("--force",), ("--force", "--mode", "in-place")):
        refused = here(ours, "restore", made.backup, *words)
        assert refused.returncode == 6, refused.stderr
        assert "not a manifest" in refused.stderr
    assert list(ours.folder.glob("here*")) == []


def test_settings_from_a_manifest_are_values_and_no_statements(
    ours: Terminal, shop: str, postgres: Postgres, here: Here
) -> None:
    made = backed_up(here, ours)
    run_sql(postgres.url(), f"DROP DATABASE {name_of(shop)} WITH (FORCE)", "DROP TABLE IF EXISTS trap")
    evil = "''; CREATE TABLE public.trap (); --"
    setting = {"role": None, "name": "search_path", "value": evil}
    edited(ours, made, lambda m: m["source"].update(settings=[setting]))
    done(here(ours, "restore", "--force"))
    assert asked(postgres.url(), "SELECT to_regclass('public.trap')") == [(None,)]
    assert asked(shop, "SELECT to_regclass('public.trap')") == [(None,)]


def test_search_paths_come_back_as_they_were(
    ours: Terminal, shop: str, postgres: Postgres, here: Here
) -> None:
    name = name_of(shop)
    paths = ('"$user", public', "a, \"B c\", 'd'", "''")
    for path in paths:
        run_sql(postgres.url(), f"ALTER DATABASE {name} SET search_path TO {path}")
        before = asked(
            postgres.url(),
            f"SELECT setconfig FROM pg_db_role_setting WHERE setdatabase ="
            f" (SELECT oid FROM pg_database WHERE datname = '{name}')",
        )
        backed_up(here, ours)
        run_sql(postgres.url(), f"DROP DATABASE {name} WITH (FORCE)")
        done(here(ours, "restore", "--force"))
        assert (
            asked(
                postgres.url(),
                f"SELECT setconfig FROM pg_db_role_setting WHERE setdatabase ="
                f" (SELECT oid FROM pg_database WHERE datname = '{name}')",
            )
            == before
        )
        time.sleep(1)


def test_nobody_else_may_look_into_a_database_that_is_half_restored(
    ours: Terminal, shop: str, postgres: Postgres, here: Here
) -> None:
    name = name_of(shop)
    run_sql(postgres.url(), f"CREATE ROLE {name}_mallory LOGIN")
    run_sql(shop, "INSERT INTO orders SELECT n, repeat(md5(n::text), 20) FROM generate_series(501, 20000) n")
    backed_up(here, ours)
    got_in = False
    with ours.running("restore", "--force", "--no-safety-backup") as process:
        while process.poll() is None:
            for each in made_by_restores(postgres, name):
                if "__restoring_" in each:
                    with suppress(psycopg2.Error):
                        run_sql(postgres.url(each).replace("postgres@", f"{name}_mallory@"), "SELECT 1")
                        got_in = True
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert not got_in
    run_sql(shop.replace("postgres@", f"{name}_mallory@"), "SELECT 1")  # and after the swap as before


def test_roles_that_a_failed_restore_made_are_taken_away_again(
    shop: str, terminal: MakeTerminal, here: Here, postgres: Postgres
) -> None:
    name, ours = name_of(shop), terminal(shop)
    run_sql(
        shop,
        f"CREATE ROLE {name}_gone SUPERUSER PASSWORD 'of the gone'",
        "CREATE FUNCTION fails() RETURNS int LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('maintenance_work_mem') = '256MB' THEN RAISE 'no'; END IF; RETURN 1; END $$",
        "CREATE MATERIALIZED VIEW late AS SELECT fails() AS one",
        f"ALTER TABLE orders OWNER TO {name}_gone",
    )
    backed_up(here, ours)
    run_sql(shop, "ALTER TABLE orders OWNER TO postgres", f"DROP ROLE {name}_gone")
    for mode in ("swap", "in-place"):
        done(here(ours, "restore", "--force", "--no-safety-backup", "--mode", mode), 4)
        assert asked(shop, f"SELECT FROM pg_roles WHERE rolname = '{name}_gone'") == []
    assert made_by_restores(postgres, name) == []


def test_a_name_that_is_too_long_is_refused(ours: Terminal, here: Here) -> None:
    backed_up(here, ours)
    refused = done(here(ours, "restore", "--mode", "new", "--target-database", "x" * 64, "--force"), 8)
    assert "63 bytes" in refused.stderr


# --- What was told is so -----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("--mode", "in-place"), ("--table", "public.orders")], ids=str)
def test_what_was_said_to_be_done_outlives_a_crash_of_the_server(
    ground: Path, terminal: MakeTerminal, here: Here, words: tuple[str, ...]
) -> None:
    """Also on one that is set not to wait for its disk: it would write some seconds later."""
    with Postgres(ground / f"crashing{time.monotonic_ns()}") as server:
        url = make_database(server)
        run_sql(url, "CREATE TABLE orders AS SELECT n, 'order ' || n AS what FROM generate_series(1, 500) n")
        backed_up(here, ours := terminal(url))
        spoil(url)
        for setting in ("wal_writer_delay = 10000", "synchronous_commit = off", "checkpoint_timeout = 3600"):
            run_sql(server.url(), f"ALTER SYSTEM SET {setting}")
        run_sql(server.url(), "SELECT pg_reload_conf()")
        done(here(ours, "restore", *words, "--force"))
        server.kill()
        server.start()
        if words[:1] == ("--table",):
            [(back,)] = asked(url, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'restored_%'")
            assert asked(url, f"SELECT count(*) FROM {back}.orders") == [(500,)]
        else:
            assert orders(url) == 500
