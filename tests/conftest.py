"""Real servers by fixture. One that does not start fails the run; none is skipped in silence."""

import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import psycopg2
import pytest
from pydantic import SecretStr

from backup_dag.cli.main import main
from backup_dag.core import stall
from backup_dag.core.databases import Database, Plan
from backup_dag.core.settings import Settings
from demo.sample import load
from demo.servers import Postgres, S3Server, available_versions
from tests.gate import Gate
from tests.web import Web

KEY = "correct horse battery staple 42"
PASSWORD = "pass/word: of@the server"
MARKER = "the row that must not lie about in plain text"
REQUIRED = {16, 18}  # from the wheel; 15 too where the system has it


def pytest_report_header() -> list[str]:
    programs = [path / "postgres" for path in available_versions().values()]
    said = [
        subprocess.run([p, "--version"], capture_output=True, text=True, check=True).stdout for p in programs
    ]
    gpg = subprocess.run(["gpg", "--version"], capture_output=True, text=True, check=True).stdout
    return [*(line.strip() for line in said), gpg.splitlines()[0]]


@pytest.fixture(autouse=True)
def _usual_patience() -> Iterator[None]:
    """A test that waits less long does so for itself alone."""
    usual = stall.allowed()
    yield
    stall.allow(usual)


@pytest.fixture(scope="session")
def ground() -> Iterator[Path]:
    """A folder for servers' data, short enough for sockets, outside of pytest's own."""
    with tempfile.TemporaryDirectory(prefix="bd-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def servers(ground: Path) -> Iterator[Mapping[int, Postgres]]:
    """A running server of every major version there is, by version."""
    versions = available_versions()
    assert versions.keys() >= REQUIRED, f"PostgreSQL {REQUIRED} are required, found {sorted(versions)}"
    started = {version: Postgres(ground / f"pg{version}", version) for version in sorted(versions)}
    try:
        for server in started.values():
            server.start()
        yield started
    finally:
        for server in started.values():
            server.stop()


@pytest.fixture(scope="session")
def postgres(servers: Mapping[int, Postgres]) -> Postgres:
    """The newest version's server."""
    return servers[max(servers)]


@pytest.fixture(params=sorted(available_versions()), ids=lambda version: f"pg{version}")
def each_postgres(request: pytest.FixtureRequest, servers: Mapping[int, Postgres]) -> Postgres:
    """Every version's server in turn."""
    return servers[request.param]


@pytest.fixture(scope="session")
def s3(ground: Path) -> Iterator[S3Server]:
    with S3Server(ground / "s3") as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket, with the server's credentials in this process's environment."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(name)
    return name


def run_sql(url: str, *statements: str) -> None:
    """Runs statements one by one, each on its own."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)


def asked(url: str, query: str) -> list[tuple[Any, ...]]:
    """The rows that a query gives."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def name_of(url: str) -> str:
    """The database that a server's url ends in."""
    return url.rpartition("/")[2]


def make_database(server: Postgres, name: str | None = None) -> str:
    """A new, empty database; its url."""
    name = name or f"db_{uuid.uuid4().hex[:10]}"
    quoted = name.replace('"', '""')
    run_sql(server.url(), f'DROP DATABASE IF EXISTS "{quoted}" WITH (FORCE)', f'CREATE DATABASE "{quoted}"')
    return server.url(name)


@pytest.fixture(scope="session")
def sample_urls(servers: Mapping[int, Postgres]) -> Mapping[int, str]:
    """The sample database, small, on every version's server. Read only, please."""
    urls = {}
    for version, server in servers.items():
        urls[version] = make_database(server, "sample")
        load(urls[version], rows=3000)
    return urls


@pytest.fixture
def sample(postgres: Postgres, sample_urls: Mapping[int, str]) -> str:
    """The url of the sample database on the newest version. Read only, please."""
    return sample_urls[postgres.version]


@pytest.fixture(scope="session")
def guarded_postgres(ground: Path) -> Iterator[Postgres]:
    """A server that wants a password. A test may kill it, if it starts it again."""
    with Postgres(ground / "guarded", password=PASSWORD) as server:
        yield server


def fill(url: str, kilobytes: int) -> None:
    """A table `large` that does not compress to less than half, with MARKER in every row."""
    noise = "SELECT string_agg(md5(n::text || k::text), '') FROM generate_series(1, 30) k"
    rows = f"SELECT n, '{MARKER}' AS marker, ({noise}) AS noise FROM generate_series(1, {kilobytes}) n"
    run_sql(url, f"CREATE TABLE large AS {rows}")


@pytest.fixture(scope="session")
def large(postgres: Postgres) -> str:
    """The url of a database of 24 MB on the newest version. Read only, please."""
    url = make_database(postgres, "large")
    fill(url, 24_000)
    return url


@pytest.fixture
def guarded_url(guarded_postgres: Postgres) -> str:
    """A large database on a server of its own that wants a password."""
    url = make_database(guarded_postgres, "guarded")
    fill(url, 32_000)  # more than the gate and the sockets hold, so that the crash cuts it short
    return url


@pytest.fixture
def gated() -> Iterator[Callable[[str, int], tuple[str, Gate]]]:
    """Puts a gate in front of the server that a url names; the url through it, and the gate."""
    gates = []

    def put(url: str, limit: int) -> tuple[str, Gate]:
        parts = urlsplit(url)
        assert parts.port is not None
        gates.append(Gate(parts.port, limit))
        login = parts.netloc.rpartition(":")[0]
        return parts._replace(netloc=f"{login}:{gates[-1].port}").geturl(), gates[-1]

    yield put
    for gate in gates:
        gate.close()


@pytest.fixture
def bin_dirs() -> tuple[Path, ...]:
    return tuple(available_versions().values())


@pytest.fixture
def settings(tmp_path: Path, bin_dirs: tuple[Path, ...]) -> Settings:
    """Settings of a user with a local folder and a passphrase, and nothing from the environment."""
    return Settings.model_construct(
        **{
            **{name: field.default for name, field in Settings.model_fields.items()},
            "backup_dir": tmp_path / "backups",
            "backup_encryption_key": SecretStr(KEY),
            "pg_bin_dir": bin_dirs,
        }
    )


def database(url: str, name: str = "sample", plan: Plan | None = None) -> Database:
    return Database(name=name, url=SecretStr(url), plan=plan or Plan())


@dataclass
class Terminal:
    """`backup-dag` as a user runs it: a process of its own, in a folder of its own."""

    folder: Path
    environment: dict[str, str]

    def run(self, *words: str, **changed: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, **changed}
        program = [sys.executable, "-m", "backup_dag.cli", *words]
        return subprocess.run(
            program,
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def run_with_small_files(self, megabytes: int, *words: str) -> subprocess.CompletedProcess[str]:
        """The same on a system where no file may grow beyond that size: as a disk that is full."""
        size = megabytes << 20
        limit = f"import resource, os, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}));"
        replaced = f"os.execv(sys.executable, [sys.executable, '-m', 'backup_dag.cli', *{list(words)}])"
        return subprocess.run(
            [sys.executable, "-c", limit + replaced],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def start(self, *words: str, **changed: str) -> "subprocess.Popen[str]":
        """The same, not waited for; the caller ends it."""
        environment = {**self.environment, **changed}
        program = [sys.executable, "-m", "backup_dag.cli", *words]
        return subprocess.Popen(
            program,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @contextmanager
    def running(self, *words: str, **changed: str) -> "Iterator[subprocess.Popen[str]]":
        """The same for the length of a block: killed at its end, if it still runs then."""
        process = self.start(*words, **changed)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    @property
    def backups(self) -> Path:
        return self.folder / "backups"


Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    """`Terminal.run`, within this process: the same entry, environment and folder in a tenth of the time."""

    def run(ours: Terminal, *words: str, **changed: str) -> subprocess.CompletedProcess[str]:
        numbers, mask = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP), os.umask(0o022)
        heard = {number: signal.getsignal(number) for number in numbers}
        capfd.readouterr()
        with monkeypatch.context() as patched:
            for name in list(os.environ):
                patched.delenv(name)
            for name, value in {**ours.environment, **changed}.items():
                patched.setenv(name, value)
            patched.chdir(ours.folder)
            patched.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials it has seen
            patched.setattr(sys, "argv", ["backup-dag", *words])
            with pytest.raises(SystemExit) as ended:
                main()
        for number, how in heard.items():
            signal.signal(number, how)
        os.umask(mask)
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(words, ended.value.code, *capfd.readouterr())

    return run


NextIsGood = Callable[..., None]


@pytest.fixture
def assert_next_is_good(here: Here) -> NextIsGood:
    """Makes a backup, which must be whole, verify wherever it lies, and leave an empty `.work`."""

    def check(ours: Terminal, url: str, **changed: str) -> None:
        made = here(ours, "backup", DATABASE_URL=url, **changed)
        assert made.returncode == 0, made.stderr
        checked = here(ours, "verify", DATABASE_URL=url, **changed)
        copies = 2 if "AWS_S3_BUCKET" in changed else 1
        assert (checked.returncode, checked.stdout.count("good ")) == (0, copies), checked.stderr
        assert list((ours.backups / ".work").iterdir()) == []

    return check


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder for files on their way into a store. It is not there yet."""
    return tmp_path / "work"


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.close()


@pytest.fixture
def terminal(tmp_path: Path, bin_dirs: tuple[Path, ...]) -> Callable[[str], Terminal]:
    """Makes a terminal for a database's url: with BACKUP_DIR, key and clients set, and no bucket."""

    def at(url: str) -> Terminal:
        clean = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("AWS_", "BACKUP_", "DATABASE_", "DAGSTER_"))
        }
        root = str(Path(__file__).parents[1])
        ours = {
            "PYTHONPATH": root,
            "DATABASE_URL": url,
            "BACKUP_DIR": str(tmp_path / "backups"),
            "BACKUP_ENCRYPTION_KEY": KEY,
            "PG_BIN_DIR": os.pathsep.join(map(str, bin_dirs)),
        }
        return Terminal(tmp_path, {**clean, **ours})

    return at
