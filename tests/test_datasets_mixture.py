"""The settings of a mixture: spread over every axis, drawable, and the same each time."""

import warnings
from collections import Counter
from dataclasses import replace

import pytest

from airlam.datasets.mixture import (
    MAX_COEFFICIENTS,
    MAX_DOPPLER_CYCLES,
    MAX_HISTORY_CYCLES,
    SITES,
    draw_settings,
)
from airlam.datasets.stochastic.synthesis import draw_drops
from airlam.errors import SpecError
from airlam.radio.channel import PredictionSetting
from airlam.specs import DatasetSpec, MixtureSpec, parse_spec, spec_to_toml
from airlam.specs.pretraining import MIXTURE_CHANNELS

MIXTURE = MixtureSpec()
SETTINGS = draw_settings(MIXTURE)


def test_every_channel_comes_in_turn_and_every_value_about_as_often() -> None:
    channels = [setting.name.partition("_")[2] for setting in SETTINGS]
    assert channels == list(MIXTURE_CHANNELS) * 3
    histories = Counter(setting.prediction.num_history for setting in SETTINGS)
    assert set(histories) == set(MIXTURE.num_history)
    assert max(histories.values()) - min(histories.values()) <= 1
    shapes = Counter((s.dataset.base_station.num_rows, s.dataset.base_station.num_cols) for s in SETTINGS)
    assert set(shapes) == set(MIXTURE.array_shapes)


def test_the_same_spec_gives_the_same_settings_and_another_seed_others() -> None:
    assert draw_settings(MIXTURE) == SETTINGS
    assert draw_settings(replace(MIXTURE, seed=22)) != SETTINGS
    assert len({setting.dataset.seed for setting in SETTINGS}) == len(SETTINGS)


def test_no_setting_aliases_and_none_is_large() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for setting in draw_settings(replace(MIXTURE, num_settings=280, seed=5)):
            dataset, history = setting.dataset, setting.prediction.num_history
            cycles = dataset.doppler_cycles_per_slot
            assert cycles <= MAX_DOPPLER_CYCLES and cycles * history <= MAX_HISTORY_CYCLES
            pairs = dataset.base_station.num_ports * dataset.user.num_ports
            assert pairs * dataset.grid.num_uplink_subcarriers <= MAX_COEFFICIENTS
            assert dataset.grid.num_uplink_subcarriers >= 12


def test_every_setting_offers_what_is_predicted_in_it() -> None:
    for setting in SETTINGS:
        what = setting.prediction
        offered = PredictionSetting.from_dataset(
            setting.dataset, what.num_history, what.num_horizon, what.duplex
        )
        assert offered.is_fdd == (what.duplex == "fdd")
        assert setting.dataset.grid.num_slots == what.num_history + what.num_horizon
        assert parse_spec(DatasetSpec, spec_to_toml(setting.dataset)) == setting.dataset


def test_sites_keep_their_carrier_and_speeds_and_lose_their_sensors() -> None:
    sites = [setting.dataset for setting in SETTINGS if setting.dataset.site is not None]
    assert len(sites) == 3 * len(SITES)
    for dataset in sites:
        assert not dataset.sensors.present
        assert dataset.channel.carrier_frequency_hz in (3.5e9, 28e9)


@pytest.mark.parametrize("index", [0, 6])
def test_settings_can_be_drawn(index: int) -> None:
    dataset = SETTINGS[index].dataset
    links = draw_drops(dataset, 1, 2).links()
    assert links.shape[2] == dataset.grid.num_slots and links.shape[4] == dataset.base_station.num_ports


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_history": ()}, "num_history is empty"),
        ({"min_snr_db": 40.0}, "expected min <= max"),
        ({"train_drops": 0}, "train_drops must be at least 1"),
        ({"carrier_frequencies_hz": (float("nan"),)}, "expected a finite number"),
    ],
)
def test_impossible_mixtures_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        replace(MIXTURE, **change)  # type: ignore[arg-type]
