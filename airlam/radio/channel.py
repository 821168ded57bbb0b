"""Channels as they travel through the suite, and what a predictor may know of a link."""

from dataclasses import dataclass, field

import torch
from einops import rearrange

from airlam.errors import DataError
from airlam.specs import ArraySpec, DatasetSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelBatch:
    """Frequency responses of some drops, in Sionna's axes, with what is known about each user.

    h_freq: complex64 [batch, num_rx, num_rx_ant, num_tx, num_tx_ant, num_ofdm_symbols, num_subcarriers];
    "ofdm symbols" are the dataset's slots, subcarriers are uplink then downlink (``GridSpec``).
    speed_m_per_s: float32 [batch, num_users]. position_m: float32 [batch, num_users, 3].
    los: bool [batch, num_users]. path_loss_db: float32 [batch, num_users], 0 where the model has none.
    readings: motion and sensor readings of ray-traced drops by field name, batch first, as
    ``airlam.datasets.fields`` describes them; those that were asked for.
    """

    h_freq: torch.Tensor
    direction: str
    speed_m_per_s: torch.Tensor
    position_m: torch.Tensor
    los: torch.Tensor
    path_loss_db: torch.Tensor
    readings: dict[str, torch.Tensor] = field(default_factory=dict)

    def links(self) -> torch.Tensor:
        """One row a user: complex64 [batch, num_users, num_slots, num_user_ant, num_bs_ant, num_subcarriers].

        The channel is reciprocal, so the same layout serves both directions.
        """
        pattern = (
            "b 1 bs_ant users user_ant t f -> b users t user_ant bs_ant f"
            if self.direction == "uplink"
            else "b users user_ant 1 bs_ant t f -> b users t user_ant bs_ant f"
        )
        return rearrange(self.h_freq, pattern)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionSetting:
    """What a predictor may know before it sees a measurement: array, grids, times and the top Doppler.

    history and prediction: complex64 [batch, num_slots, num_user_ant, num_bs_ant, num_subcarriers].
    Frequencies are relative to the carrier. ``max_doppler_hz`` comes from the highest speed that the
    deployment expects, not from the user at hand.
    """

    base_station: ArraySpec
    num_user_antennas: int
    history_frequencies_hz: tuple[float, ...]
    target_frequencies_hz: tuple[float, ...]
    slot_duration_s: float
    num_history: int
    num_horizon: int
    max_doppler_hz: float

    @property
    def is_fdd(self) -> bool:
        """Whether the future is wanted on other frequencies than the history's."""
        return self.history_frequencies_hz != self.target_frequencies_hz

    @property
    def max_doppler_cycles_per_slot(self) -> float:
        """Top Doppler shift times the slot duration."""
        return self.max_doppler_hz * self.slot_duration_s

    @staticmethod
    def from_dataset(
        spec: DatasetSpec, num_history: int, num_horizon: int, duplex: str
    ) -> "PredictionSetting":
        """The setting that a dataset offers; DataError where it has too few slots or no downlink band."""
        if num_history + num_horizon > spec.grid.num_slots:
            raise DataError(
                f"{spec.name} has {spec.grid.num_slots} slots, fewer than the {num_history} of history plus "
                f"{num_horizon} of horizon asked for; generate it with a larger num_slots"
            )
        if duplex == "fdd" and not spec.grid.num_downlink_subcarriers:
            raise DataError(
                f"{spec.name} has no downlink band, which fdd needs; "
                "generate it with num_downlink_subcarriers"
            )
        uplink = spec.grid.frequencies_hz[: spec.grid.num_uplink_subcarriers]
        downlink = spec.grid.frequencies_hz[spec.grid.num_uplink_subcarriers :]
        return PredictionSetting(
            base_station=spec.base_station,
            num_user_antennas=spec.user.num_ports,
            history_frequencies_hz=uplink,
            target_frequencies_hz=downlink if duplex == "fdd" else uplink,
            slot_duration_s=spec.grid.slot_duration_s,
            num_history=num_history,
            num_horizon=num_horizon,
            max_doppler_hz=spec.max_doppler_hz,
        )
