"""Messages to people, through Apprise: by mail, and by every service that it has an address for.

Apprise keeps to itself why a message did not arrive, and only logs it; we take that from its log. No address
of a service is ever shown, since it is mostly made of secrets. The only room that knows Apprise.
"""

import logging
import re
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote

from pydantic import SecretStr

from backup_dag.core.settings import Settings
from backup_dag.core.stall import allowed

if TYPE_CHECKING:
    from apprise import AppriseAsset, NotifyBase

SECONDS_IN_ALL = 30.0  # for all receivers together: Dagster gives a sensor 60
_SECONDS_TO_ANSWER = 8.0  # on each socket of ours; an address may say otherwise (?cto=, ?rto=)
_RETRIES = 2
_SECONDS_BETWEEN = 2.0
_LONGEST_REASON = 400  # characters
_MODES = {"starttls": "starttls", "ssl": "ssl", "none": "insecure"}
_PORTS = {"starttls": 587, "ssl": 465, "none": 25}

# Apprise says what happened among its debug messages, and quotes addresses there. So nobody else hears it.
_log = logging.getLogger("apprise")
_log.addHandler(logging.NullHandler())
_log.setLevel(logging.DEBUG)
_log.propagate = False


@dataclass(frozen=True)
class Receiver:
    """Someone who is told. `name` holds no secret; `fault` is what is wrong with the settings, or ""."""

    name: str
    fault: str = ""
    plugin: "NotifyBase | None" = field(default=None, repr=False, compare=False)
    secrets: tuple[str, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class Message:
    """Plain text, and the colour that a chat gives it."""

    title: str
    body: str
    mood: Literal["info", "success", "failure"]


@dataclass(frozen=True)
class Outcome:
    """What became of a message to one receiver: `reason` why it did not arrive, "" where it did."""

    receiver: Receiver
    reason: str


def receivers(settings: Settings) -> list[Receiver]:
    """Everyone who is told, those with faults included. Asks no server."""
    mail = [_by_mail(settings, number) for number in range(len(settings.backup_notify_email))]
    return mail + [_by_url(url, number) for number, url in enumerate(settings.backup_notify_urls, 1)]


def tell(to: Sequence[Receiver], message: Message) -> list[Outcome]:
    """Sends to each by itself and all at a time, each a few times; returns within SECONDS_IN_ALL, or within
    BACKUP_STALL_SECONDS where these are fewer, about."""
    calls = [Call(partial(_told, each, message)) for each in to]
    return [Outcome(receiver, call.outcome()) for receiver, call in zip(to, calls, strict=True)]


class Call:
    """Something said to a server, aside: one that answers a byte a minute must not keep us.

    A daemon's thread, since the end of this process must not wait for it either.
    """

    def __init__(self, work: Callable[[], str]) -> None:
        self.result = ""
        self._work = work
        self._seconds = min(SECONDS_IN_ALL, allowed())
        self._deadline = time.monotonic() + self._seconds
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def outcome(self) -> str:
        """What it returned, or that its time is over, which began when it did."""
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        return f"no end of it within {self._seconds:.0f} s" if self._thread.is_alive() else self.result

    def _run(self) -> None:
        try:
            self.result = self._work()
        except Exception as error:  # a library's own trouble: it may quote anything
            self.result = f"unexpected: {type(error).__name__}"


def _by_mail(settings: Settings, number: int) -> Receiver:
    """One address of BACKUP_NOTIFY_EMAIL, by the BACKUP_SMTP_… settings."""
    address, host = settings.backup_notify_email[number], settings.backup_smtp_host
    if not host:
        return Receiver(
            f"mail to {address}", "BACKUP_SMTP_HOST is not set, so there is no server to send it by"
        )
    port = settings.backup_smtp_port or _PORTS[settings.backup_smtp_security]
    user = settings.backup_smtp_user or ""
    password = settings.backup_smtp_password.get_secret_value() if settings.backup_smtp_password else ""
    sender = settings.backup_smtp_from or settings.backup_notify_email[0]
    name = f"mail to {address} by {host}:{port}"
    if not (user + password).isascii():  # smtplib's limit
        return Receiver(name, "BACKUP_SMTP_USER or BACKUP_SMTP_PASSWORD holds a character outside of ASCII")
    plugin = _plugin(
        {
            "schema": "mailto" if settings.backup_smtp_security == "none" else "mailtos",
            "host": host,
            "smtp_host": host,
            "port": port,
            "user": quote(user, safe="") or None,  # Apprise unquotes these two, wherever they come from
            "password": quote(password, safe="") or None,
            "secure_mode": _MODES[settings.backup_smtp_security],
            "from_addr": sender,
            "targets": [address],
            "cto": _SECONDS_TO_ANSWER,
        }
    )
    if plugin is None or not plugin.targets:  # type: ignore[attr-defined]
        which = (
            f"BACKUP_SMTP_FROM ({sender})" if plugin is None else f"no. {number + 1} of BACKUP_NOTIFY_EMAIL"
        )
        return Receiver(name, f"{which} is no mail address")
    return Receiver(name, "", plugin, tuple(_of_login(user, password)))


def _by_url(url: SecretStr, number: int) -> Receiver:
    """One address of BACKUP_NOTIFY_URLS, named by its place, and by its host where that is one."""
    name, text = f"no. {number} of BACKUP_NOTIFY_URLS", url.get_secret_value()
    plugin = _plugin(text)
    if plugin is None:
        return Receiver(name, "it is no address that Apprise knows; see its list of services")
    schema, host = text.partition("://")[0], str(plugin.host or "")
    token = plugin.template_tokens.get("host", {"private": True})
    is_host = not token.get("private") and bool(re.fullmatch(r"localhost|.*[.:].*", host))
    shown = f"{schema}://{host}" if is_host else str(plugin.service_name)
    secrets = [secret for secret in _parts(text) if not (is_host and secret == host)]
    return Receiver(f"{name} ({shown})", "", plugin, tuple(secrets))


def _plugin(address: "str | dict[str, Any]") -> "NotifyBase | None":
    """Apprise's own for an address; None where there is none for it."""
    from apprise import Apprise

    made: NotifyBase | None = Apprise.instantiate(address, asset=_asset(), suppress_exceptions=True)
    return made


def _asset() -> "AppriseAsset":
    """How Apprise does things here: by itself it writes nothing to a disk, and reads nothing into a text."""
    from apprise import AppriseAsset

    return AppriseAsset(
        app_id="Backup DAG",
        app_desc="Backup DAG",
        app_url="",
        storage_mode="memory",
        interpret_emojis=False,
        interpret_escapes=False,
        async_mode=False,
        service_timeout=0,  # we do not wait for it: see Call
        default_service_retry=_RETRIES,
        default_service_wait=_SECONDS_BETWEEN,
    )


def _told(receiver: Receiver, message: Message) -> str:
    """Sends it; "", or why it did not arrive. Apprise tries again itself: it knows whom it has reached."""
    if receiver.plugin is None:
        return receiver.fault
    from apprise import Apprise, NotifyFormat

    by = Apprise(asset=receiver.plugin.asset)
    by.add(receiver.plugin)
    with by.notify(
        body=message.body,
        title=message.title,
        notify_type=message.mood,
        body_format=NotifyFormat.TEXT,
        log_level=logging.DEBUG,
    ) as result:
        if result:
            return ""
        said = [list(attempt.logs) for service in result for attempt in service.attempts]
    reason = "; ".join(dict.fromkeys(_reasons(said[-1]))) if said else ""
    return scrubbed(reason, receiver.secrets)[:_LONGEST_REASON] or "it was not taken, and nothing was said"


def _reasons(entries: Sequence[Any]) -> Iterator[str]:
    """What is worth telling of Apprise's log of an attempt."""
    for entry in entries:
        text = " ".join(entry.message.split())
        if entry.level in ("WARNING", "ERROR"):
            yield text
        elif match := re.match(r"(?:\w+ )?(?:Exception|Response Details): ?(.+)", text):
            yield match[1]


def scrubbed(text: str, secrets: Sequence[str]) -> str:
    """The text without the secrets, and without what libraries quote of addresses."""
    text = re.sub(r"(with url: )\S+", r"\1***", text)
    for secret in sorted(set(secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _parts(url: str) -> Iterator[str]:
    """Whatever in a service's address could be a secret, as it stands there and as it is meant."""
    rest = url.partition("://")[2]
    login = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[0]
    for part in [*login.split(":"), *(part for part in re.split(r"[/:@?&=,#]", rest) if len(part) > 5)]:
        if part:
            yield part
            yield unquote(part)


def _of_login(user: str, password: str) -> Iterator[str]:
    """The password as it is, and as SMTP's AUTH sends it: a server may quote what it does not understand."""
    if password:
        yield password
        yield b64encode(password.encode()).decode()
        yield b64encode(f"\0{user}\0{password}".encode()).decode()
