"""What a pretraining run does: the mixture of settings it draws, the model, the two objectives."""

from dataclasses import dataclass, field
from typing import Literal

from airlam.specs.model import ModelSpec
from airlam.specs.reading import require, require_finite
from airlam.specs.run import TrainingSpec

MixtureChannel = Literal[
    "uma_nlos",
    "uma_los",
    "umi_nlos",
    "umi_los",
    "rma_nlos",
    "rma_los",
    "cdl_a",
    "cdl_b",
    "cdl_c",
    "cdl_d",
    "cdl_e",
    "munich",
    "etoile",
    "street_canyon",
]
MIXTURE_CHANNELS: tuple[MixtureChannel, ...] = MixtureChannel.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSpec:
    """Axes from which settings are drawn: channels in turn, of every other axis each value as often.

    ``airlam.datasets.mixture`` draws them and says what follows from what. No paper states these values.
    """

    num_settings: int = 42
    channels: tuple[MixtureChannel, ...] = MIXTURE_CHANNELS
    carrier_frequencies_hz: tuple[float, ...] = (0.7e9, 2.1e9, 2.4e9, 3.5e9, 4.9e9, 28e9)
    delay_spreads_s: tuple[float, ...] = (30e-9, 100e-9, 300e-9)  # of CDL
    array_shapes: tuple[tuple[int, int], ...] = ((1, 4), (2, 4), (4, 4), (4, 8), (8, 8))  # rows, columns
    polarizations: tuple[Literal["single", "dual"], ...] = ("single", "dual", "dual")
    user_polarizations: tuple[Literal["single", "dual"], ...] = ("single", "single", "dual")
    max_speeds_m_per_s: tuple[float, ...] = (1.0, 8.0, 17.0, 28.0, 33.4)
    subcarrier_spacings_hz: tuple[float, ...] = (30e3, 60e3, 120e3, 180e3, 360e3)
    num_subcarriers: tuple[int, ...] = (12, 24, 48, 72, 96)
    slot_durations_s: tuple[float, ...] = (0.25e-3, 0.5e-3, 1e-3, 2e-3)
    num_history: tuple[int, ...] = (8, 12, 16, 24)
    num_horizon: tuple[int, ...] = (2, 4, 6)
    duplex: tuple[Literal["tdd", "fdd"], ...] = ("tdd", "tdd", "tdd", "fdd")
    min_snr_db: float = -5.0
    max_snr_db: float = 35.0
    train_drops: int = 256  # of each setting; a quarter of them where they are ray-traced
    validation_drops: int = 32
    seed: int = 21

    def __post_init__(self) -> None:
        require_finite(self)
        for name in ("num_settings", "train_drops", "validation_drops"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(self.seed >= 0, f"seed must not be negative, got {self.seed}")
        require(
            self.min_snr_db <= self.max_snr_db,
            f"SNRs are {self.min_snr_db} to {self.max_snr_db} dB; expected min <= max",
        )
        for name in _AXES:
            require(len(getattr(self, name)) >= 1, f"{name} is empty; give at least one value")


_AXES = (
    "channels",
    "carrier_frequencies_hz",
    "delay_spreads_s",
    "array_shapes",
    "polarizations",
    "user_polarizations",
    "max_speeds_m_per_s",
    "subcarrier_spacings_hz",
    "num_subcarriers",
    "slot_durations_s",
    "num_history",
    "num_horizon",
    "duplex",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingSpec:
    """One pretraining run: ``airlam pretrain SPEC.toml -o FOLDER`` makes a backbone of it.

    ``training.num_samples`` counts the noisy views of all settings together.
    """

    name: str
    description: str = ""
    mixture: MixtureSpec = field(default_factory=MixtureSpec)
    model: ModelSpec = field(default_factory=lambda: ModelSpec(tuning="scratch"))
    training: TrainingSpec = field(default_factory=TrainingSpec)
    masked_share: float = 0.3  # of a link's path tokens that are hidden
    masked_weight: float = 0.5  # of that objective beside next-slot prediction

    def __post_init__(self) -> None:
        require(
            self.model.tokenizer == "path" and self.model.tuning in ("scratch", "full"),
            f"tokenizer is {self.model.tokenizer!r}, tuning {self.model.tuning!r}; a backbone is pretrained "
            "on path tokens with all its weights: expected 'path', and 'scratch' or 'full'",
        )
        require(
            self.model.backbone != "mlp",
            "backbone 'mlp' is no Hugging Face model and cannot be kept as one; take 'small'",
        )
        require(0 < self.masked_share < 1, f"masked_share is {self.masked_share}; expected above 0, below 1")
        require(
            0 <= self.masked_weight < float("inf"),
            f"masked_weight is {self.masked_weight}; expected 0 or more",
        )
        require(
            self.training.num_samples >= self.mixture.num_settings,
            f"training.num_samples is {self.training.num_samples}; expected one or more for each of "
            f"{self.mixture.num_settings} settings",
        )
