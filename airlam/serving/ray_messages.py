"""What travels between the server and the processes that run phases of requests.

A message's flows are the LAMs that are asked, its modules the phases to run. Of LAM i it has tensors
``i.NAME``; its text says which of the measurements ``measured.k.*`` are LAM i's, so that one that several
LAMs are asked of travels once and is made into tokens once, and which LAMs have to tell their errors.

| phase | takes | gives |
|---|---|---|
| tokens | measured.k.history, measured.k.noise_variance | i.features, i.mask, i.context.* |
| hidden | i.features, i.mask | i.hidden |
| future | i.hidden, i.context.* | i.future |
| classical | as tokens | i.future |
"""

import json
from collections.abc import Mapping, Sequence

import torch

from airlam.serving.measurement import Measurement, tells_errors
from airlam.split.messages import Header, Message, Tensors
from airlam.tokens.base import TokenBatch

TOKENS, HIDDEN, FUTURE = "tokens", "hidden", "future"
PHASES = (TOKENS, HIDDEN, FUTURE)
CLASSICAL = "classical"
"""The one phase of what no LAM answers: Path-EB does, which needs no weights."""
RUN, RAN, ERROR = "run", "ran", "error"
_CONTEXT = "context."
_ROWS, _TELLING = "rows", "telling"
_TAKES = {TOKENS: (), HIDDEN: ("features", "mask"), FUTURE: (HIDDEN, _CONTEXT), CLASSICAL: ()}
_GIVES = {
    TOKENS: ("features", "mask", _CONTEXT),
    HIDDEN: (HIDDEN,),
    FUTURE: (FUTURE,),
    CLASSICAL: (FUTURE,),
}
State = Mapping[str, Tensors]
"""What is known of each LAM's requests, by names without ``i.``."""


def inputs_of(phases: Sequence[str]) -> tuple[str, ...]:
    """What phases that follow one another take and none of them gives: names, or how names begin."""
    taken: dict[str, None] = {}
    given: set[str] = set()
    for phase in phases:
        taken |= dict.fromkeys(name for name in _TAKES[phase] if name not in given)
        given.update(_GIVES[phase])
    return tuple(taken)


def outputs_of(phases: Sequence[str]) -> tuple[str, ...]:
    """What of all that phases give a later one takes; of the last, the future."""
    later = PHASES[PHASES.index(phases[-1]) + 1 :] if phases[-1] in PHASES else ()
    given = {name for phase in phases for name in _GIVES[phase]}
    return tuple(name for name in inputs_of(later) or (FUTURE,) if name in given)


def request_of(asked: Mapping[str, Sequence[Measurement]], phases: Sequence[str], state: State) -> Message:
    """What a process is sent to run some phases for some LAMs' requests."""
    tensors = _flat(state, inputs_of(phases), tuple(asked))
    rows: list[list[int]] = []
    if phases[0] in (TOKENS, CLASSICAL):
        measured: dict[tuple[int, int], int] = {}
        for requests in asked.values():
            rows.append([])
            for request in requests:
                key = id(request.history), id(request.noise_variance)
                place = measured.setdefault(key, len(measured))
                rows[-1].append(place)
                tensors[f"measured.{place}.history"] = request.history
                tensors[f"measured.{place}.noise_variance"] = request.noise_variance
    telling = [lam for lam, requests in asked.items() if tells_errors(requests)]
    text = json.dumps({_ROWS: rows, _TELLING: telling})
    header = Header(operation=RUN, modules=tuple(phases), flows=tuple(asked), text=text)
    return Message(header=header, tensors=tensors)


def asked_in(message: Message) -> dict[str, list[Measurement]]:
    """The measurements of each LAM; what was sent once is one tensor."""
    tensors = message.tensors
    return {
        lam: [
            Measurement(
                lam=lam,
                history=tensors[f"measured.{place}.history"],
                noise_variance=tensors[f"measured.{place}.noise_variance"],
            )
            for place in places
        ]
        for lam, places in zip(message.header.flows, json.loads(message.header.text)[_ROWS], strict=True)
    }


def telling_in(message: Message) -> list[str]:
    """The LAMs that have to tell their errors."""
    found: list[str] = json.loads(message.header.text)[_TELLING]
    return found


def answer_of(message: Message, state: State, text: str) -> Message:
    """What comes back of the phases that a message asked for."""
    phases, lams = message.header.modules, message.header.flows
    header = Header(operation=RAN, modules=phases, flows=lams, text=text)
    return Message(header=header, tensors=_flat(state, outputs_of(phases), lams))


def state_in(message: Message) -> dict[str, Tensors]:
    """What a message says of each LAM's requests."""
    state: dict[str, Tensors] = {lam: {} for lam in message.header.flows}
    for key, value in message.tensors.items():
        place, _, name = key.partition(".")
        if place.isdecimal():
            state[message.header.flows[int(place)]][name] = value
    return state


def tokens_in(own: Tensors) -> TokenBatch:
    """A LAM's tokens as a backbone needs them, without context."""
    return TokenBatch(features=own["features"], mask=own["mask"], context={})


def context_in(own: Tensors) -> Tensors:
    """What a LAM's head takes besides hidden states."""
    return {name.removeprefix(_CONTEXT): value for name, value in own.items() if name.startswith(_CONTEXT)}


def fields_of(tokens: TokenBatch) -> dict[str, torch.Tensor]:
    """Tokens as messages name them."""
    context = {_CONTEXT + name: value for name, value in tokens.context.items()}
    return {"features": tokens.features, "mask": tokens.mask, **context}


def _flat(state: State, names: tuple[str, ...], lams: Sequence[str]) -> Tensors:
    return {
        f"{index}.{name}": value
        for index, lam in enumerate(lams)
        for name, value in state.get(lam, {}).items()
        if name.startswith(names)
    }
