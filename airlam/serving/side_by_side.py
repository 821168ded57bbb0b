"""LAMs of channel prediction in other processes and LAMs of beam selection in this one, as one graph."""

from collections.abc import Sequence

import torch

from airlam.serving.lam_services import LamServices
from airlam.serving.measurement import Measurement, Question, Sweeps
from airlam.serving.service_graph import beside
from airlam.serving.services import Services


class SideBySide:
    """Implements ``Services``. beams: of beam selection alone, not ``is_whole``; nothing is shared."""

    def __init__(self, lams: Services, beams: LamServices) -> None:
        self._lams, self._beams = lams, beams
        self.settings, self.beam_settings = lams.settings, beams.beam_settings
        self.graph = beside(lams.graph, beams.graph)

    def warm(self) -> None:
        """See ``Services.warm``."""
        self._lams.warm()
        self._beams.warm()

    def close(self) -> None:
        """See ``Services.close``."""
        self._lams.close()

    def predict(self, requests: Sequence[Question]) -> list[torch.Tensor]:
        """See ``Services.predict``."""
        swept = [request for request in requests if isinstance(request, Sweeps)]
        measured = [request for request in requests if isinstance(request, Measurement)]
        chosen = iter(self._beams.predict(swept) if swept else ())
        futures = iter(self._lams.predict(measured) if measured else ())
        return [next(chosen if isinstance(request, Sweeps) else futures) for request in requests]
