"""SCA-LLM's setting: UMa without line of sight, 4x4 MIMO, 12 subcarriers, 24 slots to 6, at 10 dB.

Scored as the mean over users of the NMSE, in dB, at three speeds. The packaged spec ``sca_llm_uma`` says what
of the setting is a reconstruction (carrier, array shapes, placement); so are noise against each link's own
power and the mean over users. Predictors expect the setting's 60 km/h, whatever the speed. Of a user who
stands still, 24 looks at one channel can be averaged: what that alone gives stands beside.
"""

import dataclasses
from dataclasses import dataclass

import torch
from einops import repeat

from airlam.bench import trained
from airlam.bench.prediction.job import Job
from airlam.bench.prediction.sources import HeldLinks, drawn_links
from airlam.bench.prediction.table import Field, Part, Row, guard_note, nmse_rows, ratio_rows
from airlam.datasets.catalog import packaged_spec
from airlam.radio.metrics import summarise_nmse
from airlam.radio.prediction import classical_predictors
from airlam.specs import MobilitySpec, PredictionSpec, SplitSizes
from airlam.tasks.comparison import Comparison, compare
from airlam.units import KMH_PER_M_PER_S, linear_to_db

SETTING = "sca"
SNR_DB = 10.0
SEED = 22
PREDICTION = PredictionSpec(num_history=24, num_horizon=6, duplex="tdd", min_snr_db=0.0, max_snr_db=20.0)
METRIC = "nmse_mean_db"
AVERAGE = "time_average"
# speeds in km/h; what SCA-LLM (the text) and the others of its figure (read off) reach, in dB
PUBLISHED_DB = {
    "sca_llm_published": {0: -19.2, 30: -11.2, 60: -8.1},
    "llm4cp_published": {0: -17.6, 30: -10.8, 60: -7.8},
}
SPEEDS_KMH = (0, 30, 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeAverage:
    """The mean of the history for every step: 1 / (SNR num_history) for users who stand still."""

    num_horizon: int
    name: str = AVERAGE

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``; ``noise_variance`` is not used."""
        return repeat(history.mean(dim=1), "b u p f -> b t u p f", t=self.num_horizon).clone()


def measure(job: Job) -> Part:
    """The three speeds: ``sca.<speed>kmh.db`` is the LAM's, ``sca.<speed>kmh.<name>_db`` another's."""
    sizes = SplitSizes(train=job.sizes.sca_fit, validation=0, test=0)
    spec = dataclasses.replace(packaged_spec("sca_llm_uma"), drops=sizes, seed=SEED)
    fitting = drawn_links(spec, "train", PREDICTION)
    job.on_progress(f"{SETTING}: fitting the classical predictors", 0, 1, "")
    average = TimeAverage(num_horizon=PREDICTION.num_horizon)
    training = fitting.training()
    learned = [job.guarded_lam(fitting.setting, training, (SNR_DB,)), *job.others(fitting.setting)]
    who = Field.of(classical_predictors(fitting.setting, training), learned, [average])
    figures: dict[str, float] = {}
    rows: list[Row] = []
    for speed_kmh in SPEEDS_KMH:
        test = _test_links(speed_kmh, job.sizes.sca_test, fitting.setting.max_doppler_hz)
        comparison = compare(who.everyone, test, [SNR_DB], job.on_progress)
        group = f"speed_kmh={speed_kmh}"
        everyone = {group: torch.ones(len(test), dtype=torch.bool)}
        means = _mean_rows(comparison, who, group)
        best = min((row for row in means if row.kind == "classical"), key=lambda row: row.value)
        score = {row.predictor: row.value for row in means}
        figures[f"{SETTING}.{speed_kmh}kmh.db"] = score[trained.LAM]
        figures[f"{SETTING}.{speed_kmh}kmh.best_classical_db"] = best.value
        figures |= {f"{SETTING}.{speed_kmh}kmh.{name}_db": score[name] for name in who.peer_names}
        rows += [
            *means,
            *_published_rows(speed_kmh, group),
            *nmse_rows(SETTING, comparison, who, everyone),
            *ratio_rows(SETTING, comparison, who, everyone),
        ]
        if speed_kmh == 0:
            figures[f"{SETTING}.0kmh.time_average_db"] = score[AVERAGE]
    about = {
        "setting": SETTING,
        "dataset": spec.name,
        "snr_db": SNR_DB,
        "fitting_drops": len(fitting),
        "test_drops": job.sizes.sca_test,
        "seed": SEED,
        "nmse": "in dB of the mean over links, against the clean channel",
        "reconstructed": f"{spec.description}; noise against each link's own power; the mean over links",
        **guard_note(learned),
    }
    return Part(figures=figures, rows=rows, about=about)


def _test_links(speed_kmh: int, num_drops: int, max_doppler_hz: float) -> HeldLinks:
    """Users who all move at one speed."""
    speed = speed_kmh / KMH_PER_M_PER_S
    spec = dataclasses.replace(
        packaged_spec("sca_llm_uma"),
        mobility=MobilitySpec(min_speed_m_per_s=speed, max_speed_m_per_s=speed),
        drops=SplitSizes(train=0, validation=0, test=num_drops),
        seed=SEED,
    )
    return drawn_links(spec, "test", PREDICTION, max_doppler_hz)


def _mean_rows(comparison: Comparison, who: Field, group: str) -> list[Row]:
    """Everyone's mean NMSE in dB."""
    rows = []
    for name, each in comparison.scored[SNR_DB].items():
        mean = summarise_nmse(each.clean).mean
        rows.append(
            Row(
                metric=METRIC,
                num_links=len(each.clean),
                ms_per_link=1000 * comparison.seconds_per_link[name],
                **who.shared(name, setting=SETTING, group=group, snr_db=SNR_DB),
                value=linear_to_db(mean.value),
                low=linear_to_db(mean.low),
                high=linear_to_db(mean.high),
            )
        )
    return rows


def _published_rows(speed_kmh: int, group: str) -> list[Row]:
    return [
        Row(
            setting=SETTING,
            predictor=name,
            kind="published",
            metric=METRIC,
            value=by_speed[speed_kmh],
            group=group,
            snr_db=SNR_DB,
        )
        for name, by_speed in PUBLISHED_DB.items()
    ]
