"""What training would reach with all samples in one place: the mark that federated training is held to."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from airlam.model.lam import LAM
from airlam.split.part import LamPart
from airlam.split.plan import SplitPlan
from airlam.split.run import chain_of, local_session
from airlam.tokens.base import TokenBatch
from airlam.training.federated.report import CurvePoint
from airlam.training.federated.run import Evaluate
from airlam.training.federated.setup import MAX_GRADIENT_NORM, Setup, device_batches
from airlam.training.optimiser import adamw, adamw_options, learning_rate

_CENTER = "center"


@dataclass(frozen=True, slots=True, kw_only=True)
class CentralResult:
    """curve: validation NMSE against steps, without time or bytes. lam: the best of it, ready to be used."""

    curve: list[CurvePoint]
    lam: LAM


def train_centrally(
    setup: Setup, evaluate: Evaluate, on_step: Callable[[int], None] = lambda step: None
) -> CentralResult:
    """Each step on the batches of all devices together, as if they were here; nothing is sent.

    The weights in ``setup.lam`` stay as they are.
    """
    training, lam = setup.training, setup.lam
    options = adamw_options(training)
    session = local_session(
        lam,
        SplitPlan.single(dict.fromkeys(chain_of(lam), _CENTER)),
        lambda parameters: adamw(parameters, **options),
        loss=setup.loss,
        seed=training.seed,
    )
    session.hold(_CENTER, together(list(setup.samples.values())))
    sizes = [len(tokens) for tokens in setup.samples.values()]
    starts = dict(zip(setup.samples, [0, *itertools.accumulate(sizes)], strict=False))

    def point(num_steps: int) -> tuple[CurvePoint, LAM]:
        whole = LamPart(lam, lam.module_names).lam
        session.copy_into(whole, _CENTER)
        nmse = evaluate(whole.eval())
        return CurvePoint(num_rounds=num_steps, now_s=0.0, uplink_bytes=0, nmse=nmse), whole

    first, best = point(0)
    curve = [first]
    for step in range(training.num_steps):
        batch = torch.cat([starts[device] + ids for device, ids in device_batches(setup, step).items()])
        found = session.forward_backward(step, {_CENTER: batch})
        rate = learning_rate(training, step)
        session.apply(found, learning_rate=rate, max_gradient_norm=MAX_GRADIENT_NORM)
        if (step + 1) % training.validation_every_steps == 0 or step + 1 == training.num_steps:
            following, whole = point(step + 1)
            best = whole if following.nmse < min(each.nmse for each in curve) else best
            curve.append(following)
        on_step(step)
    return CentralResult(curve=curve, lam=best)


def together(batches: list[TokenBatch]) -> TokenBatch:
    """One batch of all."""
    return TokenBatch(
        features=torch.cat([batch.features for batch in batches]),
        mask=torch.cat([batch.mask for batch in batches]),
        context={name: torch.cat([b.context[name] for b in batches]) for name in batches[0].context},
    )
