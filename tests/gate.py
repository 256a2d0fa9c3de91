"""A gate in front of a server, so that the middle of a dump or an upload lasts as long as a test needs."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

_HOST = "127.0.0.1"
_BLOCK = 1 << 16
_ROOM = (
    1 << 20
)  # bytes that the system takes for us while we hold: by itself it may make it more than a dump has


class Gate:
    """A port that passes everything on to a server's, until one connection has carried `limit` bytes
    in one direction. That direction of that connection is held then, until `open`; all else flows.
    """

    def __init__(self, port: int, limit: int) -> None:
        self._behind, self._limit = port, limit
        self._held, self._open, self._closed = threading.Event(), threading.Event(), False
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((_HOST, 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)  # and whoever it accepts
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def wait_until_held(self, seconds: float = 20) -> None:
        assert self._held.wait(seconds), "nothing of that size passed the gate"

    def open(self) -> None:
        """Lets everything flow, from now on."""
        self._open.set()

    def close(self) -> None:
        """Cuts every connection, and takes no new ones."""
        self._closed = True
        self._open.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._sockets:
            _cut(end)
        for thread in self._threads:
            thread.join(5)
        for end in self._sockets:
            end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, run: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while not self._closed:
                near, _ = self._listener.accept()
                self._sockets.append(near)
                self._connect(near)

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection((_HOST, self._behind))
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
        except OSError:  # the server is gone: whoever knocks here learns it too
            _cut(near)
            return
        self._sockets.append(far)
        self._start(self._pass, near, far)
        self._start(self._pass, far, near)

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while block := source.recv(_BLOCK):
                passed += len(block)
                if passed > self._limit and not self._open.is_set():
                    self._held.set()
                    self._open.wait()
                sink.sendall(block)
        _cut(source)
        _cut(sink)


def _cut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
