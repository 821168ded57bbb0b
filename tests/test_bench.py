"""Benchmarks print one JSON object with the figures that are promised."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airlam import cli
from airlam.bench import trained
from airlam.datasets.stochastic.synthesis import draw_drops
from airlam.datasets.store import ChannelDataset, write_dataset
from airlam.errors import DataError
from airlam.radio.prediction.path_eb import PathEb
from airlam.specs import SplitSizes
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
    for setting in ("uma_directional", "uma_omni"):
        for snr in (0, 10, 20, 30):
            figures = {
                kind: result["figures"][f"{setting}.{snr}db.{kind}"]
                for kind in ("best_classical", "lam", "best_learned_peer", "genie")
            }
            assert figures["genie"] < figures["best_classical"] < figures["best_learned_peer"]
    predictors = {row["predictor"] for row in result["rows"]}
    assert predictors >= {"hold", "pad", "denoise_ls", "path_eb", "lam", "genie", *trained.PEERS}


def test_foreign_data_is_scored_as_published(
    monkeypatch: Any, capsys: Any, cache: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRLAM_CACHE", str(cache))
    if not (cache / "models" / "quick").exists():
        bench(monkeypatch, capsys, "prediction", "--quick", "--train")
    generator = np.random.default_rng(0)
    for name, users in (("set_dev.npz", 2), ("set_train.npz", 4)):
        write_waves(tmp_path / name, users, generator)
    result = bench(monkeypatch, capsys, "prediction", "--quick", "--data", str(tmp_path / "set_dev.npz"))
    figures = result["figures"]
    # noise 18 dB down on the target is a floor that no predictor can go below
    floor = 10**-1.8 / (1 + 10**-1.8)
    assert figures["data.as_published.path_eb"] == pytest.approx(floor, rel=0.3)
    assert figures["data.clean.path_eb"] < figures["data.as_published.path_eb"] - 0.5 * floor
    assert figures["data.as_published.hold"] > 0.5
    with pytest.raises(DataError, match=r"_train\.npz"):
        (tmp_path / "set_train.npz").unlink()
        monkeypatch.setattr(
            sys, "argv", ["airlam", "bench", "prediction", "--quick", "--data", str(tmp_path / "set_dev.npz")]
        )
        cli.app(standalone_mode=False)


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
    models = trained.load_models(trained.shipped_folder(), source.setting)
    assert [model.name for model in models] == [trained.LAM, *trained.PEERS]
    comparison = compare([*models, PathEb(source.setting)], source, [10.0], quiet)
    nmse = {
        name: float(s.clean.error.sum() / s.clean.energy.sum()) for name, s in comparison.scored[10.0].items()
    }
    assert nmse["lam"] < nmse["path_eb"] < min(nmse[peer] for peer in trained.PEERS)
    sizes = trained.trainable_of(models)
    assert all(abs(size / sizes[trained.LAM] - 1) < 0.1 for size in sizes.values()), sizes
