"""What answers those who want precoders: for channels that they know, or that are to be predicted."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from einops import rearrange
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airlam.errors import SpecError
from airlam.radio.channel import PredictionSetting
from airlam.serving.arrays import BINARY, JSON, BodyError
from airlam.serving.batching import Batcher, Draining, Unpredictable
from airlam.serving.description import REFUSALS, Body, Endpoint
from airlam.serving.downlink_bodies import (
    JsonDownlinks,
    JsonUsers,
    Users,
    max_downlinks_bytes,
    max_users_bytes,
    read_downlinks,
    read_users,
    write_precoder,
)
from airlam.serving.downlinks import Csi, Downlinks, num_coefficients
from airlam.serving.foresight import Foresight, num_error_ports
from airlam.serving.measurement import Measurement, future_shape
from airlam.serving.predictions import NO_SESSION, Predictions
from airlam.serving.reading import (
    DEADLINE,
    RECEIVER_NOISE,
    SESSIONS,
    deadline_s,
    names_in,
    receiver_noise_variance,
    wanted_media,
)
from airlam.serving.services import PrecodingServices

_TAKES = {
    "channel": ["downlinks", "num_users", "num_bs_ant"],
    "noise_variance": ["downlinks"],
    "error_covariance": ["downlinks", "num_users", "num_ports", "num_ports"],
}
_GIVES = {"precoder": ["downlinks", "num_bs_ant", "num_users"]}
_BY_SLOT = {BINARY: "precoder, [num_horizon, num_subcarriers, num_bs_ant, num_users]", JSON: ""}


class Beamforming:
    """The queue of those who want precoders, and the handlers of their paths.

    serving: whose services are ``PrecodingServices``, whatever they are exchanged for.
    """

    def __init__(self, serving: Predictions) -> None:
        self._serving = serving
        self.max_coefficients = serving.spec.max_batch_coefficients
        self.batcher = Batcher[Downlinks](
            lambda requests: self._services.precode(requests),
            max_batch_links=self.max_coefficients,
            max_queued_links=serving.spec.max_queued_coefficients,
        )

    @property
    def csi(self) -> dict[str, Csi]:
        """What each precoder was trained on."""
        return dict(self._services.csi)

    async def precode(self, request: Request) -> Response:
        """Finds precoders of some downlinks.

        A column of each is a user's beam; together they have a total power of 1.
        """
        precoder = request.path_params["precoder"]
        return await self._serving.counted(request, precoder, self._precode(request, precoder))

    async def predict_and_precode(self, request: Request) -> Response:
        """Predicts the channels of users who are served together, and finds precoders of what is predicted.

        There is one for each slot ahead and each subcarrier. The first antenna of each user receives.
        """
        lam, precoder = request.path_params["lam"], request.path_params["precoder"]
        answer = self._predict_and_precode(request, lam, precoder)
        return await self._serving.counted(request, precoder, answer)

    async def precode_sessions(self, request: Request) -> Response:
        """Finds precoders for users who are served together, from the histories that their sessions keep.

        Sessions are of this LAM and have whole histories; precoders are as where histories are sent.
        """
        lam, precoder = request.path_params["lam"], request.path_params["precoder"]
        return await self._serving.counted(request, precoder, self._precode_sessions(request, lam, precoder))

    async def precoders(self, request: Request) -> Response:
        """The precoders, with what they take and give and what of the channels they were trained on.

        Ports are all antennas, or those of one polarisation. Of csi "predicted" channels are what the LAM of
        the same name says.
        """
        shapes = {"takes": _TAKES, "gives": _GIVES, "dtype": "complex64"}
        return JSONResponse({name: {"csi": csi, **shapes} for name, csi in self.csi.items()})

    def endpoints(self) -> tuple[Endpoint, ...]:
        """The paths; where no LAM is served, nothing is predicted."""
        always = self._precoding(), self._telling()
        if not self._serving.services.settings:
            return always
        return self._predicting(), self._streaming(), *always

    async def _precode(self, request: Request, precoder: str) -> Response:
        csi = self._csi(precoder)
        limit_s = deadline_s(request, self._serving.spec.deadline_s)
        if self._serving.batcher.draining:
            raise Draining("the server is about to end; ask another one")
        max_bytes = partial(max_downlinks_bytes, self.max_coefficients)
        body, media_type = await self._serving.read(request, max_bytes)
        downlinks = read_downlinks(body, media_type, precoder, self.max_coefficients)
        if csi != "perfect" and downlinks.error_covariance is None:
            raise BodyError(422, f"{precoder} was trained on estimates; send their error_covariance as well")
        w = await self.batcher.submit(downlinks, limit_s)
        wanted = wanted_media(request, media_type)
        return Response(write_precoder(w, wanted), media_type=wanted)

    async def _predict_and_precode(self, request: Request, lam: str, precoder: str) -> Response:
        setting, limit_s = self._pair(request, lam, precoder)
        max_users = self._serving.spec.max_batch_links
        body, media_type = await self._serving.read(request, partial(max_users_bytes, setting, max_users))
        users = read_users(body, media_type, lam, setting, max_users)
        w = await self._foreseen(users, precoder, setting, limit_s)
        wanted = wanted_media(request, media_type)
        return Response(write_precoder(w, wanted), media_type=wanted)

    async def _precode_sessions(self, request: Request, lam: str, precoder: str) -> Response:
        setting, limit_s = self._pair(request, lam, precoder)
        noise_variance, names = receiver_noise_variance(request), names_in(request, SESSIONS)
        max_users = self._serving.spec.max_batch_links
        if len(names) > max_users:
            raise BodyError(422, f"{len(names)} users are asked for; expected 1 to {max_users}")
        users = Users(measurement=self._measured(names, lam), receiver_noise_variance=noise_variance)
        w = await self._foreseen(users, precoder, setting, limit_s)
        wanted = wanted_media(request, BINARY)
        return Response(write_precoder(w, wanted), media_type=wanted)

    def _pair(self, request: Request, lam: str, precoder: str) -> tuple[PredictionSetting, float]:
        """What the LAM takes, and the time of the deadline; BodyError where the two do not go together."""
        setting, csi = self._serving.setting(lam), self._csi(precoder)
        if csi == "pilots":
            raise BodyError(422, f"{precoder} was trained on estimates with errors; predictions tell of none")
        if csi == "predicted" and lam != precoder:
            raise BodyError(
                422, f"{precoder} was tuned with a predictor of its own; ask for LAM {precoder!r}"
            )
        now_s = asyncio.get_running_loop().time()
        return setting, now_s + deadline_s(request, self._serving.spec.deadline_s)

    def _measured(self, names: list[str], lam: str) -> Measurement:
        """The histories of some sessions of a LAM."""
        sessions = [self._serving.sessions.get(name) for name in names]
        found = [session for session in sessions if session is not None and session.lam == lam]
        if len(found) < len(names):
            raise BodyError(404, NO_SESSION)
        if not all(session.is_whole for session in found):
            raise BodyError(409, "a session's history is not whole yet; send more slots first")
        histories = [session.measurement() for session in found]
        return Measurement(
            lam=lam,
            history=torch.cat([each.history for each in histories]),
            noise_variance=torch.cat([each.noise_variance for each in histories]),
        )

    async def _foreseen(
        self, users: Users, precoder: str, setting: PredictionSetting, limit_s: float
    ) -> torch.Tensor:
        """Precoders of what is predicted: complex64 [num_horizon, num_subcarriers, num_bs_ant, num_users]."""
        clock, with_errors = asyncio.get_running_loop().time, self._csi(precoder) == "predicted"
        self._check_room(setting, len(users.measurement), with_errors)
        asked = replace(users.measurement, with_errors=with_errors)
        answer = await self._serving.batcher.submit(asked, limit_s - clock())

        def parts() -> list[Downlinks]:
            told = Foresight.unpacked(answer, setting) if with_errors else None
            future, errors = (answer, None) if told is None else (told.future, told.error_covariance)
            noise_variance = users.receiver_noise_variance
            return predicted_downlinks(future, noise_variance, precoder, errors).parts(self.max_coefficients)

        found = await asyncio.to_thread(parts)  # others need not wait for its checks
        w = torch.cat(await self.batcher.submit_all(found, limit_s - clock()))  # [downlinks, antennas, users]
        return rearrange(w, "(t f) m k -> t f m k", t=setting.num_horizon)

    def _check_room(self, setting: PredictionSetting, num_users: int, with_errors: bool) -> None:
        """BodyError where the precoders for what is predicted of so many users would never find room."""
        num_slots, _, num_bs_ant, num_subcarriers = future_shape(setting)
        num_errors = num_users * num_error_ports(setting) ** 2 if with_errors else 0
        each, spec = num_coefficients(num_users, num_bs_ant) + num_errors, self._serving.spec
        if each > self.max_coefficients or each * num_slots * num_subcarriers > spec.max_queued_coefficients:
            raise BodyError(
                422,
                f"{num_users} users are too many for one request, with {num_bs_ant} antennas, {num_slots} "
                f"slots and {num_subcarriers} subcarriers",
            )

    @property
    def _services(self) -> PrecodingServices:
        return cast(PrecodingServices, self._serving.services)

    def _csi(self, precoder: str) -> Csi:
        """What a precoder was trained on; 404 where there is none of that name."""
        csi = self._services.csi
        if precoder not in csi:
            raise BodyError(404, f"no precoder {precoder[:80]!r} here; there are {', '.join(csi)}")
        return csi[precoder]

    def _precoding(self) -> Endpoint:
        return Endpoint(
            method="POST",
            path="/v1/precoders/{precoder}/precode",
            handler=self.precode,
            body=Body(json=JsonDownlinks, tensors=_named(_TAKES)),
            queries=(DEADLINE,),
            answers={200: "The precoders.", **REFUSALS},
            media={BINARY: "precoder", JSON: ""},
        )

    def _predicting(self) -> Endpoint:
        return Endpoint(
            method="POST",
            path="/v1/lams/{lam}/precoders/{precoder}/precode",
            handler=self.predict_and_precode,
            body=Body(json=JsonUsers, tensors="history, noise_variance and receiver_noise_variance"),
            queries=(DEADLINE,),
            answers={200: "The precoders.", **REFUSALS},
            media=_BY_SLOT,
        )

    def _streaming(self) -> Endpoint:
        return Endpoint(
            method="POST",
            path="/v1/lams/{lam}/precoders/{precoder}/precode_sessions",
            handler=self.precode_sessions,
            queries=(SESSIONS, RECEIVER_NOISE, DEADLINE),
            answers={200: "The precoders.", 409: "A history is not whole yet.", **REFUSALS},
            media=_BY_SLOT,
        )

    def _telling(self) -> Endpoint:
        return Endpoint(method="GET", path="/v1/precoders", handler=self.precoders, answers={200: "By name."})


def predicted_downlinks(
    future: torch.Tensor,
    receiver_noise_variance: float,
    precoder: str,
    error_covariance: torch.Tensor | None = None,
) -> Downlinks:
    """One downlink for each slot ahead and each subcarrier, slots first; users' first antennas receive.

    Shapes as of ``Foresight``, a user a link. Unpredictable where a channel is predicted to be nothing.
    """
    h = rearrange(future[:, :, 0], "k t m f -> (t f) k m")
    errors = None
    if error_covariance is not None:
        errors = rearrange(error_covariance, "k t f m n -> (t f) k m n")
    noise_variance = torch.full((len(h),), receiver_noise_variance)
    try:
        return Downlinks(precoder=precoder, h=h, noise_variance=noise_variance, error_covariance=errors)
    except SpecError as error:
        raise Unpredictable(str(error)) from None


def _named(shapes: dict[str, list[str]]) -> str:
    """Tensors with their shapes, the last one for those who have it."""
    *first, last = (f"{name} [{', '.join(shape)}]" for name, shape in shapes.items())
    return f"{', '.join(first)}, and {last} of channels known up to an error"
