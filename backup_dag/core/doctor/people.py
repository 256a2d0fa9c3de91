"""Who is told of trouble, and whether they can be."""

from collections.abc import Iterator
from datetime import UTC, datetime

from backup_dag.core.doctor.finding import Finding, ok, warn
from backup_dag.core.errors import ConfigurationError, DeliveryFailed
from backup_dag.core.settings import Settings
from backup_dag.core.watching.alerts import Alert, deliver_each, heartbeat_host
from backup_dag.core.watching.delivery import receivers
from backup_dag.core.watching.telling import waiting


def waiting_alerts(settings: Settings) -> Iterator[Finding]:
    """Alerts that have not reached everybody."""
    for said in waiting(settings):
        yield warn("alerts", said, "it is tried again at the next look; --send-test-alert says what is wrong")


def told_of_trouble(settings: Settings, *, send_test_alert: bool) -> Iterator[Finding]:
    """Who is told when something fails, and whether they can be."""
    everyone = receivers(settings)
    if not everyone:
        advice = "set BACKUP_NOTIFY_EMAIL with BACKUP_SMTP_HOST, or BACKUP_NOTIFY_URLS"
        yield warn("alerts", "nobody is told when a backup fails or is missing", advice)
    for each in everyone:
        if each.fault:
            advice = "see BACKUP_NOTIFY_… and BACKUP_SMTP_… in .env.example"
            said = f"{each.name} cannot be told: {each.fault}"
            yield Finding("fail", "alerts", said, advice, ConfigurationError.exit_code)
    if well := [each.name for each in everyone if not each.fault]:
        yield ok("alerts", f"told of trouble: {'; '.join(well)}")
    if send_test_alert:
        yield from _test_alert(settings)


def _test_alert(settings: Settings) -> Iterator[Finding]:
    happened = "This is a test: whoever reads it would be told of a backup that failed."
    alert = Alert("test", None, happened, datetime.now(UTC), advice="nothing")
    for outcome in deliver_each(settings, alert):
        name = outcome.receiver.name
        if outcome.reason:
            advice = "mend the setting, or the server, and send it again"
            said = f"{name} did not get it: {outcome.reason}"
            yield Finding("fail", "test alert", said, advice, DeliveryFailed.exit_code)
        else:
            yield ok("test alert", f"{name} took it; see whether it arrived")


def heartbeat(settings: Settings) -> Iterator[Finding]:
    """Whether a dead man's switch is set. Raises ConfigurationError."""
    host = heartbeat_host(settings)
    said = f"{host} hears of each verified off-site backup" if host else "no BACKUP_HEARTBEAT_URL is set"
    yield ok("heartbeat", said)
