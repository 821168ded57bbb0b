"""Every spec: frozen dataclasses with units in their names, read from TOML and written back.

An unknown key is an error that names the key and its nearest known one. Values are checked once, here;
deeper code trusts them.
"""

import dataclasses
import difflib
import math
import reprlib
import tomllib
import types
import typing
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from airlam.errors import SpecError
from airlam.units import SPEED_OF_LIGHT_M_PER_S

Spec = TypeVar("Spec")


def read_spec(kind: type[Spec], path: Path) -> Spec:
    """Reads a spec of the given kind from a TOML file; a bad file or value raises SpecError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {path}: {error}") from error
    return parse_spec(kind, text, str(path))


def parse_spec(kind: type[Spec], text: str, where: str = "the spec") -> Spec:
    """The spec that a TOML text describes; ``where`` names the text in errors."""
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not TOML, or numbers and nesting beyond all reason
        raise SpecError(f"{where} is not TOML: {error}") from error
    return spec_from_dict(kind, values, where)


def spec_from_dict(kind: type[Spec], values: dict[str, Any], where: str = "the spec") -> Spec:
    """A spec from nested tables; unknown, missing and mistyped keys raise SpecError naming them."""
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(fields)}"
            raise SpecError(f"{where}: unknown key {key!r}{hint}")
    required = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in values]
    if missing:
        raise SpecError(f"{where}: missing key {missing[0]!r}")
    converted = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    try:
        return kind(**converted)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated type: nested specs, tuples, literals, numbers."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise SpecError(f"{where} is a number of {value.bit_length()} bits; expected at most 63")
    shown = reprlib.repr(value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        return _convert(inner[0], value, where)
    if origin is Literal:
        if value not in arguments:
            near = difflib.get_close_matches(str(value), [str(a) for a in arguments], n=1)
            hint_text = f"; did you mean {near[0]!r}?" if near else ""
            raise SpecError(f"{where} is {shown}; expected one of {list(arguments)}{hint_text}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SpecError(f"{where} is {shown}; expected a list")
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], item, where) for item in value)
        if len(value) != len(arguments):
            raise SpecError(f"{where} has {len(value)} values; expected {len(arguments)}")
        return tuple(_convert(a, item, where) for a, item in zip(arguments, value, strict=True))
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise SpecError(f"{where} is {shown}; expected a table")
        return spec_from_dict(typing.cast(type[Any], hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise SpecError(f"{where} is {shown}; expected {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise SpecError(f"{where} is {shown}; expected a finite number")
    return value


def spec_to_dict(spec: Any) -> dict[str, Any]:
    """Nested tables of a spec, without the keys that are None (TOML has no null)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if item is not None}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return typing.cast(dict[str, Any], plain(dataclasses.asdict(spec)))


def spec_to_toml(spec: Any) -> str:
    """The spec as TOML; ``parse_spec`` gives it back equal."""
    return tomli_w.dumps(spec_to_dict(spec))


def require(condition: bool, message: str) -> None:
    """Raises SpecError with ``message`` unless the condition holds."""
    if not condition:
        raise SpecError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """Planar antenna array; ports are ordered (polarisation, column, row), as Sionna's panels order them."""

    num_rows: int = 1
    num_cols: int = 1
    polarization: Literal["single", "dual"] = "single"
    polarization_type: Literal["V", "H", "VH", "cross"] = "V"
    antenna_pattern: Literal["omni", "38.901"] = "omni"
    spacing_wavelengths: float = 0.5

    def __post_init__(self) -> None:
        require(self.num_rows >= 1 and self.num_cols >= 1, "num_rows and num_cols must be at least 1")
        allowed = ("VH", "cross") if self.polarization == "dual" else ("V", "H")
        require(
            self.polarization_type in allowed,
            f"polarization_type is {self.polarization_type!r}; "
            f"a {self.polarization} array takes one of {allowed}",
        )
        require(
            self.spacing_wavelengths > 0,
            f"spacing_wavelengths must be positive, got {self.spacing_wavelengths}",
        )

    @property
    def num_polarizations(self) -> int:
        """1 or 2."""
        return 2 if self.polarization == "dual" else 1

    @property
    def num_ports(self) -> int:
        """Number of antenna ports."""
        return self.num_rows * self.num_cols * self.num_polarizations


ChannelModel = Literal[
    "cdl_a",
    "cdl_b",
    "cdl_c",
    "cdl_d",
    "cdl_e",
    "tdl_a",
    "tdl_b",
    "tdl_c",
    "tdl_d",
    "tdl_e",
    "umi",
    "uma",
    "rma",
]
BOTTOM_HZ, TOP_HZ = 0.5e9, 100e9
RMA_TOP_HZ = 30e9  # TR 38.901, notes to table 7.4.1-1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSpec:
    """3GPP TR 38.901 model, as Sionna implements it."""

    model: ChannelModel
    carrier_frequency_hz: float
    direction: Literal["uplink", "downlink"] = "uplink"
    delay_spread_s: float | None = None  # CDL and TDL only: they are scaled, the others draw it
    los: Literal["mixed", "los", "nlos"] = "mixed"  # UMi, UMa, RMa only
    indoor_probability: float = 0.0  # UMi, UMa, RMa only
    o2i_model: Literal["low", "high"] = "low"  # UMi and UMa only
    path_loss: bool = False
    shadow_fading: bool = False

    def __post_init__(self) -> None:
        top_hz = RMA_TOP_HZ if self.model == "rma" else TOP_HZ
        require(
            BOTTOM_HZ <= self.carrier_frequency_hz <= top_hz,
            f"carrier_frequency_hz is {self.carrier_frequency_hz:g}; "
            f"TR 38.901 covers 0.5e9 to {top_hz / 1e9:g}e9 in {self.model}",
        )
        require(
            0 <= self.indoor_probability <= 1,
            f"indoor_probability is {self.indoor_probability}; expected 0 to 1",
        )
        require(
            self.o2i_model == "low" or self.model in ("umi", "uma"),
            f"o2i_model is {self.o2i_model!r}, which {self.model} does not know: drop it or take umi or uma",
        )
        if self.is_link_level:
            require(
                self.delay_spread_s is not None and self.delay_spread_s > 0,
                f"delay_spread_s is {self.delay_spread_s}; {self.model} needs a positive one, e.g. 100e-9",
            )
            require(
                not (self.path_loss or self.shadow_fading),
                f"{self.model} has no path loss or shadow fading: drop those keys or take umi, uma or rma",
            )
            require(
                self.los == "mixed" and self.indoor_probability == 0,
                f"{self.model} has no line of sight or walls to choose: drop los and indoor_probability",
            )
        else:
            require(
                self.delay_spread_s is None,
                f"{self.model} draws its delay spread: drop delay_spread_s",
            )

    @property
    def is_link_level(self) -> bool:
        """CDL or TDL, which know no geometry of the cell."""
        return self.model[:3] in ("cdl", "tdl")


@dataclass(frozen=True, slots=True, kw_only=True)
class MobilitySpec:
    """Speeds are drawn uniformly; both ends must be given (Sionna's own default silently slows users)."""

    min_speed_m_per_s: float
    max_speed_m_per_s: float

    def __post_init__(self) -> None:
        require(
            0 <= self.min_speed_m_per_s <= self.max_speed_m_per_s,
            f"speeds are {self.min_speed_m_per_s} to {self.max_speed_m_per_s} m/s; expected 0 <= min <= max",
        )
        require(
            self.max_speed_m_per_s < SPEED_OF_LIGHT_M_PER_S,
            f"max_speed_m_per_s is {self.max_speed_m_per_s:g}, beyond light; is it in m/s?",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementSpec:
    """Where users stand, for UMi, UMa and RMa: uniformly in radius and angle on an arc around a centre."""

    base_station_height_m: float = 25.0
    base_station_downtilt_deg: float = 0.0
    user_center_m: tuple[float, float] = (200.0, 0.0)  # base station at the origin, facing +x
    min_radius_m: float = 20.0
    max_radius_m: float = 50.0
    arc_deg: tuple[float, float] = (0.0, 360.0)
    user_height_m: float = 1.5
    user_orientation: Literal["fixed", "heading"] = "fixed"  # heading: the element points where the user goes

    def __post_init__(self) -> None:
        require(
            0 <= self.min_radius_m <= self.max_radius_m,
            f"radii are {self.min_radius_m} to {self.max_radius_m} m; expected 0 <= min <= max",
        )
        require(
            self.base_station_height_m > 0 and self.user_height_m > 0,
            "base_station_height_m and user_height_m must be positive",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSpec:
    """Which frequencies and times are kept: ``num_slots`` snapshots, uplink band then downlink band.

    The bands lie side by side around the carrier, ``gap_subcarriers`` apart, the uplink lower. TDD keeps no
    downlink band (``num_downlink_subcarriers = 0``): both directions then share the uplink's.
    """

    subcarrier_spacing_hz: float
    num_uplink_subcarriers: int
    num_downlink_subcarriers: int = 0
    gap_subcarriers: int = 0
    num_slots: int = 20
    slot_duration_s: float = 0.5e-3

    def __post_init__(self) -> None:
        for name in ("subcarrier_spacing_hz", "num_uplink_subcarriers", "num_slots", "slot_duration_s"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for name in ("num_downlink_subcarriers", "gap_subcarriers"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def num_subcarriers(self) -> int:
        """Subcarriers kept: uplink and downlink, without the gap."""
        return self.num_uplink_subcarriers + self.num_downlink_subcarriers

    @property
    def bandwidth_hz(self) -> float:
        """From the lowest subcarrier's lower edge to the highest's upper edge, the gap included."""
        gap = self.gap_subcarriers if self.num_downlink_subcarriers else 0
        return (self.num_subcarriers + gap) * self.subcarrier_spacing_hz

    @property
    def frequencies_hz(self) -> tuple[float, ...]:
        """Subcarrier centres relative to the carrier, in stored order (uplink, then downlink)."""
        gap = self.gap_subcarriers if self.num_downlink_subcarriers else 0
        total = self.num_subcarriers + gap
        first_downlink = self.num_uplink_subcarriers + gap
        kept = [*range(self.num_uplink_subcarriers), *range(first_downlink, total)]
        return tuple((index - (total - 1) / 2) * self.subcarrier_spacing_hz for index in kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSizes:
    """Drops per split; the splits are disjoint drops with seeds of their own."""

    train: int = 1024
    validation: int = 128
    test: int = 256

    def __post_init__(self) -> None:
        sizes = (self.train, self.validation, self.test)
        require(min(sizes) >= 0, f"drops are {sizes}; none may be negative")
        require(sum(sizes) > 0, "train, validation and test are all 0: nothing to generate")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """One channel dataset."""

    name: str
    description: str = ""
    channel: ChannelSpec
    base_station: ArraySpec
    user: ArraySpec = field(default_factory=ArraySpec)
    placement: PlacementSpec = field(default_factory=PlacementSpec)
    mobility: MobilitySpec
    grid: GridSpec
    drops: SplitSizes = field(default_factory=SplitSizes)
    num_users: int = 1  # users that share a drop
    seed: int = 1
    shard_drops: int = 128  # drops drawn from one seed; the unit of resuming

    def __post_init__(self) -> None:
        require(self.num_users >= 1, f"num_users must be at least 1, got {self.num_users}")
        require(self.shard_drops >= 1, f"shard_drops must be at least 1, got {self.shard_drops}")
        require(self.seed >= 0, f"seed must not be negative, got {self.seed}")
        require(
            not self.channel.is_link_level or self.placement == PlacementSpec(),
            f"{self.channel.model} knows no places: drop placement or take umi, uma or rma",
        )
        require(
            self.grid.bandwidth_hz < self.channel.carrier_frequency_hz,
            f"the grid spans {self.grid.bandwidth_hz:g} Hz, beyond the carrier at "
            f"{self.channel.carrier_frequency_hz:g} Hz; take fewer subcarriers or a smaller spacing",
        )
        if self.doppler_cycles_per_slot >= 0.5:
            warnings.warn(
                f"{self.name}: Doppler aliases: {self.max_doppler_hz:.0f} Hz x "
                f"{self.grid.slot_duration_s:g} s = {self.doppler_cycles_per_slot:.2f} cycles per slot, "
                "beyond 0.5; "
                "shorten slot_duration_s or lower max_speed_m_per_s",
                stacklevel=2,
            )

    @property
    def max_doppler_hz(self) -> float:
        """v f_c / c at the highest speed."""
        return self.mobility.max_speed_m_per_s * self.channel.carrier_frequency_hz / SPEED_OF_LIGHT_M_PER_S

    @property
    def doppler_cycles_per_slot(self) -> float:
        """Largest Doppler shift times the slot; at 0.5 it aliases."""
        return self.max_doppler_hz * self.grid.slot_duration_s


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionSpec:
    """Channel prediction: slots of noisy history in, slots of future out."""

    num_history: int = 16
    num_horizon: int = 4
    duplex: Literal["tdd", "fdd"] = "tdd"  # fdd: uplink history, downlink future
    min_snr_db: float = 0.0  # of the history, in training
    max_snr_db: float = 30.0

    def __post_init__(self) -> None:
        require(
            self.num_history >= 2 and self.num_horizon >= 1, "num_history must be >= 2 and num_horizon >= 1"
        )
        require(
            self.min_snr_db <= self.max_snr_db,
            f"SNRs are {self.min_snr_db} to {self.max_snr_db} dB; expected min <= max",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The LAM: tokeniser, backbone, how it is tuned."""

    backbone: str = "small"  # small, minilm, smollm2, a hub id or a local folder
    tokenizer: Literal["path", "patch"] = "path"
    num_layers: int | None = None  # depth cut; None keeps all
    tuning: Literal["lora", "full", "head", "scratch"] = "lora"
    lora_rank: int = 8
    lora_alpha: float = 16.0
    num_paths: int = 32  # tokens of the path tokeniser

    def __post_init__(self) -> None:
        require(self.lora_rank >= 1, f"lora_rank must be at least 1, got {self.lora_rank}")
        require(self.num_paths >= 1, f"num_paths must be at least 1, got {self.num_paths}")
        require(
            self.num_layers is None or self.num_layers >= 1,
            f"num_layers must be at least 1, got {self.num_layers}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """The optimiser and when to stop."""

    num_steps: int = 1000
    batch_size: int = 32
    accumulation_steps: int = 1
    learning_rate: float = 6e-4
    weight_decay: float = 0.02
    num_samples: int = 4096  # noisy views of the training drops; each is drawn once and reused
    validation_every_steps: int = 100
    patience: int = 5  # validations without a better one before stopping
    checkpoint_every_steps: int = 100
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 1

    def __post_init__(self) -> None:
        for name in (
            "num_steps",
            "batch_size",
            "accumulation_steps",
            "learning_rate",
            "num_samples",
            "validation_every_steps",
            "patience",
            "checkpoint_every_steps",
        ):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        require(self.seed >= 0, f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """Coded multi-user OFDM downlink on which the gain is measured."""

    num_users: int = 4  # scheduled together on the same band
    snr_db: tuple[float, ...] = (0.0, 5.0, 10.0, 15.0, 20.0)  # transmit power over noise, unit-power channels
    csi_snr_db: float = 20.0  # of the history that predictors see
    num_bits_per_symbol: int = 4
    coderate: float = 0.5
    receiver: Literal["perfect", "dmrs"] = "perfect"  # how receivers know their precoded channels
    num_drops: int = 64

    def __post_init__(self) -> None:
        require(self.num_users >= 1, f"num_users must be at least 1, got {self.num_users}")
        require(len(self.snr_db) >= 1, "snr_db is empty; give at least one value")
        require(
            self.num_bits_per_symbol in (1, 2, 4, 6, 8),
            f"num_bits_per_symbol is {self.num_bits_per_symbol}; expected 1, 2, 4, 6 or 8",
        )
        require(0.2 <= self.coderate <= 0.92, f"coderate is {self.coderate}; 5G LDPC takes 0.2 to 0.92")
        require(self.num_drops >= 1, f"num_drops must be at least 1, got {self.num_drops}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One fine-tuning run: ``airlam finetune RUN.toml`` writes ``runs/<name>``."""

    name: str
    dataset: str  # an HDF5 file, relative to the run spec
    task: Literal["channel_prediction"] = "channel_prediction"
    prediction: PredictionSpec = field(default_factory=PredictionSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    training: TrainingSpec = field(default_factory=TrainingSpec)
    link: LinkSpec = field(default_factory=LinkSpec)

    def __post_init__(self) -> None:
        require(
            bool(self.name) and "/" not in self.name and not self.name.startswith("."),
            f"name is {self.name!r}; it names the run's folder, so no '/' and no leading '.'",
        )
