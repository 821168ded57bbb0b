"""Channel predictors and precoders behind one server, as one graph of services.

What a LAM predicts of some users' channels a precoder may take, so every way out of the LAMs' graph leads on
to every precoder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from airlam.errors import SpecError
from airlam.radio.channel import PredictionSetting
from airlam.serving.downlinks import Csi, Downlinks
from airlam.serving.measurement import Measurement
from airlam.serving.precoding import PRECODER, PrecoderServices, precoder_service
from airlam.serving.service_graph import Service, ServiceGraph
from airlam.serving.services import Services
from airlam.specs import require


class JointServices:
    """Implements ``PrecodingServices``. lams: None where precoders alone are served."""

    def __init__(self, lams: Services | None, precoders: PrecoderServices) -> None:
        """SpecError where a LAM and a precoder have one name."""
        self._lams, self._precoders = lams, precoders
        self.settings: Mapping[str, PredictionSetting] = {} if lams is None else lams.settings
        both = ", ".join(sorted({*self.settings} & {*precoders.csi}))
        require(not both, f"a LAM and a precoder are both called {both}; rename a run, or serve one of them")
        found = ServiceGraph(services=(), edges=(), flows={}) if lams is None else lams.graph
        self.graph = _with_precoders(found, tuple(precoders.csi))

    @property
    def csi(self) -> Mapping[str, Csi]:
        """See ``PrecodingServices.csi``."""
        return self._precoders.csi

    def warm(self) -> None:
        """See ``Services.warm``."""
        if self._lams is not None:
            self._lams.warm()
        self._precoders.warm()

    def predict(self, requests: Sequence[Measurement]) -> list[torch.Tensor]:
        """See ``Services.predict``; SpecError where there are no LAMs."""
        if self._lams is None:
            raise SpecError("there is no LAM to predict; serve a run of channel prediction")
        return self._lams.predict(requests)

    def precode(self, requests: Sequence[Downlinks]) -> list[torch.Tensor]:
        """See ``PrecodingServices.precode``."""
        return self._precoders.precode(requests)


def _with_precoders(graph: ServiceGraph, names: Sequence[str]) -> ServiceGraph:
    """The graph with a service of its own for each precoder, behind all that gives channels."""
    sources = {source for source, _ in graph.edges}
    ends = [service.name for service in graph.services if service.name not in sources]
    added = tuple(Service(name=precoder_service(name), module=PRECODER, tasks=(name,)) for name in names)
    return replace(
        graph,
        services=(*graph.services, *added),
        edges=(*graph.edges, *((end, service.name) for service in added for end in ends)),
        flows={**graph.flows, **{name: {PRECODER: precoder_service(name)} for name in names}},
    )
