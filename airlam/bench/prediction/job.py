"""What every setting of the prediction benchmark is given, and how large each is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from airlam.bench import trained
from airlam.errors import SpecError
from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction.base import Predictor, TrainingLinks
from airlam.radio.prediction.guard import Guarded
from airlam.radio.prediction.selection import TUNING_SNR_DB
from airlam.tasks.channel_prediction import LamPredictor, Progress
from airlam.tasks.guarded import guarded_lam


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Drops, users and repeats of the settings that ``trained.Scale`` does not size."""

    csi4cast_fit: int  # drops a cell that the classical predictors are fitted on
    csi4cast_test: int
    csi4cast_subcarriers: int  # of the published 300; the band stays as wide
    sca_fit: int
    sca_test: int  # a speed
    sumrate_fit: int
    sumrate_test: int
    latency_batch: int
    latency_repeats: int
    latency_cores: int | None  # None: all


GUARD_LINKS = 512  # at most, over all SNRs, on which the LAM's guard chooses

FULL_SIZES = Sizes(
    csi4cast_fit=48,
    csi4cast_test=60,
    csi4cast_subcarriers=300,
    sca_fit=512,
    sca_test=256,
    sumrate_fit=128,
    sumrate_test=256,
    latency_batch=64,
    latency_repeats=15,
    latency_cores=None,
)
QUICK_SIZES = Sizes(
    csi4cast_fit=6,
    csi4cast_test=2,
    csi4cast_subcarriers=12,
    sca_fit=6,
    sca_test=4,
    sumrate_fit=6,
    sumrate_test=8,
    latency_batch=4,
    latency_repeats=1,
    latency_cores=1,  # threads that wait for each other crawl beside other tests
)


LoadPredictors = Callable[[PredictionSetting], Sequence[Predictor]]


def nobody(setting: PredictionSetting) -> Sequence[Predictor]:
    """No further predictors in any setting."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of the benchmark: the LAM to be scored, in any setting, and who stands beside it."""

    scale: trained.Scale
    sizes: Sizes
    lam: Callable[[PredictionSetting], LamPredictor]
    lam_seed: int  # from which the LAM's weights were drawn
    data: Path | None  # a QuaDRiGa set
    on_progress: Progress
    others: LoadPredictors = nobody  # learned ones that fit any setting
    peers: LoadPredictors = nobody  # learned ones that fit one number of subcarriers

    def guarded_lam(
        self,
        setting: PredictionSetting,
        training: TrainingLinks,
        levels_db: tuple[float, ...] = TUNING_SNR_DB,
    ) -> Guarded:
        """The LAM as it is used: with what it falls back to, chosen on the setting's training links."""
        self.on_progress("guarding the LAM", 0, 1, "")
        return guarded_lam(
            self.lam(setting),
            setting,
            training,
            seed=self.lam_seed,
            levels_db=levels_db,
            num_links=GUARD_LINKS // len(levels_db),
        )

    def learned(self, setting: PredictionSetting, training: TrainingLinks) -> list[Predictor]:
        """The guarded LAM, the others and the peers, in a setting like the one the peers were trained for."""
        return [self.guarded_lam(setting, training), *self.others(setting), *self.peers(setting)]

    def data_file(self) -> Path:
        """The file with foreign links; SpecError where none was given."""
        if self.data is None:
            raise SpecError("the QuaDRiGa settings need a file; give a *_dev.npz with --data")
        return self.data
