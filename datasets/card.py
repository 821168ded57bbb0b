"""What is in a dataset file, and whether it is sound: checksums, finite values, and a card of its physics.

The card's first question is whether the channels move as the speeds say: the error of holding a channel for k
slots is set against Clarke's 2 - 2 J0(2 pi f_d k dt). Clarke assumes waves from all sides in the plane, which
an omnidirectional user meets on average over its headings; a directional element or a CDL's few fixed
directions deviate, and the card is then a description and no test.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import j0

from airlam.datasets.fields import drop_bytes
from airlam.datasets.layout import SPLITS, ShardDigest, batch_arrays, total_drops
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError
from airlam.radio.channel import ChannelBatch
from airlam.specs import DatasetSpec
from airlam.specs.sensors import SENSOR_READINGS, presence_and_age
from airlam.units import SPEED_OF_LIGHT_M_PER_S, linear_to_db

BLOCK_BYTES = 64 * 2**20
MAX_LAG = 10
STILL_NMSE = 1e-9  # of one slot; float32 rounding of a channel that stands still is far below


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Measured facts of a dataset, over all of its drops.

    hold_nmse: error of holding a channel for 1, 2, ... slots over its power, pooled; clarke_nmse the theory
    at the speeds in the file. rms_doppler_hz follows from the first lag, sqrt(hold_nmse) / (2 pi dt), so it
    reads low where Doppler nears half a cycle a slot. rms_delay_spread_s: ``delay_spread_s`` averaged over
    links, None with a single subcarrier.
    """

    name: str
    num_drops: dict[str, int]
    num_bytes: int
    mean_power: float
    los_share: float
    min_speed_m_per_s: float
    mean_speed_m_per_s: float
    max_speed_m_per_s: float
    mean_path_loss_db: float
    hold_nmse: tuple[float, ...]
    clarke_nmse: tuple[float, ...]
    rms_doppler_hz: float
    clarke_rms_doppler_hz: float
    rms_delay_spread_s: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """A few lines for people."""
        drops = ", ".join(f"{count} {split}" for split, count in self.num_drops.items())
        spread = "" if self.rms_delay_spread_s is None else f"{self.rms_delay_spread_s * 1e9:.0f} ns"
        held = " ".join(f"{value:.3g}" for value in self.hold_nmse)
        clarke = " ".join(f"{value:.3g}" for value in self.clarke_nmse)
        return "\n".join(
            [
                f"{self.name}: {drops} drops, {self.num_bytes / 2**20:.0f} MiB",
                f"power            {linear_to_db(self.mean_power):.2f} dB",
                f"path loss        {self.mean_path_loss_db:.1f} dB",
                f"line of sight    {100 * self.los_share:.0f} %",
                f"speed            {self.min_speed_m_per_s:.2f} to {self.max_speed_m_per_s:.2f} m/s, "
                f"mean {self.mean_speed_m_per_s:.2f}",
                f"RMS Doppler      {self.rms_doppler_hz:.1f} Hz (Clarke {self.clarke_rms_doppler_hz:.1f})",
                f"RMS delay spread {spread}",
                f"hold NMSE        {held}",
                f"  Clarke         {clarke}",
            ]
        )


def info(path: Path) -> str:
    """What a file says of itself, without reading the channels."""
    with ChannelDataset.open(path) as dataset:
        spec = dataset.spec
        drops = ", ".join(f"{dataset.num_drops(split)} {split}" for split in SPLITS)
        made = ", ".join(
            f"{k.removeprefix('version_')} {v}"
            for k, v in dataset.attributes.items()
            if k.startswith("version")
        )
        users = _user_lines(dataset)
        site = _site_lines(dataset)
    return "\n".join(
        [
            f"{spec.name}: {spec.description}",
            f"drops        {drops} ({drop_bytes(spec)} bytes each), {spec.num_users} users a drop",
            f"channel      {spec.channel.model}, {spec.channel.direction}, "
            f"{spec.channel.carrier_frequency_hz / 1e9:g} GHz",
            f"antennas     {spec.base_station.num_ports} base station, {spec.user.num_ports} user",
            f"subcarriers  {spec.grid.num_uplink_subcarriers} uplink + {spec.grid.num_downlink_subcarriers} "
            f"downlink at {spec.grid.subcarrier_spacing_hz / 1e3:g} kHz",
            f"slots        {spec.grid.num_slots} of {spec.grid.slot_duration_s * 1e3:g} ms",
            f"speed        {spec.mobility.min_speed_m_per_s:g} to {spec.mobility.max_speed_m_per_s:g} m/s "
            f"({spec.doppler_cycles_per_slot:.3g} cycles of Doppler a slot)",
            *users,
            *site,
            f"seed         {spec.seed}",
            f"made by      {dataset.attributes.get('source', 'unknown')}; {made}",
        ]
    )


def _user_lines(dataset: ChannelDataset) -> list[str]:
    """What the file's small fields say of its users."""
    los = torch.cat([dataset.field(split, "los").flatten() for split in SPLITS])  # [users of all drops]
    lines = [f"in sight     {100 * float(los.float().mean()):.0f} % of users"]
    if dataset.spec.channel.knows_path_loss:
        loss_db = torch.cat([dataset.field(split, "path_loss_db").flatten() for split in SPLITS])
        lines.append(f"path loss    {float(loss_db.min()):.1f} to {float(loss_db.max()):.1f} dB")
    return lines


def _site_lines(dataset: ChannelDataset) -> list[str]:
    """Scene, trajectories and sensors of a ray-traced dataset; none for others."""
    site = dataset.spec.site
    if site is None:
        return []
    trajectories = sum(len(np.unique(dataset.field(split, "trajectory").numpy())) for split in SPLITS)
    positions = sum(dataset.num_drops(split) for split in SPLITS) * dataset.spec.num_users
    x, y, z = site.base_station_position_m
    lines = [
        f"scene        {site.scene}, base station at ({x:g}, {y:g}, {z:g}) m, {site.num_cars} other cars",
        f"places       {positions} on {trajectories} trajectories, every {site.position_interval_s:g} s",
    ]
    for name, sensor in dataset.spec.sensors.present.items():
        present, _ = presence_and_age(SENSOR_READINGS[name])
        there = torch.cat([dataset.field(split, present).flatten() for split in SPLITS])
        share = 100 * float(there.float().mean())
        lines.append(f"sensor       {name:12} {sensor.rate_hz:g} Hz, present in {share:.0f} %")
    return lines


def verify(path: Path, *, on_progress: Callable[[str, int, int, str], None] | None = None) -> Card:
    """Reads every channel once; DataError names the first shard whose checksum or values are wrong.

    Also a DataError: channels that are all zero, and users with a speed whose channels stand still.
    """
    report = on_progress or (lambda *_: None)
    with ChannelDataset.open(path) as dataset:
        sums = _Sums(spec=dataset.spec)
        total = total_drops(dataset.spec)
        for split in SPLITS:
            for shard, expected in enumerate(dataset.shard_checksums(split)):
                _verify_shard(dataset, split, shard, expected, sums)
                report("drops", sums.num_drops, total, "")
        if not sums.power:
            raise DataError(f"{path}: every channel is zero; generate it again")
        _require_motion(dataset, sums)
        return sums.card(path.stat().st_size)


def _verify_shard(dataset: ChannelDataset, split: str, shard: int, expected: str, sums: "_Sums") -> None:
    """Checks a shard against its checksum and adds its channels to the sums."""
    digest = ShardDigest(dataset.spec)
    for batch in _blocks(dataset, split, shard):
        if not bool(torch.isfinite(torch.view_as_real(batch.h_freq)).all()):
            raise DataError(f"{dataset.path}: {split} shard {shard} holds NaN or infinity; generate it again")
        digest.update(batch_arrays(batch, dataset.spec))
        sums.add(batch)
    if digest.hexdigest() != expected:
        raise DataError(f"{dataset.path}: {split} shard {shard} fails its checksum; generate it again")


def _blocks(dataset: ChannelDataset, split: str, shard: int) -> Iterator[ChannelBatch]:
    """A shard's drops, a bounded number of bytes at a time."""
    size = dataset.spec.shard_drops
    stop = min((shard + 1) * size, dataset.num_drops(split))
    step = max(1, BLOCK_BYTES // drop_bytes(dataset.spec))
    for start in range(shard * size, stop, step):
        yield dataset.batch(split, slice(start, min(start + step, stop)), readings=None)


def _require_motion(dataset: ChannelDataset, sums: "_Sums") -> None:
    """DataError where users have a speed and every channel stands still."""
    moving = dataset.spec.mobility.max_speed_m_per_s > 0 and dataset.spec.grid.num_slots > 1
    if moving and sums.held_error[0] < STILL_NMSE * sums.held_power[0]:
        raise DataError(
            f"{dataset.path}: users have speeds but no channel changes with time; generate it again"
        )


@dataclass(slots=True, kw_only=True)
class _Sums:
    """Running sums over drops; ``card`` is what they amount to."""

    spec: DatasetSpec
    num_drops: int = 0
    power: float = 0.0
    held_error: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(MAX_LAG))
    held_power: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(MAX_LAG))
    clarke_error: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(MAX_LAG))
    delay_spreads_s: list[torch.Tensor] = field(default_factory=list)
    speeds_m_per_s: list[torch.Tensor] = field(default_factory=list)
    los: list[torch.Tensor] = field(default_factory=list)
    path_losses_db: list[torch.Tensor] = field(default_factory=list)

    def add(self, batch: ChannelBatch) -> None:
        """Takes in some drops."""
        links = batch.links()[
            ..., : self.spec.grid.num_uplink_subcarriers
        ]  # [batch, users, slots, ue, bs, f]
        self.num_drops += links.shape[0]
        power = links.abs().square().double().mean(dim=(2, 3, 4, 5))  # [batch, users]
        self.power += float(power.mean(dim=1).sum())
        doppler_hz = (
            batch.speed_m_per_s.double() * self.spec.channel.carrier_frequency_hz / SPEED_OF_LIGHT_M_PER_S
        )
        for lag in range(1, min(MAX_LAG, links.shape[2] - 1) + 1):
            held, seen = links[:, :, :-lag], links[:, :, lag:]
            error = (seen - held).abs().square().double().mean(dim=(2, 3, 4, 5))  # [batch, users]
            theory = 2 - 2 * j0(2 * math.pi * doppler_hz.numpy() * lag * self.spec.grid.slot_duration_s)
            self.held_error[lag - 1] += float(error.sum())
            self.held_power[lag - 1] += float(power.sum())
            self.clarke_error[lag - 1] += float((power.numpy() * theory).sum())
        if links.shape[-1] > 1:
            spread_s = delay_spread_s(links, self.spec.grid.subcarrier_spacing_hz)  # [batch, users]
            self.delay_spreads_s.append(spread_s[~spread_s.isnan()])  # links with power
        self.speeds_m_per_s.append(batch.speed_m_per_s)
        self.los.append(batch.los)
        self.path_losses_db.append(batch.path_loss_db)

    def card(self, num_bytes: int) -> Card:
        """The card of all that was taken in."""
        lags = int(np.count_nonzero(self.held_power))
        held = self.held_error[:lags] / self.held_power[:lags]
        clarke = self.clarke_error[:lags] / self.held_power[:lags]
        speeds = torch.cat(self.speeds_m_per_s)
        slot_s = self.spec.grid.slot_duration_s
        return Card(
            name=self.spec.name,
            num_drops={split: getattr(self.spec.drops, split) for split in SPLITS},
            num_bytes=num_bytes,
            mean_power=self.power / self.num_drops,
            los_share=float(torch.cat(self.los).float().mean()),
            min_speed_m_per_s=float(speeds.min()),
            mean_speed_m_per_s=float(speeds.mean()),
            max_speed_m_per_s=float(speeds.max()),
            mean_path_loss_db=float(torch.cat(self.path_losses_db).mean()),
            hold_nmse=tuple(held.tolist()),
            clarke_nmse=tuple(clarke.tolist()),
            rms_doppler_hz=math.sqrt(held[0]) / (2 * math.pi * slot_s) if lags else 0.0,
            clarke_rms_doppler_hz=math.sqrt(clarke[0]) / (2 * math.pi * slot_s) if lags else 0.0,
            rms_delay_spread_s=(
                float(torch.cat(self.delay_spreads_s).mean()) if self.delay_spreads_s else None
            ),
        )


def delay_spread_s(links: torch.Tensor, subcarrier_spacing_hz: float) -> torch.Tensor:
    r"""RMS delay spread of each link from neighbouring subcarriers.

    With power delay profile P, r = sum P exp(-j 2 pi df tau) / sum P and |r|^2 = 1 - (2 pi df sigma)^2 + ...
    So sigma = sqrt(-ln |r|^2) / (2 pi df): exact for a Gaussian profile and, unlike a profile from an inverse
    transform, not widened by the finite band. Reads low where df sigma is no longer small.

    links: complex64 [batch, users, slots, user_ant, bs_ant, subcarriers]. Returns float64 [batch, users], NaN
    for a link without power, which has no spread.
    """
    product = (
        (links[..., 1:] * links[..., :-1].conj()).to(torch.complex128).sum(dim=(2, 3, 4, 5))
    )  # [batch, users]
    energy = links.abs().square().double()
    scale = (energy[..., 1:].sum(dim=(2, 3, 4, 5)) * energy[..., :-1].sum(dim=(2, 3, 4, 5))).sqrt()
    correlation = (product.abs() / scale).clamp(1e-12, 1.0)  # [batch, users]; 0 / 0 stays NaN
    return (-2 * correlation.log()).sqrt() / (2 * math.pi * subcarrier_spacing_hz)
