"""Frequency responses of Sionna's channel models, by the ray sum where it can, else by its own path."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from sionna.phy.channel.tr38901 import CDL, TDL

from airlam.datasets.stochastic.raydraw import draw_rays, unsupported
from airlam.datasets.stochastic.raysum import delay_terms, frequency_response
from airlam.errors import SpecError

logger = logging.getLogger(__name__)

Call = Callable[[int, float], tuple[torch.Tensor, torch.Tensor]]


def model_response(
    model: Any,
    num_slots: int,
    slot_duration_s: float,
    frequencies_hz: torch.Tensor,
    batch_size: int | None = None,
) -> torch.Tensor:
    """H of a model that you have made with Sionna, fast: the same draws and values as its own path gives.

    model: CDL, TDL, or a system-level model (UMi, UMa, RMa, InH, InF) whose topology is set; what the ray sum
    does not know (HandheldUTArray, TDL) goes through Sionna, and a line of log says so. frequencies_hz:
    [num_subcarriers], relative to the carrier. batch_size: for CDL and TDL, whose topology has none.
    Returns complex [batch, num_rx, num_rx_ant, num_tx, num_tx_ant, num_slots, num_subcarriers].
    """
    call = model_call(model, batch_size)
    reason = unsupported(model)
    if reason is None:
        return frequency_response(
            draw_rays(model, call), slot_times_s(num_slots, slot_duration_s), frequencies_hz
        )
    logger.warning("%s: its channels go through Sionna's own, slower path", reason)
    return own_response(call, num_slots, slot_duration_s, frequencies_hz)


def model_call(model: Any, batch_size: int | None) -> Call:
    """A call of the model by number of slots and sampling frequency; CDL and TDL need a batch size."""
    if not isinstance(model, CDL | TDL):
        return lambda num_slots, rate_hz: model(num_slots, rate_hz)
    if batch_size is None:
        raise SpecError(f"batch_size is None; {type(model).__name__} has no topology to take it from")
    return lambda num_slots, rate_hz: model(batch_size, num_slots, rate_hz)


def slot_times_s(num_slots: int, slot_duration_s: float) -> torch.Tensor:
    """When the slots are: float64 [num_slots]."""
    return torch.arange(num_slots, dtype=torch.float64) * slot_duration_s


def own_response(
    call: Call, num_slots: int, slot_duration_s: float, frequencies_hz: torch.Tensor
) -> torch.Tensor:
    """H(f) = sum_p a_p exp(-j 2 pi f tau_p) of the paths that Sionna's own generator gives.

    As its ``cir_to_ofdm_channel``, without forming the delays' terms anew for every antenna pair.
    """
    gains, delays_s = call(
        num_slots, 1 / slot_duration_s
    )  # [b, rx, rx_ant, tx, tx_ant, p, t], [b, rx, tx, p]
    terms = delay_terms(delays_s, frequencies_hz)  # [b, rx, tx, p, f]
    summed = rearrange(gains, "b rx i tx j p t -> b rx tx (i j t) p") @ terms
    _, _, num_rx_ant, _, num_tx_ant, _, _ = gains.shape
    return rearrange(summed, "b rx tx (i j t) f -> b rx i tx j t f", i=num_rx_ant, j=num_tx_ant).contiguous()
