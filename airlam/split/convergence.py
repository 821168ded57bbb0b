"""How far from the optimum training may still be after rounds with few devices: a reconstructed bound.

After P3 (Wang et al., Federated Fine-Tuning for Pre-Trained Foundation Models Over Wireless Networks,
2024), whose abstract tells of a bound in which the numbers of participants of all rounds weigh differently;
its theorem is not known here, and this is not it. Derived for gradient descent w <- w - g / L, g the mean
gradient of m of K devices with equal data, where F is L-smooth, ||grad F||^2 >= 2 mu (F - F*), and at every
point passed ||grad F_k||^2 <= xi1 + xi2 ||grad F||^2. Then ||grad F - g||^2 <= 4 phi (xi1 + xi2 ||grad
F||^2) with phi = (1 - m / K)^2, and

    F+ - F* <= [1 - (mu / L) (1 - 4 xi2 phi)] (F - F*) + (2 xi1 / L) phi  (+ sigma^2 / (2 L n m) in the mean)

while 4 xi2 phi <= 1; beyond, ||grad F||^2 <= 2 L (F - F*) puts 1 in the place of mu / L. With unequal data
m / K is the share of all data that the participants hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airlam.specs import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothness:
    """Constants of the bound.

    smoothness: L. polyak_lojasiewicz: mu. gradient_bound: xi1. gradient_growth: xi2.
    sample_variance: sigma^2 of one sample's gradient. batch_size: n of each device.
    """

    smoothness: float
    polyak_lojasiewicz: float
    gradient_bound: float
    gradient_growth: float = 0.0
    sample_variance: float = 0.0
    batch_size: int = 1

    def __post_init__(self) -> None:
        require(
            0 < self.polyak_lojasiewicz <= self.smoothness,
            f"mu is {self.polyak_lojasiewicz} and L is {self.smoothness}; expected 0 < mu <= L",
        )
        for name in ("gradient_bound", "gradient_growth", "sample_variance"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        require(self.batch_size >= 1, f"batch_size must be at least 1, got {self.batch_size}")

    @property
    def contraction(self) -> float:
        """rho = 1 - mu / L: what is left of a gap after a round of all devices."""
        return 1 - self.polyak_lojasiewicz / self.smoothness


def gap_after_round(constants: Smoothness, gap: float, num_selected: int, num_devices: int) -> float:
    """The bound on F - F* after one round that starts at ``gap``; an empty round changes nothing."""
    require(gap >= 0, f"the gap must not be negative, got {gap}")
    require(0 <= num_selected <= num_devices, f"{num_selected} of {num_devices} devices cannot take part")
    if num_selected == 0:
        return gap
    phi = (1 - num_selected / num_devices) ** 2
    left = 1 - 4 * constants.gradient_growth * phi
    rate = 1 - constants.contraction if left >= 0 else 1.0
    bias = 2 * constants.gradient_bound * phi / constants.smoothness
    noise = constants.sample_variance / (2 * constants.smoothness * constants.batch_size * num_selected)
    return (1 - rate * left) * gap + bias + noise


def gap_bound(
    constants: Smoothness, first_gap: float, num_selected: Sequence[int], num_devices: int
) -> NDArray[np.float64]:
    """The bound after each of T rounds, float64 [T]."""
    gaps = []
    gap = first_gap
    for count in num_selected:
        gap = gap_after_round(constants, gap, count, num_devices)
        gaps.append(gap)
    return np.array(gaps)


def round_weight(contraction: float, round_index: int, num_rounds: int) -> float:
    """w_t = rho^(T - 1 - t): what a round's missing devices weigh in the bound after T rounds (xi2 = 0).

    Later rounds weigh more; contraction 1 makes all of them equal.
    """
    require(0 < contraction <= 1, f"contraction is {contraction}; expected above 0 and at most 1")
    require(0 <= round_index < num_rounds, f"round {round_index} is not one of {num_rounds}")
    return contraction ** (num_rounds - 1 - round_index)
