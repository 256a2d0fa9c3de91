"""`backup-dag metrics`: what a Prometheus would read of it."""

import json
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from backup_dag.core.audit import audited
from backup_dag.core.catalog import Catalog
from backup_dag.core.copies import Backup
from backup_dag.core.errors import DiskError
from backup_dag.core.manifest import BackupId, Check, Level, Manifest
from backup_dag.core.settings import Settings
from backup_dag.core.store.local import LocalStore
from backup_dag.core.verify import record
from backup_dag.core.watching import metrics
from demo.servers import S3Server
from tests.conftest import Here, Terminal
from tests.core.made import ARTIFACT, ROLES, lay_out, manifest

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]
NOW = datetime.now(UTC).replace(microsecond=0)


def read(text: str) -> Values:
    """The samples by name and labels, as Prometheus's own parser finds them; each may be there once."""
    found: Values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name.removeprefix("backup_dag_"), frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def of(settings: Settings) -> Values:
    return read(generate_latest(metrics.registry(settings)).decode())


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def made(settings: Settings, hours: float, name: str = "shop") -> Manifest:
    """A backup of so many hours ago, in BACKUP_DIR."""
    return lay_out(settings.backup_dir, manifest(name, NOW - timedelta(hours=hours)))


def checked(settings: Settings, of: Manifest, level: Level, *faults: str) -> None:
    check = Check(level=level, time=NOW, seconds=1, made_by="tests", faults=list(faults))
    record(LocalStore(settings.backup_dir), of, check)


def test_the_newest_of_each_standing_with_age_and_size(settings: Settings) -> None:
    proven, verified, good, damaged = (made(settings, hours) for hours in (70, 40, 20, 1))
    checked(settings, proven, "restore")
    checked(settings, verified, "content")
    checked(settings, good, "checksum")
    checked(settings, damaged, "content", "a byte has changed")
    found = of(settings)
    for standing, hours in {"good": 20, "verified": 40, "proven": 70}.items():
        labels = {"database": "shop", "standing": standing}
        taken = (NOW - timedelta(hours=hours)).timestamp()
        assert found[key("newest_snapshot_timestamp_seconds", **labels)] == taken
        assert found[key("newest_age_seconds", **labels)] == pytest.approx(hours * 3600, abs=1800)
        assert found[key("newest_size_bytes", **labels)] == len(ARTIFACT)
    assert found[key("rpo_target_seconds")] == 24 * 3600
    assert found[key("metrics_timestamp_seconds")] == pytest.approx(NOW.timestamp(), abs=1800)


def test_what_there_is_not_is_absent_and_no_zero(settings: Settings) -> None:
    made(settings, 5)
    found = of(settings)
    assert [dict(labels)["standing"] for name, labels in found if name == "newest_age_seconds"] == ["good"]
    assert [name for name, _ in found if name in ("newest_off_site", "last_duration_seconds")] == []


def test_each_stores_count_and_bytes_by_database(settings: Settings) -> None:
    for hours in (1, 2, 3):
        made(settings, hours)
    made(settings, 1, "other")
    whole = sum(path.stat().st_size for path in settings.backup_dir.glob("backup_shop_*"))
    assert whole > 3 * len(ARTIFACT + ROLES)
    (settings.backup_dir / "backup_shop_20260101_020000.sql.gz.gpg").write_bytes(b"left by a run that died")
    found = of(settings)
    assert found[key("backups", database="shop", store="local")] == 3
    assert found[key("backups", database="other", store="local")] == 1
    assert found[key("backups_size_bytes", database="shop", store="local")] == whole
    assert found[key("store_up", store="local")] == 1


def test_a_copy_off_site_is_there_or_missing(settings: Settings, s3: S3Server, bucket: str) -> None:
    ours = settings.model_copy(update={"aws_s3_bucket": bucket})
    older = made(ours, 30)
    for name in older.names:
        s3.client().upload_file(str(ours.backup_dir / name), bucket, name)
    found = of(ours)
    assert found[key("newest_off_site", database="shop")] == 1
    assert found[key("backups", database="shop", store="s3")] == 1
    made(ours, 2)
    found = of(ours)
    assert found[key("newest_off_site", database="shop")] == 0
    assert found[key("newest_age_seconds", database="shop", standing="good")] < 3 * 3600


def test_a_store_that_does_not_answer_is_down_and_the_other_is_told(settings: Settings, bucket: str) -> None:
    made(settings, 2)
    found = of(settings.model_copy(update={"aws_s3_bucket": "no-such-bucket"}))
    assert (found[key("store_up", store="s3")], found[key("store_up", store="local")]) == (0, 1)
    assert key("newest_age_seconds", database="shop", standing="good") in found
    assert [labels for name, labels in found if name == "backups" and ("store", "s3") in labels] == []
    assert [name for name, _ in found if name == "newest_off_site"] == []


def test_what_was_done_counts_by_database_verb_and_outcome(settings: Settings) -> None:
    folder = settings.backup_dir
    for _ in range(3):
        with audited(folder, "backup", "shop"):
            pass
    with pytest.raises(KeyError), audited(folder, "backup", "shop"):
        raise KeyError
    with audited(folder, "restore", "shop", mode="tables"):
        pass
    with (folder / ".audit/audit.jsonl").open("a") as log:
        log.write('{"what": "backup"}\n[]\nnot json\n')
    line = json.loads((folder / ".audit/audit.jsonl").read_text().splitlines()[0])
    wrongs: list[dict[str, object]] = [{"database": ["shop"]}, {"what": {}}, {"outcome": []}, {"details": ""}]
    for wrong in wrongs:
        with (folder / ".audit/audit.jsonl").open("a") as log:
            log.write(json.dumps({**line, **wrong}) + "\n")
    found = of(settings)
    counted = {"database": "shop", "operation": "backup"}
    assert found[key("operations_total", **counted, outcome="done")] == 3
    assert found[key("operations_total", **counted, outcome="failed")] == 1
    assert found[key("last_duration_seconds", **counted)] < 5
    assert key("last_duration_seconds", database="shop", operation="restore") not in found


def test_names_and_units_are_as_prometheus_has_them(settings: Settings) -> None:
    made(settings, 2)
    with audited(settings.backup_dir, "backup", "shop"):
        pass
    families = list(text_string_to_metric_families(generate_latest(metrics.registry(settings)).decode()))
    assert [family.name for family in families if not family.name.startswith("backup_dag_")] == []
    assert [family.name for family in families if not family.documentation] == []
    for family in families:
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")


def test_a_year_of_backups_costs_a_few_manifests(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proven one a month back is found by the notes of checks, which are small."""
    months = [made(settings, 24 * days) for days in range(100)]
    for each in months[:40]:
        checked(settings, each, "content")
    checked(settings, months[40], "restore")
    loaded: list[str] = []
    load = Catalog.load

    def counted(self: Catalog, backup: BackupId) -> Backup:
        loaded.append(str(backup))
        return load(self, backup)

    monkeypatch.setattr(Catalog, "load", counted)
    found = of(settings)
    taken = found[key("newest_snapshot_timestamp_seconds", database="shop", standing="proven")]
    assert taken == months[40].snapshot_time.timestamp()
    assert loaded == [months[0].backup, months[40].backup]


@pytest.fixture
def ours(terminal: Callable[[str], Terminal], sample: str) -> Terminal:
    return terminal(sample)


def test_the_terminal_prints_them_or_writes_them_for_others_to_read(here: Here, ours: Terminal) -> None:
    printed = here(ours, "metrics")
    assert printed.returncode == 0, printed.stderr
    name = ours.environment["DATABASE_URL"].rpartition("/")[2]
    assert read(printed.stdout)[key("backups", database=name, store="local")] == 0
    target = ours.folder / "backup_dag.prom"
    target.write_text("old")
    mask = os.umask(0o077)
    try:
        written = here(ours, "metrics", "--output", str(target))
    finally:
        os.umask(mask)
    assert (written.returncode, written.stdout) == (0, "")
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert read(target.read_text()).keys() == read(printed.stdout).keys()
    assert [path.name for path in ours.folder.iterdir() if ".prom" in path.name] == [target.name]
    document = json.loads(here(ours, "metrics", "--json").stdout)
    assert {each["name"] for each in document} >= {"backup_dag_store_up", "backup_dag_rpo_target_seconds"}


def test_a_folder_that_cannot_be_written_is_an_error_of_the_disk(here: Here, ours: Terminal) -> None:
    target = ours.folder / "there-is-none" / "x.prom"
    ended = here(ours, "metrics", "--output", str(target))
    assert ended.returncode == 9
    assert f"writing {target} failed: No such file or directory" in ended.stderr


def test_nothing_half_written_is_left_where_it_cannot_be_put_in_place(
    settings: Settings, tmp_path: Path
) -> None:
    target = tmp_path / "folder" / "x.prom"
    target.mkdir(parents=True)
    with pytest.raises(DiskError, match="no regular file"):
        metrics.write(metrics.registry(settings), target)
    assert list(target.parent.iterdir()) == [target]


def test_nothing_but_a_file_is_replaced(here: Here, ours: Terminal) -> None:
    """A device, say: root would have moved /dev/null out of the way of every program."""
    pipe, link, real = (ours.folder / name for name in ("pipe", "link", "real"))
    os.mkfifo(pipe)
    real.write_text("of somebody else")
    link.symlink_to(real)
    for target in (pipe, link):
        before = target.lstat()
        ended = here(ours, "metrics", "--output", str(target))
        assert ended.returncode == 9
        assert "it is no regular file" in ended.stderr
        assert target.lstat().st_ino == before.st_ino
    assert real.read_text() == "of somebody else"


def test_many_bad_ones_hide_no_good_one_and_safety_backups_are_none_of_a_night(settings: Settings) -> None:
    good = made(settings, 100)
    checked(settings, good, "restore")
    for hours in range(20, 60):
        checked(settings, made(settings, hours), "content", "a byte has changed")
    lay_out(settings.backup_dir, manifest("shop", NOW).model_copy(update={"reason": "pre_restore"}))
    found = of(settings)
    for standing in ("good", "verified", "proven"):
        labels = {"database": "shop", "standing": standing}
        assert found[key("newest_snapshot_timestamp_seconds", **labels)] == good.snapshot_time.timestamp()
    assert found[key("dated_in_the_future", database="shop")] == 0


def test_what_is_dated_in_the_future_is_counted_and_hides_nothing_that_is_overdue(settings: Settings) -> None:
    made(settings, 50)
    made(settings, -30)
    found = of(settings)
    labels = {"database": "shop", "standing": "good"}
    assert found[key("newest_age_seconds", **labels)] == pytest.approx(50 * 3600, abs=1800)
    assert found[key("dated_in_the_future", database="shop")] == 1
    made(settings, -0.75)
    assert of(settings)[key("newest_age_seconds", **labels)] == 0
