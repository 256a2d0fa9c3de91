"""Which databases are configured: DATABASE_URL and backup.toml, each fault with its place."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from backup_dag.core.databases import Database, Plan, choose, configured
from backup_dag.core.errors import ConfigurationError
from backup_dag.core.manifest import BackupId
from backup_dag.core.settings import Settings

PASSWORD = "hunter2-very-secret"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORDERS_URL", f"postgresql://u:{PASSWORD}@h:5433/orders")


def read(settings: Settings, text: str | None = None, **changed: Any) -> tuple[Database, ...]:
    if text is not None:
        Path("backup.toml").write_text(text, encoding="utf-8")
    return configured(settings.model_copy(update=changed), None)


def fault(settings: Settings, text: str | None = None, **changed: Any) -> str:
    with pytest.raises(ConfigurationError) as raised:
        read(settings, text, **changed)
    assert raised.value.exit_code == 3
    assert raised.value.hint
    assert PASSWORD not in str(raised.value)
    return raised.value.message


# -- DATABASE_URL


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://u:p@h/orders", "orders"),
        ("postgres://h/Orders_1", "Orders_1"),
        ("host=h dbname=orders", "orders"),
        ("postgresql://h/my-shop%20x", "my_shop_x"),
        ("postgresql://h/_private", "db_private"),
        ("postgresql://h/%C3%BCber", "db_ber"),
        ("postgresql://h/" + "x" * 63, "x" * 63),
        ("postgresql://h/_" + "x" * 62, "db_" + "x" * 60),
    ],
)
def test_a_url_alone_is_one_database(settings: Settings, url: str, name: str) -> None:
    (found,) = read(settings, database_url=SecretStr(url))
    assert found.name == name
    assert BackupId.parse(f"backup_{name}_20260101_000000") is not None
    assert found.url.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "postgresql://h",
        "postgresql://u:hunter2-very-secret@h/",
        "mysql://h/d",
        "postgresql://u:hunter2-very-secret@[h/d",
        "dbname=d password='hunter2-very-secret",
    ],
)
def test_a_malformed_url_is_refused_and_not_shown(settings: Settings, url: str) -> None:
    assert "DATABASE_URL is not a PostgreSQL address" in fault(settings, database_url=SecretStr(url))


def test_a_url_that_would_put_a_secret_on_a_command_line_is_refused(settings: Settings) -> None:
    url = f"postgresql://h/d?sslpassword={PASSWORD}"
    assert "sslpassword" in fault(settings, database_url=SecretStr(url))


def test_no_database_at_all_says_what_to_set(settings: Settings) -> None:
    assert "DATABASE_URL is not set" in fault(settings)


def test_a_password_is_never_shown(settings: Settings) -> None:
    (found,) = read(settings, '[databases.orders]\nurl_env = "ORDERS_URL"\n')
    for text in (repr(found), str(found), repr(found.address), str(found.address), found.address.for_argv()):
        assert PASSWORD not in text
    assert str(found.address) == "orders on h:5433"
    assert found.address.environment()["PGPASSWORD"] == PASSWORD


# -- backup.toml


def test_the_file_adds_databases_with_plans_of_their_own(settings: Settings) -> None:
    found = read(
        settings,
        """
        [databases.orders]
        url_env = "ORDERS_URL"
        format = "custom"
        exclude_table_data = ["public.sessions"]
        pg_dump_options = ["--no-comments", "--lock-wait-timeout=10s"]

        [databases.again]
        url_env = "ORDERS_URL"
        """,
        database_url=SecretStr("postgresql://h/first"),
        backup_compression_level=7,
    )
    assert [database.name for database in found] == ["first", "orders", "again"]
    assert [database.plan.format for database in found] == ["sql", "custom", "sql"]
    assert [database.plan.compression_level for database in found] == [7, 7, 7]
    assert found[1].plan.options() == [
        "--exclude-table-data=public.sessions",
        "--no-comments",
        "--lock-wait-timeout=10s",
    ]


def test_a_url_may_stand_in_the_env_file(settings: Settings) -> None:
    Path("backup.toml").write_text('[databases.a]\nurl_env = "ONLY_IN_FILE"\n')
    Path(".env").write_text("ONLY_IN_FILE=postgresql://h/a\n")
    assert configured(settings, Path(".env"))[0].address.dbname == "a"


HEAD = '# a comment\n\n[databases.orders]\nurl_env = "ORDERS_URL"\n'


@pytest.mark.parametrize(
    ("text", "line", "place", "why"),
    [
        (f"{HEAD}exclude_tables = 'x'\n", 5, "databases.orders.exclude_tables", "tuple|list"),
        (f"{HEAD}\nformat = 'tar'\n", 6, "databases.orders.format", "'sql' or 'custom'"),
        (f"{HEAD}compression_level = 10\n", 5, "databases.orders.compression_level", "9"),
        (f"{HEAD}compression_level = 'high'\n", 5, "databases.orders.compression_level", "integer"),
        (f"{HEAD}include_tables = ['a', 1]\n", 5, "databases.orders.include_tables", "string"),
        (f"{HEAD}exclude_table = ['a']\n", 5, "databases.orders.exclude_table:", "unknown"),
        (f"{HEAD}url = 'postgresql://u:{PASSWORD}@h/d'\n", 5, "databases.orders.url:", "unknown"),
        (f"{HEAD}[databases.orders.more]\n", 3, "databases.orders.more", "unknown"),
        (f"{HEAD}pg_dump_options = ['--file=x']\n", 5, "databases.orders.pg_dump_options", "--file"),
        ("\n[databases.orders]\nformat = 'sql'\n", 2, "databases.orders.url_env", "missing"),
        ("[databases.orders]\nurl_env = 5\n", 2, "databases.orders.url_env", "string"),
        ("[databases.orders]\nurl_env = 'NOT_SET'\n", 2, "databases.orders.url_env", "NOT_SET is not set"),
        ("[databases]\n\n[databases.a-b]\nurl_env = 'X'\n", 3, "databases.a-b", "letters, digits and _"),
        ("[databases.'_a']\nurl_env = 'X'\n", 1, "databases._a", "letters, digits and _"),
        ("[databases.'ä']\nurl_env = 'X'\n", 1, "databases.ä", "letters, digits and _"),
        ("[databases.'../x']\nurl_env = 'X'\n", 1, "databases.../x", "letters, digits and _"),
        (f"[databases.{'x' * 64}]\nurl_env = 'X'\n", 1, "databases.xxx", "at most 63"),
        (f"{HEAD}\n[databases.b]\nurl_env = 'ORDERS_URL'\nfoo = 1\n", 8, "databases.b.foo", "unknown"),
    ],
)
def test_a_fault_is_named_by_file_line_and_key(
    settings: Settings, text: str, line: int, place: str, why: str
) -> None:
    said = fault(settings, text)
    assert said.startswith(f"backup.toml, line {line}, {place}"), said
    assert any(word in said for word in why.split("|"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{HEAD}format = \n", 5),
        (f"{HEAD}format 'sql'\n", 5),
        ("[databases.orders\n", 1),
        (f"{HEAD}url_env = 'again'\n", 5),
        (f"{HEAD}{HEAD}", 7),
    ],
)
def test_what_is_not_toml_is_named_by_its_line(settings: Settings, text: str, line: int) -> None:
    assert f"line {line}" in fault(settings, text)
    assert "backup.toml" in fault(settings, text)


@pytest.mark.parametrize("text", ["", "databases = 3\n"])
def test_a_file_without_databases_says_what_to_add(settings: Settings, text: str) -> None:
    assert "backup.toml has no [databases.NAME] table" in fault(settings, text)


@pytest.mark.parametrize(
    "more", ["[database.b]\nurl_env = 'ORDERS_URL'\n", "[defaults]\nformat = 'custom'\n"]
)
def test_a_table_that_means_nothing_is_not_passed_over(settings: Settings, more: str) -> None:
    assert "backup.toml" in fault(settings, HEAD + more)


def test_a_table_that_is_none_is_refused(settings: Settings) -> None:
    assert "databases.orders" in fault(settings, "[databases]\norders = 'postgresql://h/d'\n")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[databases.a]\n# caf\xe9\n"])
def test_a_file_that_is_not_utf_8_is_named(settings: Settings, content: bytes) -> None:
    Path("backup.toml").write_bytes(content)
    assert "reading backup.toml failed" in fault(settings)


def test_a_folder_in_its_place_is_named(settings: Settings) -> None:
    Path("backup.toml").mkdir()
    assert "reading backup.toml failed" in fault(settings)


def test_a_bad_url_is_named_by_its_variable(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERS_URL", f"nonsense {PASSWORD}")
    assert "ORDERS_URL is not a PostgreSQL address" in fault(settings, HEAD)


def test_two_of_one_name_are_refused(settings: Settings) -> None:
    said = fault(settings, HEAD, database_url=SecretStr("postgresql://h/orders"))
    assert "two databases are called 'orders'" in said


# -- pg_dump's options


@pytest.mark.parametrize(
    "option",
    [
        "--no-comments",
        "--no-owner",
        "--role=reader",
        "--lock-wait-timeout=10s",
        "--load-via-partition-root",
        "--extra-float-digits=3",
    ],
)
def test_options_that_leave_the_stream_readable_are_passed_on(option: str) -> None:
    assert Plan(pg_dump_options=(option,)).options() == [option]


@pytest.mark.parametrize(
    "option",
    [
        "--file=/etc/passwd",
        "--fil=/etc/passwd",
        "-f/etc/passwd",
        "-f",
        "--format=tar",
        "--form=tar",
        "-Ft",
        "-Fc",
        "--compress=9",
        "--comp=9",
        "-Z9",
        "--dbname=other",
        "--db=other",
        "-dother",
        "--host=other",
        "--ho=other",
        "-hother",
        "--snapshot=x",
        "--snap=x",
        "--schema-only",
        "--schema-o",
        "-s",
        "--data-only",
        "-a",
        "--inserts",
        "--ins",
        "--column-inserts",
        "--rows-per-insert=5",
        "--on-conflict-do-nothing",
        "--create",
        "-C",
        "--clean",
        "-c",
        "--if-exists",
        "--jobs=4",
        "-j4",
        "--encoding=LATIN1",
        "--enc=LATIN1",
        "--section=data",
        "--enable-row-security",
        "--enable-row",
        "--filter=x",
        "--no-sync",
        "--restrict-key=x",
        "--help",
        "--version",
        "--no-own",
        "--no-comment",
        "-O",
        "-x",
        "",
        "--",
        "orders",
        " --no-owner",
        "--no-owner --file=x",
        "--NO-OWNER",
    ],
)
def test_any_other_option_is_refused_abbreviations_too(option: str) -> None:
    with pytest.raises(ValueError, match="cannot be passed on"):
        Plan(pg_dump_options=(option,))
    with pytest.raises(ValueError, match="cannot be passed on"):
        Plan(pg_dump_options=("--no-comments", option))


def test_a_pattern_that_looks_like_an_option_stays_a_pattern() -> None:
    assert Plan(include_tables=("--file=x",)).options() == ["--table=--file=x"]


# -- choosing


def test_one_is_chosen_by_name_or_because_there_is_no_other(settings: Settings) -> None:
    one = read(settings, HEAD)
    assert choose(one, None) is one[0]
    two = read(settings, HEAD, database_url=SecretStr("postgresql://h/first"))
    assert choose(two, "orders") is two[1]


def test_a_wrong_choice_names_those_there_are(settings: Settings) -> None:
    two = read(settings, HEAD, database_url=SecretStr("postgresql://h/first"))
    for name in (None, "missing", ""):
        with pytest.raises(ConfigurationError) as raised:
            choose(two, name)
        assert raised.value.hint == "choose one with --database: first, orders"


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "9" * 5000, "a = 2026-13-45", "\0"])
def test_what_no_reader_can_take_is_no_toml(settings: Settings, text: str) -> None:
    assert "is not TOML" in fault(settings, text)


def test_a_file_from_windows_is_read_from_its_first_line(settings: Settings) -> None:
    Path("backup.toml").write_bytes(b'\xef\xbb\xbf[databases.orders]\r\nurl_env = "ORDERS_URL"\r\n')
    assert [each.name for each in configured(settings, None)] == ["orders"]


@pytest.mark.parametrize("url", [os.fsdecode(b"postgresql://u@h/\xff"), "postgresql://u@h/a\0b"])
def test_a_url_that_is_no_text_is_refused(settings: Settings, url: str) -> None:
    assert "is not a PostgreSQL address" in fault(settings, database_url=SecretStr(url))
