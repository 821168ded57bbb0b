"""What runs in each process of Ray Serve: phases of requests, bytes in and bytes out.

Ray pickles what its own processes say to each other, and asks for its cluster's token. Ray Serve 2.55.1 also
opens a port in each replica, on all of a machine's addresses, that asks for none and unpickles what comes;
nobody of ours uses it, and ``close_serve_port`` keeps it shut.
"""

import importlib
import json
import os
from typing import Any

import torch

from airlam.errors import AirlamError
from airlam.radio.prediction.path_eb import PathEb
from airlam.ray_cluster import fetched
from airlam.serving.lam_services import LamServices
from airlam.serving.ray_messages import (
    CLASSICAL,
    ERROR,
    FUTURE,
    HIDDEN,
    TOKENS,
    answer_of,
    asked_in,
    context_in,
    fields_of,
    state_in,
    telling_in,
    tokens_in,
)
from airlam.serving.ray_recipes import LamsRecipe, lams_of
from airlam.split.messages import Header, Message, Tensors, decode, encode


class Phases:
    """Runs phases of requests with LAMs of its own."""

    def __init__(self, recipe: LamsRecipe) -> None:
        self._passes: list[tuple[str, int, float]] = []
        self._services = LamServices(lams_of(recipe), lambda *ran: self._passes.append(ran))
        self._classical: dict[str, PathEb] = {}

    def warm(self) -> None:
        """First passes take longer than all later ones."""
        self._services.warm()

    def handle(self, message: Message) -> Message:
        """One message and its answer; what numbers caused is an answer too.

        The answer's text are the passes that it took: service, links and seconds of each, as JSON.
        """
        self._passes.clear()
        try:
            state = self._run(message)
        except (AirlamError, RuntimeError, ValueError) as error:  # torch's of a matrix it cannot factor
            return Message(header=Header(operation=ERROR, text=str(error)))
        return answer_of(message, state, json.dumps(self._passes))

    @torch.inference_mode()
    def _run(self, message: Message) -> dict[str, Tensors]:
        phases, state = message.header.modules, state_in(message)
        if CLASSICAL in phases:
            for lam, requests in asked_in(message).items():
                futures = [self._path_eb(lam).predict(r.history, r.noise_variance) for r in requests]
                state[lam][FUTURE] = torch.cat(futures)
        if TOKENS in phases:
            for lam, tokens in self._services.tokens(asked_in(message)).items():
                state[lam] |= fields_of(tokens)
        if HIDDEN in phases:
            given = {lam: tokens_in(own) for lam, own in state.items()}
            for lam, hidden in self._services.hidden(given).items():
                state[lam][HIDDEN] = hidden
        if FUTURE in phases:
            telling = telling_in(message)
            for lam, own in state.items():
                own[FUTURE] = self._services.future(lam, own[HIDDEN], context_in(own), lam in telling)
        return state

    def _path_eb(self, lam: str) -> PathEb:
        if lam not in self._classical:
            self._classical[lam] = PathEb(self._services.settings[lam])
        return self._classical[lam]


class Replica:
    """``Phases`` as Ray Serve runs them."""

    def __init__(self, shapes: str, weights: list[Any], threads: int) -> None:
        """weights: Ray's reference to ``LamsRecipe.weights``, in a list so that it is not fetched before."""
        self._knocked = close_serve_port()
        torch.set_num_threads(threads)
        self._phases = Phases(LamsRecipe(shapes=shapes, weights=fetched(weights[0])))
        self._phases.warm()

    def check_health(self) -> None:
        """Ray Serve asks before it uses a replica, and again now and then."""
        if not self._knocked:
            raise RuntimeError(
                "Ray Serve did not open its port where it used to; is it the release we pinned?"
            )

    def run(self, data: bytes) -> bytes:
        """One message and its answer."""
        return encode(self._phases.handle(decode(data)))

    def process_id(self) -> int:
        """For whoever watches it."""
        return os.getpid()


def close_serve_port() -> list[str]:
    """Keeps gRPC servers of this process from opening ports without TLS; what they ask for comes in the list.

    To be called before Ray Serve has a replica listen. The calls that would come there go through Ray itself
    (``RAY_SERVE_USE_GRPC_BY_DEFAULT=0``, the default).
    """
    asked: list[str] = []

    def refuse(server: object, address: str) -> int:
        asked.append(address)
        return 0

    importlib.import_module("grpc.aio._server").Server.add_insecure_port = refuse
    return asked
