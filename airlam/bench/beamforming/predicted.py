"""Precoders from predicted channels: sum rate at 20 dB, and coded blocks through Sionna's PHY over SNR.

Four users at 60 km/h, 32 antennas, 0.5 to 2 ms ahead, CSI of 20 dB: the setting of the prediction benchmark's
sum rates. The base station knows each user's last measured channel, the best classical predictor's answer
(the best on these very users), the LAM's, or the truth; precoders are regularised zero forcing and the graph
precoder, and both told of the predictions' error, whose covariance over the array the paths' posterior has in
closed form. The joint rows have LAM and graph precoder tuned together through the rate (``airlam.bench
.beamforming.joint``); in the level rows the LAM is as it ships, precoder and size of errors alone are tuned.
Coded blocks are 16-QAM at rate 1/2, users alike.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from airlam.bench import trained
from airlam.bench.beamforming import joint
from airlam.bench.beamforming.joint import JOINT, LEVEL, JointScale
from airlam.bench.kept import as_dict
from airlam.bench.prediction.job import FULL_SIZES, QUICK_SIZES, Job, Sizes
from airlam.bench.prediction.sumrate import HOLD, NUM_USERS, SEED, SNR_DB, served_links
from airlam.model.graph_precoder import GraphPrecoder
from airlam.model.predictive_precoder import PredictivePrecoder
from airlam.radio.metrics import mean_interval
from airlam.radio.prediction import classical_predictors
from airlam.specs import LinkSpec
from airlam.tasks.channel_prediction import Progress
from airlam.tasks.link_level import LinkResult, Precode, evaluate_link
from airlam.tasks.predicted_channels import CLASSICAL_ERROR, LAM_ERROR, TRUTH, foresee, user_rows
from airlam.tasks.predicted_precoders import (
    LearnedPrecoder,
    PredictionError,
    RobustZeroForcing,
    group_rates,
    zero_forcing,
)
from airlam.units import db_to_linear

SETTING = "predicted_60kmh"
STALE, LAM, PERFECT = "stale", "lam", "perfect"
BEST_CLASSICAL = "best_classical"
RZF, GRAPH, ROBUST_RZF, ROBUST_GRAPH = "rzf", "graph", "robust_rzf", "robust_graph"
_SEPARATOR = "+"
_RATE = "sum_rate_bit_per_s_per_hz"
_TARGET = "snr_db_at_bler10"
_CODED = ("bler", "throughput_bit_per_s_per_hz")
_TOLD = {BEST_CLASSICAL: CLASSICAL_ERROR, LAM: LAM_ERROR, JOINT: LAM_ERROR, LEVEL: LAM_ERROR}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PredictedScale:
    """Sizes of a run."""

    users: Sizes  # of which the sum rate's drops count
    link: LinkSpec
    joint: JointScale | None = None  # None: nothing is tuned


FULL = PredictedScale(
    users=FULL_SIZES,
    joint=joint.FULL,
    link=LinkSpec(num_users=NUM_USERS, snr_db=(-2.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0), num_drops=64),
)
QUICK = PredictedScale(
    users=QUICK_SIZES,
    joint=joint.QUICK,
    link=LinkSpec(num_users=NUM_USERS, snr_db=(-4.0, 4.0), num_drops=1),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The truth and what is known of it, each user at unit mean power over the horizon.

    h and estimates (by whose they are): complex64 [num_groups, num_users, num_horizon, num_bs_ant,
    num_subcarriers]; errors: of those that tell of them; classical: the name of the best classical predictor;
    graphs: the precoders of those that have one of their own.
    """

    h: torch.Tensor
    estimates: Mapping[str, torch.Tensor]
    errors: Mapping[str, PredictionError]
    classical: str
    graphs: Mapping[str, GraphPrecoder] = dataclasses.field(default_factory=dict)

    def precoders(self, graph: GraphPrecoder) -> dict[str, Precode]:
        """``CSI+PRECODER`` -> precoder; graph: of those that have none of their own."""
        found: dict[str, Precode] = {}
        for csi in self.estimates:
            own = self.graphs.get(csi, graph)
            if csi not in self.graphs:
                found[_name(csi, RZF)] = zero_forcing
                found[_name(csi, GRAPH)] = LearnedPrecoder(graph=own)
            if csi in self.errors:
                found[_name(csi, ROBUST_RZF)] = RobustZeroForcing(error=self.errors[csi])
                found[_name(csi, ROBUST_GRAPH)] = LearnedPrecoder(graph=own, error=self.errors[csi])
        return found


def run_predicted(
    scale: PredictedScale, graph: GraphPrecoder, on_progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and figures.

    ``predicted_60kmh.sum_rate`` (of the LAM), ``.best_classical``, ``.stale`` and ``.perfect`` are of
    regularised zero forcing, and ``.CSI.PRECODER.sum_rate`` of all, with ``..._gain``, ``..._gain_low`` and
    ``..._gain_high`` over the LAM with regularised zero forcing; ``.CSI.PRECODER.snr_db_at_bler10`` is left
    out where no SNR of the grid meets the target.
    """
    tuned: dict[str, PredictivePrecoder] = {}
    if scale.joint is not None:
        tuned = {name: joint.tuned(name, scale.joint, graph, on_progress) for name in (LEVEL, JOINT)}
    known = know(scale.users, tuned, on_progress)
    precoders = known.precoders(graph)
    estimates = {name: known.estimates[_csi(name)] for name in precoders}
    rates = group_rates(known.h, estimates, precoders, db_to_linear(-SNR_DB))
    result = evaluate_link(
        known.h,
        estimates,
        scale.link,
        seed=SEED,
        on_progress=lambda share: on_progress("sending coded blocks", round(100 * share), 100, ""),
        precoders=precoders,
    )
    return _rows(known, rates, result), _figures(rates, result)


def know(sizes: Sizes, tuned: Mapping[str, PredictivePrecoder], on_progress: Progress) -> Known:
    """What the prediction benchmark's predictors and the tuned ones say of the users of its sum rates."""
    folder = trained.models_folder(trained.FULL)
    job = Job(
        scale=trained.FULL,
        sizes=sizes,
        lam=partial(trained.load_lam, folder),
        lam_seed=trained.read_card(folder)["lam_training"]["seed"],
        data=None,
        on_progress=on_progress,
    )
    fitting, test = served_links(job)
    training = fitting.training()
    classical = classical_predictors(test.setting, training)
    predictors = [*classical, job.guarded_lam(test.setting, training, (SNR_DB,))]
    front_end = job.lam(test.setting).lam
    foreseen = foresee(test, predictors, front_end, tuned, SNR_DB, len(test), on_progress)
    rows = user_rows(len(test), NUM_USERS, SEED)
    grouped = {name: future[rows] for name, future in foreseen.futures.items()}
    errors = {name: error[rows] for name, error in foreseen.errors.items()}
    best = _best({each.name: grouped[each.name] for each in classical}, grouped[TRUTH])
    even = torch.ones(test.setting.num_horizon)
    return Known(
        h=grouped[TRUTH],
        estimates={
            STALE: grouped[HOLD],
            BEST_CLASSICAL: grouped[best],
            LAM: grouped[trained.LAM],
            **{name: grouped[name] for name in tuned},
            PERFECT: grouped[TRUTH],
        },
        errors={
            csi: PredictionError(
                ports=errors[of],
                levels=tuned[csi].levels.detach() if csi in tuned else even,
                num_polarizations=test.setting.base_station.num_polarizations,
            )
            for csi, of in _TOLD.items()
            if csi in (BEST_CLASSICAL, LAM, *tuned)
        },
        classical=best,
        graphs={name: each.precoder for name, each in tuned.items()},
    )


def _best(estimates: Mapping[str, torch.Tensor], h: torch.Tensor) -> str:
    """Whose estimates give the highest sum rate with regularised zero forcing."""
    plain: dict[str, Precode] = dict.fromkeys(estimates, zero_forcing)
    rates = group_rates(h, estimates, plain, db_to_linear(-SNR_DB))
    return max(rates, key=lambda name: float(rates[name].mean()))


def _rows(known: Known, rates: Mapping[str, torch.Tensor], result: LinkResult) -> list[dict[str, Any]]:
    """Sum rates at the benchmark's SNR, metrics of coded blocks at each SNR, and SNRs of the target."""
    rows: list[dict[str, Any]] = []
    chain = rates[_name(LAM, RZF)]
    for name, rate in rates.items():
        for metric, values in ((_RATE, rate), (f"{_RATE}_gain_on_lam_rzf", rate - chain)):
            interval = as_dict(mean_interval(values))
            rows.append({**_who(known, name), "metric": metric, "snr_db": SNR_DB, **interval})
        target = result.snr_db_at_target_bler[name]
        rows.append({**_who(known, name), "metric": _TARGET, "value": target})
    for row in result.rows():
        if row.metric in _CODED:
            measured = {"value": row.value, "low": row.low, "high": row.high}
            rows.append({**_who(known, row.method), "metric": row.metric, "snr_db": row.snr_db, **measured})
    return rows


def _who(known: Known, name: str) -> dict[str, Any]:
    csi, precoder = name.split(_SEPARATOR)
    about: dict[str, Any] = {"setting": SETTING, "csi": csi, "precoder": precoder, "groups": len(known.h)}
    return about | ({"predictor": known.classical} if csi == BEST_CLASSICAL else {})


def _figures(rates: Mapping[str, torch.Tensor], result: LinkResult) -> dict[str, float]:
    figures = {
        f"{SETTING}.{key}": float(rates[_name(csi, RZF)].mean())
        for key, csi in (("sum_rate", LAM), *((csi, csi) for csi in (BEST_CLASSICAL, STALE, PERFECT)))
    }
    for name, rate in rates.items():
        place = f"{SETTING}.{name.replace(_SEPARATOR, '.')}"
        gain = mean_interval(rate - rates[_name(LAM, RZF)])
        figures[f"{place}.sum_rate"] = float(rate.mean())
        figures[f"{place}.sum_rate_gain"] = gain.value
        figures[f"{place}.sum_rate_gain_low"] = gain.low
        figures[f"{place}.sum_rate_gain_high"] = gain.high
        target = result.snr_db_at_target_bler[name]
        if target is not None:
            figures[f"{place}.{_TARGET}"] = target
    return figures


def _name(csi: str, precoder: str) -> str:
    return f"{csi}{_SEPARATOR}{precoder}"


def _csi(name: str) -> str:
    return name.split(_SEPARATOR)[0]
