"""The simulated air under each message: what it counts, how long it takes, what it does to the numbers.

Time is virtual: a flow's clock advances by what each message and its nodes' work take at a ``Pace``; flows
run beside each other, and a round lasts as long as its slowest.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from airlam.specs import require
from airlam.split.failures import NodeFailure
from airlam.split.messages import Tensors, payload_bits
from airlam.split.pace import Instant, Pace
from airlam.split.payload import SCALE
from airlam.split.streams import stream_seed
from airlam.split.timeline import Phase
from airlam.units import db_to_linear

EVERYONE = "*"  # receiver of what is broadcast
ANALOGUE = ("features", "hidden", "gradient")  # what noise and erasures reach; all else is sent protected


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEffects:
    """What happens to messages on their way from one node to another.

    snr_db: where set, values are sent as analogue symbols and arrive with Gaussian noise of their mean square
    over the SNR. loss_probability: of an attempt to send the whole message where ``on_loss`` is retransmit:
    it is repeated until it comes through, ``max_attempts`` times at most, each taking its time; of each row
    (the last axis) where it is erase, which then arrives as zeros.
    """

    snr_db: float | None = None
    loss_probability: float = 0.0
    on_loss: Literal["retransmit", "erase"] = "retransmit"
    max_attempts: int = 16

    def __post_init__(self) -> None:
        require(
            0 <= self.loss_probability < 1, f"loss_probability is {self.loss_probability}; expected [0, 1)"
        )
        require(self.max_attempts >= 1, f"max_attempts must be at least 1, got {self.max_attempts}")

    @property
    def is_random(self) -> bool:
        """Whether a message may arrive otherwise than it was sent, or later."""
        return self.snr_db is not None or self.loss_probability > 0


IDEAL = LinkEffects()


@dataclass(slots=True)
class Traffic:
    """Bits by (sender, receiver, tensor name): elements times bits, headers not counted.

    ``sent`` counts each message once, ``repeated`` what retransmissions added.
    """

    sent: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    repeated: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    num_messages: int = 0

    def bits(
        self, *, sender: str | None = None, receiver: str | None = None, names: Iterable[str] | None = None
    ) -> int:
        """Bits sent between these nodes (None: any) under these names (None: all)."""
        wanted = None if names is None else set(names)
        return sum(
            bits
            for (source, target, name), bits in self.sent.items()
            if sender in (None, source) and receiver in (None, target) and (wanted is None or name in wanted)
        )

    @property
    def payload_bytes(self) -> float:
        """All that was sent, each message once."""
        return self.bits() / 8


@dataclass(slots=True)
class VirtualClock:
    """Seconds that each flow has taken since the start of the run."""

    seconds: dict[str, float] = field(default_factory=dict)

    def advance(self, flow: str, seconds: float) -> None:
        """The flow takes so much longer."""
        self.seconds[flow] = self.seconds.get(flow, 0.0) + seconds

    @property
    def now_s(self) -> float:
        """When the slowest flow is."""
        return max(self.seconds.values(), default=0.0)

    def start_together(self, flows: Iterable[str]) -> None:
        """A new round: all wait for the slowest."""
        now = self.now_s
        self.seconds.update(dict.fromkeys(flows, now))


class Air:
    """All links of a run, with its counters and its clock.

    effects: by (sender, receiver); between other pairs messages arrive as they were sent. pace: how long
    things take; may be set anew between rounds, as channels change. What happens to a message depends on
    ``seed``, its step and its way only, so the order in which flows advance does not change a run.
    """

    def __init__(
        self,
        effects: Mapping[tuple[str, str], LinkEffects] | None = None,
        pace: Pace | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.effects = dict(effects or {})
        self.pace: Pace = pace or Instant()
        self.traffic = Traffic()
        self.clock = VirtualClock()
        self._seed = seed

    def carry(self, tensors: Tensors, *, flow: str, step: int, sender: str, receiver: str) -> Tensors:
        """What arrives of what was sent; counts it and advances the flow's clock.

        Where sender and receiver are one node nothing is sent. Raises NodeFailure where the link stays down.
        """
        if sender == receiver or not tensors:
            return tensors
        effects = self.effects.get((sender, receiver), IDEAL)
        draw = self._draw(flow, step, sender, receiver, *tensors) if effects.is_random else None
        losses = 0 if draw is None else _losses(effects, draw)
        comes_through = losses < effects.max_attempts
        attempts = losses + comes_through
        num_bytes = self._count(tensors, sender, receiver, attempts)
        self.clock.advance(flow, attempts * self.pace.message_s(flow, sender, receiver, num_bytes))
        if not comes_through:
            raise NodeFailure(
                node=sender, kind="lost", reason=f"nothing came through to {receiver} in {attempts} attempts"
            )
        return tensors if draw is None else _received(tensors, effects, draw)

    def broadcast(self, tensors: Tensors, *, sender: str, flows: Iterable[str], seconds: float) -> None:
        """One message to all, counted once as received by ``EVERYONE``; it arrives as it was sent.

        seconds: what it takes, for each of these flows: the rate is one at which all of them receive it.
        """
        self._count(tensors, sender, EVERYONE, 1)
        for flow in flows:
            self.clock.advance(flow, seconds)

    def work(self, modules: Sequence[str], *, flow: str, node: str, phase: Phase) -> None:
        """The flow's clock advances by a node's work."""
        self.clock.advance(flow, self.pace.work_s(flow, node, modules, phase))

    def _count(self, tensors: Tensors, sender: str, receiver: str, attempts: int) -> float:
        """Enters a message; returns its bytes."""
        self.traffic.num_messages += 1
        total = 0
        for name, value in tensors.items():
            bits = payload_bits(value)
            total += bits
            self.traffic.sent[sender, receiver, name] += bits
            if attempts > 1:
                self.traffic.repeated[sender, receiver, name] += (attempts - 1) * bits
        return total / 8

    def _draw(self, flow: str, step: int, *way: str) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed(self._seed, step, flow, *way))


def over_the_air_sum(
    values: torch.Tensor, gains: torch.Tensor, power: float, noise_variance: float, generator: torch.Generator
) -> torch.Tensor:
    r"""The sum that a receiver makes of symbols sent at once, as papers on AirComp form it.

    Device k precodes by sqrt(eta) / h_k with eta = min_k P |h_k|^2 / E|x_k|^2, so the channel adds
    y = sqrt(eta) sum_k x_k + n, and Re(y) / sqrt(eta) estimates the sum with mean square error
    s2 / (2 eta), s2 the noise variance. No device exceeds its power P.

    values: float32 [num_devices, ...]. gains: complex64 [num_devices], not zero. power: a symbol's.
    Returns float32 [...].
    """
    num_devices = values.shape[0]
    require(gains.shape == (num_devices,), f"gains are {tuple(gains.shape)} for {num_devices} devices")
    energy = values.reshape(num_devices, -1).square().mean(dim=1)  # [num_devices]
    eta = (power * gains.abs().square() / energy.clamp_min(torch.finfo(values.dtype).tiny)).min()
    noise = torch.randn(values.shape[1:], generator=generator) * math.sqrt(noise_variance / 2)
    return values.sum(0) + noise / eta.sqrt()  # [...]


def _losses(effects: LinkEffects, draw: torch.Generator) -> int:
    """Attempts that fail before one comes through; ``max_attempts`` where none does."""
    if effects.on_loss == "erase" or not effects.loss_probability:
        return 0
    lost = torch.rand(effects.max_attempts, generator=draw) < effects.loss_probability
    return int(lost.long().cumprod(0).sum())


def _received(tensors: Tensors, effects: LinkEffects, draw: torch.Generator) -> Tensors:
    """The tensors after noise and erasures."""
    arrived = dict(tensors)
    for name in ANALOGUE:
        if name in tensors:
            if effects.snr_db is not None:
                arrived[name] = _noisy(tensors[name], effects.snr_db, draw)
            if effects.on_loss == "erase":
                key = name + SCALE if name + SCALE in tensors else name  # a row without scale is zeros
                arrived[key] = _erased(arrived[key], effects.loss_probability, draw)
    return arrived


def _noisy(value: torch.Tensor, snr_db: float, draw: torch.Generator) -> torch.Tensor:
    require(
        value.is_floating_point(), "int8 payloads are sent as bits, which an SNR does not reach; drop snr_db"
    )
    deviation = (value.float().square().mean() / db_to_linear(snr_db)).sqrt()
    noise = torch.randn(value.shape, generator=draw).to(value.device)
    return (value.float() + deviation * noise).to(value.dtype)


def _erased(value: torch.Tensor, probability: float, draw: torch.Generator) -> torch.Tensor:
    arrives = torch.rand((*value.shape[:-1], 1), generator=draw) >= probability
    return value * arrives.to(value)
