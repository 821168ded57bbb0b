"""How good a predicted channel is: NMSE in its several averages, correlation, rate; with intervals.

Averages differ by what they weigh: *pooled* is total error energy over total energy, so strong links count
more; *mean of ratios* gives every link the same weight and is ruled by its worst; the *median* ignores both
ends. Published tables use the first two without always saying so. Intervals are 95 % percentile bootstrap
intervals (Efron and Tibshirani, 1993, ch. 13) over drops: users of one drop share its surroundings, so whole
drops are drawn with replacement. Two methods are compared on the same resamples.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from airlam.errors import DataError
from airlam.units import db_to_linear

QUANTILES = (0.025, 0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkErrors:
    """Energies of the error and of the truth, link by link and step by step.

    error and energy: float64 [num_links, num_horizon]. drop: int64 [num_links], equal for links that were
    drawn together; None where every link is a drop of its own.
    """

    error: torch.Tensor
    energy: torch.Tensor
    drop: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.drop is not None and self.drop.shape != (len(self.error),):
            raise DataError(f"drop is {tuple(self.drop.shape)} for {len(self.error)} links; give one a link")

    def __len__(self) -> int:
        return len(self.error)

    @property
    def ratio(self) -> torch.Tensor:
        """NMSE of each link over its horizon: float64 [num_links]."""
        return self.error.sum(1) / self.energy.sum(1)

    def select(self, index: torch.Tensor) -> "LinkErrors":
        """The links at ``index``, int64 [n] or bool [num_links]."""
        drop = None if self.drop is None else self.drop[index]
        return LinkErrors(error=self.error[index], energy=self.energy[index], drop=drop)

    @staticmethod
    def concatenate(parts: "list[LinkErrors]") -> "LinkErrors":
        """Batches put together in order; equal numbers of a drop mean the same drop in all of them."""
        drops = [part.drop for part in parts if part.drop is not None]
        if len(drops) not in (0, len(parts)):
            raise DataError(f"{len(drops)} of {len(parts)} batches say which drop a link is of; expected all")
        return LinkErrors(
            error=torch.cat([part.error for part in parts]),
            energy=torch.cat([part.energy for part in parts]),
            drop=torch.cat(drops) if drops else None,
        )


def link_errors(estimate: torch.Tensor, truth: torch.Tensor, drop: torch.Tensor | None = None) -> LinkErrors:
    """Squared error and energy of predictions.

    estimate and truth: complex [num_links, num_horizon, num_user_ant, num_bs_ant, num_subcarriers]. The truth
    is the clean channel, or a noisy one (``noisy_target``) where a published table scored it so. drop: as in
    ``LinkErrors``. DataError where shapes differ, a value is not finite, or a link has no energy.
    """
    if estimate.shape != truth.shape:
        raise DataError(
            f"estimate is {tuple(estimate.shape)}, truth is {tuple(truth.shape)}; shapes must agree"
        )
    error = (estimate - truth).abs().square().flatten(2).sum(2, dtype=torch.float64)  # [num_links, horizon]
    energy = truth.abs().square().flatten(2).sum(2, dtype=torch.float64)  # [num_links, horizon]
    if not bool(error.isfinite().all()):
        raise DataError("the estimate or the truth holds NaN or infinity; check the predictor's input")
    if not bool((energy.sum(1) > 0).all()):
        raise DataError("a link has no energy, so its NMSE is undefined; leave such links out")
    return LinkErrors(error=error.cpu(), energy=energy.cpu(), drop=drop)


def noisy_target(
    truth: torch.Tensor, noise_variance: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """The truth with white noise, for tables that scored against measured targets; their NMSE has a floor.

    truth: complex [num_links, ...]; noise_variance: float [num_links]. Shape and dtype kept.
    """
    noise = torch.randn(truth.shape, dtype=truth.dtype, generator=generator).to(truth.device)
    scale = noise_variance.sqrt().reshape(-1, *[1] * (truth.ndim - 1))
    return truth + scale.to(truth.device) * noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def as_tuple(self) -> tuple[float, float, float]:
        """value, low, high."""
        return self.value, self.low, self.high


def mean_interval(
    values: torch.Tensor, over: torch.Tensor | None = None, *, num_resamples: int = 1000
) -> Interval:
    """Mean of independent values, or the ratio of two means of the same links, with its interval.

    values, over: real [num_values]. Calls of one number of values have the same resamples, so that means of
    several methods are paired.
    """
    weights = _counts(len(values), num_resamples, seed=0)
    if over is None:
        return _interval(_average, (values.double(),), weights)
    columns = values.double(), over.double()
    return _interval(lambda w, own, other: _average(w, own) / _average(w, other), columns, weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class NmseSummary:
    """NMSE of one method on some links; ``per_step`` is pooled for each step of the horizon."""

    num_links: int
    pooled: Interval
    mean: Interval
    median: Interval
    per_step: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON takes them."""
        return asdict(self)


def summarise_nmse(errors: LinkErrors, *, num_resamples: int = 1000, seed: int = 0) -> NmseSummary:
    """All averages of one method with intervals; the same seed gives methods the same resamples."""
    weights = _resamples(errors, num_resamples, seed)
    columns = (errors.error.sum(1), errors.energy.sum(1))
    return NmseSummary(
        num_links=len(errors),
        pooled=_interval(_pooled, columns, weights),
        mean=_interval(_mean, columns, weights),
        median=_interval(_median, columns, weights),
        per_step=tuple((errors.error.sum(0) / errors.energy.sum(0)).tolist()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Method over reference on the same links: below 1 the method is better.

    pooled and mean are ratios of the two NMSEs; improved_share is the share of links on which the method's
    NMSE is the lower.
    """

    num_links: int
    pooled: Interval
    mean: Interval
    improved_share: Interval

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON takes them."""
        return asdict(self)


def compare_nmse(
    method: LinkErrors, reference: LinkErrors, *, num_resamples: int = 1000, seed: int = 0
) -> Comparison:
    """Paired bootstrap of two methods that predicted the same links in the same order."""
    if not (torch.equal(method.energy, reference.energy) and _same_drops(method, reference)):
        raise DataError("the two methods were not scored on the same links; compare them on one test set")
    weights = _resamples(method, num_resamples, seed)
    columns = (method.error.sum(1), reference.error.sum(1), method.energy.sum(1))
    return Comparison(
        num_links=len(method),
        pooled=_interval(
            lambda w, a, b, energy: _pooled(w, a, energy) / _pooled(w, b, energy), columns, weights
        ),
        mean=_interval(lambda w, a, b, energy: _mean(w, a, energy) / _mean(w, b, energy), columns, weights),
        improved_share=_interval(lambda w, a, b, _: _average(w, (a < b).double()), columns, weights),
    )


def _same_drops(one: LinkErrors, other: LinkErrors) -> bool:
    return torch.equal(_drop_index(one), _drop_index(other))


def _drop_index(errors: LinkErrors) -> torch.Tensor:
    """Drops numbered from 0 without gaps: int64 [num_links]."""
    if errors.drop is None:
        return torch.arange(len(errors))
    index: torch.Tensor = errors.drop.unique(return_inverse=True)[1]  # type: ignore[no-untyped-call]
    return index


def _resamples(errors: LinkErrors, num_resamples: int, seed: int) -> torch.Tensor:
    """How often each link is in each resample of drops: float64 [num_resamples, num_links], whole numbers."""
    drop = _drop_index(errors)
    num_drops = int(drop.max()) + 1
    return _counts(num_drops, num_resamples, seed)[:, drop]  # [num_resamples, num_links]


def _counts(num_values: int, num_resamples: int, seed: int) -> torch.Tensor:
    """How often each value is in each resample: float64 [num_resamples, num_values], whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(num_values, (num_resamples, num_values), generator=generator)
    counts = torch.zeros(num_resamples, num_values, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def _interval(
    statistic: Callable[..., torch.Tensor], columns: tuple[torch.Tensor, ...], weights: torch.Tensor
) -> Interval:
    """A statistic of weights and float64 [num_links] columns, and its percentile interval."""
    levels = torch.tensor(QUANTILES, dtype=torch.float64)
    low, high = statistic(weights, *columns).quantile(levels).tolist()
    value = statistic(torch.ones_like(weights[:1]), *columns)  # [1]
    return Interval(value=value.item(), low=low, high=high)


def _average(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """weights: float64 [num_resamples, num_links]; values: float64 [num_links]; [num_resamples]."""
    return weights @ values / weights.sum(-1)


def _pooled(weights: torch.Tensor, error: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
    return (weights @ error) / (weights @ energy)


def _mean(weights: torch.Tensor, error: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
    return _average(weights, error / energy)


def _median(weights: torch.Tensor, error: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
    """The median of ratios that are there as often as their weights say; of two middle ones, the mean."""
    ratio, order = (error / energy).sort()  # [num_links]
    ranks = weights[:, order].cumsum(-1)  # [num_resamples, num_links]
    total = ranks[:, -1:]  # [num_resamples, 1]
    middle = torch.cat([((total - 1) / 2).floor(), (total / 2).floor()], dim=-1)  # [num_resamples, 2]
    return ratio[torch.searchsorted(ranks, middle, right=True)].mean(-1)  # [num_resamples]


def correlation(estimate: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    r"""rho = mean_f |<h_f, e_f>| / (|h_f| |e_f|) over each subcarrier's antennas, blind to scale and phase.

    Wen, Shih and Jin, IEEE WCL 2018, eq. (9). Shapes as in ``link_errors``.
    Returns float64 [num_links, num_horizon], 0 to 1; an all-zero estimate has 0.
    """
    h, e = truth.flatten(2, 3).to(torch.complex128), estimate.flatten(2, 3).to(torch.complex128)
    inner = (h.conj() * e).sum(2).abs()  # [num_links, horizon, f]
    norms = h.abs().square().sum(2).sqrt() * e.abs().square().sum(2).sqrt()  # [num_links, horizon, f]
    return (inner / norms.clamp_min(torch.finfo(norms.dtype).tiny)).mean(-1)


def matched_filter_rate(estimate: torch.Tensor, truth: torch.Tensor, snr_db: float) -> torch.Tensor:
    r"""Single-user, single-stream rate of the precoder matched to the estimate, in bit/s/Hz.

    R = mean_f log2(1 + snr |H_f w_f|^2), w_f the strongest right singular vector of the estimate (for one
    user antenna conj(e) / |e|) and H scaled to unit mean power over the link. A phase common to a
    subcarrier costs nothing. Shapes as in ``link_errors``; returns float64 [num_links, num_horizon].
    """
    h, e = truth.movedim(-1, 2).to(torch.complex128), estimate.movedim(-1, 2).to(torch.complex128)
    power = h.abs().square().flatten(1).mean(1)[:, None, None]  # [num_links, 1, 1]
    strongest = torch.linalg.eigh(e @ e.mH)[1][..., -1:]  # [num_links, horizon, f, u, 1]
    precoder = e.mH @ strongest  # [num_links, horizon, f, p, 1]
    norm = precoder.abs().square().sum((-2, -1))  # [num_links, horizon, f]
    gain = (h @ precoder).abs().square().sum((-2, -1)) / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return torch.log2(1 + db_to_linear(snr_db) * gain / power).mean(-1)
