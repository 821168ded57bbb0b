"""Classical channel predictors: ``classical_predictors`` fits all that suit a setting."""

from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction.base import Predictor, TrainingLinks
from airlam.radio.prediction.covariance_mapping import CovarianceMapping
from airlam.radio.prediction.esprit import can_tell_delays, delay_esprit
from airlam.radio.prediction.naive import Hold
from airlam.radio.prediction.path_eb import PathEb
from airlam.radio.prediction.selection import spread_links
from airlam.radio.prediction.tdd import tdd_predictors

MAX_LINKS = 512

__all__ = ["Predictor", "TrainingLinks", "classical_predictors"]


def classical_predictors(setting: PredictionSetting, training: TrainingLinks) -> list[Predictor]:
    """Every classical predictor of a setting, tuned and fitted on training links only.

    ``MAX_LINKS`` of them, spread evenly, are used: the pooled statistics have settled by then. Names are
    unique; the order is that of the tables, simple methods first.
    """
    training = spread_links(training, MAX_LINKS)
    if not setting.is_fdd:
        return [*tdd_predictors(setting, training), PathEb(setting)]
    return [
        *([Hold.for_setting(setting)] if _same_size(setting) else []),
        CovarianceMapping.fit(setting, training),
        *([delay_esprit(setting, training)] if can_tell_delays(setting) else []),
        PathEb(setting),
    ]


def _same_size(setting: PredictionSetting) -> bool:
    """Whether uplink can be passed off as downlink, subcarrier by subcarrier."""
    return len(setting.history_frequencies_hz) == len(setting.target_frequencies_hz)
