"""A measured channel as patch tokens: ``PatchTokenizer`` on a history of one slot, with its level kept."""

import torch

from airlam.radio.channel import PredictionSetting
from airlam.specs import CsiSensorSpec, DatasetSpec
from airlam.tokens.base import TokenBatch
from airlam.tokens.modality import ModalityTokens
from airlam.tokens.patch import PatchTokenizer

MAX_TOKENS = 32


class CsiReadingTokenizer:
    """CSI tokens with an exact inverse (``inverse``); implements ``ReadingTokenizer``.

    Features: those of ``PatchTokenizer``, the noise's share being the receiver's fixed noise over this
    measurement's own power; then log10 of the amplitude that the measurement was divided by (path loss tells
    of distance).
    """

    def __init__(
        self, setting: PredictionSetting, *, noise_variance: float, max_tokens: int = MAX_TOKENS
    ) -> None:
        self.setting = setting
        self.noise_variance = noise_variance
        self.patches = PatchTokenizer(setting, max_tokens=max_tokens)

    @staticmethod
    def from_spec(spec: DatasetSpec, sensor: CsiSensorSpec) -> "CsiReadingTokenizer":
        """For the CSI measurements of a dataset, which are of the uplink band."""
        pilots_hz = spec.grid.frequencies_hz[: spec.grid.num_uplink_subcarriers : sensor.comb]
        setting = PredictionSetting(
            base_station=spec.base_station,
            num_user_antennas=spec.user.num_ports,
            history_frequencies_hz=pilots_hz,
            target_frequencies_hz=pilots_hz,
            slot_duration_s=spec.grid.slot_duration_s,
            num_history=1,
            num_horizon=1,
            max_doppler_hz=spec.max_doppler_hz,
        )
        return CsiReadingTokenizer(setting, noise_variance=sensor.noise_variance(spec.channel.path_loss))

    @property
    def reading_shape(self) -> tuple[int, ...]:
        """User antennas, base station antennas, pilots."""
        setting = self.setting
        ports = (setting.num_user_antennas, setting.base_station.num_ports)
        return (*ports, len(setting.history_frequencies_hz))

    @property
    def num_tokens(self) -> int:
        """Patches of the angle-delay image."""
        return self.patches.num_tokens

    @property
    def num_features(self) -> int:
        """Those of a patch, and the level."""
        return self.patches.num_features + 1

    def tokenise(self, reading: torch.Tensor) -> ModalityTokens:
        """reading: complex64 [batch, num_user_ant, num_bs_ant, num_pilots]."""
        noise_variance = reading.real.new_full((len(reading),), self.noise_variance)
        tokens = self.patches.tokenise(reading[:, None], noise_variance)
        level = tokens.context["scale"].log10()[:, None, None].expand(-1, self.num_tokens, 1)
        return ModalityTokens(features=torch.cat([tokens.features, level], dim=-1), mask=tokens.mask)

    def inverse(self, tokens: ModalityTokens) -> torch.Tensor:
        """The measurements behind the tokens: complex64, shaped as ``tokenise`` takes them."""
        scale = 10 ** tokens.features[:, 0, -1]  # [batch]
        patches = TokenBatch(features=tokens.features[..., :-1], mask=tokens.mask, context={"scale": scale})
        return self.patches.inverse(patches)[:, 0]  # [batch, num_user_ant, num_bs_ant, num_pilots]
