"""The fingerprint: the same digests wherever blocks are cut, whatever the user's text looks like."""

import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import pairwise
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st
from psycopg2.extensions import parse_dsn

from backup_dag.core.clients import Clients
from backup_dag.core.errors import IntegrityError
from backup_dag.core.manifest import Content
from backup_dag.core.sql import literal
from backup_dag.core.stages.dump import as_sql
from backup_dag.core.stages.fingerprint import Fingerprint, differences
from demo.servers import Postgres
from tests.conftest import make_database, run_sql
from tests.core.dumps import content, pg_dump, psql

PREAMBLE = r"""--
-- PostgreSQL database dump
--

\restrict abcDEF123

-- Dumped from database version 18.4
-- Dumped by pg_dump version 18.4

SET standard_conforming_strings = on;

"""
TRAILER = r"""--
-- PostgreSQL database dump complete
--

\unrestrict abcDEF123

"""


def section(name: str, kind: str, body: str) -> str:
    data = "Data for " if kind in ("TABLE DATA", "BLOBS") else ""
    schema = "-" if kind == "BLOBS" else "public"
    name = name.replace("\n", " ")  # as pg_dump does in its comments
    return f"--\n-- {data}Name: {name}; Type: {kind}; Schema: {schema}; Owner: me\n--\n\n{body}\n\n\n"


def rows(table: str, *lines: str, columns: str = "(id)") -> str:
    body = "".join(f"{line}\n" for line in lines)
    return section(table, "TABLE DATA", f"COPY {table} {columns} FROM stdin;\n{body}\\.\n")


def whole(*sections: str) -> bytes:
    return (PREAMBLE + "".join(sections) + TRAILER).encode()


SMALL = whole(
    section("f()", "FUNCTION", "CREATE FUNCTION public.f() AS $_$\nCOPY a FROM stdin;\n'$$\\.\n$_$;"),
    section("t", "TABLE", "CREATE TABLE public.t (\n    id integer DEFAULT 'it''s -- \n\"'\n);"),
    rows("public.t", "1", "2", "\\\\."),
    rows('public."line\nbreak"', "x"),
    rows("public.nothing", "", "", columns=""),
    rows("public.empty"),
    section("s", "SEQUENCE SET", "SELECT pg_catalog.setval('public.s', 42, true);"),
    section(
        "BLOBS",
        "BLOBS",
        "BEGIN;\n\nSELECT pg_catalog.lo_open('7', 131072);\n"
        "SELECT pg_catalog.lowrite(0, '\\x61');\nSELECT pg_catalog.lo_close(0);\n\nCOMMIT;",
    ),
)
"""One of each, hand-written."""


def sha256(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


# -- vectors


def test_rows_are_counted_and_hashed_as_copy_wrote_them() -> None:
    found = content(SMALL).tables
    assert {name: (table.rows, table.bytes) for name, table in found.items()} == {
        "public.t": (3, 8),
        'public."line\nbreak"': (1, 2),
        "public.nothing": (2, 2),
        "public.empty": (0, 0),
    }
    assert found["public.t"].sha256 == sha256("1\n2\n\\\\.\n")
    assert found["public.nothing"].sha256 == sha256("\n\n")
    assert found["public.empty"].sha256 == sha256("")


def test_sequences_and_large_objects_stand_beside_the_tables() -> None:
    found = content(SMALL)
    assert found.sequences == {"public.s": "42 true"}
    assert found.large_objects.count == 1
    assert found.rows == 6


@pytest.mark.parametrize(
    "name",
    [
        "public.plain",
        'public."with space"',
        'public."a ""quoted"" (one)"',
        'public."FROM stdin;"',
        'public."two\nlines (\n"',
        'public."a.b"."c"',
        'public."größe 日本 🐘"',
        "überblick.maß",
        'public."it\'s; --"',
    ],
)
def test_any_name_and_any_columns_are_read(name: str) -> None:
    columns = '(id, "a, b", "c)", "d"" FROM stdin;\n", "ä")'
    found = content(whole(rows(name, "1", "2", columns=columns)))
    assert {key: table.rows for key, table in found.tables.items()} == {name: 2}


def test_partitions_loaded_through_their_root_come_under_its_name() -> None:
    found = content(whole(rows("public.root", "1", "2"), rows("public.root", "3")))
    assert found.tables.keys() == {"public.root"}
    assert found.tables["public.root"].rows == 3
    assert found.tables["public.root"].sha256 == sha256("1\n2\n3\n")


@pytest.mark.parametrize(
    "text",
    [
        "'COPY public.x (id) FROM stdin;\n1\n\\.\n'",
        "$$\n-- Name: x; Type: BLOBS; Schema: -; Owner: -\n$$",
        "'\n-- PostgreSQL database dump complete\n'",
        "$_$\n$$ ' \" \\restrict x\n$_$",
        '"\nCOPY a FROM stdin;\n\'"',
        "'\n\\unrestrict x\n'",
        "'--' -- it's a comment",
        "$körper$\nSELECT pg_catalog.setval('x', 1, true);\n$körper$",
        "''''",
        '""""',
        "'$$'",
        "$a$$b$\nCOPY a FROM stdin;\n$a$",
        "'\\'",
    ],
)
def test_text_in_quotes_counts_as_schema_whatever_it_looks_like(text: str) -> None:
    found = content(whole(section("x", "VIEW", f"SELECT {text};"), rows("public.t", "1")))
    plain = content(whole(section("x", "VIEW", "SELECT 1;"), rows("public.t", "1")))
    assert found.tables == plain.tables
    assert (found.sequences, found.large_objects) == (plain.sequences, plain.large_objects)
    assert differences(plain, found) == ["the schema differs"]


def test_restrict_tokens_and_version_comments_do_not_count() -> None:
    other = SMALL.replace(b"abcDEF123", b"Zz9").replace(b"version 18.4", b"version 19beta1 (Debian)")
    assert other != SMALL
    assert content(other) == content(SMALL)


def test_a_restrict_line_need_not_be_there() -> None:
    older = re.sub(rb"\\(?:un)?restrict abcDEF123\n\n", b"", SMALL)
    assert b"restrict" not in older
    assert differences(content(SMALL), content(older)) == []


# -- for a single transaction

OBJECTS = b"""--
-- Data for Name: BLOBS; Type: BLOBS; Schema: -; Owner: -
--

BEGIN;

SELECT pg_catalog.lo_open('16397', 131072);
SELECT pg_catalog.lowrite(0, '\\x4f');
SELECT pg_catalog.lo_close(0);

COMMIT;

"""
SPEAKING = b"""--
-- Name: p(); Type: PROCEDURE; Schema: public; Owner: -
--

CREATE PROCEDURE public.p() LANGUAGE plpgsql AS $_$
BEGIN;
COMMIT;
$_$;


--
-- Data for Name: t; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.t (a) FROM stdin;
BEGIN;
COMMIT;
\\.


"""


@given(cuts=st.lists(st.integers(0, len(SPEAKING + OBJECTS)), max_size=30))
def test_all_of_it_without_what_would_end_a_transaction(cuts: list[int]) -> None:
    text, whole = SPEAKING + OBJECTS + SPEAKING + OBJECTS, io.BytesIO()
    fingerprint = Fingerprint(whole=whole)
    for start, end in pairwise([0, *sorted(cuts), len(text)]):
        fingerprint.write(text[start:end])
    without = OBJECTS.replace(b"BEGIN;\n", b"").replace(b"COMMIT;\n", b"")
    assert whole.getvalue() == SPEAKING + without + SPEAKING + without


# -- where blocks are cut


def test_single_bytes_give_the_same_outcome() -> None:
    assert content(SMALL, range(len(SMALL))) == content(SMALL)


@given(cuts=st.lists(st.integers(0, len(SMALL)), max_size=30))
@how(deadline=None, max_examples=300)
def test_a_small_dump_may_be_cut_anywhere(cuts: list[int]) -> None:
    assert content(SMALL, cuts) == content(SMALL)


@pytest.fixture(scope="module")
def sample_dump(postgres: Postgres, sample_urls: Mapping[int, str]) -> bytes:
    return pg_dump(postgres, sample_urls[postgres.version])


@given(data=st.data())
@how(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
def test_a_real_dump_may_be_cut_anywhere(sample_dump: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(sample_dump)), max_size=200))
    near = data.draw(st.sampled_from([b"\n\\.\n", b"COPY ", b"$$", b"'", b"-- Data for", b"\\restrict"]))
    places = [m.start() + shift for m in re.finditer(re.escape(near), sample_dump) for shift in (0, 1, 2)]
    cuts += data.draw(st.lists(st.sampled_from(places), max_size=200))
    assert content(sample_dump, cuts) == content(sample_dump)


@pytest.mark.parametrize("size", [3, 7, 4096, 65_537])
def test_a_real_dump_may_come_in_equal_blocks(sample_dump: bytes, size: int) -> None:
    head = sample_dump if size > 1000 else _without_most_rows(sample_dump)
    assert content(head, range(0, len(head), size)) == content(head)


def _without_most_rows(dump: bytes) -> bytes:
    """The same schema with a handful of rows a table, so that tiny blocks end in time."""
    return re.sub(rb"( FROM stdin;\n(?:[^\n]*\n){,3}?)(?:[^\n\\][^\n]*\n)*(?=\\\.\n)", rb"\1", dump)


# -- an implementation as slow and as simple as can be


class Slow:
    """What `Fingerprint` finds, one line and one character at a time."""

    DOLLAR = re.compile(rb"\$(?:[^\W\d]\w*)?\$")

    def __init__(self, dump: bytes) -> None:
        self.tables: dict[str, list[bytes]] = {}
        self.schema, self.blobs = hashlib.sha256(), hashlib.sha256()
        self.objects = 0
        self._kind, self._quote, self._copy = b"", b"", b""
        self._table: list[bytes] | None = None
        for line in dump.split(b"\n")[:-1]:
            self._line(line + b"\n")

    def _line(self, line: bytes) -> None:
        if self._table is not None:
            if line == b"\\.\n":
                self._table = None
            else:
                self._table.append(line)
            return
        outside = not self._quote
        if outside and line.startswith((b"-- Name: ", b"-- Data for Name: ")):
            self._kind = line.rsplit(b"; Type: ", 1)[1].split(b"; Schema: ")[0]
        if outside and line.startswith((b"\\restrict ", b"\\unrestrict ")):
            return
        if (outside and line.startswith(b"COPY ")) or self._copy:
            self._copy += line
        self._count(line)
        if outside and line == b"-- PostgreSQL database dump complete\n":
            self._kind = b""  # what comes after it is nothing's
        self._quote = self._after(line)
        if self._copy and not self._quote:
            self._table = self.tables.setdefault(_name_in(self._copy), [])
            self._copy = b""

    def _count(self, line: bytes) -> None:
        # the line break that ends COPY's statement belongs to neither digest
        line = line[:-1] if self._copy and line.endswith(b" FROM stdin;\n") else line
        if self._kind == b"SEQUENCE SET" and line.startswith(b"SELECT pg_catalog.setval("):
            return
        if self._kind == b"BLOBS":
            self.blobs.update(line)
            self.objects += line.startswith(b"SELECT pg_catalog.lo_open(")
        elif self._kind:
            self.schema.update(line)

    def _after(self, line: bytes) -> bytes:
        """The quote that is still open after a line."""
        quote, at = self._quote, 0
        while at < len(line):
            if quote:
                at, quote = (at + len(quote), b"") if line.startswith(quote, at) else (at + 1, quote)
                continue
            if line.startswith(b"--", at):
                break
            dollar = self.DOLLAR.match(line, at)
            quote = dollar.group() if dollar else line[at : at + 1] if line[at : at + 1] in b"'\"" else b""
            at += max(1, len(quote))
        return quote


def _name_in(statement: bytes) -> str:
    """The table's name in a COPY statement: up to the first space outside of double quotes."""
    text = statement.decode()[len("COPY ") :]
    quoted = False
    for at, character in enumerate(text):
        quoted ^= character == '"'
        if character == " " and not quoted:
            return text[:at]
    raise AssertionError(text)


def test_digests_are_those_of_a_slow_and_simple_reader(
    each_postgres: Postgres, sample_urls: Mapping[int, str]
) -> None:
    dump = pg_dump(each_postgres, sample_urls[each_postgres.version])
    slow, found = Slow(dump), content(dump)
    assert {name: (t.rows, t.bytes, t.sha256) for name, t in found.tables.items()} == {
        name: (len(lines), len(b"".join(lines)), sha256(b"".join(lines)))
        for name, lines in slow.tables.items()
    }
    assert found.schema_sha256 == slow.schema.hexdigest()
    assert found.large_objects.model_dump() == {"count": slow.objects, "sha256": slow.blobs.hexdigest()}


# -- the database itself as the judge


def ask(url: str, query: str) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


TABLES = """
    SELECT format('%I.%I', n.nspname, c.relname)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname !~ '^pg_|^information_schema$'
"""


def truth(url: str) -> dict[str, tuple[int, str]]:
    """Rows and digest of each table, from count(*) and COPY … TO STDOUT."""
    found = {}
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(TABLES)
        for (name,) in cursor.fetchall():
            body = io.BytesIO()
            cursor.copy_expert(f"COPY {name} TO STDOUT", body)
            cursor.execute(f"SELECT count(*) FROM {name}")
            counted = cursor.fetchone()
            assert counted is not None
            found[name] = (counted[0], sha256(body.getvalue()))
    return found


def assert_true_to(url: str, found: Content) -> None:
    assert {name: (table.rows, table.sha256) for name, table in found.tables.items()} == truth(url)
    assert found.sequences == dict(ask(url, SEQUENCES))
    assert found.large_objects.count == ask(url, "SELECT count(*) FROM pg_largeobject_metadata")[0][0]


SEQUENCES = """
    SELECT format('%I.%I', schemaname, sequencename),
           CASE WHEN last_value IS NULL THEN start_value || ' false' ELSE last_value || ' true' END
    FROM pg_sequences
"""


def test_tables_sequences_and_large_objects_are_what_the_database_says(
    each_postgres: Postgres, sample_urls: Mapping[int, str]
) -> None:
    url = sample_urls[each_postgres.version]
    found = content(pg_dump(each_postgres, url))
    assert_true_to(url, found)
    assert len(found.tables) > 20
    assert len(found.sequences) >= 4
    assert found.large_objects.count == 3


# -- the same database, another dump


def test_two_dumps_of_one_database_have_one_digest(
    postgres: Postgres, sample: str, sample_dump: bytes
) -> None:
    again = pg_dump(postgres, sample)
    assert again != sample_dump  # the \restrict token, where the version has it
    assert content(again) == content(sample_dump)


def test_what_was_restored_has_the_digest_of_what_was_dumped(
    each_postgres: Postgres, sample_urls: Mapping[int, str]
) -> None:
    dump = pg_dump(each_postgres, sample_urls[each_postgres.version])
    there = make_database(each_postgres)
    psql(each_postgres, there, dump)
    assert differences(content(dump), content(pg_dump(each_postgres, there))) == []


def test_both_formats_have_one_content(each_postgres: Postgres, sample_urls: Mapping[int, str]) -> None:
    url = sample_urls[each_postgres.version]
    archive = pg_dump(each_postgres, url, "--format=custom", "--compress=0")
    fingerprint = Fingerprint()
    clients = Clients(each_postgres.bin_dir, str(each_postgres.version))
    with as_sql(fingerprint, clients, format="custom") as writer:
        for start in range(0, len(archive), 50_000):
            writer.write(archive[start : start + 50_000])
    assert fingerprint.finish() == content(pg_dump(each_postgres, url))


def test_partitions_are_the_same_rows_through_their_root(postgres: Postgres, sample: str) -> None:
    found = content(pg_dump(postgres, sample, "--load-via-partition-root")).tables
    assert [name for name in found if name.startswith("shop.orders")] == ["shop.orders"]
    assert found["shop.orders"].rows == ask(sample, "SELECT count(*) FROM shop.orders")[0][0]


# -- objects that look like a dump

NASTY = [
    "COPY public.t (id) FROM stdin;\n1\n\\.\n",
    "\\.\n",
    "\n--\n-- Data for Name: t; Type: TABLE DATA; Schema: public; Owner: x\n--\n",
    "\n-- Name: s; Type: SEQUENCE SET; Schema: public; Owner: x\n",
    "SELECT pg_catalog.setval('public.s', 7, true);\n",
    "\n-- Data for Name: BLOBS; Type: BLOBS; Schema: -; Owner: -\nSELECT pg_catalog.lo_open('1', 131072);\n",
    "\n-- PostgreSQL database dump complete\n",
    "\n\\restrict x\n",
    "\n\\unrestrict x\n",
    "\n-- Dumped by pg_dump version 1\n",
    "$$",
    "$_$",
    "$_X$",
    "$body$",
    "$größe$",
    "'",
    '"',
    "--",
    "/*",
    "\\",
    "\\'",
    "E'\\''",
    "\n",
    "\r\n",
    "🐘",
    "x",
]


def hostile(text: str) -> Iterator[str]:
    """Statements that put a text wherever a database may hold one."""
    said, short = literal(text), literal(text[:20] or "x")
    name = '"' + (text.encode()[:50].decode(errors="ignore") or "x").replace('"', '""') + '"'
    yield "SET check_function_bodies = off"
    yield f"CREATE FUNCTION f() RETURNS text LANGUAGE plpgsql AS {said}"
    yield f"CREATE FUNCTION g(a text DEFAULT {said}) RETURNS text LANGUAGE sql RETURN a || {said}"
    yield f"CREATE VIEW v AS SELECT {said}::text AS {name}"
    yield f"CREATE TABLE {name} ({name} text DEFAULT {said} CHECK ({name} <> {said}))"
    yield f"INSERT INTO {name} VALUES ({literal(text + 'y')}), (NULL)"
    yield f"COMMENT ON TABLE {name} IS {said}"
    yield f"COMMENT ON COLUMN {name}.{name} IS {said}"
    yield f"CREATE TYPE e AS ENUM ({short}, {literal(text[:19] + 'z')})"
    yield f"CREATE INDEX i ON {name} (({name} || {said})) WHERE {name} = {said}"
    yield f"CREATE POLICY {name} ON {name} USING ({name} <> {said})"
    yield f"CREATE SEQUENCE {literal_name(text)}"
    yield f"SELECT nextval({literal(literal_name(text))}::regclass)"
    yield f"CREATE TRIGGER {name} BEFORE INSERT ON {name} FOR EACH ROW WHEN (NEW.{name} = {said})"
    yield f"SELECT lo_from_bytea(1, convert_to({said}, 'UTF8'))"
    yield f"COMMENT ON LARGE OBJECT 1 IS {said}"


def literal_name(text: str) -> str:
    return '"s ' + text.encode()[:48].decode(errors="ignore").replace('"', '""') + '"'


def make_hostile(url: str, text: str) -> None:
    trigger = "CREATE FUNCTION tr() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
    statements = [
        s + " EXECUTE FUNCTION tr()" if s.startswith("CREATE TRIGGER") else s for s in hostile(text)
    ]
    run_sql(url, trigger, *statements)


def assert_not_fooled(server: Postgres, text: str) -> None:
    url = make_database(server, "hostile")
    make_hostile(url, text)
    dump = pg_dump(server, url)
    found = content(dump)
    assert_true_to(url, found)
    there = make_database(server, "hostile_again")
    psql(server, there, dump)
    assert differences(found, content(pg_dump(server, there))) == []
    run_sql(there, f"COMMENT ON FUNCTION f() IS {literal(text + '!')}")
    assert differences(found, content(pg_dump(server, there))) == ["the schema differs"]


def test_text_that_looks_like_a_dump_fools_no_one(each_postgres: Postgres) -> None:
    assert_not_fooled(each_postgres, "x" + "".join(NASTY))


@given(parts=st.lists(st.sampled_from(NASTY), min_size=1, max_size=8))
@how(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
def test_text_of_any_nasty_parts_fools_no_one(postgres: Postgres, parts: list[str]) -> None:
    assert_not_fooled(postgres, "".join(parts))


def test_backslashes_are_read_alike_where_strings_escape_them(postgres: Postgres) -> None:
    url = make_database(postgres)
    name = parse_dsn(url)["dbname"]
    run_sql(url, f"ALTER DATABASE {name} SET standard_conforming_strings = off")
    text = r"it's \ and \' here"
    run_sql(
        url,
        "CREATE TABLE t (a text DEFAULT E'\\\\')",
        f"COMMENT ON TABLE t IS {literal(text)}",
        "INSERT INTO t VALUES (E'\\\\.'), (DEFAULT)",
    )
    assert_true_to(url, content(pg_dump(postgres, url)))


@pytest.mark.parametrize("kind", ["PREAMBLE", "BLOBS", "SEQUENCE SET", "TABLE DATA"])
def test_a_schema_named_like_a_header_does_not_choose_where_its_text_counts(
    postgres: Postgres, kind: str
) -> None:
    url = make_database(postgres)
    name = f'"x; Type: {kind}; Schema: y; Owner: z"'
    run_sql(url, f"CREATE SCHEMA {name}", f"CREATE TABLE {name}.t (id integer)", "SELECT lo_create(1)")
    before = content(pg_dump(postgres, url))
    run_sql(url, f"ALTER TABLE {name}.t ALTER id SET DEFAULT 1")
    assert differences(before, content(pg_dump(postgres, url))) == ["the schema differs"]


def test_a_database_without_an_encoding_is_read(postgres: Postgres) -> None:
    run_sql(
        postgres.url(),
        "DROP DATABASE IF EXISTS raw",
        "CREATE DATABASE raw ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0",
    )
    url = postgres.url("raw")
    psql(postgres, url, b'CREATE TABLE "t\xe4" (a) AS SELECT 1;')
    found = content(pg_dump(postgres, url)).tables
    assert {name: table.rows for name, table in found.items()} == {'public."t\\xe4"': 1}


# -- cut short


def test_a_small_dump_cut_anywhere_before_its_last_line_is_refused() -> None:
    trailer = b"-- PostgreSQL database dump complete\n"
    for end in range(SMALL.rindex(trailer) + len(trailer)):
        with pytest.raises(IntegrityError):
            content(SMALL[:end])


def test_a_real_dump_cut_at_any_line_is_refused(postgres: Postgres, victim: str) -> None:
    dump = pg_dump(postgres, victim)
    said_last = dump.rindex(b"-- PostgreSQL database dump complete\n")
    ends = [m.end() for m in re.finditer(b"\n", dump) if m.end() <= said_last]
    assert len(ends) > 100
    for end in ends:
        with pytest.raises(IntegrityError) as refused:
            content(dump[:end])
        assert "ends in the middle" in str(refused.value)


def test_an_empty_dump_is_refused() -> None:
    with pytest.raises(IntegrityError):
        Fingerprint().finish()


def test_bytes_after_the_last_line_break_are_refused() -> None:
    with pytest.raises(IntegrityError):
        content(SMALL + b"SELECT 1;")


# -- damage by name

VICTIM = """
    CREATE TABLE a (id integer PRIMARY KEY, word text DEFAULT 'x' NOT NULL, parent integer);
    CREATE TABLE b (LIKE a INCLUDING ALL);
    INSERT INTO a SELECT n, 'a' || n FROM generate_series(1, 20) AS n;
    INSERT INTO b SELECT n, 'b' || n FROM generate_series(1, 20) AS n;
    ALTER TABLE b ADD CONSTRAINT known FOREIGN KEY (parent) REFERENCES a;
    CREATE INDEX by_word ON a (word);
    CREATE SEQUENCE s;
    SELECT setval('s', 100);
    CREATE FUNCTION tr() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE TRIGGER watch BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION tr();
    GRANT SELECT ON a TO pg_monitor;
    COMMENT ON TABLE a IS 'a comment';
    CREATE VIEW v AS SELECT id FROM a;
    SELECT lo_from_bytea(11, 'eleven'), lo_from_bytea(12, 'twelve');
"""


@pytest.fixture(scope="module")
def victim(postgres: Postgres) -> str:
    url = make_database(postgres, "victim")
    run_sql(url, VICTIM)
    return url


@pytest.fixture(scope="module")
def victims_content(postgres: Postgres, victim: str) -> Content:
    return content(pg_dump(postgres, victim))


SCHEMA = ["the schema differs"]
DAMAGE = {
    "row missing": (
        "DELETE FROM a WHERE id = 7",
        ["table public.a has 19 rows where 20 were promised"],
    ),
    "row too many": (
        "INSERT INTO b VALUES (21, 'b')",
        ["table public.b has 21 rows where 20 were promised"],
    ),
    "value changed": (
        "BEGIN; DELETE FROM a WHERE id = 20; INSERT INTO a VALUES (20, 'A20'); COMMIT",
        ["table public.a has other content in the same number of rows"],
    ),
    "empty string for null": (
        "BEGIN; DELETE FROM a WHERE id = 20; INSERT INTO a VALUES (20, '', 0); COMMIT",
        ["table public.a has other content in the same number of rows"],
    ),
    "rows swapped between tables": (
        "BEGIN; ALTER TABLE a RENAME TO c; ALTER TABLE b RENAME TO a; ALTER TABLE c RENAME TO b; COMMIT",
        [
            "table public.a has other content in the same number of rows",
            "table public.b has other content in the same number of rows",
            *SCHEMA,
        ],
    ),
    "table missing": ("DROP TABLE b", ["table public.b is missing", *SCHEMA]),
    "table added": ("CREATE TABLE z ()", ["table public.z was not promised", *SCHEMA]),
    "sequence behind": ("SELECT setval('s', 99)", ["sequence public.s stands elsewhere"]),
    "sequence not called": ("SELECT setval('s', 100, false)", ["sequence public.s stands elsewhere"]),
    "sequence missing": ("DROP SEQUENCE s", ["sequence public.s stands elsewhere", *SCHEMA]),
    "large object's byte": ("SELECT lo_put(12, 5, 'F')", ["the large objects differ"]),
    "large object missing": ("SELECT lo_unlink(12)", ["the large objects differ"]),
    "index missing": ("DROP INDEX by_word", SCHEMA),
    "constraint missing": ("ALTER TABLE b DROP CONSTRAINT known", SCHEMA),
    "not null missing": ("ALTER TABLE a ALTER word DROP NOT NULL", SCHEMA),
    "trigger missing": ("DROP TRIGGER watch ON a", SCHEMA),
    "trigger disabled": ("ALTER TABLE a DISABLE TRIGGER watch", SCHEMA),
    "grant missing": ("REVOKE SELECT ON a FROM pg_monitor", SCHEMA),
    "default changed": ("ALTER TABLE a ALTER word SET DEFAULT 'y'", SCHEMA),
    "comment missing": ("COMMENT ON TABLE a IS NULL", SCHEMA),
    "view changed": ("CREATE OR REPLACE VIEW v AS SELECT id FROM b", SCHEMA),
    "function changed": (
        "CREATE OR REPLACE FUNCTION tr() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
        SCHEMA,
    ),
    "sequence's step changed": ("ALTER SEQUENCE s INCREMENT 2", SCHEMA),
    "owner changed": ("ALTER TABLE a OWNER TO pg_database_owner", SCHEMA),
}
METADATA_TOO = {"large object missing"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_kind_of_damage_is_named(
    postgres: Postgres, victim: str, victims_content: Content, damage: str
) -> None:
    statement, said = DAMAGE[damage]
    run_sql(
        postgres.url(),
        "DROP DATABASE IF EXISTS damaged WITH (FORCE)",
        "CREATE DATABASE damaged TEMPLATE victim STRATEGY file_copy",
    )
    damaged = postgres.url("damaged")
    assert differences(victims_content, content(pg_dump(postgres, damaged))) == []
    run_sql(damaged, statement)
    found = content(pg_dump(postgres, damaged))
    assert differences(victims_content, found) == [*said, *(SCHEMA if damage in METADATA_TOO else [])]
    assert found.sha256 != victims_content.sha256


def test_equal_fingerprints_have_no_differences() -> None:
    assert differences(content(SMALL), content(SMALL)) == []


def test_a_total_that_does_not_follow_from_its_parts_is_named() -> None:
    true = content(SMALL)
    forged = true.model_copy(update={"sha256": "0" * 64})
    assert differences(forged, true) == [
        "the manifest's digest of all content does not follow from its parts"
    ]


def test_a_name_that_pg_dump_would_have_quoted_is_refused() -> None:
    header = b"-- Name: s; Type: SEQUENCE SET; Schema: public; Owner: o\n"
    fingerprint = Fingerprint()
    fingerprint.write(header + b"SELECT pg_catalog.setval('pub\xfflic.s', 1, true);\n")
    fingerprint.write(b"--\n-- PostgreSQL database dump complete\n")
    with pytest.raises(IntegrityError, match="never does"):
        fingerprint.finish()
