"""Between us and the S3 server: passes every request on as it is, but for those it is told to spoil."""

import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

_HOST = "127.0.0.1"
_LONGEST = 60.0
_REFUSED = {
    "500": ("InternalError", 500),
    "503": ("SlowDown", 503),
    "403": ("AccessDenied", 403),
    "404": ("NoSuchKey", 404),
}


@dataclass(frozen=True)
class Fault:
    """`what` is done to the request of number `at` (the first is 0), and with `lasting` to all after it: a
    status; or one of `Proxy._serve`'s and `_pass_on`'s."""

    what: str
    at: int
    lasting: bool = False

    def meets(self, number: int) -> bool:
        return number == self.at or (self.lasting and number > self.at)


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Proxy:
    """A port in front of a server's. `calls` are the requests that came, as `PUT backup_….json`."""

    def __init__(self, behind: int, fault: Fault | None = None) -> None:
        self.calls: list[str] = []
        self.met = 0
        self._behind, self._fault = behind, fault
        self._lock, self._over = threading.Lock(), threading.Event()
        self._server = ThreadingHTTPServer((_HOST, 0), self._handler())
        self._server.daemon_threads = True
        self.endpoint = f"http://{_HOST}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                with suppress(OSError):
                    proxy._serve(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def _serve(self, asked: BaseHTTPRequestHandler) -> None:
        what = self._noted(asked)
        if what == "cut in the request":
            asked.rfile.read(_half(asked))
            _reset(asked)
            return
        body = b"".join(_body(asked))
        if what == "reset before":
            _reset(asked)
        elif what == "never answered":
            self._over.wait(_LONGEST)
            _reset(asked)
        elif what in _REFUSED:
            _send(asked, _refusal(*_REFUSED[what]))
        else:
            self._pass_on(asked, body, what)

    def _noted(self, asked: BaseHTTPRequestHandler) -> str:
        """Which fault this request meets; "" none."""
        with self._lock:
            number = len(self.calls)
            self.calls.append(f"{asked.command} {asked.path.partition('?')[0].rpartition('/')[2]}")
            if self._fault is None or not self._fault.meets(number):
                return ""
            self.met += 1
            return self._fault.what

    def _pass_on(self, asked: BaseHTTPRequestHandler, body: bytes, what: str) -> None:
        if what == "slow":
            time.sleep(0.7)
        if what == "a byte changed in the request":
            body = _changed(body)
        answer = self._asked_behind(asked, body)
        if what == "twice":
            answer = self._asked_behind(asked, body)
        if what == "500 once it is done":
            answer = _refusal(*_REFUSED["500"])
        elif what == "reset once it is done":
            _reset(asked)
            return
        elif what == "a byte changed in the answer":
            answer = _Answer(answer.status, answer.headers, _changed(answer.body))
        elif what.startswith("a listing"):
            answer = _Answer(answer.status, answer.headers, _lacking(answer.body, what))
        _send(asked, answer, cut=what == "cut in the answer")

    def _asked_behind(self, asked: BaseHTTPRequestHandler, body: bytes) -> _Answer:
        behind = http.client.HTTPConnection(_HOST, self._behind, timeout=_LONGEST)
        try:
            chunked = "chunked" in asked.headers.get("Transfer-Encoding", "")
            behind.putrequest(asked.command, asked.path, skip_host=True, skip_accept_encoding=True)
            for name, value in asked.headers.items():
                if name.lower() not in ("connection", "expect"):
                    behind.putheader(name, value)
            behind.endheaders(iter([body]) if chunked else body, encode_chunked=chunked)
            found = behind.getresponse()
            return _Answer(found.status, found.getheaders(), found.read())
        finally:
            behind.close()


def _body(asked: BaseHTTPRequestHandler) -> Iterator[bytes]:
    if "chunked" not in asked.headers.get("Transfer-Encoding", ""):
        yield asked.rfile.read(int(asked.headers.get("Content-Length", 0)))
        return
    while size := int(asked.rfile.readline().split(b";")[0], 16):
        yield asked.rfile.read(size)
        asked.rfile.readline()
    asked.rfile.readline()


def _half(asked: BaseHTTPRequestHandler) -> int:
    return int(asked.headers.get("Content-Length", 0)) // 2


def _changed(body: bytes) -> bytes:
    if not body:
        return body
    at = len(body) // 2
    return body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]


def _lacking(body: bytes, what: str) -> bytes:
    """A listing without its last half, or without what is newest; anything else as it is."""
    entries = re.findall(rb"<Contents>.*?</Contents>", body, re.DOTALL)
    times = [re.search(rb"<LastModified>(.*?)<", each) for each in entries]
    if what == "a listing cut short":
        gone = entries[len(entries) // 2 :]
    else:
        newest = max((found[1] for found in times if found), default=b"")
        gone = [each for each, found in zip(entries, times, strict=True) if found and found[1] == newest]
    for each in gone:
        body = body.replace(each, b"", 1)
    return body


def _refusal(code: str, status: int) -> _Answer:
    body = f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode()
    return _Answer(status, [("Content-Type", "application/xml")], body)


def _send(asked: BaseHTTPRequestHandler, answer: _Answer, *, cut: bool = False) -> None:
    asked.send_response_only(answer.status)
    length = str(len(answer.body))
    for name, value in answer.headers:
        if name.lower() == "content-length" and asked.command == "HEAD":
            length = value
        elif name.lower() not in ("transfer-encoding", "connection", "content-length"):
            asked.send_header(name, value)
    asked.send_header("Content-Length", length)
    asked.end_headers()
    if asked.command != "HEAD":
        asked.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
    if cut:
        asked.wfile.flush()
        _reset(asked)


def _reset(asked: BaseHTTPRequestHandler) -> None:
    """Ends the connection as a machine that has lost it does."""
    asked.close_connection = True
    asked.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    asked.connection.close()
