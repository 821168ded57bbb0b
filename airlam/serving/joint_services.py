"""Channel predictors and precoders behind one server, as one graph of services.

What a LAM predicts of some users' channels a precoder that was trained on channels may take, so every way out
of the LAMs' graph but that of beam selection leads on to it. A precoder that was tuned with its predictor
takes what this one says, and has its name; one that was trained on pilots takes no predictions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from airlam.errors import SpecError
from airlam.radio.channel import PredictionSetting
from airlam.serving.downlinks import Csi, Downlinks
from airlam.serving.measurement import Question
from airlam.serving.module_sharing import BEAM_HEAD, HEAD
from airlam.serving.precoding import PRECODER, PrecoderServices, precoder_service
from airlam.serving.service_graph import Service, ServiceGraph
from airlam.serving.services import Services
from airlam.specs import require
from airlam.tokens.beam_history import BeamScales


class JointServices:
    """Implements ``PrecodingServices``. lams: None where precoders alone are served; those that foresee have
    the names of precoders of ``csi`` "predicted".
    """

    def __init__(self, lams: Services | None, precoders: PrecoderServices) -> None:
        """SpecError where a LAM and a precoder have one name and are not of one run."""
        self._lams, self._precoders = lams, precoders
        self.settings: Mapping[str, PredictionSetting] = {} if lams is None else lams.settings
        self.beam_settings: Mapping[str, BeamScales] = {} if lams is None else lams.beam_settings
        apart = {name for name, csi in precoders.csi.items() if csi != "predicted"}
        both = ", ".join(sorted({*self.settings, *self.beam_settings} & apart))
        require(not both, f"a LAM and a precoder are both called {both}; rename a run, or serve one of them")
        found = ServiceGraph(services=(), edges=(), flows={}) if lams is None else lams.graph
        self.graph = with_precoders(found, precoders.csi)

    @property
    def csi(self) -> Mapping[str, Csi]:
        """See ``PrecodingServices.csi``."""
        return self._precoders.csi

    def warm(self) -> None:
        """See ``Services.warm``."""
        if self._lams is not None:
            self._lams.warm()
        self._precoders.warm()

    def close(self) -> None:
        """See ``Services.close``; precoders are in this process."""
        if self._lams is not None:
            self._lams.close()

    def predict(self, requests: Sequence[Question]) -> list[torch.Tensor]:
        """See ``Services.predict``; SpecError where there are no LAMs."""
        if self._lams is None:
            raise SpecError("there is no LAM to predict; serve a run of channel prediction")
        return self._lams.predict(requests)

    def precode(self, requests: Sequence[Downlinks]) -> list[torch.Tensor]:
        """See ``PrecodingServices.precode``."""
        return self._precoders.precode(requests)


def with_precoders(graph: ServiceGraph, csi_of: Mapping[str, Csi]) -> ServiceGraph:
    """The graph with a service of its own for each precoder, behind what gives it channels."""
    given = {source for source, _ in graph.edges}
    ends = tuple(one.name for one in graph.services if one.name not in given and one.module != BEAM_HEAD)
    services, edges, flows = list(graph.services), list(graph.edges), dict(graph.flows)
    for name, csi in csi_of.items():
        own = precoder_service(name)
        services.append(Service(name=own, module=PRECODER, tasks=(name,)))
        sources = (graph.service_of(name, HEAD),) if csi == "predicted" else ends if csi == "perfect" else ()
        edges += ((source, own) for source in sources)
        flows[name] = {**graph.flows.get(name, {}), PRECODER: own}
    return replace(graph, services=tuple(services), edges=tuple(edges), flows=flows)
