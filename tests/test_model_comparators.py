"""Comparators: shapes for every setting, matched sizes, each port on its own, and they learn."""

from dataclasses import dataclass

import pytest
import torch

from airlam.errors import SpecError
from airlam.model.comparators import (
    COMPARATORS,
    LearnedPredictor,
    build_comparator,
    matched,
    portwise_nmse,
)
from airlam.radio.channel import PredictionSetting
from airlam.specs import ArraySpec


def setting(*, user_antennas: int = 1, num_target: int | None = None) -> PredictionSetting:
    history = tuple(180e3 * i for i in range(6))
    target = history if num_target is None else tuple(180e3 * (6 + i) for i in range(num_target))
    return PredictionSetting(
        base_station=ArraySpec(num_rows=2, num_cols=2),
        num_user_antennas=user_antennas,
        history_frequencies_hz=history,
        target_frequencies_hz=target,
        slot_duration_s=0.5e-3,
        num_history=8,
        num_horizon=3,
        max_doppler_hz=100.0,
    )


@dataclass(frozen=True)
class Links:
    history: torch.Tensor
    future: torch.Tensor


def turning(num_links: int = 4) -> Links:
    """Channels that turn by a constant phase each slot: predictable, and not by holding."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(num_links, 1, 1, 4, 6, dtype=torch.complex64, generator=generator)
    slots = torch.arange(11)[None, :, None, None, None]
    links = first * torch.polar(torch.ones(1), 0.5 * slots)
    return Links(history=links[:, :8], future=links[:, 8:])


def history(where: PredictionSetting, batch: int = 3) -> torch.Tensor:
    shape = (batch, 8, where.num_user_antennas, 4, 6)
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", COMPARATORS)
@pytest.mark.parametrize(("user_antennas", "num_target"), [(1, None), (2, None), (1, 4)])
def test_shapes(name: str, user_antennas: int, num_target: int | None) -> None:
    where = setting(user_antennas=user_antennas, num_target=num_target)
    predictor = LearnedPredictor(name, build_comparator(name, where, 8), batch_size=2)
    future = predictor.predict(history(where), torch.ones(3))
    assert future.shape == (3, 3, user_antennas, 4, num_target or 6)
    assert future.dtype == torch.complex64


@pytest.mark.parametrize("name", COMPARATORS)
def test_scale_and_order_of_ports_and_links_carry_through(name: str) -> None:
    net, past = build_comparator(name, setting(), 8).eval(), history(setting())
    future = net(past)
    torch.testing.assert_close(net(1e-4 * past), 1e-4 * future, rtol=1e-4, atol=1e-8)
    ports, links = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    torch.testing.assert_close(net(past[:, :, :, ports]), future[:, :, :, ports], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net(past[links]), future[links], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", COMPARATORS)
@pytest.mark.parametrize("num_parameters", [100_000, 2_000_000])
def test_matched_sizes(name: str, num_parameters: int) -> None:
    net = matched(name, setting(), num_parameters)
    size = sum(p.numel() for p in net.parameters())
    assert abs(size - num_parameters) < 0.1 * num_parameters


@pytest.mark.parametrize("name", COMPARATORS)
def test_each_learns_what_holding_cannot(name: str) -> None:
    links, net = turning(), build_comparator(name, setting(), 16 if name != "cnn" else 4, seed=2)
    hold = (links.history[:, -1:] - links.future).abs().square().sum() / links.future.abs().square().sum()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(80):
        optimiser.zero_grad()
        portwise_nmse(net, links).mean().backward()
        optimiser.step()
    assert portwise_nmse(net.eval(), links).mean() < 0.5 * hold


def test_a_dead_link_predicts_nothing() -> None:
    net = build_comparator("gru", setting(), 8)
    assert net(torch.zeros(1, 8, 1, 4, 6, dtype=torch.complex64)).abs().max() < 1e-15


def test_unknown_comparators_are_named() -> None:
    with pytest.raises(SpecError, match=r"no comparator 'rnm'; expected one of rnn"):
        matched("rnm", setting(), 1000)
