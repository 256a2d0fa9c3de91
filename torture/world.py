"""One machine to torture: a database, a folder, a bucket, and backups of a state that is past.

Everything is real. A verb runs as a process of its own, forked from one that has imported the program, so
that a thousand of them take minutes. Before each case the world is made as it was at first, which is quick.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg2

from backup_dag.cli.main import main
from backup_dag.core.catalog import open_stores
from backup_dag.core.gpg import Gpg
from backup_dag.core.manifest import Manifest
from backup_dag.core.settings import Settings, load
from backup_dag.core.stages.encryption import S2K_COUNT
from backup_dag.core.store.base import Store
from demo.servers import Postgres, S3Server, available_versions
from tests.authentic import with_mac

KEY = "correct horse battery staple 42"
PASSWORD = "pass/word: of@the server"
MARKER = "the row that must not lie about in plain text"
BUCKET = "backups"
DATABASE, TEMPLATE = "shop", "shop_as_it_is"
SECRETS = {
    "the passphrase": KEY,
    "a password": PASSWORD,
    "a password in a url": quote(PASSWORD, safe=""),
    "a password in a .pgpass": PASSWORD.replace(":", r"\:"),
    "a row": MARKER,
}
LONGEST = 90.0  # seconds in which any verb must have ended, whatever happened to it

GLANCE = 0.02  # seconds
_ROWS = 1500
_PAST = (
    "CREATE TABLE orders (n int PRIMARY KEY, what text NOT NULL)",
    f"INSERT INTO orders SELECT n, '{MARKER} ' || md5(n::text) FROM generate_series(1, {_ROWS}) n",
    "CREATE TABLE items (id serial PRIMARY KEY, n int REFERENCES orders, price numeric CHECK (price > 0))",
    f"INSERT INTO items (n, price) SELECT 1 + n % {_ROWS}, n FROM generate_series(1, {2 * _ROWS}) n",
    "CREATE INDEX ON items (n)",
    "CREATE VIEW sums AS SELECT n, sum(price) FROM items GROUP BY n",
    "SELECT lo_from_bytea(0, convert_to(repeat('large ', 5000), 'UTF8'))",
)
_SINCE = (
    "DELETE FROM items WHERE n = 7",
    "CREATE TABLE later AS SELECT 1 AS one",
    "UPDATE orders SET what = 'changed since' WHERE n = 1",
)
DIGEST = """
    SELECT md5(string_agg(t, '|' ORDER BY t)) FROM (
        SELECT format('%s %s', n, what) AS t FROM orders
        UNION ALL SELECT format('%s %s %s', id, n, price) FROM items
        UNION ALL SELECT format('table %s', relname) FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT format('object %s', md5(lo_get(oid))) FROM pg_largeobject_metadata) all_of_it
"""
"""Of all that is in the database, in whatever order."""


@dataclass(frozen=True)
class Ended:
    """A verb that ran: its exit status (negative: killed by that signal), what it said, the seconds, and the
    command lines that could be seen of it and its children meanwhile."""

    words: tuple[str, ...]
    status: int
    said: str
    seconds: float
    seen: frozenset[str] = frozenset()


@dataclass
class Running:
    """A verb that runs. `of` are its processes, it among them."""

    process: BaseProcess
    words: tuple[str, ...]
    said: Path
    began: float = field(default_factory=time.monotonic)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def children(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def ended(self, within: float = LONGEST) -> Ended:
        """Waits for its end. One that does not end is killed, which is a fault of its own (status -99)."""
        seen, deadline = set[str](), time.monotonic() + within
        while self.process.is_alive() and time.monotonic() < deadline:
            seen.update(command_lines(self.pid))
            self.process.join(GLANCE)
        status = self.process.exitcode
        if status is None:
            self.process.kill()
            self.process.join()
            status = -99
        said = self.said.read_text(errors="replace")
        return Ended(self.words, status, said, time.monotonic() - self.began, frozenset(seen))


def command_lines(pid: int) -> Iterator[str]:
    """Of a process and all that it has started, as anybody may read them."""
    with suppress(OSError):
        yield Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from command_lines(int(child))


Hook = Callable[[], None]


def _enter(
    words: tuple[str, ...],
    environment: Mapping[str, str],
    folder: str,
    said: str,
    hook: Hook | None,
    slow_gpg: bool,
) -> None:
    """The life of a verb, in its own process."""
    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    tempfile.tempdir = None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not slow_gpg:
        _hurry_gpg()
    if hook is not None:
        hook()
    sys.argv = ["backup-dag", *words]
    main()


def _hurry_gpg() -> None:
    """Has gpg make its key out of a passphrase in no time, which else is most of what a case takes."""
    make = Gpg.make_args

    def hurried(gpg: Gpg, *others: Any) -> list[str]:
        return ["65536" if each == S2K_COUNT else each for each in make(gpg, *others)]

    setattr(Gpg, "make_args", hurried)  # noqa: B010


class World:
    """See the module. A context: its servers end with it, and its folder goes. `known` are digests of copies
    that were read to their ends, and are good; `proven` are digests of contents that a drill has restored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: set[str] = set()
        self.proven: set[str] = set()
        self._opened: tuple[Settings, tuple[Store, ...]] | None = None
        self._stack = ExitStack()
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload(["torture.preload"])

    def __enter__(self) -> "World":
        with self._stack as begun:
            self.postgres = begun.enter_context(Postgres(self.folder / "pg", 18, password=PASSWORD))
            self.s3 = begun.enter_context(S3Server(self.folder / "s3"))
            self.client = self.s3.client()
            self.s3.create_bucket(BUCKET)
            for name in ("home", "tmp", "runs"):
                (self.folder / name).mkdir()
            (self.folder / "tmp").chmod(0o711)
            self._make_the_past()
            self._stack = begun.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # what runs

    @property
    def home(self) -> Path:
        """Where verbs are run."""
        return self.folder / "home"

    @property
    def backups(self) -> Path:
        return self.home / "backups"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    @property
    def url(self) -> str:
        return self.postgres.url(DATABASE)

    def environment(self, changed: Mapping[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
        bins = os.pathsep.join(map(str, available_versions().values()))
        ours = {
            "DATABASE_URL": self.url,
            "BACKUP_DIR": str(self.backups),
            "BACKUP_ENCRYPTION_KEY": KEY,
            "PG_BIN_DIR": bins,
            "AWS_S3_BUCKET": BUCKET,
            "BACKUP_RETENTION_DAYS": "7",
            **{f"BACKUP_KEEP_{each}": "0" for each in ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")},
            "TMPDIR": str(self.temporary),
            "TZ": "UTC",
            **self.s3.environment(),
        }
        return {**kept, **ours, **changed}

    def start(
        self,
        *words: str,
        hook: Hook | None = None,
        changed: Mapping[str, str] | None = None,
        slow_gpg: bool = False,
    ) -> Running:
        """A verb, with these settings changed; `hook` is called in its process before it. `slow_gpg`: as it
        is, so that there is time to kill it."""
        said = self.folder / "runs" / f"{time.monotonic_ns()}.said"
        said.touch()  # it may be killed before it says anything
        process = self._forks.Process(
            target=_enter,
            args=(words, self.environment(changed or {}), str(self.home), str(said), hook, slow_gpg),
        )
        process.start()
        return Running(process, words, said)

    def run(self, *words: str, hook: Hook | None = None, changed: Mapping[str, str] | None = None) -> Ended:
        """The same, to its end."""
        return self.start(*words, hook=hook, changed=changed).ended()

    def stores(self) -> tuple[Settings, tuple[Store, ...]]:
        """What a verb would be told, and the stores that it would open; opened once."""
        if self._opened is None:
            before = dict(os.environ)
            try:
                os.environ.update(self.environment({}))
                settings = load()
                stores = tuple(open_stores(settings))
                for each in stores:  # so that it knows its credentials
                    list(each.list("none"))
            finally:
                os.environ.clear()
                os.environ.update(before)
            self._opened = settings, stores
        return self._opened

    def asked(self, query: str, database: str = DATABASE) -> Any:
        """The one value that a query gives."""
        with (
            closing(psycopg2.connect(self.postgres.url(database), connect_timeout=10)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(query)
            [(value,)] = cursor.fetchall()
        return value

    def does(self, *statements: str, database: str = "postgres") -> None:
        with closing(psycopg2.connect(self.postgres.url(database), connect_timeout=10)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)

    def content(self) -> str:
        """The digest of the database as it stands."""
        return str(self.asked(DIGEST))

    def processes(self) -> list[str]:
        """What lives in this world's folders and is none of its servers."""
        found, ours = [], self._servers()
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid in ours or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                told = [process.cwd(), *process.cmdline()]
                told += [f"{k}={v}" for k, v in process.environ().items() if k in ("TMPDIR", "PWD")]
                if any(str(self.home) in each or str(self.temporary) in each for each in told):
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
        return found

    def _servers(self) -> set[int]:
        return {os.getpid(), *(each.pid for each in psutil.Process().children())}

    # as it was at first

    def _make_the_past(self) -> None:
        self.does(f"CREATE DATABASE {DATABASE}")
        self.does(*_PAST, database=DATABASE)
        self.past = self.content()
        self._must("backup")
        self._grow_old()
        for verb in ("backup", "drill", "backup", "verify"):
            self._must(verb)
        self.does(*_SINCE, database=DATABASE)
        self.now = self.content()
        self.does(f"CREATE DATABASE {TEMPLATE} TEMPLATE {DATABASE}")
        shutil.copytree(self.backups, self.folder / "first", symlinks=True)
        self._first_objects = {name: self._body(name) for name in self.objects()}
        self.databases = self._databases()

    def _must(self, verb: str) -> None:
        ended = self.run(verb)
        if ended.status != 0:
            raise RuntimeError(f"the world cannot be made: {verb} said {ended.said}")
        time.sleep(1)  # the next backup's id is another one

    def _grow_old(self) -> None:
        """The one backup becomes two months old, so that there is something to be cleaned up."""
        [path] = [path for path in self.backups.glob("backup_*.json") if path.name.count(".") == 1]
        document = json.loads(path.read_text())
        old_id, then = document["backup"], datetime.now(UTC) - timedelta(days=60)
        new_id = f"backup_{DATABASE}_{then:%Y%m%d_%H%M%S}"
        for file in self.backups.glob(f"{old_id}.*"):
            name, content = file.name.replace(old_id, new_id), file.read_bytes()
            if file == path:
                content = self._older(document, old_id, new_id, then)
            elif file.suffix in (".sha256", ".json"):
                content = content.replace(old_id.encode(), new_id.encode())
            file.unlink()
            (self.backups / name).write_bytes(content)
            (self.backups / name).chmod(0o600)
            self._put(name, content, {"sha256": hashlib.sha256(content).hexdigest()})
            self.client.delete_object(Bucket=BUCKET, Key=file.name)

    @staticmethod
    def _older(document: dict[str, Any], old_id: str, new_id: str, then: datetime) -> bytes:
        text = json.dumps(document).replace(old_id, new_id)
        times = dict.fromkeys(("snapshot_time", "started", "finished"), then.isoformat())
        older = {**json.loads(text), **times, "partition_day": str(then.date())}
        plain = Manifest.model_validate({**older, "authentication": None})
        return Manifest.model_validate(with_mac(json.loads(plain.to_json()), KEY)).to_json().encode()

    def forget_the_folder(self) -> None:
        """As on a new machine: the bucket alone is left."""
        shutil.rmtree(self.backups)

    def reset(self) -> None:
        """All as it was before the first case. What outlived the last one was told, and goes."""
        for alive in self.processes():
            with suppress(ProcessLookupError):
                os.kill(int(alive.split()[0]), signal.SIGKILL)
        if self.content_or_none() != self.now or self._databases() != self.databases:
            for name in self._databases() - self.databases | {DATABASE}:
                self.does(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            self.does(f"CREATE DATABASE {DATABASE} TEMPLATE {TEMPLATE}")
        shutil.rmtree(self.backups, ignore_errors=True)
        shutil.copytree(self.folder / "first", self.backups, symlinks=True)
        there = self.objects()
        for name in there.keys() - self._first_objects.keys():
            self.client.delete_object(Bucket=BUCKET, Key=name)
        for name, (body, metadata) in self._first_objects.items():
            if there.get(name) != len(body) or name.endswith((".json", ".jsonl")):
                self._put(name, body, metadata)
        for upload in self.uploads():
            self.client.abort_multipart_upload(Bucket=BUCKET, Key=upload[0], UploadId=upload[1])
        for path in self.temporary.iterdir():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        for path in (self.folder / "runs").iterdir():
            path.unlink()

    def _put(self, name: str, body: bytes, metadata: dict[str, str]) -> None:
        self.client.put_object(
            Bucket=BUCKET, Key=name, Body=body, Metadata=metadata, ChecksumAlgorithm="SHA256"
        )

    def content_or_none(self) -> str | None:
        """None where the database cannot be asked."""
        with suppress(psycopg2.Error):
            return self.content()
        return None

    def objects(self) -> dict[str, int]:
        """The bucket's objects and their sizes."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return {found["Key"]: found["Size"] for page in pages for found in page.get("Contents", ())}

    def uploads(self) -> list[tuple[str, str]]:
        """Uploads that nobody has finished."""
        found = self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())
        return [(each["Key"], each["UploadId"]) for each in found]

    def _body(self, name: str) -> tuple[bytes, dict[str, str]]:
        found = self.client.get_object(Bucket=BUCKET, Key=name)
        return found["Body"].read(), found["Metadata"]

    def _databases(self) -> set[str]:
        names = "SELECT array_agg(datname::text) FROM pg_database WHERE datname !~ '^template|^postgres$'"
        return set(self.asked(names, "postgres"))


@contextmanager
def world() -> Iterator[World]:
    """A world in a folder of its own, short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="bdt-", dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        with World(Path(folder)) as made:
            yield made
