"""Surfaces: the channel is the sum it says, phases are optima of their objective, no step lowers a rate."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airlam.errors import SpecError
from airlam.radio.beamforming import wmmse
from airlam.radio.precoding import regularized_zero_forcing, sum_rate_bit_per_s_per_hz
from airlam.radio.ris import (
    JointPrecoder,
    Minorant,
    Streams,
    SurfaceLinks,
    accelerated,
    aligned_reflection,
    alternating,
    beam_aligned_reflection,
    discrete_sweep,
    majorised,
    phase_levels,
    quantised,
    random_reflection,
    strongest_reflection,
    sweep,
    weighted_rate,
)


def random_links(
    batch: int, users: int, elements: int, antennas: int, seed: int = 0, direct: float = 1.0
) -> SurfaceLinks:
    draw = torch.Generator().manual_seed(seed)

    def gaussian(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, dtype=torch.complex128, generator=draw)

    return SurfaceLinks(
        direct=direct * gaussian(users, antennas),
        surface_users=gaussian(users, elements),
        base_surface=gaussian(elements, antennas) / elements**0.5,
    )


def phases_of(links: SurfaceLinks, seed: int = 1) -> torch.Tensor:
    return random_reflection(links, torch.Generator().manual_seed(seed))


def test_the_channel_is_the_sum_over_paths() -> None:
    links = random_links(2, 3, 5, 4)
    r = phases_of(links)
    h = links.effective(r)
    for b, k, m in itertools.product(range(2), range(3), range(4)):
        paths = sum(links.surface_users[b, k, n] * r[b, n] * links.base_surface[b, n, m] for n in range(5))
        torch.testing.assert_close(h[b, k, m], links.direct[b, k, m] + paths)
    torch.testing.assert_close(links.scaled(3.0).effective(r), 3.0 * h)


def test_the_minorant_touches_the_rate_and_stays_below() -> None:
    links = random_links(6, 3, 7, 4)
    streams = Streams.of(links, regularized_zero_forcing(links.direct, 0.3))
    here, there = (streams.received(phases_of(links, seed)) for seed in (1, 2))
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64).expand(6, 3)
    minorant = Minorant.at(here, weights)
    rise = weighted_rate(there, weights) - weighted_rate(here, weights)
    promised = (minorant.value(here) - minorant.value(there)) / math.log(2)
    assert (rise >= promised - 1e-9).all()
    near = streams.received(phases_of(links, 1) * torch.polar(*_small_turns(7)))
    rise = weighted_rate(near, weights) - weighted_rate(here, weights)
    promised = (minorant.value(here) - minorant.value(near)) / math.log(2)
    torch.testing.assert_close(rise, promised, rtol=0, atol=1e-7)


def _small_turns(num_elements: int) -> tuple[torch.Tensor, torch.Tensor]:
    turn = 1e-5 * torch.linspace(-1, 1, num_elements, dtype=torch.float64)
    return torch.ones_like(turn), turn


def test_an_element_takes_the_best_of_all_its_phases() -> None:
    links = random_links(5, 3, 1, 4)
    streams = Streams.of(links, regularized_zero_forcing(links.direct, 0.3))
    start = phases_of(links)
    minorant = Minorant.at(streams.received(start))
    found = minorant.value(streams.received(sweep(streams, start)))
    every = torch.linspace(0, 2 * math.pi, 4001, dtype=torch.float64)
    values = [
        minorant.value(streams.received(torch.polar(torch.ones(5, 1).double(), t.expand(5, 1))))
        for t in every
    ]
    best = torch.stack(values).amin(0)
    assert (found <= best + 1e-12).all()
    torch.testing.assert_close(found, best, rtol=1e-5, atol=1e-5)


def test_sweeps_end_where_no_element_would_move_alone() -> None:
    links = random_links(3, 2, 6, 4)
    streams = Streams.of(links, regularized_zero_forcing(links.direct, 0.3))
    start = phases_of(links)
    minorant = Minorant.at(streams.received(start))
    once, often = (sweep(streams, start, num_sweeps=count) for count in (1, 300))
    assert (minorant.value(streams.received(often)) <= minorant.value(streams.received(once)) + 1e-12).all()
    end = minorant.value(streams.received(often))
    for n, turn in itertools.product(range(6), (-0.02, 0.02, 1.0, 3.0)):
        moved = often.clone()
        moved[:, n] *= complex(math.cos(turn), math.sin(turn))
        assert (minorant.value(streams.received(moved)) >= end - 1e-9).all()


@settings(max_examples=20, deadline=None)
@given(
    users=st.integers(1, 5),
    elements=st.integers(1, 12),
    antennas=st.integers(1, 6),
    noise_db=st.integers(-30, 10),
    direct=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 1000),
)
def test_no_step_lowers_the_rate(
    users: int, elements: int, antennas: int, noise_db: int, direct: float, seed: int
) -> None:
    links = random_links(3, users, elements, antennas, seed, direct)
    noise = 2.0 * 10 ** (noise_db / 10)
    weights = torch.linspace(0.5, 2.0, users, dtype=torch.float64).expand(3, users)
    start = phases_of(links, seed)
    white = links.scaled((2.0 / noise) ** 0.5)
    w = wmmse(white.effective(start), 1.0, num_iterations=1, weights=weights)
    streams = Streams.of(white, w)
    before = weighted_rate(streams.received(start), weights)
    for move in (sweep, majorised):
        assert (
            weighted_rate(streams.received(move(streams, start, weights)), weights) >= before - 1e-9
        ).all()
    for optimise in (alternating, accelerated):
        joint = optimise(links, noise, 2.0, num_iterations=12, start=start, weights=weights)
        assert joint.rates.diff(dim=0).min() > -1e-9 * (1 + joint.rates.max())
        torch.testing.assert_close(joint.w.abs().square().sum((-2, -1)), torch.full((3,), 2.0).double())
        torch.testing.assert_close(joint.reflection.abs(), torch.ones(3, elements).double())
        rate = sum_rate_bit_per_s_per_hz(links.effective(joint.reflection), joint.w, noise, weights)
        torch.testing.assert_close(rate, joint.rates[-1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("optimise", [alternating, accelerated])
def test_one_user_gets_all_paths_in_phase(optimise: Callable[..., JointPrecoder]) -> None:
    links = random_links(20, 1, 8, 1)
    r = aligned_reflection(links)
    gain = links.direct.abs()[:, 0, 0] + (links.surface_users[:, 0] * links.base_surface[..., 0]).abs().sum(
        -1
    )
    torch.testing.assert_close(links.effective(r).abs()[:, 0, 0], gain)
    torch.testing.assert_close(strongest_reflection(links), r)
    torch.testing.assert_close(beam_aligned_reflection(links, 0.5), r)
    noise = 5.0  # iterations slow down with the SNR
    joint = optimise(links, noise, num_iterations=300, start=phases_of(links))
    torch.testing.assert_close(joint.rates[-1], torch.log2(1 + gain.square() / noise), rtol=1e-3, atol=0)


def test_strong_channels_grow_with_every_step() -> None:
    links = random_links(10, 4, 16, 4)
    gains = [
        links.effective(strongest_reflection(links, num_steps=n)).abs().square().sum((-2, -1))
        for n in range(6)
    ]
    assert torch.stack(gains).diff(dim=0).min() > -1e-9
    assert (gains[0] > links.effective(phases_of(links)).abs().square().sum((-2, -1))).all()


def test_optimised_phases_beat_those_that_are_not() -> None:
    links = random_links(30, 4, 24, 6, direct=0.2)
    joint, fast = (f(links, 0.1, num_iterations=40) for f in (alternating, accelerated))
    for r in (phases_of(links), strongest_reflection(links), beam_aligned_reflection(links, 0.1)):
        h = links.effective(r)
        rate = sum_rate_bit_per_s_per_hz(h, wmmse(h, 0.1, num_iterations=40), 0.1)
        assert joint.rates[-1].mean() > rate.mean() + 1 and fast.rates[-1].mean() > rate.mean() + 1
    assert fast.rates[-1].mean() > 0.97 * joint.rates[-1].mean()


@pytest.mark.parametrize("num_bits", [1, 2])
def test_switched_phases_end_where_no_element_would_switch_alone(num_bits: int) -> None:
    links = random_links(8, 2, 4, 3)
    levels = phase_levels(num_bits, torch.complex128)
    joint = alternating(links, 0.2, num_iterations=40, num_bits=num_bits)
    assert joint.rates.diff(dim=0).min() > -1e-9
    assert (joint.reflection.unsqueeze(-1) - levels).abs().amin(-1).max() < 1e-12
    streams = Streams.of(links.scaled(0.2**-0.5), joint.w)
    end = weighted_rate(streams.received(joint.reflection))
    for n, level in itertools.product(range(4), levels):
        moved = joint.reflection.clone()
        moved[:, n] = level
        assert (weighted_rate(streams.received(moved)) <= end + 1e-9).all()
    every = torch.cartesian_prod(*[levels] * 4)  # [choices, elements]
    h = torch.stack([links.effective(chosen.expand(8, 4)) for chosen in every])  # [choices, drops, ...]
    best = sum_rate_bit_per_s_per_hz(h, wmmse(h, 0.2, num_iterations=100), 0.2).amax(0)
    assert (end <= best + 1e-2).all()  # WMMSE from one start is not always the best precoder
    assert end.mean() > 0.9 * best.mean()


def test_more_bits_lose_less() -> None:
    links = random_links(30, 3, 16, 4, direct=0.2)
    rates = [alternating(links, 0.1, num_iterations=20, num_bits=b).rates[-1].mean() for b in (1, 2, 3)]
    free = alternating(links, 0.1, num_iterations=20).rates[-1].mean()
    assert rates[0] < rates[1] < rates[2] < free + 0.05
    r = phases_of(links)
    assert (quantised(r, 2) / r).angle().abs().max() <= math.pi / 4 + 1e-9
    torch.testing.assert_close(quantised(quantised(r, 3), 3), quantised(r, 3))


def test_a_discrete_sweep_of_one_element_is_brute_force() -> None:
    links = random_links(9, 3, 1, 3)
    streams = Streams.of(links, regularized_zero_forcing(links.direct, 0.1))
    levels = phase_levels(3, torch.complex128)
    found = discrete_sweep(streams, levels[:1].expand(9, 1), levels)
    rates = torch.stack([weighted_rate(streams.received(level.expand(9, 1))) for level in levels], dim=-1)
    torch.testing.assert_close(found[:, 0], levels[rates.argmax(-1)])


def test_permuting_users_and_elements_permutes_answers() -> None:
    links = random_links(4, 3, 6, 4)
    users, elements = torch.tensor([2, 0, 1]), torch.tensor([3, 5, 0, 1, 4, 2])
    turned = SurfaceLinks(
        direct=links.direct[:, users],
        surface_users=links.surface_users[:, users][..., elements],
        base_surface=links.base_surface[:, elements],
    )
    one, other = (accelerated(each, 0.1, num_iterations=15) for each in (links, turned))
    torch.testing.assert_close(other.reflection, one.reflection[:, elements], rtol=0, atol=1e-6)
    torch.testing.assert_close(other.w, one.w[..., users], rtol=0, atol=1e-6)


def test_without_a_direct_link_the_surface_serves_alone() -> None:
    links = random_links(6, 2, 16, 4, direct=0.0)
    for optimise in (alternating, accelerated):
        rates = optimise(links, 0.1, num_iterations=20).rates
        assert torch.isfinite(rates).all() and (rates[-1] > 2).all()


def test_impossible_requests_are_refused() -> None:
    links = random_links(1, 2, 3, 4)
    with pytest.raises(SpecError, match="do not meet"):
        SurfaceLinks(
            direct=links.direct, surface_users=links.surface_users, base_surface=links.base_surface.mT
        )
    with pytest.raises(SpecError, match="2 users and 4 antennas"):
        aligned_reflection(links)
    with pytest.raises(SpecError, match="num_bits must be at least 1, got 0"):
        phase_levels(0)
    with pytest.raises(SpecError, match="num_bits must be at least 1, got 0"):
        quantised(phases_of(links), 0)
    for optimise in (alternating, accelerated):
        with pytest.raises(SpecError, match="num_iterations must be at least 1, got 0"):
            optimise(links, 0.1, num_iterations=0)
