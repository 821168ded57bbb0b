"""The path head: Path-EB when fresh, right gradients, and a loss that training lowers."""

import torch

from airlam.model.path_head import PathHead, lmmse_weights
from airlam.radio.channel import PredictionSetting
from airlam.radio.paths import doppler_basis
from airlam.radio.prediction.path_eb import PathEb
from airlam.radio.prediction.path_spectra import dictionary_adjoint, dictionary_apply
from airlam.specs import ArraySpec
from airlam.tokens.base import TokenBatch
from airlam.tokens.path import PathTokenizer

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


def correlated_links() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """History, noise variance and future of channels that drift slowly."""
    generator = torch.Generator().manual_seed(2)
    steps = torch.randn(BATCH, 12, 1, 8, 16, dtype=torch.complex64, generator=generator)
    steps[:, 0] *= 5
    walk = steps.cumsum(1)
    noise = torch.full((BATCH,), 0.5)
    noisy = walk[:, :10] + 0.5**0.5 * torch.randn(walk[:, :10].shape, dtype=walk.dtype, generator=generator)
    return noisy, noise, walk[:, 10:]


def tokens_of(link: PredictionSetting) -> TokenBatch:
    history, noise, _ = correlated_links()
    return PathTokenizer(link, NUM_PATHS).tokenise(history, noise)


def with_target(link: PredictionSetting) -> TokenBatch:
    _, _, future = correlated_links()
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
        history, noise, _ = correlated_links()
        tokens, head = tokens_of(link), PathHead(link, WIDTH)
        output = head(hidden_states(), tokens.context)
        expected = PathEb(link, NUM_PATHS).predict(history, noise)
        assert (head.channel(output, tokens.context) - expected).norm() < 1e-4 * expected.norm()


def test_error_is_the_channels_error() -> None:
    _, _, future = correlated_links()
    tokens, head = tokens_of(setting()), trained_head(setting())
    output = head(hidden_states(), tokens.context)
    full = (head.channel(output, tokens.context) - future).abs().square().sum((1, 2, 3, 4))
    error, energy = head.squared_error(output, with_target(setting()).context)
    assert torch.allclose(error, full, rtol=1e-3)
    assert torch.allclose(energy, future.abs().square().sum((1, 2, 3, 4)), rtol=1e-4)


def test_the_layers_gradient_is_right() -> None:
    generator = torch.Generator().manual_seed(5)
    basis = doppler_basis(setting())
    factor = torch.randn(2, 3, 3, dtype=torch.complex128, generator=generator).triu()
    spectrum = torch.rand(2, 3, basis.num_doppler, dtype=torch.float64, generator=generator) + 0.1
    noise = torch.rand(2, dtype=torch.float64, generator=generator) + 0.5
    observation = torch.randn(2, 2, 3, basis.rank, dtype=torch.complex128, generator=generator)
    assert torch.autograd.gradcheck(
        lambda gamma, variance: lmmse_weights(gamma, variance, observation, factor, basis),
        (spectrum.requires_grad_(), noise.requires_grad_()),
    )


def test_weights_meet_the_normal_equations() -> None:
    """With z = C^-1 y and q = A^H z, the fit A diag(gamma) q and the noise's share s2 z add up to y."""
    generator = torch.Generator().manual_seed(6)
    basis = doppler_basis(setting())
    factor = torch.eye(3, dtype=torch.complex128).expand(2, 3, 3)  # orthogonal paths: links by themselves
    spectrum = torch.rand(2, 3, basis.num_doppler, dtype=torch.float64, generator=generator)
    noise = torch.rand(2, dtype=torch.float64, generator=generator) + 0.5
    observation = torch.randn(2, 2, 3, basis.rank, dtype=torch.complex128, generator=generator)
    weights = lmmse_weights(spectrum, noise, observation, factor, basis)
    fit = dictionary_apply(factor, spectrum.unsqueeze(1) * weights, basis)
    solved = (observation - fit) / noise[:, None, None, None]
    assert torch.allclose(dictionary_adjoint(factor, solved, basis), weights)


def test_dropped_paths_change_nothing() -> None:
    tokens, head = tokens_of(setting()), trained_head(setting())
    context = {**tokens.context, "path_mask": tokens.context["path_mask"].clone()}
    context["path_mask"][:, -1] = False
    hidden = hidden_states()
    other = hidden.clone()
    other[:, -1] = 100.0
    first, second = head(hidden, context)["coefficients"], head(other, context)["coefficients"]
    assert torch.equal(first, second)
    assert (first[:, :, -1] == 0).all()


def test_half_precision_hidden_states_are_solved_in_single() -> None:
    tokens, head = tokens_of(setting()), trained_head(setting())
    with torch.autocast("cpu", torch.bfloat16):
        output = head(hidden_states().bfloat16(), tokens.context)
    assert output["coefficients"].dtype == torch.complex64
    exact = head(hidden_states().bfloat16().float(), tokens.context)["coefficients"]
    assert torch.allclose(output["coefficients"], exact)


def test_phase_passes_through_a_trained_head() -> None:
    history, noise, _ = correlated_links()
    tokenizer, head = PathTokenizer(setting(), NUM_PATHS), trained_head(setting())
    turn = torch.exp(torch.tensor(0.7j))
    plain, turned = tokenizer.tokenise(history, noise), tokenizer.tokenise(turn * history, noise)
    expected = turn * head.channel(head(hidden_states(), plain.context), plain.context)
    found = head.channel(head(hidden_states(), turned.context), turned.context)
    assert (found - expected).norm() < 2e-3 * expected.norm()


def test_training_lowers_the_error() -> None:
    tokens, head, hidden = with_target(setting()), PathHead(setting(), WIDTH), hidden_states()
    optimiser = torch.optim.Adam(head.parameters(), lr=0.03)
    losses = []
    for _ in range(25):
        error, energy = head.squared_error(head(hidden, tokens.context), tokens.context)
        loss = (error / energy).log().mean()
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    assert losses[-1] < losses[0] - 0.05
