"""Coded blocks over the link with the precoders of a run of beamforming."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.datasets.store import ChannelDataset
from airlam.specs import LinkSpec
from airlam.split.streams import stream_seed
from airlam.tasks.beamforming_data import Known, PilotCsi, Pilots, all_drops, checked
from airlam.tasks.beamforming_methods import Precode
from airlam.tasks.channel_prediction import Progress
from airlam.tasks.link_level import LinkResult, evaluate_link, group_users

NUM_SLOTS = 2  # of a drop that are sent, evenly spread


def link_channels(dataset: ChannelDataset, link: LinkSpec, seed: int) -> torch.Tensor:
    """Test drops' users in groups, at unit mean power over slots, antennas and subcarriers.

    complex64 [num_groups, num_users, num_slots, num_bs_ant, num_subcarriers], of the first band.
    """
    users = dataset.spec.num_users
    drops = all_drops(dataset, "test")[: link.num_drops * (link.num_users if users == 1 else 1)]
    num_slots = dataset.spec.grid.num_slots
    slots = torch.linspace(0, num_slots - 1, min(NUM_SLOTS, num_slots)).round().long()
    links = dataset.batch("test", drops).links()[:, :, slots]
    links = checked(links[..., : dataset.spec.grid.num_uplink_subcarriers], dataset, "test")
    flat = rearrange(links, "d u t a m f -> (d u) t a m f")
    h = group_users(flat, link.num_users, seed, users)[: link.num_drops]
    power = h.abs().square().mean(dim=(2, 3, 4), keepdim=True)  # [num_groups, num_users, 1, 1, 1]
    reached = (power > 0).all(dim=1).flatten()  # [num_groups]
    return h[reached] / power[reached].sqrt()


def send_over_link(
    h: torch.Tensor,
    methods: Mapping[str, Precode],
    pilots: PilotCsi | None,
    link: LinkSpec,
    seed: int,
    on_progress: Progress,
) -> LinkResult:
    """Coded blocks over the channels of ``link_channels``; all methods know the same of each subcarrier."""
    knowledge = _Knowledge.of(h, pilots, seed)

    def link_precoder(precode: Precode) -> "_LinkPrecoder":
        return _LinkPrecoder(knowledge=knowledge, precode=precode)

    return evaluate_link(
        h,
        dict.fromkeys(methods, h),
        link,
        seed=seed,
        on_progress=lambda share: on_progress("sending coded blocks", round(100 * share), 100, ""),
        precoders={name: link_precoder(precode) for name, precode in methods.items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Knowledge:
    """What is known of each slot and subcarrier of some groups.

    h: the truth, complex64 [num_groups, num_slots, num_subcarriers, num_users, num_bs_ant]; received: pilots
    in its place, where they are what is known, with ``reused`` bool [..., num_users].
    """

    h: torch.Tensor
    pilots: PilotCsi | None
    received: torch.Tensor | None = None
    reused: torch.Tensor | None = None

    @staticmethod
    def of(channels: torch.Tensor, pilots: PilotCsi | None, seed: int) -> "_Knowledge":
        """Pilots are drawn once, for all methods and SNRs."""
        h = rearrange(channels, "g k t m f -> g t f k m")
        if pilots is None:
            return _Knowledge(h=h, pilots=None)
        flat = h.flatten(end_dim=2)  # [downlinks, num_users, num_bs_ant]
        seen = pilots.observe(flat, [stream_seed(seed, index, "link pilots") for index in range(len(flat))])
        return _Knowledge(
            h=h,
            pilots=pilots,
            received=seen.received.reshape(h.shape),
            reused=seen.reused.reshape(h.shape[:4]),
        )

    def rows(self, groups: slice) -> Known:
        """Of some groups, all their slots and subcarriers in one batch."""
        if self.pilots is None:
            return Known(h=self.h[groups].flatten(end_dim=2))
        assert self.received is not None and self.reused is not None
        return self.pilots.estimate(
            Pilots(
                received=self.received[groups].flatten(end_dim=2),
                reused=self.reused[groups].flatten(end_dim=2),
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _LinkPrecoder:
    """A ``Precode`` of ``airlam.tasks.link_level``."""

    knowledge: _Knowledge
    precode: Precode

    def __call__(self, believed: torch.Tensor, noise_variance: float, rows: slice) -> torch.Tensor:
        """See there; believed is the truth, of which a precoder is told what the base station knows."""
        w = self.precode(self.knowledge.rows(rows), noise_variance)  # [downlinks, num_bs_ant, num_users]
        return w.reshape(*believed.shape[:3], *w.shape[1:])
