"""What predictions are worth to a downlink: the sum rate of four users under zero forcing from predicted CSI.

Users of the omnidirectional setting at 60 km/h, 32 antennas, taken in groups of four at random. Each one's
channel is scaled to unit mean power over the horizon (power control); noise is 20 dB below the transmit
power, and 20 dB below the channel in the history. Precoders are regularised zero forcing on the prediction;
rates are those on the channel that is there, averaged over subcarriers and over the horizon.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from einops import rearrange

from airlam.bench import trained
from airlam.bench.prediction.job import Job
from airlam.bench.prediction.sources import HeldLinks, drawn_links
from airlam.bench.prediction.table import Field, Part, Row, guard_note
from airlam.radio.metrics import mean_interval
from airlam.radio.precoding import regularized_zero_forcing, sum_rate_bit_per_s_per_hz
from airlam.radio.prediction import classical_predictors
from airlam.specs import MobilitySpec, SplitSizes
from airlam.tasks.channel_prediction import Progress
from airlam.tasks.comparison import BATCH_LINKS, observe
from airlam.tasks.link_level import group_users
from airlam.units import KMH_PER_M_PER_S, db_to_linear

SETTING = "sumrate"
FIGURES = "sumrate_60kmh"
SPEED_KMH = 60
SNR_DB = 20.0
NUM_USERS = 4
SEED = 23
METRIC = "sum_rate_bit_per_s_per_hz"
GENIE = "genie"
_CELL: dict[str, Any] = {"setting": SETTING, "group": f"speed_kmh={SPEED_KMH}", "snr_db": SNR_DB}
HOLD = "hold"


def measure(job: Job) -> Part:
    """``sumrate_60kmh.lam``, and others, beside the hold, the best classical prediction and perfect CSI."""
    fitting, test = served_links(job)
    job.on_progress(f"{SETTING}: fitting the classical predictors", 0, 1, "")
    training = fitting.training()
    learned = [job.guarded_lam(test.setting, training, (SNR_DB,)), *job.others(test.setting)]
    who = Field.of(classical_predictors(test.setting, training), learned)
    truth, estimates = _predict(who, test, job.on_progress)
    found = {name: rates(links, truth) for name, links in {**estimates, GENIE: truth}.items()}
    rows = [_row(name, rate, who) for name, rate in found.items()]
    score = {row.predictor: row for row in rows}
    best = max(who.classical_names, key=lambda name: score[name].value)
    gains = {name: _mean(found[name] - found[best]) for name in who.learned_names}
    gain = gains[trained.LAM]
    figures = {
        **{f"{FIGURES}.{name}": score[name].value for name in (*who.learned_names, HOLD, GENIE)},
        f"{FIGURES}.best_classical": score[best].value,
        f"{FIGURES}.lam_minus_best_classical": gain["value"],
        f"{FIGURES}.lam_minus_best_classical_low": gain["low"],
        f"{FIGURES}.lam_minus_best_classical_high": gain["high"],
    }
    gain_rows = [
        Row(
            metric=f"{METRIC}_gain_on_best_classical",
            num_links=len(test),
            reference=best,
            **who.shared(name, **_CELL),
            **each,
        )
        for name, each in gains.items()
    ]
    about = {
        "setting": SETTING,
        "dataset": trained.SETTINGS["uma_omni"],
        "speed_kmh": SPEED_KMH,
        "csi_snr_db": SNR_DB,
        "link_snr_db": SNR_DB,
        "users": NUM_USERS,
        "fitting_drops": len(fitting),
        "test_drops": len(test),
        "seed": SEED,
        "classical": "fitted on users at 60 km/h; all predictors expect 100 km/h at most",
        **guard_note(learned),
    }
    return Part(figures=figures, rows=[*rows, *gain_rows], about=about)


def served_links(job: Job) -> tuple[HeldLinks, HeldLinks]:
    """Users at 60 km/h to fit on and to serve; the top Doppler is that of the setting's fastest user."""
    sizes = SplitSizes(train=job.sizes.sumrate_fit, validation=0, test=job.sizes.sumrate_test)
    spec = trained.dataset_spec("uma_omni", sizes, SEED)
    speed = SPEED_KMH / KMH_PER_M_PER_S
    slow = dataclasses.replace(spec, mobility=MobilitySpec(min_speed_m_per_s=speed, max_speed_m_per_s=speed))
    fitting, test = (
        drawn_links(slow, split, trained.PREDICTION, spec.max_doppler_hz) for split in ("train", "test")
    )
    return fitting, test


def _predict(
    who: Field, test: HeldLinks, on_progress: Progress
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The true futures of all links, and everyone's predictions of them."""
    truth: list[torch.Tensor] = []
    estimates: dict[str, list[torch.Tensor]] = {predictor.name: [] for predictor in who.everyone}
    for start in range(0, len(test), BATCH_LINKS):
        indices = np.arange(start, min(start + BATCH_LINKS, len(test)))
        seen = observe(test.read(indices), test, SNR_DB, start)
        truth.append(seen.future)
        for predictor in who.everyone:
            estimates[predictor.name].append(predictor.predict(seen.history, seen.noise_variance))
        on_progress(f"{SETTING}: predicting", start + len(indices), len(test), "")
    return torch.cat(truth), {name: torch.cat(parts) for name, parts in estimates.items()}


def rates(estimate: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Sum rate of each group of users at each step, mean over subcarriers: float64 [num_groups, num_horizon].

    estimate and truth: complex64 [num_links, num_horizon, 1, num_bs_ant, num_subcarriers].
    """
    power = truth.abs().square().mean(dim=(1, 2, 3, 4), keepdim=True)  # [num_links, 1, 1, 1, 1]
    predicted, true = (_by_group(links * power.rsqrt()) for links in (estimate, truth))
    noise_variance = db_to_linear(-SNR_DB)
    precoder = regularized_zero_forcing(predicted, noise_variance)  # [g, t, f, num_bs_ant, users]
    return sum_rate_bit_per_s_per_hz(true, precoder, noise_variance).mean(-1).double()  # [g, t]


def _by_group(links: torch.Tensor) -> torch.Tensor:
    """The downlink of each group on each subcarrier: [g, t, f, users, num_bs_ant]."""
    return rearrange(group_users(links, NUM_USERS, SEED), "g k t m f -> g t f k m")


def _row(name: str, rates: torch.Tensor, who: Field) -> Row:
    return Row(
        metric=METRIC,
        num_links=NUM_USERS * len(rates),
        per_step=tuple(rates.mean(0).tolist()),
        **who.shared(name, **_CELL),
        **_mean(rates),
    )


def _mean(rates: torch.Tensor) -> dict[str, Any]:
    """Mean of [num_groups, num_horizon] and its interval over groups."""
    return dataclasses.asdict(mean_interval(rates.mean(1)))
