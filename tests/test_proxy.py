"""deploy/nginx before Dagster's pages: requests that somebody else's page could make, or someone without a
login, each refused by a real nginx. Dagster by itself does what the same requests ask."""

import base64
import json
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPMessage, HTTPSConnection
from pathlib import Path
from urllib.parse import quote

import pytest

from demo.servers import free_port
from demo.ui import child
from tests.test_units import DEPLOY

CONFIGURATION = DEPLOY / "nginx" / "backup-dag.conf"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
OURS, THEIRS = "backup.example.org", "evil.example.com"
USER, PASSWORD = "anna", "a login of the pages: 42"
LOGIN = {"Authorization": f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"}

PAUSE = "mutation { setAutoMaterializePaused(paused: true) }"
RESUME = "mutation { setAutoMaterializePaused(paused: false) }"
PAUSED = "{ instance { autoMaterializePaused } }"
JSON = {"Content-Type": "application/json"}
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": "graphql-ws",
}


@dataclass(frozen=True)
class Request:
    """`host` and `origin` as a browser would say them."""

    method: str = "POST"
    path: str = "/graphql"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    host: str = OURS
    origin: str | None = f"https://{OURS}"
    login: Mapping[str, str] = field(default_factory=lambda: LOGIN)

    def all_headers(self) -> dict[str, str]:
        origin = {} if self.origin is None else {"Origin": self.origin}
        return {"Host": self.host, **origin, **self.login, **self.headers}


def graphql(query: str) -> str:
    return json.dumps({"query": query})


IN_THE_ADDRESS = f"/graphql?query={quote(PAUSE)}"
HONEST = Request(
    path="/graphql?op=Pause", headers={**JSON, "Sec-Fetch-Site": "same-origin"}, body=graphql(PAUSE)
)
FORGED = {
    "another page's form": Request(
        path=IN_THE_ADDRESS, headers={"Content-Type": "text/plain"}, origin=f"https://{THEIRS}"
    ),
    "JSON that a browser takes for text": Request(
        headers={"Content-Type": "text/plain; x=application/json"},
        body=graphql(PAUSE),
        origin=f"https://{THEIRS}",
    ),
    "JSON from another page": Request(headers=JSON, body=graphql(PAUSE), origin=f"https://{THEIRS}"),
    "from a page without a name": Request(headers=JSON, body=graphql(PAUSE), origin="null"),
    "from a page that says nothing": Request(headers=JSON, body=graphql(PAUSE), origin=None),
    "from a page of the same site": Request(
        headers={**JSON, "Sec-Fetch-Site": "same-site"}, body=graphql(PAUSE)
    ),
    "from the same name without TLS": Request(headers=JSON, body=graphql(PAUSE), origin=f"http://{OURS}"),
    "a picture's address": Request("GET", IN_THE_ADDRESS, origin=None),
    "a mutation by GET from our own page": Request("GET", IN_THE_ADDRESS),
    "a mutation by GET, written otherwise": Request("GET", IN_THE_ADDRESS.replace("graphql", "%67raphql")),
    "text from our own page": Request(path=IN_THE_ADDRESS, headers={"Content-Type": "text/plain"}),
    "a query behind a name": Request(
        path=IN_THE_ADDRESS.replace("?", "?op=Pause&"), headers={"Content-Type": "text/plain"}
    ),
    "GraphQL as such": Request(headers={"Content-Type": "application/graphql"}, body=PAUSE),
    "another name for this machine": Request(
        headers=JSON, body=graphql(PAUSE), host=THEIRS, origin=f"https://{THEIRS}"
    ),
    "another name, and our origin": Request(headers=JSON, body=graphql(PAUSE), host=THEIRS),
    "nobody": Request(headers=JSON, body=graphql(PAUSE), login={}),
    "a wrong password": Request(
        headers=JSON,
        body=graphql(PAUSE),
        login={"Authorization": f"Basic {base64.b64encode(f'{USER}:guess'.encode()).decode()}"},
    ),
}
REFUSED_WITH = {
    "nobody": 401,
    "a wrong password": 401,
    "another name for this machine": 421,
    "another name, and our origin": 421,
}


@dataclass(frozen=True)
class Pages:
    """Where they are served, and how that is spoken to."""

    port: int
    certificate: Path | None = None

    def answer(self, request: Request) -> tuple[int, HTTPMessage, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        if self.certificate:
            context = ssl.create_default_context(cafile=str(self.certificate))
            context.check_hostname = False
            connection = HTTPSConnection("127.0.0.1", self.port, timeout=20, context=context)
        try:
            connection.request(request.method, request.path, request.body or None, request.all_headers())
            answered = connection.getresponse()
            body = b"" if answered.status == 101 else answered.read()
            return answered.status, answered.headers, body
        finally:
            connection.close()

    def asked(self, query: str) -> str:
        status, _, body = self.answer(Request(headers=JSON, body=graphql(query)))
        assert status == 200, body
        return body.decode()

    @property
    def paused(self) -> bool:
        return "true" in self.asked(PAUSED)


def wait_for(pages: Pages, log: Path) -> None:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        with suppress(OSError):
            pages.answer(Request("GET", "/server_info"))
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def bare(ground: Path) -> Iterator[Pages]:
    """Dagster's own webserver, on loopback as everywhere in deploy/."""
    home = ground / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    pages = Pages(free_port())
    serve = ["dagster-webserver", "--host", "127.0.0.1", "--port", str(pages.port), "--empty-workspace"]
    environment = {**os.environ, "DAGSTER_HOME": str(home)}
    with child(serve, environment, home, home / "webserver.log"):
        wait_for(pages, home / "webserver.log")
        yield pages


def configured(folder: Path, port: int, behind: int) -> Path:
    """The configuration as installed, but for folders and ports."""
    text = CONFIGURATION.read_text()
    for there, here in (
        ("listen [::]:80;", ""),
        ("listen 80;", f"listen 127.0.0.1:{free_port()};"),
        ("listen [::]:443 ssl;", ""),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("127.0.0.1:3000", f"127.0.0.1:{behind}"),
        ("/etc/ssl/backup-dag", str(folder)),
        ("/etc/nginx/backup-dag.htpasswd", f"{folder}/htpasswd"),
    ):
        assert there in text, there
        text = text.replace(there, here)
    (folder / "backup-dag.conf").write_text(text)
    temporary = "".join(
        f"{each}_temp_path {folder}/{each};\n"
        for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    main.write_text(
        f"daemon off;\npid {folder}/nginx.pid;\n{'user root;' if os.geteuid() == 0 else ''}\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}include {folder}/backup-dag.conf;\n}}\n"
    )
    return main


@pytest.fixture(scope="module")
def proxy(bare: Pages, ground: Path) -> Iterator[Pages]:
    """nginx before them, with a certificate and a login of its own."""
    if NGINX is None:
        pytest.skip("no nginx here (apt-get install nginx-light): the proxy of deploy/nginx was not tried")
    folder = ground / "nginx"
    folder.mkdir()
    pages = Pages(free_port(), folder / "fullchain.pem")
    certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    certificate += [
        "-subj",
        f"/CN={OURS}",
        "-keyout",
        str(folder / "privkey.pem"),
        "-out",
        str(folder / "fullchain.pem"),
    ]
    subprocess.run(certificate, check=True, capture_output=True)
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"], input=PASSWORD, text=True, check=True, capture_output=True
    ).stdout
    (folder / "htpasswd").write_text(f"{USER}:{hashed}")
    serve = [NGINX, "-p", str(folder), "-e", str(folder / "error.log"), "-c"]
    serve.append(str(configured(folder, pages.port, bare.port)))
    with child(serve, os.environ, folder, folder / "nginx.log"):
        wait_for(pages, folder / "nginx.log")
        yield pages


@pytest.fixture(autouse=True)
def resumed(bare: Pages) -> None:
    bare.asked(RESUME)
    assert not bare.paused


def test_our_own_page_may_ask_for_a_change(proxy: Pages, bare: Pages) -> None:
    assert proxy.answer(HONEST)[0] == 200
    assert bare.paused
    assert "true" in proxy.asked(PAUSED)  # without Sec-Fetch-Site, as older browsers


@pytest.mark.parametrize("which", FORGED)
def test_a_forged_request_changes_something_without_the_proxy(bare: Pages, which: str) -> None:
    """What docs/format.md says of the bare pages. Where this fails, Dagster has become more careful."""
    assert bare.answer(FORGED[which])[0] == 200
    assert bare.paused


@pytest.mark.parametrize("which", FORGED)
def test_a_forged_request_is_refused_by_the_proxy(proxy: Pages, bare: Pages, which: str) -> None:
    assert proxy.answer(FORGED[which])[0] == REFUSED_WITH.get(which, 403)
    assert not bare.paused


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({}, 101),
        ({"origin": f"https://{THEIRS}"}, 403),
        ({"origin": None}, 403),
        ({"login": {}}, 401),
        ({"host": THEIRS}, 421),
        ({"path": IN_THE_ADDRESS}, 403),
    ],
    ids=["ours", "another page", "nobody's page", "no login", "another name", "with a query"],
)
def test_only_our_own_page_follows_runs(
    proxy: Pages, bare: Pages, changed: dict[str, str], status: int
) -> None:
    request = Request(**{"method": "GET", "headers": HANDSHAKE, **changed})  # type: ignore[arg-type]
    assert bare.answer(request)[0] == 101
    assert proxy.answer(request)[0] == status


@pytest.mark.parametrize(
    "request_",
    [
        Request(path="/report_asset_materialization/orders", headers=JSON, body="{}"),
        Request(path="//report_asset_materialization/orders", headers=JSON, body="{}"),
        Request(path="/report_asset_check/orders", headers=JSON, body="{}"),
        Request(path="/", headers=JSON, body="{}"),
        Request("PUT", "/graphql", JSON, graphql(PAUSE)),
        Request("HEAD", "/graphql"),
        Request("GET", "/graphql", {"Accept": "text/html"}),
    ],
    ids=lambda request: f"{request.method} {request.path}",
)
def test_nothing_is_reported_and_nothing_else_is_posted(proxy: Pages, request_: Request) -> None:
    assert proxy.answer(request_)[0] == 403


def test_the_pages_come_with_what_they_need_and_show_in_no_frame(proxy: Pages) -> None:
    status, headers, body = proxy.answer(Request("GET", "/runs?q=a", origin=None))
    assert status == 200
    assert b"<html" in body
    assert "frame-ancestors 'none'" in headers.get_all("Content-Security-Policy", [])
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Strict-Transport-Security"]
    assert proxy.answer(Request("GET", "/server_info", login={}))[0] == 401


def test_a_body_without_end_is_refused(proxy: Pages) -> None:
    assert proxy.answer(Request(headers=JSON, body=graphql("#" * (2 << 20))))[0] == 413
