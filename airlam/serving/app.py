"""The HTTP interface of the services: predictions, precoders, health, metrics; described at /openapi.json.

| path | does |
|---|---|
| POST /v1/lams/{lam}/predict | predicts from whole histories |
| POST /v1/predict?lam=A&lam=B | predicts by several LAMs from one measurement |
| POST /v1/lams/{lam}/sessions | opens a session, in which the server keeps a user's history |
| POST /v1/precoders/{precoder}/precode | finds precoders of downlinks |
| POST /v1/lams/{lam}/precoders/{precoder}/precode | predicts users' channels, and finds precoders of these |
| POST /v1/lams/{lam}/precoders/{precoder}/precode_sessions | the same of histories that sessions keep |
| POST /v1/beams/{beam_lam}/choose | chooses beams of the next sweeps from the last ones |
| POST /v1/sessions/{session}/slots | takes a slot's measurement; predicts once the history is whole |
| DELETE /v1/sessions/{session} | forgets it |
| GET /v1/lams, /v1/precoders, /v1/beams | what each takes and gives |
| GET /v1/graph, /v1/load | who shares what; at work |
| GET /healthz, /readyz, /metrics | alive; takes requests; Prometheus |
| GET / | a page that shows graph and load |
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airlam.serving.arrays import BINARY, JSON
from airlam.serving.beamforming import Beamforming
from airlam.serving.beams import Beams
from airlam.serving.bodies import JsonMeasurement, JsonSlot
from airlam.serving.description import REFUSALS, Body, Endpoint, openapi
from airlam.serving.monitoring import Metrics
from airlam.serving.predictions import Predictions, refusal
from airlam.serving.reading import DEADLINE, LAMS, PREDICT, SLOT
from airlam.serving.renewal import Load, Renewal
from airlam.serving.services import PrecodingServices, Services
from airlam.serving.telling import Told
from airlam.specs import ServingSpec

_FUTURE = {BINARY: "future", JSON: ""}


def create_app(
    services: Services, spec: ServingSpec, metrics: Metrics, load: Load | None = None
) -> Starlette:
    """The ASGI application; its ``state.serving`` is the state. load: reads the LAMs anew on SIGHUP."""
    serving = Predictions(services, spec, metrics)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        services.warm()
        with _renewed_on_hangup(serving, load):
            yield
            await serving.batcher.drain()
            if beamforming is not None:  # last: what is predicted may still want precoders
                await beamforming.batcher.drain()

    beamforming = Beamforming(serving) if isinstance(services, PrecodingServices) else None
    told = Told(serving, beamforming)
    predicting = _predicting(serving) if services.settings else ()
    precoding = () if beamforming is None else beamforming.endpoints()
    choosing = Beams(serving).endpoints() if services.beam_settings else ()
    endpoints = (*predicting, *precoding, *choosing, *told.endpoints())

    async def describe(request: Request) -> Response:
        known = {"lam": list(serving.services.settings), "beam_lam": list(serving.services.beam_settings)}
        if beamforming is not None:
            known["precoder"] = list(beamforming.csi)
        return JSONResponse(openapi(endpoints, known))

    app = Starlette(
        routes=[*(each.route for each in endpoints), *told.assets(), Route("/openapi.json", describe)],
        lifespan=lifespan,
        exception_handlers={HTTPException: _refused},
    )
    app.state.serving = serving
    return app


@contextmanager
def _renewed_on_hangup(serving: Predictions, load: Load | None) -> Iterator[None]:
    """Within this, SIGHUP exchanges the LAMs, where there is a way to load them."""
    if load is None:
        yield
        return
    renewal, loop = Renewal(serving, load), asyncio.get_running_loop()
    under_way: set[asyncio.Task[bool]] = set()  # else nothing would hold on to them

    def begin() -> None:
        task = loop.create_task(renewal.run())
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    loop.add_signal_handler(signal.SIGHUP, begin)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _predicting(serving: Predictions) -> tuple[Endpoint, ...]:
    """The paths that take measurements, those asked most first: routes are tried in order."""
    taken = {
        202: "The slot is taken; there is no prediction yet, or none wanted.",
        409: "The slot is not after the last one.",
    }
    answers = {200: "The prediction.", **REFUSALS}
    return (
        Endpoint(
            method="POST",
            path="/v1/lams/{lam}/predict",
            handler=serving.predict,
            body=Body(json=JsonMeasurement, tensors="history and noise_variance"),
            queries=(DEADLINE,),
            answers=answers,
            media=_FUTURE,
        ),
        Endpoint(
            method="POST",
            path="/v1/sessions/{session}/slots",
            handler=serving.add_slot,
            body=Body(json=JsonSlot, tensors="channel and noise_variance"),
            queries=(SLOT, PREDICT, DEADLINE),
            answers={**answers, **taken},
            media=_FUTURE,
        ),
        Endpoint(
            method="POST",
            path="/v1/predict",
            handler=serving.predict_all,
            body=Body(json=JsonMeasurement, tensors="history and noise_variance"),
            queries=(LAMS, DEADLINE),
            answers=answers,
            media={BINARY: "future.NAME for each LAM", JSON: ""},
        ),
        Endpoint(
            method="POST",
            path="/v1/lams/{lam}/sessions",
            handler=serving.open_session,
            answers={201: "The session's name.", 404: REFUSALS[404], 429: "All sessions are taken."},
        ),
        Endpoint(
            method="DELETE",
            path="/v1/sessions/{session}",
            handler=serving.close_session,
            answers={204: "Forgotten.", 404: "No such session."},
        ),
    )


async def _refused(request: Request, error: Exception) -> Response:
    """No such path or method, told as all refusals are."""
    assert isinstance(error, HTTPException)
    response = refusal(error.status_code, error.detail)
    response.headers.update(error.headers or {})
    return response
