"""Averages against hand-made numbers, intervals against their coverage, rate and correlation at limits."""

import math
import time
from dataclasses import astuple, replace

import pytest
import torch

from airlam.errors import DataError
from airlam.radio.metrics import (
    Interval,
    LinkErrors,
    compare_nmse,
    correlation,
    link_errors,
    matched_filter_rate,
    mean_interval,
    noisy_target,
    summarise_nmse,
)


def _errors(error: list[list[float]], energy: list[list[float]]) -> LinkErrors:
    return LinkErrors(
        error=torch.tensor(error, dtype=torch.float64), energy=torch.tensor(energy, dtype=torch.float64)
    )


def _channel(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def test_the_averages_differ_as_they_should() -> None:
    errors = _errors([[1.0, 1.0], [0.0, 3.0], [1.0, 0.0]], [[1.0, 1.0], [10.0, 20.0], [1.0, 3.0]])
    summary = summarise_nmse(errors)
    assert summary.pooled.value == pytest.approx(6 / 36)
    assert summary.mean.value == pytest.approx((1 + 0.1 + 0.25) / 3)
    assert summary.median.value == pytest.approx(0.25)
    assert summary.per_step == pytest.approx((2 / 12, 4 / 24))
    assert summary.to_dict()["pooled"]["value"] == summary.pooled.value


def test_zero_prediction_scores_one_and_truth_scores_zero() -> None:
    h = _channel(3, 2, 1, 4, 5)
    torch.testing.assert_close(link_errors(torch.zeros_like(h), h).ratio, torch.ones(3, dtype=torch.float64))
    assert float(link_errors(h, h).error.sum()) == 0.0


def test_noisy_targets_put_a_floor_under_the_truth() -> None:
    h = _channel(4, 4, 1, 32, 48)
    noisy = noisy_target(h, torch.full((4,), 10**-1.8), torch.Generator().manual_seed(1))
    floor = float(summarise_nmse(link_errors(h, noisy)).pooled.value)
    assert floor == pytest.approx(10**-1.8 / (1 + 10**-1.8), rel=0.02)  # 0.0156


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for seed in range(200):
        ratio = -torch.rand(80, 1, generator=generator, dtype=torch.float64).log()  # exponential, mean 1
        interval = summarise_nmse(
            LinkErrors(error=ratio, energy=torch.ones_like(ratio)), num_resamples=300, seed=seed
        ).mean
        covered += interval.low <= 1.0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.98


def test_paired_comparison_is_far_tighter_than_two_intervals() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(200, 1, generator=generator, dtype=torch.float64) ** 4 + 1e-3
    energy = torch.ones_like(base)
    reference = LinkErrors(error=base, energy=energy)
    method = LinkErrors(error=0.9 * base, energy=energy)
    comparison = compare_nmse(method, reference)
    assert comparison.pooled.value == pytest.approx(0.9)
    assert comparison.pooled.high - comparison.pooled.low < 1e-9
    assert comparison.improved_share.value == 1.0
    own = summarise_nmse(reference).pooled
    assert own.high - own.low > 0.1 * own.value


def test_same_seed_same_interval_and_link_order_does_not_change_the_value() -> None:
    errors = link_errors(_channel(20, 2, 1, 2, 3), _channel(20, 2, 1, 2, 3, seed=1))
    assert summarise_nmse(errors, seed=3) == summarise_nmse(errors, seed=3)
    turned = errors.select(torch.arange(19, -1, -1))
    assert summarise_nmse(turned).mean.value == pytest.approx(summarise_nmse(errors).mean.value)


def test_batches_put_together_keep_links_and_drops() -> None:
    drop = torch.tensor([4, 4, 7, 7, 7, 9])
    errors = link_errors(_channel(6, 2, 1, 2, 3), _channel(6, 2, 1, 2, 3, seed=1), drop)
    parts = [errors.select(torch.arange(4)), errors.select(drop == 7).select(torch.tensor([2]))]
    parts.append(errors.select(torch.tensor([5])))
    whole = LinkErrors.concatenate(parts)
    assert whole.drop is not None and whole.drop.tolist() == drop.tolist()
    assert summarise_nmse(whole) == summarise_nmse(errors)
    with pytest.raises(DataError, match="1 of 2 batches"):
        LinkErrors.concatenate([errors, LinkErrors(error=errors.error, energy=errors.energy)])


def _spread(interval: Interval) -> float:
    return interval.high - interval.low


def _skewed(num_links: int, seed: int = 0) -> LinkErrors:
    generator = torch.Generator().manual_seed(seed)
    ratio = -torch.rand(num_links, 1, generator=generator, dtype=torch.float64).log()
    energy = 0.5 + torch.rand(num_links, 1, generator=generator, dtype=torch.float64)
    return LinkErrors(error=ratio * energy, energy=energy)


def test_copies_of_a_link_in_its_drop_tell_nothing_new_but_as_drops_they_would() -> None:
    errors, copies = _skewed(101), 4
    index = torch.arange(101).repeat_interleave(copies)
    together = summarise_nmse(replace(errors.select(index), drop=index))
    apart = summarise_nmse(errors.select(index))
    once = summarise_nmse(errors)
    for name in ("pooled", "mean", "median"):
        alone, joint, shrunk = (getattr(summary, name) for summary in (once, together, apart))
        assert astuple(joint) == pytest.approx(astuple(alone), rel=1e-12)
        if name != "median":  # which is coarse on few links
            assert _spread(shrunk) == pytest.approx(_spread(alone) / math.sqrt(copies), rel=0.15)
    paired = compare_nmse(
        replace(errors.select(index), drop=index), replace(_halved(errors).select(index), drop=index)
    )
    assert astuple(paired.pooled) == pytest.approx(astuple(compare_nmse(errors, _halved(errors)).pooled))


def _halved(errors: LinkErrors) -> LinkErrors:
    """Another method on the same links."""
    return replace(errors, error=errors.error.flip(0) / 2)


def test_intervals_are_those_of_drops_drawn_one_by_one() -> None:
    """The same resamples, taken link by link with torch's own averages; drops of any size and order."""
    drop = torch.tensor([3, 8, 3, 5, 8, 3, 1, 0, 0, 5, 2])
    errors = replace(_skewed(11), drop=drop)
    names = drop.unique()
    drawn = torch.randint(len(names), (300, len(names)), generator=torch.Generator().manual_seed(7))
    resamples = [torch.cat([(drop == names[i]).nonzero()[:, 0] for i in row]) for row in drawn]
    summary = summarise_nmse(errors, num_resamples=300, seed=7)
    expected = {
        "pooled": [float(errors.error[i].sum() / errors.energy[i].sum()) for i in resamples],
        "mean": [float(errors.ratio[i].mean()) for i in resamples],
        "median": [float(errors.ratio[i].quantile(0.5)) for i in resamples],
    }
    for name, values in expected.items():
        interval = getattr(summary, name)
        ends = torch.tensor(values, dtype=torch.float64).quantile(
            torch.tensor([0.025, 0.975], dtype=torch.float64)
        )
        assert (interval.low, interval.high) == pytest.approx(tuple(ends.tolist()), rel=1e-12)
    assert summary.median.value == pytest.approx(float(errors.ratio.quantile(0.5)))


def test_many_intervals_take_little_time() -> None:
    """A report needs some sixty summaries of some five hundred links each."""
    errors = replace(_skewed(512), drop=torch.arange(512) // 4)
    began = time.process_time()
    for seed in range(6):
        summarise_nmse(errors, seed=seed)
    assert time.process_time() - began < 2.0  # measured: 0.1


def test_correlation_and_rate_ignore_phase_and_scale() -> None:
    h = _channel(3, 2, 1, 8, 5)
    turned = 3.0 * torch.exp(1j * torch.rand(3, 2, 1, 1, 5)) * h
    torch.testing.assert_close(correlation(turned, h), torch.ones(3, 2, dtype=torch.float64))
    torch.testing.assert_close(matched_filter_rate(turned, h, 10.0), matched_filter_rate(h, h, 10.0))
    assert float(correlation(torch.zeros_like(h), h).max()) == 0.0


def test_rate_closed_form_with_flat_channel_and_several_user_antennas() -> None:
    flat = torch.ones(1, 1, 2, 8, 3, dtype=torch.complex64)  # rank one, gain 2 x 8
    rate = matched_filter_rate(flat, flat, 10.0)
    assert float(rate) == pytest.approx(math.log2(1 + 10 * 16))
    h = _channel(5, 2, 2, 8, 3)
    stale = matched_filter_rate(_channel(5, 2, 2, 8, 3, seed=9), h, 10.0)
    assert bool((stale < matched_filter_rate(h, h, 10.0)).all())


@pytest.mark.parametrize(
    ("estimate", "truth", "message"),
    [
        (torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1), "shapes must agree"),
        (torch.full((1, 1, 1, 1, 1), torch.nan), torch.ones(1, 1, 1, 1, 1), "NaN"),
        (torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1), "no energy"),
    ],
)
def test_bad_input_is_refused(estimate: torch.Tensor, truth: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        link_errors(estimate.to(torch.complex64), truth.to(torch.complex64))


def test_comparison_of_different_links_is_refused() -> None:
    with pytest.raises(DataError, match="same links"):
        compare_nmse(_errors([[1.0]], [[1.0]]), _errors([[1.0]], [[2.0]]))
    errors = _errors([[1.0], [1.0]], [[1.0], [1.0]])
    with pytest.raises(DataError, match="same links"):
        compare_nmse(errors, replace(errors, drop=torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(DataError, match="give one a link"):
        replace(errors, drop=torch.zeros(3, dtype=torch.int64))


def test_an_interval_of_means_is_the_normal_one_and_of_ratios_is_paired() -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(400, generator=draw) + 3
    found = mean_interval(values)
    half_width = 1.96 * float(values.std()) / 20
    assert found.value == pytest.approx(float(values.mean()), rel=1e-6)
    assert found.high - found.low == pytest.approx(2 * half_width, rel=0.1)
    same = mean_interval(values, values)
    assert same.value == same.low == same.high == 1.0
    half = mean_interval(values / 2, values)
    assert half.low == pytest.approx(0.5) and half.high == pytest.approx(0.5)
