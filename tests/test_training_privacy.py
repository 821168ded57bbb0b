"""Clipping, noise counted with the channel's first, and the accountant's known values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from airlam.errors import DataError, SpecError
from airlam.training.privacy import (
    PrivacyLedger,
    PrivacySpec,
    artificial_noise_std,
    channel_noise_std,
    clip_samples,
    epsilon,
    noise_multiplier_for,
    privatise,
    train_one_factor,
)

SPEC = PrivacySpec(clip_norm=2.0, noise_multiplier=1.5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(seed=st.integers(0, 1000), clip=st.floats(0.1, 10), dims=st.integers(0, 2))
@settings(max_examples=20, deadline=None)
def test_no_sample_is_longer_than_the_clip_norm(seed: int, clip: float, dims: int) -> None:
    shape = [5, 3, 2][: dims + 1]
    sizes = 10.0 ** torch.randint(-3, 4, (5,) + (1,) * dims, generator=seeded(seed + 1))
    jacobian = torch.randn(shape, generator=seeded(seed)) * sizes
    found, norms = clip_samples(jacobian, clip), jacobian.reshape(5, -1).norm(dim=1)
    assert (found.reshape(5, -1).norm(dim=1) <= clip * (1 + 1e-5)).all()
    kept = norms <= clip
    assert torch.equal(found[kept], jacobian[kept])
    cosine = nn.functional.cosine_similarity(found.reshape(5, -1), jacobian.reshape(5, -1), dim=1)
    assert cosine[norms > 1e-3].min() > 1 - 1e-5


def test_zero_and_huge_samples() -> None:
    assert clip_samples(torch.zeros(2, 3), 1.0).tolist() == [[0.0] * 3] * 2
    assert clip_samples(torch.full((1, 4), 1e15), 1.0).norm().item() == pytest.approx(1)


@given(channel_std=st.floats(0, 10))
@settings(max_examples=50, deadline=None)
def test_artificial_and_channel_noise_reach_the_target(channel_std: float) -> None:
    artificial = artificial_noise_std(SPEC, channel_std)
    total = math.hypot(artificial, channel_std)
    assert total == pytest.approx(max(SPEC.noise_std, channel_std))
    assert (artificial == 0) == (channel_std >= SPEC.noise_std)


def test_channel_noise_is_the_formula() -> None:
    power_w, gain, noise_psd, bandwidth_hz = 0.2, 1e-10, 4e-21, 1e7
    snr = power_w * gain / (noise_psd * bandwidth_hz)
    assert channel_noise_std(snr) ** 2 == pytest.approx(noise_psd * bandwidth_hz / (power_w * gain))
    assert channel_noise_std(4.0, value_rms=3.0) == 1.5
    with pytest.raises(SpecError, match="snr 0"):
        channel_noise_std(0.0)


def test_what_is_sent_has_the_noise_that_the_channel_lacks() -> None:
    jacobian = torch.zeros(400, 500)
    for channel_std, expected in ((0.0, 3.0), (1.8, 2.4), (5.0, 0.0)):
        sent = privatise(jacobian, SPEC, seeded(), channel_std=channel_std)
        assert sent.std().item() == pytest.approx(expected, rel=0.01, abs=1e-9)
    assert torch.equal(privatise(jacobian, SPEC, seeded(1)), privatise(jacobian, SPEC, seeded(1)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_jacobian_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(DataError, match="not finite"):
        privatise(torch.tensor([[1.0, value]]), SPEC, seeded())


def test_noise_in_one_factor_grows_with_its_square_in_both_with_its_fourth() -> None:
    """E||(B + n)(A + m) - B A||^2 = s^2 (d r + ||B||^2 + ||A||^2 terms) + s^4 d r d."""
    generator, width, rank = seeded(), 64, 4
    up, down = torch.randn(width, rank, generator=generator), torch.randn(rank, width, generator=generator)
    for sigma in (0.1, 0.3, 1.0):
        one, both = [], []
        for _ in range(200):
            noisy_up = up + sigma * torch.randn(up.shape, generator=generator)
            noisy_down = down + sigma * torch.randn(down.shape, generator=generator)
            one.append((noisy_up @ down - up @ down).square().sum())
            both.append((noisy_up @ noisy_down - up @ down).square().sum())
        one_power, both_power = torch.stack(one).mean().item(), torch.stack(both).mean().item()
        b2, a2 = up.square().sum().item(), down.square().sum().item()
        assert one_power == pytest.approx(sigma**2 * width * a2, rel=0.05)
        expected = sigma**2 * width * (a2 + b2) + sigma**4 * width * width * rank
        assert both_power == pytest.approx(expected, rel=0.05) and both_power > one_power


class Adapted(nn.Module):
    """The names that peft gives its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.ModuleDict(
            {
                "lora_A": nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)}),
                "lora_B": nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)}),
            }
        )


def test_one_factor_learns() -> None:
    module = Adapted()
    assert train_one_factor(module) == 1
    assert [n for n, p in module.named_parameters() if p.requires_grad] == ["q_proj.lora_B.default.weight"]


def test_no_steps_use_up_nothing_without_the_accountant() -> None:
    assert epsilon(1.0, 0, 1e-5) == 0.0


def test_impossible_values_are_refused() -> None:
    for arguments, message in (
        ((0.0, 1, 1e-5), "noise_multiplier"),
        ((1.0, -1, 1e-5), "num_steps"),
        ((1.0, 1, 0.0), "delta"),
        ((1.0, 1, 1e-5, 0.0), "sampling_rate"),
    ):
        with pytest.raises(SpecError, match=message):
            epsilon(*arguments)
    with pytest.raises(SpecError, match="clip_norm"):
        PrivacySpec(clip_norm=0.0, noise_multiplier=1.0)
    with pytest.raises(SpecError, match="delta is 1"):
        PrivacySpec(clip_norm=1.0, noise_multiplier=1.0, delta=1.0)
    with pytest.raises(SpecError, match="a sent -1 times"):
        PrivacyLedger(spec=SPEC).after({"a": -1})


@pytest.mark.parametrize("text", ["", "[1]", '{"a": "x"}', '{"a": -2}', '{"a": null}'])
def test_what_is_no_ledger_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="cannot be made up anew"):
        PrivacyLedger.from_json(SPEC, text)


class TestAccountant:
    """With dp-accounting."""

    @pytest.fixture(autouse=True)
    def _needs_it(self) -> None:
        pytest.importorskip("dp_accounting")

    def test_check_value(self) -> None:
        assert epsilon(1.1, 1000, 1e-5, 0.01) == pytest.approx(1.725, abs=0.01)

    def test_equals_the_formula_of_integer_orders(self) -> None:
        """Moments of the subsampled Gaussian mechanism, Mironov et al. 2019, and the usual conversion."""
        q, z, steps, delta = 0.05, 2.0, 300, 1e-6
        best = math.inf
        for a in range(2, 129):
            terms = [
                math.comb(a, j) * (1 - q) ** (a - j) * q**j * math.exp(min(j * (j - 1) / (2 * z * z), 600))
                for j in range(a + 1)
            ]
            moment = math.log(sum(terms)) / (a - 1)
            conversion = math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1)
            best = min(best, steps * moment + conversion)
        assert epsilon(z, steps, delta, q) == pytest.approx(best, rel=1e-6)

    def test_monotone_in_noise_steps_and_sampling(self) -> None:
        assert epsilon(2.0, 100, 1e-5) < epsilon(1.0, 100, 1e-5) < epsilon(1.0, 200, 1e-5)
        assert epsilon(1.0, 100, 1e-5, 0.1) < epsilon(1.0, 100, 1e-5, 0.5) < epsilon(1.0, 100, 1e-5)
        assert epsilon(1.0, 100, 1e-3) < epsilon(1.0, 100, 1e-5)

    def test_the_multiplier_for_a_target_reaches_it(self) -> None:
        for rate in (1.0, 0.1):
            found = noise_multiplier_for(4.0, 50, 1e-5, rate)
            assert 3.9 < epsilon(found, 50, 1e-5, rate) <= 4.0
        with pytest.raises(SpecError, match="out of reach"):
            noise_multiplier_for(1e-9, 10**9, 1e-5)

    def test_a_device_is_charged_for_the_rounds_in_which_it_sends(self) -> None:
        """No amplification by being left out: q = 1."""
        ledger = PrivacyLedger(spec=SPEC)
        for step in range(40):
            ledger = ledger.after({"often": 1, **({"seldom": 1} if step % 10 == 0 else {})})
        assert ledger.num_steps == {"often": 40, "seldom": 4}
        assert ledger.epsilon("often") == epsilon(1.5, 40, 1e-5) > ledger.epsilon("seldom") > 0
        assert ledger.epsilon("never") == 0
        assert PrivacyLedger.from_json(SPEC, ledger.to_json()) == ledger
