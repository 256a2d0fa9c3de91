"""No room on the target: what a restore makes beside the database, or within it, does not fit there.

The database lies in a tablespace of its own, on a file system of a size that is chosen for each case: all
that is there already, and a part of what the restore will want. Only root may mount one.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg2

from torture.case import Allowed, Case, NotKept, Unreached, drawn
from torture.world import DATABASE, Ended, World

MIB = 1 << 20
NO_SPACE = re.compile("No space left on device|wrote only [0-9]+ of")
"""What the server's log says of each file that it could not extend, or only by a part of a block."""
_ROOMY = "64m"
_MODES = {
    "restore": (("restore", "--force"), 3 * MIB),
    "restore in place": (("restore", "--force", "--mode", "in-place"), MIB // 2),
}
"""The words, and the room of which a part is given: a little less than they want. A new database wants less
than its size, since PostgreSQL makes its files with holes, and fills them later."""
_OTHERS = "SELECT array_agg(datname::text ORDER BY datname) FROM pg_database"
_MOVED = f"ALTER DATABASE {DATABASE} SET TABLESPACE"

_places: dict[World, Path] = {}


def no_room(seed: int, *, times: int = 4) -> Iterator[Case]:
    """Each way of restoring with so many amounts of room. Without root there is no case, which is said."""
    if os.geteuid() != 0:
        print("no case of a target without room: only root may mount a small disk", file=sys.stderr)
        return
    for verb in _MODES:
        for at in range(times):
            yield _crowded(seed, verb, at, times)


def place_of(world: World) -> Path:
    """Where a world's tablespace `small` lies, made when it is first asked for: within the server's own
    folder, so that a standby has its own. It ends with the world, after the server, whose files are there."""
    if world not in _places:
        world.does("SET allow_in_place_tablespaces = on", "CREATE TABLESPACE small LOCATION ''")
        oid = world.asked("SELECT oid FROM pg_tablespace WHERE spcname = 'small'", "postgres")
        [place] = (world.postgres.data_dir / "pg_tblspc" / str(oid)).iterdir()
        owner = f"uid={place.stat().st_uid},gid={place.stat().st_gid},mode=700,size={_ROOMY}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", owner, "no-room", place], check=True)
        world._stack.callback(_gone, world)
        _places[world] = place
    return _places[world]


def _gone(world: World) -> None:
    world.postgres.stop()
    subprocess.run(["umount", _places.pop(world)], check=True)


def _crowded(seed: int, verb: str, at: int, of: int) -> Case:
    name = f"database/{verb}/no room on the target/{at}"
    words, wanted = _MODES[verb]

    def strike(world: World) -> tuple[Ended, Allowed]:
        place = place_of(world)
        with ExitStack() as stack:
            stack.callback(_moved_to, world, "pg_default")
            _moved_to(world, "small")
            there, before = world.asked(_OTHERS, "postgres"), times_without_room(world)
            part = (at + drawn(seed, name).random()) / of
            stack.callback(_sized, place, _ROOMY)
            _sized(place, str(shutil.disk_usage(place).used + int(wanted * part)))
            ended = world.run(*words)
            _sized(place, _ROOMY)
            if times_without_room(world) == before:
                raise Unreached(name)
            _must_be_untouched(world, ended, there)
            again = world.run(*words)
        return (ended, frozenset({0, 4})) if again.status == 0 else (again, frozenset({0}))

    return Case("database: no room on the target", name, strike)


def _must_be_untouched(world: World, ended: Ended, there: list[str]) -> None:
    """Sooner than the oracle asks: before the same restore is made again, now that there is room."""
    if ended.status != 0 and world.content() != world.now:
        raise NotKept(f"a restore that found no room changed the database: {ended.said[-300:]}")
    if ended.status != 0 and "make room there" not in ended.said:
        raise NotKept(f"a restore that found no room does not say where to make some: {ended.said[-300:]}")
    if ended.status != 0 and (left := set(world.asked(_OTHERS, "postgres")) - set(there)):
        raise NotKept(f"a restore that found no room left {sorted(left)}: {ended.said[-300:]}")


def _sized(place: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)


def _moved_to(world: World, tablespace: str) -> None:
    """The database's files, wherever they are. Those who are just leaving it are waited for."""
    deadline = time.monotonic() + 10
    with closing(psycopg2.connect(world.postgres.url(), connect_timeout=10)) as connection:
        connection.autocommit = True
        while True:
            try:
                with connection.cursor() as cursor:
                    return cursor.execute(f"{_MOVED} {tablespace}")
            except psycopg2.errors.ObjectInUse:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def times_without_room(world: World) -> int:
    return len(NO_SPACE.findall(world.postgres.log.read_text(errors="replace")))
