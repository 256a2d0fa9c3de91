"""Every kind of damage that a restore could suffer in silence, made between loading and proving."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import pytest

from backup_dag.core.databases import Plan
from demo.servers import Postgres, available_versions
from tests.drills import Loaded, everything_loaded

TABLE = '"Größe ""x"""."täble; DROP"'

ROWS: dict[str, tuple[str, str]] = {
    "a row is missing": (
        "DELETE FROM items WHERE order_id = 3 AND line = 2",
        "table public.items has 39 rows, 40 were backed up; first: (3, 2) missing",
    ),
    "a row too many": (
        "INSERT INTO items VALUES (21, 1, 'new')",
        "table public.items has 41 rows, 40 were backed up; first: (21, 1) added",
    ),
    "a value is another": (
        "UPDATE orders SET what = 'ordre 9' WHERE id = 9",
        "table public.orders has other content in the same number of rows (50); first: (9) changed",
    ),
    "two rows changed their tables": (
        "WITH a AS (DELETE FROM items WHERE order_id = 1 AND line = 1 RETURNING *),"
        " b AS (DELETE FROM archived WHERE order_id = 1 AND line = 1 RETURNING *),"
        " c AS (INSERT INTO archived SELECT order_id, 9, what FROM a)"
        " INSERT INTO items SELECT order_id, 9, what FROM b",
        "table public.archived has other content in the same number of rows (40); first: (1, 1) missing",
    ),
    "a key is another": ("UPDATE archived SET line = 3 WHERE order_id = 7 AND line = 1", "(7, 3) added"),
    "an empty text became NULL": ("UPDATE orders SET what = NULL WHERE id = 1", "public.orders has other"),
    "NULL became an empty text": ("UPDATE orders SET what = '' WHERE id = 2", "first: (2) changed"),
    "0 became -0": ("UPDATE orders SET weight = '-0' WHERE id = 3", "first: (3) changed"),
    "NaN became NULL": ("UPDATE orders SET weight = NULL WHERE id = 4", "first: (4) changed"),
    "a float's last digit": (
        "UPDATE orders SET weight = 0.1::float8 + 2e-17::float8 * 1 WHERE id = 5",
        "first: (5) changed",
    ),
    "a row with \\.": ("UPDATE orders SET what = E'one\\ntwo\\tthree\\\\' WHERE id = 6", "(6) changed"),
    "a number's trailing zero": ("UPDATE orders SET price = 1.1 WHERE id = 7", "(7) changed"),
    "an hour of a timestamp": (
        "UPDATE orders SET placed = placed - interval '1 hour' WHERE id = 8",
        "(8) changed",
    ),
    "a byte of a bytea": ("UPDATE orders SET picture = '\\x00fe' WHERE id = 9", "(9) changed"),
    "an enum's value": ("UPDATE orders SET feels = 'sad' WHERE id = 10", "(10) changed"),
    "an identity's value": ("UPDATE orders SET number = 99 WHERE id = 11", "(11) changed"),
    "a row of a partition": ("DELETE FROM parts WHERE day = '2026-01-05'", "table public.parts_new has 2"),
    "a row of a child": ("UPDATE child SET b = 'other'", "table public.child has other content"),
    "a row moved from a parent to its child": (
        "WITH gone AS (DELETE FROM ONLY parent RETURNING a, b) INSERT INTO child SELECT *, 2 FROM gone",
        "table public.parent has 0 rows, 1 were backed up",
    ),
    "a hidden row": ("DELETE FROM secret", "table public.secret has 0 rows, 1 were backed up"),
    "a row of a table that needs quotes": (
        f'UPDATE {TABLE} SET "a ""b""" = \'ss\' WHERE "sélect" = 4',
        f"table {TABLE} has other content in the same number of rows (20); first: (4) changed",
    ),
    "a row of a table with a backslash": ("DELETE FROM \"back\\slash\" WHERE a = 'a'", "has 1 rows, 2 were"),
    "a row of a table with a line break": ("UPDATE \"with\na line\" SET b = '' WHERE a = 2", "(2) changed"),
    "one duplicate fewer": (
        "DELETE FROM keyless WHERE ctid = (SELECT min(ctid) FROM keyless)",
        "table public.keyless has 4 rows, 5 were backed up",
    ),
    "one duplicate for another": (
        "UPDATE keyless SET a = 0, b = 'none' WHERE ctid = (SELECT min(ctid) FROM keyless)",
        "table public.keyless has other content in the same number of rows (5)",
    ),
    "a row without columns": (
        "DELETE FROM no_columns WHERE ctid = (SELECT min(ctid) FROM no_columns)",
        "table public.no_columns has 1 rows, 2 were backed up",
    ),
    "a row in an empty table": ("INSERT INTO nothing_in_it VALUES (1, 'a')", "has 1 rows, 0 were backed up"),
    "a table is empty": ("TRUNCATE archived", "table public.archived has 0 rows, 40 were backed up"),
    "a table is missing": ("DROP TABLE archived", "table public.archived is missing"),
    "a table in a schema is missing": (f"DROP TABLE {TABLE}", f"table {TABLE} is missing"),
    "a table with a backslash is missing": ('DROP TABLE "back\\slash"', 'public."back\\slash"'),
    "a table too many": ("CREATE TABLE more ()", "table more in schema public was not in the backup"),
    "a partition is missing": ("DROP TABLE parts_old", "table public.parts_old is missing"),
    "a table was renamed": ("ALTER TABLE archived RENAME TO old", "table public.archived is missing"),
    "a table moved to another schema": (
        'ALTER TABLE archived SET SCHEMA "Größe ""x"""',
        "table public.archived is missing",
    ),
    "a column was dropped": ("ALTER TABLE orders DROP COLUMN weight", "table public.orders cannot be read"),
    "a column was renamed": ("ALTER TABLE orders RENAME weight TO kilos", "orders in schema public differs"),
    "two columns changed places and names": (
        "ALTER TABLE halves RENAME a TO c; ALTER TABLE halves RENAME b TO a;ALTER TABLE halves RENAME c TO b",
        "table public.halves has other content in the same number of rows (2); first: (1) changed",
    ),
    "columns of two tables were dropped": (
        "ALTER TABLE orders DROP weight; ALTER TABLE halves DROP b",
        "table public.halves cannot be read as it was backed up",
    ),
    "a column too many": ("ALTER TABLE orders ADD more text", "table orders in schema public differs"),
    "a column's type": ("ALTER TABLE items ALTER line TYPE bigint", "table items in schema public differs"),
    "a table became a view": (
        "ALTER TABLE archived RENAME TO old; CREATE VIEW archived AS SELECT * FROM old",
        "table public.archived",
    ),
    "a table became a matview": (
        "ALTER TABLE archived RENAME TO old; CREATE MATERIALIZED VIEW archived AS SELECT * FROM old",
        "table archived in schema public is missing",
    ),
    "a sequence is behind": (
        "SELECT setval('spread', 1000)",
        "sequence public.spread stands at 1000 true, 1007 true was backed up",
    ),
    "a sequence was never called": ("SELECT setval('spread', 1007, false)", "stands at 1007 false"),
    "a sequence is called": ("SELECT nextval('fresh')", "sequence public.fresh stands at 1 true, 1 false"),
    "a sequence of a name with a backslash": (
        "SELECT setval('\"back\\slash_id_seq\"', 1)",
        'sequence public."back\\slash_id_seq" stands at 1 true, 2 true was backed up',
    ),
    "a sequence is missing": ("DROP SEQUENCE fresh", "sequence public.fresh is missing"),
    "a large object's byte": (
        "SELECT lo_put(4712, 4000, '\\xac')",
        "2 large objects are there, 2 were backed up; of other content, missing or added: 4712",
    ),
    "a large object is missing": ("SELECT lo_unlink(4711)", "1 large objects are there, 2 were backed up"),
    "a large object too many": ("SELECT lo_from_bytea(4713, '')", "missing or added: 4713"),
    "a large object is shorter": ("SELECT lo_truncate(lo_open(4712, x'60000'::int), 10)", "added: 4712"),
}

OBJECTS: dict[str, tuple[str, str]] = {
    "an index is missing": ("DROP INDEX by_what", "index by_what in schema public is missing"),
    "an index is another": (
        "DROP INDEX by_what; CREATE INDEX by_what ON orders (lower(what)) WHERE price > 1",
        "index by_what in schema public differs",
    ),
    "an index is not unique": (
        "DROP INDEX one_line; CREATE INDEX one_line ON keyless (a) WHERE a > 1",
        "index one_line in schema public differs",
    ),
    "a primary key is missing": (
        "ALTER TABLE archived DROP CONSTRAINT archived_pkey",
        "constraint archived archived_pkey in schema public is missing",
    ),
    "a foreign key is missing": (
        "ALTER TABLE items DROP CONSTRAINT of_an_order",
        "fk constraint items of_an",
    ),
    "a foreign key cascades": (
        "ALTER TABLE items DROP CONSTRAINT of_an_order, ADD CONSTRAINT of_an_order"
        " FOREIGN KEY (order_id) REFERENCES orders ON DELETE CASCADE",
        "fk constraint items of_an_order in schema public differs",
    ),
    "a check is missing": (
        "ALTER TABLE orders DROP CONSTRAINT what_is_short",
        "table orders in schema public differs",
    ),
    "a column may be NULL": ("ALTER TABLE parts ALTER day DROP NOT NULL", "table parts in schema public"),
    "a trigger is missing": (
        "DROP TRIGGER touch ON orders",
        "trigger orders touch in schema public is missing",
    ),
    "a trigger is disabled": (
        "ALTER TABLE orders DISABLE TRIGGER touch",
        "orders touch in schema public differs",
    ),
    "a rule is missing": ("DROP RULE no_update ON items", "rule items no_update in schema public is missing"),
    "an event trigger is missing": (
        "DROP EVENT TRIGGER notice_tables",
        "event trigger notice_tables is missing",
    ),
    "an event trigger is disabled": ("ALTER EVENT TRIGGER notice_tables DISABLE", "notice_tables differs"),
    "a grant is missing": ("REVOKE SELECT ON orders FROM pg_monitor", "acl TABLE orders in schema public"),
    "a column's grant is missing": (
        "REVOKE SELECT (what) ON items FROM pg_monitor",
        "acl COLUMN items.what in schema public is missing",
    ),
    "a grant too many": ("GRANT INSERT ON orders TO pg_monitor", "acl TABLE orders in schema public differs"),
    "a grant can be passed on": (
        "GRANT SELECT ON orders TO pg_monitor WITH GRANT OPTION",
        "acl TABLE orders in schema public differs",
    ),
    "a schema's grant is missing": (
        'REVOKE USAGE ON SCHEMA "Größe ""x""" FROM pg_monitor',
        'acl SCHEMA "Größe ""x""" is missing',
    ),
    "a default privilege is missing": (
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE SELECT ON TABLES FROM pg_monitor",
        "default acl DEFAULT PRIVILEGES FOR TABLES in schema public is missing",
    ),
    "a default is missing": ("ALTER TABLE orders ALTER what DROP DEFAULT", "orders in schema public differs"),
    "a default is another": (
        "ALTER TABLE orders ALTER what SET DEFAULT ''",
        "orders in schema public differs",
    ),
    "a serial lost its default": (
        'ALTER TABLE "back\\slash" ALTER id DROP DEFAULT',
        "default back\\slash id",
    ),
    "a sequence is no one's": ('ALTER SEQUENCE "back\\slash_id_seq" OWNED BY NONE', "sequence owned by"),
    "a sequence steps otherwise": ("ALTER SEQUENCE spread INCREMENT 8", "sequence spread in schema public"),
    "an identity is always": (
        "ALTER TABLE orders ALTER number SET GENERATED ALWAYS",
        "sequence orders_number_seq in schema public differs",
    ),
    "a generated column is a plain one": (
        "ALTER TABLE orders ALTER doubled DROP EXPRESSION",
        "table orders in schema public differs",
    ),
    "a comment is missing": ("COMMENT ON TABLE orders IS NULL", "comment TABLE orders in schema public is"),
    "a column's comment is another": ("COMMENT ON COLUMN orders.what IS ''", "COLUMN orders.what in schema"),
    "a large object's comment is missing": (
        "COMMENT ON LARGE OBJECT 4711 IS NULL",
        "comment LARGE OBJECT 4711 is missing",
    ),
    "a large object's owner": ("ALTER LARGE OBJECT 4712 OWNER TO pg_monitor", "4712"),
    "an owner": ("ALTER TABLE archived OWNER TO pg_monitor", "table archived in schema public differs"),
    "a function is missing": ("DROP FUNCTION graded", "function graded(numeric) in schema public"),
    "two lines of a function are swapped": (
        "CREATE OR REPLACE FUNCTION graded(price numeric) RETURNS text LANGUAGE plpgsql AS $$\n"
        "BEGIN\n    price := price + 1;\n    price := price * 2;\n    RETURN price::text;\nEND $$",
        "function graded(numeric) in schema public differs",
    ),
    "a function runs as its owner": (
        "ALTER FUNCTION graded SECURITY DEFINER",
        "function graded(numeric) in schema public",
    ),
    "a view is missing": ("DROP VIEW seen", "view seen in schema public is missing"),
    "a view is another": (
        "CREATE OR REPLACE VIEW seen AS SELECT id, what FROM orders WHERE id > 9",
        "view seen in schema public differs",
    ),
    "a materialized view is missing": (
        "DROP MATERIALIZED VIEW counted",
        "view counted in schema public is missing",
    ),
    "a policy is missing": ("DROP POLICY own ON secret", "policy secret own in schema public is missing"),
    "row security is off": ("ALTER TABLE secret DISABLE ROW LEVEL SECURITY", "row security secret in schema"),
    "row security is forced": (
        "ALTER TABLE secret FORCE ROW LEVEL SECURITY",
        "table secret in schema public differs",
    ),
    "an enum has one more": ("ALTER TYPE mood ADD VALUE 'glad'", "type mood in schema public differs"),
    "an enum's word is another": (
        "ALTER TYPE mood RENAME VALUE 'so' TO 'soso'",
        "type mood in schema public differs",
    ),
    "an enum's order is another": (
        "UPDATE pg_enum SET enumsortorder = -1 WHERE enumlabel = 'happy'",
        "type mood in schema public differs",
    ),
    "a composite type's order is another": (
        "DROP CAST (pair AS text); DROP TYPE pair; CREATE TYPE pair AS (b text, a int);"
        " CREATE CAST (pair AS text) WITH INOUT",
        "type pair in schema public differs",
    ),
    "a domain's check is missing": (
        "ALTER DOMAIN positive DROP CONSTRAINT positive_check",
        "domain positive",
    ),
    "a collation is missing": ("DROP COLLATION plain", "collation plain in schema public is missing"),
    "a column's collation": (
        'ALTER TABLE items ALTER what TYPE text COLLATE "C"',
        "table items in schema public",
    ),
    "a column's storage": ("ALTER TABLE items ALTER what SET STORAGE MAIN", "table items in schema public"),
    "a column's statistics": (
        "ALTER TABLE items ALTER what SET STATISTICS 10",
        "table items in schema public",
    ),
    "a fill factor": (
        "ALTER TABLE archived SET (fillfactor = 50)",
        "table archived in schema public differs",
    ),
    "a table is unlogged": ("ALTER TABLE keyless SET UNLOGGED", "table keyless in schema public differs"),
    "a replica identity": (
        "ALTER TABLE items REPLICA IDENTITY DEFAULT",
        "table items in schema public differs",
    ),
    "a cluster mark": ("ALTER TABLE items SET WITHOUT CLUSTER", "items_pkey in schema public differs"),
    "statistics are missing": ("DROP STATISTICS together", "statistics together in schema public is missing"),
    "a partition is detached": (
        "ALTER TABLE parts DETACH PARTITION parts_old",
        "table attach parts_old in schema public is missing",
    ),
    "a partition's bounds": (
        "ALTER TABLE parts DETACH PARTITION parts_old;"
        "ALTER TABLE parts ATTACH PARTITION parts_old FOR VALUES FROM ('1900-01-01') TO ('2026-01-01')",
        "table attach parts_old in schema public differs",
    ),
    "a child inherits no more": (
        "ALTER TABLE child NO INHERIT parent",
        "table child in schema public differs",
    ),
    "a publication is missing": ("DROP PUBLICATION everything", "publication everything is missing"),
    "a publication's table is missing": (
        "ALTER PUBLICATION everything DROP TABLE items",
        "publication table everything items in schema public is missing",
    ),
    "an aggregate is missing": ("DROP AGGREGATE total (int)", "aggregate total(integer) in schema public"),
    "an operator is missing": ("DROP OPERATOR === (int, int)", "operator === in schema public is missing"),
    "a cast is missing": ("DROP CAST (pair AS text)", "cast CAST (public.pair AS text) is missing"),
    "a text search configuration is missing": (
        "DROP TEXT SEARCH CONFIGURATION plain",
        "text search configuration plain in schema public is missing",
    ),
    "a schema too many": ("CREATE SCHEMA more", "schema more was not in the backup"),
}

HARMLESS: dict[str, tuple[str, str]] = {
    "nothing": ("SELECT 1", ""),
    "rows in another order": (
        "CREATE TABLE kept AS SELECT * FROM keyless; TRUNCATE keyless;"
        "INSERT INTO keyless SELECT * FROM kept ORDER BY a DESC; DROP TABLE kept",
        "table public.keyless came back with the same rows in another order",
    ),
    "rows that were written again": ("UPDATE orders SET what = what WHERE id % 3 = 0", "public.orders"),
    "columns in another order": (
        "CREATE TABLE other (b text, a int); INSERT INTO other SELECT b, a FROM nothing_in_it;"
        "DROP TABLE nothing_in_it; ALTER TABLE other RENAME TO nothing_in_it;"
        "REVOKE ALL ON nothing_in_it FROM pg_monitor",
        "",
    ),
    "columns and rows in another order": (
        "CREATE TABLE other (b text, a int); INSERT INTO other SELECT b, a FROM keyless ORDER BY a DESC;"
        "DROP TABLE keyless; ALTER TABLE other RENAME TO keyless;"
        "REVOKE ALL ON keyless FROM pg_monitor; CREATE UNIQUE INDEX one_line ON keyless (a) WHERE a > 1",
        "table public.keyless came back",
    ),
    "rows without columns, written again": (
        "CREATE TABLE kept AS SELECT FROM no_columns; DELETE FROM no_columns;"
        "INSERT INTO no_columns SELECT FROM kept; DROP TABLE kept",
        "",
    ),
    "pages moved about": ("VACUUM FULL", ""),
    "a large object written again": ("SELECT lo_put(4712, 0, '\\xab')", ""),
}

MAIN = (
    "a row is missing", "a value is another", "a sequence is behind", "a large object's byte",
    "an index is missing", "a check is missing", "a foreign key is missing", "a trigger is missing",
    "a grant is missing", "a default is missing", "a comment is missing", "a table is missing",
    "a column was renamed", "an enum's order is another", "an owner", "a large object's owner",
    "a large object is missing", "a policy is missing", "a table with a backslash is missing",
)  # fmt: skip
KINDS = [
    f"pg{version}-{format}"
    for version in sorted(available_versions())
    for format in ("sql", "custom")
    if format == "sql" or version == max(available_versions())
]
NEWEST = f"pg{max(available_versions())}-sql"


@pytest.fixture(scope="module")
def restored(
    servers: Mapping[int, Postgres], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Loaded]]:
    """Everything there is, restored on the version and from the format that is named: once for each."""
    there: dict[str, Loaded] = {}
    with ExitStack() as drills:

        def of(kind: str) -> Loaded:
            if kind not in there:
                version, format = kind.removeprefix("pg").split("-")
                plan = Plan.model_validate({"format": format})
                folder = tmp_path_factory.mktemp("drill")
                there[kind] = drills.enter_context(everything_loaded(servers[int(version)], folder, plan))
            return there[kind]

        yield of


ASKED = [(kind, damage) for kind in KINDS for damage in ([*ROWS, *OBJECTS] if kind == NEWEST else MAIN)]
"""All of them on the newest version; elsewhere, what differs from version to version."""


@pytest.mark.parametrize(("kind", "damage"), ASKED)
def test_damage_is_found_and_named(restored: Callable[[str], Loaded], kind: str, damage: str) -> None:
    statements, said = {**ROWS, **OBJECTS}[damage]
    found = restored(kind).verdict("SET client_min_messages = error", statements)
    assert not found.proven, damage
    assert any(said in fault for fault in found.faults), (damage, found.faults)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", HARMLESS)
def test_what_is_in_another_order_stays_proven(
    restored: Callable[[str], Loaded], kind: str, change: str
) -> None:
    statements, noted = HARMLESS[change]
    found = restored(kind).verdict(*statements.split(";"))
    assert found.faults == []
    assert noted in "; ".join(found.notes)
