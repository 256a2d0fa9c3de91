"""What the verbs share: the group they belong to, options, and errors as documents."""

from collections.abc import Sequence
from typing import Any

import click

from backup_dag import __version__
from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.databases import told_apart
from backup_dag.core.errors import EXIT_CODES, BackupDagError, ConfigurationError
from backup_dag.core.settings import Settings

EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
one_database = click.option("--database", metavar="NAME", help="Which of the configured databases.")


@click.group(context_settings=_HELP, epilog=EPILOG)
@click.version_option(__version__, prog_name="backup-dag")
def cli() -> None:
    """PostgreSQL backups that come back: encrypted, checksummed, off-site.

    Settings come from the environment, or from .env in this folder; see .env.example.
    BACKUP is an id, `latest`, `latest-proven`, a path, or an s3:// address.
    """


def say_what_was_missed(missed: Sequence[BackupDagError]) -> None:
    """Ends with the first error, all told: what was shown is not all there may be."""
    if missed:
        raise Told(missed[0].exit_code, missed[0].message, hint=missed[0].hint)


class Told(BackupDagError):
    """An error whose verb has put its one JSON document out already."""

    def __init__(self, exit_code: int, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def error_document(error: BackupDagError) -> dict[str, Any]:
    return {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}


def databases_meant(settings: Settings) -> tuple[list[str | None], dict[str, BackupDagError]]:
    """The configured databases, and why DATABASE_URL says none, if it does: for the others a name is enough.
    Where none is configured, on a server with nothing but backups, those that there are."""
    try:
        usable, faults = told_apart(settings)
    except ConfigurationError:
        found = Catalog(open_stores(settings)).survey()
        return list(dict.fromkeys(backup.database for backup in found.ids)) or [None], {}
    names = [*(each.name for each in usable), *(name for name in faults if name != "DATABASE_URL")]
    return list(names), {name: each for name, each in faults.items() if name == "DATABASE_URL"}
