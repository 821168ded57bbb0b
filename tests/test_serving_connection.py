"""The client's connection takes whatever HTTP allows a server, and tells what is none."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from airlam.serving.connection import Connection, ConnectionLost

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Own: Yes\r\n\r\nbody"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"


@contextmanager
def answering(*answers: bytes, per_write: int = 10**6) -> Iterator[tuple[Connection, list[bytes]]]:
    """A connection to a server that takes one connection after the other, one request and answer each."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for answer in answers:
                sock, _ = listening.accept()
                with sock:
                    received.append(sock.recv(65536))
                    for i in range(0, len(answer), per_write):
                        sock.sendall(answer[i : i + per_write])

        thread = threading.Thread(target=serve)
        thread.start()
        connection = Connection("127.0.0.1", listening.getsockname()[1], timeout_s=10.0)
        try:
            yield connection, received
        finally:
            connection.close()
            thread.join()


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED])
@pytest.mark.parametrize("per_write", [1, 7, 1000])
def test_an_answer_may_come_in_any_parts(answer: bytes, per_write: int) -> None:
    with answering(answer, per_write=per_write) as (connection, _):
        found = connection.ask("GET", "/x")
    assert (found.status, found.body) == (200, b"body")
    assert answer is not WHOLE or found.headers["x-own"] == "Yes"


def test_a_request_has_its_length_and_headers() -> None:
    with answering(WHOLE) as (connection, received):
        connection.ask("POST", "/x", "Accept: y\r\n", b"given")
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /x HTTP/1.1\r\nHost: 127.0.0.1:") and body == b"given"
    assert b"\r\nContent-Length: 5\r\n" in head and head.endswith(b"\r\nAccept: y")


@pytest.mark.parametrize(
    ("answer", "reason"), [(WHOLE[:-1], "closed"), (b"", "closed"), (b"SSH-2.0\r\n\r\n", "no HTTP")]
)
def test_what_is_no_answer_is_told_and_the_next_request_connects_anew(answer: bytes, reason: str) -> None:
    with answering(answer, WHOLE) as (connection, _):
        with pytest.raises(ConnectionLost, match=reason):
            connection.ask("GET", "/x")
        assert connection.ask("GET", "/x").body == b"body"


def test_a_server_that_will_close_is_connected_to_anew() -> None:
    closing = WHOLE.replace(b"X-Own: Yes", b"Connection: close")
    with answering(closing, WHOLE) as (connection, received):
        assert [connection.ask("GET", "/x").body for _ in range(2)] == [b"body", b"body"]
    assert len(received) == 2
