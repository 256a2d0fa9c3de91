"""A web receiver on loopback: the fixture `web` is one."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Web:
    """A web server that notes each request, and answers with the next of `answers`, the last one for ever."""

    def __init__(self) -> None:
        self.answers: list[int] = [200]
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                web.requests.append((self.path, dict(self.headers), body))
                code = web.answers.pop(0) if len(web.answers) > 1 else web.answers[0]
                said = f"no: {self.path}".encode()
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", f"http://localhost:{web.port}/elsewhere")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            do_GET = do_POST = answer  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
