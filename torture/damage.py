"""Bits flipped, ends cut off and bytes added, in every file of a backup: found before a row is restored.

A flip in a manifest that leaves the document what it was (an exponent's `e` that becomes an `E`, a space at
its end) is no damage: what is authenticated is the document, and not its spelling. Such a manifest must be
found whole. Every other case must be found by whoever reads that file: the manifest's by its authenticity,
the others' by length and SHA-256, and of those every so many-th by the whole way that a nightly verification
goes. Some go the way of `backup-dag restore`, as a process of its own. A file of roles that is damaged keeps
no restore from the data, which is whole; then it must say so.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2
from pydantic import SecretStr

from backup_dag.core.authenticity import canonical
from backup_dag.core.backup import order_for, take_backup
from backup_dag.core.catalog import Catalog
from backup_dag.core.databases import Database, Plan
from backup_dag.core.errors import BackupNotFound, IntegrityError
from backup_dag.core.manifest import Level, Manifest
from backup_dag.core.settings import Settings
from backup_dag.core.store.local import LocalStore
from backup_dag.core.verify import examine
from demo.sample import load
from demo.servers import Postgres, available_versions
from torture.tally import Tally

PASSPHRASE = "correct horse battery staple 42"
ROOT = Path(__file__).parents[1]
_WEIGHTS = {"artifact": 4, "globals": 3, "manifest": 5, "checksum": 2}
_LONGEST_EXTENSION = 4096
_REFUSED = {5, 6}
"""Exit codes of a restore that found the damage: no such backup, integrity."""
_SAYS_SO = "cannot be read, so roles that are missing cannot be made"
"""What a plan says of a damaged file of roles. The data is whole then, and is restored."""


@dataclass(frozen=True)
class Damage:
    """What is done to a file: at that bit for a flip, at that byte for a cut, so many bytes for an extension
    (`at` seeds what they are)."""

    file: str
    how: str
    at: int

    def done_to(self, content: bytes) -> bytes:
        if self.how == "cut":
            return content[: self.at]
        if self.how == "extended":
            chosen = random.Random(self.at)
            return content + chosen.randbytes(1 + chosen.randrange(_LONGEST_EXTENSION))
        if self.how == "spaced":
            return content + b" \n" * self.at
        changed = bytearray(content)
        changed[self.at // 8] ^= 1 << self.at % 8
        return bytes(changed)

    def __str__(self) -> str:
        return f"{self.file} {self.how} at {self.at}"


@dataclass(frozen=True)
class Pristine:
    """A whole backup, and what each of its files holds, by what it is."""

    settings: Settings
    manifest: Manifest
    url: str
    files: dict[str, tuple[Path, bytes]]

    @classmethod
    def of(cls, settings: Settings, manifest: Manifest, url: str) -> Pristine:
        names = dict(zip(("artifact", "globals", "checksum", "manifest"), manifest.names, strict=True))
        paths = {what: settings.backup_dir / name for what, name in names.items()}
        return cls(settings, manifest, url, {what: (path, path.read_bytes()) for what, path in paths.items()})

    @contextmanager
    def damaged(self, damage: Damage) -> Iterator[bytes]:
        """The backup with one file damaged, which it holds now; whole again after the block."""
        path, whole = self.files[damage.file]
        now = damage.done_to(whole)
        path.write_bytes(now)
        (self.settings.backup_dir / self.manifest.id.file("verify.json")).unlink(missing_ok=True)
        try:
            yield now
        finally:
            path.write_bytes(whole)


def damage(seed: int, flips: int = 10_000, others: int = 1_000, restored: int = 40) -> Tally:
    """Damages a backup of a real database in so many ways. `others` are cut or extended files; `restored` of
    all these are given to `backup-dag restore` besides, and no row may come of them."""
    with (
        tempfile.TemporaryDirectory(prefix="torture-") as ground,
        Postgres(Path(ground) / "pg") as server,
    ):
        _run(server.url(), "CREATE DATABASE shop")
        load(server.url("shop"), rows=300)
        pristine = backed_up(server.url("shop"), Path(ground) / "backups")
        return damaged(pristine, seed, flips, others, restored)


def backed_up(url: str, folder: Path) -> Pristine:
    """A backup of a database in a folder, by settings that take nothing from the environment."""
    settings = Settings.model_construct(
        **{
            **{name: field.default for name, field in Settings.model_fields.items()},
            "backup_dir": folder,
            "backup_encryption_key": SecretStr(PASSPHRASE),
            "pg_bin_dir": tuple(available_versions().values()),
        }
    )
    database = Database(name="shop", url=SecretStr(url), plan=Plan())
    return Pristine.of(settings, take_backup(settings, order_for(database, settings, None)), url)


def damaged(
    pristine: Pristine, seed: int, flips: int, others: int, restored: int = 0, every: int = 50
) -> Tally:
    """Damages that backup in so many ways, one after the other. Every so many-th file that is encrypted goes
    through gpg to the last line, as in the nightly verification."""
    cases = list(chosen(pristine, seed, flips, others))
    found = []
    for number, case in enumerate(cases):
        deep = case.file == "manifest" or number % every == 0
        if wrong := _violation(pristine, case, "content" if deep else "checksum"):
            found.append(f"{wrong}: {_alone(seed, case)}")
    sample = random.Random(seed).sample(cases, min(restored, len(cases)))
    for case in sample:
        if wrong := _restore_violation(pristine, case):
            found.append(f"{wrong}: {_alone(seed, case)}")
    tried = len(cases) + len(sample)
    return Tally("damage", tried, tried - len(found), tuple(found))


def chosen(pristine: Pristine, seed: int, flips: int, others: int) -> Iterator[Damage]:
    """The cases of a seed: the same ones for the same backup's lengths."""
    chance, sizes = random.Random(seed), {what: len(whole) for what, (_, whole) in pristine.files.items()}
    names, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    for _ in range(flips):
        [what] = chance.choices(names, weights)
        yield Damage(what, "flipped", chance.randrange(sizes[what] * 8))
    for _ in range(others):
        [what] = chance.choices(names, weights)
        how = chance.choice(("cut", "cut", "extended", "extended", "spaced"))
        most = {"cut": sizes[what], "extended": 1 << 30, "spaced": 64}[how]
        yield Damage(what, how, chance.randrange(most) if how != "spaced" else 1 + chance.randrange(most))


def _alone(seed: int, case: Damage) -> str:
    return f"seed {seed}, Damage({case.file!r}, {case.how!r}, {case.at})"


def _violation(pristine: Pristine, case: Damage, level: Level) -> str:
    """What is wrong with how a damaged backup is judged, in words; "" where it is judged rightly."""
    with pristine.damaged(case) as now:
        try:
            faults = _faults(pristine, level)
        except Exception as error:
            return f"{case} ended in {type(error).__name__}: {error}"
        if is_still_the_same(pristine, case, now):
            return f"{case} changes nothing, and is called damaged: {faults}" if faults else ""
        return "" if faults else f"{case} was not found at level {level}"


def is_still_the_same(pristine: Pristine, case: Damage, now: bytes) -> bool:
    """Whether a file says what it said: to the byte, but of a manifest the document is what counts."""
    _, whole = pristine.files[case.file]
    if case.file != "manifest":
        return now == whole
    try:
        return _document(now) == _document(whole)
    except (ValueError, RecursionError):
        return False


def _document(text: bytes) -> tuple[bytes, object]:
    """What is authenticated, and what authenticates it."""
    return canonical(text), json.loads(text).get("authentication")


def _faults(pristine: Pristine, level: Level) -> list[str]:
    """What is found wrong, by the ways that verification and restores go. Errors of any other kind than
    those that say so come through."""
    catalog = Catalog([LocalStore(pristine.settings.backup_dir)])
    try:
        [copy] = catalog.load(pristine.manifest.id).copies
        return examine(pristine.settings, copy, level).faults
    except (IntegrityError, BackupNotFound) as error:
        return [error.message]


def _restore_violation(pristine: Pristine, case: Damage) -> str:
    """What is wrong with how `backup-dag restore` takes a damaged backup, in words; "" where nothing is."""
    name = f"torture_{uuid.uuid4().hex[:10]}"
    with pristine.damaged(case) as now:
        ended = _restored(pristine, name)
        before_it = _drop(pristine.url, name)
    said = f"{case}: restore ended with {ended.returncode}: {ended.stderr.strip()[-300:]}"
    if "Traceback" in ended.stderr:
        return f"{said} (a crash)"
    if is_still_the_same(pristine, case, now):
        return "" if ended.returncode == 0 else f"{said} (though nothing is damaged)"
    if case.file == "globals" and ended.returncode == 0:
        return "" if _SAYS_SO in ended.stderr else f"{said} (without a word of the roles)"
    if before_it:
        return f"{said} (and left the database {name})"
    return "" if ended.returncode in _REFUSED else f"{said} (which does not say what it is)"


def _restored(pristine: Pristine, name: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "BACKUP_", "DATABASE_"))}
    environment = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": pristine.url,
        "BACKUP_DIR": str(pristine.settings.backup_dir),
        "BACKUP_ENCRYPTION_KEY": PASSPHRASE,
        "PG_BIN_DIR": os.pathsep.join(map(str, pristine.settings.pg_bin_dir)),
    }
    words = ["restore", pristine.manifest.backup, "--mode", "new", "--target-database", name, "--force"]
    return subprocess.run(
        [sys.executable, "-m", "backup_dag.cli", *words],
        env=environment,
        cwd=pristine.settings.backup_dir,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _drop(url: str, name: str) -> bool:
    """Drops a database, or what was made on the way to it; whether there was one."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", [f"{name}%"])
            there = [found for (found,) in cursor.fetchall()]
            for found in there:
                cursor.execute(f'DROP DATABASE "{found}" WITH (FORCE)')
    return bool(there)


def _run(url: str, statement: str) -> None:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
