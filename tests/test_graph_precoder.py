"""The graph precoder: what it must not see makes no difference, its power is exact, and it learns."""

import dataclasses

import pytest
import torch

from airlam.model.graph_precoder import GraphPrecoder, Shares, build_precoder, gram_of, sum_rates
from airlam.model.storage import fingerprint
from airlam.radio.beamforming import (
    optimal_structure,
    received_powers,
    structure_parameters,
    sure_channels,
)
from airlam.radio.precoding import regularized_zero_forcing, sum_rate_bit_per_s_per_hz
from airlam.specs import ModelSpec, PrecoderSpec

SPEC = PrecoderSpec(width=8, num_edge_channels=2, num_layers=2)
LAM = dataclasses.replace(SPEC, backbone=ModelSpec(backbone="small", num_layers=1, lora_rank=2))


def channels(num_users: int, num_bs_ant: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(5, num_users, num_bs_ant, dtype=torch.complex64, generator=draw)


def noise(value: float = 0.1) -> torch.Tensor:
    return torch.full((5,), value)


def stirred(spec: PrecoderSpec) -> GraphPrecoder:
    """One whose answers are not those it starts with."""
    precoder = build_precoder(spec, seed=1)
    draw = torch.Generator().manual_seed(2)
    for parameter in precoder.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return precoder.eval()


@pytest.mark.parametrize("num_users, num_bs_ant", [(4, 8), (6, 4), (1, 3)])
def test_received_powers_are_those_of_the_precoder(num_users: int, num_bs_ant: int) -> None:
    h = channels(num_users, num_bs_ant).to(torch.complex128)
    lam, p = torch.rand(2, 5, num_users, dtype=torch.float64) + 0.1
    lam, p = (values / values.sum(-1, keepdim=True) for values in (lam, p))
    w = optimal_structure(h, lam, p, 0.2, 3.0)
    expected = (h @ w).abs().square() / 0.2
    torch.testing.assert_close(received_powers(3.0 / 0.2 * (h @ h.mH), lam, p), expected, rtol=1e-8, atol=0)


def test_even_shares_are_regularised_zero_forcing() -> None:
    h = channels(4, 8)
    gram = gram_of(h, noise())
    w = regularized_zero_forcing(h, 0.1)
    torch.testing.assert_close(
        sum_rates(gram, Shares.even(gram)), sum_rate_bit_per_s_per_hz(h, w, 0.1), rtol=1e-4, atol=0
    )


def test_untrained_it_takes_one_step_of_wmmse_from_regularised_zero_forcing() -> None:
    h = channels(5, 8)
    dual, _ = structure_parameters(h, regularized_zero_forcing(h, 0.1), 0.1)
    fresh = build_precoder(dataclasses.replace(SPEC, num_stages=1))
    with torch.no_grad():
        (answer,) = fresh(gram_of(h, noise()))
    torch.testing.assert_close(answer.dual, dual, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(answer.stream, torch.full((5, 5), 0.2))


@pytest.mark.parametrize("num_users, num_bs_ant", [(4, 8), (6, 4)])
def test_what_it_precodes_is_the_structure_of_its_last_answer(num_users: int, num_bs_ant: int) -> None:
    precoder, h = stirred(SPEC), channels(num_users, num_bs_ant)
    with torch.no_grad():
        last = precoder(gram_of(h, noise(), 3.0))[-1]
        torch.testing.assert_close(
            precoder.precode(h, noise(), 3.0), last.precoder(h, noise(), 3.0), rtol=1e-4, atol=1e-5
        )


def test_a_batch_is_its_downlinks() -> None:
    precoder, h = stirred(LAM), channels(4, 8)
    with torch.no_grad():
        together = precoder.precode(h, noise())
        alone = torch.cat([precoder.precode(one[None], noise()[:1]) for one in h])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [SPEC, LAM], ids=["graph", "lam"])
def test_permuting_users_permutes_beams(spec: PrecoderSpec) -> None:
    precoder, h = stirred(spec), channels(6, 8)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    with torch.no_grad():
        w, moved = precoder.precode(h, noise()), precoder.precode(h[:, order], noise())
    torch.testing.assert_close(moved, w[:, :, order], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("num_users, num_bs_ant", [(1, 4), (3, 2), (7, 16), (20, 16)])
def test_the_power_is_exact_for_any_number_of_users_and_antennas(num_users: int, num_bs_ant: int) -> None:
    with torch.no_grad():
        w = stirred(LAM).precode(channels(num_users, num_bs_ant), noise(), 2.5)
    assert w.shape == (5, num_bs_ant, num_users)
    power = w.abs().square().sum((-2, -1))
    torch.testing.assert_close(power, torch.full((5,), 2.5), rtol=1e-6, atol=0)


def test_phases_antennas_order_and_units_make_no_difference() -> None:
    precoder, h = stirred(SPEC), channels(4, 8)
    turned = h * torch.polar(torch.ones(5, 4, 1), torch.rand(5, 4, 1) * 6)
    shuffled = turned[:, :, torch.randperm(8)]
    with torch.no_grad():
        rates = [
            sum_rate_bit_per_s_per_hz(x, precoder.precode(x, s2, power), s2)
            for x, s2, power in (
                (h, noise(), 1.0),
                (shuffled, noise(), 1.0),
                (10 * h, noise(10.0), 1.0),
                (h, noise(0.2), 2.0),
            )
        ]
    for other in rates[1:]:
        torch.testing.assert_close(other, rates[0], rtol=1e-3, atol=1e-3)


def test_the_backbone_adds_nothing_before_it_is_tuned_and_only_adapters_are() -> None:
    h = channels(5, 8)
    with torch.no_grad():
        alone, joined = (build_precoder(s, seed=3).eval().precode(h, noise()) for s in (SPEC, LAM))
    assert torch.equal(alone, joined)
    precoder = stirred(LAM)
    assert precoder.backbone is not None
    frozen = {n: p for n, p in precoder.backbone.named_parameters() if not p.requires_grad}
    before = fingerprint(frozen)
    trained = [p for p in precoder.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.1)
    (-sum_rates(gram_of(h, noise()), precoder(gram_of(h, noise()))[-1]).mean()).backward()
    adapters = [p.grad for n, p in precoder.backbone.named_parameters() if "lora_" in n]
    assert adapters and all(g is not None and bool(g.any()) for g in adapters)
    optimiser.step()
    assert frozen and fingerprint(frozen) == before


def test_a_user_that_is_switched_off_breaks_nothing() -> None:
    precoder, gram = stirred(SPEC), gram_of(channels(4, 8), noise())
    with torch.no_grad():
        precoder.stages[0].leave.weight *= 1e6  # type: ignore[union-attr,operator]
    answers = precoder(gram)
    assert bool((answers[0].stream == 0).any())
    rate = sum_rates(gram, answers[-1])
    rate.sum().backward()
    assert bool(rate.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in precoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("noise_variance", [1e-4, 1e-9])
def test_little_noise_and_more_users_than_antennas_break_nothing(noise_variance: float) -> None:
    """The Gram matrix is singular, and in single precision not even that."""
    with torch.no_grad():
        w = stirred(SPEC).precode(channels(20, 16), noise(noise_variance))
    torch.testing.assert_close(w.abs().square().sum((-2, -1)), torch.ones(5), rtol=1e-6, atol=0)


def test_certain_channels_are_left_as_they_are() -> None:
    precoder, h = stirred(SPEC), channels(4, 8)
    with torch.no_grad():
        plain = precoder.precode(h, noise(), 2.0)
        sure = precoder.precode(h, noise(), 2.0, error_covariance=torch.zeros(5, 4, 8, 8, dtype=h.dtype))
    torch.testing.assert_close(sure, plain, rtol=1e-3, atol=1e-4)


def test_knowing_the_error_helps() -> None:
    """Estimates whose error lies in two directions that the precoder can avoid."""
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(200, 3, 8, dtype=torch.complex64, generator=draw)
    basis = torch.zeros(8, 8, dtype=h.dtype)
    basis[0, 0] = basis[1, 1] = 2.0
    error = torch.randn(200, 3, 8, dtype=h.dtype, generator=draw) @ basis
    covariance = (basis.mH @ basis).expand(200, 3, 8, 8)
    level = torch.full((200,), 0.1)
    precoder = build_precoder(SPEC, seed=0).eval()
    with torch.no_grad():
        rates = [
            sum_rate_bit_per_s_per_hz(h, w, 0.1).mean()
            for w in (
                precoder.precode(h + error, level),
                precoder.precode(h + error, level, error_covariance=covariance),
            )
        ]
    assert rates[1] > 1.2 * rates[0]
    back = sure_channels(h, covariance, 0.1, 3.0).back(torch.randn(200, 8, 3, dtype=h.dtype), 3.0)
    torch.testing.assert_close(back.abs().square().sum((-2, -1)), torch.full((200,), 3.0))
