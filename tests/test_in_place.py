"""Restores for servers that forbid new databases: one transaction, all of it or nothing."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator

import psycopg2
import pytest

from demo.servers import Postgres
from tests.conftest import Here, Terminal, asked, make_database, name_of, run_sql
from tests.test_restore import (
    MOST_TRIES,
    backed_up,
    databases,
    done,
    dump_of,
    killed_when,
    made_nasty,
    orders,
    spoil,
    without_order,
)

MakeTerminal = Callable[[str], Terminal]
IN_PLACE = ("restore", "--mode", "in-place", "--force", "--json")


@pytest.fixture
def shop(postgres: Postgres) -> Iterator[str]:
    url = make_database(postgres)
    run_sql(url, "CREATE TABLE orders AS SELECT n, 'order ' || n AS what FROM generate_series(1, 500) n")
    yield url
    run_sql(postgres.url(), f'DROP DATABASE IF EXISTS "{name_of(url)}" WITH (FORCE)')


@pytest.mark.parametrize("format", ["sql", "custom"])
def test_everything_comes_back_and_nothing_else_stays(
    each_postgres: Postgres, terminal: MakeTerminal, here: Here, format: str
) -> None:
    url = made_nasty(each_postgres)
    before, ours = dump_of(each_postgres, url), terminal(url)
    made = backed_up(here, ours, BACKUP_FORMAT=format)
    run_sql(
        url,
        "DROP TABLE parent CASCADE",
        "DELETE FROM every_type",
        "SELECT lo_unlink(min(oid)) FROM pg_largeobject_metadata",
        "CREATE SCHEMA later CREATE TABLE one (a int)",
        "CREATE TYPE later.mood AS ENUM ('new')",
        "CREATE FUNCTION later.zero() RETURNS int LANGUAGE sql AS 'SELECT 0'",
        "CREATE OPERATOR !== (LEFTARG = int, RIGHTARG = int, FUNCTION = int4ne)",
        "CREATE AGGREGATE later.total(int) (SFUNC = int4pl, STYPE = int)",
        "CREATE CAST (mood AS int) WITH INOUT",
        "CREATE TEXT SEARCH CONFIGURATION later.plain (COPY = simple)",
        'CREATE COLLATION later.c FROM "C"',
        "CREATE PUBLICATION everything FOR ALL TABLES",
        "CREATE STATISTICS later_stats ON a, b FROM every_type",
        "CREATE DOMAIN later_domain AS int",
        "CREATE OPERATOR FAMILY later_family USING btree",
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO postgres",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT DELETE ON TABLES TO PUBLIC",
        "ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        "COMMENT ON SCHEMA public IS 'another'",
        "SELECT lo_from_bytea(0, '\\x99')",
    )
    known = databases(each_postgres)
    said = json.loads(done(here(ours, *IN_PLACE, made.backup)).stdout)
    assert without_order(dump_of(each_postgres, url)) == without_order(before)
    assert databases(each_postgres) == known
    assert (said["mode"], said["kept_as"]) == ("in-place", None)
    assert said["safety_backup"]
    assert said["window_ms"] > 0


@pytest.fixture
def tenant(postgres: Postgres) -> Iterator[str]:
    """The url of a database whose owner may make no other: as hosts give them out."""
    url = make_database(postgres)
    name = name_of(url)
    run_sql(
        postgres.url(),
        f"CREATE ROLE {name}_tenant LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE",
        f"ALTER DATABASE {name} OWNER TO {name}_tenant",
    )
    theirs = url.replace("postgres@", f"{name}_tenant@")
    run_sql(
        theirs,
        "CREATE TABLE orders AS SELECT n, 'order ' || n AS what FROM generate_series(1, 500) n",
        "CREATE SCHEMA tools",
        "CREATE TABLE tools.of_mine AS SELECT 1 AS one",
    )
    yield theirs
    run_sql(postgres.url(), f"DROP DATABASE {name} WITH (FORCE)", f"DROP ROLE {name}_tenant")


def test_an_owner_without_rights_gets_all_of_it_back(
    tenant: str, terminal: MakeTerminal, here: Here, postgres: Postgres
) -> None:
    ours = terminal(tenant)
    backed_up(here, ours)
    before = dump_of(postgres, tenant)
    spoil(tenant)
    refused = done(here(ours, "restore", "--force"), 8)
    assert "create databases" in refused.stderr
    plan = json.loads(done(here(ours, *IN_PLACE, "--dry-run")).stdout)
    assert plan["findings"] == [] or all(each["verdict"] != "refuse" for each in plan["findings"])
    assert "safety backup alone" in plan["remains"]
    said = json.loads(done(here(ours, *IN_PLACE)).stdout)
    assert dump_of(postgres, tenant) == before
    back = json.loads(done(here(ours, *IN_PLACE, said["safety_backup"])).stdout)
    assert (back["backup"], orders(tenant)) == (said["safety_backup"], 250)


def test_objects_of_others_are_found_before_anything_is_done(
    tenant: str, terminal: MakeTerminal, here: Here, postgres: Postgres
) -> None:
    ours = terminal(tenant)
    backed_up(here, ours)
    run_sql(postgres.url(name_of(tenant)), "CREATE TABLE tools.of_another (a int)")
    refused = done(here(ours, *IN_PLACE, "--no-safety-backup"), 8)
    assert "other owners" in refused.stderr
    assert "postgres" in refused.stderr
    assert orders(tenant) == 500


def test_a_statement_that_fails_undoes_it_all(
    shop: str, terminal: MakeTerminal, here: Here, postgres: Postgres
) -> None:
    """By a view on a function that fails when the backup's materialized view is filled again."""
    ours = terminal(shop)
    run_sql(
        shop,
        "CREATE FUNCTION fails() RETURNS int LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('maintenance_work_mem') = '256MB' THEN RAISE 'no'; END IF; RETURN 1; END $$",
        "CREATE MATERIALIZED VIEW late AS SELECT fails() AS one",
    )
    backed_up(here, ours)
    spoil(shop)
    before = dump_of(postgres, shop)
    failed = done(here(ours, *IN_PLACE), 4)
    assert "no" in failed.stderr
    assert dump_of(postgres, shop) == before
    assert list((ours.backups / ".work").iterdir()) == []


@pytest.mark.parametrize("moment", ["COPY public.orders%FROM stdin%", "ANALYZE%"])
def test_a_death_in_the_middle_undoes_it_all(
    shop: str, terminal: MakeTerminal, here: Here, postgres: Postgres, moment: str
) -> None:
    ours = terminal(shop)
    run_sql(shop, "INSERT INTO orders SELECT n, repeat(md5(n::text), 20) FROM generate_series(501, 20000) n")
    backed_up(here, ours)
    for _ in range(MOST_TRIES):
        run_sql(shop, "DELETE FROM orders WHERE n > 100")
        before = dump_of(postgres, shop)
        with ours.running("restore", "--mode", "in-place", "--force", "--no-safety-backup") as process:
            if killed_when(postgres, moment, process):
                break
    else:
        pytest.fail("it was never seen")
    assert dump_of(postgres, shop) == before
    done(here(ours, *IN_PLACE, "--no-safety-backup"))
    assert asked(shop, "SELECT count(*) FROM orders") == [(20000,)]


def test_sessions_wait_and_find_the_old_or_the_new(shop: str, terminal: MakeTerminal, here: Here) -> None:
    ours = terminal(shop)
    backed_up(here, ours)
    spoil(shop)
    seen: list[int] = []
    stop = threading.Event()

    def hammer() -> None:
        while not stop.is_set():
            try:
                seen.append(orders(shop))
            except psycopg2.OperationalError:
                time.sleep(0.01)

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        done(here(ours, *IN_PLACE))
        time.sleep(0.3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(seen) == {250, 500}


def test_what_cannot_be_done_in_place_is_said_first(
    shop: str, terminal: MakeTerminal, here: Here, postgres: Postgres
) -> None:
    ours = terminal(shop)
    made = backed_up(here, ours)
    nowhere = done(here(ours, *IN_PLACE, "--target-database", f"{name_of(shop)}_none"), 8)
    assert "an empty one first" in nowhere.stderr
    name = name_of(shop)
    run_sql(
        shop,
        f"CREATE SUBSCRIPTION {name}_s CONNECTION 'host=nowhere.invalid' PUBLICATION p"
        " WITH (connect = false, slot_name = NONE)",
    )
    refused = done(here(ours, *IN_PLACE, made.backup), 8)
    assert "subscriptions" in refused.stderr
    run_sql(shop, f"DROP SUBSCRIPTION {name}_s")
    done(here(ours, *IN_PLACE, made.backup))
    assert done(here(ours, "restore", "--rollback", "--force"), 8)
    assert re.search("nothing .* kept|is kept", here(ours, "restore", "--rollback", "--force").stderr)


def test_another_encoding_of_the_target_is_no_other_content(
    postgres: Postgres, terminal: MakeTerminal, here: Here
) -> None:
    """What is proven is the text, and not the bytes that the target keeps it in."""
    url = make_database(postgres)
    run_sql(url, "CREATE TABLE words AS SELECT n, 'Größe ' || n AS word FROM generate_series(1, 20) n")
    ours, name = terminal(url), name_of(url)
    made = backed_up(here, ours)
    run_sql(
        postgres.url(),
        f"CREATE DATABASE {name}_latin TEMPLATE template0 ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C'",
    )
    allowed = {"BACKUP_RESTORE_TARGETS": f"{name}_latin"}
    for mode in ("swap", "in-place"):
        run_sql(postgres.url(f"{name}_latin"), "DROP TABLE IF EXISTS words")
        words = (*IN_PLACE, "--mode", mode, made.backup, "--target-database", f"{name}_latin")
        done(here(ours, *words, **allowed))
        assert asked(postgres.url(f"{name}_latin"), "SELECT word FROM words WHERE n = 7") == [("Größe 7",)]
    done(here(ours, "restore", "--drop-previous", "--force", "--target-database", f"{name}_latin"))
    for each in (name, f"{name}_latin"):
        run_sql(postgres.url(), f"DROP DATABASE {each} WITH (FORCE)")


def test_psql_knows_what_was_dropped(postgres: Postgres) -> None:
    """The list of what a database may hold: every catalog with an owner or a namespace is on it."""
    from backup_dag.core.restoring.emptying import emptying

    known = {
        row[0]
        for row in asked(
            postgres.url(),
            "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind = 'r' AND a.attname ~"
            " '^(?!pol|con|ev)[a-z]+(namespace|owner)$'",
        )
    }
    text = emptying().decode()
    elsewhere = {
        "pg_opclass",  # with its family
        "pg_statistic_ext",  # with its table
        "pg_subscription",  # found before
        "pg_tablespace",  # of the server
        "pg_constraint",
        "pg_publication_namespace",
    }
    assert {name for name in known if name not in text} <= elsewhere
