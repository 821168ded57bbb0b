"""Tuned graph precoders as services: downlinks of one size run in one batch, whoever asked for them."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from airlam.model.graph_precoder import GraphPrecoder
from airlam.model.predictive_precoder import whole_array
from airlam.serving.downlinks import Csi, Downlinks
from airlam.specs import require

Observe = Callable[[str, int, float], None]
"""(service, downlinks, seconds): told after each batch."""
PRECODER = "precoder"


class PrecoderServices:
    """Precoders by name; ``precode`` answers requests that may differ in users, antennas and precoder."""

    def __init__(
        self,
        precoders: Mapping[str, GraphPrecoder],
        observe: Observe = lambda service, downlinks, seconds: None,
        csi: Mapping[str, Csi] | None = None,
    ) -> None:
        """csi: what each was trained on; channels, where not given."""
        self._precoders = {name: one.eval().requires_grad_(False) for name, one in precoders.items()}
        trained = csi or {}
        self.csi: dict[str, Csi] = {name: trained.get(name, "perfect") for name in precoders}
        self._observe = observe

    def warm(self) -> None:
        """Has each find something: first passes take longer than all later ones."""
        h = torch.randn(1, 2, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
        for name in self._precoders:
            self.precode([Downlinks(precoder=name, h=h, noise_variance=torch.ones(1))])

    def precode(self, requests: Sequence[Downlinks]) -> list[torch.Tensor]:
        """W of total power 1 for each request: complex64 [downlinks, num_bs_ant, num_users].

        SpecError where a request names none of the precoders.
        """
        alike: dict[tuple[str, torch.Size, int | None], list[int]] = {}
        for index, request in enumerate(requests):
            known = ", ".join(self._precoders)
            require(
                request.precoder in self._precoders, f"no precoder {request.precoder!r}; there are {known}"
            )
            kind = request.precoder, request.h.shape[1:], request.num_error_ports
            alike.setdefault(kind, []).append(index)
        answers: dict[int, torch.Tensor] = {}
        for (name, _, _), places in alike.items():
            w = self._run(name, [requests[index] for index in places])
            answers |= zip(places, torch.split(w, [len(requests[index]) for index in places]), strict=True)
        return [answers[index] for index in range(len(requests))]

    def _run(self, name: str, requests: Sequence[Downlinks]) -> torch.Tensor:
        """All downlinks of some requests of one size."""
        began = time.perf_counter()
        h = torch.cat([request.h for request in requests])  # [downlinks, num_users, num_bs_ant]
        noise_variance = torch.cat([request.noise_variance for request in requests])  # [downlinks]
        errors = [request.error_covariance for request in requests if request.error_covariance is not None]
        covariance = _over_antennas(errors, h.shape[-1]) if errors else None
        with torch.inference_mode():
            w = self._precoders[name].precode(h, noise_variance, error_covariance=covariance)
        self._observe(precoder_service(name), len(h), time.perf_counter() - began)
        return w  # [downlinks, num_bs_ant, num_users]


def _over_antennas(errors: list[torch.Tensor], num_bs_ant: int) -> torch.Tensor:
    """Of some requests together: complex64 [downlinks, num_users, num_bs_ant, num_bs_ant]."""
    ports = torch.cat(errors)  # [downlinks, num_users, num_ports, num_ports]
    num_polarizations = num_bs_ant // ports.shape[-1]
    return ports if num_polarizations == 1 else whole_array(ports, num_polarizations)


def precoder_service(name: str) -> str:
    """As what a precoder stands in the service graph."""
    return f"{PRECODER}@{name}"
