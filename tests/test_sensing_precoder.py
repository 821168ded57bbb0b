"""The precoder that illuminates: exact constraints whatever it answers, equivariance, and that it learns."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from airlam.bench.beamforming import sensing, sensing_training
from airlam.errors import SpecError
from airlam.model.sensing_precoder import SensingPrecoder, build_sensing_precoder
from airlam.radio.beamforming.power import power_of
from airlam.radio.isac.beam import full_power_beam, largest_illumination
from airlam.radio.isac.downlinks import SensingDownlinks, normalised
from airlam.radio.isac.illumination import array_response, illuminate, illumination_of
from airlam.radio.isac.wmmse import sensing_wmmse
from airlam.radio.precoding import regularized_zero_forcing, sum_rate_bit_per_s_per_hz
from airlam.specs import ArraySpec, PrecoderSpec
from airlam.tasks.channel_prediction import quiet
from airlam.training.batches import GroupedSamples

SPEC = PrecoderSpec(width=8, num_edge_channels=2)


def stirred() -> SensingPrecoder:
    """One whose answers are far from those it starts with."""
    precoder = build_sensing_precoder(SPEC, seed=1)
    draw = torch.Generator().manual_seed(2)
    for parameter in precoder.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    return precoder.eval()


def downlinks(
    num_users: int, num_targets: int, share: float, array: tuple[int, int] = (2, 8), drops: int = 5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Channels, targets and illumination."""
    draw = torch.Generator().manual_seed(num_users)
    h = torch.randn(drops, num_users, array[0] * array[1], dtype=torch.complex64, generator=draw)
    azimuth = 2 * torch.rand(drops, num_targets, generator=draw) - 1
    targets = array_response(ArraySpec(num_rows=array[0], num_cols=array[1]), azimuth)
    levels = (share * largest_illumination(targets)).float()[:, None].expand(drops, num_targets)
    return h, targets, levels


def noise(value: float = 0.1, drops: int = 5) -> torch.Tensor:
    return torch.full((drops,), value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.95, 1.0])
@pytest.mark.parametrize(
    "num_users, num_targets, array", [(1, 1, (1, 4)), (4, 2, (2, 8)), (3, 5, (2, 4)), (20, 3, (2, 8))]
)
def test_any_answer_meets_all_constraints(
    num_users: int, num_targets: int, array: tuple[int, int], share: float
) -> None:
    h, targets, levels = downlinks(num_users, num_targets, share, array)
    for variance in (1e-3, 0.1, 10.0):
        with torch.no_grad():
            w = stirred().precode(h, targets, 2.5 * levels, noise(variance), 2.5)
        assert w.shape == (5, array[0] * array[1], num_users)
        torch.testing.assert_close(power_of(w), torch.full((5,), 2.5), rtol=1e-6, atol=0)
        assert (illumination_of(targets, w) >= 2.5 * levels * (1 - 1e-5)).all()


def test_order_of_users_and_targets_permutes_what_comes_out() -> None:
    h, targets, levels = downlinks(5, 3, 0.5)
    levels = levels * torch.tensor([1.0, 0.5, 0.8])
    users, places = torch.tensor([3, 1, 4, 0, 2]), torch.tensor([2, 0, 1])
    precoder = stirred()
    with torch.no_grad():
        w = precoder.precode(h, targets, levels, noise())
        moved = precoder.precode(h[:, users], targets[:, places], levels[:, places], noise())
    torch.testing.assert_close(moved, w[:, :, users], rtol=1e-2, atol=1e-3)


def test_a_target_that_asks_for_nothing_changes_nothing() -> None:
    h, targets, levels = downlinks(5, 2, 0.5)
    nothing = torch.tensor([1.0, 0.0])
    precoder = stirred()
    with torch.no_grad():
        alone = precoder.precode(h, targets[:, :1], levels[:, :1], noise())
        beside = precoder.precode(h, targets, levels * nothing, noise())
    torch.testing.assert_close(beside, alone, rtol=1e-2, atol=1e-3)


def test_units_make_no_difference() -> None:
    h, targets, levels = downlinks(4, 2, 0.5)
    precoder = stirred()
    with torch.no_grad():
        w = precoder.precode(h, targets, levels, noise())
        scaled = precoder.precode(10 * h, 3 * targets, 9 * 2 * levels, noise(20.0), 2.0)
    torch.testing.assert_close(scaled, 2**0.5 * w, rtol=1e-3, atol=1e-4)


def test_untrained_it_climbs_as_alternation_does() -> None:
    h, targets, levels = downlinks(6, 2, 0.5, drops=50)
    white, towards, share = normalised(h, targets, levels, noise(drops=50))
    links = SensingDownlinks.of(white, towards, share, full_power_beam(towards, share, 1.0, 6))
    with torch.no_grad():
        first, second, third = (
            found.rate.mean()
            for found in build_sensing_precoder(dataclasses.replace(SPEC, num_stages=2))(links)
        )
    assert first < second < third
    after = sensing_wmmse(h, targets, levels, 0.1, num_iterations=100)
    assert 0.9 < third / sum_rate_bit_per_s_per_hz(h, after, 0.1).mean() < 1.001


def test_what_the_stages_see_is_what_is_sent() -> None:
    h, targets, levels = downlinks(6, 2, 0.5)
    white, towards, share = normalised(h, targets, levels, noise())
    beam = full_power_beam(towards, share, 1.0, 6)
    with torch.no_grad():
        last = stirred()(SensingDownlinks.of(white, towards, share, beam))[-1]
        w = last.precoder(white, towards, beam)
    torch.testing.assert_close(power_of(w), torch.ones(5), rtol=1e-4, atol=0)
    torch.testing.assert_close(white @ w, last.heard, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(towards @ w, last.seen, rtol=1e-3, atol=1e-4)


def test_gradients_are_finite_at_the_limits() -> None:
    for share in (0.0, 0.999):
        h, targets, levels = downlinks(20, 2, share)
        white, towards, part = normalised(h, targets, levels, noise(1e-3))
        precoder = stirred()
        links = SensingDownlinks.of(white, towards, part, full_power_beam(towards, part, 1.0, 20))
        sensing_training.rate_loss(precoder, links).mean().backward()
        assert all(bool(p.grad.isfinite().all()) for p in precoder.parameters() if p.grad is not None)


def test_more_than_is_possible_is_refused() -> None:
    h, targets, levels = downlinks(4, 2, 1.2)
    with pytest.raises(SpecError, match="times the power"):
        stirred().precode(h, targets, levels, noise())


def test_a_short_training_beats_the_projection_of_regularised_zero_forcing(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("AIRLAM_CACHE", str(tmp_path))
    training = dataclasses.replace(
        sensing.QUICK.training, num_steps=25, batch_size=32, learning_rate=5e-3, validation_every_steps=25
    )
    scale = dataclasses.replace(sensing.QUICK, pool_drops=10, num_groups=4, group_size=64, training=training)
    precoder = sensing_training.trained_sensing_precoder(scale, quiet)
    again = sensing_training.trained_sensing_precoder(scale, quiet)  # from the cache
    for share in (0.1, 0.4):
        cell = sensing.drawn_cell("n16k8_2targets", share, 40)
        h, targets, levels = cell.h, cell.targets, cell.illumination
        with torch.no_grad():
            w, same = (p.precode(h, targets, levels, noise(drops=40)) for p in (precoder, again))
        assert torch.equal(w, same)
        projected = illuminate(regularized_zero_forcing(h, 0.1), targets, levels)
        rates = [sum_rate_bit_per_s_per_hz(h, x, 0.1).mean() for x in (w, projected)]
        assert rates[0] > rates[1]


def test_samples_stay_within_what_is_possible() -> None:
    scale = dataclasses.replace(sensing.QUICK, num_groups=3, group_size=16)
    samples, validation = sensing_training.samples_of(scale)
    assert isinstance(samples, GroupedSamples) and len(samples) == 48 and len(validation) > 0
    links = samples.batch(torch.arange(16, 32))
    assert (links.surplus >= 1).all() and (links.share >= 0).all()
    torch.testing.assert_close(links[torch.tensor([3, 1])].gram, links.gram[[3, 1]])


def test_the_benchmark_measures_every_method(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("AIRLAM_CACHE", str(tmp_path))
    rows, figures = sensing.run_sensing(sensing.QUICK, quiet)
    assert figures["sensing.least_illumination_over_required"] >= 1 - 1e-5
    assert 0.5 < figures["sensing.share_of_alternating"] < 1.1
    assert all(value == value for value in figures.values())
    cells = {(row["setting"], row["share_of_most_illumination"]) for row in rows if "method" in row}
    assert cells == {(name, share) for name in sensing.SEEN | sensing.UNSEEN for share in sensing.SHARES}
    methods = {row["method"] for row in rows if row.get("share_of_most_illumination") == 0.4}
    assert methods == {
        *("rzf_projected", "wmmse_100_projected", "power_split", "time_split", "graph_sensing"),
        *("alternating_1", "alternating_5", "alternating_100"),
    }
