"""What we make is for its owner alone: folders 0700 and files 0600, whatever umask we were started with.

Secrets stand in this process's memory, so neither it nor a child of it leaves a core file.
"""

import os
import resource
from pathlib import Path


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
