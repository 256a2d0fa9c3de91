"""backup-dag doctor."""

import sys

import click

from backup_dag import terminal
from backup_dag.cli.group import EPILOG, as_json, cli


@cli.command(epilog=EPILOG)
@click.option(
    "--send-test-alert", is_flag=True, help="Tell everyone who is told of trouble that it is a test."
)
@as_json
def doctor(send_test_alert: bool, as_json: bool) -> None:
    """Look at everything a backup needs, and say what is missing and what to do."""
    from backup_dag.core.doctor.examine import examine

    findings = []
    for finding in examine(send_test_alert=send_test_alert):
        findings.append(finding)
        if not as_json:
            terminal.show(f"{finding.verdict:<4}  {finding.what}: {finding.found}")
            if finding.advice:
                terminal.show(f"        → {finding.advice}")
    if as_json:
        terminal.document([finding.__dict__ for finding in findings])
    if worst := max((finding.exit_code for finding in findings), default=0):
        sys.exit(worst)
