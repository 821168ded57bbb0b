"""What answers those who want beams for the next sweeps."""

from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airlam.serving.arrays import BINARY, JSON, BodyError
from airlam.serving.beam_bodies import BeamChoice, JsonSweeps, max_sweeps_bytes, read_sweeps, write_choice
from airlam.serving.description import REFUSALS, Body, Endpoint
from airlam.serving.predictions import Predictions
from airlam.serving.reading import DEADLINE, TOP, deadline_s, top_beams, wanted_media
from airlam.tokens.beam_history import BeamScales


class Beams:
    """The handlers of the paths of beam selection; requests wait in the queue of all LAMs.

    A batch may hold them beside measurements, and LAMs of one backbone run in one pass.
    """

    def __init__(self, serving: Predictions) -> None:
        self._serving = serving

    async def choose_beams(self, request: Request) -> Response:
        """Chooses the beams of the sweeps after some windows, the likeliest first."""
        lam = request.path_params["beam_lam"]
        return await self._serving.counted(request, lam, self._choose(request, lam))

    async def beam_lams(self, request: Request) -> Response:
        """The LAMs of beam selection, with what they take and give."""
        settings = self._serving.services.beam_settings
        return JSONResponse({name: _shapes(setting) for name, setting in settings.items()})

    async def _choose(self, request: Request, lam: str) -> Response:
        serving, settings = self._serving, self._serving.services.beam_settings
        if lam not in settings:
            raise BodyError(404, f"no LAM {lam[:80]!r} chooses beams here; there are {', '.join(settings)}")
        setting, max_windows = settings[lam], serving.spec.max_batch_links
        limit_s, top = deadline_s(request, serving.spec.deadline_s), top_beams(request, setting.num_beams)
        body, media_type = await serving.read(request, partial(max_sweeps_bytes, setting, max_windows))
        sweeps = read_sweeps(body, media_type, lam, setting, max_windows)
        shares = await serving.batcher.submit(sweeps, limit_s)
        wanted = wanted_media(request, media_type)
        return Response(write_choice(BeamChoice.of(shares, top), wanted), media_type=wanted)

    def endpoints(self) -> tuple[Endpoint, ...]:
        """The paths."""
        return (
            Endpoint(
                method="POST",
                path="/v1/beams/{beam_lam}/choose",
                handler=self.choose_beams,
                body=Body(
                    json=JsonSweeps,
                    tensors="power [windows, num_past, num_beams], position_m [windows, num_past, 3]",
                ),
                queries=(TOP, DEADLINE),
                answers={200: "Beams, and their shares in the LAM's choice.", **REFUSALS},
                media={BINARY: "beam and share, [windows, num_ahead, top]", JSON: ""},
            ),
            Endpoint(method="GET", path="/v1/beams", handler=self.beam_lams, answers={200: "By name."}),
        )


def _shapes(setting: BeamScales) -> dict[str, object]:
    return {
        "takes": {
            "power": ["windows", setting.num_past, setting.num_beams],
            "position_m": ["windows", setting.num_past, 3],
        },
        "gives": {name: ["windows", setting.num_ahead, "top"] for name in ("beam", "share")},
        "dtype": "float32",
    }
