"""What the server says of itself: LAMs, graph, load, health, metrics, and a page that shows them at work."""

import os
import platform
import time
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airlam.radio.channel import PredictionSetting
from airlam.serving.beamforming import Beamforming
from airlam.serving.description import Endpoint, Handler
from airlam.serving.measurement import future_shape, slot_shape
from airlam.serving.predictions import Predictions

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_HTML = "live.html"
_PAGE = {_HTML: "text/html", "live.css": "text/css", "live.js": "text/javascript"}
_PAGE_HEADERS = {
    # what the page needs comes from here, and nothing else may run in it
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


class Told:
    """The handlers of the paths that tell."""

    def __init__(self, serving: Predictions, beamforming: Beamforming | None = None) -> None:
        self._serving, self._beamforming = serving, beamforming
        self._node = f"{platform.node()}, process {os.getpid()}"
        self._started_s = time.monotonic()
        folder = files("airlam.serving") / "page"
        self._page = {name: (folder / name).read_bytes() for name in _PAGE}

    async def page(self, request: Request) -> Response:
        """A page that shows services and load, anew every second."""
        name = request.url.path.removeprefix("/") or _HTML
        return Response(self._page[name], headers=_PAGE_HEADERS, media_type=_PAGE[name])

    async def lams(self, request: Request) -> Response:
        """The LAMs, with what they take and give."""
        settings = self._serving.services.settings
        return JSONResponse({name: _shapes(setting) for name, setting in settings.items()})

    async def graph(self, request: Request) -> Response:
        """Services, edges between them, and each LAM's way through them."""
        found = self._serving.services.graph
        services = [
            {"name": s.name, "module": s.module, "lams": list(s.tasks), "nodes": list(s.nodes)}
            for s in found.services
        ]
        return JSONResponse({"services": services, "edges": found.edges, "flows": found.flows})

    async def load(self, request: Request) -> Response:
        """Counts and seconds since the start, by LAM and by service; what waits, and where it all runs."""
        batcher = self._serving.batcher
        about = {
            "node": self._node,
            "uptime_s": time.monotonic() - self._started_s,
            "draining": batcher.draining,
            "queued_links": batcher.queued_links,
            "max_queued_links": self._serving.spec.max_queued_links,
            "queued_coefficients": self._queued_coefficients,
            "max_queued_coefficients": self._serving.spec.max_queued_coefficients,
            "sessions": len(self._serving.sessions),
        }
        return JSONResponse({**about, **self._serving.metrics.totals()})

    async def healthz(self, request: Request) -> Response:
        """The process answers."""
        return JSONResponse({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        """200 where new requests are taken, 503 once the server is about to end."""
        draining = self._serving.batcher.draining
        return JSONResponse({"status": "draining" if draining else "ready"}, 503 if draining else 200)

    async def metrics(self, request: Request) -> Response:
        """Counts and times in Prometheus' text format."""
        serving = self._serving
        text = serving.metrics.text(
            queued_links=serving.batcher.queued_links,
            queued_coefficients=self._queued_coefficients,
            num_sessions=len(serving.sessions),
        )
        return Response(text, headers={"content-type": _PROMETHEUS})

    @property
    def _queued_coefficients(self) -> int:
        return 0 if self._beamforming is None else self._beamforming.batcher.queued_links

    def endpoints(self) -> tuple[Endpoint, ...]:
        """The paths."""
        return (
            _get("/healthz", self.healthz, "It does."),
            _get("/readyz", self.readyz, "They are.", {503: "They are not any more."}),
            _get("/metrics", self.metrics, "The metrics.", media={"text/plain": "Prometheus"}),
            _get("/v1/lams", self.lams, "By name."),
            _get("/v1/graph", self.graph, "The graph."),
            _get("/v1/load", self.load, "The load."),
            _get("/", self.page, "The page.", media={"text/html": "The page."}),
        )

    def assets(self) -> list[Route]:
        """What the page asks for by itself."""
        return [Route(f"/{name}", self.page) for name in _PAGE if name != _HTML]


def _get(
    path: str,
    handler: Handler,
    about: str,
    more: dict[int, str] | None = None,
    media: dict[str, str] | None = None,
) -> Endpoint:
    answers = {200: about, **(more or {})}
    if media is None:
        return Endpoint(method="GET", path=path, handler=handler, answers=answers)
    return Endpoint(method="GET", path=path, handler=handler, answers=answers, media=media)


def _shapes(setting: PredictionSetting) -> dict[str, Any]:
    """What a LAM takes and gives, a link at a time."""
    return {
        "history": slot_shape(setting, setting.num_history),
        "future": future_shape(setting),
        "dtype": "complex64",
        "slot_duration_s": setting.slot_duration_s,
    }
