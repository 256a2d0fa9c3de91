"""A throw-away PostgreSQL: made for one drill, reached by nobody else, and gone with it, however it ends.

It listens on a socket in a folder of its own and on no network, and is shut in (`confinement.py`). A keeper
(`keeper.py`) removes it when whoever drills ends, or is killed.
"""

import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from backup_dag.core import process
from backup_dag.core.address import Address
from backup_dag.core.clients import Clients, installed_clients
from backup_dag.core.drilling import keeper
from backup_dag.core.drilling.confinement import NOBODY, confined, open_to_all
from backup_dag.core.errors import (
    ConfigurationError,
    DatabaseError,
    DatabaseUnreachable,
    DiskError,
    GuardRefused,
)
from backup_dag.core.manifest import Manifest, major
from backup_dag.core.postgres import connected
from backup_dag.core.process import Child
from backup_dag.core.settings import Settings
from backup_dag.core.stall import Clock, Look
from backup_dag.core.work import disk_error, private_folder, work_elsewhere

SUPERUSER = "postgres"
_LONGEST_FOLDER = 40  # bytes; the address of a socket, which lies far below it, has room for 107
_SECONDS_TO_START = 60.0
_PATIENCE = 0.05
_SERVER_PROGRAMS = ("initdb", "postgres")
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "max_locks_per_transaction": "1024",  # pg_dump locks each table, and partitions may be many
    "shared_buffers": "128MB",
    "dynamic_shared_memory_type": "mmap",  # else a killed server leaves files outside of its folder
    "allow_in_place_tablespaces": "on",
    "log_line_prefix": "%e ",
    "log_error_verbosity": "terse",
    "log_min_messages": "error",
    "log_min_error_statement": "panic",  # statements hold rows
    "log_checkpoints": "off",
    "jit": "off",  # it wants memory that is written and run, which a hardened unit forbids
    "lc_messages": "C",
}
_TOLD_TO_END = ("57014", "57P01", "08006", "08P01")
"""Cancelled, told to end, or its client gone (PostgreSQL's errcodes.txt)."""
_FAILURE = re.compile(r"^([0-9A-Z]{5}) (?:ERROR|FATAL|PANIC):  (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Server:
    """A running server. `address` is that of its database postgres; `notes` are for people. `log` None: it is
    not to be read from here."""

    address: Address
    notes: tuple[str, ...] = ()
    log: Path | None = None

    def said(self) -> int:
        """How many bytes it has said so far."""
        with suppress(OSError):
            return self.log.stat().st_size if self.log else 0
        return 0

    def first_failure(self, since: int) -> tuple[str, str] | None:
        """The SQLSTATE and the message of what it refused first, of what it said after those bytes: what came
        later may only have followed from that, as what was told to end did. None where nobody can tell."""
        if self.log is None:
            return None
        with suppress(OSError):
            text = self.log.read_bytes()[since:].decode(errors="replace")
            found = [each for each in _FAILURE.findall(text) if each[0] not in _TOLD_TO_END]
            if found:
                return found[0][0], found[0][1]
        return None


@contextmanager
def server_for(settings: Settings, manifest: Manifest, work: Path) -> Iterator[Server]:
    """The one in BACKUP_SCRATCH_URL, else one of our own. Raises as these do."""
    given = settings.backup_scratch_url is not None
    with given_server(settings, manifest) if given else own_server(settings, manifest, work) as server:
        yield server


@contextmanager
def given_server(settings: Settings, manifest: Manifest) -> Iterator[Server]:
    """The server in BACKUP_SCRATCH_URL.

    Raises:
        DatabaseUnreachable. ConfigurationError: it is too old for the backup.
        GuardRefused: it is the server that the backup is of.
    """
    assert settings.backup_scratch_url is not None
    address = Address.of(settings.backup_scratch_url.get_secret_value(), "BACKUP_SCRATCH_URL")
    with connected(address) as session:
        its, theirs = session.server().system_identifier, manifest.server.system_identifier
        if its is not None and its == theirs:
            raise GuardRefused(
                f"BACKUP_SCRATCH_URL is the server that {manifest.backup} is of: a drill is nothing for it",
                hint="give another one, or none: then each drill makes a server of its own",
            )
        wanted = major(manifest.dump.client_version)
        if session.server_major < wanted:
            raise ConfigurationError(
                f"the server in BACKUP_SCRATCH_URL is a PostgreSQL {session.server_major}, and the backup was"
                f" made by pg_dump {wanted}",
                hint=f"give one of PostgreSQL {wanted} or newer",
            )
    yield Server(address)


@contextmanager
def own_server(settings: Settings, manifest: Manifest, work: Path) -> Iterator[Server]:
    """A server of this machine's own programs, of the version that the backup's pg_dump has, or a newer one.
    What lies elsewhere than in the work directory is swept with it.

    Raises:
        ConfigurationError: there are no server programs. DiskError: no room for it.
        DatabaseError: it did not start; its own words are in the message.
    """
    programs = server_programs(settings.pg_bin_dir, major(manifest.dump.client_version))
    with _folders(settings, work) as (room, sockets):
        _check_room(room, manifest)
        log, data = room / "server.log", room / "cluster"
        unconfined = settings.backup_drill_unconfined == "on"
        prefix, notes = confined(programs, room, sockets, or_else=unconfined)
        _hand_over(room, sockets)
        command = _command(programs, data, sockets)
        keeping: process.Argv = [sys.executable, "-I", keeper.__file__, log, room, sockets]
        argv: process.Argv = [*keeping, "--", *prefix, "sh", "-c", command]
        with process.running(
            argv,
            env=process.environment(),
            stdin=process.PIPE,
            mortal=False,
            clock=Clock(_becoming_less(room)),
        ) as child:
            try:
                address = _address(sockets)
                _wait(child, address)
                yield Server(address, tuple(notes), log)
            finally:
                _gone(child)


def server_programs(bin_dirs: tuple[Path, ...], wanted: int) -> Clients:
    """An installation with the server's own programs: of that major version, else the next newer.

    Raises ConfigurationError.
    """
    found = [
        clients
        for clients in installed_clients(bin_dirs)
        if all(clients.program(name).exists() for name in _SERVER_PROGRAMS) and clients.major >= wanted
    ]
    if not found:
        raise ConfigurationError(
            f"there is no initdb of PostgreSQL {wanted} or newer here, to make a throw-away server with",
            hint=f"install postgresql-{wanted} (its own server need not run), or set PG_BIN_DIR to where it"
            " is, or BACKUP_SCRATCH_URL to a server for drills",
        )
    return min(found, key=lambda clients: clients.major)


def _command(programs: Clients, data: Path, sockets: Path) -> str:
    """Makes the cluster, and becomes its server."""
    initdb = [programs.program("initdb"), "-D", data, "-U", SUPERUSER, "-E", "UTF8", "--locale=C"]
    initdb += ["--auth=trust", "--no-sync", "--no-instructions"]
    settings = {**_SETTINGS, "unix_socket_directories": str(sockets)}
    if programs.major < 15:  # it has its minor versions for that, and not all of them
        settings.pop("allow_in_place_tablespaces")
    server = [programs.program("postgres"), "-D", data, *(f"--{k}={v}" for k, v in settings.items())]
    made, run = (shlex.join(map(str, words)) for words in (initdb, server))
    return f"umask 077 && {made} >&2 && exec {run}"


def _address(sockets: Path) -> Address:
    where = {"host": str(sockets), "hostaddr": "", "port": "5432"}
    return Address({**where, "user": SUPERUSER, "dbname": "postgres"})


def _wait(child: Child, address: Address) -> None:
    """Until it answers."""
    deadline = time.monotonic() + _SECONDS_TO_START
    while True:
        try:
            with connected(address):
                return
        except DatabaseUnreachable as error:
            if child.is_over or time.monotonic() > deadline:
                raise DatabaseError(
                    f"a throw-away PostgreSQL did not start: {_said(child) or error.message}",
                    hint="see what it says; room on the disk, memory, and that its programs can be run",
                ) from None
        time.sleep(_PATIENCE)


def _said(child: Child) -> str:
    """The end of its log, if it ended by itself."""
    if not child.is_over:
        return ""
    with suppress(process.ChildFailed):
        child.wait()
    return "; ".join(child.warnings[-5:])


def _gone(child: Child) -> None:
    """Ends it, and returns once its folder is removed."""
    with suppress(process.ChildFailed, OSError):
        child.end_input()
        child.wait()


def _becoming_less(folder: Path) -> Callable[[], Look]:
    """Whether someone still removes it, each time that it is asked."""
    before = -1

    def look() -> Look:
        nonlocal before
        left = sum(1 for _ in folder.rglob("*"))
        before, is_moving = left, left != before
        return Look(is_moving, f"{folder} is not removed")

    return look


@contextmanager
def _folders(settings: Settings, work: Path) -> Iterator[tuple[Path, Path]]:
    """Private folders for one server: a roomy one for its cluster, one with a short path for its socket."""
    root, base = os.geteuid() == 0, settings.backup_scratch_dir
    if base and not base.is_dir():
        raise ConfigurationError(f"BACKUP_SCRATCH_DIR={base} is no folder", hint="make it, or name another")
    with ExitStack() as stack:
        short = stack.enter_context(work_elsewhere(_base_in_temporary(), work))
        roomy = stack.enter_context(work_elsewhere(base, work)) if base else short if root else work
        if root:  # nobody, as whom the server runs, passes through them, and no more
            for folder in (path for each in {short, roomy} for path in (each.parents[1], each.parent, each)):
                folder.chmod(folder.stat().st_mode | 0o011)
        yield private_folder(roomy / "scratch"), private_folder(short / "s")


def _base_in_temporary() -> Path:
    """For root, the cluster lies there too: its BACKUP_DIR is closed to others, and PostgreSQL does not run
    as root."""
    ours = os.geteuid()
    base = _temporary() / ("backup-dag-scratch" + (f"-{ours}" if ours else ""))
    try:
        base.mkdir(mode=0o700 if ours else 0o711, exist_ok=True)
        found = base.lstat()
    except OSError as error:
        raise disk_error(f"making {base}", error) from error
    if base.is_symlink() or found.st_uid != ours or found.st_mode & 0o022:
        raise DiskError(
            f"{base} is not this user's alone, so nothing is put there",
            hint="see whose it is, and remove it; or set TMPDIR to another folder",
        )
    return base


def _temporary() -> Path:
    """Where temporary files lie: a short path, and for root one that nobody may pass through."""
    ours = Path(tempfile.gettempdir())
    for folder in (ours, Path("/tmp"), Path("/var/tmp")):
        if len(str(folder)) < _LONGEST_FOLDER and (os.geteuid() != 0 or open_to_all(folder)):
            return folder
    return ours


def _hand_over(*folders: Path) -> None:
    if os.geteuid() == 0:
        for folder in folders:
            os.chown(folder, NOBODY, NOBODY)


def _check_room(room: Path, manifest: Manifest) -> None:
    """Raises DiskError where not even the rows would fit."""
    free = shutil.disk_usage(room).free
    if free < manifest.dump.bytes:
        raise DiskError(
            f"{room} has {free:,} bytes free, and the rows alone of {manifest.backup}"
            f" have {manifest.dump.bytes:,}",
            hint="make room, or set BACKUP_SCRATCH_DIR to a folder that has it",
        )
