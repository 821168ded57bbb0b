"""Benchmarks print one JSON object with the figures that are promised."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from airlam import cli
from airlam.bench import ablation_settings, trained
from airlam.bench.ablation_variants import QUICK
from airlam.bench.prediction import csi4cast, quadriga, sca, sumrate
from airlam.bench.prediction.quadriga import mean_over_speeds
from airlam.bench.prediction.sources import drawn_links, load_foreign
from airlam.bench.prediction.table import RATIO, Row
from airlam.datasets.catalog import CSI4CAST_CELLS
from airlam.datasets.generate import generate
from airlam.datasets.stochastic.synthesis import draw_drops
from airlam.datasets.store import ChannelDataset, write_dataset
from airlam.errors import DataError, SpecError
from airlam.model.build import lam_for
from airlam.radio.metrics import LinkErrors
from airlam.radio.prediction.path_eb import PathEb
from airlam.specs import ModelSpec, SplitSizes
from airlam.tasks.channel_prediction import DatasetLinks, quiet
from airlam.tasks.comparison import compare


def bench(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["airlam", "bench", *arguments, "--json"])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert not leaving.value.code
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(result) == {"bench", "machine", "settings", "figures", "rows"}
    assert all(isinstance(value, float | int) for value in result["figures"].values())
    return result


def test_dataset_io(monkeypatch: Any, capsys: Any) -> None:
    result = bench(monkeypatch, capsys, "dataset-io", "--quick")
    assert result["figures"]["ratio_to_raw_read"] > 0


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_prediction_trains_measures_and_bounds(monkeypatch: Any, capsys: Any, cache: Path) -> None:
    monkeypatch.setenv("AIRLAM_CACHE", str(cache))
    with pytest.raises(DataError, match="--train"):
        trained.models_folder(trained.QUICK)
    result = bench(monkeypatch, capsys, "prediction", "--quick", "--train")
    figures, rows = result["figures"], result["rows"]
    for setting in ("uma_directional", "uma_omni"):
        for snr in (0, 10, 20, 30):
            found = {
                kind: figures[f"{setting}.{snr}db.{kind}"]
                for kind in ("best_classical", "lam", "best_learned_peer", "genie")
            }
            assert found["genie"] < found["best_classical"] < found["best_learned_peer"]
    predictors = {row["predictor"] for row in rows}
    assert predictors >= {"hold", "pad", "denoise_ls", "path_eb", "lam", "genie", *trained.PEERS}
    assert result["settings"]["skipped"] == {"quadriga": "no --data", "quadriga_fdd": "no --data"}
    assert_every_setting_is_there(figures, rows)


def assert_every_setting_is_there(figures: dict[str, float], rows: list[dict[str, Any]]) -> None:
    assert set(rows[0]) == {field.name for field in dataclasses.fields(Row)}
    assert all(set(row) == set(rows[0]) for row in rows)
    ratios = {
        (row["setting"], row["snr_db"], row["group"]): row["value"] for row in rows if row["metric"] == RATIO
    }
    cells = {setting: len([key for key in ratios if key[0] == setting]) for setting, _, _ in ratios}
    assert cells["csi4cast"] == figures["csi4cast.cells"] == 27
    assert cells["sca"] == 3 and cells["uma_omni"] > 4  # speed groups at four SNRs
    assert figures["worst_cell_lam_over_best_classical"] == max(ratios.values())
    worst = next(row for row in rows if row["metric"] == "worst_cell_lam_over_best_classical")
    assert ratios[worst["setting"], worst["snr_db"], worst["group"]] == worst["value"]
    over_bar = [row["value"] for row in rows if row["metric"] == "over_bar"]
    assert figures["csi4cast.cells_won"] == sum(value < 1 for value in over_bar)
    for speed in (0, 30, 60):
        assert figures[f"sca.{speed}kmh.db"] < 3
    assert figures["sumrate_60kmh.hold"] < figures["sumrate_60kmh.best_classical"]
    assert figures["sumrate_60kmh.best_classical"] < figures["sumrate_60kmh.genie"]
    assert figures["latency_ms.batch1"] > 0 and figures["latency_ms.batch64_per_user"] > 0


def test_foreign_data_is_scored_as_published(
    monkeypatch: Any, capsys: Any, cache: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRLAM_CACHE", str(cache))
    if not (cache / "models" / "quick").exists():
        trained.train_models(trained.QUICK, quiet)
    generator = np.random.default_rng(0)
    for name, users in (("set_dev.npz", 2), ("set_train.npz", 4)):
        write_waves(tmp_path / name, users, generator)
    command = [
        "prediction",
        "--quick",
        "--only",
        "quadriga,quadriga_fdd",
        "--data",
        str(tmp_path / "set_dev.npz"),
    ]
    result = bench(monkeypatch, capsys, *command)
    figures = result["figures"]
    # noise 18 dB down on the target is a floor that no predictor can go below
    floor = 10**-1.8 / (1 + 10**-1.8)
    assert figures["quadriga.as_published.path_eb"] == pytest.approx(floor, rel=0.3)
    assert figures["quadriga.clean.path_eb"] < figures["quadriga.as_published.path_eb"] - 0.5 * floor
    assert figures["quadriga.as_published.hold"] > 0.5
    assert (
        figures["quadriga.trainable_parameters"]
        == trained.read_card(cache / "models" / "quick")["trainable"]["lam"]
    )
    at_100 = [
        row["value"]
        for row in result["rows"]
        if (row["predictor"], row["group"], row["metric"])
        == ("lam", "speed_kmh=100", "nmse_pooled_noisy_target")
    ]
    assert at_100 == [figures["quadriga.as_published.lam_100kmh"]]
    # one plane wave, no noise: its delay carries the history over to the downlink
    assert figures["quadriga_fdd.path_eb"] < 0.02 < 0.5 < figures["quadriga_fdd.hold"]
    assert "worst_cell_lam_over_best_classical" not in figures  # foreign data have no cells of Sionna's
    assert_variants_stand_beside(figures, tmp_path / "set_dev.npz")
    (tmp_path / "set_train.npz").unlink()
    with pytest.raises(DataError, match=r"_train\.npz"):
        monkeypatch.setattr(sys, "argv", ["airlam", "bench", *command])
        cli.app(standalone_mode=False)


def assert_variants_stand_beside(figures: dict[str, float], data: Path) -> None:
    """The ablation's variants are measured on the same links: everyone else's figures are the same."""
    setting = load_foreign(data, "tdd")[0].setting
    spec = ModelSpec(backbone="mlp", num_layers=1, tuning="scratch")
    patch = dataclasses.replace(spec, tokenizer="patch")
    lams = {"path": lam_for(spec, setting, seed=0), "patch": lam_for(patch, setting, seed=0)}
    chosen = (quadriga.TDD, quadriga.FDD)
    parts = ablation_settings.measure(chosen, lams, QUICK, data, quiet)
    found = {name: value for part in parts for name, value in part.figures.items()}
    for view in ("quadriga.as_published", "quadriga.clean", "quadriga_fdd"):
        assert found[f"{view}.hold"] == figures[f"{view}.hold"]
        assert found[f"{view}.path_eb"] == figures[f"{view}.path_eb"]
        assert found[f"{view}.path"] == pytest.approx(figures[f"{view}.path_eb"], rel=0.2, abs=1e-3)
        ratio = found[f"{view}.path"] / found[f"{view}.best_classical"]
        assert found[f"{view}.path_over_best_classical"] == pytest.approx(ratio)
    # patches that learned nothing hold the last slot; on other frequencies they say nothing
    assert found["quadriga.clean.patch"] == pytest.approx(figures["quadriga.clean.hold"], rel=1e-3)
    assert found["quadriga_fdd.patch"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["prediction", "--only", "uma_omni,nowhere"], "nowhere"),
        (["prediction", "--only", "quadriga"], "--data"),
        (["dataset-io", "--only", "sca"], "--only"),
        (["dataset-io", "--no-peers"], "--no-peers"),
    ],
)
def test_what_cannot_be_measured_is_refused(monkeypatch: Any, arguments: list[str], complaint: str) -> None:
    monkeypatch.setattr(sys, "argv", ["airlam", "bench", *arguments, "--quick"])
    with pytest.raises(SpecError, match=complaint):
        cli.app(standalone_mode=False)


def test_a_stratified_interval_weighs_every_stratum_alike() -> None:
    energy = torch.ones(60, 2, dtype=torch.float64)
    error = torch.full((60, 2), 0.1, dtype=torch.float64)
    error[40:] = 0.3
    strata = [torch.arange(40), torch.arange(40, 60)]
    errors = LinkErrors(error=error, energy=energy)
    mean = mean_over_speeds(errors, strata)
    # no link of a stratum differs from another: nothing is left to chance
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.2, 0.2, 0.2))
    noisy = LinkErrors(error=error * torch.rand(60, 1, dtype=torch.float64), energy=energy)
    twice = LinkErrors(error=2 * noisy.error, energy=energy)
    ratio = mean_over_speeds(twice, strata, over=noisy)  # paired: the same resamples above and below
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    spread = mean_over_speeds(noisy, strata)
    assert spread.low < spread.value < spread.high


def test_csi4casts_metric_gives_every_antenna_the_same_weight() -> None:
    generator = torch.Generator().manual_seed(3)
    truth = torch.randn(5, 4, 2, 3, 6, dtype=torch.complex64, generator=generator)
    estimate = 1.1 * truth
    strong = truth * torch.tensor([1.0, 100.0])[:, None, None]  # [5, 4, 2, 3, 6]
    torch.testing.assert_close(
        csi4cast.vector_nmse(estimate, truth),
        torch.full((5, 4), 0.01, dtype=torch.float64),
        rtol=1e-4,
        atol=0,
    )
    halved = strong.clone()
    halved[:, :, 1] *= 0.5  # the strong antenna's error is a quarter, the weak one's none
    expected = torch.full((5, 4), 0.125, dtype=torch.float64)
    torch.testing.assert_close(csi4cast.vector_nmse(halved, strong), expected, rtol=1e-4, atol=0)


def test_every_cell_has_a_published_score() -> None:
    scores = [csi4cast.published_rnn(cell) for cell in CSI4CAST_CELLS]
    assert len(scores) == 27 and all(0 < score < 1 for score in scores)
    assert csi4cast.published_rnn("csi4cast_c_300ns_10mps") == 0.104


def test_drawn_links_are_those_that_generate_stores(tmp_path: Path) -> None:
    spec = dataclasses.replace(
        trained.dataset_spec("uma_omni", SplitSizes(train=0, validation=0, test=5), seed=4), shard_drops=3
    )
    generate(spec, tmp_path / "d.h5", workers=1)
    drawn = drawn_links(spec, "test", trained.PREDICTION)
    with ChannelDataset.open(tmp_path / "d.h5") as dataset:
        stored = DatasetLinks(dataset, "test", trained.PREDICTION)
        assert stored.setting == drawn.setting
        assert torch.equal(stored.read(np.arange(5)), drawn.links)
        assert torch.equal(stored.speeds_m_per_s(np.arange(5)), drawn.speed_m_per_s)


def test_averaging_a_user_who_stands_still_leaves_the_noise_over_the_looks() -> None:
    generator = torch.Generator().manual_seed(1)
    still = torch.ones(8, 1, 4, 4, 12, dtype=torch.complex64).expand(8, 24, 4, 4, 12)
    noise = 10**-0.5 * torch.randn(still.shape, dtype=still.dtype, generator=generator)
    future = sca.TimeAverage(num_horizon=6).predict(still + noise, torch.full((8,), 0.1))
    error = (future - 1).abs().square().mean()
    assert future.shape == (8, 6, 4, 4, 12)
    assert float(error) == pytest.approx(0.1 / 24, rel=0.1)


def test_a_phase_common_to_a_user_costs_no_rate_and_noise_does() -> None:
    generator = torch.Generator().manual_seed(2)
    truth = torch.randn(8, 2, 1, 16, 5, dtype=torch.complex64, generator=generator)
    perfect = sumrate.rates(truth, truth)
    assert perfect.shape == (2, 2)
    torch.testing.assert_close(sumrate.rates(1j * truth, truth), perfect)
    noisy = truth + 0.3 * torch.randn(truth.shape, dtype=truth.dtype, generator=generator)
    assert bool((sumrate.rates(noisy, truth) < perfect).all())
    # without interference four users would have log2(1 + 100 / 4 * |h|^2) each, |h|^2 about 16
    assert float(perfect.mean()) < 4 * np.log2(1 + 25 * 32)


def write_waves(path: Path, num_users: int, generator: np.random.Generator) -> None:
    """A file in the layout of the QuaDRiGa sets: one plane wave a user, near the top Doppler."""
    speeds = np.array([50, 100])
    shape = (len(speeds), num_users, 24, 96, 32)
    slots, blocks, ports = np.arange(24), np.arange(96), np.arange(32)
    cycles = (speeds / 3.6 * 2.4e9 / 3e8 * 0.5e-3)[:, None] * generator.uniform(0.8, 1.0, (1, num_users))
    phase = (
        cycles[:, :, None, None, None] * slots[:, None, None]
        - 0.02 * blocks[:, None]
        + 0.25 * (ports // 8)  # columns
        + generator.uniform(size=(len(speeds), num_users, 1, 1, 1))
    )
    channel = np.exp(2j * np.pi * phase).reshape(shape)
    values = np.stack([channel.real, channel.imag], -1).astype(np.float16)
    np.savez(
        path,
        H_his=values[:, :, :16, :48],
        H_pre=values[:, :, 16:20, :48],
        H_D=values[:, :, 16:20, 48:],
        speeds_kmh=speeds,
        scale=1.0,
    )


def test_the_shipped_models_load_and_the_lam_leads_them(tmp_path: Path) -> None:
    spec = trained.dataset_spec("uma_omni", SplitSizes(train=0, validation=0, test=32), seed=77)
    write_dataset(tmp_path / "d.h5", spec, {"test": draw_drops(spec, 77, 32)}, "test")
    source = DatasetLinks(ChannelDataset.open(tmp_path / "d.h5"), "test", trained.PREDICTION)
    folder = trained.shipped_folder()
    models = [trained.load_lam(folder, source.setting), *trained.load_peers(folder, source.setting)]
    assert [model.name for model in models] == [trained.LAM, *trained.PEERS]
    comparison = compare([*models, PathEb(source.setting)], source, [10.0], quiet)
    nmse = {
        name: float(s.clean.error.sum() / s.clean.energy.sum()) for name, s in comparison.scored[10.0].items()
    }
    assert nmse["lam"] < nmse["path_eb"] < min(nmse[peer] for peer in trained.PEERS)
    sizes = trained.trainable_of(models)
    assert all(sizes[peer] > sizes[trained.LAM] for peer in trained.PEERS), sizes
