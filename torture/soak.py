"""Hundreds of nights, one after the other in one process, as a daemon would live through them.

Backup, copy, verification, clean-up and watch of each night are the real ones, on a real PostgreSQL and a
real S3 server. Only the clocks are ours: this host's and the database server's both show the simulated
night, and run sixty times as fast while it lasts, so that no second has to be waited for. They begin now and
go forward, so what the file system and the bucket say of when a file came is never in their future.

Some nights something goes wrong: the night's process is killed, its disk is full, the bucket or the database
is away. The next nights have to make up for it by themselves. Afterwards memory, descriptors, threads,
processes and disk must be what they were half the way before (the audit log alone may grow), every backup
that the policy keeps must be there, whole to its last line, and every one is restored and proven.

python -m torture.soak [--seed N] [--nights N] [--write]
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import boto3
import psutil
import psycopg2
from pydantic import SecretStr

from backup_dag.core.backup import order_for, take_backup
from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.databases import Database, Plan
from backup_dag.core.drilling.drill import drill
from backup_dag.core.errors import BackupDagError
from backup_dag.core.keeping.cleanup import Leave, clean_up
from backup_dag.core.manifest import BackupId
from backup_dag.core.offsite import copy_offsite
from backup_dag.core.postgres import Session, Snapshot
from backup_dag.core.settings import Settings
from backup_dag.core.store.local import LocalStore
from backup_dag.core.store.s3 import S3Store
from backup_dag.core.verify import examine, verify_latest
from backup_dag.core.watching.watch import look
from demo.servers import Postgres, S3Server, available_versions
from torture.report import of_nights, write
from torture.tally import Tally

DATABASE, BUCKET = "shop", "soak"
PASSPHRASE = "correct horse battery staple 42"
KEPT_DAYS = 10
_SPEED = 60  # simulated seconds in a real one, while a night lasts
_EVERY = 10  # nights between two measurements
_ENOUGH = 80  # nights; with fewer there are too few measurements to compare
_MOST_OF_A_NIGHT = 2.0  # seconds, within which its process is killed
_FAULTS = ("killed", "disk full", "bucket away", "database away")
_ONE_IN = 6  # nights with a fault


def soak(seed: int, nights: int = 500) -> tuple[Tally, str]:
    """So many nights; what came of them, and in a table what was flat."""
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as ground,
        Postgres(Path(ground) / "pg") as postgres,
        S3Server(Path(ground) / "s3") as s3,
    ):
        return soaked(Path(ground) / "backups", postgres, s3, seed, nights)


def soaked(folder: Path, postgres: Postgres, s3: S3Server, seed: int, nights: int) -> tuple[Tally, str]:
    """The same on these servers. What is made on them is gone afterwards, but for the bucket."""
    bucket = f"{BUCKET}-{random.randrange(1 << 32):x}"
    s3.create_bucket(bucket)
    with _database(postgres) as url, _credentials(s3), _clock() as clock:
        lasting = _Soak(_settings(folder, url, bucket, clock.now()), url, postgres, s3, clock, seed)
        for number in range(nights):
            lasting.night(number)
        return lasting.tally(), flatness(lasting.measured)


@contextmanager
def _database(postgres: Postgres) -> Iterator[str]:
    name = f"soak_{random.randrange(1 << 32):x}"
    _run(postgres.url(), f"CREATE DATABASE {name}")
    url = postgres.url(name)
    _run(url, "CREATE TABLE orders (n serial PRIMARY KEY, what text)", _inserting(2000))
    try:
        yield url
    finally:
        _run(postgres.url(), f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def _credentials(s3: S3Server) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(s3.environment())
    boto3.DEFAULT_SESSION = None
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        boto3.DEFAULT_SESSION = None


def _settings(folder: Path, url: str, bucket: str, begin: datetime) -> Settings:
    return Settings.model_construct(
        **{
            **{name: field.default for name, field in Settings.model_fields.items()},
            "database_url": SecretStr(url),
            "backup_config": Path(os.devnull),
            "backup_dir": folder,
            "backup_encryption_key": SecretStr(PASSPHRASE),
            "pg_bin_dir": tuple(available_versions().values()),
            "aws_s3_bucket": bucket,
            "backup_start_date": begin.date(),
            "backup_retention_days": KEPT_DAYS,
            "backup_keep_daily": 7,
            "backup_keep_weekly": 4,
            "backup_keep_monthly": 6,
            "backup_local_retention_days": 5,
        }
    )


# -- the clocks


class Clock:
    """What time it is in the simulation."""

    def __init__(self) -> None:
        self._real = datetime.now(UTC)
        self._shown = self._real

    def set(self, shown: datetime) -> None:
        self._real, self._shown = datetime.now(UTC), shown

    def now(self) -> datetime:
        return self._shown + (datetime.now(UTC) - self._real) * _SPEED


@contextmanager
def _clock() -> Iterator[Clock]:
    """Puts the program's clocks under ours: every module's, and the database server's where it is asked."""
    clock = Clock()

    class Simulated(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return clock.now().astimezone(tz)

    modules = [m for name, m in sys.modules.items() if name.startswith("backup_dag.")]
    told = [module for module in modules if getattr(module, "datetime", None) is datetime]
    server_now, snapshot = Session.now, Session.snapshot

    @contextmanager
    def simulated(session: Session) -> Iterator[Snapshot]:
        with snapshot(session) as taken:
            yield Snapshot(taken.name, clock.now())

    for module in told:
        vars(module)["datetime"] = Simulated
    setattr(Session, "now", lambda session: clock.now())  # noqa: B010
    setattr(Session, "snapshot", simulated)  # noqa: B010
    bucket_clock = S3Store.clock
    setattr(S3Store, "clock", lambda store: clock.now())  # noqa: B010
    try:
        yield clock
    finally:
        setattr(Session, "now", server_now)  # noqa: B010
        setattr(Session, "snapshot", snapshot)  # noqa: B010
        setattr(S3Store, "clock", bucket_clock)  # noqa: B010
        for module in told:
            vars(module)["datetime"] = datetime


# -- the nights


@dataclass
class Measured:
    """Of this process: bytes of memory, descriptors, threads, children. Of the stores: bytes and files,
    without the audit log."""

    memory: int
    descriptors: int
    threads: int
    processes: int
    local: int
    files: int
    bucket: int


@dataclass
class _Soak:
    settings: Settings
    url: str
    postgres: Postgres
    s3: S3Server
    clock: Clock
    seed: int
    made: list[BackupId] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    tried: int = 0

    def __post_init__(self) -> None:
        self._begin = self.clock.now().replace(hour=2, minute=0, second=0, microsecond=0) + timedelta(days=1)
        self._servers = len(psutil.Process().children(recursive=True))

    def night(self, number: int) -> None:
        """One night, with its fault if it has one."""
        chance = random.Random(f"{self.seed} {number}")
        self.clock.set(self._begin + timedelta(days=number))
        _run(self.url, _inserting(chance.randrange(20, 60)), f"DELETE FROM orders WHERE n IN ({_OLDEST})")
        fault = chance.choice(_FAULTS) if number and chance.randrange(_ONE_IN) == 0 else ""
        self.tried += 1
        try:
            self._under(fault, number, chance)
        except Exception as error:
            self.found.append(f"night {number} ({fault or 'no fault'}): {type(error).__name__}: {error}")
        if number % _EVERY == _EVERY - 1:
            self.measured.append(self._measure())
            print(f"night {number + 1}: {self.measured[-1]}, {len(self.found)} not as promised", flush=True)

    def _under(self, fault: str, number: int, chance: random.Random) -> None:
        if fault == "killed":
            _killed(self._all_of_it, after=chance.random() * _MOST_OF_A_NIGHT)
        elif fault == "disk full":
            _with_small_files(chance.randrange(1, 40) << 10, self._all_of_it)
        elif fault == "bucket away":
            self.s3.kill()
            try:
                self._all_of_it()
            finally:
                self.s3.start()
        elif fault == "database away":
            self.postgres.kill()
            try:
                self._all_of_it()
            finally:
                self.postgres.start()
        else:
            self.found += [f"night {number} (no fault): {failed}" for failed in self._all_of_it()]

    def _all_of_it(self) -> list[str]:
        """A night's verbs, and why those failed that did. One that fails in our words keeps no other from its
        turn, as with timers."""
        failed = []
        for step in (self._back_up, self._copy, self._verify, self._clean, self._watch):
            try:
                step()
            except BackupDagError as error:
                failed.append(error.message)
        return failed

    def _back_up(self) -> None:
        database = Database(name=DATABASE, url=SecretStr(self.url), plan=Plan())
        order = order_for(database, self.settings, None, scheduled=True, now=self.clock.now())
        self.made.append(take_backup(self.settings, order).id)

    def _copy(self) -> None:
        [_, bucket] = open_stores(self.settings)
        for _ in copy_offsite(LocalStore(self.settings.backup_dir), bucket, DATABASE):
            pass

    def _verify(self) -> None:
        verify_latest(self.settings, DATABASE)

    def _clean(self) -> None:
        clean_up(self.settings, open_stores(self.settings), [DATABASE], Leave(), now=self.clock.now())

    def _watch(self) -> None:
        look(self.settings, self.clock.now())

    # -- what came of it

    def _measure(self) -> Measured:
        us = psutil.Process()
        sizes = [
            path.stat().st_size
            for path in self.settings.backup_dir.rglob("*")
            if path.is_file() and ".audit" not in path.parts
        ]
        return Measured(
            memory=us.memory_info().rss,
            descriptors=us.num_fds(),
            threads=us.num_threads(),
            processes=len(us.children(recursive=True)) - self._servers,
            local=sum(sizes),
            files=len(sizes),
            bucket=self._in_the_bucket(),
        )

    def _in_the_bucket(self) -> int:
        pages = self.s3.client().get_paginator("list_objects_v2").paginate(Bucket=self.settings.aws_s3_bucket)
        objects = (each for page in pages for each in page.get("Contents", ()))
        return sum(each["Size"] for each in objects if not each["Key"].startswith("audit/"))

    def tally(self) -> Tally:
        self.found += growing(self.measured)
        self.tried += len(self.measured)
        catalog = Catalog(open_stores(self.settings))
        left = catalog.every(DATABASE)
        for backup in left:
            for copy in backup.copies:
                self.tried += 1
                if faults := examine(self.settings, copy, "content").faults:
                    self.found.append(f"{backup.id} in {copy.store.address()}: {'; '.join(faults)}")
        there, since = {backup.id for backup in left}, self.clock.now() - timedelta(days=KEPT_DAYS)
        for made in self.made:
            if made.time > since and made not in there:
                self.found.append(f"{made} was made, is younger than {KEPT_DAYS} days, and is gone")
        for backup in left:
            self.tried += 1
            if not (outcome := drill(self.settings, backup)).proven:
                self.found.append(f"{backup.id} is not proven: {'; '.join(outcome.faults)}")
        if not left:
            self.found.append("no backup is left")
        again = tuple(f"{each} (soak with the seed {self.seed})" for each in self.found)
        return Tally("soak", self.tried, max(0, self.tried - len(again)), again)


_ROOM: dict[str, tuple[float, int]] = {
    "memory": (1.15, 8 << 20),
    "descriptors": (1.0, 4),
    "threads": (1.0, 4),
    "processes": (1.0, 0),
    "local": (1.25, 1 << 16),
    "files": (1.25, 8),
    "bucket": (1.25, 1 << 16),
}
"""By what factor, and by how much more, the last quarter of all measurements may exceed the second."""

_MEASURES = {
    "memory": "memory of the process that lives through all nights (resident)",
    "descriptors": "its open files and sockets",
    "threads": "its threads",
    "processes": "its children that are left after a night",
    "local": "what lies in BACKUP_DIR, without the audit log",
    "files": "the same, in files",
    "bucket": "what lies in the bucket, without the audit log",
}


def growing(measured: list[Measured]) -> list[str]:
    """What grows, in words: the median of the last quarter against that of the second. Of a few nights
    nothing can be said."""
    if len(measured) * _EVERY < _ENOUGH:
        return []
    said = []
    for what, (factor, more) in _ROOM.items():
        early, late = _early_and_late(measured, what)
        if late > early * factor + more:
            said.append(f"{what} grew from {early:,.0f} to {late:,.0f}")
    return said


def flatness(measured: list[Measured]) -> str:
    """The same as a table."""
    if len(measured) < 4:
        return ""
    lines = ["| | second quarter | last quarter | allowed |", "|---|---:|---:|---:|"]
    for what, (factor, more) in _ROOM.items():
        early, late = _early_and_late(measured, what)
        shown = (early, late, early * factor + more)
        lines.append(f"| {_MEASURES[what]} | {' | '.join(_as_number(what, each) for each in shown)} |")
    return "\n".join(lines)


def _as_number(what: str, value: float) -> str:
    return f"{value / 1e6:,.2f} MB" if what in ("memory", "local", "bucket") else f"{value:,.0f}"


def _early_and_late(measured: list[Measured], what: str) -> tuple[float, float]:
    quarter = len(measured) // 4
    parts = (measured[quarter : 2 * quarter], measured[-quarter:])
    early, late = (median(getattr(each, what) for each in part) for part in parts)
    return float(early), float(late)


def _killed(run: Callable[[], object], after: float) -> None:
    """In a process of its own, which is killed outright after so many seconds unless it has ended."""
    child = _forked(run)
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _with_small_files(size: int, run: Callable[[], object]) -> None:
    """In a process of its own in which no file may grow beyond that, as on a disk that is full."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        run()

    status = os.waitstatus_to_exitcode(os.waitpid(_forked(limited), 0)[1])
    if status != 0:
        raise RuntimeError(f"with files of at most {size:,} bytes the night ended with {status}")


def _forked(run: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        run()
        status = 0
    finally:
        os._exit(status)


_OLDEST = "SELECT n FROM orders ORDER BY n LIMIT greatest(0, (SELECT count(*) FROM orders) - 2000)"


def _inserting(rows: int) -> str:
    noise = "md5(random()::text) || md5(random()::text)"
    return f"INSERT INTO orders (what) SELECT {noise} FROM generate_series(1, {rows})"


def _run(url: str, *statements: str) -> None:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--nights", type=int, default=500)
    parser.add_argument("--write", action="store_true", help="write docs/RELIABILITY.md")
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    began = time.monotonic()
    tally, flat = soak(chosen.seed, chosen.nights)
    print(f"{tally.tried} tried, {tally.held} as promised\n{flat}")
    if chosen.write:
        write("Nights", of_nights(chosen.nights, flat, tally, chosen.seed, time.monotonic() - began))
    for found in tally.found:
        print(f"not kept: {found}")
    return 1 if tally.found else 0


if __name__ == "__main__":
    sys.exit(main())
