"""The LAM as it is used: where training links say that another predictor does better, that one predicts."""

from airlam.model.build import lam_for
from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction.base import Predictor, TrainingLinks
from airlam.radio.prediction.guard import Guarded, guarded
from airlam.radio.prediction.path_eb import PathEb
from airlam.radio.prediction.selection import TUNING_SNR_DB
from airlam.tasks.channel_prediction import LamPredictor


def guarded_lam(
    lam: LamPredictor,
    setting: PredictionSetting,
    training: TrainingLinks,
    *,
    seed: int,
    levels_db: tuple[float, ...] = TUNING_SNR_DB,
    num_links: int = 128,
) -> Guarded:
    """``lam`` and what it falls back to, chosen on training links; seed: as in ``with_fallbacks``."""
    candidates = with_fallbacks(lam, setting, seed)
    return guarded(lam.name, candidates, training, levels_db=levels_db, num_links=num_links)


def with_fallbacks(lam: LamPredictor, setting: PredictionSetting, seed: int) -> list[Predictor]:
    """``lam``, the same untuned, and Path-EB.

    Untuned, a LAM on a backbone that was pretrained on channels predicts as its pretraining has it, another
    one as its classical front end does. seed: from which the LAM's weights were drawn.
    """
    untuned = lam_for(lam.lam.spec, setting, seed).eval()
    before = LamPredictor(tokenizer=untuned.tokenizer, lam=untuned, name=f"{lam.name}_untuned")
    return [lam, before, PathEb(setting)]
