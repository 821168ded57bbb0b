"""Samples are what they claim to be, and a LAM that has learned nothing predicts what its physics does."""

import itertools
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from airlam.datasets.catalog import packaged_spec
from airlam.datasets.stochastic.synthesis import draw_drops
from airlam.datasets.store import ChannelDataset, write_dataset
from airlam.errors import DataError
from airlam.model.build import lam_for
from airlam.radio import path_search, paths
from airlam.radio.channel import PredictionSetting
from airlam.radio.paths import PathGrid
from airlam.radio.prediction.path_eb import PathEb
from airlam.specs import (
    ArraySpec,
    DatasetSpec,
    ModelSpec,
    PredictionSpec,
    spec_from_dict,
    spec_to_dict,
)
from airlam.tasks.channel_prediction import (
    DatasetLinks,
    LamPredictor,
    MixedLinks,
    NoisyViews,
    nmse_of,
    prediction_loss,
    quiet,
    reflect,
    split_links,
    tokenise_views,
    with_reference,
)
from airlam.tasks.comparison import compare, observe
from airlam.tokens.path import NUM_EXACT, NUM_ITERATIONS

SPEC = PredictionSpec(num_history=8, num_horizon=2, min_snr_db=5.0, max_snr_db=15.0)
MODEL = ModelSpec(backbone="small", num_layers=1, num_paths=6)
KEEPING = (paths._history_axes, paths._move_factors, path_search._search_grid)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ChannelDataset:
    values = spec_to_dict(packaged_spec("quickstart"))
    values |= {"num_users": 2, "drops": {"train": 12, "validation": 4, "test": 6}}
    values["grid"] |= {"num_downlink_subcarriers": 24}
    spec = spec_from_dict(DatasetSpec, values)
    path = tmp_path_factory.mktemp("data") / "d.h5"
    sizes = {"train": 12, "validation": 4, "test": 6}
    splits = {split: draw_drops(spec, seed, size) for seed, (split, size) in enumerate(sizes.items())}
    write_dataset(path, spec, splits, "test")
    return ChannelDataset.open(path)


@pytest.fixture
def links(dataset: ChannelDataset) -> DatasetLinks:
    return DatasetLinks(dataset, "train", SPEC)


def test_every_user_of_every_drop_is_a_link(dataset: ChannelDataset, links: DatasetLinks) -> None:
    assert len(links) == 24
    whole = dataset.batch("train", slice(None)).links()
    assert torch.equal(
        links.read(np.array([5, 0, 23])), torch.stack([whole[2, 1], whole[0, 0], whole[11, 1]])
    )
    speeds = dataset.batch("train", slice(None)).speed_m_per_s
    assert torch.equal(links.speeds_m_per_s(np.array([5, 0])), torch.stack([speeds[2, 1], speeds[0, 0]]))


@pytest.mark.parametrize("duplex", ["tdd", "fdd"])
def test_history_and_future_come_from_their_slots_and_bands(dataset: ChannelDataset, duplex: str) -> None:
    setting = PredictionSetting.from_dataset(dataset.spec, 8, 2, duplex)
    clean = dataset.batch("test", slice(None)).links()[:, 0]
    history, future = split_links(clean, setting)
    band = slice(24, 48) if duplex == "fdd" else slice(24)
    assert torch.equal(history, clean[:, :8, ..., :24]) and torch.equal(future, clean[:, 8:10, ..., band])


def test_a_sample_is_the_same_whenever_and_with_whomever_it_is_drawn(links: DatasetLinks) -> None:
    views = NoisyViews(source=links, spec=SPEC, num_samples=50, seed=3)
    together = views.batch(torch.tensor([7, 31, 2]))
    alone = views.batch(torch.tensor([31]))
    assert torch.equal(together.history[1:2], alone.history)
    other = NoisyViews(source=links, spec=SPEC, num_samples=50, seed=4).batch(torch.tensor([31]))
    assert not torch.equal(other.history, alone.history)


def test_the_noise_has_the_variance_it_is_said_to_have(links: DatasetLinks) -> None:
    views = NoisyViews(source=links, spec=SPEC, num_samples=400, seed=3, augment=False)
    samples = views.batch(torch.arange(64))
    assert ((samples.snr_db >= 5) & (samples.snr_db <= 15)).all()
    loud = NoisyViews(
        source=links,
        spec=PredictionSpec(num_history=8, num_horizon=2, min_snr_db=-40.0, max_snr_db=-40.0),
        num_samples=8,
        seed=3,
        augment=False,
    ).batch(torch.arange(8))
    measured = loud.history.abs().square().mean(dim=(1, 2, 3, 4))
    assert torch.allclose(measured, loud.noise_variance, rtol=0.1)


def test_fewer_ports_keep_the_shape_of_a_link(links: DatasetLinks) -> None:
    samples = NoisyViews(source=links, spec=SPEC, num_samples=8, seed=3, num_ports=4).batch(torch.arange(3))
    assert samples.history.shape == (3, 8, 1, 4, 24) and samples.future.shape == (3, 2, 1, 4, 24)


class Fixed:
    """A generator that draws what it is told."""

    def __init__(self, values: tuple[float, ...]) -> None:
        self.values = np.array(values)

    def random(self, _: int) -> np.ndarray:
        return self.values


@pytest.mark.parametrize("draws", list(itertools.product((0.1, 0.9), repeat=3)))
def test_a_reflected_plane_wave_is_a_plane_wave(links: DatasetLinks, draws: tuple[float, ...]) -> None:
    array = ArraySpec(num_rows=3, num_cols=2, polarization="dual", polarization_type="cross")
    setting = PredictionSetting(
        base_station=array,
        num_user_antennas=1,
        history_frequencies_hz=tuple(range(5)),
        target_frequencies_hz=tuple(range(5)),
        slot_duration_s=1e-3,
        num_history=4,
        num_horizon=2,
        max_doppler_hz=100.0,
    )
    t, p, c, r, f = torch.meshgrid(*map(torch.arange, (6, 2, 2, 3, 5)), indexing="ij")
    wave = torch.exp(1j * (0.3 * t + 0.7 * c - 0.4 * r - 0.9 * f)) * torch.tensor([1.0, 2.0])[p]
    link = wave.reshape(6, 1, 12, 5).to(torch.complex64)
    turned = reflect(link, setting, Fixed(draws)).reshape(6, 2, 2, 3, 5)  # type: ignore[arg-type]
    for axis in (0, 2, 3, 4):  # the phase advances evenly along every axis, so it is still one plane wave
        size = turned.shape[axis]
        ratio = turned.narrow(axis, 1, size - 1) / turned.narrow(axis, 0, size - 1)
        assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), atol=1e-5)
    step_in_frequency = (turned[..., 1] / turned[..., 0]).angle()
    assert torch.allclose(step_in_frequency, torch.tensor(-0.9), atol=1e-5)  # delays stay positive


def test_mixed_sources_are_read_each_from_its_own(dataset: ChannelDataset, links: DatasetLinks) -> None:
    others = DatasetLinks(dataset, "test", SPEC)
    mixed = MixedLinks([links, others])
    assert len(mixed) == 36
    got = mixed.read(np.array([30, 1, 24]))
    assert torch.equal(got[1], links.read(np.array([1]))[0])
    assert torch.equal(got[[0, 2]], others.read(np.array([6, 0])))
    fdd = DatasetLinks(dataset, "test", PredictionSpec(num_history=8, num_horizon=2, duplex="fdd"))
    with pytest.raises(DataError, match="differ in grid"):
        MixedLinks([links, fdd])
    assert mixed.links_per_drop == 2
    others.links_per_drop = 1
    with pytest.raises(DataError, match="differ in users per drop"):
        MixedLinks([links, others])


def test_tokens_that_are_on_disk_are_not_made_again(links: DatasetLinks, tmp_path: Path) -> None:
    lam = lam_for(MODEL, links.setting, seed=1)
    views = NoisyViews(source=links, spec=SPEC, num_samples=200, seed=3)
    first = tokenise_views(lam.tokenizer, views, tmp_path, "", quiet)
    chunks = sorted(tmp_path.iterdir())
    assert len(chunks) == 2 and len(first) == 200
    stamp = chunks[0].stat().st_mtime_ns
    chunks[1].unlink()
    again = tokenise_views(lam.tokenizer, views, tmp_path, "", quiet)
    assert chunks[0].stat().st_mtime_ns == stamp
    assert torch.equal(first.tokens.features, again.tokens.features)


@pytest.mark.parametrize("duplex", ["tdd", "fdd"])
def test_an_untrained_lam_predicts_what_path_eb_does(dataset: ChannelDataset, duplex: str) -> None:
    spec = PredictionSpec(num_history=8, num_horizon=2, duplex=duplex)  # type: ignore[arg-type]
    source = DatasetLinks(dataset, "test", spec)
    lam = lam_for(MODEL, source.setting, seed=1).eval()
    seen = observe(source.read(np.arange(4)), source, 10.0, 0)
    mine = LamPredictor(tokenizer=lam.tokenizer, lam=lam).predict(seen.history, seen.noise_variance)
    other = PathEb(source.setting, 6, NUM_ITERATIONS, NUM_EXACT).predict(seen.history, seen.noise_variance)
    assert torch.linalg.vector_norm(mine - other) < 1e-4 * torch.linalg.vector_norm(other)


def test_the_loss_is_the_error_of_the_channel_itself(links: DatasetLinks, tmp_path: Path) -> None:
    lam = lam_for(MODEL, links.setting, seed=1).eval()
    torch.nn.init.normal_(lam.heads["channel_prediction"].correction.weight, std=0.05)  # type: ignore[union-attr, arg-type]
    views = NoisyViews(source=links, spec=SPEC, num_samples=6, seed=3)
    samples = with_reference(lam, tokenise_views(lam.tokenizer, views, tmp_path, "", quiet))
    raw = views.batch(torch.arange(6))
    predicted = LamPredictor(tokenizer=lam.tokenizer, lam=lam).predict(raw.history, raw.noise_variance)
    error = (predicted - raw.future).abs().square().sum((1, 2, 3, 4))
    nmse = error / raw.future.abs().square().sum((1, 2, 3, 4))
    with torch.no_grad():
        assert torch.allclose(nmse_of(lam, samples.tokens), nmse, rtol=1e-3)
        loss = prediction_loss(lam, samples.tokens)
    reference = samples.tokens.context["reference_nmse"]
    assert torch.allclose(loss, torch.log(nmse + 1e-5) + 0.5 * nmse / reference, atol=1e-3)


def test_comparison_gives_all_the_same_noise_and_keeps_order(links: DatasetLinks) -> None:
    class Echo:
        """Says what it heard last, and remembers what it heard."""

        def __init__(self, name: str) -> None:
            self.name, self.heard = name, []  # type: ignore[var-annotated]

        def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
            self.heard.append(history)
            return history[:, -1:].expand(-1, 2, -1, -1, -1)

    first, second = Echo("first"), Echo("second")
    result = compare([first, second], links, [0.0, 20.0], quiet)
    assert all(torch.equal(a, b) for a, b in zip(first.heard, second.heard, strict=True))
    at_0, at_20 = result.scored[0.0]["first"], result.scored[20.0]["first"]
    assert torch.equal(at_0.clean.error, result.scored[0.0]["second"].clean.error)
    assert at_0.clean.error.sum() > at_20.clean.error.sum()
    assert at_0.noisy.error.sum() > at_0.clean.error.sum()  # the target's own noise comes on top
    assert result.best(["first", "second"], 0.0) == "first"
    assert len(result.speed_m_per_s) == len(links) == len(at_0.clean)
    for errors in (at_0.clean, at_20.noisy):
        assert errors.drop is not None
        assert errors.drop.tolist() == [d for d in range(12) for _ in range(2)]  # two users each


def test_noise_against_the_set_leaves_weak_links_worse_off(links: DatasetLinks) -> None:
    clean = links.read(np.arange(8))
    power = clean[:, :8, ..., :24].abs().square().mean(dim=(1, 2, 3, 4))
    seen = observe(clean, links, 10.0, 0, power.mean().expand(8))
    assert torch.allclose(seen.noise_variance, (power.mean() / 10).expand(8))
    assert torch.allclose(observe(clean, links, 10.0, 0).noise_variance, power / 10)


def test_what_does_not_fit_is_refused(dataset: ChannelDataset) -> None:
    with pytest.raises(DataError, match="12 slots, fewer than the 16 of history plus 4"):
        DatasetLinks(dataset, "train", PredictionSpec())
    spec = spec_from_dict(DatasetSpec, spec_to_dict(packaged_spec("quickstart")))
    with pytest.raises(DataError, match="no downlink band"):
        PredictionSetting.from_dataset(spec, 8, 2, "fdd")


def test_channels_with_nan_are_refused_by_name(dataset: ChannelDataset, tmp_path: Path) -> None:
    """A file is only ever written with finite channels, but may have been damaged since."""
    batch = dataset.batch("test", slice(None))
    values = spec_to_dict(dataset.spec) | {"drops": {"train": 0, "validation": 0, "test": 6}}
    write_dataset(tmp_path / "n.h5", spec_from_dict(DatasetSpec, values), {"test": batch}, "test")
    with h5py.File(tmp_path / "n.h5", "r+") as file:
        file["test/h_freq"][3, 0, 0, 0, 0, 0, 0] = float("nan")
    source = DatasetLinks(ChannelDataset.open(tmp_path / "n.h5"), "test", SPEC)
    with pytest.raises(DataError, match="NaN or infinite channels in split test"):
        source.read(np.arange(12))


@pytest.mark.parametrize("tokenizer", ["path", "patch"])
@pytest.mark.parametrize("backbone", ["airlam", "small"])
def test_what_predicting_keeps_for_later_can_be_trained_with(
    links: DatasetLinks, tokenizer: str, backbone: str
) -> None:
    """Prediction runs without autograd; grids and masks that it made and kept must not break a gradient."""
    setting = links.setting
    spec = replace(MODEL, backbone=backbone, tokenizer=tokenizer)
    for keeping in KEEPING:
        keeping.cache_clear()
    lam = lam_for(spec, setting, seed=0)
    samples = NoisyViews(source=links, spec=SPEC, num_samples=4, seed=3).batch(torch.arange(4))
    for predictor in (LamPredictor.of(lam), PathEb(setting)):
        assert not predictor.predict(samples.history, samples.noise_variance).is_inference()
    for keeping in KEEPING:
        kept = keeping(PathGrid.of(setting).shape, torch.device("cpu"))
        tensors = kept if isinstance(kept, tuple) else [getattr(kept, each.name) for each in fields(kept)]
        assert not any(torch.is_tensor(each) and each.is_inference() for each in tensors)
    tokens = lam.tokenizer.with_target(
        lam.tokenizer.tokenise(samples.history, samples.noise_variance), samples.future
    )
    nmse_of(lam.train(), tokens).mean().backward()
    gradients = [each.grad for each in lam.parameters() if each.requires_grad]
    assert any(each is not None and each.abs().sum() > 0 for each in gradients)
