"""Draws drops of a spec with Sionna's TR 38.901 models.

Channels keep the power that TR 38.901 gives them; nothing is normalised. Drops depend on the seed and on how
many are drawn together, not on torch's global generators, which stay untouched.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from einops import rearrange
from sionna.phy import config
from sionna.phy.channel import cir_to_ofdm_channel
from sionna.phy.channel.tr38901 import TDL

from airlam.datasets.fields import BATCH_BYTES, drop_shape
from airlam.datasets.stochastic.models import Placed, place_users
from airlam.datasets.stochastic.raydraw import RayDraw, draw_rays
from airlam.datasets.stochastic.rays import RaySet, ray_sets
from airlam.datasets.stochastic.raysum import response_batches
from airlam.datasets.stochastic.response import model_call, own_response, slot_times_s
from airlam.errors import SpecError
from airlam.radio.channel import ChannelBatch
from airlam.specs import DatasetSpec


def draw_drops(spec: DatasetSpec, seed: int, num_drops: int) -> ChannelBatch:
    """``num_drops`` independent drops of the spec, all in memory.

    The same seed and number give the same drops. SpecError where the model cannot do what the spec asks.
    """
    return _join(draw_batches(spec, seed, num_drops), num_drops)


def draw_batches(spec: DatasetSpec, seed: int, num_drops: int) -> Iterator[ChannelBatch]:
    """The drops of ``draw_drops``: drawn together, then turned into channels a bounded number at a time.

    TDL, whose channels are small, gives all at once.
    """
    yield from _batches(spec, *draw_links(spec, seed, num_drops))


def _batches(spec: DatasetSpec, placed: Placed, draw: RayDraw | torch.Tensor) -> Iterator[ChannelBatch]:
    """The channels of a draw, a bounded number of drops at a time."""
    if isinstance(draw, torch.Tensor):
        yield _batch(spec, placed, slice(None), draw)
        return
    num_drops = len(placed.los)
    per_drop = len(draw) // num_drops  # a CDL's users are drawn as drops of their own
    step = max(1, BATCH_BYTES // (8 * math.prod(drop_shape(spec))))
    responses = response_batches(draw, _times_s(spec), _frequencies_hz(spec), step * per_drop)
    for index, h_freq in enumerate(responses):
        yield _batch(spec, placed, slice(index * step, (index + 1) * step), h_freq)


def draw_drops_with_rays(spec: DatasetSpec, seed: int, num_drops: int) -> tuple[ChannelBatch, list[RaySet]]:
    """As ``draw_drops``, the same drops, and each drop's rays.

    For CDL-A to C and for UMi, UMa and RMa without line of sight; one user a drop. SpecError otherwise.
    """
    channel = spec.channel
    if channel.model.startswith("tdl") or channel.model in ("cdl_d", "cdl_e"):
        raise SpecError(
            f"{channel.model} is not a sum of diffuse rays; take cdl_a, cdl_b, cdl_c, umi, uma or rma"
        )
    if not channel.is_link_level and channel.los != "nlos":
        raise SpecError(f"los is {channel.los!r}; rays are given without line of sight: set los = 'nlos'")
    if channel.path_loss or channel.shadow_fading or channel.blockage is not None:
        raise SpecError(
            "rays are given at unit gain; set path_loss and shadow_fading to false and drop blockage"
        )
    if spec.num_users != 1:
        raise SpecError(f"num_users is {spec.num_users}; rays are given for one user a drop")
    placed, draw = draw_links(spec, seed, num_drops)
    assert isinstance(draw, RayDraw)
    return _join(_batches(spec, placed, draw), num_drops), ray_sets(draw, _times_s(spec), channel.direction)


def draw_drops_by_sionna(spec: DatasetSpec, seed: int, num_drops: int) -> ChannelBatch:
    """The drops of ``draw_drops``, their coefficients and responses by Sionna itself: for comparison."""
    users_seed, sionna_seed = _seeds(seed)
    with _sionna_seed(sionna_seed):
        placed = place_users(spec, torch.Generator().manual_seed(users_seed), num_drops)
        call = model_call(placed.model, placed.num_links)
        gains, delays_s = call(spec.grid.num_slots, 1 / spec.grid.slot_duration_s)
    h_freq = cir_to_ofdm_channel(_frequencies_hz(spec), gains, delays_s)
    return _batch(spec, placed, slice(None), h_freq)


def draw_links(spec: DatasetSpec, seed: int, num_drops: int) -> tuple[Placed, RayDraw | torch.Tensor]:
    """The users of ``draw_drops`` and their rays, before they become channels; TDL has channels at once."""
    if num_drops < 1:
        raise SpecError(f"num_drops is {num_drops}; expected at least 1")
    users_seed, sionna_seed = _seeds(seed)
    with _sionna_seed(sionna_seed):
        placed = place_users(spec, torch.Generator().manual_seed(users_seed), num_drops)
        call = model_call(placed.model, placed.num_links)
        if not isinstance(placed.model, TDL):
            return placed, draw_rays(placed.model, call)
        grid = spec.grid
        return placed, own_response(call, grid.num_slots, grid.slot_duration_s, _frequencies_hz(spec))


def _join(batches: Iterable[ChannelBatch], num_drops: int) -> ChannelBatch:
    """Batches one after the other; each is let go of before the next is made."""
    parts: list[ChannelBatch] = []
    h_freq, row = torch.empty(0), 0
    for batch in batches:
        if len(batch.h_freq) == num_drops:
            return batch
        if not parts:
            h_freq = batch.h_freq.new_empty(num_drops, *batch.h_freq.shape[1:])
        h_freq[row : row + len(batch.h_freq)] = batch.h_freq
        row += len(batch.h_freq)
        parts.append(dataclasses.replace(batch, h_freq=batch.h_freq[:0].clone()))
    return ChannelBatch(
        h_freq=h_freq,
        direction=parts[0].direction,
        speed_m_per_s=torch.cat([part.speed_m_per_s for part in parts]),
        position_m=torch.cat([part.position_m for part in parts]),
        los=torch.cat([part.los for part in parts]),
        path_loss_db=torch.cat([part.path_loss_db for part in parts]),
    )


def _batch(spec: DatasetSpec, placed: Placed, drops: slice, h_freq: torch.Tensor) -> ChannelBatch:
    """The drops with their channels; link-level models give the users of a drop as drops of their own."""
    if spec.channel.is_link_level:
        pattern = (
            "(b u) 1 rx_ant 1 tx_ant t f -> b 1 rx_ant u tx_ant t f"
            if spec.channel.direction == "uplink"
            else "(b u) 1 rx_ant 1 tx_ant t f -> b u rx_ant 1 tx_ant t f"
        )
        h_freq = rearrange(h_freq, pattern, u=spec.num_users)
    return ChannelBatch(
        h_freq=h_freq,
        direction=spec.channel.direction,
        speed_m_per_s=placed.speed_m_per_s[drops],
        position_m=placed.position_m[drops],
        los=placed.los[drops],
        path_loss_db=placed.path_loss_db[drops],
    )


def _times_s(spec: DatasetSpec) -> torch.Tensor:
    return slot_times_s(spec.grid.num_slots, spec.grid.slot_duration_s)


def _frequencies_hz(spec: DatasetSpec) -> torch.Tensor:
    return torch.tensor(spec.grid.frequencies_hz, dtype=torch.float64)


def _seeds(seed: int) -> tuple[int, int]:
    """Of users' places and speeds, and of Sionna's draws."""
    users_seed, sionna_seed = np.random.SeedSequence(seed).generate_state(2, np.uint64).tolist()
    return users_seed, sionna_seed


@contextmanager
def _sionna_seed(seed: int) -> Iterator[None]:
    """Seeds Sionna's CPU generator, and puts its state back afterwards."""
    generator = config.torch_rng("cpu")
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)
