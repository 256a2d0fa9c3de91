"""How things look in a terminal: results on stdout, everything else on stderr.

A table for people, one JSON document for programs; a progress bar where someone is looking, plain
lines otherwise.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import click

from backup_dag.core.in_words import length
from backup_dag.core.stream import Observer, Passed, every

_SECONDS_BETWEEN_LINES = 5
_WIDTH_OF_A_FILE = 200


def open_what_is_closed() -> None:
    """Where we were started with stdin, stdout or stderr closed: else the next file that is opened, a
    backup's, would take its number, and what is said would go there."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def say(text: str = "") -> None:
    """A line for people, on stderr."""
    with suppress(OSError):  # there is nobody left to tell
        click.echo(_printable(text), err=True)


def show(text: str = "") -> None:
    """A line of the result, on stdout. That it cannot be written must not keep a backup from its copy."""
    global unwritten
    try:
        click.echo(_printable(text))
    except BrokenPipeError:  # whoever reads has read enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        unwritten = unwritten or error.strerror or str(error)


unwritten = ""
"""Why a line of the result could not be written, if one could not."""


def one_line(text: str) -> str:
    """Text that came from elsewhere, with whatever would move the cursor written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def document(content: Any) -> None:
    """The result as one JSON document."""
    show(json.dumps(content, indent=2, default=str))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table, as wide as its content: an id cut short would be no id."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        last = column == columns[-1]  # the one that may take several lines where the terminal is narrow
        drawn.add_column(column, justify="right" if column in right else "left", no_wrap=not last)
    for row in rows:
        drawn.add_row(*row)
    width = None if sys.stdout.isatty() else _WIDTH_OF_A_FILE
    Console(highlight=False, emoji=False, markup=False, width=width).print(drawn)


@contextmanager
def progress(what: str) -> Iterator[Observer]:
    """An observer that shows itself: a bar on a terminal, else a line every few seconds."""
    if not sys.stderr.isatty():
        yield every(_SECONDS_BETWEEN_LINES, lambda passed: say(f"{what}: {passed}"))
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def observe(passed: Passed) -> None:
            total = max(passed.expected, passed.done) if passed.expected else None
            bar.update(task, completed=passed.done, total=total)

        yield observe


def next_progress(bars: ExitStack, what: str) -> Observer:
    """The next step's bar, in place of the last one's."""
    bars.close()
    return bars.enter_context(progress(what))


def age(moment: datetime) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    return "in the future" if seconds < 0 else f"{length(seconds)} ago"
