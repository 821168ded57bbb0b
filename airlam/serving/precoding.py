"""Tuned graph precoders as services: downlinks of one size run in one batch, whoever asked for them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from airlam.model.graph_precoder import GraphPrecoder
from airlam.specs import require

Observe = Callable[[str, int, float], None]
"""(precoder, downlinks, seconds): told after each batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Downlinks:
    """What one request asks: precoders of some downlinks, by one graph precoder.

    h: complex64 [downlinks, num_users, num_bs_ant], row k user k's channel as known. noise_variance: float32
    [downlinks], of each user's receiver over the total power of 1. SpecError for what has no precoder.
    """

    precoder: str
    h: torch.Tensor
    noise_variance: torch.Tensor

    def __post_init__(self) -> None:
        require(
            self.h.ndim == 3 and self.h.dtype == torch.complex64 and bool(self.h.numel()),
            f"h is {tuple(self.h.shape)} {self.h.dtype}; expected complex64 [downlinks, num_users, "
            "num_bs_ant]",
        )
        require(
            self.noise_variance.shape == (len(self.h),) and self.noise_variance.dtype == torch.float32,
            f"noise_variance is {tuple(self.noise_variance.shape)} {self.noise_variance.dtype}; expected "
            f"float32 [{len(self.h)}]",
        )
        power = self.h.abs().square().sum(dim=-1) / self.noise_variance[:, None]  # [downlinks, num_users]
        sound = bool(power.isfinite().all()) and bool((power > 0).all())
        require(sound, "every user's channel over the noise must be finite and above 0; leave others out")

    def __len__(self) -> int:
        return len(self.h)


class PrecoderServices:
    """Precoders by name; ``precode`` answers requests that may differ in users, antennas and precoder."""

    def __init__(
        self,
        precoders: Mapping[str, GraphPrecoder],
        observe: Observe = lambda precoder, downlinks, seconds: None,
    ) -> None:
        self.precoders = {name: one.eval().requires_grad_(False) for name, one in precoders.items()}
        self._observe = observe

    def precode(self, requests: Sequence[Downlinks]) -> list[torch.Tensor]:
        """W of total power 1 for each request: complex64 [downlinks, num_bs_ant, num_users].

        SpecError where a request names none of the precoders.
        """
        alike: dict[tuple[str, torch.Size], list[int]] = {}
        for index, request in enumerate(requests):
            known = ", ".join(self.precoders)
            require(
                request.precoder in self.precoders, f"no precoder {request.precoder!r}; there are {known}"
            )
            alike.setdefault((request.precoder, request.h.shape[1:]), []).append(index)
        answers: dict[int, torch.Tensor] = {}
        for (name, _), places in alike.items():
            w = self._run(name, [requests[index] for index in places])
            answers |= zip(places, torch.split(w, [len(requests[index]) for index in places]), strict=True)
        return [answers[index] for index in range(len(requests))]

    def _run(self, name: str, requests: Sequence[Downlinks]) -> torch.Tensor:
        """All downlinks of some requests of one size."""
        began = time.perf_counter()
        h = torch.cat([request.h for request in requests])  # [downlinks, num_users, num_bs_ant]
        noise_variance = torch.cat([request.noise_variance for request in requests])  # [downlinks]
        with torch.inference_mode():
            w = self.precoders[name].precode(h, noise_variance)  # [downlinks, num_bs_ant, num_users]
        self._observe(name, len(h), time.perf_counter() - began)
        return w
