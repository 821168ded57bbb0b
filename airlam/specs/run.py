"""What a fine-tuning run does: task, model, training, link."""

from dataclasses import dataclass, field
from typing import Literal

from airlam.specs.beam_selection import BeamSelectionSpec
from airlam.specs.beamforming import BeamformingSpec
from airlam.specs.federated import FederatedSpec
from airlam.specs.model import ModelSpec
from airlam.specs.network import NetworkSpec
from airlam.specs.precoding import PrecoderSpec
from airlam.specs.reading import require


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
    """One fine-tuning run: ``airlam finetune RUN.toml`` writes ``runs/<name>``.

    With a network its devices fine-tune together, as ``federated`` says; without, one machine does.
    """

    name: str
    dataset: str  # an HDF5 file, relative to the run spec
    task: Literal["channel_prediction", "beamforming", "beam_selection"] = "channel_prediction"
    prediction: PredictionSpec = field(default_factory=PredictionSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    beamforming: BeamformingSpec | None = None  # of its task; None: the defaults
    precoder: PrecoderSpec | None = None
    beam_selection: BeamSelectionSpec | None = None  # of its task; None: the defaults
    training: TrainingSpec = field(default_factory=TrainingSpec)
    link: LinkSpec = field(default_factory=LinkSpec)
    network: NetworkSpec | None = None
    federated: FederatedSpec | None = None  # None with a network: the defaults

    @property
    def downlink(self) -> BeamformingSpec:
        """``beamforming``, or its defaults."""
        return self.beamforming or BeamformingSpec()

    @property
    def sweeps(self) -> BeamSelectionSpec:
        """``beam_selection``, or its defaults."""
        return self.beam_selection or BeamSelectionSpec()

    def __post_init__(self) -> None:
        self._check_tables()
        self._check_network()
        require(
            self.network is not None or self.federated is None,
            "[federated] needs a [network] whose devices take part; add one or drop it",
        )
        require(
            bool(self.name) and "/" not in self.name and not self.name.startswith("."),
            f"name is {self.name!r}; it names the run's folder, so no '/' and no leading '.'",
        )

    def _check_tables(self) -> None:
        """A table of another task would be read by nobody."""
        plain = ModelSpec(tokenizer=self.model.tokenizer, num_paths=self.model.num_paths)
        of_task: tuple[tuple[str, bool, tuple[str, ...]], ...] = (
            ("beamforming", self.beamforming is not None, ("beamforming",)),
            ("precoder", self.precoder is not None, ("beamforming",)),
            ("beam_selection", self.beam_selection is not None, ("beam_selection",)),
            ("prediction", self.prediction != PredictionSpec(), ("channel_prediction",)),
            ("link", self.link != LinkSpec(), ("channel_prediction", "beamforming")),
            ("network", self.network is not None, ("channel_prediction", "beamforming")),
            ("model", self.model != ModelSpec(), ("channel_prediction", "beam_selection")),
        )
        for name, is_given, tasks in of_task:
            owners = " or ".join(f'"{task}"' for task in tasks)
            hint = "; it has [precoder.backbone]" if (name, self.task) == ("model", "beamforming") else ""
            require(
                not is_given or self.task in tasks,
                f'[{name}] is of task {owners}; this run\'s task is "{self.task}"{hint}',
            )
        require(
            self.task == "channel_prediction" or plain == ModelSpec(),
            f"[model]'s tokenizer and num_paths are of task channel_prediction; this run's is {self.task!r}",
        )

    def _check_network(self) -> None:
        """What devices of a run of beamforming do not do."""
        if self.task != "beamforming":
            return
        require(
            self.network is None or self.downlink.csi != "predicted",
            "devices do not tune predictors for precoding; drop [network], or csi",
        )
        require(
            self.federated is None or self.federated.method != "split",
            'method "split" would send rows of the Gram matrix, which tell the channels; take '
            '"federated_lora" with a [precoder.backbone], "fedavg" without',
        )
