"""`make demo`: a sample shop's backup through Dagster to a real bucket, drilled, then listed and verified."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from demo import world

BIN = Path(sys.executable).parent


def main() -> int:
    began = time.monotonic()
    print("Starting PostgreSQL 18 and an S3 server under .demo/ …", flush=True)
    with world.running() as environment:
        say_and_run_dagster(environment)
        for words in (["list"], ["verify"]):
            print(f"\n$ backup-dag {' '.join(words)}", flush=True)
            subprocess.run([BIN / "backup-dag", *words], env=environment, cwd=world.HOME, check=True)
    print(closing_words(time.monotonic() - began))
    return 0


def say_and_run_dagster(environment: dict[str, str]) -> None:
    """Materializes today's partition, as the launch button in the UI would; quiet unless it fails."""
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    words = ["asset", "materialize", "--select", f"group:{world.DATABASE}", "--partition", today]
    command = ["dagster", *words, "-m", "backup_dag.definitions"]
    print(f"\n$ {' '.join(command)}", flush=True)
    began = time.monotonic()
    log = world.HOME / "dagster.log"
    with log.open("w") as output:
        ended = subprocess.run(
            [BIN / command[0], *command[1:]],
            env=environment,
            cwd=world.HOME,
            stdout=output,
            stderr=output,
            check=False,
        )
    if ended.returncode != 0:
        print(log.read_text())
        raise SystemExit(f"the backup failed; the lines above are from {log}")
    passed = "raw_dump → compressed_artifact → encrypted_artifact → checksum → s3_copy → restore_drill"
    print(f"{passed}  ({time.monotonic() - began:.1f} s)")


def closing_words(seconds: float) -> str:
    return f"""
That took {seconds:.0f} s. What it made:
  .demo/backups/                 the local copy: artifact, roles, checksum, manifest
  s3://{world.BUCKET}/             the same in the bucket (its server's data is in .demo/s3)
  .demo/key                      the passphrase; a real one belongs on paper, away from this machine

  make ui                        the same servers again, and the lineage with its history in Dagster;
                                 while it runs, source .demo/env gives a terminal backup-dag and psql
  make demo                      again: another backup, beside the first
  make clean-demo                remove it all
"""


if __name__ == "__main__":
    sys.exit(main())
