"""The HTTP interface of the services: predictions, sessions, health, metrics; described at /openapi.json.

| path | does |
|---|---|
| POST /v1/lams/{lam}/predict | predicts from whole histories |
| POST /v1/lams/{lam}/sessions | opens a session, in which the server keeps a user's history |
| POST /v1/sessions/{session}/slots | takes a slot's measurement; predicts once the history is whole |
| DELETE /v1/sessions/{session} | forgets it |
| GET /v1/lams, /v1/graph | shapes that each LAM takes and gives; services and who shares them |
| GET /healthz, /readyz, /metrics | alive; takes requests; Prometheus |
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import torch
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from airlam.radio.channel import PredictionSetting
from airlam.serving.batching import (
    Batcher,
    DeadlineMissed,
    Draining,
    NotServed,
    QueueFull,
    Unpredictable,
)
from airlam.serving.bodies import (
    BINARY,
    JSON,
    BodyError,
    JsonMeasurement,
    JsonSlot,
    max_body_bytes,
    media_type_of,
    read_measurement,
    read_slot,
    write_future,
)
from airlam.serving.lam_services import LamServices, Measurement
from airlam.serving.monitoring import NO_LAM, Metrics
from airlam.serving.sessions import Session, Sessions, SessionsFull, SlotRefused
from airlam.specs import ServingSpec

_STATUS: dict[type[NotServed], int] = {
    QueueFull: 429,
    SessionsFull: 429,
    SlotRefused: 409,
    Unpredictable: 422,
    Draining: 503,
    DeadlineMissed: 504,
}
_DISCARD_S, _DISCARD_BYTES = 0.2, 2**22  # of a refused body that is still on its way
Deadline = Annotated[
    float | None, Query(gt=0, allow_inf_nan=False, description="Milliseconds from arrival to answer.")
]
SlotNumber = Annotated[
    int | None, Query(ge=0, lt=2**53, description="The slot's number, where the user counts.")
]


class Serving:
    """The state behind the paths."""

    def __init__(self, services: LamServices, spec: ServingSpec, metrics: Metrics) -> None:
        self.services, self.spec, self.metrics = services, spec, metrics
        self.sessions = Sessions(max_sessions=spec.max_sessions, idle_s=spec.session_idle_s)
        self.batcher = Batcher(
            services.predict,
            max_batch_links=spec.max_batch_links,
            max_queued_links=spec.max_queued_links,
            on_batch=metrics.batch_ran,
        )

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Ready once each LAM has predicted something: first passes take longer than all later ones."""
        for lam, setting in self.services.settings.items():
            self.services.predict([_any_measurement(lam, setting)])
        yield
        await self.batcher.drain()

    def setting(self, lam: str) -> PredictionSetting:
        """A LAM's setting; 404 where there is none of that name."""
        if lam not in self.services.settings:
            raise BodyError(404, f"no LAM {lam[:80]!r} here; there are {', '.join(self.services.settings)}")
        return self.services.settings[lam]

    def session(self, name: str) -> Session:
        """A session; 404 where there is none (any more)."""
        found = self.sessions.get(name)
        if found is None:
            raise BodyError(404, "no such session; it was closed or has expired, so open another one")
        return found

    async def body(self, request: Request, setting: PredictionSetting, max_links: int) -> tuple[bytes, str]:
        """A request's body and media type, of a size that the LAM can want and in time."""
        if request.headers.get("content-encoding", "identity") != "identity":
            raise BodyError(415, "bodies are taken as they are; drop Content-Encoding")
        media_type = media_type_of(request.headers.get("content-type"))
        most = max_body_bytes(setting, max_links, media_type)
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > most:
            raise BodyError(413, f"the body has {declared[:20]} bytes; this LAM takes at most {most}")
        try:
            async with asyncio.timeout(self.spec.read_timeout_s):
                body = await _read(request, most)
        except TimeoutError:
            raise BodyError(408, f"the body did not come within {self.spec.read_timeout_s:g} s") from None
        except ClientDisconnect:
            raise BodyError(400, "the connection ended within the body") from None
        return body, media_type

    async def predict(
        self, measurement: Measurement, deadline_ms: float | None, request: Request, media_type: str
    ) -> Response:
        """The batch's answer, in the media type that the sender accepts, or else that of the request."""
        most_s = self.spec.deadline_s
        deadline_s = most_s if deadline_ms is None else min(deadline_ms / 1e3, most_s)
        future = await self.batcher.submit(measurement, deadline_s)
        accepted = [kind for kind in (BINARY, JSON) if kind in request.headers.get("accept", "")]
        media_type = accepted[0] if accepted else media_type
        return Response(write_future(future, media_type), media_type=media_type)


def create_app(services: LamServices, spec: ServingSpec, metrics: Metrics) -> FastAPI:
    """The ASGI application; its ``state.serving`` is the state."""
    serving = Serving(services, spec, metrics)
    app = FastAPI(
        title="airlam",
        summary="Predictions of radio channels.",
        lifespan=serving.running,
        docs_url=None,
        redoc_url=None,
    )
    app.state.serving = serving
    _add_predictions(app, serving)
    _add_state(app, serving)
    return app


def _add_predictions(app: FastAPI, serving: Serving) -> None:
    """The paths that take measurements."""

    @app.post(
        "/v1/lams/{lam}/predict",
        response_class=Response,
        **_described(JsonMeasurement, "history and noise_variance"),
    )
    async def predict(lam: str, request: Request, deadline_ms: Deadline = None) -> Response:
        """Predicts the future of some links from their whole histories."""

        async def answer() -> Response:
            setting, max_links = serving.setting(lam), serving.spec.max_batch_links
            body, media_type = await serving.body(request, setting, max_links)
            measurement = read_measurement(body, media_type, lam, setting, max_links)
            return await serving.predict(measurement, deadline_ms, request, media_type)

        return await _answered(serving, lam, request, answer)

    @app.post("/v1/lams/{lam}/sessions", status_code=201)
    async def open_session(lam: str, request: Request) -> Response:
        """Opens a session for a user of this LAM; it expires when it is not used."""

        async def answer() -> Response:
            name = serving.sessions.open(lam, serving.setting(lam))
            return JSONResponse({"session": name, "expires_after_idle_s": serving.spec.session_idle_s}, 201)

        return await _answered(serving, lam, request, answer)

    @app.post(
        "/v1/sessions/{session}/slots",
        response_class=Response,
        **_described(JsonSlot, "channel and noise_variance"),
    )
    async def add_slot(
        session: str, request: Request, slot: SlotNumber = None, deadline_ms: Deadline = None
    ) -> Response:
        """Takes one slot's measurement: 200 with the prediction, or 202 while the history is not whole."""
        held = serving.sessions.get(session)

        async def answer() -> Response:
            own = serving.session(session)
            setting = serving.setting(own.lam)
            body, media_type = await serving.body(request, setting, 1)
            own.append(*read_slot(body, media_type, setting), slot)
            if own.is_whole:
                return await serving.predict(own.measurement(), deadline_ms, request, media_type)
            return JSONResponse({"slots": own.num_slots, "needed": own.num_history}, 202)

        return await _answered(serving, NO_LAM if held is None else held.lam, request, answer)

    @app.delete("/v1/sessions/{session}", status_code=204)
    async def close_session(session: str) -> Response:
        """Forgets a session and its history."""
        if serving.sessions.close(session):
            return Response(status_code=204)
        return _refusal(404, "no such session; it was closed or has expired")


def _add_state(app: FastAPI, serving: Serving) -> None:
    """The paths that tell."""

    @app.get("/v1/lams")
    async def lams() -> dict[str, Any]:
        """The LAMs, with what they take and give."""
        return {name: _shapes(setting) for name, setting in serving.services.settings.items()}

    @app.get("/v1/graph")
    async def graph() -> dict[str, Any]:
        """Services, edges between them, and each LAM's way through them."""
        found = serving.services.graph
        services = [{"name": s.name, "module": s.module, "lams": list(s.tasks)} for s in found.services]
        return {"services": services, "edges": found.edges, "flows": found.flows}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """200 where new requests are taken, 503 once the server is about to end."""
        draining = serving.batcher.draining
        return JSONResponse({"status": "draining" if draining else "ready"}, 503 if draining else 200)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counts and times in Prometheus' text format."""
        text = serving.metrics.text(
            queued_links=serving.batcher.queued_links, num_sessions=len(serving.sessions)
        )
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _answered(
    serving: Serving, lam: str, request: Request, answer: Callable[[], Awaitable[Response]]
) -> Response:
    """The answer, or what says why there is none; counted."""
    started_s = time.perf_counter()
    try:
        response = await answer()
    except BodyError as error:
        response = _refusal(error.status, error.reason)
    except NotServed as error:
        response = _refusal(_STATUS[type(error)], str(error))
        if isinstance(error, QueueFull):
            response.headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if response.status_code >= 400 and not await _discard(request):
        response.headers["connection"] = "close"
    known = lam if lam in serving.services.settings else NO_LAM
    serving.metrics.answered(known, response.status_code, time.perf_counter() - started_s)
    return response


def _refusal(status: int, reason: str) -> Response:
    return JSONResponse({"detail": reason}, status)


async def _discard(request: Request) -> bool:
    """Reads on in a refused body, so that its sender gets to read why; false where too much is to come.

    A connection that is closed with bytes unread is reset, and the answer in it may be lost.
    """
    size = 0
    try:
        async with asyncio.timeout(_DISCARD_S):
            async for part in request.stream():
                size += len(part)
                if size > _DISCARD_BYTES:
                    return False
    except (TimeoutError, ClientDisconnect):
        return False
    except RuntimeError:  # of Starlette, where the body has been read to its end
        return True
    return True


async def _read(request: Request, most: int) -> bytes:
    """The body; BodyError as soon as it is longer than ``most`` bytes."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise BodyError(413, f"the body has more than {most} bytes, the most that this LAM takes")
        if part:  # one part alone is then not copied
            parts.append(part)
    return b"".join(parts)


def _described(kind: type[JsonMeasurement] | type[JsonSlot], tensors: str) -> dict[str, Any]:
    """What OpenAPI says of a path that takes a body of two kinds and may refuse it."""
    binary = {"schema": {"type": "string", "format": "binary", "description": f"safetensors: {tensors}"}}
    body = {"content": {BINARY: binary, JSON: {"schema": kind.model_json_schema()}}, "required": True}
    future = {"schema": {"type": "string", "format": "binary", "description": "safetensors: future"}}
    refusals = {
        400: "No such media: cut short or no safetensors or JSON.",
        404: "No such LAM or session.",
        408: "The body came too slowly.",
        409: "The slot is not after the last one.",
        413: "The body is larger than this LAM can want.",
        415: "Another media type.",
        422: "Another dtype or shape, or numbers that nothing can be predicted from.",
        429: "The queue is full; see Retry-After.",
        503: "The server is about to end.",
        504: "The deadline passed while the request waited.",
    }
    answers: dict[int, Any] = {200: {"description": "The prediction.", "content": {BINARY: future, JSON: {}}}}
    answers |= {status: {"description": text} for status, text in refusals.items()}
    return {"openapi_extra": {"requestBody": body}, "responses": answers}


def _shapes(setting: PredictionSetting) -> dict[str, Any]:
    """What a LAM takes and gives, a link at a time."""
    ports = [setting.num_user_antennas, setting.base_station.num_ports]
    return {
        "history": [setting.num_history, *ports, len(setting.history_frequencies_hz)],
        "future": [setting.num_horizon, *ports, len(setting.target_frequencies_hz)],
        "dtype": "complex64",
        "slot_duration_s": setting.slot_duration_s,
    }


def _any_measurement(lam: str, setting: PredictionSetting) -> Measurement:
    history = torch.randn(
        1, *_shapes(setting)["history"], dtype=torch.complex64, generator=torch.Generator().manual_seed(0)
    )
    return Measurement(lam=lam, history=history, noise_variance=torch.ones(1))
