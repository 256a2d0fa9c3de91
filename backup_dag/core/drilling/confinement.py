"""What a throw-away server can see and reach: the system's programs and its own folders, and nothing else.

A backup is a stranger's: the functions in it run while it is loaded, with all the rights that the server has,
`COPY … TO PROGRAM` among them. bubblewrap (bwrap) shuts the server in, so that there is no file of ours for
them, no socket, no network and no process. Where bwrap may not be used, root still hands the server to the
user nobody; anyone else would lend a backup's functions their own rights, and must say that they want to.
"""

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from backup_dag.core import process
from backup_dag.core.clients import Clients
from backup_dag.core.errors import ConfigurationError

NOBODY = 65534
_BWRAP = shutil.which("bwrap")
_APART = ("--net", "--ipc", "--pid", "--fork", "--kill-child")
"""What it has of its own without bwrap (unshare, util-linux). With its own processes and shared memory, all
of them end and nothing stays where the first of them is killed, whatever they are doing."""
_ALONE = ("--unshare-net", "--unshare-ipc", "--unshare-pid", "--die-with-parent")
"""The same by bwrap. There is no /proc: a hardened unit forbids that, and PostgreSQL does not need it."""
_SYSTEM = ("/usr", "/bin", "/sbin", "/nix/store", "/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
_LIBRARY = re.compile(r" => (/.*) \(0x[0-9a-f]+\)$", re.MULTILINE)
_NO_RIGHTS = ("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs")


def confined(programs: Clients, folder: Path, sockets: Path, *, or_else: bool) -> tuple[list[str], list[str]]:
    """What the server's command begins with, and what of its confinement could not be had, for people.

    It may write to `folder` and `sockets` alone. `or_else`: where it cannot be shut in, run it with our own
    rights.

    Raises ConfigurationError: it cannot be shut in.
    """
    root = os.geteuid() == 0
    if shut_in := _shut_in(programs, folder, sockets):
        return [*shut_in, *(_as_nobody() if root else [])], []
    if not root and not or_else:
        raise ConfigurationError(
            "the throw-away server cannot be shut in: functions in a backup would run with your rights",
            hint="install bubblewrap, and let this user have namespaces; or set BACKUP_SCRATCH_URL to a"
            " server for drills, or BACKUP_DRILL_UNCONFINED=on where you trust whoever owns the databases",
        )
    if root and not open_to_all(programs.bin_dir):
        raise ConfigurationError(
            f"the user nobody cannot run the programs in {programs.bin_dir}, and PostgreSQL does not run as"
            " root",
            hint="install bubblewrap, or PostgreSQL where everyone may run it",
        )
    apart = next((each for each in map(_unsharing, (_APART, _APART[:1])) if _allowed(each)), [])
    whose = "everyone may read" if root else "are yours"
    notes = [f"the throw-away server was not shut in (by bubblewrap): it could see the files that {whose}"]
    if not apart:
        notes.append("the throw-away server could not be cut off from the network; it listens on none")
    return [*apart, *(_as_nobody() if root else process.dying_with_its_parent("--no-new-privs"))], notes


def can_shut_in() -> bool:
    """Whether bubblewrap is here and may do its work."""
    return _BWRAP is not None and _allowed([*_alone(), "--"])


def _shut_in(programs: Clients, folder: Path, sockets: Path) -> list[str]:
    """Empty where that cannot be had."""
    if not can_shut_in():
        return []
    libraries = _libraries(programs)
    users = folder / "passwd"  # initdb asks for its own name
    who = NOBODY if os.geteuid() == 0 else os.getuid()
    users.write_text(f"postgres:x:{who}:{who}::/:/bin/sh\n")
    users.chmod(0o644)
    theirs = [*_installed(programs.bin_dir), *_installed(programs.bin_dir.resolve()), *libraries]
    return [
        *_alone(),
        *_seeing([path for path in theirs if not _is_of_the_system(path)]),
        *("--ro-bind", str(users), "/etc/passwd"),
        *_open(folder, sockets),
        *(word for each in (folder, sockets) for word in ("--bind", str(each), str(each))),
        *_finding(libraries),
        "--",
    ]


def _alone() -> list[str]:
    """In a world of its own, with nothing but the system's programs."""
    own = [] if os.geteuid() == 0 else ["--unshare-user"]
    return [
        str(_BWRAP),
        *_ALONE,
        *own,
        "--chdir",
        "/",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        *_seeing(_system()),
    ]


def _seeing(paths: Sequence[Path]) -> list[str]:
    bound = [word for each in dict.fromkeys(paths) for word in ("--ro-bind-try", str(each), str(each))]
    return [*_open(*paths), *bound]


def _open(*paths: Path) -> list[str]:
    """The folders above these, for all to pass through: bwrap would make them for their owner alone."""
    above = dict.fromkeys(parent for path in paths for parent in reversed(path.parents[:-1]))
    return [word for each in above for word in ("--perms", "0755", "--dir", str(each))]


def _system() -> list[Path]:
    return [*map(Path, _SYSTEM), *sorted(Path("/").glob("lib*"))]


def _is_of_the_system(path: Path) -> bool:
    return any(path.is_relative_to(each) for each in _system())


def _installed(bin_dir: Path) -> list[Path]:
    """An installation's own folders: what else lies beside them may be somebody's home."""
    return [bin_dir, *(bin_dir.parent / name for name in ("lib", "lib64", "share"))]


def _finding(libraries: list[Path]) -> list[str]:
    """Without /proc a program does not know where it lies, and what lies beside it."""
    return ["--setenv", "LD_LIBRARY_PATH", os.pathsep.join(map(str, libraries))] if libraries else []


def _libraries(programs: Clients) -> list[Path]:
    """The folders of the libraries that lie elsewhere than the system's."""
    said = ""
    for name in ("initdb", "postgres"):
        with suppress(OSError, process.ChildFailed):  # then the server says what it lacks
            said += process.output(["ldd", programs.program(name)], env=process.environment())
    found = [Path(where).resolve().parent for where in _LIBRARY.findall(said)]
    return [path for path in dict.fromkeys(found) if not _is_of_the_system(path)]


def _as_nobody() -> list[str]:
    whose = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    return process.dying_with_its_parent(*whose, *_NO_RIGHTS)


def _unsharing(what: Sequence[str]) -> list[str]:
    own = [] if os.geteuid() == 0 else ["--user", "--map-current-user"]
    return [*process.dying_with_its_parent(), "unshare", *own, *what, "--"]


def _allowed(command: Sequence[str]) -> bool:
    try:
        process.output([*command, "true"], env=process.environment())
    except (OSError, process.ChildFailed):
        return False
    return True


def open_to_all(folder: Path) -> bool:
    """Whether everyone may pass through it, and come to it."""
    real = folder.resolve()
    return all(each.stat().st_mode & 0o001 for each in (real, *real.parents))
