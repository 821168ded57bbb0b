"""What answers measurements: whole histories, and sessions that take them slot by slot."""

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airlam.radio.channel import PredictionSetting
from airlam.serving.arrays import BodyError
from airlam.serving.batching import (
    Batcher,
    DeadlineMissed,
    Draining,
    NotServed,
    QueueFull,
    Unpredictable,
)
from airlam.serving.bodies import (
    max_body_bytes,
    read_measurement,
    read_slot,
    write_future,
    write_futures,
)
from airlam.serving.measurement import Measurement, Question, history_of
from airlam.serving.monitoring import NO_LAM, Metrics
from airlam.serving.reading import (
    LAMS,
    ReadingRoom,
    deadline_s,
    discard,
    names_in,
    read_body,
    slot_number,
    wanted_media,
    wants_prediction,
)
from airlam.serving.services import PrecodingServices, Services
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
NO_SESSION = "no such session; it was closed or has expired, so open another one"


class Predictions:
    """The state behind the paths that take measurements, and their handlers."""

    def __init__(self, services: Services, spec: ServingSpec, metrics: Metrics) -> None:
        self.services, self.spec, self.metrics = services, spec, metrics
        self.room = ReadingRoom(spec.max_reading_bytes)
        self.sessions = Sessions(max_sessions=spec.max_sessions, idle_s=spec.session_idle_s)
        self.batcher = Batcher[Question](
            lambda requests: self.services.predict(requests),
            max_batch_links=spec.max_batch_links,
            max_queued_links=spec.max_queued_links,
            on_batch=metrics.batch_ran,
        )

    async def predict(self, request: Request) -> Response:
        """Predicts the future of some links from their whole histories."""
        lam = request.path_params["lam"]
        return await self.counted(request, lam, self._predict(request, lam))

    async def predict_all(self, request: Request) -> Response:
        """Predicts by several LAMs from one measurement, which is then made into tokens once."""
        return await self.counted(request, NO_LAM, self._predict_all(request))

    async def open_session(self, request: Request) -> Response:
        """Opens a session for a user of this LAM; it expires when it is not used."""
        lam = request.path_params["lam"]
        return await self.counted(request, lam, self._open_session(lam))

    async def add_slot(self, request: Request) -> Response:
        """Takes one slot's measurement: 200 with the prediction, or 202 where there is none.

        There is none while the history is not whole, or where none is wanted.
        """
        session = self.sessions.get(request.path_params["session"])
        lam = NO_LAM if session is None else session.lam
        return await self.counted(request, lam, self._add_slot(request, session))

    async def close_session(self, request: Request) -> Response:
        """Forgets a session and its history."""
        if self.sessions.close(request.path_params["session"]):
            return Response(status_code=204)
        return refusal(404, NO_SESSION)

    async def _predict(self, request: Request, lam: str) -> Response:
        setting, max_links = self.setting(lam), self.spec.max_batch_links
        limit_s = deadline_s(request, self.spec.deadline_s)
        body, media_type = await self._body(request, setting, max_links)
        measurement = read_measurement(body, media_type, lam, setting, max_links)
        return await self._answer(measurement, limit_s, wanted_media(request, media_type))

    async def _predict_all(self, request: Request) -> Response:
        names = names_in(request, LAMS)
        settings = [self.setting(name) for name in names]
        if len({history_of(setting) for setting in settings}) > 1:
            raise BodyError(422, "these LAMs take histories of different kinds; ask them one by one")
        max_links = self.spec.max_batch_links // len(names)  # so that all fits one batch
        if not max_links:
            raise BodyError(422, f"{len(names)} LAMs are asked; expected 1 to {self.spec.max_batch_links}")
        limit_s = deadline_s(request, self.spec.deadline_s)
        body, media_type = await self._body(request, settings[0], max_links)
        measurement = read_measurement(body, media_type, names[0], settings[0], max_links)
        asked = [replace(measurement, lam=name) for name in names]
        futures = dict(zip(names, await self.batcher.submit_all(asked, limit_s), strict=True))
        wanted = wanted_media(request, media_type)
        return Response(write_futures(futures, wanted), media_type=wanted)

    async def _open_session(self, lam: str) -> Response:
        name = self.sessions.open(lam, self.setting(lam))
        return JSONResponse({"session": name, "expires_after_idle_s": self.spec.session_idle_s}, 201)

    async def _add_slot(self, request: Request, session: Session | None) -> Response:
        limit_s, number = deadline_s(request, self.spec.deadline_s), slot_number(request)
        is_wanted = wants_prediction(request)
        if session is None:
            raise BodyError(404, NO_SESSION)
        setting = self.setting(session.lam)
        body, media_type = await self._body(request, setting, 1)
        session.append(*read_slot(body, media_type, setting), number)
        if session.is_whole and is_wanted:
            return await self._answer(session.measurement(), limit_s, wanted_media(request, media_type))
        return JSONResponse({"slots": session.num_slots, "needed": session.num_history}, 202)

    async def _answer(self, measurement: Measurement, limit_s: float, media_type: str) -> Response:
        future = await self.batcher.submit(measurement, limit_s)
        return Response(write_future(future, media_type), media_type=media_type)

    def _body(
        self, request: Request, setting: PredictionSetting, max_links: int
    ) -> Awaitable[tuple[bytearray, str]]:
        """Body and media type of a request of so many whole histories."""
        return self.read(request, partial(max_body_bytes, setting, max_links))

    def read(self, request: Request, max_bytes: Callable[[str], int]) -> Awaitable[tuple[bytearray, str]]:
        """See ``read_body``."""
        return read_body(request, max_bytes, self.spec.read_timeout_s, self.room)

    def setting(self, lam: str) -> PredictionSetting:
        """A LAM's setting; 404 where there is none of that name."""
        if lam not in self.services.settings:
            known = ", ".join(self.services.settings)
            raise BodyError(404, f"no LAM {lam[:80]!r} here; there are {known}")
        return self.services.settings[lam]

    async def counted(self, request: Request, name: str, answer: Awaitable[Response]) -> Response:
        """The answer, or what says why there is none; counted for a LAM or a precoder."""
        started_s = time.perf_counter()
        try:
            response = await answer
        except BodyError as error:
            response = refusal(error.status, error.reason)
        except NotServed as error:
            response = refusal(_STATUS[type(error)], str(error))
            if isinstance(error, QueueFull):
                response.headers["retry-after"] = str(math.ceil(error.retry_after_s))
        if response.status_code >= 400 and not await discard(request):
            response.headers["connection"] = "close"
        self.metrics.answered(
            name if self._is_known(name) else NO_LAM, response.status_code, time.perf_counter() - started_s
        )
        return response

    def _is_known(self, name: str) -> bool:
        services = self.services
        is_lam = name in services.settings or name in services.beam_settings
        return is_lam or (isinstance(services, PrecodingServices) and name in services.csi)


def refusal(status: int, reason: str) -> Response:
    """Why a request got nothing."""
    return JSONResponse({"detail": reason}, status)
