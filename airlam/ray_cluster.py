"""Ray, on this machine or on many: how a process gets the library and a connection.

Whoever is let in by a Ray cluster runs code there. One that is started here asks for a token that is drawn
for it; one of many machines should be started with RAY_AUTH_MODE=token and a RAY_AUTH_TOKEN of its owner's on
all of them. The token is what guards Ray's ports: it opens them on all of a machine's addresses.
"""

import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from airlam.errors import DataError

LOCAL = "local"
LEAST_STORE_BYTES = 128 * 2**20  # of objects; Ray takes no less than 75 MiB
_KNOCK_S = 5.0
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # read by ray.init

_log = logging.getLogger(__name__)


def connect(address: str, *, settings: Mapping[str, str] | None = None, **local: Any) -> tuple[Any, bool]:
    """The library, connected, and whether the caller has to end the connection by its ``shutdown``.

    address: ``local`` starts Ray on this machine; otherwise what ``ray.init`` takes. A process that is
    connected already stays so. settings: environment variables that Ray reads when a process connects; those
    that are set already win. local: what ``ray.init`` takes besides, where Ray is started here.
    DataError where Ray is absent or out of reach.
    """
    _knock(address)
    ray = _library(address)
    if ray.is_initialized():
        return ray, False
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "warning"}
    if address == LOCAL:
        closed = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        options |= {"object_store_memory": LEAST_STORE_BYTES} | local | closed
    for name, value in (settings or {}).items():
        os.environ.setdefault(name, value)
    try:
        ray.init(**options)
    except Exception as error:
        # a node that is too slow to start is told by an Exception of no class of its own
        if isinstance(error, (OSError, ValueError, RuntimeError)) or type(error) is Exception:
            raise _out_of_reach(address, error) from None
        raise
    return ray, True


@contextmanager
def connected(address: str, *, settings: Mapping[str, str] | None = None, **local: Any) -> Iterator[Any]:
    """``connect`` for a ``with``: gives the library, and leaves what was there before."""
    ray, owned = connect(address, settings=settings, **local)
    try:
        yield ray
    finally:
        if owned:
            ray.shutdown()


def serve_library() -> Any:
    """Ray Serve, for a process that is connected; DataError where it is not installed."""
    try:
        from ray import serve
    except ImportError as error:
        raise DataError(f"{error.name} is not installed: pip install 'airlam[ray]'") from None
    return serve


def fetched(reference: Any) -> Any:
    """What a reference stands for, in a process that Ray started."""
    import ray

    return ray.get(reference)


def first_line(error: Exception) -> str:
    """What Ray says without its traceback."""
    return str(error).splitlines()[0].rstrip(".")


def _knock(address: str) -> None:
    """DataError where nobody answers at HOST:PORT; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
        except OSError as error:
            raise _out_of_reach(address, error) from None


def _out_of_reach(address: str, error: Exception) -> DataError:
    return DataError(
        f"no Ray cluster at {address!r} ({first_line(error)}); start one with ray start --head, or take local"
    )


def _library(address: str) -> Any:
    """Ray, which reads how it lets others in when it is imported: a process that has it keeps what it had."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if address == LOCAL and "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
        _log.warning("Ray was imported before, so it asks for no token: others on this machine can use it")
    elif address == LOCAL and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
    except ImportError:
        raise DataError("Ray is not installed: pip install 'airlam[ray]'") from None
    return ray
