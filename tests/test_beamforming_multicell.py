"""Many cells, users of many antennas: the published example, limits, and agreement with the single cell."""

from pathlib import Path

import numpy as np
import pytest
import torch

from airlam.errors import SpecError
from airlam.radio.beamforming import Cells, multicell_rates_bit_per_s_per_hz, multicell_wmmse, wmmse
from airlam.radio.beamforming.multicell import matched_filters
from airlam.radio.beamforming.secular import multiplier_for_power
from airlam.radio.precoding import sum_rate_bit_per_s_per_hz

EXAMPLE = Path(__file__).parents[2] / "shared" / "data" / "gcnwmmse_3bs_9ue.npz"


def random_channel(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def random_cells(
    *, num_bs: int = 2, num_users: int = 4, num_user_ant: int = 2, num_bs_ant: int = 6, seed: int = 0
) -> Cells:
    return Cells(
        h=random_channel(3, num_bs, num_users, num_user_ant, num_bs_ant, seed=seed),
        serving_index=torch.arange(num_users) % num_bs,
        noise_variance=torch.full((num_users,), 0.1, dtype=torch.float64),
        station_power=torch.linspace(1.0, 2.0, num_bs, dtype=torch.float64),
    )


def station_powers(cells: Cells, w: torch.Tensor) -> torch.Tensor:
    return w.abs().square().sum((-2, -1)) @ cells.membership.T  # [..., num_bs]


@pytest.mark.skipif(not EXAMPLE.exists(), reason=f"{EXAMPLE.name} of lsky96/gcnwmmse is not at hand")
def test_reproduces_every_iteration_of_the_published_example() -> None:
    data = np.load(EXAMPLE)
    cells = Cells(
        h=torch.from_numpy(data["channels"]).permute(2, 0, 1, 3, 4),
        serving_index=torch.from_numpy(data["users_assign"]),
        noise_variance=torch.from_numpy(data["users_noise_pow"]),
        station_power=torch.from_numpy(data["bss_pow"]),
    )
    for num_iterations in (0, 1, 2, 5, 20, 100):
        w = multicell_wmmse(cells, num_iterations=num_iterations)
        rate = multicell_rates_bit_per_s_per_hz(cells, w).sum(-1) * np.log(2)  # the example is in nats
        expected = torch.from_numpy(data["wmmse_mrc_init"][num_iterations])
        torch.testing.assert_close(rate, expected, rtol=1e-6, atol=0)
    assert float(rate.mean()) == pytest.approx(50.626, abs=1e-3)


@pytest.mark.parametrize("num_bs_ant", [2, 6, 40])
def test_rates_never_fall_and_powers_are_kept(num_bs_ant: int) -> None:
    cells = random_cells(num_bs_ant=num_bs_ant)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    rates = []
    for num_iterations in range(0, 30, 3):
        w = multicell_wmmse(cells, num_iterations=num_iterations, weights=weights)
        rates.append((weights * multicell_rates_bit_per_s_per_hz(cells, w)).sum(-1))
        assert (station_powers(cells, w) <= cells.station_power * (1 + 1e-9)).all()
    assert torch.stack(rates).diff(dim=0).min() > -1e-9
    assert (rates[-1] > rates[0] + 1).all()


def test_one_station_and_single_antennas_are_the_single_cell() -> None:
    cells = random_cells(num_bs=1, num_users=5, num_user_ant=1)
    h = cells.h[:, 0, :, 0]  # [3, 5, 6]
    w = multicell_wmmse(cells, num_iterations=500)[..., 0].mT  # [3, 6, 5]
    other = wmmse(h, 0.1, 1.0, num_iterations=500, start=matched_filters(cells)[..., 0].mT)
    rate = sum_rate_bit_per_s_per_hz(h, w, 0.1)
    torch.testing.assert_close(rate, multicell_rates_bit_per_s_per_hz(cells, w.mT[..., None]).sum(-1))
    torch.testing.assert_close(rate, sum_rate_bit_per_s_per_hz(h, other, 0.1), rtol=0.02, atol=0)


def test_one_link_is_water_filled_over_its_singular_values() -> None:
    cells = random_cells(num_bs=1, num_users=1, num_user_ant=3)
    w = multicell_wmmse(cells, num_iterations=500)
    gains = torch.linalg.svdvals(cells.h[:, 0, 0]).square() / 0.1  # [3, 3]
    level = (1.0 + (1 / gains).sum(-1, keepdim=True)) / 3
    assert (level > 1 / gains).all()  # all streams are used
    expected = torch.log2(level * gains).sum(-1)
    torch.testing.assert_close(
        multicell_rates_bit_per_s_per_hz(cells, w).sum(-1), expected, rtol=1e-6, atol=0
    )


def test_cells_that_do_not_hear_each_other_are_apart() -> None:
    cells = random_cells()
    deaf = cells.h * cells.membership[:, :, None, None]
    apart = Cells(
        h=deaf,
        **{name: getattr(cells, name) for name in ("serving_index", "noise_variance", "station_power")},
    )
    w = multicell_wmmse(apart, num_iterations=20)
    for station in range(2):
        users = cells.serving_index == station
        alone = Cells(
            h=deaf[:, station : station + 1, users],
            serving_index=torch.zeros(2, dtype=torch.int64),
            noise_variance=cells.noise_variance[users],
            station_power=cells.station_power[station : station + 1],
        )
        torch.testing.assert_close(w[:, users], multicell_wmmse(alone, num_iterations=20))


def test_a_station_holds_power_back_where_it_only_harms() -> None:
    cells = random_cells(num_bs=2, num_users=2, num_user_ant=1, num_bs_ant=1)
    h = torch.tensor([[1.0, 10.0], [0.01, 100.0]], dtype=torch.complex128)[
        ..., None, None
    ]  # [bs, user, 1, 1]
    harmful = Cells(
        h=h,
        serving_index=torch.tensor([0, 1]),
        noise_variance=cells.noise_variance,
        station_power=torch.ones(2, dtype=torch.float64),
    )
    w = multicell_wmmse(harmful, num_iterations=500)
    assert station_powers(harmful, w).min() < 0.5


def test_the_multiplier_meets_the_power_or_is_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(50, 6, dtype=torch.float64, generator=generator).sort(-1).values
    content = torch.rand(50, 6, dtype=torch.float64, generator=generator)
    slack = (content / values.square()).sum(-1)
    for share in (1e-6, 0.5, 0.999, 1.001, 10.0):
        inverse = multiplier_for_power(values, content, share * slack)
        power = (content * inverse.square()).sum(-1)
        torch.testing.assert_close(power, min(share, 1.0) * slack)
        multiplier = 1 / inverse - values
        torch.testing.assert_close(multiplier, multiplier[:, :1].expand_as(multiplier), rtol=1e-6, atol=1e-9)


def test_directions_without_content_are_left_out() -> None:
    values = torch.tensor([1e-20, 1.0, 2.0], dtype=torch.float64)
    content = torch.tensor([1e-25, 1.0, 1.0], dtype=torch.float64)
    inverse = multiplier_for_power(values, content, torch.tensor(100.0, dtype=torch.float64))
    torch.testing.assert_close(inverse, torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64))


def test_impossible_cells_are_refused() -> None:
    cells = random_cells()
    values = {
        name: getattr(cells, name) for name in ("h", "serving_index", "noise_variance", "station_power")
    }
    with pytest.raises(SpecError, match="expected one station a user: \\[4\\]"):
        Cells(**values | {"serving_index": torch.tensor([0, 1])})
    with pytest.raises(SpecError, match="stations are 0 to 1"):
        Cells(**values | {"serving_index": torch.tensor([0, 1, 2, 0])})
    with pytest.raises(SpecError, match="station_power must be positive"):
        Cells(**values | {"station_power": torch.zeros(2)})
    with pytest.raises(SpecError, match="must not be negative, got -1"):
        multicell_wmmse(cells, num_iterations=-1)
