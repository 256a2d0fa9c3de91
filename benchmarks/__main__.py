"""`make bench`: our backup beside pg_dump alone and the usual pipelines, in one run on one database."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import psutil
import psycopg2

from backup_dag import __version__
from benchmarks import proving, restoring
from benchmarks.dagster_run import seconds_to_first_byte
from benchmarks.database import build
from benchmarks.measure import Measured, measure, middle
from benchmarks.proving import proven
from benchmarks.rekeying import rekeyed
from benchmarks.restoring import OURS_SQL, restored
from demo.servers import Postgres, S3Server

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
BUCKET = "bench"
GPG = "gpg --batch --yes --pinentry-mode loopback --passphrase-file key --symmetric --cipher-algo AES256"
LIMIT = "pg_dump > /dev/null (the limit)"
TODAY = f"{datetime.now(UTC):%Y-%m-%d}"


class Bench:
    """The servers, a folder, and the environment that every measured command runs in."""

    def __init__(self, postgres: Postgres, s3: S3Server, folder: Path) -> None:
        self.postgres, self.s3, self.folder = postgres, s3, folder
        (folder / "key").write_text("a passphrase for measurements only")
        (folder / "gnupg").mkdir(mode=0o700)
        (folder / "dagster").mkdir()
        s3.create_bucket(BUCKET)

    def environment(self, database: str, *, bucket: bool) -> dict[str, str]:
        others = {
            k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "BACKUP_", "DATABASE_URL"))
        }
        ours = {
            "DATABASE_URL": self.postgres.url(database),
            "PG_BIN_DIR": str(self.postgres.bin_dir),
            "BACKUP_DIR": str(self.folder / "backups"),
            "BACKUP_ENCRYPTION_KEY_FILE": str(self.folder / "key"),
            "BACKUP_START_DATE": TODAY,
            "DAGSTER_HOME": str(self.folder / "dagster"),
            "GNUPGHOME": str(self.folder / "gnupg"),
            "PATH": f"{self.postgres.bin_dir}:{BIN}:{os.environ['PATH']}",
        }
        return {**others, **self.s3.environment(), **ours, **({"AWS_S3_BUCKET": BUCKET} if bucket else {})}

    def run(
        self, command: str, database: str = "big", *, bucket: bool = False, keep: bool = False
    ) -> Measured:
        """One run of a shell line; what it wrote is removed afterwards, unless it is to be kept."""
        measured = measure(
            ["bash", "-euo", "pipefail", "-c", command],
            self.environment(database, bucket=bucket),
            self.folder,
        )
        if keep:
            return measured
        shutil.rmtree(self.folder / "backups", ignore_errors=True)
        for left in self.folder.glob("dump.*"):
            left.unlink()
        return measured


def compared(bench: Bench, runs: int) -> dict[str, Measured]:
    """The table's rows: each command in turn, `runs` times over, so that a slow minute hits them all."""
    upload = (
        f"""python -c 'import boto3; boto3.client("s3").upload_file("dump.gpg", "{BUCKET}", "dump.gpg")'"""
    )
    commands = {
        LIMIT: ('pg_dump "$DATABASE_URL" > /dev/null', False),
        "backup-dag backup, local store": ("backup-dag backup", False),
        "backup-dag backup, local store and S3": ("backup-dag backup", True),
        "pg_dump | gzip | gpg > file": (f'pg_dump "$DATABASE_URL" | gzip | {GPG} > dump.gpg', False),
        "dump to a file, gzip -9, gpg, upload": (
            f'pg_dump "$DATABASE_URL" > dump.sql; gzip -9 dump.sql; {GPG} < dump.sql.gz > dump.gpg; {upload}',
            False,
        ),
    }
    found: dict[str, list[Measured]] = {name: [] for name in commands}
    for turn in range(runs):
        for name, (command, bucket) in commands.items():
            found[name].append(bench.run(command, bucket=bucket))
            print(f"{turn + 1}/{runs}  {name}: {found[name][-1].wall:.1f} s", flush=True)
    return {name: middle(measured) for name, measured in found.items()}


def report(bench: Bench, runs: int) -> str:
    rows = compared(bench, runs)
    limit = rows[LIMIT].wall
    small = bench.run("backup-dag backup", "small").memory
    dagster = "dagster asset materialize --partition {} -m {} --select {}"
    empty = bench.run(dagster.format(TODAY, "benchmarks.dagster_run", "nothing")).memory
    chain = "'+key:\"{}/s3_copy\"'"
    full = bench.run(dagster.format(TODAY, "backup_dag.definitions", chain.format("big")), bucket=True).memory
    tenth = bench.run(
        dagster.format(TODAY, "backup_dag.definitions", chain.format("small")), "small", bucket=True
    ).memory
    first = seconds_to_first_byte(bench.environment("small", bucket=True), ROOT, "small_backup", TODAY)
    ours, pipeline = rows["backup-dag backup, local store"], rows["pg_dump | gzip | gpg > file"].wall
    big = sizes(bench)
    rows = {name.replace("|", "\\|"): row for name, row in rows.items()}  # a cell ends at a bar
    table = "\n".join(
        f"| {name} | {row.wall:.2f} | {row.wall / limit:.2f} | {row.cpu:.2f} | {row.busy:.0%}"
        f" | {row.memory / 1e6:.0f} |"
        for name, row in rows.items()
    )
    return f"""# Results

`make bench`, {datetime.now(UTC):%Y-%m-%d}, backup-dag {__version__}. {machine()}
Database of {big / 1e9:.2f} GB (narrow rows, wide text, jsonb), PostgreSQL {bench.postgres.version} on the
same machine, over TCP. Medians of {runs} runs in turn; processor seconds are those of the command and its
children, without the server's; busy is the share of all cores' time that anything used meanwhile, the
server included; memory is the peak of the sum of proportional set sizes.

| what | wall, s | × the limit | processor, s | busy | memory, MB |
|---|---:|---:|---:|---:|---:|
{table}

- `pg_dump | gzip | gpg` takes {pipeline / ours.wall:.1f} × as long as our local backup.
- Memory from the terminal: {ours.memory / 1e6:.0f} MB; for a database a tenth as large {small / 1e6:.0f} MB.
- Memory of a run through Dagster, S3 included, above that of an empty Dagster run ({empty / 1e6:.0f} MB):
  {(full - empty) / 1e6:.0f} MB; for a database a tenth as large {(tenth - empty) / 1e6:.0f} MB.
- From launching the Dagster job in the webserver to pg_dump's first byte: {first:.2f} s.
"""


def restores(bench: Bench, runs: int) -> str:
    back, big = restored(bench, runs), sizes(bench)
    proof = back[OURS_SQL].step("prove") / back[OURS_SQL].step("load")
    return f"""## Restore

`make bench`, {datetime.now(UTC):%Y-%m-%d}, a database of {big / 1e9:.2f} GB, medians of {runs} runs in
turn. Into a new database on the same server; ours from a local backup that was verified before, as after any
night.
"Without proof" is all but comparing every digest of what was built: reading the checksum, decrypting,
decompressing, loading, ANALYZE (which the usual tools leave to you), and the program's start.

{restoring.table(back)}

- Proof: {proof:.2f} × the load (sql).
"""


def proofs(bench: Bench, runs: int) -> str:
    found, big = proven(bench, runs), sizes(bench)
    return f"""## Proof

`make bench`, {datetime.now(UTC):%Y-%m-%d}, a database of {big / 1e9:.2f} GB, medians of {runs} runs in turn.
The backup lies in the local folder. A drill's server is its own, on the same machine.

{proving.table(found)}"""


def rekeyings(bench: Bench, runs: int) -> str:
    found = rekeyed(bench, runs)
    return f"""## Another passphrase

`make bench`, {datetime.now(UTC):%Y-%m-%d}, one local backup of {found.dump / 1e9:.2f} GB of dump,
{found.artifact / 1e6:.0f} MB encrypted, medians of {runs} runs in turn.

{found.table()}
"""


def sizes(bench: Bench) -> int:
    with closing(psycopg2.connect(bench.postgres.url("big"))) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_database_size('big')")
        (size,) = cursor.fetchone() or (0,)
        return int(size)


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {platform.release()}."


def create(postgres: Postgres, name: str, scale: float) -> None:
    with closing(psycopg2.connect(postgres.url())) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
    print(f"building the database {name} …", flush=True)
    build(postgres.url(name), scale)


MEASURES = {"backup": report, "restore": restores, "proof": proofs, "rekey": rekeyings}
"""In the order of their parts in the results."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="1 is about 2 GB of dump")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=[*MEASURES], help="measure one, and leave the others as they are")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as ground:
        folder = Path(ground)
        with Postgres(folder / "pg") as postgres, S3Server(folder / "s3") as s3:
            create(postgres, "big", chosen.scale)
            create(postgres, "small", chosen.scale / 10)
            bench = Bench(postgres, s3, folder)
            found = parts()
            for name, measured in MEASURES.items():
                if chosen.only in (None, name):
                    found[name] = measured(bench, chosen.runs)
                    shutil.rmtree(folder / "backups", ignore_errors=True)
    text = "\n\n".join(part.strip() for part in found.values()) + "\n"
    print(text)
    RESULTS.write_text(text)


def parts() -> dict[str, str]:
    """What was measured last, by what was measured."""
    first, *others = re.split(r"^(?=## )", RESULTS.read_text(), flags=re.MULTILINE)
    found = [first, *others]
    return dict(zip(MEASURES, [*found, *[""] * len(MEASURES)], strict=False))


if __name__ == "__main__":
    main()
