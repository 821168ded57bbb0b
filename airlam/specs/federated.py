"""How a network of devices fine-tunes together: what is split, who is scheduled, what may go wrong."""

from dataclasses import dataclass
from typing import Literal

from airlam.specs.reading import require, require_finite

FederatedMethod = Literal["split", "federated_lora", "fedavg", "local"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSpec:
    """A simulated fault of one device, from ``first_round`` to ``last_round``.

    slow: its work takes ``factor`` times as long. lost: its process answers nothing. nan, shape, huge: what
    it sends holds NaN, has a row too few, or is ``factor`` times as large.
    """

    device: str
    kind: Literal["slow", "lost", "nan", "shape", "huge"]
    first_round: int = 0
    last_round: int = 2**31
    factor: float = 1e3

    def __post_init__(self) -> None:
        require_finite(self)
        require(
            0 <= self.first_round <= self.last_round,
            f"{self.device}: rounds {self.first_round} to {self.last_round}; expected 0 <= first <= last",
        )
        require(self.factor > 0, f"{self.device}: factor must be positive, got {self.factor}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FederatedSpec:
    """Fine-tuning by the devices of a network; ``[federated]`` beside ``[network]`` in a run.

    A run's ``training.num_steps`` is the number of rounds times ``steps_per_round``; ``batch_size`` is each
    device's, ``num_samples`` all devices' together.
    """

    method: FederatedMethod = "split"
    policy: Literal["drift_plus_penalty", "all", "random", "best_channel", "round_robin"] = (
        "drift_plus_penalty"
    )
    bandwidth: Literal["optimal", "equal"] = "optimal"  # shares of those that take part
    devices_per_round: int = 10  # of random, best_channel and round_robin
    # mean over rounds, of drift_plus_penalty; None: what devices_per_round of the devices need at their mean
    # gains, the fastest of them
    delay_budget_s: float | None = None
    energy_budget_j: float | None = None  # of each device, mean over rounds
    learning_weight: float | None = None  # V of drift_plus_penalty; None: a hundredth of the rounds
    steps_per_round: int = 1
    precision: Literal["fp32", "bf16", "int8"] = "fp32"  # of representations and their gradients
    head: Literal["shared", "personal"] = "shared"  # shared: averaged after each round
    freeze_embedding: bool = True
    one_factor: bool = False  # of each LoRA pair only B trains: noise does not multiply, means are exact
    ranks: tuple[int, ...] = ()  # LoRA ranks of the devices in turn, in federated_lora; empty: the model's
    merge_ranks: Literal["pad", "svd"] = "pad"
    partition: Literal["iid", "speed"] = "iid"  # speed: each device has users of one range of speeds
    quorum: float = 0.5  # share of the scheduled devices that must come through
    deadline_factor: float = 2.0  # times the planned delay; who is later is left out
    max_norm_ratio: float = 100.0  # of a gradient or update to the median; honest ones reach 30
    clip_norm: float | None = None  # of each sample's gradient that leaves a device; turns privacy on
    noise_multiplier: float = 1.0
    faults: tuple[FaultSpec, ...] = ()

    def __post_init__(self) -> None:
        require_finite(self)
        for name in ("devices_per_round", "steps_per_round"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("delay_budget_s", "learning_weight", "energy_budget_j", "clip_norm", "noise_multiplier"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be positive, got {value}")
        require(0 < self.quorum <= 1, f"quorum is {self.quorum}; expected above 0, at most 1")
        for name in ("deadline_factor", "max_norm_ratio"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(all(rank >= 1 for rank in self.ranks), f"ranks are {self.ranks}; expected each at least 1")
        require(
            not self.ranks or self.method == "federated_lora",
            f"ranks differ in federated_lora only; {self.method} takes the model's lora_rank",
        )
        require(
            self.clip_norm is None or self.method == "split",
            f"clip_norm is of the gradients that split sends; {self.method} sends none, so drop it",
        )
