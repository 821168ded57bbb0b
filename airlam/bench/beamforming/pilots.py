"""From contaminated pilots to precoders: half of the users share their pilot with a user of another cell.

Uplink pilots at 0 dB, the interferer 3 dB weaker, 16 antennas and 8 users of the sum rates' setting. An
estimator learns from drops of its own: the linear one (LMMSE) from covariances, the other from a mixture of
Gaussians. The graph precoder knows what its estimate's error is like, and so do the robust classical ones.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from airlam.bench.beamforming.settings import NOISE_VARIANCE, downlink_channels
from airlam.bench.kept import as_dict
from airlam.model.graph_precoder import GraphPrecoder
from airlam.radio.beamforming import robust_regularized_zero_forcing, robust_wmmse, wmmse
from airlam.radio.metrics import mean_interval
from airlam.radio.pilot_mixture import MixtureEstimator
from airlam.radio.pilots import LmmseEstimator, observe_contaminated, reused_pilots
from airlam.radio.precoding import regularized_zero_forcing, sum_rate_bit_per_s_per_hz
from airlam.tasks.channel_prediction import Progress

NUM_USERS, ARRAY = 8, (2, 8)
INTERFERER_POWER, REUSED_SHARE, PILOT_NOISE_VARIANCE = 0.5, 0.5, 1.0
REFERENCE = "lmmse_rzf"
_SEEDS = {"test": 8000, "test_interferers": 8001, "training": 8002, "training_interferers": 8003}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PilotScale:
    """Sizes of a run; num_components: of the mixture."""

    training_drops: int
    test_drops: int
    num_components: int
    num_iterations: int


FULL = PilotScale(training_drops=1500, test_drops=300, num_components=32, num_iterations=100)
QUICK = PilotScale(training_drops=40, test_drops=6, num_components=2, num_iterations=2)


def run_pilots(
    scale: PilotScale, precoders: Mapping[str, GraphPrecoder], on_progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows, and the gain of the best learned way over LMMSE with regularised zero forcing."""
    on_progress("pilots", 0, 2, "")
    drops = {name: scale.training_drops if "training" in name else scale.test_drops for name in _SEEDS}
    channels = {
        name: downlink_channels("uma", NUM_USERS, ARRAY, drops[name], seed) for name, seed in _SEEDS.items()
    }
    amplitude = INTERFERER_POWER**0.5
    h, others = channels["test"], amplitude * channels["test_interferers"]
    draws = [torch.Generator().manual_seed(seed) for seed in range(3)]
    reused = reused_pilots((scale.test_drops, NUM_USERS), REUSED_SHARE, draws[0])
    observed = observe_contaminated(h, others, reused, PILOT_NOISE_VARIANCE * NUM_USERS, draws[1])
    fitting = channels["training"], amplitude * channels["training_interferers"]
    mixture = MixtureEstimator.fit(*fitting, scale.num_components, draws[2])
    on_progress("pilots", 1, 2, "")
    estimates = {
        "lmmse": LmmseEstimator.fit(*fitting).estimate(observed, reused, PILOT_NOISE_VARIANCE),
        "mixture": mixture.estimate(observed, reused, PILOT_NOISE_VARIANCE),
    }
    rates: dict[str, torch.Tensor] = {}
    for name, (estimate, covariance) in estimates.items():
        found = _precoders_of(estimate.to(h.dtype), covariance.to(h.dtype), scale, precoders)
        rates |= {
            f"{name}_{how}": sum_rate_bit_per_s_per_hz(h, w, NOISE_VARIANCE) for how, w in found.items()
        }
    rows = [
        {
            "setting": "pilots_0db",
            "method": name,
            "drops": len(found),
            "sum_rate_bit_per_s_per_hz": float(found.mean()),
            "over_lmmse_rzf": as_dict(mean_interval(found, rates[REFERENCE])),
        }
        for name, found in rates.items()
    ]
    gains = {name: float(found.mean() / rates[REFERENCE].mean()) - 1 for name, found in rates.items()}
    learned = [name for name in gains if name.partition("_")[2] in precoders]
    classical = [name for name in gains if name not in learned]
    on_progress("pilots", 2, 2, "")
    return rows, {
        "pilots_0db.gain_over_lmmse_rzf": max(gains[name] for name in learned),
        "pilots_0db.best_classical_gain_over_lmmse_rzf": max(gains[name] for name in classical),
    }


def _precoders_of(
    estimate: torch.Tensor,
    covariance: torch.Tensor,
    scale: PilotScale,
    precoders: Mapping[str, GraphPrecoder],
) -> dict[str, torch.Tensor]:
    """Of one estimate: complex [drops, num_bs_ant, num_users] each."""
    noise = torch.full((len(estimate),), NOISE_VARIANCE)
    found = {
        "rzf": regularized_zero_forcing(estimate, NOISE_VARIANCE),
        "wmmse": wmmse(estimate, NOISE_VARIANCE, num_iterations=scale.num_iterations),
        "robust_rzf": robust_regularized_zero_forcing(estimate, covariance, NOISE_VARIANCE),
        "robust_wmmse": robust_wmmse(
            estimate, covariance, NOISE_VARIANCE, num_iterations=scale.num_iterations
        ),
    }
    with torch.no_grad():
        learned = {
            name: precoder.precode(estimate, noise, error_covariance=covariance)
            for name, precoder in precoders.items()
        }
    return found | learned
