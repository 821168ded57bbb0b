"""Which module is where, and which copies are averaged, in each way of fine-tuning together.

``split``: tokens, embedding and head on the devices, blocks with LoRA on the server (Wang et al., Edge Large
AI Models, 2505.00321, Fig. 2). ``federated_lora``, ``fedavg``: each device has a whole LAM, whose trained
weights (adapters; everything) are averaged (McMahan et al., 1602.05629). ``local``: the same, and nothing is.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from airlam.model.lam import LAM
from airlam.specs import FederatedSpec, require
from airlam.split.graph import ModuleGraph, Precision
from airlam.split.part import EMBEDDING, HEAD, TOKENIZER, freeze
from airlam.split.plan import SplitPlan
from airlam.split.run import chain_of, trainable_modules
from airlam.training.privacy import train_one_factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A plan, and what of it is averaged at the server: modules of which each device trains a copy."""

    plan: SplitPlan
    server: str
    shared: tuple[str, ...]

    @property
    def is_split(self) -> bool:
        """Whether the server runs anything, so that all devices wait for each other at each step."""
        return bool(self.plan.modules_on(self.server))


def layout_of(
    spec: FederatedSpec, lam: LAM, graph: ModuleGraph, devices: Sequence[str], server: str
) -> Layout:
    """The layout that a spec asks for; ``lam`` has been through ``prepare``, ``graph`` is its profile."""
    chain = chain_of(lam)
    away = [name for name in chain if spec.method == "split" and not _stays(name)]
    # a single device is the node of its own flow too, so flows are named
    plan = SplitPlan(
        replicas={name: (server,) if name in away else tuple(devices) for name in chain},
        lora_ranks={m.name: lam.spec.lora_rank for m in graph.modules if m.lora is not None},
        precisions=dict.fromkeys(itertools.pairwise(chain), _precision(spec)),
        flows=tuple(devices),
    )
    trained = [name for name in chain if name in trainable_modules(lam) and name not in away]
    personal = spec.method == "local" or spec.head == "personal"
    shared = () if spec.method == "local" else trained
    kept_back = [name for name in shared if personal and name.startswith(HEAD)]
    return Layout(plan=plan, server=server, shared=tuple(n for n in shared if n not in kept_back))


def prepare(lam: LAM, spec: FederatedSpec) -> None:
    """Freezes what a run freezes; SpecError where method and tuning do not go together."""
    wanted = "full" if spec.method == "fedavg" else "lora"
    fits = lam.spec.tuning == wanted or (spec.method == "local" and lam.spec.tuning != "head")
    require(fits, f"{spec.method} tunes by {wanted!r}; the model's tuning is {lam.spec.tuning!r}")
    if spec.freeze_embedding and spec.method != "fedavg":
        freeze(lam, EMBEDDING)
    if spec.one_factor:
        count = train_one_factor(lam)
        require(count > 0, f"one_factor is of LoRA; the model's tuning is {lam.spec.tuning!r}")


def _stays(module: str) -> bool:
    """Whether a split leaves a module on the devices."""
    return module in (TOKENIZER, EMBEDDING) or module.startswith(HEAD)


def _precision(spec: FederatedSpec) -> Precision:
    return spec.precision
