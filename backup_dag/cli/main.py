"""Runs a verb; every way it can end has its exit code."""

import signal
import sys
import traceback
from types import FrameType

import click

from backup_dag import terminal
from backup_dag.cli import backup, cleanup, doctor, listing, metrics, restore, verify, watch  # noqa: F401
from backup_dag.cli.group import Told, cli, error_document
from backup_dag.core.errors import INTERRUPTED, BackupDagError


def main() -> None:
    """Runs a verb; every way it can end has its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup's
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        code = cli.main(standalone_mode=False) or 0
        if terminal.unwritten:
            raise BackupDagError(
                f"it is done, but writing the result to stdout failed: {terminal.unwritten}",
                hint="backup-dag list shows what there is",
            )
        sys.exit(code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BackupDagError as error:
        _end(error)
    except (KeyboardInterrupt, click.Abort):
        interrupted = BackupDagError("interrupted; nothing half-made was left behind")
        interrupted.exit_code = INTERRUPTED
        _end(interrupted)
    except Exception as error:
        traceback.print_exc()
        _end(BackupDagError(f"unexpected: {type(error).__name__}", hint="report it with the lines above"))


def _end(error: BackupDagError) -> None:
    if "--json" in sys.argv and not isinstance(error, Told):
        terminal.document(error_document(error))
    terminal.say(f"error: {error}")
    sys.exit(error.exit_code)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the first is enough: we are tidying up
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
