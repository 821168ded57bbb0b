"""Precoders from predicted channels: sum rate at 20 dB, and coded blocks through Sionna's PHY over SNR.

Four users at 60 km/h, 32 antennas, 0.5 to 2 ms ahead, CSI of 20 dB: the setting of the prediction benchmark's
sum rates. The base station knows each user's last measured channel, the best classical predictor's answer
(the best on these very users), the LAM's, or the truth; precoders are regularised zero forcing and the graph
precoder, and both told of the predictions' error. Of that all know Path-EB's variance of each coefficient,
the LAM too, which has none of its own. Coded blocks are 16-QAM at rate 1/2, users alike.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import rearrange

from airlam.bench import trained
from airlam.bench.kept import as_dict
from airlam.bench.prediction.job import FULL_SIZES, QUICK_SIZES, Job, Sizes
from airlam.bench.prediction.sources import HeldLinks
from airlam.bench.prediction.sumrate import HOLD, NUM_USERS, SEED, SNR_DB, served_links
from airlam.bench.prediction.table import mean_interval
from airlam.model.graph_precoder import GraphPrecoder
from airlam.radio.beamforming import robust_regularized_zero_forcing
from airlam.radio.precoding import regularized_zero_forcing, sum_rate_bit_per_s_per_hz
from airlam.radio.prediction import classical_predictors
from airlam.radio.prediction.base import Predictor
from airlam.radio.prediction.path_eb import PathEb
from airlam.specs import LinkSpec
from airlam.tasks.channel_prediction import Progress
from airlam.tasks.comparison import BATCH_LINKS, observe
from airlam.tasks.link_level import LinkResult, Precode, evaluate_link, group_users
from airlam.units import db_to_linear

SETTING = "predicted_60kmh"
STALE, LAM, PERFECT = "stale", "lam", "perfect"
BEST_CLASSICAL = "best_classical"
RZF, GRAPH, ROBUST_RZF, ROBUST_GRAPH = "rzf", "graph", "robust_rzf", "robust_graph"
_SEPARATOR = "+"
_TARGET = "snr_db_at_bler10"
_CODED = ("bler", "throughput_bit_per_s_per_hz")
_GROUPS_AT_ONCE = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PredictedScale:
    """Sizes of a run."""

    users: Sizes  # of which the sum rate's drops count
    link: LinkSpec


FULL = PredictedScale(
    users=FULL_SIZES,
    link=LinkSpec(num_users=NUM_USERS, snr_db=(-2.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0), num_drops=64),
)
QUICK = PredictedScale(users=QUICK_SIZES, link=LinkSpec(num_users=NUM_USERS, snr_db=(-4.0, 4.0), num_drops=1))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The truth and what is known of it, each user at unit mean power over the horizon.

    h and estimates (by whose they are): complex64 [num_groups, num_users, num_horizon, num_bs_ant,
    num_subcarriers]; error_variance: of the predictions, float32 of the same shape; classical: the name of
    the best classical predictor.
    """

    h: torch.Tensor
    estimates: Mapping[str, torch.Tensor]
    error_variance: torch.Tensor
    classical: str

    def precoders(self, graph: GraphPrecoder) -> dict[str, Precode]:
        """``CSI+PRECODER`` -> precoder."""
        robust = partial(_robust_zero_forcing, self), partial(_robust_graph, self, graph)
        found: dict[str, Precode] = {}
        for csi in self.estimates:
            found[_name(csi, RZF)] = _zero_forcing
            found[_name(csi, GRAPH)] = partial(_graph, graph)
            if csi in (BEST_CLASSICAL, LAM):
                found[_name(csi, ROBUST_RZF)], found[_name(csi, ROBUST_GRAPH)] = robust
        return found

    def covariance(self, believed: torch.Tensor, groups: slice) -> torch.Tensor:
        """Of the errors of some groups' channels: complex64 [*believed.shape, num_bs_ant]."""
        variance = _per_subcarrier(self.error_variance[groups])[: len(believed)]  # as believed
        return torch.diag_embed(variance).to(believed.dtype)


def run_predicted(
    scale: PredictedScale, graph: GraphPrecoder, on_progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and figures.

    ``predicted_60kmh.sum_rate`` (of the LAM), ``.best_classical``, ``.stale`` and ``.perfect`` are of
    regularised zero forcing, and ``.CSI.PRECODER.sum_rate`` of all; ``.CSI.PRECODER.snr_db_at_bler10`` is
    left out where no SNR of the grid meets the target.
    """
    known = know(scale.users, on_progress)
    precoders = known.precoders(graph)
    rates = {name: _sum_rates(known, name, precode) for name, precode in precoders.items()}
    result = evaluate_link(
        known.h,
        {name: known.estimates[_csi(name)] for name in precoders},
        scale.link,
        seed=SEED,
        on_progress=lambda share: on_progress("sending coded blocks", round(100 * share), 100, ""),
        precoders=precoders,
    )
    return _rows(known, rates, result), _figures(rates, result)


def know(sizes: Sizes, on_progress: Progress) -> Known:
    """What the predictors of the prediction benchmark say of the users of its sum rates."""
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
    truth, found, variance = _predict(predictors, test, on_progress)
    power = truth.abs().square().mean(dim=(1, 2, 3, 4), keepdim=True)  # [num_links, 1, 1, 1, 1]
    h = _by_group(truth * power.rsqrt())
    estimates = {name: _by_group(links * power.rsqrt()) for name, links in found.items()}
    mean = {each.name: float(_rates(h, estimates[each.name], _zero_forcing).mean()) for each in classical}
    best = max(mean, key=lambda name: mean[name])
    return Known(
        h=h,
        estimates={
            STALE: estimates[HOLD],
            BEST_CLASSICAL: estimates[best],
            LAM: estimates[trained.LAM],
            PERFECT: h,
        },
        error_variance=_by_group(variance / power),
        classical=best,
    )


def _predict(
    predictors: Sequence[Predictor], test: HeldLinks, on_progress: Progress
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """The true futures of all links, everyone's predictions, and Path-EB's variance of its own."""
    judge = PathEb(test.setting)
    truth: list[torch.Tensor] = []
    variance: list[torch.Tensor] = []
    estimates: dict[str, list[torch.Tensor]] = {predictor.name: [] for predictor in predictors}
    for start in range(0, len(test), BATCH_LINKS):
        indices = np.arange(start, min(start + BATCH_LINKS, len(test)))
        seen = observe(test.read(indices), test, SNR_DB, start)
        truth.append(seen.future)
        variance.append(judge.predict_with_variance(seen.history, seen.noise_variance)[1])
        for predictor in predictors:
            estimates[predictor.name].append(predictor.predict(seen.history, seen.noise_variance))
        on_progress("predicting", start + len(indices), len(test), "")
    return (
        torch.cat(truth),
        {name: torch.cat(parts) for name, parts in estimates.items()},
        torch.cat(variance),
    )


def _by_group(links: torch.Tensor) -> torch.Tensor:
    """[num_links, t, 1, m, f] to [num_groups, num_users, t, m, f]."""
    return group_users(links, NUM_USERS, SEED)


def _per_subcarrier(links: torch.Tensor) -> torch.Tensor:
    """[num_groups, num_users, t, m, f] to [num_groups, t, f, num_users, m]."""
    return rearrange(links, "g k t m f -> g t f k m")


def _zero_forcing(believed: torch.Tensor, noise_variance: float, groups: slice) -> torch.Tensor:
    return regularized_zero_forcing(believed, noise_variance)


def _robust_zero_forcing(
    known: Known, believed: torch.Tensor, noise_variance: float, groups: slice
) -> torch.Tensor:
    return robust_regularized_zero_forcing(believed, known.covariance(believed, groups), noise_variance)


def _graph(
    graph: GraphPrecoder, believed: torch.Tensor, noise_variance: float, groups: slice
) -> torch.Tensor:
    flat = believed.flatten(end_dim=2)  # [downlinks, num_users, num_bs_ant]
    with torch.no_grad():
        w = graph.precode(flat, torch.full((len(flat),), noise_variance))
    return w.reshape(*believed.shape[:3], *w.shape[1:])


def _robust_graph(
    known: Known, graph: GraphPrecoder, believed: torch.Tensor, noise_variance: float, groups: slice
) -> torch.Tensor:
    flat, covariance = (each.flatten(end_dim=2) for each in (believed, known.covariance(believed, groups)))
    with torch.no_grad():
        w = graph.precode(flat, torch.full((len(flat),), noise_variance), error_covariance=covariance)
    return w.reshape(*believed.shape[:3], *w.shape[1:])


def _sum_rates(known: Known, name: str, precode: Precode) -> torch.Tensor:
    """At the benchmark's SNR."""
    return _rates(known.h, known.estimates[_csi(name)], precode)


def _rates(h: torch.Tensor, estimate: torch.Tensor, precode: Precode) -> torch.Tensor:
    """Sum rate of each group, mean over the horizon and subcarriers: float64 [num_groups]."""
    noise_variance = db_to_linear(-SNR_DB)
    found = []
    for start in range(0, len(h), _GROUPS_AT_ONCE):
        groups = slice(start, start + _GROUPS_AT_ONCE)
        w = precode(_per_subcarrier(estimate[groups]), noise_variance, groups)
        rate = sum_rate_bit_per_s_per_hz(_per_subcarrier(h[groups]), w, noise_variance)  # [groups, t, f]
        found.append(rate.double().mean(dim=(1, 2)))
    return torch.cat(found)


def _rows(known: Known, rates: Mapping[str, torch.Tensor], result: LinkResult) -> list[dict[str, Any]]:
    """Sum rates at the benchmark's SNR, metrics of coded blocks at each SNR, and SNRs of the target."""
    rows: list[dict[str, Any]] = []
    for name, rate in rates.items():
        rows.append(
            {
                **_who(known, name),
                "metric": "sum_rate_bit_per_s_per_hz",
                "snr_db": SNR_DB,
                **as_dict(mean_interval(rate)),
            }
        )
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
        figures[f"{place}.sum_rate"] = float(rate.mean())
        target = result.snr_db_at_target_bler[name]
        if target is not None:
            figures[f"{place}.{_TARGET}"] = target
    return figures


def _name(csi: str, precoder: str) -> str:
    return f"{csi}{_SEPARATOR}{precoder}"


def _csi(name: str) -> str:
    return name.split(_SEPARATOR)[0]
