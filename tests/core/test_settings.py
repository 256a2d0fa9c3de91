"""Settings: the names users know, faults named without their values, and no secret ever shown."""

import os
from pathlib import Path

import pytest

from backup_dag.core import settings as module
from backup_dag.core.errors import ConfigurationError
from backup_dag.core.settings import Settings, environment_value, load

SECRET = "hunter2-very-secret"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's environment, and none that `load` sets stays behind."""
    for name in [n for n in os.environ if n.startswith(("AWS_", "BACKUP_", "DATABASE_", "PG_"))]:
        monkeypatch.delenv(name)
    for name in ("AWS_PROFILE", "AWS_SECRET_ACCESS_KEY", "AWS_S3_BUCKET"):
        monkeypatch.setenv(name, "")  # so that monkeypatch puts them back
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def env_file(text: str) -> Path:
    path = Path(".env")
    path.write_text(text, encoding="utf-8")
    return path


def fault(**environment: str) -> str:
    """What `load` says of it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(ConfigurationError) as raised:
            load(None)
    assert raised.value.exit_code == 3
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__
    return str(raised.value)


def test_every_setting_has_its_name_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "DATABASE_URL": "postgresql://u@h/d",
        "BACKUP_DIR": "/somewhere",
        "BACKUP_ENCRYPTION_KEY": SECRET,
        "BACKUP_COMPRESSION_LEVEL": "9",
        "BACKUP_FORMAT": "custom",
        "BACKUP_TIMEZONE": "Europe/Berlin",
        "BACKUP_GPG_RECIPIENTS": "a@example.org, b@example.org,",
        "PG_BIN_DIR": f"/one{os.pathsep}/two",
        "AWS_S3_BUCKET": "bucket",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL_S3": "http://localhost:1",
        "BACKUP_S3_PREFIX": "/a/b/",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = load(None)
    assert found.database_url is not None
    assert found.database_url.get_secret_value() == "postgresql://u@h/d"
    assert found.backup_dir == Path("/somewhere")
    assert found.passphrase() == SECRET
    assert (found.backup_compression_level, found.backup_format) == (9, "custom")
    assert found.zone.key == "Europe/Berlin"
    assert found.backup_gpg_recipients == ("a@example.org", "b@example.org")
    assert found.pg_bin_dir == (Path("/one"), Path("/two"))
    assert (found.aws_s3_bucket, found.aws_default_region) == ("bucket", "eu-central-1")
    assert found.aws_endpoint_url_s3 == "http://localhost:1"
    assert found.backup_s3_prefix == "a/b/"


def test_without_anything_set_the_defaults_hold() -> None:
    found = load(None)
    assert (found.backup_dir, found.backup_format, found.backup_encryption) == (Path("backups"), "sql", "on")
    assert found.passphrase() is None
    assert found.aws_s3_bucket is None
    assert found.backup_s3_prefix == ""


def test_the_file_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    path = env_file("BACKUP_DIR=/from/file\nBACKUP_FORMAT='custom'\nexport BACKUP_S3_PREFIX=p # why\n")
    monkeypatch.setenv("BACKUP_DIR", "/from/environment")
    found = load(path)
    assert found.backup_dir == Path("/from/environment")
    assert (found.backup_format, found.backup_s3_prefix) == ("custom", "p/")


def test_empty_values_are_as_if_they_were_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    path = env_file("BACKUP_COMPRESSION_LEVEL=\nBACKUP_ENCRYPTION_KEY=\nAWS_S3_BUCKET=\nBACKUP_DIR=\n")
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("BACKUP_ENCRYPTION_KEY_FILE", "")
    found = load(path)
    assert found.database_url is None
    assert found.passphrase() is None
    assert found.aws_s3_bucket is None
    assert (found.backup_compression_level, found.backup_dir) == (2, Path("backups"))


def test_an_empty_variable_does_not_hide_the_files_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUP_FORMAT", "")
    monkeypatch.setenv("ORDERS_URL", "")
    path = env_file("BACKUP_FORMAT=custom\nORDERS_URL=x\n")
    assert load(path).backup_format == "custom"
    assert environment_value("ORDERS_URL", path) == "x"


def test_what_boto3_reads_itself_is_passed_on_from_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "mine")
    load(env_file(f"AWS_SECRET_ACCESS_KEY={SECRET}\nAWS_PROFILE=theirs\n"))
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert os.environ["AWS_PROFILE"] == "mine"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BACKUP_COMPRESSION_LEVEL", f"{SECRET}"),
        ("BACKUP_COMPRESSION_LEVEL", "10"),
        ("BACKUP_COMPRESSION_LEVEL", "-1"),
        ("BACKUP_FORMAT", SECRET),
        ("BACKUP_ENCRYPTION", SECRET),
        ("BACKUP_TIMEZONE", SECRET),
        ("BACKUP_TIMEZONE", "../../etc/passwd"),
        ("BACKUP_START_DATE", SECRET),
        ("BACKUP_S3_SSE", SECRET),
        ("BACKUP_S3_OBJECT_LOCK_MODE", SECRET),
        ("BACKUP_S3_OBJECT_LOCK_DAYS", "0"),
        ("BACKUP_S3_RETRIES", "21"),
    ],
)
def test_a_bad_value_is_named_and_not_shown(name: str, value: str) -> None:
    said = fault(**{name: value})
    assert name in said
    assert SECRET not in said
    assert "passwd" not in said


def test_every_bad_value_is_named_at_once() -> None:
    said = fault(BACKUP_FORMAT="x", BACKUP_TIMEZONE="y")
    assert "BACKUP_FORMAT" in said
    assert "BACKUP_TIMEZONE" in said


def test_a_file_that_is_not_text_is_a_matter_of_configuration() -> None:
    Path(".env").write_bytes(b"BACKUP_DIR=/caf\xe9\n")
    with pytest.raises(ConfigurationError, match=r"\.env"):
        load(Path(".env"))


def test_secrets_are_never_shown() -> None:
    found = load(env_file(f"BACKUP_ENCRYPTION_KEY={SECRET}\nDATABASE_URL=postgresql://u:{SECRET}@h/d\n"))
    for text in (repr(found), str(found), f"{found}", str(found.model_dump()), found.model_dump_json()):
        assert SECRET not in text
    assert found.passphrase() == SECRET


def test_settings_cannot_be_changed() -> None:
    found = load(None)
    with pytest.raises(ValueError, match="frozen"):
        found.backup_dir = Path("/elsewhere")


# -- the passphrase's file


def with_key_file(content: bytes, **more: str) -> Settings:
    Path("key").write_bytes(content)
    text = "".join(f"{name}={value}\n" for name, value in more.items())
    return load(env_file(f"BACKUP_ENCRYPTION_KEY_FILE=key\n{text}"))


@pytest.mark.parametrize(
    "content",
    [b"pass phrase", b"pass phrase\n", b"pass phrase\nsecond line\n"],
)
def test_the_passphrase_is_the_first_line_of_its_file(content: bytes) -> None:
    assert with_key_file(content).passphrase() == "pass phrase"


def test_spaces_belong_to_the_passphrase() -> None:
    assert with_key_file("  größe  \n".encode()).passphrase() == "  größe  "


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\r\n", b"pass phrase\r\n", b"\nsecond line\n", b"\xff\xfe" + SECRET.encode()]
)
def test_a_file_without_a_passphrase_is_refused(content: bytes) -> None:
    with pytest.raises(ConfigurationError) as raised:
        with_key_file(content).passphrase()
    assert "BACKUP_ENCRYPTION_KEY_FILE (key)" in raised.value.message
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("path", ["missing", "."])
def test_a_key_file_that_cannot_be_read_is_named(path: str) -> None:
    with pytest.raises(ConfigurationError, match=r"BACKUP_ENCRYPTION_KEY_FILE \(") as raised:
        load(env_file(f"BACKUP_ENCRYPTION_KEY_FILE={path}\n")).passphrase()
    assert path in raised.value.message


def test_a_key_and_a_key_file_are_one_too_many() -> None:
    with pytest.raises(ConfigurationError, match="both set") as raised:
        with_key_file(b"one", BACKUP_ENCRYPTION_KEY=SECRET).passphrase()
    assert SECRET not in str(raised.value)


def test_the_module_names_every_setting_in_the_environments_words() -> None:
    assert all(
        name.startswith(("backup_", "aws_", "database_", "pg_")) for name in module.Settings.model_fields
    )


@pytest.mark.parametrize("name", ["BACKUP_RPO", "BACKUP_LATE_GRACE"])
@pytest.mark.parametrize("value", ["0h", "0min", "3651d", "99999999999999999999d"])
def test_a_length_of_time_that_means_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"{name}: .*(at most 3650d|far too long)"):
        load(None)
    monkeypatch.setenv(name, "3650d")
    load(None)


@pytest.mark.parametrize("kind", ["a pipe", "without an end", "large"])
def test_a_file_of_settings_is_neither_waited_for_nor_read_for_ever(kind: str) -> None:
    for path in (Path("key"), Path("other.env")):
        if kind == "a pipe":
            os.mkfifo(path)
        elif kind == "large":
            path.write_bytes(b"a" * 300_000)
        else:
            path.symlink_to("/dev/zero")
    said = "more than" if kind == "large" else "no regular file"
    with pytest.raises(ConfigurationError, match=said):
        load(env_file("BACKUP_ENCRYPTION_KEY_FILE=key\n")).passphrase()
    with pytest.raises(ConfigurationError, match=said):
        load(env_file("BACKUP_ENCRYPTION_OLD_KEYS_FILE=key\n")).old_passphrases()
    with pytest.raises(ConfigurationError, match=said):
        load(Path("other.env"))


# -- old passphrases


def test_old_passphrases_are_the_one_and_the_files_lines_each_once() -> None:
    Path("old").write_text("second one\n\n third, with a space before it\nfirst one\nsecond one\n")
    text = "BACKUP_ENCRYPTION_OLD_KEY='first one'\nBACKUP_ENCRYPTION_OLD_KEYS_FILE=old\n"
    found = load(env_file(text))
    assert found.old_passphrases() == ("first one", "second one", " third, with a space before it")
    assert "first one" not in repr(found)
    assert load(env_file("")).old_passphrases() == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"{SECRET}\r\nsecond\n".encode(), "carriage return"),
        (b"caf\xe9\n", "reading the old passphrases"),
        (b"PUT-THE-PASSPHRASE-HERE\n", "everyone knows"),
        (f"{SECRET}\0\n".encode(), "NUL"),
        (None, "reading the old passphrases"),
    ],
)
def test_a_file_of_old_passphrases_that_cannot_be_used_is_named(content: bytes | None, said: str) -> None:
    if content is not None:
        Path("old").write_bytes(content)
    found = load(env_file("BACKUP_ENCRYPTION_OLD_KEYS_FILE=old\n"))
    with pytest.raises(ConfigurationError, match=said) as raised:
        found.old_passphrases()
    assert SECRET not in str(raised.value)
    assert raised.value.hint


def test_an_old_passphrase_that_the_file_would_change_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="BACKUP_ENCRYPTION_OLD_KEY in"):
        load(env_file("OTHER=x\nBACKUP_ENCRYPTION_OLD_KEY=a${OTHER}b\n"))


def test_a_file_from_windows_is_read_from_its_first_line() -> None:
    Path(".env").write_bytes(b"\xef\xbb\xbfBACKUP_RPO=36h\r\nBACKUP_OWNER=team:us\r\n")
    found = load()
    assert (found.backup_rpo.total_seconds(), found.backup_owner) == (36 * 3600, "team:us")
    assert environment_value("BACKUP_RPO") == "36h"


@pytest.mark.parametrize("line", ["AWS_PROFILE='a\0b'", "BACKUP_DIR='a\0b'", "A\0B=c"])
def test_a_file_with_a_nul_is_refused(line: str) -> None:
    env_file(f"{line}\n")
    with pytest.raises(ConfigurationError, match="holds a NUL"):
        load()


def test_a_passphrase_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUP_ENCRYPTION_KEY", os.fsdecode(b"caf\xe9 and some more"))
    with pytest.raises(ConfigurationError, match="not UTF-8") as raised:
        load(None).passphrase()
    assert "caf" not in str(raised.value)
