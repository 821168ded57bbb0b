"""A service graph over the nodes of a Ray cluster, behind the same ``Services`` as in one process.

The server asks a node to run all phases of some requests that the plan has put there, so that services on one
node are one message; what no node has together goes through the server. Requests of a batch are shared out
to as many processes as there are. Path-EB, which a guard may ask for, runs where a LAM's tokens are made.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

import torch

from airlam.errors import DataError
from airlam.radio.channel import PredictionSetting
from airlam.serving.guarding import GuardedServices, LinkGuard, path_eb_service
from airlam.serving.lam_services import Observe, answers_of, first_measurements
from airlam.serving.measurement import Measurement, Question
from airlam.serving.ray_fleet import Fleet
from airlam.serving.ray_messages import CLASSICAL, ERROR, FUTURE, PHASES, State, request_of, state_in
from airlam.serving.ray_stages import located
from airlam.serving.service_graph import ServiceGraph
from airlam.serving.services import Services
from airlam.split.messages import Message, decode, encode
from airlam.tokens.beam_history import BeamScales

Hosts = tuple[tuple[str, ...], ...]
"""The nodes that may run each phase, those first that the plan sends requests to."""


class RemoteLams:
    """LAMs whose services run on the nodes of a fleet; implements ``Services``.

    hosts: of each LAM. num_bytes: of all weights, each counted once. on_close: has the fleet's processes end.
    """

    def __init__(
        self,
        fleet: Fleet,
        hosts: Mapping[str, Hosts],
        graph: ServiceGraph,
        settings: Mapping[str, PredictionSetting],
        num_bytes: int,
        on_close: Callable[[], None],
        observe: Observe = lambda service, links, duration_s: None,
    ) -> None:
        self.graph, self.settings, self.num_bytes = graph, dict(settings), num_bytes
        self.beam_settings: dict[str, BeamScales] = {}
        self._fleet, self.hosts, self._observe = fleet, hosts, observe
        self.close = on_close

    def warm(self) -> None:
        """See ``Services.warm``; replicas are warm before they are asked."""
        self.predict(first_measurements(self.settings))

    def predict(self, requests: Sequence[Question]) -> list[torch.Tensor]:
        """See ``Services.predict``."""
        return answers_of(requests, self.settings, self._futures)

    def path_eb(self, lam: str) -> "RemotePathEb":
        """Path-EB for a LAM's links."""
        return RemotePathEb(name=lam, lams=self)

    def classical(self, asked: Measurement) -> torch.Tensor:
        """What Path-EB predicts where the LAM's tokens are made."""
        own = {asked.lam: [asked]}
        answer = self._ran(self.hosts[asked.lam][0], own, lambda node: (CLASSICAL,), {})
        return state_in(answer)[asked.lam][FUTURE]

    def _futures(self, asked: Mapping[str, Sequence[Question]]) -> dict[str, torch.Tensor]:
        alike: dict[Hosts, dict[str, Sequence[Measurement]]] = {}
        for lam, requests in asked.items():  # none of sweeps: no such LAM is here
            alike.setdefault(self.hosts[lam], {})[lam] = cast(Sequence[Measurement], requests)
        return {
            lam: future for hosts, own in alike.items() for lam, future in self._through(hosts, own).items()
        }

    def _through(self, hosts: Hosts, asked: Mapping[str, Sequence[Measurement]]) -> dict[str, torch.Tensor]:
        """All phases of the requests of LAMs that are at home on the same nodes."""
        state: dict[str, dict[str, torch.Tensor]] = {lam: {} for lam in asked}
        done = 0

        def together(node: str) -> tuple[str, ...]:
            end = done + 1
            while end < len(PHASES) and node in hosts[end]:
                end += 1
            return PHASES[done:end]

        while done < len(PHASES):
            answer = self._ran(hosts[done], asked, together, state)
            for lam, found in state_in(answer).items():
                state[lam] |= found
            done += len(answer.header.modules)
        return {lam: own[FUTURE] for lam, own in state.items()}

    def _ran(
        self,
        nodes: Sequence[str],
        asked: Mapping[str, Sequence[Measurement]],
        phases: Callable[[str], tuple[str, ...]],
        state: State,
    ) -> Message:
        """What some node answers; DataError where nothing comes of the numbers."""
        num_links = sum(len(request) for requests in asked.values() for request in requests)
        _, data = self._fleet.call(
            nodes, num_links, lambda node: encode(request_of(asked, phases(node), state))
        )
        answer = decode(data)
        if answer.header.operation == ERROR:
            raise DataError(answer.header.text)
        for service, links, duration_s in json.loads(answer.header.text):
            self._observe(service, links, duration_s)
        return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePathEb:
    """A ``Predictor``. name: the LAM's."""

    name: str
    lams: RemoteLams

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``."""
        return self.lams.classical(Measurement(lam=self.name, history=history, noise_variance=noise_variance))


def guarded(lams: RemoteLams, guards: Mapping[str, LinkGuard], observe: Observe) -> Services:
    """The LAMs behind their guards, if there are any."""
    if not guards:
        return lams
    services = GuardedServices(lams, guards, observe, lambda setting, lam: lams.path_eb(lam))
    where = {path_eb_service(lam): lams.hosts[lam][0] for lam in guards}
    services.graph = located(services.graph, where)
    return services


class SharedOut:
    """Services whose batches are shared out to ``width`` calls side by side; implements ``Services``."""

    def __init__(self, services: Services, width: int) -> None:
        self._services, self._width = services, width
        self._pool = ThreadPoolExecutor(width, thread_name_prefix="airlam-share")
        self.settings, self.graph = services.settings, services.graph
        self.beam_settings = services.beam_settings

    def warm(self) -> None:
        """See ``Services.warm``; not in the caller's thread, where an event loop may run."""
        self._pool.submit(self._services.warm).result()

    def close(self) -> None:
        """See ``Services.close``."""
        self._pool.shutdown()
        self._services.close()

    def predict(self, requests: Sequence[Question]) -> list[torch.Tensor]:
        """See ``Services.predict``."""
        shares = shared_out(requests, self._width)
        if len(shares) == 1:
            return self._services.predict(requests)
        parts = [[requests[index] for index in share] for share in shares]
        answers: dict[int, torch.Tensor] = {}
        for share, found in zip(shares, self._pool.map(self._services.predict, parts), strict=True):
            answers |= zip(share, found, strict=True)
        return [answers[index] for index in range(len(requests))]


def shared_out(requests: Sequence[Question], width: int) -> list[list[int]]:
    """Indices of requests in at most ``width`` shares of about as many links each.

    What is asked of one measurement stays together.
    """
    together: dict[int, list[int]] = {}
    for index, request in enumerate(requests):
        together.setdefault(id(request.history), []).append(index)
    shares: list[list[int]] = [[] for _ in range(min(width, len(together)))]
    links = [0] * len(shares)
    for own in sorted(together.values(), key=lambda own: -len(requests[own[0]])):
        least = links.index(min(links))
        shares[least] += own
        links[least] += sum(len(requests[index]) for index in own)
    return shares
