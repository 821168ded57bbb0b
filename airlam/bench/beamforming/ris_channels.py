"""Downlinks behind a corner, and a surface that sees both sides: Sionna's TR 38.901 models on three links.

After Guo et al. (IEEE Trans. Wireless Commun. 19, 2020): a base station at the origin, the surface 200 m
away, users in a circle of 10 m beside it, Rician links to and from the surface. Reconstructed, with changes.
The base station is UMa's at 25 m; its link to the users is UMa without line of sight, ``BLOCKED_DB`` below
that as a building between would make it; to the surface, 10 m high, it is UMa in line of sight; from there to
the users it is UMi in line of sight, 10 to 35 m. Path losses and shadowing are the models' own. Each link
draws by itself where in the circle a user stands. Elements are omnidirectional and half a wavelength apart,
surface and base station face each other's axis; the surface hears the base station and sends to the users on
the same side. The carrier is at 2.4 GHz, noise -170 dBm/Hz over 180 kHz as in the paper.
"""

import dataclasses
import math
from typing import Literal

import numpy as np
import torch

from airlam.radio.ris import SurfaceLinks
from airlam.specs import ArraySpec, ChannelModel, DatasetSpec, PlacementSpec
from airlam.tasks.beamforming import downlink_spec

BLOCKED_DB = 20.0
TX_POWER_DBM = 20.0
NOISE_DBM = -170.0 + 10 * math.log10(180e3)
_SURFACE_M, _CIRCLE_M = 200.0, (-20.0, 15.0)  # the circle's centre, as seen from the surface
_RADIUS_M = 10.0
_DRAWN_AT_ONCE = 100
_ELEMENT = (1, 1)
Shape = tuple[int, int]  # rows and columns


def draw_links(num_users: int, array: Shape, surface: Shape, drops: int, seed: int) -> SurfaceLinks:
    """Links over a noise of variance 1 for a transmit power of 1: complex64, ``drops`` of them."""
    parts = []
    for part, start in enumerate(range(0, drops, _DRAWN_AT_ONCE)):
        count = min(_DRAWN_AT_ONCE, drops - start)
        seeds = np.random.SeedSequence([seed, part]).generate_state(3).tolist()
        specs = _specs(num_users, array, surface)
        parts.append([_link(spec, s, count) for spec, s in zip(specs, seeds, strict=True)])
    direct, to_surface, from_surface = (torch.cat(links) for links in zip(*parts, strict=True))
    gain = 10 ** ((TX_POWER_DBM - NOISE_DBM) / 20)
    return SurfaceLinks(
        direct=10 ** (-BLOCKED_DB / 20) * gain * direct[:, :, 0],  # [drops, users, antennas]
        surface_users=gain * from_surface[:, :, 0],  # [drops, users, elements]
        base_surface=to_surface[:, 0],  # [drops, elements, antennas]
    )


def _specs(num_users: int, array: Shape, surface: Shape) -> tuple[DatasetSpec, DatasetSpec, DatasetSpec]:
    """From base station to users, from there to the surface, from the surface to users."""
    x, y = _CIRCLE_M
    users = PlacementSpec(user_center_m=(_SURFACE_M + x, y), min_radius_m=0.0, max_radius_m=_RADIUS_M)
    panel = PlacementSpec(
        user_center_m=(_SURFACE_M, 0.0), min_radius_m=0.0, max_radius_m=0.0, user_height_m=10.0
    )
    near = PlacementSpec(
        base_station_height_m=10.0, user_center_m=(x, y), min_radius_m=0.0, max_radius_m=_RADIUS_M
    )
    return (
        _spec("uma", "nlos", num_users, array, _ELEMENT, users),
        _spec("uma", "los", 1, array, surface, panel),
        _spec("umi", "los", num_users, surface, _ELEMENT, near),
    )


def _spec(
    model: ChannelModel,
    los: Literal["los", "nlos"],
    num_users: int,
    sender: Shape,
    receiver: Shape,
    placement: PlacementSpec,
) -> DatasetSpec:
    spec = downlink_spec(model, num_users, sender, los=los, placement=placement)
    return dataclasses.replace(
        spec,
        user=ArraySpec(num_rows=receiver[0], num_cols=receiver[1]),
        channel=dataclasses.replace(spec.channel, path_loss=True, shadow_fading=True),
        grid=dataclasses.replace(spec.grid, num_downlink_subcarriers=0),
    )


def _link(spec: DatasetSpec, seed: int, drops: int) -> torch.Tensor:
    """complex64 [drops, users, receiver's elements, sender's elements]."""
    from airlam.datasets.stochastic.synthesis import draw_drops  # Sionna loads in seconds

    return draw_drops(spec, seed, drops).links()[:, :, 0, :, :, 0]
