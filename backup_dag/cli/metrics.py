"""backup-dag metrics."""

from pathlib import Path

import click

from backup_dag import terminal
from backup_dag.cli.group import EPILOG, as_json, cli
from backup_dag.core.settings import load


@cli.command(epilog=EPILOG)
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write them there, whole or not at all: for a node exporter's textfile folder (name it *.prom).",
)
@as_json
def metrics(output: Path | None, as_json: bool) -> None:
    """Print numbers for Prometheus: age and size of the newest backups, counts, durations, failures."""
    from prometheus_client import generate_latest

    from backup_dag.core.watching.metrics import registry, write

    made = registry(load())
    if output is not None:
        write(made, output)
    if as_json:
        terminal.document(
            [
                {"name": sample.name, "labels": sample.labels, "value": sample.value}
                for family in made.collect()
                for sample in family.samples
            ]
        )
    elif output is None:
        terminal.show(generate_latest(made).decode().rstrip("\n"))
