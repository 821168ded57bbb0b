"""Path-EB: closed forms against dense algebra, exactness on few paths, and the symmetries of the problem."""

import math

import pytest
import torch

from airlam.errors import DataError
from airlam.radio.channel import PredictionSetting
from airlam.radio.paths import PathGrid, doppler_basis
from airlam.radio.prediction.path_eb import PathEb
from airlam.radio.prediction.path_residual import predict_residual
from airlam.radio.prediction.path_spectra import (
    covariance_cholesky,
    dictionary_adjoint,
    dictionary_apply,
    likelihood_log_ratio,
    path_information,
)
from airlam.specs import ArraySpec

NUM_PATHS = 6


def setting(num_user_antennas: int = 1, fdd: bool = False, num_subcarriers: int = 24) -> PredictionSetting:
    total = 2 * num_subcarriers
    frequencies = tuple(180e3 * (index - (total - 1) / 2) for index in range(total))
    return PredictionSetting(
        base_station=ArraySpec(num_rows=2, num_cols=4, polarization="dual", polarization_type="cross"),
        num_user_antennas=num_user_antennas,
        history_frequencies_hz=frequencies[:num_subcarriers],
        target_frequencies_hz=frequencies[num_subcarriers:] if fdd else frequencies[:num_subcarriers],
        slot_duration_s=0.5e-3,
        num_history=16,
        num_horizon=4,
        max_doppler_hz=226.0,
    )


def few_paths(
    link: PredictionSetting, batch: int, num_paths: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise-free history and future of well separated paths with one Doppler shift each."""
    generator = torch.Generator().manual_seed(seed)
    grid = PathGrid.of(link)
    spread = torch.arange(num_paths) / num_paths
    position = torch.rand(batch, num_paths, 3, generator=generator) * torch.tensor([0.1, 1.0, 1.0])
    position[..., 0] += 0.6 * spread  # at most 0.7 of the delay range, apart by several taps
    doppler = 0.1 * (2 * torch.rand(batch, num_paths, generator=generator) - 1)  # cycles per slot
    slots = torch.arange(link.num_history + link.num_horizon)
    waves = torch.exp(2j * math.pi * doppler.unsqueeze(-1) * slots)  # [batch, paths, slots]
    snapshots = 2 * link.num_user_antennas
    gains = torch.randn(batch, snapshots, num_paths, dtype=torch.complex64, generator=generator)
    coefficients = torch.einsum("bsn,bnt->bnst", gains, waves).flatten(2)

    def channel(atoms: torch.Tensor) -> torch.Tensor:
        field: torch.Tensor = atoms @ coefficients * math.sqrt(grid.num_points / num_paths)
        return grid.links(field.view(batch, -1, snapshots, len(slots)))

    history = channel(grid.history_atoms(position))[:, : link.num_history]
    return history, channel(grid.target_atoms(position))[:, link.num_history :]


def with_noise(history: torch.Tensor, variance: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(history.shape, dtype=history.dtype, generator=generator)
    return history + math.sqrt(variance) * noise


def nmse(prediction: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
    return (prediction - future).abs().square().sum((1, 2, 3, 4)) / future.abs().square().sum((1, 2, 3, 4))


@pytest.mark.parametrize("num_user_antennas", [1, 2])
def test_few_paths_without_noise_are_predicted_nearly_exactly(num_user_antennas: int) -> None:
    link = setting(num_user_antennas)
    history, future = few_paths(link, 8, 2, seed=3)
    prediction = PathEb(link, NUM_PATHS).predict(history, torch.full((8,), 1e-6))
    assert prediction.shape == future.shape
    assert nmse(prediction, future).median() < 1e-3


def test_noise_costs_little_where_the_model_holds() -> None:
    link = setting()
    history, future = few_paths(link, 16, 2, seed=4)
    prediction = PathEb(link, NUM_PATHS).predict(with_noise(history, 0.1, 5), torch.full((16,), 0.1))
    assert nmse(prediction, future).mean() < 0.02  # the noise itself is 0.1
    assert nmse(history[:, -1:].expand_as(future), future).mean() > 0.5  # holding the last slot


def test_one_path_reaches_another_band() -> None:
    link = setting(fdd=True)
    history, future = few_paths(link, 8, 1, seed=6)
    prediction = PathEb(link, 1).predict(with_noise(history, 1e-3, 7), torch.full((8,), 1e-3))
    assert nmse(prediction, future).mean() < 0.01


def test_global_phase_and_scale_pass_through() -> None:
    link = setting()
    history = with_noise(few_paths(link, 4, 3, seed=8)[0], 0.01, 9)
    predictor, noise = PathEb(link, NUM_PATHS), torch.full((4,), 0.01)
    turn = 30 * torch.exp(torch.tensor(1.2j))
    plain, turned = predictor.predict(history, noise), predictor.predict(turn * history, 900 * noise)
    assert (turned - turn * plain).norm() < 1e-3 * turned.norm()


def test_links_do_not_see_each_other() -> None:
    link = setting()
    history = with_noise(few_paths(link, 5, 3, seed=10)[0], 0.01, 11)
    predictor, noise = PathEb(link, NUM_PATHS), torch.full((5,), 0.01)
    together = predictor.predict(history, noise)
    alone = torch.cat([predictor.predict(history[[i]], noise[[i]]) for i in range(5)])
    assert (together - alone).norm() < 1e-3 * together.norm()


@pytest.mark.parametrize("variance", [0.0, 1e-9, 1e6])
def test_extreme_noise_and_empty_links_stay_finite(variance: float) -> None:
    link = setting()
    history = few_paths(link, 3, 1, seed=12)[0]
    history[2] = 0
    prediction = PathEb(link, NUM_PATHS).predict(history, torch.full((3,), variance))
    assert torch.isfinite(torch.view_as_real(prediction)).all()


def test_nan_is_named() -> None:
    link = setting()
    history = few_paths(link, 3, 1, seed=12)[0]
    history[1, 0, 0, 0, 0] = math.nan
    with pytest.raises(DataError, match="link 1"):
        PathEb(link, NUM_PATHS).predict(history, torch.full((3,), 0.1))


def random_problem(
    num_paths: int = 11, snapshots: int = 2
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """factor, spectrum, observation and noise variance in double precision."""
    generator = torch.Generator().manual_seed(13)
    basis = doppler_basis(setting())
    factor = torch.randn(2, num_paths, num_paths, dtype=torch.complex128, generator=generator).triu()
    spectrum = torch.rand(2, num_paths, basis.num_doppler, generator=generator).double() + 0.1
    shape = (2, snapshots, num_paths, basis.rank)
    observation = torch.randn(shape, dtype=torch.complex128, generator=generator)
    return factor, spectrum, observation, torch.rand(2, generator=generator).double() + 0.5


def dense_covariance(
    factor: torch.Tensor, spectrum: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """C and the matrix A of one link, entry by entry as the formulas say."""
    atoms = doppler_basis(setting()).atoms.to(torch.complex128)
    dictionary = torch.cat(
        [torch.kron(factor[:, [n]], atoms) for n in range(factor.shape[1])], dim=1
    )  # [paths * rank, paths * doppler]
    covariance = dictionary @ torch.diag(spectrum.flatten().to(dictionary.dtype)) @ dictionary.mH
    return covariance + noise * torch.eye(len(covariance)), dictionary


def test_covariance_equals_its_dense_form() -> None:
    factor, spectrum, _, noise = random_problem()
    lower = covariance_cholesky(factor, spectrum, noise, doppler_basis(setting()))
    for link in range(2):
        dense, _ = dense_covariance(factor[link], spectrum[link], noise[link])
        assert torch.allclose(lower[link] @ lower[link].mH, dense)


def test_dictionary_and_its_adjoint_agree() -> None:
    factor, _, observation, _ = random_problem()
    basis = doppler_basis(setting())
    weights = torch.randn(2, 2, 11, basis.num_doppler, dtype=torch.complex128)
    left = (dictionary_apply(factor, weights, basis).conj() * observation).sum()
    right = (weights.conj() * dictionary_adjoint(factor, observation, basis)).sum()
    assert torch.allclose(left, right)


def test_information_equals_the_dense_inverse() -> None:
    factor, spectrum, observation, noise = random_problem()
    rank = observation.shape[-1]
    found = path_information(factor, spectrum, observation, noise, doppler_basis(setting()))
    inverse = torch.linalg.inv(dense_covariance(factor[0], spectrum[0], noise[0])[0])
    for path in (0, 4, 10):
        column = torch.kron(factor[0][:, [path]], torch.eye(rank, dtype=factor.dtype))
        assert torch.allclose(found.covariance[0, path], column.mH @ inverse @ column)
        score = column.mH @ inverse @ observation[0].flatten(1).mT
        assert torch.allclose(found.score[0, path], score)


def test_update_climbs_the_marginal_likelihood() -> None:
    factor, spectrum, observation, noise = random_problem()
    basis = doppler_basis(setting())
    spectrum.requires_grad_()
    lower = covariance_cholesky(factor, spectrum, noise, basis)
    columns = observation.flatten(2).mT  # [2, paths * rank, snapshots]
    fit = (columns.conj() * torch.cholesky_solve(columns, lower)).real.sum()
    log_determinant = 2 * lower.diagonal(dim1=-2, dim2=-1).real.log().sum()
    (gradient,) = torch.autograd.grad(-fit - observation.shape[1] * log_determinant, spectrum)
    with torch.no_grad():
        ratio = likelihood_log_ratio(
            factor.to(torch.complex64),
            spectrum.float(),
            observation.to(torch.complex64),
            noise.float(),
            basis,
        )
    clear = ratio.abs() > 1e-3
    assert torch.equal((gradient > 0)[clear], (ratio > 0)[clear])


def test_posterior_variance_lies_between_zero_and_the_prior() -> None:
    link = setting()
    predictor = PathEb(link, NUM_PATHS)
    history = few_paths(link, 4, 3, seed=14)[0]
    quiet = predictor.analyse(with_noise(history, 1e-3, 15), torch.full((4,), 1e-3))
    variance = predictor.future_variance(quiet)
    prior = quiet.spectrum.sum(-1, keepdim=True)
    assert variance.shape == (4, NUM_PATHS, 4)
    assert (variance >= 0).all() and (variance <= prior * 1.001).all()
    assert variance.mean((0, 1)).diff().min() > 0  # further ahead, less certain
    strongest = variance[:, 0, 0] / prior[:, 0, 0]
    assert (strongest < 0.1).all()


def test_residual_predicts_what_lies_in_one_bin() -> None:
    basis, shape = doppler_basis(setting()), (8, 2, 2)
    slots = torch.exp(2j * math.pi * 0.05 * torch.arange(20))
    grid_wave = torch.exp(-2j * math.pi * torch.arange(8) * 3 / 8)[:, None] * torch.ones(4)
    past = grid_wave.flatten()[:, None, None] * (basis.compression.mH @ slots[:16])[None, None]
    future = grid_wave.flatten()[:, None, None] * slots[None, None, 16:]
    prediction = predict_residual(past[None], torch.tensor([1e-4]), shape, basis)[0]
    assert (prediction - future).norm() < 0.05 * future.norm()
    silent = predict_residual(past[None], torch.tensor([1e4]), shape, basis)
    assert silent.norm() < 0.2 * future.norm()  # under heavy noise it says nothing
