"""After each case the same questions, whatever the fault was. Each answer that is not as promised is a fault
of ours, in words."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from backup_dag.core.catalog import Catalog
from backup_dag.core.copies import Copy
from backup_dag.core.errors import BackupDagError
from backup_dag.core.settings import Settings
from backup_dag.core.store.base import Store
from backup_dag.core.verify import examine
from torture.clock import Passed
from torture.world import DATABASE, SECRETS, Ended, Hook, World

_PATIENCE = 12.0  # seconds in which what a killed run leaves to the kernel must have ended
FINE, INTERRUPTED = 0, 130
_CLEANUP = ("cleanup", "--force", "--unverified")
_HALF_MADE = "SELECT count(*) FROM pg_database WHERE datname LIKE '%drill%' OR datname LIKE '%restoring%'"


def unkept(world: World, ended: Ended, allowed: frozenset[int]) -> Iterator[str]:
    """What is not as promised after a verb that ended so. `allowed` are the exit statuses that are right.

    In the middle of this the next night is made: what a killed verb left may stay until then, and no longer;
    files that may still be being written, until the clean-up of the night after. And the next restore is made
    where there is something that waits for it.
    """
    yield from _of_the_end(ended, allowed)
    yield from _of_the_database(world, ended)
    yield from _of_what_lives(world, ended)
    yield from plain_text(world)
    yield from _of_the_stores(world)
    yield from _following(world, "backup")
    yield from _following(world, *_CLEANUP)
    if world.asked(_HALF_MADE, "postgres"):
        yield from _following(world, "restore", "--force")
    yield from _of_the_stores(world)
    if _orphans(world):
        yield from _of_the_orphans(world)
    yield from _of_what_is_left(world)


def _following(world: World, *words: str, hook: Hook | None = None) -> Iterator[str]:
    ended = world.run(*words, hook=hook)
    if ended.status != FINE:
        yield f"the next {words[0]} exits {ended.status}: {_shortly(ended.said)}"


def _of_the_end(ended: Ended, allowed: frozenset[int]) -> Iterator[str]:
    said = f"{' '.join(ended.words)} exits {ended.status}"
    if ended.status == -99:
        yield f"{' '.join(ended.words)} did not end in {ended.seconds:.0f} s"
    elif ended.status not in allowed:
        yield f"{said}, of {sorted(allowed)}: {_shortly(ended.said)}"
    if "Traceback" in ended.said or "unexpected:" in ended.said:
        yield f"{said} with a traceback: {_shortly(ended.said)}"
    for name, secret in SECRETS.items():
        if secret in ended.said:
            yield f"{said}, and says {name}"
        if any(secret in each for each in ended.seen):
            yield f"{said}, and shows {name} in the list of processes"


def _of_the_database(world: World, ended: Ended) -> Iterator[str]:
    """It is as it was, or what a restore promises that came to its end; never anything else."""
    found = world.content_or_none()
    restoring = ended.words[0] == "restore"
    if found is None:
        yield "the database cannot be asked"
    elif restoring and ended.status == FINE and found != world.past:
        yield "a restore that ended well did not bring back what was backed up"
    elif not restoring and found != world.now:
        yield "the database is not what it was"
    elif found not in (world.now, world.past):
        yield "the database is neither what it was nor what was backed up"


def _of_what_lives(world: World, ended: Ended) -> Iterator[str]:
    deadline = time.monotonic() + _PATIENCE
    while (alive := world.processes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for each in alive:
        yield f"it outlived {' '.join(ended.words)}: {each}"
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    while (held := world.asked(locks, "postgres")) and time.monotonic() < deadline:
        time.sleep(0.05)
    if held:
        yield f"{held} advisory locks are still held"


def plain_text(world: World) -> Iterator[str]:
    """Secrets, or what is only compressed, in any file of ours: of stores, logs and memory too."""
    for path in _files(world.home, world.temporary):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if any(secret.encode() in content for secret in SECRETS.values()) or content.startswith(b"\x1f\x8b"):
            yield f"plain text in {path.relative_to(world.folder)}"


def _files(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _of_the_stores(world: World) -> Iterator[str]:
    """Every manifest has a whole artifact whose content is what it promises, and restores: each copy is read
    to its end, if its very bytes were not read before and were good."""
    settings, stores = world.stores()
    there = set[str]()
    try:
        for backup in Catalog(stores).every(DATABASE):
            there.add(str(backup.id))
            for copy in backup.copies:
                yield from _of_a_copy(world, settings, copy)
    except BackupDagError as error:
        yield f"the stores cannot be looked at: {error.message}"
    if len(there) < 2:
        yield f"of the two backups that there were only {len(there)} are left"


def _of_a_copy(world: World, settings: Settings, copy: Copy) -> Iterator[str]:
    where = f"a copy in {copy.store.label}"
    if copy.fault:
        yield f"{where} cannot be used: {copy.fault}"
        return
    if copy.verdict and not copy.verdict.passed:
        yield f"{where} was condemned: {'; '.join(copy.verdict.faults)}"
    content = _bytes_of(copy)
    if content in world.known:
        return
    try:
        check = examine(settings, copy, "content")
    except BackupDagError as error:
        yield f"{where} cannot be read: {error.message}"
        return
    if check.passed:
        world.known.add(content)
        yield from _of_its_restore(world, copy)
    else:
        yield f"{where} is not what it promises: {'; '.join(check.faults)}"


def _of_its_restore(world: World, copy: Copy) -> Iterator[str]:
    """It can be loaded, and is proven then: a drill shows that, once for each content."""
    assert copy.manifest is not None
    content = copy.manifest.content.sha256
    if content not in world.proven:
        drilled = world.run("drill", str(copy.manifest.id))
        if drilled.status == FINE:
            world.proven.add(content)
        else:
            yield f"{copy.manifest.id} does not restore: {_shortly(drilled.said)}"


def _of_the_orphans(world: World) -> Iterator[str]:
    """The clean-up of the next night removes them, but those that are whole by their checksums: these it
    names, since it cannot know that they never had a manifest."""
    cleaned = world.run(*_CLEANUP, hook=Passed(timedelta(hours=25)))
    if cleaned.status != FINE:
        yield f"the clean-up of the night after exits {cleaned.status}: {_shortly(cleaned.said)}"
    for store, backup in _orphans(world):
        named = any(f"{backup}  its manifest is gone" in line for line in cleaned.said.splitlines())
        if not (named and _is_whole(store, backup)):
            yield f"{backup} has files in {store.label} and no manifest, and the clean-up left them"


def _orphans(world: World) -> list[tuple[Store, str]]:
    """Backups of which a store has files, and no manifest."""
    found = []
    for store in world.stores()[1]:
        names = {listed.name for listed in store.list("backup_")}
        ids = {name.split(".")[0] for name in names}
        found += [(store, backup) for backup in sorted(ids) if f"{backup}.json" not in names]
    return found


def _is_whole(store: Store, backup: str) -> bool:
    """Whether each file that its checksums name is there, and has that checksum."""
    with suppress(BackupDagError):
        lines = store.read(f"{backup}.sha256").decode().splitlines()
        promised = {name: digest for digest, name in (line.split() for line in lines)}
        found = {name: hashlib.sha256(store.read(name)).hexdigest() for name in promised}
        return bool(found) and found == promised
    return False


def _bytes_of(copy: Copy) -> str:
    """A digest of all files of a copy; one that lacks any has another than any that is whole."""
    digest = hashlib.sha256()
    for name in copy.manifest.names if copy.manifest else ():
        try:
            digest.update(copy.store.read(name))
        except BackupDagError as error:
            digest.update(str(error).encode())
    return digest.hexdigest()


def _of_what_is_left(world: World) -> Iterator[str]:
    for folder in (world.backups / ".work", world.temporary):
        for path in folder.iterdir() if folder.exists() else ():
            if path.name.startswith("new-"):  # just being made: such a one is given a minute
                continue
            if path.name != "backup-dag-scratch" or any((path / ".work").glob("*")):
                yield f"left after the next run: {path.relative_to(world.folder)}"
    for key, _ in world.uploads():
        yield f"an upload of {key} is still open after the next run"
    for path in _files(world.backups):
        if path.stat().st_mode & 0o077:
            yield f"{path.relative_to(world.folder)} may be read by others"
    if world.asked(_HALF_MADE, "postgres"):
        yield "a database that a restore or a drill was making is still there"


def _shortly(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return " / ".join(lines[-3:])[:300]
