"""What we make is for its owner alone: folders 0700 and files 0600, whatever umask we were started with.

Secrets stand in this process's memory, so neither it nor a child of it leaves a core file.
"""

import errno
import os
import resource
import stat
from pathlib import Path

_OURS = (".work", ".audit")  # folders within BACKUP_DIR


def shut_others_out() -> None:
    """For all of this process and its children, from now on. What others are to read (numbers for Prometheus,
    a way through to a drill's server) says so with a mode of its own."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def make_private(folder: Path) -> None:
    """Makes a folder where there is none, and those that it lies in. Raises OSError."""
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def refuse_links(path: Path) -> None:
    """Raises OSError where one of ours in BACKUP_DIR, or the folder of ours that it lies in, is a link, or is
    neither a file nor a folder: who may write there would else have us write, remove or wait where they like.
    """
    for each in [path, *([path.parent] if path.parent.name in _OURS else [])]:
        try:
            mode = each.lstat().st_mode
        except FileNotFoundError:
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.ELOOP, f"{each} is a link, or neither a file nor a folder: remove it")
