"""A database to measure on: narrow rows, wide text and jsonb, about a third of the dump each."""

from __future__ import annotations

from contextlib import closing

import psycopg2

_NARROW = """
CREATE TABLE orders AS
SELECT g AS id, (g * 7919) % 1000003 AS customer,
       (ARRAY['new', 'paid', 'sent', 'returned'])[g % 4 + 1] AS status,
       ((g * 31) % 100000 / 100.0)::numeric(12, 2) AS total, g % 7 AS items,
       timestamptz '2024-01-01' + g * interval '7 seconds' AS placed
FROM generate_series(1, {narrow}::bigint) g
"""
_WORDS = """
CREATE TEMP TABLE words AS
SELECT g / 300 AS page, string_agg(substr(md5(g::text), 1, 2 + g % 8), ' ') AS text
FROM generate_series(0, 64 * 300 - 1) g GROUP BY 1
"""
_WIDE = """
CREATE TABLE articles AS
SELECT g AS id, 'Article ' || g AS title,
       substr(a.text, (1 + g * 97 % 1200)::int, 400)
       || substr(b.text, (1 + g * 8191 % 1200)::int, 350) AS body
FROM generate_series(1, {wide}::bigint) g
JOIN words a ON a.page = g % 64 JOIN words b ON b.page = g * 7 % 64
"""
_DOCUMENTS = """
CREATE TABLE events AS
SELECT g AS id, jsonb_build_object(
    'session', md5((g / 20)::text), 'kind', (ARRAY['view', 'click', 'buy'])[g % 3 + 1], 'at', 1700000000 + g,
    'page', jsonb_build_object('path', '/item/' || g % 5000, 'referrer', 'https://example.org/' || g % 97),
    'tags', jsonb_build_array(g % 7, 'campaign-' || g % 13), 'price', (g * 13) % 10000 / 100.0) AS payload
FROM generate_series(1, {documents}::bigint) g
"""


def build(url: str, scale: float) -> None:
    """Fills an empty database; scale 1 gives about 2 GB of dump."""
    rows = {
        "narrow": int(11_000_000 * scale),
        "wide": int(900_000 * scale),
        "documents": int(3_200_000 * scale),
    }
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in (_NARROW, _WORDS, _WIDE, _DOCUMENTS):
                cursor.execute(statement.format(**rows))
            for table in ("orders", "articles", "events"):
                cursor.execute(f"ALTER TABLE {table} ADD PRIMARY KEY (id)")
            cursor.execute("VACUUM ANALYZE")
            cursor.execute("CHECKPOINT")
