"""A plan as stages: runs of consecutive modules on one node, for each flow."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from airlam.errors import SpecError
from airlam.split.graph import Precision
from airlam.split.part import HEAD, TOKENIZER, needs_mask
from airlam.split.plan import SplitPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Consecutive modules on one node. precision: of the edge into the stage, in both directions."""

    node: str
    modules: tuple[str, ...]
    precision: Precision = "fp32"

    @property
    def needs_mask(self) -> bool:
        """Whether a module here looks at which tokens are real."""
        return needs_mask(self.modules)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The stages of one flow. trainable: those of the flow's modules that train."""

    flow: str
    stages: tuple[Stage, ...]
    trainable: frozenset[str]

    def trains_before(self, index: int) -> bool:
        """Whether anything before this stage trains, so that a gradient goes back there."""
        return any(name in self.trainable for stage in self.stages[:index] for name in stage.modules)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes of the stages, each once."""
        return tuple(dict.fromkeys(stage.node for stage in self.stages))

    @property
    def can_keep(self) -> bool:
        """Whether the first stage makes the same of a sample every time, for another node to keep."""
        return len(self.stages) > 1 and not self.trains_before(1)

    def differentiated(self, index: int) -> tuple[str, ...]:
        """The stage's modules that a gradient passes."""
        passed = self.trains_before(index)
        modules = []
        for name in self.stages[index].modules:
            passed = passed or name in self.trainable
            modules += [name] if passed else []
        return tuple(modules)

    def lacks_mask(self, index: int) -> bool:
        """Whether the stage's node needs a mask that nothing before has brought there."""
        stage = self.stages[index]
        holders = {self.stages[0].node} | {s.node for s in self.stages[1:index] if s.needs_mask}
        return stage.needs_mask and stage.node not in holders

    @property
    def context_travels(self) -> bool:
        """Whether the head is elsewhere than the samples, so that their context must follow."""
        return self.stages[0].node != self.stages[-1].node


def route_of(plan: SplitPlan, flow: str, chain: Sequence[str], trainable: Collection[str]) -> Route:
    """The stages of a flow of a plan.

    chain: the LAM's modules from the tokeniser to one head, in order. SpecError where the plan lacks one.
    """
    if not chain or chain[0] != TOKENIZER or not chain[-1].startswith(HEAD):
        raise SpecError(f"the chain is {', '.join(chain)}; expected {TOKENIZER} first and a head last")
    stages: list[Stage] = []
    for index, name in enumerate(chain):
        node = plan.node_of(name, flow)
        if stages and stages[-1].node == node:
            stages[-1] = Stage(node=node, modules=(*stages[-1].modules, name), precision=stages[-1].precision)
        else:
            precision = plan.precision_of(chain[index - 1], name) if stages else "fp32"
            stages.append(Stage(node=node, modules=(name,), precision=precision))
    return Route(flow=flow, stages=tuple(stages), trainable=frozenset(trainable) & frozenset(chain))
