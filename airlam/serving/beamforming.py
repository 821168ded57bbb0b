"""What answers those who want precoders: for channels that they know, or that are to be predicted."""

import asyncio
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
    max_downlinks_bytes,
    max_users_bytes,
    read_downlinks,
    read_users,
    write_precoder,
)
from airlam.serving.downlinks import Csi, Downlinks, num_coefficients
from airlam.serving.measurement import future_shape
from airlam.serving.predictions import Predictions
from airlam.serving.reading import DEADLINE, deadline_s, read_body, wanted_media
from airlam.serving.services import PrecodingServices

_TAKES = {
    "channel": ["downlinks", "num_users", "num_bs_ant"],
    "noise_variance": ["downlinks"],
    "error_covariance": ["downlinks", "num_users", "num_bs_ant", "num_bs_ant"],
}
_GIVES = {"precoder": ["downlinks", "num_bs_ant", "num_users"]}


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

    async def precoders(self, request: Request) -> Response:
        """The precoders, with what they take and give and what of the channels they were trained on."""
        shapes = {"takes": _TAKES, "gives": _GIVES, "dtype": "complex64"}
        return JSONResponse({name: {"csi": csi, **shapes} for name, csi in self.csi.items()})

    def endpoints(self) -> tuple[Endpoint, ...]:
        """The paths; where no LAM is served, nothing is predicted."""
        endpoints = self._precoding(), self._telling()
        return (self._predicting(), *endpoints) if self._serving.services.settings else endpoints

    async def _precode(self, request: Request, precoder: str) -> Response:
        csi = self._csi(precoder)
        limit_s = deadline_s(request, self._serving.spec.deadline_s)
        if self._serving.batcher.draining:
            raise Draining("the server is about to end; ask another one")
        max_bytes = partial(max_downlinks_bytes, self.max_coefficients)
        body, media_type = await read_body(request, max_bytes, self._serving.spec.read_timeout_s)
        downlinks = read_downlinks(body, media_type, precoder, self.max_coefficients)
        if csi == "pilots" and downlinks.error_covariance is None:
            raise BodyError(422, f"{precoder} was trained on estimates; send their error_covariance as well")
        w = await self.batcher.submit(downlinks, limit_s)
        wanted = wanted_media(request, media_type)
        return Response(write_precoder(w, wanted), media_type=wanted)

    async def _predict_and_precode(self, request: Request, lam: str, precoder: str) -> Response:
        serving, clock = self._serving, asyncio.get_running_loop().time
        setting, max_users = serving.setting(lam), serving.spec.max_batch_links
        if self._csi(precoder) == "pilots":
            raise BodyError(422, f"{precoder} was trained on estimates with errors; predictions tell of none")
        limit_s = clock() + deadline_s(request, serving.spec.deadline_s)
        max_bytes = partial(max_users_bytes, setting, max_users)
        body, media_type = await read_body(request, max_bytes, serving.spec.read_timeout_s)
        users = read_users(body, media_type, lam, setting, max_users)
        self._check_room(setting, len(users.measurement))
        future = await serving.batcher.submit(users.measurement, limit_s - clock())
        downlinks = predicted_downlinks(future, users.receiver_noise_variance, precoder)
        parts = downlinks.parts(self.max_coefficients)
        w = torch.cat(await self.batcher.submit_all(parts, limit_s - clock()))  # [downlinks, antennas, users]
        wanted = wanted_media(request, media_type)
        by_slot = rearrange(w, "(t f) m k -> t f m k", t=future.shape[1])
        return Response(write_precoder(by_slot, wanted), media_type=wanted)

    def _check_room(self, setting: PredictionSetting, num_users: int) -> None:
        """BodyError where the precoders for what is predicted of so many users would never find room."""
        num_slots, _, num_bs_ant, num_subcarriers = future_shape(setting)
        each, spec = num_coefficients(num_users, num_bs_ant), self._serving.spec
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
            media={BINARY: "precoder, [num_horizon, num_subcarriers, num_bs_ant, num_users]", JSON: ""},
        )

    def _telling(self) -> Endpoint:
        return Endpoint(method="GET", path="/v1/precoders", handler=self.precoders, answers={200: "By name."})


def predicted_downlinks(future: torch.Tensor, receiver_noise_variance: float, precoder: str) -> Downlinks:
    """One downlink for each slot ahead and each subcarrier, slots first; users' first antennas receive.

    future: complex64 [num_users, num_horizon, num_user_ant, num_bs_ant, num_subcarriers]. Unpredictable where
    a user's channel is predicted to be nothing.
    """
    h = rearrange(future[:, :, 0], "k t m f -> (t f) k m")
    noise_variance = torch.full((len(h),), receiver_noise_variance)
    try:
        return Downlinks(precoder=precoder, h=h, noise_variance=noise_variance)
    except SpecError as error:
        raise Unpredictable(str(error)) from None


def _named(shapes: dict[str, list[str]]) -> str:
    """Tensors with their shapes, the last one for those who have it."""
    *first, last = (f"{name} [{', '.join(shape)}]" for name, shape in shapes.items())
    return f"{', '.join(first)}, and {last} of channels known up to an error"
