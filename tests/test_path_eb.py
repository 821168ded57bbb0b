"""Path-EB: exactness on few paths, clusters with a spread, honest variances, and the problem's symmetries."""

import dataclasses
import math

import pytest
import torch

from airlam.errors import DataError
from airlam.radio import paths
from airlam.radio.channel import PredictionSetting
from airlam.radio.paths import PathGrid, PathWaves, doppler_basis
from airlam.radio.prediction import path_posterior
from airlam.radio.prediction.path_eb import PathEb
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


def wide_setting() -> PredictionSetting:
    """An array wide enough to see a cluster's spread."""
    return dataclasses.replace(
        setting(),
        base_station=ArraySpec(num_rows=4, num_cols=8, polarization="dual", polarization_type="cross"),
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
    mean, spread = PathEb(link, NUM_PATHS).predict_with_variance(history, torch.full((3,), variance))
    assert torch.isfinite(torch.view_as_real(mean)).all()
    assert torch.isfinite(spread).all() and (spread >= 0).all()
    assert (mean[2] == 0).all() or variance > 0


def test_nan_is_named() -> None:
    link = setting()
    history = few_paths(link, 3, 1, seed=12)[0]
    history[1, 0, 0, 0, 0] = math.nan
    with pytest.raises(DataError, match="link 1"):
        PathEb(link, NUM_PATHS).predict(history, torch.full((3,), 0.1))


def cluster_links(link: PredictionSetting, batch: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise-free history and future of two clusters of 20 rays, each ray with its own Doppler shift."""
    generator = torch.Generator().manual_seed(seed)
    grid = PathGrid.of(link)
    num_clusters, num_rays = 2, 20
    cycles = torch.tensor(
        [
            paths.DELAY_SPREAD_S * grid.subcarrier_spacing_hz,
            paths.COLUMN_SPREAD_WAVELENGTHS * grid.antenna_spacing_wavelengths,
            paths.ROW_SPREAD_WAVELENGTHS * grid.antenna_spacing_wavelengths,
        ]
    )
    centre = torch.rand(batch, num_clusters, 1, 3, generator=generator)
    centre[..., 0] = 0.1 + 0.4 * torch.arange(num_clusters).view(-1, 1)
    offset = torch.randn(batch, num_clusters, num_rays, 3, generator=generator) * cycles
    position = (centre + offset).flatten(1, 2)  # [batch, rays, 3]
    top = link.max_doppler_cycles_per_slot
    doppler = top * (2 * torch.rand(position.shape[:2], generator=generator) - 1)
    slots = torch.arange(link.num_history + link.num_horizon)
    waves = torch.exp(2j * math.pi * doppler.unsqueeze(-1) * slots)  # [batch, rays, slots]
    gains = torch.randn(*position.shape[:2], 2, dtype=torch.complex64, generator=generator)
    coefficients = (gains.unsqueeze(3) * waves.unsqueeze(2)).flatten(2)  # [batch, rays, snapshots * slots]
    field = grid.history_atoms(position) @ coefficients * math.sqrt(grid.num_points / position.shape[1])
    whole = grid.links(field.unflatten(2, (2, -1)))
    return whole[:, : link.num_history], whole[:, link.num_history :]


def without_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMN_SPREAD_WAVELENGTHS", "ROW_SPREAD_WAVELENGTHS", "DELAY_SPREAD_S"):
        monkeypatch.setattr(paths, name, getattr(paths, name) * 1e-4)
    monkeypatch.setattr(paths, "_spread", paths._spread.__wrapped__)  # which keeps what it was asked before


def test_clusters_with_a_spread_are_predicted_better_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    link = wide_setting()
    history, future = cluster_links(link, 24, seed=16)
    noise, noisy = torch.full((24,), 1e-2), with_noise(history, 1e-2, 17)
    wide = nmse(PathEb(link, NUM_PATHS).predict(noisy, noise), future).mean()
    without_spread(monkeypatch)
    narrow = nmse(PathEb(link, NUM_PATHS).predict(noisy, noise), future).mean()
    assert wide < 0.7 * narrow


def model_links(
    link: PredictionSetting, batch: int, num_paths: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise-free history and future drawn from the model itself, paths apart in delay."""
    generator = torch.Generator().manual_seed(seed)
    grid, basis = PathGrid.of(link), doppler_basis(link)
    position = torch.rand(batch, num_paths, 3, dtype=torch.float64, generator=generator)
    position[..., 0] = 0.1 + 0.8 * torch.arange(num_paths) / num_paths
    spectrum = torch.rand(batch, num_paths, 1, 1, basis.num_doppler, generator=generator).square()
    shape = (batch, num_paths, 4, 2, basis.num_doppler)
    draws = torch.randn(shape, dtype=torch.complex64, generator=generator)
    weights = draws * (grid.spread[:, None, None] * spectrum).sqrt()
    slots = torch.arange(link.num_history + link.num_horizon)
    waves = torch.exp(2j * math.pi * slots[:, None] * basis.doppler_cycles_per_slot).to(weights)
    coefficients = (weights @ waves.mT) * math.sqrt(grid.num_points / num_paths)

    def channel(where: PathWaves) -> torch.Tensor:
        return grid.links(where.synthesise(coefficients.flatten(3)).unflatten(2, (2, -1)))

    history = channel(grid.history_waves(position))[:, : link.num_history]
    return history, channel(grid.target_waves(position))[:, link.num_history :]


def test_the_mean_of_predict_with_variance_is_the_prediction() -> None:
    link = setting()
    history, noise = with_noise(few_paths(link, 40, 3, seed=18)[0], 0.1, 19), torch.full((40,), 0.1)
    mean, variance = PathEb(link, NUM_PATHS).predict_with_variance(history, noise)  # more links than a chunk
    assert torch.equal(mean, PathEb(link, NUM_PATHS).predict(history, noise))
    assert variance.shape == mean.shape and variance.dtype == torch.float32


@pytest.mark.parametrize("noise", [1e-3, 1.0])
def test_variance_is_positive_and_grows_with_the_horizon(noise: float) -> None:
    link = wide_setting()
    history = with_noise(model_links(link, 8, 3, seed=20)[0], noise, 21)
    _, variance = PathEb(link, NUM_PATHS).predict_with_variance(history, torch.full((8,), noise))
    assert (variance > 0).all()
    assert (variance.mean((2, 3, 4)).diff(dim=1) > 0).all()


def test_variance_scales_with_the_channels_power() -> None:
    link = setting()
    history, noise = with_noise(few_paths(link, 4, 3, seed=22)[0], 0.1, 23), torch.full((4,), 0.1)
    predictor = PathEb(link, NUM_PATHS)
    plain = predictor.predict_with_variance(history, noise)[1]
    loud = predictor.predict_with_variance(30 * history, 900 * noise)[1]
    assert torch.allclose(loud, 900 * plain, rtol=1e-2)


@pytest.mark.parametrize("noise", [1e-2, 0.3])
@pytest.mark.parametrize("fdd", [False, True])
def test_variance_is_calibrated_where_the_model_holds(noise: float, fdd: bool) -> None:
    link = setting(fdd=fdd)
    history, future = model_links(link, 32, 3, seed=24)
    predictor = PathEb(link, 3)
    mean, variance = predictor.predict_with_variance(with_noise(history, noise, 25), torch.full((32,), noise))
    ratio = (mean - future).abs().square() / variance
    assert 0.5 < ratio.mean() < 2


@pytest.mark.parametrize("fdd", [False, True])
def test_mean_and_variance_are_the_dense_posteriors(fdd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_posterior, "MODE_FLOOR", 1e-4)
    monkeypatch.setattr(paths, "DELAY_SPREAD_S", 200e-9)  # enough to be seen on four subcarriers
    link = setting(fdd=fdd, num_subcarriers=4)
    history = with_noise(model_links(link, 2, 2, seed=26)[0], 0.2, 27)
    predictor = PathEb(link, 2)
    analysis = predictor.analyse(history, torch.full((2,), 0.2))
    grid, basis = predictor.grid, predictor.basis
    past, ahead = (w.to(torch.complex128) for w in (basis.atoms, basis.future_atoms))  # [rank | horizon, d]
    snapshots = predictor.compress(history / analysis.scale.view(-1, 1, 1, 1, 1))
    seen, sent = (
        written_out(waves).to(torch.complex128)
        for waves in (grid.history_waves(analysis.position), grid.target_waves(analysis.position))
    )  # [batch, points, paths * 4]
    mean, variance = predictor.mean(analysis), predictor.variance(analysis)
    for one in range(2):
        size = grid.num_points * basis.rank
        covariance = analysis.noise_variance[one] * torch.eye(size, dtype=torch.complex128)
        cross = torch.zeros(sent.shape[1] * link.num_horizon, size, dtype=torch.complex128)
        prior = torch.zeros(sent.shape[1], dtype=torch.float64)
        for index in range(8):
            gamma = (analysis.spread[one].flatten()[index] * analysis.spectrum[one, index // 4]).double()
            atom, target = seen[one][:, [index]], sent[one][:, [index]]
            covariance += torch.kron(atom @ atom.mH, (gamma * past) @ past.mH)
            cross += torch.kron(target @ atom.mH, (gamma * ahead) @ past.mH)
            prior += target[:, 0].abs().square() * gamma.sum()
        gain = torch.linalg.solve(covariance, cross.mH).mH
        left = (prior.repeat_interleave(link.num_horizon) - (gain * cross.conj()).sum(1).real).float()
        fields = gain @ snapshots[one].transpose(1, 2).flatten(0, 1).to(torch.complex128)

        def as_links(value: torch.Tensor) -> torch.Tensor:
            return grid.links(value.view(1, -1, link.num_horizon, value.shape[1]).transpose(2, 3))[0]

        scale = analysis.scale[one]
        expected = as_links(fields.to(torch.complex64)) * scale
        assert (mean[one] - expected).norm() < 1e-3 * expected.norm()
        expected_variance = as_links(left[:, None].expand(-1, 2)) * scale.square()
        assert torch.allclose(variance[one], expected_variance, rtol=1e-3)


def written_out(waves: PathWaves) -> torch.Tensor:
    """All atoms as columns, as ``synthesise`` answers unit coefficients: [batch, points, paths * 4]."""
    batch, num_paths = waves.subcarriers.shape[:2]
    units = torch.eye(num_paths * 4, dtype=torch.complex64).view(1, num_paths, 4, -1)
    return waves.synthesise(units.expand(batch, -1, -1, -1))
