"""Alerts and the heartbeat, against real servers on loopback: well, refusing, silent, and gone."""

import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from apprise import NotifyBase
from pydantic import SecretStr

from backup_dag.core import stall
from backup_dag.core.audit import entries
from backup_dag.core.catalog import Catalog, open_stores
from backup_dag.core.errors import ConfigurationError, DeliveryFailed
from backup_dag.core.manifest import Check, Level
from backup_dag.core.settings import Settings
from backup_dag.core.store.local import LocalStore
from backup_dag.core.verify import record
from backup_dag.core.watching import alerts, delivery
from backup_dag.core.watching.alerts import Alert, deliver, heartbeat, protection
from demo.servers import free_port
from tests.conftest import KEY, Here, Terminal
from tests.core.made import NOON, lay_out, manifest
from tests.web import Web

USER, PASSWORD = "ops@example.com", "p:ss/w@rd %41?&#+=,\"'"
TOKEN = "s3cr3t-token-of-a-service"
ALERT = Alert(
    kind="overdue",
    database="shop",
    happened="The newest good backup is 31 hours old; 24 are allowed.",
    since=datetime(2026, 3, 14, 2, 0, tzinfo=UTC),
    protection="backup_shop_20260313_020000, 31 hours old, in local and s3, not verified",
    advice="see why: backup-dag doctor\nthen: backup-dag backup --database shop",
    link="http://127.0.0.1:3000/runs/1",
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No courtesy between tries: the servers are ours."""
    monkeypatch.setattr(NotifyBase, "request_rate_per_sec", 0)
    monkeypatch.setattr(delivery, "_SECONDS_BETWEEN", 0.05)


@dataclass
class Mailbox:
    """A mail server's handler: what arrived, and how it answers."""

    refuse: str = ""
    mails: list[tuple[list[str], EmailMessage]] = field(default_factory=list)
    connections: int = 0

    async def handle_EHLO(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        self.connections += 1
        session.host_name = hostname
        return responses

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.refuse:
            return self.refuse
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        mail = message_from_bytes(envelope.content or b"", policy=policy.default)  # type: ignore[arg-type]
        assert isinstance(mail, EmailMessage)
        self.mails.append((envelope.rcpt_tos, mail))
        return "250 OK"


@contextmanager
def mail_server(box: Mailbox, **options: Any) -> Iterator[int]:
    """Its port, while it runs."""
    controller = Controller(box, hostname="127.0.0.1", port=free_port(), **options)
    controller.start()
    try:
        yield controller.port
    finally:
        controller.stop()


def may_log_in(server: SMTP, session: Session, envelope: Envelope, how: str, login: Any) -> AuthResult:
    assert isinstance(login, LoginPassword)
    right = (login.login.decode(), login.password.decode()) == (USER, PASSWORD)
    return AuthResult(success=right, handled=right)


@pytest.fixture(scope="session")
def certificate(ground: Path) -> Path:
    """A self-made certificate of 127.0.0.1, and its key, in one file."""
    path = ground / "cert.pem"
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=127.0.0.1",
    ]
    made = [*words, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", ground / "key.pem", "-out", path]
    subprocess.run([str(word) for word in made], check=True, capture_output=True)
    path.write_text(path.read_text() + (ground / "key.pem").read_text())
    return path


def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


def by_mail(settings: Settings, port: int, **changed: Any) -> Settings:
    return settings.model_copy(
        update={
            "backup_notify_email": ("ops@example.com",),
            "backup_smtp_host": "127.0.0.1",
            "backup_smtp_port": port,
            "backup_smtp_security": "none",
            "backup_smtp_from": "backup@example.com",
            **changed,
        }
    )


def by_urls(settings: Settings, *urls: str) -> Settings:
    return settings.model_copy(update={"backup_notify_urls": tuple(SecretStr(url) for url in urls)})


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts everyone and never says a word."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=20)
    with listening:
        yield listening.getsockname()[1]


@pytest.fixture
def dripping() -> Iterator[int]:
    """The port of a server that begins to greet, a byte at a time, so that no single read is ever late."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=20)
    ending = threading.Event()

    def drip() -> None:
        visitor, _ = listening.accept()
        with visitor:
            while not ending.wait(0.1):
                visitor.sendall(b"2")

    thread = threading.Thread(target=drip)
    thread.start()
    yield listening.getsockname()[1]
    ending.set()
    thread.join()
    listening.close()


# what is said


def test_a_message_says_what_since_when_what_protects_and_what_to_do_in_this_order() -> None:
    assert ALERT.subject == "shop: backup OVERDUE"
    lines = ALERT.body.splitlines()
    assert lines[0] == ALERT.happened
    wanted = ["Since: 2026-03-14 02:00 UTC", f"Still protected by: {ALERT.protection}", "What to do: see why"]
    found = [next(n for n, line in enumerate(lines) if line.startswith(start)) for start in wanted]
    assert found == sorted(found)
    assert ALERT.link in ALERT.body
    assert socket.gethostname() in lines[-1]


def test_a_subject_is_one_line_and_no_login_is_in_a_body() -> None:
    alert = Alert(
        "failed", "shop", "a\nb\r\nBcc: x", NOON, link="https://me:secret@dagster.example.com/runs/1"
    )
    assert "\n" not in alert.subject
    assert alert.body.splitlines()[0] == "a b Bcc: x"
    assert "https://dagster.example.com/runs/1" in alert.body
    assert "secret" not in alert.body


def test_what_protects_is_the_newest_good_backup_and_how_well_it_is_known(settings: Settings) -> None:
    older, damaged = manifest("shop", NOON - timedelta(days=1)), manifest("shop", NOON)
    catalog, store = Catalog(open_stores(settings)), LocalStore(settings.backup_dir)
    assert "NOTHING" in protection(catalog, "shop", NOON)
    for each in (older, damaged):
        lay_out(settings.backup_dir, each)
    (settings.backup_dir / damaged.artifact.name).write_bytes(b"short")
    said = protection(catalog, "shop", NOON + timedelta(hours=7))
    assert said == f"{older.backup}, 31 h old, in local, not verified"
    depths: dict[Level, str] = {"content": "read to its end and found good", "restore": "proven by a restore"}
    for level, words in depths.items():
        record(store, older, Check(level=level, time=NOON, seconds=1, made_by="tests", faults=[]))
        assert protection(catalog, "shop", NOON).endswith(words)


def test_a_store_that_cannot_be_asked_keeps_no_alert_from_being_written(settings: Settings) -> None:
    settings.backup_dir.mkdir()
    settings.backup_dir.chmod(0)
    not_a_folder = settings.backup_dir.parent / "file"
    not_a_folder.write_text("")
    said = protection(Catalog([LocalStore(not_a_folder)]), "shop", NOON)
    assert said.startswith("unknown, since the backups could not be looked at: listing")


# by mail


def test_a_mail_arrives_as_plain_text(settings: Settings) -> None:
    box = Mailbox()
    with mail_server(box) as port:
        told = deliver(by_mail(settings, port), ALERT)
    [(to, mail)] = box.mails
    assert told == (f"mail to ops@example.com by 127.0.0.1:{port}",)
    assert (to, mail["To"], mail["From"]) == (["ops@example.com"], "ops@example.com", "backup@example.com")
    assert mail["Subject"] == ALERT.subject
    assert mail.get_content_type() == "text/plain"
    assert mail.get_content().replace("\r\n", "\n").strip() == ALERT.body


def test_by_starttls_with_a_login_of_every_special_character(
    settings: Settings, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate is our own; SSL_CERT_FILE has it trusted, as OpenSSL's programs know it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    box = Mailbox()
    login = {"backup_smtp_user": USER, "backup_smtp_password": SecretStr(PASSWORD)}
    options = {"authenticator": may_log_in, "auth_required": True}
    with mail_server(box, tls_context=tls(certificate), require_starttls=True, **options) as port:
        deliver(by_mail(settings, port, backup_smtp_security="starttls", **login), ALERT)
    assert len(box.mails) == 1


def test_by_tls_from_the_start(
    settings: Settings, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    box = Mailbox()
    with mail_server(box, ssl_context=tls(certificate)) as port:
        deliver(by_mail(settings, port, backup_smtp_security="ssl"), ALERT)
    assert len(box.mails) == 1


def test_a_server_with_a_certificate_that_nobody_vouches_for_gets_no_mail(
    settings: Settings, certificate: Path
) -> None:
    box = Mailbox()
    with (
        mail_server(box, tls_context=tls(certificate)) as port,
        pytest.raises(DeliveryFailed, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        deliver(by_mail(settings, port, backup_smtp_security="starttls"), ALERT)
    assert box.mails == []


def test_a_server_without_starttls_gets_neither_mail_nor_password(settings: Settings) -> None:
    box = Mailbox()
    login = {"backup_smtp_user": USER, "backup_smtp_password": SecretStr(PASSWORD)}
    with (
        mail_server(box) as port,
        pytest.raises(DeliveryFailed, match="STARTTLS extension not supported"),
    ):
        deliver(by_mail(settings, port, backup_smtp_security="starttls", **login), ALERT)
    assert box.mails == []


@pytest.mark.filterwarnings("ignore:Requiring AUTH")  # it is loopback
def test_a_wrong_password_is_told_in_the_servers_words_and_not_shown(settings: Settings) -> None:
    box = Mailbox()
    login = {"backup_smtp_user": USER, "backup_smtp_password": SecretStr("wrong password")}
    options = {"authenticator": may_log_in, "auth_required": True, "auth_require_tls": False}
    with mail_server(box, **options) as port, pytest.raises(DeliveryFailed) as failed:
        deliver(by_mail(settings, port, **login), ALERT)
    assert "535" in failed.value.message
    assert "Authentication credentials invalid" in failed.value.message
    assert "wrong password" not in str(failed.value)


def test_a_login_that_smtp_cannot_carry_is_told_before_anyone_is_asked(settings: Settings) -> None:
    login = {"backup_smtp_user": USER, "backup_smtp_password": SecretStr("größe")}
    with pytest.raises(
        DeliveryFailed, match="BACKUP_SMTP_PASSWORD holds a character outside of ASCII"
    ) as failed:
        deliver(by_mail(settings, free_port(), **login), ALERT)
    assert "größe" not in str(failed.value)


def test_a_receiver_that_is_refused_is_told_and_the_next_gets_the_mail(settings: Settings) -> None:
    """Each by itself; and what the server said is what the error says, after every try."""
    refusing, taking = Mailbox(refuse="550 no such user here"), Mailbox()
    with mail_server(refusing) as first, mail_server(taking) as second:
        ours = by_mail(settings, first)
        ours = by_urls(ours, f"mailto://127.0.0.1:{second}/?from=a@example.com&to=b@example.com")
        with pytest.raises(DeliveryFailed) as failed:
            deliver(ours, ALERT)
    assert "reached 1 of 2 receivers" in failed.value.message
    assert f"mail to ops@example.com by 127.0.0.1:{first}: " in failed.value.message
    assert "no such user here" in failed.value.message
    assert failed.value.retryable
    assert refusing.connections == 3
    assert len(taking.mails) == 1


def test_two_addresses_get_a_mail_each(settings: Settings) -> None:
    box = Mailbox()
    with mail_server(box) as port:
        deliver(by_mail(settings, port, backup_notify_email=("a@example.com", "b@example.com")), ALERT)
    assert sorted(to for to, _ in box.mails) == [["a@example.com"], ["b@example.com"]]


def test_a_server_that_is_down_is_told_as_the_system_says_it(settings: Settings) -> None:
    with pytest.raises(DeliveryFailed, match="Connection refused"):
        deliver(by_mail(settings, free_port()), ALERT)


def test_a_server_that_accepts_and_never_answers_is_not_waited_for_long(
    settings: Settings, silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_SECONDS_TO_ANSWER", 0.3)
    began = time.monotonic()
    with pytest.raises(DeliveryFailed, match="timed out"):
        deliver(by_mail(settings, silent), ALERT)
    assert time.monotonic() - began < 5


def test_a_server_that_answers_a_byte_now_and_then_is_given_up(
    settings: Settings, dripping: int, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No read is ever late there, so the whole has its own end; and others are told meanwhile."""
    monkeypatch.setattr(delivery, "SECONDS_IN_ALL", 1.5)
    began = time.monotonic()
    with pytest.raises(DeliveryFailed, match=r"reached 1 of 2 receivers: .* no end of it within"):
        deliver(by_urls(by_mail(settings, dripping), f"json://127.0.0.1:{web.port}/"), ALERT)
    assert time.monotonic() - began < 5
    assert len(web.requests) == 1


def test_it_is_waited_for_no_longer_than_for_all_else(
    settings: Settings, dripping: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BACKUP_STALL_SECONDS, where that is the shorter time."""
    monkeypatch.setattr(stall, "_limit", 1.0)
    began = time.monotonic()
    with pytest.raises(DeliveryFailed, match="no end of it within 1 s"):
        deliver(by_mail(settings, dripping), ALERT)
    assert time.monotonic() - began < 5


# by other services


def test_a_service_gets_title_and_text(settings: Settings, web: Web) -> None:
    told = deliver(by_urls(settings, f"json://me:pw@127.0.0.1:{web.port}/{TOKEN}"), ALERT)
    [(path, headers, body)] = web.requests
    assert told == ("no. 1 of BACKUP_NOTIFY_URLS (json://127.0.0.1)",)
    assert path == f"/{TOKEN}"
    assert headers["Authorization"].startswith("Basic ")
    said = json.loads(body)
    assert (said["title"], said["message"], said["type"]) == (ALERT.subject, ALERT.body, "failure")


def test_a_service_that_recovers_is_reached_by_trying_again(settings: Settings, web: Web) -> None:
    web.answers = [503, 500, 200]
    assert deliver(by_urls(settings, f"json://127.0.0.1:{web.port}/"), ALERT)
    assert len(web.requests) == 3


def test_what_a_service_said_is_told_without_the_secrets_in_it(settings: Settings, web: Web) -> None:
    """The server quotes the token in its answer, as real ones do."""
    web.answers = [403]
    url = f"json://me:{TOKEN}-2@127.0.0.1:{web.port}/{TOKEN}?-key={TOKEN}-3"
    with pytest.raises(DeliveryFailed) as failed:
        deliver(by_urls(settings, url), ALERT)
    assert "403" in failed.value.message
    assert "no: " in failed.value.message
    assert TOKEN not in str(failed.value)


def test_a_service_that_is_down_is_told_without_its_address(settings: Settings) -> None:
    with pytest.raises(DeliveryFailed) as failed:
        deliver(by_urls(settings, f"json://127.0.0.1:{free_port()}/{TOKEN}/x?-k=tok"), ALERT)
    assert "Connection refused" in failed.value.message
    assert TOKEN not in str(failed.value)
    assert "tok" not in str(failed.value)


def test_an_address_that_is_none_is_told_by_its_place_and_the_others_are_told(
    settings: Settings, web: Web
) -> None:
    with pytest.raises(DeliveryFailed) as failed:
        deliver(by_urls(settings, f"nonsense://{TOKEN}", f"json://127.0.0.1:{web.port}/"), ALERT)
    assert "no. 1 of BACKUP_NOTIFY_URLS: it is no address that Apprise knows" in failed.value.message
    assert TOKEN not in str(failed.value)
    assert len(web.requests) == 1


def test_where_nobody_is_told_that_is_said_and_is_no_error(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    assert deliver(settings, ALERT) == ()
    assert "nobody is set to be told of this: shop: backup OVERDUE" in caplog.text


def test_each_alert_is_in_the_audit_log_with_whom_it_reached(settings: Settings, web: Web) -> None:
    ours = by_urls(settings, f"json://127.0.0.1:{web.port}/{TOKEN}")
    deliver(ours, ALERT)
    web.answers = [500]
    with pytest.raises(DeliveryFailed):
        deliver(ours, ALERT)
    well, ill = entries(settings.backup_dir)
    assert (well.what, well.database, well.outcome) == ("alert", "shop", "done")
    assert well.details["told"] == ["no. 1 of BACKUP_NOTIFY_URLS (json://127.0.0.1)"]
    assert (ill.outcome, ill.details["told"]) == ("failed", [])
    assert TOKEN not in (settings.backup_dir / ".audit/audit.jsonl").read_text()


# the heartbeat


def beating(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"backup_heartbeat_url": SecretStr(url)})


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "_SECONDS_BETWEEN_PINGS", 0.05)


def test_a_heartbeat_is_a_get_of_each_databases_address(settings: Settings, web: Web) -> None:
    heartbeat(settings, "shop")  # nothing is set, nothing is done
    heartbeat(beating(settings, f"http://127.0.0.1:{web.port}/{TOKEN}-{{database}}"), "shop")
    assert [path for path, _, _ in web.requests] == [f"/{TOKEN}-shop"]


@pytest.mark.usefixtures("_soon")
def test_a_heartbeat_is_tried_again_where_that_can_help(settings: Settings, web: Web) -> None:
    web.answers = [500, 200]
    heartbeat(beating(settings, f"http://127.0.0.1:{web.port}/{TOKEN}"), "shop")
    assert len(web.requests) == 2


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize(("code", "tries"), [(404, 1), (302, 1), (503, 3)])
def test_an_answer_that_is_not_well_is_told_by_the_host_alone(
    settings: Settings, web: Web, code: int, tries: int
) -> None:
    """A redirect is not followed: whoever it leads to would learn the address."""
    web.answers = [code]
    with pytest.raises(DeliveryFailed, match=rf"127.0.0.1:{web.port}: HTTP {code}") as failed:
        heartbeat(beating(settings, f"http://127.0.0.1:{web.port}/{TOKEN}"), "shop")
    assert len(web.requests) == tries
    assert TOKEN not in str(failed.value)


@pytest.mark.usefixtures("_soon")
def test_a_heartbeat_that_nobody_takes_is_told_without_its_address(settings: Settings) -> None:
    with pytest.raises(DeliveryFailed, match="Connection refused") as failed:
        heartbeat(beating(settings, f"http://127.0.0.1:{free_port()}/{TOKEN}"), "shop")
    assert TOKEN not in str(failed.value)


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("server", ["silent", "dripping"])
def test_a_heartbeat_waits_for_no_silent_server(
    settings: Settings, server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "_TIMEOUT", (0.3, 0.3))
    monkeypatch.setattr(delivery, "SECONDS_IN_ALL", 1.5)
    began, port = time.monotonic(), request.getfixturevalue(server)
    with pytest.raises(DeliveryFailed):
        heartbeat(beating(settings, f"http://127.0.0.1:{port}/{TOKEN}"), "shop")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("url", ["ftp://x/y", "no address", "http://[", "http:///x"])
def test_a_heartbeat_address_that_is_none_is_a_setting_to_mend(settings: Settings, url: str) -> None:
    with pytest.raises(ConfigurationError, match="BACKUP_HEARTBEAT_URL is not an http"):
        heartbeat(beating(settings, url), "shop")


# in the doctor's words


Look = Callable[..., tuple[int, str]]


@pytest.fixture
def look(here: Here, terminal: Callable[[str], Terminal], sample: str) -> Look:
    """`backup-dag doctor`: its exit code, and what it shows."""

    def run(*words: str, **changed: str) -> tuple[int, str]:
        ended = here(terminal(sample), "doctor", *words, **changed)
        assert KEY not in ended.stdout + ended.stderr
        return ended.returncode, ended.stdout

    return run


def test_the_doctor_says_who_is_told_and_warns_where_nobody_is(look: Look) -> None:
    code, said = look()
    assert code == 0
    assert "warn  alerts: nobody is told when a backup fails" in said
    url = f"slack://T1JJ3T3L2/A1BRTD4JD/{TOKEN.replace('-', '')}"
    code, said = look(BACKUP_NOTIFY_URLS=url, BACKUP_HEARTBEAT_URL=f"https://hc.example.com/{TOKEN}")
    assert code == 0
    assert "ok    alerts: told of trouble: no. 1 of BACKUP_NOTIFY_URLS (Slack)" in said
    assert "ok    heartbeat: hc.example.com" in said
    assert TOKEN not in said
    assert "T1JJ3T3L2" not in said


def test_the_doctor_finds_what_is_wrong_with_who_is_told(look: Look) -> None:
    code, said = look(BACKUP_NOTIFY_EMAIL="a@example.com", BACKUP_NOTIFY_URLS=f"nonsense://{TOKEN}")
    assert code == 3
    assert "fail  alerts: mail to a@example.com cannot be told: BACKUP_SMTP_HOST is not set" in said
    assert "fail  alerts: no. 1 of BACKUP_NOTIFY_URLS cannot be told" in said
    code, said = look(BACKUP_NOTIFY_EMAIL="nobody", BACKUP_SMTP_HOST="h", BACKUP_SMTP_FROM="a@example.com")
    assert code == 3
    assert "no. 1 of BACKUP_NOTIFY_EMAIL is no mail address" in said


def test_a_test_alert_goes_to_each_and_shows_what_became_of_it(look: Look, web: Web) -> None:
    well, gone = f"json://127.0.0.1:{web.port}/", f"json://127.0.0.1:{free_port()}/{TOKEN}"
    code, said = look("--send-test-alert", BACKUP_NOTIFY_URLS=well)
    assert code == 0
    assert json.loads(web.requests[0][2])["title"] == "backups: a test, no trouble"
    code, said = look("--send-test-alert", BACKUP_NOTIFY_URLS=f"{well},{gone}")
    assert code == 1
    assert "ok    test alert: no. 1 of BACKUP_NOTIFY_URLS (json://127.0.0.1) took it" in said
    assert "fail  test alert: no. 2 of BACKUP_NOTIFY_URLS (json://127.0.0.1) did not get it" in said
    assert TOKEN not in said
