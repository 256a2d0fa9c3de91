"""What people are told, and that they were: alerts, and the ping whose absence is one.

Someone reads an alert at night, on a phone. So it says what happened, since when, what still protects
them, and what to do, in this order, in plain text. It never holds a secret.
"""

import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Literal
from urllib.parse import quote, urlsplit

from tenacity import (
    RetryError,
    Retrying,
    retry_if_result,
    stop_after_attempt,
    wait_exponential,
)

from backup_dag import __version__
from backup_dag.core import journal
from backup_dag.core.audit import audited
from backup_dag.core.catalog import Catalog
from backup_dag.core.copies import Backup
from backup_dag.core.errors import BackupDagError, ConfigurationError, DeliveryFailed
from backup_dag.core.in_words import length
from backup_dag.core.settings import Settings
from backup_dag.core.watching.delivery import Call, Message, Outcome, receivers, tell

Kind = Literal[
    "failed",
    "overdue",
    "missed",
    "unverified",
    "damaged",
    "unusable",
    "unproven",
    "own check",
    "drill broke",
    "drill overdue",
    "unopened",
    "unfinished",
    "not off-site",
    "out of reach",
    "size",
    "not cleaned",
    "ahead",
    "recovered",
    "digest",
    "test",
]
_HEADLINES: dict[Kind, str] = {
    "failed": "FAILED",
    "overdue": "backup OVERDUE",
    "missed": "a night was MISSED",
    "unverified": "the latest backup is NOT VERIFIED",
    "damaged": "a backup is DAMAGED",
    "unusable": "a copy CANNOT BE USED",
    "unproven": "a backup is NOT PROVEN",
    "own check": "a check of your own FAILED",
    "drill broke": "a drill BROKE",
    "drill overdue": "no backup was PROVEN lately",
    "unopened": "backups CANNOT BE OPENED here",
    "unfinished": "a rekey is UNFINISHED",
    "not off-site": "the latest backup is NOT OFF-SITE",
    "out of reach": "a place of backups is OUT OF REACH",
    "size": "a backup's SIZE is out of line",
    "not cleaned": "nothing was CLEANED UP",
    "ahead": "a backup is DATED IN THE FUTURE",
    "recovered": "RECOVERED",
    "digest": "summary",
    "test": "a test, no trouble",
}
_MOODS: dict[Kind, Literal["info", "success"]] = {"recovered": "success", "digest": "info", "test": "info"}
_MOST_LOOKED_AT = 20  # backups, for the newest good one
_PINGS, _SECONDS_BETWEEN_PINGS = 3, 2.0
_TIMEOUT = (5.0, 8.0)  # seconds to connect, and between bytes


@dataclass(frozen=True)
class Alert:
    """What somebody is told. `happened` is one line; `protection` and `advice` may be several.

    `since` is when it began; `protection` what a restore would bring back (see there); `link` leads to
    more, or is "".
    """

    kind: Kind
    database: str | None
    happened: str
    since: datetime
    protection: str = ""
    advice: str = ""
    link: str = ""

    @property
    def subject(self) -> str:
        """One line that tells the case apart from others without being opened."""
        return _one_line(f"{self.database or 'backups'}: {_HEADLINES[self.kind]}")

    @property
    def body(self) -> str:
        """Plain text, for a mail as for a chat."""
        said = {
            "Since": f"{self.since.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
            "Still protected by": self.protection,
            "What to do": self.advice,
            "More": self.link,
        }
        lines = [f"{name}: {text.strip()}" for name, text in said.items() if text]
        signed = f"backup-dag {__version__} on {socket.gethostname()}"
        return _without_logins("\n".join([_one_line(self.happened), "", *lines, "", signed]))


def protection(catalog: Catalog, database: str, now: datetime) -> str:
    """What a restore would bring back now: the newest good backup, its age, and where it is.

    Says so where there is none, or where nobody can tell: an alert has to go out all the same.
    """
    try:
        looked_at = islice(catalog.newest_first(database), _MOST_LOOKED_AT)
        good = next((backup for backup in looked_at if backup.good), None)
    except BackupDagError as error:
        return f"unknown, since the backups could not be looked at: {error.message}"
    if good is None:
        return f"NOTHING that is known to be good: see backup-dag list --database {database}"
    places = " and ".join(copy.store.label for copy in good.copies if copy.good)
    said = f"{good.id}, {length(now - good.id.time)} old, in {places}, {_checked(good)}"
    if good.missed:
        said += f" (not looked at: {'; '.join(error.message for error in good.missed)})"
    return said


def deliver(settings: Settings, alert: Alert, but: Collection[str] = ()) -> tuple[str, ...]:
    """Tells everyone; returns whom, without secrets. Where nobody is set to be told, says so, and returns ().

    `but` are the names of receivers that are left out: they have it already, or are known to be down.
    Takes SECONDS_IN_ALL at the longest, or a little more.

    Raises:
        DeliveryFailed: somebody could not be told, and why; everyone else was.
    """
    with audited(settings.backup_dir, "alert", alert.database, kind=alert.kind) as entry:
        outcomes = deliver_each(settings, alert, but)
        told = tuple(each.receiver.name for each in outcomes if not each.reason)
        entry.done(subject=alert.subject, told=told)
        if not outcomes and not but:
            journal.say(f"nobody is set to be told of this: {alert.subject} ({_one_line(alert.happened)})")
        if lost := [f"{each.receiver.name}: {each.reason}" for each in outcomes if each.reason]:
            raise DeliveryFailed(
                f"the alert {alert.subject!r} reached {len(told)} of {len(outcomes)} receivers:"
                f" {'; '.join(lost)}",
                hint="mend it, and try it with backup-dag doctor --send-test-alert",
                told=told,
            )
    return told


def deliver_each(settings: Settings, alert: Alert, but: Collection[str] = ()) -> list[Outcome]:
    """Tells everyone, and what became of each. Raises nothing for those who were not reached."""
    message = Message(alert.subject, alert.body, _MOODS.get(alert.kind, "failure"))
    return tell([each for each in receivers(settings) if each.name not in but], message)


def heartbeat(settings: Settings, database: str) -> None:
    """Fetches BACKUP_HEARTBEAT_URL, for the service that alarms when nobody does. Does nothing without one.

    Only the address's host is ever shown, and a redirect is not followed: the rest of it is the secret.

    Raises:
        ConfigurationError: it is no http(s) address.
        DeliveryFailed: it was not answered well, after a few times and SECONDS_IN_ALL at the longest.
    """
    if settings.backup_heartbeat_url is None:
        return
    url = settings.backup_heartbeat_url.get_secret_value().replace("{database}", quote(database, safe=""))
    host = heartbeat_host(settings)
    if reason := Call(lambda: _pinged(url)).outcome():
        raise DeliveryFailed(
            f"the heartbeat of {database} did not reach {host}: {reason}",
            hint="see BACKUP_HEARTBEAT_URL, and the service, which alarms until one arrives",
        )


def heartbeat_host(settings: Settings) -> str | None:
    """Who waits for the heartbeat; None where nobody does. Raises ConfigurationError."""
    if settings.backup_heartbeat_url is None:
        return None
    try:
        parts = urlsplit(settings.backup_heartbeat_url.get_secret_value())
        if parts.scheme in ("http", "https") and parts.hostname:
            return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    except ValueError:
        pass
    raise ConfigurationError(
        "BACKUP_HEARTBEAT_URL is not an http:// or https:// address",
        hint="copy it from the service that waits for the heartbeat",
    )


def _pinged(url: str) -> str:
    """ "", or why it was not answered well."""
    tries = Retrying(
        stop=stop_after_attempt(_PINGS),
        wait=wait_exponential(_SECONDS_BETWEEN_PINGS, max=10),
        retry=retry_if_result(lambda said: bool(said) and not re.match("HTTP [34]", said)),
    )
    try:
        return str(tries(_ping, url))
    except RetryError as last:
        return str(last.last_attempt.result())


def _ping(url: str) -> str:
    import requests

    try:
        with requests.get(url, timeout=_TIMEOUT, allow_redirects=False, stream=True) as answer:
            if answer.is_redirect:
                return f"HTTP {answer.status_code}, a redirect, which is not followed"
            return "" if answer.ok else f"HTTP {answer.status_code}"
    except requests.RequestException as error:  # its text quotes the address
        return _system_says(error) or f"{type(error).__name__}"


def _system_says(error: BaseException | None) -> str:
    """The operating system's words at the bottom of a library's error; "" where there are none."""
    said = ""
    while error is not None:
        said = (isinstance(error, OSError) and error.strerror) or said
        error = error.__cause__ or error.__context__
    return str(said)


def _checked(backup: Backup) -> str:
    if backup.proven:
        return "proven by a restore"
    read = any(copy.read_to_its_end for copy in backup.copies)
    return "read to its end and found good" if read else "not verified"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _without_logins(text: str) -> str:
    """Addresses that someone wrote a user and password into."""
    return re.sub(r"(\w://)[^/\s@]+@", r"\1", text)
