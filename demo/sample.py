"""A sample database that holds one of everything a backup may lose."""

from __future__ import annotations

from pathlib import Path

import psycopg2

SQL = Path(__file__).with_name("sample.sql")


def load(url: str, rows: int = 300_000) -> None:
    """Fill the EMPTY database at `url` with about `rows` rows, the same ones every time.

    Creates the role `shop_reader` in the cluster unless it is there.
    """
    connection = psycopg2.connect(url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("select set_config('demo.rows', %s, false)", [str(rows)])
            cursor.execute(SQL.read_text(encoding="utf-8"))
    finally:
        connection.close()
