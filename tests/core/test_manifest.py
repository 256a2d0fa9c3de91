"""Names and manifests: what we wrote is read back, and whatever else is found never surprises."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from pathlib import PurePosixPath
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from backup_dag.core.errors import ConfigurationError, IntegrityError
from backup_dag.core.manifest import (
    SCHEMA_VERSION,
    BackupId,
    Check,
    Manifest,
    Setting,
    Verification,
    read_manifest,
)
from tests.core.made import NOON, manifest

GOOD = manifest()
NAME = f"{GOOD.id}.json"

# -- ids

database_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_]{0,62}", fullmatch=True)
times = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))


@given(name=database_names, time=times)
@how(deadline=None)
def test_an_id_is_read_back_as_it_was_written(name: str, time: datetime) -> None:
    made = BackupId.of(name, time)
    assert BackupId.parse(str(made)) == made
    assert made.time == time.replace(microsecond=0)
    assert made.database == name


def test_an_id_counts_in_utc() -> None:
    there = datetime(2026, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=2)))
    assert str(BackupId.of("orders", there)) == "backup_orders_20251231_223000"


@pytest.mark.parametrize("name", ["a_20260101_000000", "20260101", "0_20260101_000000_x", "backup_a"])
def test_a_database_whose_name_looks_like_an_id_is_told_apart(name: str) -> None:
    made = BackupId.of(name, NOON)
    assert BackupId.parse(str(made)) == made


def test_ids_sort_by_database_and_then_by_time() -> None:
    ids = [
        BackupId("b", "20250101_000000"),
        BackupId("a", "20260101_000000"),
        BackupId("a", "20250101_000000"),
    ]
    assert sorted(ids) == [ids[2], ids[1], ids[0]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "latest",
        "backup_orders",
        "backup__20260101_000000",
        "backup__orders_20260101_000000",
        "backup_orders_20260230_000000",
        "backup_orders_20260101_240000",
        "backup_orders_20260101_006000",
        "backup_orders_20261301_000000",
        "backup_orders_00000101_000000",
        "backup_orders_20260101_000000 ",
        "backup_orders_20260101_000000\n",
        "backup_orders_20260101_000000.json",
        "\nbackup_orders_20260101_000000",
        "backup_orders\0_20260101_000000",
        "backup_or\x1bders_20260101_000000",
        "backup_../../etc_20260101_000000",
        "../backup_orders_20260101_000000",
        "backup_or/ders_20260101_000000",
        "backup_or-ders_20260101_000000",
        "backup_größe_20260101_000000",
        "backup_orders_２０２６0101_000000",
        "backup_orders_20260101_00000０",
        "BACKUP_orders_20260101_000000",
        f"backup_{'x' * 64}_20260101_000000",
    ],
)
def test_what_is_not_an_id_is_none(text: str) -> None:
    assert BackupId.parse(text) is None


@given(text=st.text(max_size=40) | st.from_regex(r"backup_[^\n]{0,20}_\d{8}_\d{6}.?"))
@how(deadline=None, max_examples=300)
def test_whatever_parses_is_a_plain_name(text: str) -> None:
    found = BackupId.parse(text)
    if found is not None:
        assert str(found) == text
        assert text.isascii()
        assert text.isprintable()
        assert PurePosixPath(text).name == text
        assert found.time.tzinfo is UTC


# -- manifests


def test_a_manifest_is_read_back_as_it_was_written() -> None:
    assert read_manifest(GOOD.to_json().encode(), NAME) == GOOD


def test_a_manifest_is_readable_text_that_ends_in_a_line_break() -> None:
    text = GOOD.to_json()
    assert text.endswith("}\n")
    assert "größe" in text
    assert json.loads(text)["backup"] == str(GOOD.id)


def test_a_manifest_names_its_files_in_the_order_of_writing() -> None:
    assert GOOD.names == [
        f"{GOOD.id}.sql.gz.gpg",
        f"{GOOD.id}.globals.sql.gz.gpg",
        f"{GOOD.id}.sha256",
        f"{GOOD.id}.json",
    ]


def document(**changed: Any) -> bytes:
    return json.dumps({**json.loads(GOOD.to_json()), **changed}).encode()


def test_a_newer_version_is_a_matter_of_the_program() -> None:
    with pytest.raises(ConfigurationError, match=f"schema version {SCHEMA_VERSION + 1}"):
        read_manifest(document(schema_version=SCHEMA_VERSION + 1), NAME)
    with pytest.raises(ConfigurationError):
        read_manifest(b'{"schema_version": 99, "shape": "unknown"}', NAME)


def test_fields_that_a_later_minor_change_adds_do_no_harm() -> None:
    assert read_manifest(document(added_later={"x": [1]}), NAME) == GOOD


@pytest.mark.parametrize("version", ["1x", None, 1.5, [], {}])
def test_a_version_that_never_was_is_refused(version: Any) -> None:
    with pytest.raises(IntegrityError):
        read_manifest(document(schema_version=version), NAME)


@pytest.mark.parametrize("end", [0, 1, 10, 100, 500, 1000, -2, -3])
def test_a_manifest_that_is_cut_short_is_refused(end: int) -> None:
    with pytest.raises(IntegrityError, match="is not a manifest"):
        read_manifest(GOOD.to_json().encode()[:end], NAME)


HOSTILE = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "a string": b'"backup"',
    "a number": b"1",
    "deep lists": b"[" * 200_000,
    "deep and closed": b"[" * 200_000 + b"]" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "deep in a field": b'{"schema_version": 1, "content": ' + b"[" * 100_000,
    "a huge number": b'{"schema_version": ' + b"9" * 100_000 + b"}",
    "a huge float": b'{"schema_version": 1e999}',
    "not a number": b'{"schema_version": NaN}',
    "not UTF-8": b"\xff\xfe\x00",
    "UTF-16": GOOD.to_json().encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + GOOD.to_json().encode(),
    "trailing text": GOOD.to_json().encode() + b"x",
    "zeros": bytes(5000),
    "a lone surrogate": document(made_by="\ud800"),
    "a lone surrogate in its name": document(backup="\ud800"),
    "far too large a size": document().replace(b'"bytes": 17', b'"bytes": ' + b"1" * 5000),
    "an impossible time": document(snapshot_time="2026-02-30T00:00:00Z"),
    "a time far away": document(snapshot_time="99999-01-01T00:00:00Z"),
    "a time as a huge number": document(snapshot_time=1e300),
    "no content": document(content=None),
    "tables as a list": document(content={"tables": []}),
    "files as a string": document(artifact="x"),
    "wrong reason": document(reason="because"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_whatever_is_not_a_manifest_is_refused_in_our_words(kind: str) -> None:
    with pytest.raises((IntegrityError, ConfigurationError)) as refused:
        read_manifest(HOSTILE[kind], NAME)
    assert NAME in refused.value.message
    assert len(str(refused.value)) < 2000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(field=st.sampled_from(sorted(Manifest.model_fields)), value=json_values)
@how(deadline=None, max_examples=300)
def test_any_value_in_any_field_is_read_or_refused_in_our_words(field: str, value: Any) -> None:
    try:
        found = read_manifest(document(**{field: value}), NAME)
    except (IntegrityError, ConfigurationError):
        return
    assert found.id == GOOD.id
    assert found.backup == GOOD.backup


@given(data=st.binary(max_size=200))
@how(deadline=None, max_examples=100)
def test_any_bytes_are_refused_in_our_words(data: bytes) -> None:
    with pytest.raises((IntegrityError, ConfigurationError)):
        read_manifest(data, NAME)


@pytest.mark.parametrize(
    "name", ["backup_orders_20260314_120001.json", "backup_other_20260314_120000.json", "x.json", ""]
)
def test_a_manifest_under_another_name_is_refused(name: str) -> None:
    with pytest.raises(IntegrityError, match="describes another backup"):
        read_manifest(GOOD.to_json().encode(), name)


@pytest.mark.parametrize(
    "database", ["other", "", "../../etc", "orders\n", "order", "orders_20260314_120000"]
)
def test_a_manifest_whose_database_is_not_that_of_its_id_is_refused(database: str) -> None:
    with pytest.raises(IntegrityError):
        read_manifest(document(database=database), NAME)


@pytest.mark.parametrize(
    "file",
    [
        "/etc/passwd",
        "../backup_orders_20260314_120000.sql.gz.gpg",
        "backup_orders_20260314_120000./../../x",
        "backup_other_20260314_120000.sql.gz.gpg",
        "backup_orders_20260314_120000.sql\n.gz",
        "backup_orders_20260314_120000.sql\0.gz",
        "backup_orders_20260314_120000.\x1b[31m",
        "backup_orders_20260314_120000.json",
        "backup_orders_20260314_120000.sha256",
        "backup_orders_20260314_120000.verify.json",
        "",
    ],
)
@pytest.mark.parametrize("which", ["artifact", "globals"])
def test_a_file_that_cannot_be_this_backups_is_refused(file: str, which: str) -> None:
    changed = {**json.loads(GOOD.to_json())[which], "name": file}
    with pytest.raises(IntegrityError):
        read_manifest(document(**{which: changed}), NAME)


def test_two_files_of_one_name_are_refused() -> None:
    same = {**json.loads(GOOD.to_json())["globals"], "name": GOOD.artifact.name}
    with pytest.raises(IntegrityError):
        read_manifest(document(globals=same), NAME)


# -- beside it


def test_an_applications_own_setting_is_withheld() -> None:
    assert Setting(role=None, name="app.token", value="secret").withheld().value is None
    assert Setting(role=None, name="work_mem", value="1MB").withheld().value == "1MB"


def test_a_verification_keeps_the_last_check_of_each_level() -> None:
    def check(level: Any, *faults: str) -> Check:
        return Check(level=level, time=NOON, seconds=1, made_by="x", faults=list(faults))

    found = (
        Verification(backup=str(GOOD.id)).with_check(check("checksum", "bad")).with_check(check("content"))
    )
    found = found.with_check(check("checksum"))
    assert {level: done.passed for level, done in found.checks.items()} == {"checksum": True, "content": True}
    assert Verification.model_validate_json(found.to_json()) == found


# -- of a kind that nobody can compute with


@pytest.mark.parametrize("number", [-1, 1 << 63, 10**400, 10**4299])
@pytest.mark.parametrize("which", ["artifact", "globals", "dump", "compressed"])
def test_a_size_that_no_file_has_is_refused(which: str, number: int) -> None:
    changed = {**json.loads(GOOD.to_json())[which], "bytes": number}
    with pytest.raises(IntegrityError):
        read_manifest(document(**{which: changed}), NAME)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, 1e300])
def test_a_length_of_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(IntegrityError):
        read_manifest(document(seconds=seconds), NAME)


@pytest.mark.parametrize("day", ["9999-12-31", "0001-01-01"])
def test_a_day_without_one_before_or_after_it_is_refused(day: str) -> None:
    with pytest.raises(IntegrityError):
        read_manifest(document(partition_day=day), NAME)


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
@pytest.mark.parametrize("which", ["snapshot_time", "started", "finished"])
def test_a_time_that_no_clock_can_show_is_refused(which: str, time: str) -> None:
    with pytest.raises(IntegrityError):
        read_manifest(document(**{which: time}), NAME)


@pytest.mark.parametrize("version", ["9" * 5000, "\u0663", "1234567"])
def test_a_version_that_is_no_number_is_refused(version: str) -> None:
    changed = {**json.loads(GOOD.to_json())["server"], "version": version}
    with pytest.raises(IntegrityError):
        read_manifest(document(server=changed), NAME)


def test_a_file_without_the_backups_name_is_refused() -> None:
    changed = {**json.loads(GOOD.to_json())["artifact"], "name": "sql.gz.gpg"}
    with pytest.raises(IntegrityError, match="no backup has"):
        read_manifest(document(artifact=changed), NAME)


def test_what_is_said_of_another_name_is_short() -> None:
    with pytest.raises(IntegrityError) as raised:
        read_manifest(document(backup="x" * 500_000), NAME)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("zone", ["America/New_York", "Pacific/Kiritimati"])
@pytest.mark.parametrize("stamp", ["00010101_000000", "99991231_235959"])
def test_every_zone_can_tell_the_day_of_any_name(stamp: str, zone: str) -> None:
    found = BackupId.parse(f"backup_orders_{stamp}")
    assert found is not None
    assert found.local(ZoneInfo(zone)).year in (1969, 1970, 9999)
