"""The table: one kind of row for every setting, and what is read off the rows of one.

"Best classical" is the best on the test drops themselves, in each cell anew, so that the comparison favours
whoever stands beside the LAM. Intervals are 95 % bootstrap intervals over drops, paired for ratios.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from airlam.bench.trained import LAM, trainable_of
from airlam.radio.metrics import (
    QUANTILES,
    Interval,
    LinkErrors,
    compare_nmse,
    summarise_nmse,
)
from airlam.radio.prediction.base import Predictor
from airlam.radio.prediction.guard import Guarded
from airlam.tasks.comparison import Comparison, Scored

POOLED = "nmse_pooled"
POOLED_NOISY = "nmse_pooled_noisy_target"
RATIO = "lam_over_best_classical"
OTHER_RATIO = "over_best_classical"  # of a learned predictor that is not the LAM
ALL = "all"
NUM_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of one predictor in one cell of a setting.

    ``kind`` is classical, learned, lam, bound or published; ``metric`` says what ``value`` is, with its
    interval where it was measured; ``group`` is a group of users by speed, or a cell; ``reference`` is what a
    ratio is taken over; ``per_step`` is the metric at each step of the horizon.
    """

    setting: str
    predictor: str
    kind: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    group: str = ALL
    snr_db: float | None = None  # of the history; None without noise
    num_links: int | None = None
    per_step: tuple[float, ...] = ()
    reference: str | None = None
    trainable_parameters: int | None = None
    ms_per_link: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one setting contributes: figures by name, rows, and what it was measured on."""

    figures: dict[str, float]
    rows: list[Row]
    about: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Who is compared: classical predictors, learned ones, of which one is the LAM, and bounds.

    A bound knows what no predictor can, and is best among nobody.
    """

    classical: Sequence[Predictor]
    learned: Sequence[Predictor]
    bounds: Sequence[Predictor]
    trainable: Mapping[str, int]

    @staticmethod
    def of(
        classical: Sequence[Predictor], learned: Sequence[Predictor], bounds: Sequence[Predictor] = ()
    ) -> "Field":
        """With the sizes of the learned ones."""
        return Field(classical=classical, learned=learned, bounds=bounds, trainable=trainable_of(learned))

    @property
    def everyone(self) -> list[Predictor]:
        """All of them."""
        return [*self.classical, *self.learned, *self.bounds]

    @property
    def classical_names(self) -> list[str]:
        """Names of the classical ones."""
        return [predictor.name for predictor in self.classical]

    @property
    def learned_names(self) -> list[str]:
        """Names of the learned ones, the LAM among them."""
        return [predictor.name for predictor in self.learned]

    @property
    def peer_names(self) -> list[str]:
        """Names of the learned ones but the LAM."""
        return [name for name in self.learned_names if name != LAM]

    def shared(self, name: str, **cell: Any) -> dict[str, Any]:
        """What a predictor's rows in a cell have in common."""
        return {
            **cell,
            "predictor": name,
            "kind": self._kind(name),
            "trainable_parameters": self.trainable.get(name),
        }

    def _kind(self, name: str) -> str:
        if name in self.classical_names:
            return "classical"
        if name in self.peer_names:
            return "learned"
        return "lam" if name == LAM else "bound"


Groups = Mapping[str, torch.Tensor]  # name of a group of links -> bool [num_links]


def nmse_rows(
    setting: str, comparison: Comparison, who: Field, groups: Groups, *, noisy: bool = False
) -> list[Row]:
    """NMSE of everyone at every SNR: pooled, mean and median over all links, pooled over each group.

    ``noisy`` adds the pooled NMSE against targets with noise of their own.
    """
    rows = []
    for snr_db, scored in comparison.scored.items():
        for name, each in scored.items():
            ms = 1000 * comparison.seconds_per_link[name]
            common = who.shared(name, setting=setting, snr_db=snr_db, ms_per_link=ms)
            rows += group_rows(each.clean, groups, common)
            if noisy:
                rows += [pooled_row(each.noisy, POOLED_NOISY, common)]
    return rows


def group_rows(errors: LinkErrors, groups: Groups, common: Mapping[str, Any]) -> list[Row]:
    """Pooled NMSE of each group; for all links the mean and the median of the links' ratios too."""
    rows = []
    for group, members in groups.items():
        part = errors.select(members)
        rows.append(pooled_row(part, POOLED, {**common, "group": group}))
        if group == ALL:
            summary = summarise_nmse(part)
            rows += [
                Row(metric=f"nmse_{name}", num_links=len(part), **common, **dataclasses.asdict(interval))
                for name, interval in (("mean", summary.mean), ("median", summary.median))
            ]
    return rows


def pooled_row(errors: LinkErrors, metric: str, common: Mapping[str, Any]) -> Row:
    """Pooled NMSE of some links, and at each step."""
    summary = summarise_nmse(errors)
    return Row(
        metric=metric,
        num_links=len(errors),
        per_step=summary.per_step,
        **common,
        **dataclasses.asdict(summary.pooled),
    )


def ratio_rows(setting: str, comparison: Comparison, who: Field, groups: Groups) -> list[Row]:
    """The learned predictors' pooled NMSE over that of the group's best classical one, at every SNR."""
    rows = []
    for snr_db, scored in comparison.scored.items():
        for group, members in groups.items():
            errors = {name: each.clean.select(members) for name, each in scored.items()}
            rows += over_classical(errors, who, {"setting": setting, "snr_db": snr_db, "group": group})
    return rows


def over_classical(errors: Mapping[str, LinkErrors], who: Field, common: Mapping[str, Any]) -> list[Row]:
    """Each learned predictor over the best of the classical ones on the same links, paired."""
    best = min(who.classical_names, key=lambda name: pooled(errors[name]))
    return [
        Row(
            metric=ratio_metric(name),
            num_links=len(errors[name]),
            reference=best,
            **who.shared(name, **common),
            **dataclasses.asdict(compare_nmse(errors[name], errors[best]).pooled),
        )
        for name in who.learned_names
    ]


def ratio_metric(name: str) -> str:
    """What a learned predictor's ratio to the best classical one is called."""
    return RATIO if name == LAM else OTHER_RATIO


def pooled(errors: LinkErrors) -> float:
    """Total error energy over total energy."""
    return float(errors.error.sum() / errors.energy.sum())


def pooled_by_name(scored: Mapping[str, Scored], *, noisy: bool = False) -> dict[str, float]:
    """Everyone's pooled NMSE at one SNR."""
    return {name: pooled(each.noisy if noisy else each.clean) for name, each in scored.items()}


def contest_figures(prefix: str, nmse: Mapping[str, float], who: Field, ratio: Row) -> dict[str, float]:
    """The LAM, the best classical predictor, the best learned peer, and the paired ratio of the first two."""
    best = min(nmse[name] for name in who.classical_names)
    figures = {f"{prefix}.lam": nmse[LAM], f"{prefix}.best_classical": best}
    if who.peer_names:
        figures[f"{prefix}.best_learned_peer"] = min(nmse[name] for name in who.peer_names)
    return figures | interval_figures(f"{prefix}.{RATIO}", ratio)


def interval_figures(name: str, row: Row) -> dict[str, float]:
    """A measured row as three figures."""
    assert row.low is not None and row.high is not None
    return {name: row.value, f"{name}_low": row.low, f"{name}_high": row.high}


def worst_cell(rows: Sequence[Row]) -> Row | None:
    """The ratio row in which the LAM fares worst beside the best classical predictor; None without any."""
    ratios = [row for row in rows if row.metric == RATIO]
    return max(ratios, key=lambda row: row.value, default=None)


def bootstrap(
    statistic: Callable[[torch.Tensor], torch.Tensor], strata: Sequence[torch.Tensor], seed: int = 0
) -> Interval:
    """A statistic of links and its percentile interval, each stratum of links resampled by itself.

    statistic: float64 weights [num_resamples, num_links] to [num_resamples]; strata: disjoint int64 indices
    of links that cover them all. The same strata and seed give the same resamples: ratios are paired.
    """
    num_links = sum(len(stratum) for stratum in strata)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(NUM_RESAMPLES, num_links, dtype=torch.float64)
    for stratum in strata:
        drawn = stratum[torch.randint(len(stratum), (NUM_RESAMPLES, len(stratum)), generator=generator)]
        weights.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
    low, high = statistic(weights).quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    value = statistic(torch.ones(1, num_links, dtype=torch.float64))  # [1]
    return Interval(value=value.item(), low=low, high=high)


def guard_note(learned: Sequence[Predictor]) -> dict[str, Any]:
    """What the LAM's guard chose at each SNR, from slow fading to fast, for the notes of a setting."""
    return {f"{each.name}_guard": each.choices() for each in learned if isinstance(each, Guarded)}
