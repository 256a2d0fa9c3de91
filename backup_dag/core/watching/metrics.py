"""Numbers for a monitoring system, in Prometheus's text format: from the stores and the audit log alone.

Names follow Prometheus's conventions: base units (seconds, bytes), `_total` for what only grows. Looks at
each store's listing once, and at a few manifests of each database.
"""

import os
import stat
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from backup_dag.core import history
from backup_dag.core.audit import entries
from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.copies import Backup, verification
from backup_dag.core.databases import told_apart
from backup_dag.core.errors import BackupNotFound, ConfigurationError, DiskError, StoreError
from backup_dag.core.manifest import MANIFEST, VERIFICATION, BackupId
from backup_dag.core.nights import CLOCKS_APART
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import Store
from backup_dag.core.work import disk_error

_MOST_LOOKED_AT = 60  # backups of each database: the newest may be bad, and a proven one some weeks old
_DURATIONS = ("backup", "verify", "restore", "drill")
_STANDINGS: dict[str, Callable[[Backup], bool]] = {
    "good": lambda backup: backup.good,
    "verified": lambda backup: any(copy.read_to_its_end for copy in backup.copies),
    "proven": lambda backup: backup.proven,
}


def registry(settings: Settings) -> CollectorRegistry:
    """All that there is to tell now; a store that does not answer is told as being down.

    Raises:
        ConfigurationError: the settings for a store cannot be used.
        DiskError: the audit log may not be read.
    """
    families = [*_of_stores(settings), *_of_the_log(settings.backup_dir), *_of_settings(settings)]
    made = CollectorRegistry(auto_describe=False)
    made.register(_Ready(families))
    return made


def write(made: CollectorRegistry, path: Path) -> None:
    """Writes it for others to read (0644), whole: they find the old numbers or the new.

    Raises DiskError: also where anything but a file has that name, since it would be replaced.
    """
    try:
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            raise DiskError(
                f"writing {path} failed: it is no regular file, and would be replaced by one",
                hint="name a new file, or one of ours; without --output the numbers are printed",
            )
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            new = Path(file.name)
            try:
                file.write(generate_latest(made))
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                new.replace(path)
            except BaseException:
                new.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise disk_error(f"writing {path}", error) from error


@dataclass(eq=False)
class _Ready:
    """What has been collected, as prometheus_client asks for it."""

    families: list[Metric]

    def collect(self) -> list[Metric]:
        return self.families


@dataclass
class _Listing:
    """What one look at a store's listing shows: the files of each whole backup, with their sizes."""

    store: Store
    up: bool = True
    backups: dict[BackupId, dict[str, int]] = field(default_factory=dict)

    def of(self, database: str) -> list[BackupId]:
        return [backup for backup in self.backups if backup.database == database]


def _listed(store: Store) -> _Listing:
    files: dict[BackupId, dict[str, int]] = defaultdict(dict)
    try:
        for listed in store.list("backup_"):
            if backup := BackupId.parse(listed.name.partition(".")[0]):
                files[backup][listed.name] = listed.bytes
    except (StoreError, DiskError):
        return _Listing(store, up=False)
    return _Listing(
        store, True, {each: names for each, names in files.items() if each.file(MANIFEST) in names}
    )


def _of_stores(settings: Settings) -> Iterator[Metric]:
    listings = [_listed(store) for store in open_stores(settings)]
    names = {backup.database for listing in listings for backup in listing.backups}
    with suppress(ConfigurationError):  # on a server with nothing but the bucket
        usable, faults = told_apart(settings)
        names |= {database.name for database in usable} | (faults.keys() - {"DATABASE_URL"})
    yield from _stock(listings, sorted(names))
    yield from _newest_ones(listings, sorted(names))
    yield _recoveries(settings, sorted(names))


def _stock(listings: list[_Listing], names: list[str]) -> Iterator[Metric]:
    """How much each store holds."""
    up = _gauge("store_up", "Whether a store answered (1) or not (0).", "store")
    count = _gauge("backups", "Whole backups in a store.", "database", "store")
    size = _gauge(
        "backups_size_bytes", "Bytes of all files of the whole backups in a store.", "database", "store"
    )
    for listing in listings:
        label = listing.store.label
        up.add_metric([label], float(listing.up))
        for name in names if listing.up else []:
            ours = listing.of(name)
            count.add_metric([name, label], len(ours))
            size.add_metric([name, label], sum(sum(listing.backups[each].values()) for each in ours))
    yield from (up, count, size)


def _newest_ones(listings: list[_Listing], names: list[str]) -> Iterator[Metric]:
    """The newest backup of each standing, of those that count for a day. One that there is not is absent, and
    no zero; those that are dated in the future are none of them, and are counted."""
    labels, which = ("database", "standing"), "of the newest backup that is good, verified or proven"
    time = _gauge("newest_snapshot_timestamp_seconds", f"Snapshot time {which}.", *labels)
    age = _gauge("newest_age_seconds", f"Age of the snapshot {which}.", *labels)
    size = _gauge("newest_size_bytes", f"Size of the artifact {which}.", *labels)
    off_site = _gauge(
        "newest_off_site", "Whether the newest good backup has a good copy off-site.", "database"
    )
    ahead = _gauge("dated_in_the_future", "Backups that a wrong clock dated in the future.", "database")
    now, up = datetime.now(UTC), [listing for listing in listings if listing.up]
    for name in names if up else []:
        ids = sorted({backup for listing in up for backup in listing.of(name)}, reverse=True)
        present = [backup for backup in ids if backup.time <= now + CLOCKS_APART]
        ahead.add_metric([name], len(ids) - len(present))
        found = _newest(up, present)
        for standing, backup in found.items():
            taken = backup.manifest.snapshot_time.timestamp()
            time.add_metric([name, standing], taken)
            age.add_metric([name, standing], max(0.0, now.timestamp() - taken))
            size.add_metric([name, standing], backup.manifest.artifact.bytes)
        if "good" in found and any(listing.store.label != "local" for listing in up):
            there = any(copy.good and copy.store.label != "local" for copy in found["good"].copies)
            off_site.add_metric([name], float(there))
    yield from (time, age, size, off_site, ahead)


def _newest(listings: list[_Listing], ids: Sequence[BackupId]) -> dict[str, Backup]:
    """By standing, out of ids that come newest first. Loads those that promise to be what is looked for."""
    catalog = Catalog([listing.store for listing in listings])
    found: dict[str, Backup] = {}
    for backup in ids[:_MOST_LOOKED_AT]:
        wanted = _STANDINGS.keys() - found.keys()
        if not wanted:
            break
        if "good" not in wanted and not _promises(listings, backup, wanted):
            continue
        with suppress(BackupNotFound, StoreError, DiskError):  # cleaned up, or cut off, meanwhile
            there = catalog.load(backup)
            if there.good and there.manifest.is_of_a_night:
                found |= {standing: there for standing in wanted if _STANDINGS[standing](there)}
    return found


def _promises(listings: list[_Listing], backup: BackupId, wanted: set[str]) -> bool:
    """Whether the note of its checks, a small file, says what is wanted of some copy."""
    for listing in listings:
        names = listing.backups.get(backup, {})
        if backup.file(VERIFICATION) not in names:
            continue
        with suppress(StoreError, DiskError):
            note = verification(listing.store, backup, names)
            verdict = note.verdict() if note else None
            enough = {"content", "restore"} if "verified" in wanted else {"restore"}
            if verdict and verdict.passed and verdict.level in enough:
                return True
    return False


def _of_the_log(backup_dir: Path) -> Iterator[Metric]:
    """What was done from this host, by its audit log."""
    counts: dict[tuple[str, str, str], int] = defaultdict(int)
    durations: dict[tuple[str, str], float] = {}
    for said in entries(backup_dir):
        counts[said.database or "", said.what, said.outcome] += 1
        if said.outcome == "done" and said.what in _DURATIONS and said.details.get("mode") != "tables":
            durations[said.database or "", said.what] = said.seconds
    total = CounterMetricFamily(
        "backup_dag_operations",
        "What the audit log of this host holds: done, failed or refused.",
        labels=("database", "operation", "outcome"),
    )
    for labels, count in sorted(counts.items()):
        total.add_metric(labels, count)
    last = _gauge(
        "last_duration_seconds", "How long the last one took that was done.", "database", "operation"
    )
    for ended, seconds in sorted(durations.items()):
        last.add_metric(ended, seconds)
    yield from (total, last)


def _of_settings(settings: Settings) -> Iterator[Metric]:
    rpo = _gauge("rpo_target_seconds", "How old the newest good backup may become (BACKUP_RPO).")
    rpo.add_metric([], settings.backup_rpo.total_seconds())
    made = _gauge("metrics_timestamp_seconds", "When these numbers were collected.")
    made.add_metric([], datetime.now(UTC).timestamp())
    rto = _gauge("rto_target_seconds", "How long a recovery may take (BACKUP_RTO).")
    rto.add_metric([], settings.backup_rto.total_seconds())
    yield from (rpo, rto, made)


def _recoveries(settings: Settings, names: list[str]) -> Metric:
    """How long a recovery took, where a drill of this host measured one."""
    took = _gauge(
        "recovery_seconds", "From the copy to proven data, in the last drill on this host.", "database"
    )
    for name in names:
        for last in history.timings(settings.backup_dir, name, "drill")[-1:]:
            took.add_metric([name], last.recovery)
    return took


def _gauge(name: str, help: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"backup_dag_{name}", help, labels=labels)
