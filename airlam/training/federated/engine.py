"""Rounds of fine-tuning by the devices of one radio cell, on a virtual clock.

A round: the policy decides on the channels of the moment; the shared weights are broadcast to the cell;
``steps_per_round`` steps forward and backward, each checked (finite, shapes, norms, deadline) and applied
where a quorum came through; copies of shared modules go up, are checked and averaged. Devices that are not
scheduled wait. What is random depends on seed, round and device only, so a resumed run ends in the same bits.
"""

import logging
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from airlam.model.lam import LAM
from airlam.model.storage import assign_tensors
from airlam.split.failures import NodeFailure
from airlam.split.messages import Tensors
from airlam.split.network import EdgeNetwork
from airlam.split.node_state import under
from airlam.split.pace import NetworkPace
from airlam.split.part import LamPart
from airlam.split.radio_link import EVERYONE, Air
from airlam.split.resources import broadcast_s
from airlam.split.rounds import RoundState
from airlam.split.run import Session
from airlam.split.selection import Choice
from airlam.training.federated.faults import FaultyPace, FaultyTransport
from airlam.training.federated.nodes import NodeKit, transport_of
from airlam.training.federated.progress import RoundProgress, Timed
from airlam.training.federated.report import RoundReport
from airlam.training.federated.setup import MAX_GRADIENT_NORM, Setup, device_batches
from airlam.training.federated.state import RoundLoad, price_round
from airlam.training.federated.weights import SharedWeights, outliers
from airlam.training.optimiser import learning_rate
from airlam.training.privacy import PrivacyLedger

MAX_ATTEMPTS = 3  # at a round in which nodes are lost that it cannot do without
_log = logging.getLogger(__name__)
RAN, WAITS, UNREACHABLE = "ran", "waits", "cannot be reached"


class Federation:
    """Devices and server, round after round; ``close`` ends their processes where they have any."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.round_index, self.now_s = 0, 0.0
        plan = setup.layout.plan
        kit = NodeKit(
            lam=setup.lam, plan=plan, loss=setup.loss, training=setup.training, privacy=setup.privacy
        )
        self.transport = FaultyTransport(transport_of(kit, setup.ray_address), setup.federated.faults)
        self.session = Session(setup.lam, plan, self.transport, Air(seed=setup.training.seed))
        for device, tokens in setup.samples.items():
            self.session.hold(device, tokens)
        ranks = setup.federated.ranks
        self.weights = SharedWeights(
            setup.lam,
            setup.layout,
            self.session,
            ranks={d: ranks[k % len(ranks)] for k, d in enumerate(plan.flow_names)} if ranks else None,
            merge=setup.federated.merge_ranks,
        )
        self.states = self.session.save()  # of every node, as it was after the last round it ended well
        self.lost: set[str] = set()
        privacy = setup.privacy
        self.ledger = None if privacy is None else PrivacyLedger(spec=privacy)

    def close(self) -> None:
        """Ends the nodes."""
        self.transport.close()

    def run_round(self) -> RoundReport:
        """Decides, trains, averages; the policy is told what the round took.

        Where a node is lost that the round cannot do without (the server; a device while others are being
        updated), every node goes back to where the last round left it and the round is done again: of the
        attempt neither time nor bytes are reported. Raises NodeFailure where ``MAX_ATTEMPTS`` fail.
        """
        shared, versions = self.weights.state()
        for _ in range(MAX_ATTEMPTS - 1):
            try:
                return self._round()
            except NodeFailure as failure:
                _log.warning("round %d is done again: %s", self.round_index, failure)
                self.weights.restore(shared, versions)
                self._go_back(failure.node)
        return self._round()

    def _go_back(self, lost: str) -> None:
        """Every node as the last round left it, and the lost ones anew; lost devices when they are needed."""
        for node, state in self.states.items():
            try:
                if node != lost:
                    self.session.restore({node: state})
                    continue
            except NodeFailure as failure:
                lost = failure.node
            if node in self.session.routes:
                self.lost.add(node)
            else:
                self.session.revive(node, state)

    def _round(self) -> RoundReport:
        setup, index = self.setup, self.round_index
        network = setup.network.with_gains(setup.gains(index))
        batches = [
            device_batches(setup, index * setup.federated.steps_per_round + k) for k in self._local_steps
        ]
        load = self._load(batches)
        state = price_round(setup.graph, network, setup.layout, load, index)
        choice = setup.policy.decide(state)
        self._begin(network, state, choice)
        before_bits = dict(self.session.air.traffic.sent)
        progress = self._started(network, state, choice)
        for k, named in zip(self._local_steps, batches, strict=True):
            self._step(progress, index * setup.federated.steps_per_round + k, named)
        self._average(progress)
        return self._finish(progress, state, choice, before_bits)

    def models(self) -> dict[str, LAM]:
        """Whole LAMs as they stand: one of all devices, or one a device where it trains any of its own."""
        flows = self.setup.layout.plan.flow_names
        personal = self._personal_modules()
        chosen = flows if personal else flows[:1]
        return {flow if personal else "": self._model(flow) for flow in chosen}

    @property
    def _local_steps(self) -> range:
        return range(self.setup.federated.steps_per_round)

    def _load(self, batches: list[dict[str, torch.Tensor]]) -> RoundLoad:
        """What each device would have to do in this round."""
        devices = self.session.routes
        return RoundLoad(
            num_samples={device: len(tokens) for device, tokens in self.setup.samples.items()},
            num_steps=self.setup.federated.steps_per_round,
            upload_bytes={device: self.weights.upload_bytes(device) for device in devices},
            broadcast_bytes=self.weights.broadcast_bytes(),
            fresh_rows=self._fresh_rows(batches),
        )

    def _fresh_rows(self, batches: list[dict[str, torch.Tensor]]) -> dict[str, int]:
        """How many embeddings each device would have to send in this round; empty where none are kept."""
        missing = {}
        for device in self.session.routes:
            kept = self.session.kept_rows(device)
            if kept is not None:
                missing[device] = len({int(i) for named in batches for i in named[device]} - kept)
        return missing

    def _begin(self, network: EdgeNetwork, state: RoundState, choice: Choice) -> None:
        """Sets channels and faults of the round."""
        setup, index = self.setup, self.round_index
        pace = NetworkPace(
            graph=setup.graph, network=network, plan=setup.layout.plan, schedule=state.schedule(choice)
        )
        faults = setup.federated.faults
        self.session.air.pace = FaultyPace(inner=pace, faults=faults, round_index=index) if faults else pace
        self.transport.round_index = index

    def _started(self, network: EdgeNetwork, state: RoundState, choice: Choice) -> RoundProgress:
        """Those scheduled and alive, with the shared weights as they stand."""
        status = {
            device: UNREACHABLE if not able else WAITS
            for device, able in zip(state.devices, state.uplinks.reachable, strict=True)
        }
        scheduled = [d for d, taken in zip(state.devices, choice.selected, strict=True) if taken]
        progress = RoundProgress(
            status=status | dict.fromkeys(scheduled, RAN),
            elapsed_s=dict.fromkeys(scheduled, 0.0),
            active=scheduled,
            deadline_s=self.setup.federated.deadline_factor * choice.delay_s,
            quorum=self.setup.federated.quorum,
        )
        start_s = broadcast_s(network, self.setup.layout.server, self.weights.broadcast_bytes())
        with Timed(self.session.air.clock, progress):
            self.weights.broadcast(progress.active, start_s)
        self._each(progress, self._bring_up_to_date)
        return progress

    def _bring_up_to_date(self, device: str) -> None:
        if device in self.lost:
            self.session.revive(device, self.states[device])
            self.lost.discard(device)
        self.weights.take_up(self.round_index * self.setup.federated.steps_per_round, device)

    def _each(self, progress: RoundProgress, what: Callable[[str], object]) -> None:
        """Does something for each active device, beside each other on the clock."""
        failures: dict[str, NodeFailure] = {}
        with Timed(self.session.air.clock, progress):
            for device in progress.active:
                try:
                    what(device)
                except NodeFailure as failure:
                    failures[device] = failure
        self.lost |= progress.note(failures)

    def _step(self, progress: RoundProgress, step: int, batches: Mapping[str, torch.Tensor]) -> None:
        """Forward, backward, checks, and the update where a quorum came through."""
        setup, session = self.setup, self.session
        if not progress.active:
            return
        asked = list(progress.active)
        with Timed(session.air.clock, progress):
            found = session.forward_backward(step, {device: batches[device] for device in asked})
        self.lost |= progress.note(found.failures)
        progress.leave_out(self._strange_gradients(found.gradient_norms), waited=False)
        kept = [device for device in found.flows if device in progress.active]
        if not progress.is_quorum(kept):
            self._give_up(progress, asked)
            return
        session.apply(
            found,
            exclude=[device for device in found.flows if device not in kept],
            learning_rate=learning_rate(setup.training, step),
            max_gradient_norm=MAX_GRADIENT_NORM,
        )
        progress.losses.append(sum(found.losses[d] for d in kept) / len(kept))
        is_last = (step + 1) % setup.federated.steps_per_round == 0
        if setup.layout.is_split and not is_last:  # the next step starts from what all of them have changed
            slowest = max(progress.elapsed_s[device] for device in kept)
            progress.elapsed_s.update(dict.fromkeys(kept, slowest))

    def _strange_gradients(self, norms: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
        """Devices whose gradients at the server are out of all proportion.

        Without a split a device clips its own gradients, and its update is looked at.
        """
        if not self.setup.layout.is_split:
            return {}
        server = self.setup.layout.server
        seen = {device: by_node.get(server, 0.0) for device, by_node in norms.items()}
        return outliers(seen, self.setup.federated.max_norm_ratio, "gradient")

    def _give_up(self, progress: RoundProgress, asked: Collection[str]) -> None:
        """Too few came through: nothing is updated."""
        missing = f"only {len(progress.active)} of {len(progress.elapsed_s)} came through"
        progress.leave_out(dict.fromkeys(progress.active, missing), waited=False)
        servers = [node for node in self.session.nodes if node not in self.session.routes]
        self.session.abandon([*servers, *(device for device in asked if device not in self.lost)])

    def _average(self, progress: RoundProgress) -> None:
        """Shared modules up, and their mean where a quorum sent sound ones."""
        if not self.setup.layout.shared or not progress.active:
            return
        step = (self.round_index + 1) * self.setup.federated.steps_per_round - 1
        found: dict[str, Tensors] = {}

        def collect(device: str) -> None:
            found[device] = self.weights.collect(step, device)

        self._each(progress, collect)
        sound = {device: found[device] for device in progress.active}
        progress.leave_out(self.weights.too_far(sound, self.setup.federated.max_norm_ratio), waited=False)
        sound = {device: found[device] for device in progress.active}
        if progress.is_quorum(sound):
            self.weights.merge(sound, {device: len(self.setup.samples[device]) for device in sound})

    def _finish(
        self,
        progress: RoundProgress,
        state: RoundState,
        choice: Choice,
        before_bits: Mapping[tuple[str, str, str], int],
    ) -> RoundReport:
        """Moves clock, policy, ledger and saved states on."""
        ran = tuple(device for device in progress.active)
        self.states |= self.session.save([n for n in self.session.nodes if n not in self.session.routes])
        for device in progress.elapsed_s:
            self._settle(device, ran=device in ran)
        ends_s = [progress.elapsed_s[device] for device in ran]
        delay_s = max([*ends_s, progress.gave_up_at_s], default=0.0)
        energy = dict(zip(state.devices, state.energy_j(choice).tolist(), strict=True))
        self.setup.policy.record(delay_s, energy)
        self.now_s += delay_s
        if self.ledger is not None:
            used = {d: self.setup.federated.steps_per_round for d in progress.elapsed_s}
            self.ledger = self.ledger.after(used)
        up, down = self._direction_bytes(before_bits)
        self.round_index += 1
        gap = self.weights.product_gap
        return RoundReport(
            round_index=self.round_index - 1,
            ran=ran,
            status=progress.status,
            shares={d: float(s) for d, s in zip(state.devices, choice.shares, strict=True) if s},
            planned_s=choice.delay_s,
            delay_s=delay_s,
            now_s=self.now_s,
            backlog=self.setup.policy.backlog,
            uplink_bytes=up,
            downlink_bytes=down,
            energy_j=sum(energy.values()),
            loss=sum(progress.losses) / len(progress.losses) if progress.losses else None,
            product_gap=gap if math.isfinite(gap) else None,
            epsilon=self.epsilon() if self.ledger is not None else None,
        )

    def _settle(self, device: str, *, ran: bool) -> None:
        """Keeps what a device has become, or puts it back where it was left out; by now it may be lost."""
        if device in self.lost:
            return
        try:
            if ran:
                self.states |= self.session.save([device])
            else:
                self.session.restore({device: self.states[device]})
        except NodeFailure:
            self.lost.add(device)

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """All that a checkpoint needs after a round, as tensors and plain values."""
        shared, versions = self.weights.state()
        tensors = {f"node/{node}/{n}": v for node, state in self.states.items() for n, v in state.items()}
        tensors |= {f"shared/{name}": value for name, value in shared.items()}
        rows = {device: self.session.kept_rows(device) for device in self.session.routes}
        return tensors, {
            "round_index": self.round_index,
            "now_s": self.now_s,
            "versions": versions,
            "lost": sorted(self.lost),
            "kept_rows": {device: sorted(kept) for device, kept in rows.items() if kept},
            "policy": self.setup.policy.memory(),
            "ledger": None if self.ledger is None else self.ledger.to_json(),
        }

    def resume(self, tensors: Tensors, values: Mapping[str, Any]) -> None:
        """Goes on from ``state``, to the bit; rows that the server had kept are not counted again."""
        for node in self.states:
            self.states[node] = under(tensors, f"node/{node}/")
        with _Honest(self):
            self.session.restore(self.states)
            self._send_rows_again(values["kept_rows"])
        self.weights.restore(under(tensors, "shared/"), values["versions"])
        self.round_index, self.now_s = values["round_index"], values["now_s"]
        self.lost = set(values["lost"])
        self.setup.policy.recall(values["policy"])
        if self.ledger is not None:
            self.ledger = PrivacyLedger.from_json(self.ledger.spec, values["ledger"])

    def _send_rows_again(self, kept: Mapping[str, list[int]]) -> None:
        air, self.session.air = self.session.air, Air()
        for device, rows in kept.items():
            for ids in torch.split(torch.tensor(rows), self.setup.training.batch_size):
                self.session.predict(0, {device: ids})
        self.session.air = air

    def epsilon(self) -> float:
        """Largest of any device so far; infinite where nothing protects gradients."""
        if self.ledger is None:
            return math.inf
        counts = self.ledger.num_steps
        busiest = max(counts, key=lambda device: counts[device], default="")
        return self.ledger.epsilon(busiest)

    def _direction_bytes(self, before: Mapping[tuple[str, str, str], int]) -> tuple[int, int]:
        """Bytes up from and down to the devices since ``before``, retransmissions left out."""
        up = down = 0
        devices = self.session.routes
        for (sender, receiver, name), bits in self.session.air.traffic.sent.items():
            new = bits - before.get((sender, receiver, name), 0)
            up += new if sender in devices else 0
            down += new if receiver in devices or receiver == EVERYONE else 0
        return up // 8, down // 8

    def _personal_modules(self) -> bool:
        """Whether devices keep trained modules of their own."""
        layout = self.setup.layout
        trained = {n for flow in layout.plan.flow_names[:1] for n in self.session.routes[flow].trainable}
        return any(layout.server not in layout.plan.nodes_of(n) and n not in layout.shared for n in trained)

    def _model(self, flow: str) -> LAM:
        """A LAM with what the server and this device hold, and the shared weights as they stand."""
        lam = self.setup.lam
        whole = LamPart(lam, lam.module_names).lam
        with _Honest(self):
            self.session.copy_into(whole, flow)
        own = {name: whole.get_parameter(name).detach() for name in self.weights.value}
        assign_tensors(own, self.weights.value, "the shared weights")
        return whole


class _Honest:
    """Inside, no faults are put in: what is measured there is no message of a device."""

    def __init__(self, federation: Federation) -> None:
        self._session, self._transport = federation.session, federation.transport

    def __enter__(self) -> None:
        self._session.transport = self._transport.inner

    def __exit__(self, *_: object) -> None:
        self._session.transport = self._transport
