"""Sample-level differential privacy of the Jacobians that devices send, and how much of it is used up.

After P1 (Wang et al., Edge Large AI Models, 2505.00321), whose Renyi-DP mechanism is told in prose only: a
reconstruction. A device clips each sample's Jacobian to norm C and sends it with Gaussian noise of z C a
value, z the noise multiplier. Neighbouring data sets differ by one sample there or not, so C is the
sensitivity (replacing a sample would take 2 C). What goes the other way, and embeddings, is not covered.
Noise that the channel adds is counted first, as in 2411.07806 (Kang et al., MeditCom 2025); that holds for
uncoded (analogue) symbols only: coded bits arrive without noise, and all of it must then be added.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import reduce
from torch import nn

from airlam.errors import DataError, SpecError
from airlam.specs import require

_ORDERS = (
    *range(2, 129),
    160,
    192,
    256,
    384,
    512,
    1024,
)  # integers, where the moments are sums in closed form


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySpec:
    """clip_norm: C, of a sample's Jacobian. noise_multiplier: z. delta: the chance that epsilon fails."""

    clip_norm: float
    noise_multiplier: float
    delta: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("clip_norm", "noise_multiplier"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} must be positive and finite, got {value}")
        require(0 < self.delta < 1, f"delta is {self.delta}; expected between 0 and 1")

    @property
    def noise_std(self) -> float:
        """z C: of each value that arrives."""
        return self.noise_multiplier * self.clip_norm


def clip_samples(jacobian: torch.Tensor, clip_norm: float) -> torch.Tensor:
    """J_i min(1, C / ||J_i||_2) for each sample i; float [batch, ...] in and out."""
    norms = reduce(jacobian.float().square(), "batch ... -> batch", "sum").sqrt()  # [batch]
    scale = (clip_norm / norms).clamp_max(1.0).to(jacobian.dtype)  # [batch]
    return jacobian * scale.reshape(-1, *[1] * (jacobian.ndim - 1))  # [batch, ...]


def channel_noise_std(snr: float, value_rms: float = 1.0) -> float:
    """value_rms / sqrt(SNR): the receiver's noise after equalisation, in units of the values sent.

    snr: p |h|^2 / (N0 B), linear. value_rms: the value that is sent with power p. It must not depend on the
    data: with Jacobians clipped to C over n values, C / sqrt(n) sends the largest with power p on average.
    """
    require(snr > 0 and value_rms > 0, f"snr {snr} and value_rms {value_rms} must be positive")
    return value_rms / math.sqrt(snr)


def artificial_noise_std(spec: PrivacySpec, channel_std: float) -> float:
    """sqrt(max(0, (z C)^2 - s_channel^2)): what the device adds so that at least z C arrives."""
    return math.sqrt(max(0.0, spec.noise_std**2 - channel_std**2))


def privatise(
    jacobian: torch.Tensor, spec: PrivacySpec, generator: torch.Generator, *, channel_std: float = 0.0
) -> torch.Tensor:
    """What a device sends: clipped, with the noise that the channel lacks; float [batch, ...] in and out.

    channel_std: 0 for coded transmission. DataError where the Jacobian is not finite, since NaN passes any
    clip.
    """
    if not bool(jacobian.isfinite().all()):
        raise DataError(
            "the Jacobian is not finite and cannot be clipped; leave the device out of this round"
        )
    noise = torch.randn(jacobian.shape, generator=generator, dtype=jacobian.dtype, device=jacobian.device)
    return clip_samples(jacobian, spec.clip_norm) + artificial_noise_std(spec, channel_std) * noise


def train_one_factor(module: nn.Module) -> int:
    """Freezes the factor A of every LoRA pair in a peft module, so that only B learns; returns how many.

    Noise in the gradients of both multiplies in B A: its power there grows with the fourth power of the
    noise, against the second where A stands still (2411.07806).
    """
    factors = [p for name, p in module.named_parameters() if ".lora_A." in name]
    for factor in factors:
        factor.requires_grad_(False)
    return len(factors)


def epsilon(noise_multiplier: float, num_steps: int, delta: float, sampling_rate: float = 1.0) -> float:
    """The epsilon that ``num_steps`` noisy steps have used up at ``delta``, by Renyi-DP of integer orders.

    sampling_rate: q, of Poisson sampling, where each step takes each sample by a toss of its own. Anything
    that chooses by channels, queues or data is no such sampling and amplifies nothing: there q is 1. Needs
    dp-accounting (``pip install 'airlam[privacy]'``). 0 for no steps.
    """
    require(num_steps >= 0, f"num_steps must not be negative, got {num_steps}")
    require(0 < sampling_rate <= 1, f"sampling_rate is {sampling_rate}; expected above 0 and at most 1")
    require(noise_multiplier > 0, f"noise_multiplier must be positive, got {noise_multiplier}")
    require(0 < delta < 1, f"delta is {delta}; expected between 0 and 1")
    if num_steps == 0:
        return 0.0
    accounting = _accounting()
    event = accounting.GaussianDpEvent(noise_multiplier)
    if sampling_rate < 1:
        event = accounting.PoissonSampledDpEvent(sampling_rate, event)
    accountant = accounting.rdp.RdpAccountant(_ORDERS)
    accountant.compose(accounting.SelfComposedDpEvent(event, num_steps))
    return float(accountant.get_epsilon(delta))


def noise_multiplier_for(target: float, num_steps: int, delta: float, sampling_rate: float = 1.0) -> float:
    """The least noise multiplier with which ``num_steps`` steps stay within epsilon ``target``, to 0.1 %.

    SpecError where not even a multiplier of a million does.
    """
    require(target > 0 and num_steps >= 1, f"epsilon {target} over {num_steps} steps; expected both positive")
    low, high = 1e-3, 1e6
    if epsilon(high, num_steps, delta, sampling_rate) > target:
        raise SpecError(f"epsilon {target} is out of reach over {num_steps} steps; expected a larger one")
    while high > low * 1.001:
        middle = math.sqrt(low * high)
        if epsilon(middle, num_steps, delta, sampling_rate) > target:
            low = middle
        else:
            high = middle
    return high


def _accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise SpecError("accounting needs dp-accounting; pip install 'airlam[privacy]'") from error
    return dp_accounting


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyLedger:
    """How often each device's data have been used; values only, ``after`` gives the next.

    Every step in which a device sends counts with q = 1: schedules that follow channels and queues are no
    random samples, so nothing is amplified, and every sample of the device is taken to be in every step.
    """

    spec: PrivacySpec
    num_steps: Mapping[str, int] = field(default_factory=dict)

    def after(self, steps: Mapping[str, int]) -> "PrivacyLedger":
        """The ledger after the devices named have sent so many times more."""
        for device, count in steps.items():
            require(count >= 0, f"{device} sent {count} times; expected >= 0")
        total = {d: self.num_steps.get(d, 0) + steps.get(d, 0) for d in {**self.num_steps, **steps}}
        return PrivacyLedger(spec=self.spec, num_steps=total)

    def epsilon(self, device: str) -> float:
        """Used up by a device so far; 0 for one that never sent."""
        return epsilon(self.spec.noise_multiplier, self.num_steps.get(device, 0), self.spec.delta)

    def to_json(self) -> str:
        """The counts, for a checkpoint."""
        return json.dumps(dict(self.num_steps))

    @classmethod
    def from_json(cls, spec: PrivacySpec, text: str) -> "PrivacyLedger":
        """DataError where the text is not what ``to_json`` wrote."""
        try:
            counts = {str(device): int(count) for device, count in json.loads(text).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(
                f"this is no saved privacy ledger ({error}); it cannot be made up anew"
            ) from error
        if min(counts.values(), default=0) < 0:
            raise DataError("a saved privacy ledger has negative counts; it cannot be made up anew")
        return cls(spec=spec, num_steps=counts)
