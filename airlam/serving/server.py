"""The server: uvicorn before the application, in this thread until it is told to end, or in another one."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from airlam.errors import SpecError
from airlam.serving.app import create_app
from airlam.serving.memory import keep_freed_memory
from airlam.serving.monitoring import Metrics
from airlam.serving.renewal import Load
from airlam.serving.services import Services
from airlam.specs import ServingSpec

_MAX_HEADER_BYTES = 2**16
_KEEP_ALIVE_S = 75
_BACKLOG = 1024  # connections that wait to be accepted
_START_S = 120.0
_log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """Tells the application at once that it is to end, so that it takes no more requests, and returns."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does, but a signal that was obeyed is not raised once more."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {kind: signal.signal(kind, self.handle_exit) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        _log.info("ending: requests under way get their answers")
        self.config.app.state.serving.batcher.draining = True  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def _protocol(timeout_s: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol with what it lacks: requests have to come in time, their headers in bounded size.

    The application waits ``timeout_s`` for a body and says so; what it does not read is waited for here.
    """
    body_timeout_s = 2 * timeout_s

    class Patient(HttpToolsProtocol):
        """Closes a connection whose header or body is late, or whose header is endless."""

        _late: asyncio.TimerHandle | None = None
        _header_bytes = 0
        _in_header = True

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await(timeout_s)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_header = True
            self._await(timeout_s)

        def on_headers_complete(self) -> None:
            self._came()
            self._await(body_timeout_s)
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._came()
            super().on_message_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_header:
                self._header_bytes += len(data)
                if self._header_bytes > _MAX_HEADER_BYTES:
                    self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._came()
            super().connection_lost(exc)

        def _await(self, timeout_s: float) -> None:
            if self._late is None:
                self._late = self.loop.call_later(timeout_s, self.transport.close)

        def _came(self) -> None:
            if self._late is not None:
                self._late.cancel()
            self._late, self._header_bytes, self._in_header = None, 0, False

    return Patient


def _config(app: Starlette, spec: ServingSpec) -> uvicorn.Config:
    keep_freed_memory()
    return uvicorn.Config(
        app,
        http=_protocol(spec.read_timeout_s),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=spec.max_connections,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(spec.drain_s)),
    )


def _listening(spec: ServingSpec) -> socket.socket:
    """A socket at the spec's address; SpecError where it cannot be had."""
    family = socket.AF_INET6 if ":" in spec.host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where TCP is named; with it on, an answer of a head and a body
    # waits 40 ms for the receiver's acknowledgement
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((spec.host, spec.port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise SpecError(
            f"cannot listen at {spec.host}:{spec.port} ({error}); take another --host or --port"
        ) from None
    return sock


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    services: Services,
    spec: ServingSpec,
    metrics: Metrics,
    on_listening: Callable[[str], None] = lambda url: None,
    load: Load | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM, then answers what is under way and returns.

    on_listening: told the server's URL, at which requests wait until the LAMs are warm. load: reads the LAMs
    anew on SIGHUP.
    """
    with _listening(spec) as sock:
        if load is not None:  # until the application can obey: what it would read has just been read
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        on_listening(_url(sock))
        _Server(_config(create_app(services, spec, metrics, load), spec)).run(sockets=[sock])


@contextmanager
def running(services: Services, spec: ServingSpec, metrics: Metrics) -> Iterator[str]:
    """A server in another thread of this process; gives its URL once it is ready."""
    with _listening(spec) as sock:
        server = _Server(_config(create_app(services, spec, metrics), spec))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name="airlam-serve")
        thread.start()
        try:
            _wait_started(server, thread)
            yield _url(sock)
        finally:
            server.should_exit = True
            thread.join()


def _wait_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    pause = threading.Event()
    for _ in range(round(_START_S / 0.01)):
        if server.started or not thread.is_alive():
            break
        pause.wait(0.01)
    if not server.started:
        raise RuntimeError("the server did not start; its log says why")
