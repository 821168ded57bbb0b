"""Illuminating targets: closed forms, exact constraints, and alternating optimisation against the optimum."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airlam.errors import SpecError
from airlam.radio.beamforming import wmmse
from airlam.radio.beamforming.power import power_of
from airlam.radio.isac.beam import full_power_beam, illuminating_beam, largest_illumination
from airlam.radio.isac.downlinks import SensingDownlinks, SensingNumbers, normalised
from airlam.radio.isac.illumination import (
    array_response,
    beam_share,
    illuminate,
    illumination_of,
    with_sensing_stream,
)
from airlam.radio.isac.structure import Illuminating
from airlam.radio.isac.wmmse import _least_error, sensing_wmmse
from airlam.radio.precoding import regularized_zero_forcing, sum_rate_bit_per_s_per_hz
from airlam.specs import ArraySpec

ARRAY = ArraySpec(num_rows=2, num_cols=8)


def random_channel(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def some_targets(drops: int, num_targets: int, seed: int = 0, array: ArraySpec = ARRAY) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    azimuth, zenith = torch.rand(2, drops, num_targets, generator=draw, dtype=torch.float64)
    return array_response(array, 2 * azimuth - 1, 1.5 + 0.4 * zenith).to(torch.complex128)


def asked(targets: torch.Tensor, share: float) -> torch.Tensor:
    return (share * largest_illumination(targets))[:, None].expand(targets.shape[:-1])


def rate(h: torch.Tensor, w: torch.Tensor, noise: float = 0.1) -> torch.Tensor:
    return sum_rate_bit_per_s_per_hz(h, w, noise)


def test_responses_are_those_of_the_channels_arrays() -> None:
    from sionna.phy.channel.tr38901 import PanelArray

    from airlam.datasets.stochastic.directions import End, directions

    panel = PanelArray(
        num_rows_per_panel=2,
        num_cols_per_panel=8,
        polarization="single",
        polarization_type="V",
        antenna_pattern="omni",
        carrier_frequency=3e9,
    )
    azimuth, zenith = torch.tensor([[0.0, 0.4, -1.0]]), torch.tensor([[1.57, 1.8, 1.2]])
    end = End(array=panel, orientation=torch.zeros(1, 3), zenith=zenith, azimuth=azimuth)
    expected = directions(end, torch.tensor([299792458.0 / 3e9])).steering()[0].mT
    torch.testing.assert_close(array_response(ARRAY, azimuth[0], zenith[0]), expected, rtol=0, atol=1e-3)


def test_the_most_illumination_has_closed_forms() -> None:
    one, two = some_targets(20, 1), some_targets(20, 2)
    torch.testing.assert_close(largest_illumination(one, 3.0), torch.full((20,), 48.0, dtype=torch.float64))
    between = (two[:, 0] * two[:, 1].conj()).sum(-1).abs()
    torch.testing.assert_close(largest_illumination(two, 3.0), 1.5 * (16 + between), rtol=1e-6, atol=0)
    alike = some_targets(5, 1).expand(5, 2, 16)
    torch.testing.assert_close(
        largest_illumination(alike), torch.full((5,), 16.0, dtype=torch.float64), rtol=1e-6, atol=0
    )


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # of the oracle
@pytest.mark.parametrize("num_targets", [2, 3, 5])
def test_the_beam_of_least_power_is_the_semidefinite_programs(num_targets: int) -> None:
    cvxpy = pytest.importorskip("cvxpy")
    targets = some_targets(4, num_targets)
    levels = torch.rand(4, num_targets, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    beam = illuminating_beam(targets, levels, num_targets)
    assert (illumination_of(targets, beam) >= levels * (1 - 1e-6)).all()
    for a, level, power in zip(targets.numpy(), levels.numpy(), power_of(beam).tolist(), strict=True):
        covariance = cvxpy.Variable((num_targets, num_targets), hermitian=True)
        basis = np.linalg.qr(a.T.conj())[0]
        seen = a @ basis
        lit = [cvxpy.real(cvxpy.trace(covariance @ np.outer(row.conj(), row))) for row in seen]
        limits = [power_towards >= least for power_towards, least in zip(lit, level, strict=True)]
        objective = cvxpy.Minimize(cvxpy.real(cvxpy.trace(covariance)))
        least = cvxpy.Problem(objective, [covariance >> 0, *limits]).solve(solver="CLARABEL")
        assert power == pytest.approx(least, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    num_users=st.integers(2, 6),
    num_targets=st.integers(1, 4),
    share=st.floats(0, 0.99),
    unequal=st.booleans(),
    total_power=st.sampled_from([0.01, 1.0, 50.0]),
    seed=st.integers(0, 1000),
)
def test_projection_meets_power_and_every_illumination(
    num_users: int, num_targets: int, share: float, unequal: bool, total_power: float, seed: int
) -> None:
    h, targets = random_channel(3, num_users, 16, seed=seed), some_targets(3, num_targets, seed)
    levels = total_power * asked(targets, share)
    if unequal:
        levels = levels * torch.linspace(0, 1, num_targets, dtype=torch.float64)
    w = illuminate(regularized_zero_forcing(h, 0.1), targets, levels, total_power)
    torch.testing.assert_close(power_of(w), torch.full((3,), total_power, dtype=torch.float64))
    assert (illumination_of(targets, w) >= levels * (1 - 1e-9)).all()


def test_projection_on_one_target_is_the_nearest_point() -> None:
    h, targets = random_channel(50, 4, 16), some_targets(50, 1)
    w = regularized_zero_forcing(h, 0.1)
    levels = asked(targets, 0.5)
    found = illuminate(w, targets, levels)
    unit = targets.mH / 4  # [.., 16, 1]
    along = unit @ (unit.mH @ w)
    lit = 0.5**0.5 / power_of(along).sqrt()
    rest = 0.5**0.5 / power_of(w - along).sqrt()
    short = illumination_of(targets, w)[:, 0] < levels[:, 0]
    nearest = torch.where(
        short[:, None, None], lit[:, None, None] * along + rest[:, None, None] * (w - along), w
    )
    assert short.any()
    torch.testing.assert_close(found, nearest)


def test_projection_leaves_what_illuminates_and_passes_gradients() -> None:
    h, targets = random_channel(2, 3, 16), some_targets(2, 2)
    w = regularized_zero_forcing(h, 0.1)
    torch.testing.assert_close(illuminate(w, targets, 0 * asked(targets, 0.5)), w)
    w = w.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: illuminate(v, targets, asked(targets, 0.7)), [w])


def test_more_than_is_possible_is_refused_in_a_line() -> None:
    h, targets = random_channel(2, 3, 16), some_targets(2, 2)
    for act in (
        lambda: illuminate(h.mH, targets, asked(targets, 1.25)),
        lambda: sensing_wmmse(h, targets, asked(targets, 1.25), 0.1, num_iterations=1),
    ):
        with pytest.raises(SpecError, match=r"1\.25 times the power.*at most 0\.8 ") as refused:
            act()
        assert "\n" not in str(refused.value)
    with pytest.raises(SpecError, match="negative"):
        illuminate(h.mH, targets, -asked(targets, 0.1))
    dual = ArraySpec(num_cols=4, polarization="dual", polarization_type="cross")
    with pytest.raises(SpecError, match="polarisation"):
        array_response(dual, torch.zeros(1))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_one_user_and_one_target_trade_by_an_angle(share: float) -> None:
    """w lies between h and a: cos^2 of what is left of the angle between them."""
    h, targets = random_channel(30, 1, 16), some_targets(30, 1)
    w = sensing_wmmse(h, targets, 16 * torch.full((30, 1), share), 0.1, num_iterations=200)
    inner = (h * targets.conj()).sum(-1).abs()[:, 0] / (4 * h.abs().square().sum((-2, -1)).sqrt())
    turned = (inner.acos() - math.acos(share**0.5)).clamp_min(0)
    gain = h.abs().square().sum((-2, -1)) * turned.cos().square()
    torch.testing.assert_close(rate(h, w), torch.log2(1 + 10 * gain), rtol=1e-4, atol=0)


@settings(max_examples=15, deadline=None)
@given(
    num_users=st.integers(2, 8),
    num_targets=st.integers(1, 3),
    share=st.floats(0, 0.97),
    noise_db=st.integers(-30, 10),
    seed=st.integers(0, 1000),
)
def test_alternation_never_falls_and_always_illuminates(
    num_users: int, num_targets: int, share: float, noise_db: int, seed: int
) -> None:
    h, targets = random_channel(3, num_users, 16, seed=seed), some_targets(3, num_targets, seed)
    levels, noise = asked(targets, share), 10 ** (noise_db / 10)
    before = None
    for count in (0, 1, 2, 5, 12):
        w = sensing_wmmse(h, targets, levels, noise, num_iterations=count)
        torch.testing.assert_close(power_of(w), torch.ones(3, dtype=torch.float64))
        assert (illumination_of(targets, w) >= levels * (1 - 1e-9)).all()
        now = rate(h, w, noise)
        assert before is None or (now >= before - 1e-9 * (1 + before)).all()
        before = now


def test_asking_for_nothing_is_wmmse() -> None:
    h, targets = random_channel(20, 4, 16), some_targets(20, 2)
    found = rate(h, sensing_wmmse(h, targets, 0 * asked(targets, 1.0), 0.1, num_iterations=300))
    torch.testing.assert_close(found, rate(h, wmmse(h, 0.1, num_iterations=300)), rtol=1e-4, atol=0)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("num_targets", [1, 2])
def test_the_precoders_step_is_the_semidefinite_programs(num_targets: int) -> None:
    """The step minimises within constraints that are not convex; their relaxation has the same minimum."""
    cvxpy = pytest.importorskip("cvxpy")
    num_users, size = 2, 4
    draw = random_channel(3, size, size, seed=3)
    curvature = draw @ draw.mH + torch.eye(size)
    content, towards = (
        random_channel(3, size, num_users, seed=4),
        random_channel(3, num_targets, size, seed=5),
    )
    towards = towards / torch.linalg.vector_norm(towards, dim=-1, keepdim=True)
    share = 0.8 * largest_illumination(towards)[:, None].expand(3, num_targets)
    w, multiplier = _least_error(curvature, content, towards, share, torch.zeros_like(share))
    assert (multiplier > 0).any()
    for one in range(3):
        kron = np.kron(np.eye(num_users), curvature[one].numpy())
        linear = content[one].T.reshape(-1, 1).numpy()
        block = np.block([[kron, -linear], [-linear.conj().T, np.zeros((1, 1))]])
        lifted = cvxpy.Variable(block.shape, hermitian=True)
        limits = [lifted >> 0, cvxpy.real(lifted[-1, -1]) == 1]
        for a, least in zip(towards[one].numpy(), share[one].tolist(), strict=True):
            form = np.zeros_like(block)
            form[:-1, :-1] = np.kron(np.eye(num_users), np.outer(a.conj(), a) - least * np.eye(size))
            limits.append(cvxpy.real(cvxpy.trace(form @ lifted)) >= 0)
        bound = cvxpy.Problem(cvxpy.Minimize(cvxpy.real(cvxpy.trace(block @ lifted))), limits).solve(
            solver="CLARABEL"
        )
        found = (w[one].mH @ curvature[one] @ w[one]).diagonal().real.sum()
        found = found - 2 * (content[one].conj() * w[one]).real.sum()
        assert float(found) == pytest.approx(bound, rel=1e-4)


def climbed(
    h: torch.Tensor, targets: torch.Tensor, levels: torch.Tensor, num_more: int, steps: int = 250
) -> torch.Tensor:
    """The best rate of 8 climbs from random starts, with further streams: float [drops]."""
    drops, num_users = len(h), h.shape[1] + num_more
    padded = torch.cat([h, torch.zeros(drops, num_more, h.shape[-1], dtype=h.dtype)], dim=1)
    many = [x.repeat_interleave(8, 0) for x in (padded, targets, levels)]
    w = random_channel(8 * drops, h.shape[-1], num_users, seed=7).requires_grad_()
    climb = torch.optim.Adam([w], lr=0.05)
    for _ in range(steps):
        climb.zero_grad()
        (-rate(many[0], illuminate(w, many[1], many[2])).sum()).backward()
        climb.step()
    return rate(many[0], illuminate(w.detach(), many[1], many[2])).view(drops, 8).amax(-1)


def test_alternation_ends_near_the_best_and_a_stream_for_sensing_adds_nothing() -> None:
    array = ArraySpec(num_rows=1, num_cols=4)
    h, targets = random_channel(6, 2, 4), some_targets(6, 1, array=array)
    levels = asked(targets, 0.6)
    starts = [
        rate(h, sensing_wmmse(h, targets, levels, 0.1, num_iterations=300, start=start, generator=draw))
        for start, draw in [("rzf", None), *(("random", torch.Generator().manual_seed(n)) for n in range(5))]
    ]
    best = torch.stack(starts).amax(0)
    plain, more = (climbed(h, targets, levels, num_more) for num_more in (0, 1))
    torch.testing.assert_close(best, plain, rtol=2e-3, atol=0)
    assert (more <= best * 1.001).all()


def test_the_end_of_alternation_has_the_structure() -> None:
    """From its 2 K + T numbers comes the same precoder."""
    h, targets = random_channel(5, 4, 16), some_targets(5, 2)
    levels = asked(targets, 0.5)
    w = sensing_wmmse(h, targets, levels, 0.1, num_iterations=1000)
    white, towards, share = normalised(h, targets, levels, torch.full((5,), 0.1, dtype=torch.float64))
    powers = (white @ w).abs().square()
    own = powers.diagonal(dim1=-2, dim2=-1)
    rest = powers.sum(-1) - own + 1
    dual = own / rest / (own + rest)
    dual = dual / dual.sum(-1, keepdim=True)  # of S, whose identity is 1 + sum mu share
    content = white.mH * (own.sqrt() / rest * torch.sgn((white @ w).diagonal(dim1=-2, dim2=-1))).unsqueeze(-2)
    scale = (own / rest / (own + rest)).sum(-1)[:, None, None]
    plain = (torch.eye(16) + white.mH @ (dual.unsqueeze(-1) * white)) @ w - content / scale
    # what is left is sum_t mu_t (a_t a_t^H - share_t) w
    along = towards.mH.mT.unsqueeze(-1) * (towards @ w).unsqueeze(-2)  # [drops, num_targets, 16, num_users]
    terms = (along - share[..., None, None] * w.unsqueeze(1)).movedim(1, -1)
    terms, plain = terms.flatten(1, 2), plain.flatten(1)
    mu = torch.linalg.lstsq(terms, plain.unsqueeze(-1)).solution[..., 0]
    assert (plain - (terms @ mu.unsqueeze(-1))[..., 0]).abs().max() < 1e-4 * plain.abs().max()
    assert mu.real.min() > -1e-6 and mu.imag.abs().max() < 1e-4
    level = 1 / (1 + (mu.real * share).sum(-1, keepdim=True))
    s0 = torch.eye(16) + white.mH @ ((dual * level).unsqueeze(-1) * white)
    reach = (towards @ torch.linalg.solve(s0, towards.mH)).diagonal(dim1=-2, dim2=-1).real
    numbers = SensingNumbers(
        log_dual=dual.log(),
        log_content=2 * (own.sqrt() / rest).log(),
        level=level,
        logit=torch.logit((mu.real * level * reach).clamp(1e-9, 1 - 1e-9)),
        raised=torch.full_like(level, -20.0),
    )
    beam = full_power_beam(towards, share, 1.0, 4)
    found = Illuminating.of(SensingDownlinks.of(white, towards, share, beam), numbers)
    torch.testing.assert_close(found.rate, rate(h, w), rtol=1e-4, atol=0)
    again = found.precoder(white, towards, beam)
    torch.testing.assert_close(power_of(again), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(rate(h, again), found.rate, rtol=1e-8, atol=0)
    torch.testing.assert_close(towards @ again, found.seen)


def test_a_target_that_no_user_hears_is_illuminated_all_the_same() -> None:
    """S is singular there: the step's own part along the target has to grow."""
    targets = some_targets(5, 1)
    h = random_channel(5, 3, 16)
    h = h - (h @ targets.mH) @ targets / 16
    levels = asked(targets, 0.4)
    w = sensing_wmmse(h, targets, levels, 0.1, num_iterations=100)
    torch.testing.assert_close(illumination_of(targets, w), levels, rtol=1e-6, atol=0)
    alone = sum_rate_bit_per_s_per_hz(h, wmmse(h, 0.1 / 0.6, num_iterations=300), 0.1 / 0.6)
    torch.testing.assert_close(rate(h, w), alone, rtol=1e-3, atol=0)


def test_splits_give_the_illumination_on_average() -> None:
    h, targets = random_channel(20, 4, 16), some_targets(20, 2)
    levels = asked(targets, 0.5)
    w, beam = wmmse(h, 0.1, num_iterations=30), full_power_beam(targets, levels, 1.0, 4)
    share = beam_share(w, beam, targets, levels)[:, None]
    average = (1 - share) * illumination_of(targets, w) + share * illumination_of(targets, beam)
    assert (average >= levels * (1 - 1e-9)).all()
    torch.testing.assert_close((average / levels).amin(-1), torch.ones(20, dtype=torch.float64))
    both = with_sensing_stream(w, beam, targets, levels)
    torch.testing.assert_close(illumination_of(targets, both), average)
    torch.testing.assert_close(power_of(both), torch.ones(20, dtype=torch.float64))


def test_order_makes_no_difference() -> None:
    h, targets = random_channel(5, 4, 16), some_targets(5, 3)
    levels = asked(targets, 0.5) * torch.tensor([1.0, 0.6, 0.8])
    users, places = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    w = sensing_wmmse(h, targets, levels, 0.1, num_iterations=10)
    moved = sensing_wmmse(h[:, users], targets[:, places], levels[:, places], 0.1, num_iterations=10)
    torch.testing.assert_close(rate(h[:, users], moved), rate(h, w), rtol=1e-6, atol=0)
