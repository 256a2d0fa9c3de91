"""Runs a verb; every way it can end has its exit code."""

import signal
import sys
import traceback
from types import FrameType

import click

from backup_dag import terminal
from backup_dag.cli import (  # noqa: F401
    backup,
    cleanup,
    doctor,
    drill,
    listing,
    metrics,
    rekey,
    restore,
    status,
    verify,
    watch,
)
from backup_dag.cli.group import Told, cli, error_document
from backup_dag.core.errors import INTERRUPTED, BackupDagError
from backup_dag.core.private import shut_others_out


def main() -> None:
    """Runs a verb; every way it can end has its exit code."""
    terminal.open_what_is_closed()
    shut_others_out()
    signal.signal(signal.SIGTERM, _interrupt)
    for number in (signal.SIGINT, signal.SIGHUP):  # that a shell, or nohup, may have us ignore
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        code = cli.main(standalone_mode=False) or 0
        _hear_no_more()
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
    _hear_no_more()
    if "--json" in sys.argv and not isinstance(error, Told):
        terminal.document(error_document(error))
    terminal.say(f"error: {error}")
    sys.exit(error.exit_code)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    _hear_no_more()  # the first is enough: we are tidying up
    raise KeyboardInterrupt


def _hear_no_more() -> None:
    """It is over, and ends in its own way, whoever asks now."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
