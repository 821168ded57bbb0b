"""The path head: Path-EB when fresh, right gradients, and a loss that training lowers."""

import dataclasses
import math

import pytest
import torch

from airlam.model.path_head import PathHead, posterior_weights
from airlam.radio.channel import PredictionSetting
from airlam.radio.paths import PathGrid, doppler_basis
from airlam.radio.prediction import path_posterior
from airlam.radio.prediction.path_eb import PathEb, future_coefficients
from airlam.specs import ArraySpec
from airlam.tokens.base import TokenBatch
from airlam.tokens.path import NUM_EXACT, NUM_ITERATIONS, PathTokenizer

NUM_PATHS = 6
WIDTH = 12
BATCH = 8


def setting(fdd: bool = False) -> PredictionSetting:
    frequencies = tuple(180e3 * index for index in range(32))
    return PredictionSetting(
        base_station=ArraySpec(num_rows=2, num_cols=2, polarization="dual", polarization_type="cross"),
        num_user_antennas=1,
        history_frequencies_hz=frequencies[:16],
        target_frequencies_hz=frequencies[16:] if fdd else frequencies[:16],
        slot_duration_s=0.5e-3,
        num_history=10,
        num_horizon=2,
        max_doppler_hz=120.0,
    )


def slow_links() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """History, noise variance and future of a few paths far slower than the setting allows."""
    generator = torch.Generator().manual_seed(2)
    grid = PathGrid.of(setting())
    position = torch.rand(BATCH, 3, 3, generator=generator)
    doppler = 0.01 * torch.randn(BATCH, 3, 1, generator=generator)  # cycles per slot; 0.06 at most
    waves = torch.exp(2j * math.pi * doppler * torch.arange(12))  # [batch, paths, slots]
    gains = torch.randn(BATCH, 3, 2, 1, dtype=torch.complex64, generator=generator)
    field = grid.history_atoms(position) @ (gains * waves.unsqueeze(2)).flatten(2)
    clean = math.sqrt(grid.num_points) * grid.links(field.unflatten(2, (2, 12)))
    noise = torch.full((BATCH,), 0.5)
    noisy = clean[:, :10] + 0.5**0.5 * torch.randn(
        clean[:, :10].shape, dtype=field.dtype, generator=generator
    )
    return noisy, noise, clean[:, 10:]


def tokens_of(link: PredictionSetting) -> TokenBatch:
    history, noise, _ = slow_links()
    return PathTokenizer(link, NUM_PATHS).tokenise(history, noise)


def with_target(link: PredictionSetting) -> TokenBatch:
    _, _, future = slow_links()
    return PathTokenizer(link, NUM_PATHS).with_target(tokens_of(link), future)


def hidden_states() -> torch.Tensor:
    return torch.randn(BATCH, NUM_PATHS, WIDTH, generator=torch.Generator().manual_seed(3))


def trained_head(link: PredictionSetting) -> PathHead:
    """A head whose weights are not zero."""
    head = PathHead(link, WIDTH)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return head


def test_a_fresh_head_is_path_eb() -> None:
    for link in (setting(), setting(fdd=True)):
        history, noise, _ = slow_links()
        tokens, head = tokens_of(link), PathHead(link, WIDTH)
        output = head(hidden_states(), tokens.context)
        expected = PathEb(link, NUM_PATHS, NUM_ITERATIONS, NUM_EXACT).predict(history, noise)
        assert (head.channel(output, tokens.context) - expected).norm() < 1e-4 * expected.norm()


def test_error_is_the_channels_error() -> None:
    _, _, future = slow_links()
    tokens, head = tokens_of(setting()), trained_head(setting())
    output = head(hidden_states(), tokens.context)
    full = (head.channel(output, tokens.context) - future).abs().square().sum((1, 2, 3, 4))
    error, energy = head.squared_error(output, with_target(setting()).context)
    assert torch.allclose(error, full, rtol=1e-3)
    assert torch.allclose(energy, future.abs().square().sum((1, 2, 3, 4)), rtol=1e-4)


def problem(num_paths: int = 2) -> tuple[torch.Tensor, ...]:
    """Spectrum, spread, noise variance, A^H y and Gram matrix of random atoms, in double precision."""
    generator = torch.Generator().manual_seed(5)
    rank, doppler = doppler_basis(setting()).rank, doppler_basis(setting()).num_doppler
    atoms = torch.randn(2, 20, num_paths * 4, dtype=torch.complex128, generator=generator) / 20**0.5
    field = torch.randn(2, 20, 2 * rank, dtype=torch.complex128, generator=generator)
    spectrum = torch.rand(2, num_paths, doppler, dtype=torch.float64, generator=generator) + 0.1
    spread = torch.rand(2, num_paths, 4, dtype=torch.float64, generator=generator) + 0.1
    noise = torch.rand(2, dtype=torch.float64, generator=generator) + 0.5
    projected = (atoms.mH @ field).view(2, num_paths, 4, 2, rank)
    return spectrum, spread, noise, projected, atoms.mH @ atoms


def test_the_layers_gradient_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_posterior, "MODE_FLOOR", 1e-15)
    spectrum, spread, noise, projected, gram = problem()
    basis = doppler_basis(setting())
    assert torch.autograd.gradcheck(
        lambda gamma, rho, variance: posterior_weights(gamma, rho, variance, projected, gram, basis),
        (spectrum.requires_grad_(), spread.requires_grad_(), noise.requires_grad_()),
    )


def test_weights_meet_the_normal_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    """With z = C^-1 y and q = A^H z: A^H y = G P q + s2 q, P the coefficients' prior covariance."""
    monkeypatch.setattr(path_posterior, "MODE_FLOOR", 1e-15)
    spectrum, spread, noise, projected, gram = problem()
    basis = doppler_basis(setting())
    weights = posterior_weights(spectrum, spread, noise, projected, gram, basis)
    past = basis.atoms.to(weights)
    fit = (spread.unsqueeze(-1) * spectrum.unsqueeze(2)).unsqueeze(3) * (weights @ past.conj())
    explained = gram @ (fit @ past.mT).flatten(3).flatten(1, 2)
    total = explained.view_as(weights) + noise.view(-1, 1, 1, 1, 1) * weights
    assert torch.allclose(total, projected, atol=1e-7)


@pytest.mark.parametrize("index", [0, 1, 2], ids=["spectrum", "spread", "noise"])
def test_the_gradient_nearly_holds_where_modes_are_dropped(index: int) -> None:
    *prior, projected, gram = problem()
    prior[0] = 3 * prior[0]
    basis, learned = doppler_basis(setting()), prior[index]

    def power() -> torch.Tensor:
        spectrum, spread, noise = prior
        weights = posterior_weights(spectrum, spread, noise, projected, gram, basis)
        coefficients = future_coefficients(weights, spectrum, spread, basis.atoms, basis.future_atoms)
        return coefficients.abs().square().sum()

    learned.requires_grad_()
    (gradient,) = torch.autograd.grad(power(), learned)
    learned.requires_grad_(False)
    numeric = torch.zeros_like(learned)
    for place in range(learned.numel()):
        value = learned.flatten()[place].clone()
        ends = []
        for step in (1e-5, -1e-5):
            learned.view(-1)[place] = value + step
            ends.append(power())
        learned.view(-1)[place] = value
        numeric.view(-1)[place] = (ends[0] - ends[1]) / 2e-5
    assert (gradient - numeric).norm() < 0.2 * numeric.norm()


OTHER = dataclasses.replace(
    setting(fdd=True),
    base_station=ArraySpec(num_rows=1, num_cols=8),
    num_user_antennas=2,
    num_history=16,
    num_horizon=4,
    max_doppler_hz=500.0,
)


def test_weights_of_one_setting_load_into_another() -> None:
    head, other = trained_head(setting()), PathHead(OTHER, WIDTH)
    shapes = {name: value.shape for name, value in head.state_dict().items()}
    assert shapes == {name: value.shape for name, value in other.state_dict().items()}
    other.load_state_dict(head.state_dict())
    generator = torch.Generator().manual_seed(6)
    history = torch.randn(BATCH, 16, 2, 8, 16, dtype=torch.complex64, generator=generator)
    tokens = PathTokenizer(OTHER, NUM_PATHS).tokenise(history, torch.full((BATCH,), 0.5))
    prediction = other.channel(other(hidden_states(), tokens.context), tokens.context)
    assert prediction.shape == (BATCH, 4, 2, 8, 16)
    assert torch.isfinite(torch.view_as_real(prediction)).all()


def test_dropped_paths_change_nothing() -> None:
    tokens, head = tokens_of(setting()), trained_head(setting())
    context = {**tokens.context, "path_mask": tokens.context["path_mask"].clone()}
    context["path_mask"][:, -1] = False
    hidden = hidden_states()
    other = hidden.clone()
    other[:, -1] = 100.0
    first, second = head(hidden, context)["coefficients"], head(other, context)["coefficients"]
    assert torch.equal(first, second)
    assert (first[:, -1] == 0).all()


def test_half_precision_hidden_states_are_corrected_and_solved_in_single() -> None:
    tokens, head = tokens_of(setting()), trained_head(setting())
    seen: list[torch.dtype] = []
    head.correction.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        output = head(hidden_states().bfloat16(), tokens.context)
    assert seen == [torch.float32]
    assert output["coefficients"].dtype == torch.complex64
    exact = head(hidden_states().bfloat16().float(), tokens.context)["coefficients"]
    assert torch.allclose(output["coefficients"], exact)


def test_phase_passes_through_a_trained_head() -> None:
    history, noise, _ = slow_links()
    tokenizer, head = PathTokenizer(setting(), NUM_PATHS), trained_head(setting())
    turn = torch.exp(torch.tensor(0.7j))
    plain, turned = tokenizer.tokenise(history, noise), tokenizer.tokenise(turn * history, noise)
    expected = turn * head.channel(head(hidden_states(), plain.context), plain.context)
    found = head.channel(head(hidden_states(), turned.context), turned.context)
    gap = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)  # [batch]
    assert gap.median() < 1e-4
    assert gap.max() < 0.05  # a path of noise may turn out another one, by rounding


def test_training_lowers_the_error() -> None:
    tokens, head, hidden = with_target(setting()), PathHead(setting(), WIDTH), hidden_states()
    optimiser = torch.optim.Adam(head.parameters(), lr=0.03)
    losses = []
    for _ in range(15):
        error, energy = head.squared_error(head(hidden, tokens.context), tokens.context)
        loss = (error / energy).log().mean()
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    assert losses[-1] < losses[0] - 0.2
