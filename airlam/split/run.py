"""A plan at work: forward, backward and step of every flow over a transport.

Autograd is cut at every message. Forward, a stage sends what the next one needs: features or hidden states,
with the mask once a node and the context where the head is elsewhere. Backward, it sends the gradient of the
loss with respect to what it was given (the Jacobian of papers on split learning), and nothing where no
earlier stage trains. Messages pass this process on their way from node to node; samples and weights do not.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch

from airlam.model.lam import LAM
from airlam.model.storage import assign_tensors
from airlam.split.failures import NodeFailure
from airlam.split.flow_state import sample_tensors, tensor_of
from airlam.split.messages import Header, Message, MessageError, TensorField, Tensors
from airlam.split.node import Loss, MakeOptimiser, SplitNode, nmse_loss
from airlam.split.node_state import under
from airlam.split.part import HEAD, LamPart, owner_of
from airlam.split.passes import NORM, FlowPass, drive
from airlam.split.plan import SplitPlan
from airlam.split.radio_link import Air
from airlam.split.routes import route_of
from airlam.split.transport import InProcess, Transport, ask
from airlam.tokens.base import TokenBatch

_SHARED = "weights/"  # as which averaged weights are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What came of one forward and backward pass of some flows; nothing is updated yet.

    num_samples: by flow, of all that took part. losses: mean over the samples of each flow that came through.
    gradient_norms: by flow, then node, of the gradient of the weights there. failures: flows that did not
    come through, and why. duration_s: of the slowest flow, on the virtual clock.
    """

    step: int
    num_samples: Mapping[str, int]
    losses: Mapping[str, float]
    gradient_norms: Mapping[str, Mapping[str, float]]
    failures: Mapping[str, NodeFailure]
    duration_s: float

    @property
    def flows(self) -> tuple[str, ...]:
        """Those that came through."""
        return tuple(self.losses)

    @property
    def loss(self) -> float:
        """Mean over all samples of the flows that came through; NaN where none did."""
        count = sum(self.num_samples[flow] for flow in self.flows)
        total = sum(self.losses[flow] * self.num_samples[flow] for flow in self.flows)
        return total / count if count else float("nan")


class Session:
    """A plan, a transport and the air between the nodes.

    lam: names the modules and what trains; its weights are not read here. keeps_frozen: what a frozen first
    stage makes of a sample is computed and sent once, without dropout, and kept where the next stage runs.
    """

    def __init__(
        self,
        lam: LAM,
        plan: SplitPlan,
        transport: Transport,
        air: Air | None = None,
        *,
        task: str | None = None,
        keeps_frozen: bool = True,
    ) -> None:
        chain, trainable = chain_of(lam, task), trainable_modules(lam)
        self._fields = {
            name: (owner_of(lam, name), TensorField.of(p.dtype, *p.shape))
            for name, p in lam.named_parameters()
            if p.requires_grad
        }
        self.routes = {flow: route_of(plan, flow, chain, trainable) for flow in plan.flow_names}
        self.transport, self.air = transport, air or Air()
        self._held: dict[str, TokenBatch] = {}
        self._kept: dict[str, set[int] | None] = {
            flow: set() if keeps_frozen and route.can_keep else None for flow, route in self.routes.items()
        }

    @property
    def nodes(self) -> tuple[str, ...]:
        """All nodes of the plan: servers first, as they are stepped."""
        names = dict.fromkeys(stage.node for route in self.routes.values() for stage in route.stages)
        return tuple(sorted(names, key=lambda name: name in self.routes))

    def hold(self, flow: str, tokens: TokenBatch) -> None:
        """Gives the flow's first node its samples, which rounds name by index; not counted as sent."""
        node = self.routes[flow].stages[0].node
        self._ask(node, Header(operation="hold", flow=flow), sample_tensors(tokens))
        self._held[flow] = tokens
        self._forget_kept(flow)

    def kept_rows(self, flow: str) -> frozenset[int] | None:
        """Samples whose rows of a frozen first stage need not be sent again; None where none are kept."""
        kept = self._kept[flow]
        return None if kept is None else frozenset(kept)

    def forward_backward(self, step: int, batches: Mapping[str, torch.Tensor]) -> Round:
        """One pass of the named flows, each over the samples at its indices (int64 [batch]).

        A flow whose node is lost, late or sends what it should not is left out, and the others go on; whether
        enough came through is the caller's to decide, by ``apply`` or ``abandon``.
        """
        clock = self.air.clock
        clock.start_together(self.routes)
        started_s = clock.now_s
        passes = {flow: self._pass(flow, step).train(ids) for flow, ids in batches.items()}
        found, failures = drive(self.transport, passes)
        return Round(
            step=step,
            num_samples={flow: len(ids) for flow, ids in batches.items()},
            losses={flow: result["loss"].item() for flow, result in found.items()},
            gradient_norms={
                flow: {node: norm.item() for node, norm in under(result, NORM).items()}
                for flow, result in found.items()
            },
            failures=failures,
            duration_s=clock.now_s - started_s,
        )

    def apply(
        self,
        found: Round,
        *,
        exclude: Collection[str] = (),
        learning_rate: float | None = None,
        max_gradient_norm: float | None = None,
    ) -> None:
        """One optimiser step at every node that took part, servers first.

        A node weighs the gradients of its flows by n_k / sum n over those that came through and are not
        excluded. max_gradient_norm: of each node's averaged gradient. Raises NodeFailure where a node is
        lost; those before it have stepped, so ``restore`` all to an earlier state.
        """
        flows = [flow for flow in found.flows if flow not in exclude]
        options = {"learning_rate": learning_rate, "max_gradient_norm": max_gradient_norm}
        given = {name: torch.tensor(v, dtype=torch.float64) for name, v in options.items() if v is not None}
        for node in self.nodes:
            own = tuple(flow for flow in flows if node in self.routes[flow].nodes)
            if own:
                counts = torch.tensor([found.num_samples[flow] for flow in own], dtype=torch.float64)
                header = Header(operation="step", step=found.step, flows=own)
                self._ask(node, header, {"weights": counts / counts.sum(), **given})

    def abandon(self, nodes: Iterable[str] | None = None) -> None:
        """Forgets the round under way at these nodes (default: all); nothing is updated."""
        for node in self.nodes if nodes is None else nodes:
            self._ask(node, Header(operation="drop"))

    def predict(self, step: int, batches: Mapping[str, torch.Tensor]) -> dict[str, Tensors]:
        """The heads' outputs for some flows' samples, where the heads are; raises the first failure."""
        passes = {flow: self._pass(flow, step).forward(ids, training=False) for flow, ids in batches.items()}
        found, failures = drive(self.transport, passes)
        for failure in failures.values():
            raise failure
        return found

    def share(self, step: int, weights: Mapping[str, float], modules: Collection[str], server: str) -> None:
        """Averages the flows' own copies of some modules: trained weights up, their mean down, both counted.

        weights: by flow, adding up to 1. Raises NodeFailure where a device sends something else than its
        trained weights, finite ones; then no copy has changed.
        """
        header = Header(operation="weights", modules=tuple(modules), wants=("trained",))
        mean: Tensors = {}
        for flow, weight in weights.items():
            own = {_SHARED + name: value for name, value in self._trained(flow, header).items()}
            arrived = self.air.carry(own, flow=flow, step=step, sender=flow, receiver=server)
            mean = {name: weight * v + mean.get(name, torch.zeros(())) for name, v in arrived.items()}
        header = Header(operation="assign", modules=tuple(modules), wants=("trained",))
        for flow in weights:
            arrived = self.air.carry(mean, flow=flow, step=step, sender=server, receiver=flow)
            self._ask(flow, header, under(arrived, _SHARED))

    def _trained(self, node: str, header: Header) -> Tensors:
        """A node's trained weights of the header's modules, checked."""
        given = self._ask(node, header)
        expected = {n: form for n, (owner, form) in self._fields.items() if owner in header.modules}
        try:
            for name, form in expected.items():
                tensor_of(given, name, form)
            extra = given.keys() - expected.keys()
            if extra:
                raise MessageError(f"it sent {min(extra)!r}, unasked")
        except MessageError as error:
            raise NodeFailure(node=node, kind="rejected", reason=str(error)) from None
        return given

    def copy_into(self, lam: LAM, flow: str) -> None:
        """Copies what was trained, as a flow sees it, into a whole LAM of the same shape."""
        for stage in self.routes[flow].stages:
            header = Header(operation="weights", modules=stage.modules, wants=("trained",))
            given = self._trained(stage.node, header)
            own = {name: lam.get_parameter(name).detach() for name in given}
            assign_tensors(own, given, f"what {stage.node} has trained")

    def save(self, nodes: Iterable[str] | None = None) -> dict[str, Tensors]:
        """What training has changed at these nodes (default: all), optimiser included."""
        chosen = self.nodes if nodes is None else nodes
        return {node: self._ask(node, Header(operation="state")) for node in chosen}

    def restore(self, states: Mapping[str, Tensors]) -> None:
        """Puts nodes back to what ``save`` gave; what they have under way is forgotten."""
        for node, state in states.items():
            self._ask(node, Header(operation="restore"), state)

    def revive(self, node: str, state: Tensors) -> None:
        """Restarts a lost node in a state it had, with its samples; rows that it had kept are sent again."""
        self.transport.restart(node)
        self.restore({node: state})
        for flow, route in self.routes.items():
            if route.stages[0].node == node and flow in self._held:
                self.hold(flow, self._held[flow])
            if node in route.nodes:
                self._forget_kept(flow)

    def _pass(self, flow: str, step: int) -> FlowPass:
        return FlowPass(self.routes[flow], self.air, step, self._kept[flow])

    def _forget_kept(self, flow: str) -> None:
        kept = self._kept[flow]
        if kept is not None:
            kept.clear()

    def _ask(self, node: str, header: Header, tensors: Tensors | None = None) -> Tensors:
        return ask(self.transport, node, Message(header=header, tensors=tensors or {})).tensors


def local_session(
    lam: LAM,
    plan: SplitPlan,
    make_optimiser: MakeOptimiser,
    *,
    loss: Loss = nmse_loss,
    air: Air | None = None,
    keeps_frozen: bool = True,
    seed: int = 0,
) -> Session:
    """A session whose nodes are in this process, each with its own copy of what trains in its modules."""

    def make_node(name: str) -> SplitNode:
        return SplitNode(name, LamPart(lam, plan.modules_on(name)), loss, make_optimiser, seed=seed)

    transport = InProcess(plan.nodes, make_node)
    return Session(lam, plan, transport, air, keeps_frozen=keeps_frozen)


def chain_of(lam: LAM, task: str | None = None) -> tuple[str, ...]:
    """The modules that a task's data pass, in order; None: of the LAM's first task."""
    task = task or lam.task
    lam.head(task)  # SpecError where there is none
    return tuple(name for name in lam.module_names if not name.startswith(HEAD) or name == HEAD + task)


def trainable_modules(lam: LAM) -> frozenset[str]:
    """Modules with a parameter that trains."""
    return frozenset(owner_of(lam, name) for name, p in lam.named_parameters() if p.requires_grad)
