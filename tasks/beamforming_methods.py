"""Precoders that are compared: what each makes of what the base station knows."""

from collections.abc import Callable
from functools import partial

import torch

from airlam.model.graph_precoder import GraphPrecoder
from airlam.radio.beamforming import robust_regularized_zero_forcing, robust_wmmse, wmmse
from airlam.radio.precoding import maximum_ratio, regularized_zero_forcing, zero_forcing
from airlam.tasks.beamforming_data import Known

Precode = Callable[[Known, float], torch.Tensor]
"""(what is known of [batch] downlinks, noise variance over total power) -> W of total power 1, complex64
[batch, num_bs_ant, num_users].
"""
LAM, REFERENCE, ROBUST, BOUND = "lam", "wmmse_100", "robust_wmmse_100", "dirty_paper_bound"
WITH_BACKBONE = "Graph precoder with a LAM"  # as which it is shown where it has a backbone
LABELS = {
    LAM: "Graph precoder",
    ROBUST: "Robust WMMSE, 100 iterations",
    REFERENCE: "WMMSE, 100 iterations",
    "wmmse_5": "WMMSE, 5 iterations",
    "robust_rzf": "Robust RZF",
    "rzf": "RZF",
    "zf": "ZF",
    "mrt": "MRT",
    BOUND: "Dirty-paper bound",
}


def classical_precoders(num_users: int, num_bs_ant: int, *, is_certain: bool) -> dict[str, Precode]:
    """By name, the strongest first; robust ones where knowledge is not certain, ZF where it can be."""
    found: dict[str, Precode] = {}
    if not is_certain:
        found[ROBUST] = partial(_robust_wmmse, num_iterations=100)
    found[REFERENCE] = partial(_wmmse, num_iterations=100)
    found["wmmse_5"] = partial(_wmmse, num_iterations=5)
    if not is_certain:
        found["robust_rzf"] = _robust_rzf
    found["rzf"] = lambda known, noise: regularized_zero_forcing(known.h, noise)
    if num_users <= num_bs_ant:
        found["zf"] = lambda known, noise: zero_forcing(known.h)
    found["mrt"] = lambda known, noise: maximum_ratio(known.h)
    return found


def learned_precoder(precoder: GraphPrecoder) -> Precode:
    """The graph precoder, told of errors where there are any."""

    def precode(known: Known, noise_variance: float) -> torch.Tensor:
        noise = torch.full((len(known.h),), noise_variance)
        with torch.no_grad():
            return precoder.precode(known.h, noise, error_covariance=known.error_covariance)

    return precode


def _wmmse(known: Known, noise_variance: float, *, num_iterations: int) -> torch.Tensor:
    return wmmse(known.h, noise_variance, num_iterations=num_iterations)


def _robust_rzf(known: Known, noise_variance: float) -> torch.Tensor:
    return robust_regularized_zero_forcing(known.h, _error_of(known), noise_variance)


def _robust_wmmse(known: Known, noise_variance: float, *, num_iterations: int) -> torch.Tensor:
    return robust_wmmse(known.h, _error_of(known), noise_variance, num_iterations=num_iterations)


def _error_of(known: Known) -> torch.Tensor:
    assert known.error_covariance is not None
    return known.error_covariance
