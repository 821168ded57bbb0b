"""One HTTP/1.1 connection of a client: a request out in one write, its answer in by httptools' parser.

Beside a prediction of tens of milliseconds Python's own http.client costs a fifth of one, most of it in the
e-mail parser that it reads headers with.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

import httptools

_RECEIVE_BYTES = 2**18


class ConnectionLost(OSError):
    """The connection ended within an answer, or what came is no HTTP."""


@dataclass(slots=True)
class Answer:
    """An answer as it comes in; header names in lower case."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    is_whole: bool = False
    body: bytearray = field(default_factory=bytearray)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of httptools."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, part: bytes) -> None:
        """Of httptools."""
        self.body += part

    def on_message_complete(self) -> None:
        """Of httptools."""
        self.is_whole = True


class Connection:
    """To a host; opened when it is first asked, and anew after the server has closed it."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self.host, self.port, self._timeout_s = host, port, timeout_s
        self._socket: socket.socket | None = None
        # kept: a block of this size that is asked for anew costs a page fault for each 4 KiB of an answer
        self._received = memoryview(bytearray(_RECEIVE_BYTES))
        where = f"[{host}]" if ":" in host else host
        self._about_us = f"Host: {where}:{port}\r\n"

    def ask(self, method: str, target: str, headers: str = "", *body: bytes | memoryview) -> Answer:
        """What the server answers; OSError where it does not. headers: lines, each with its end.

        body: parts, which are sent from where they are.
        """
        sock = self._connected()
        length = f"Content-Length: {sum(map(_num_bytes, body))}\r\n" if method == "POST" else ""
        head = f"{method} {target} HTTP/1.1\r\n{self._about_us}{length}{headers}\r\n".encode()
        try:
            self._send(sock, (head, *body))
            answer = self._receive(sock)
        except OSError:
            self.close()
            raise
        if answer.headers.get("connection", "").lower() == "close":
            self.close()
        return answer

    def close(self) -> None:
        """Ends the connection; the next request opens another one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.create_connection((self.host, self.port), timeout=self._timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._socket

    def _send(self, sock: socket.socket, parts: Sequence[bytes | memoryview]) -> None:
        try:
            sent = sock.sendmsg(parts)
            if sent < sum(map(_num_bytes, parts)):
                sock.sendall(b"".join(parts)[sent:])
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused within the body; the answer says why

    def _receive(self, sock: socket.socket) -> Answer:
        answer = Answer()
        parser = httptools.HttpResponseParser(answer)
        while not answer.is_whole:
            size = sock.recv_into(self._received)
            if not size:
                raise ConnectionLost("the server closed the connection")
            try:
                parser.feed_data(self._received[:size])
            except httptools.HttpParserError as error:
                raise ConnectionLost(f"what came is no HTTP: {error}") from None
        answer.status = parser.get_status_code()
        return answer


def _num_bytes(part: bytes | memoryview) -> int:
    return len(part) if isinstance(part, bytes) else part.nbytes
