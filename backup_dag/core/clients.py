"""PostgreSQL's client programs on this machine: where they are, and which to use against a server."""

import re
from dataclasses import dataclass
from pathlib import Path

from backup_dag.core import process
from backup_dag.core.errors import BackupDagError, ConfigurationError

_FIRST_TO_RESTRICT = {13: 22, 14: 19, 15: 14, 16: 10, 17: 6}  # minor versions, of 2025-08-14
_NEEDED = ("pg_dump", "pg_dumpall", "pg_restore", "psql")


@dataclass(frozen=True)
class Clients:
    """One installation's client programs, of one major version."""

    bin_dir: Path
    version: str

    @property
    def major(self) -> int:
        return int(re.split(r"\D", self.version)[0])

    @property
    def restricts(self) -> bool:
        """Whether its psql knows \\restrict: without, a text can have it run programs (CVE-2025-8714)."""
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return found is not None and int(found[2]) >= _FIRST_TO_RESTRICT.get(self.major, 0)

    def program(self, name: str) -> Path:
        return self.bin_dir / name


def find_clients(server_major: int, bin_dirs: tuple[Path, ...]) -> Clients:
    """The client tools to use against a server: its own major version's, else the next newer; never older.

    A newer pg_dump may write settings that an older server rejects, hence the preference; an older
    one refuses the server. Of two of one major version, the one whose psql knows \\restrict. Looked for in
    `bin_dirs`, then PATH and Debian's /usr/lib/postgresql.

    Raises:
        ConfigurationError: none is new enough; names what was found.
    """
    found = installed_clients(bin_dirs)
    fit = [clients for clients in found if clients.major >= server_major]
    if not fit:
        have = ", ".join(f"{clients.version} in {clients.bin_dir}" for clients in found) or "none at all"
        raise ConfigurationError(
            f"no pg_dump is new enough for a PostgreSQL {server_major} server (found: {have})",
            hint=f"install postgresql-client-{server_major}, or set PG_BIN_DIR to where its pg_dump is",
        )
    return min(fit, key=lambda clients: (clients.major, not clients.restricts))


def find_restricting(server_major: int, bin_dirs: tuple[Path, ...]) -> Clients:
    """The same, to load a backup with: whatever its text says, their psql runs no program.

    Raises:
        ConfigurationError: none is new enough; or the one that fits is of before 2025-08-14.
    """
    clients = find_clients(server_major, bin_dirs)
    if not clients.restricts:
        since = f"{clients.major}.{_FIRST_TO_RESTRICT.get(clients.major, 0)}"
        raise ConfigurationError(
            f"the psql {clients.version} in {clients.bin_dir} would run any program that a backup's text"
            " names (CVE-2025-8714), so nothing is loaded with it",
            hint=f"install postgresql-client-{clients.major} {since} or newer, and see PG_BIN_DIR",
        )
    return clients


def installed_clients(bin_dirs: tuple[Path, ...]) -> list[Clients]:
    """Every whole installation of the client programs that we can find, in order of preference."""
    path = [Path(part) for part in process.environment().get("PATH", "").split(":") if part]
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = []
    for bin_dir in dict.fromkeys([*bin_dirs, *path, *debian]):
        pg_dump = bin_dir / "pg_dump"
        # Debian's /usr/bin/pg_dump is a wrapper that chooses a version by itself
        if _is_whole(bin_dir) and pg_dump.resolve().name != "pg_wrapper":
            found.append(Clients(bin_dir, _version_of(pg_dump)))
    return found


def _is_whole(bin_dir: Path) -> bool:
    """A folder that we may not look into, as root's in a PATH that was inherited, holds none for us."""
    try:
        return all((bin_dir / name).exists() for name in _NEEDED)
    except PermissionError:
        return False


def _version_of(pg_dump: Path) -> str:
    try:
        said = process.output([pg_dump, "--version"], env=process.environment())
    except (OSError, process.ChildFailed) as error:
        said = f"asking {pg_dump} for its version failed: {error}"
        if isinstance(error, process.ChildFailed) and error.status < 0:  # nothing is wrong with it
            raise BackupDagError(
                said, hint="see who killed it (dmesg, for want of memory?); try again"
            ) from None
        raise ConfigurationError(said, hint="mend or remove that installation") from error
    match = re.search(r"\) (\d+[\w.]*)", said)
    return match.group(1) if match else "0"
