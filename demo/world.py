"""The demo's world, all of it under .demo/: a shop's database, a bucket, a key, and Dagster's records."""

from __future__ import annotations

import fcntl
import os
import secrets
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2

from demo.sample import load
from demo.servers import Postgres, S3Server

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".demo"
BACKUPS = HOME / "backups"
DAGSTER = HOME / "dagster"
DATABASE, BUCKET = "shop", "shop-backups"
_ENV = HOME / "env"
_CAREFUL = """[ ! -e .env ] || echo "careful: the .env of this folder is read as well" >&2"""
_OURS = ("AWS_", "BACKUP_", "DATABASE_URL", "PG_BIN_DIR", "DAGSTER_HOME")


@contextmanager
def running() -> Iterator[dict[str, str]]:
    """Both servers for the length of the block; the environment in which backup-dag finds them."""
    HOME.mkdir(exist_ok=True)
    with _alone(), Postgres(HOME / "postgres") as postgres, S3Server(HOME / "s3") as s3:
        if not _exists(postgres):
            print(f"Loading the sample database {DATABASE!r} …", flush=True)
            _load(postgres)
            s3.create_bucket(BUCKET)
        environment = _environment(postgres, s3)
        with _for_a_terminal(environment, postgres):
            yield environment


@contextmanager
def _alone() -> Iterator[None]:
    """One world at a time; `make clean-demo` looks at the same lock."""
    with (HOME / "running").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit("the demo runs already: end make ui or make demo first") from None
        yield


@contextmanager
def _for_a_terminal(environment: Mapping[str, str], postgres: Postgres) -> Iterator[None]:
    """While the servers run, a file that tells a shell where they are: `source .demo/env`."""
    ours = {k: v for k, v in environment.items() if k.startswith(_OURS)}
    path = f"{Path(sys.executable).parent}:{postgres.bin_dir}"
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(ours.items())]
    _ENV.unlink(missing_ok=True)
    _ENV.touch(mode=0o600)
    _ENV.write_text("\n".join([*lines, f'export PATH="{path}:$PATH"', _CAREFUL, ""]))
    try:
        yield
    finally:
        _ENV.unlink(missing_ok=True)


def _exists(postgres: Postgres) -> bool:
    with closing(psycopg2.connect(postgres.url())) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE])
        return cursor.fetchone() is not None


def _load(postgres: Postgres) -> None:
    """Under another name first: a load that was cut short is not taken for the database."""
    unfinished = f"{DATABASE}_loading"
    _run(postgres, f"DROP DATABASE IF EXISTS {unfinished}", f"CREATE DATABASE {unfinished}")
    load(postgres.url(unfinished))
    _run(postgres, f"ALTER DATABASE {unfinished} RENAME TO {DATABASE}")


def _run(postgres: Postgres, *statements: str) -> None:
    with closing(psycopg2.connect(postgres.url())) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)


def _environment(postgres: Postgres, s3: S3Server) -> dict[str, str]:
    """This process's environment with the demo's settings, and nobody else's."""
    others = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "BACKUP_", "DATABASE_URL"))}
    return {
        **others,
        **s3.environment(),
        "AWS_S3_BUCKET": BUCKET,
        "DATABASE_URL": postgres.url(DATABASE),
        "PG_BIN_DIR": str(postgres.bin_dir),
        "BACKUP_DIR": str(BACKUPS),
        "BACKUP_DRILL_CHECKS": str(HOME / "drills"),
        "BACKUP_ENCRYPTION_KEY_FILE": str(_key_file()),
        "BACKUP_START_DATE": _kept("start", f"{datetime.now(UTC) - timedelta(days=14):%Y-%m-%d}").read_text(),
        "DAGSTER_HOME": str(_dagster_home()),
    }


def _key_file() -> Path:
    return _kept("key", secrets.token_urlsafe(32))


def _kept(name: str, text: str) -> Path:
    """A small file, written once."""
    path = HOME / name
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(text)
    return path


def _dagster_home() -> Path:
    """The project's dagster.yaml, with its records among the demo's."""
    DAGSTER.mkdir(exist_ok=True)
    text = (ROOT / "dagster.yaml").read_text().replace(": .dagster", f": {DAGSTER}")
    (DAGSTER / "dagster.yaml").write_text(text)
    return DAGSTER
