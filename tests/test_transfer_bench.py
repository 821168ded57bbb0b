"""Transfer: few drops are held out by groups, fine-tuning never makes the held-out ones worse, runs go on."""

import json
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from airlam.bench import few_shot, trained, transfer, transfer_targets
from airlam.bench.few_shot import ChosenLinks, choose_drops, few_shot_training, keep_the_better
from airlam.bench.kept import weights_sha256
from airlam.bench.transfer_targets import QUICK, find_targets, munich_spec, umi_spec
from airlam.errors import DataError
from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.model.storage import trainable_tensors
from airlam.radio.channel import PredictionSetting
from airlam.specs import ArraySpec, ModelSpec, PredictionSpec, SplitSizes
from airlam.tasks.channel_prediction import NoisyViews, TokenSamples, quiet, tokenise_views, with_reference

SIZES = SplitSizes(train=20, validation=0, test=20)


@pytest.mark.parametrize("per_group", [1, 10])
@pytest.mark.parametrize("num_drops", [10, 100, 1000])
def test_a_fifth_of_the_groups_is_held_out(per_group: int, num_drops: int) -> None:
    group = np.arange(1000) // per_group
    train, held_out = choose_drops(group, num_drops, seed=3)
    assert len(set(train) | set(held_out)) == len(train) + len(held_out) == num_drops
    assert not set(group[train]) & set(group[held_out])
    assert len(held_out) == num_drops // 5


def test_drops_are_spread_and_fewer_are_among_more() -> None:
    group = np.arange(200) // 10
    chosen = {n: np.concatenate(choose_drops(group, n, seed=3)) for n in (10, 20, 100)}
    assert set(chosen[10]) < set(chosen[20]) < set(chosen[100])
    assert len(set(group[chosen[10]])) == 10 and len(set(group[chosen[20]])) == 20
    assert set(choose_drops(group, 10, seed=4)[0]) != set(choose_drops(group, 10, seed=3)[0])


def test_a_single_drive_is_split_by_its_places() -> None:
    train, held_out = choose_drops(np.zeros(10, dtype=np.int64), 10, seed=0)
    assert (len(train), len(held_out)) == (8, 2)


def test_more_drops_get_more_steps() -> None:
    specs = [few_shot_training(n, 20.0) for n in (1, 10, 100, 1000)]
    assert all(a.num_steps < b.num_steps for a, b in pairwise(specs))
    for spec in specs:
        assert spec.num_steps // spec.validation_every_steps >= few_shot.VALIDATIONS > spec.patience


def test_targets_are_the_lams_setting_elsewhere() -> None:
    def setting(spec: Any) -> PredictionSetting:
        return PredictionSetting.from_dataset(spec, 16, 4, "tdd")

    umi, home = umi_spec(SIZES), trained.dataset_spec("uma_omni", SIZES, seed=1)
    assert setting(umi) == setting(home) and umi.channel.model == "umi" and umi.channel.los == "nlos"
    munich = munich_spec(SIZES)
    assert setting(munich).history_frequencies_hz == setting(home).history_frequencies_hz
    assert not munich.sensors.present
    assert transfer_targets._groups(munich, 20).tolist() == [0] * 10 + [1] * 10
    assert transfer_targets._groups(umi, 3).tolist() == [0, 1, 2]


SETTING = PredictionSetting(
    base_station=ArraySpec(num_cols=2),
    num_user_antennas=1,
    history_frequencies_hz=tuple(180e3 * i for i in range(4)),
    target_frequencies_hz=tuple(180e3 * i for i in range(4)),
    slot_duration_s=0.5e-3,
    num_history=4,
    num_horizon=1,
    max_doppler_hz=200.0,
)


class Waves:
    """One plane wave a link; implements ``LinkSource``."""

    def __init__(self) -> None:
        self.setting, self.links_per_drop = SETTING, 1

    def __len__(self) -> int:
        return 12

    def read(self, indices: np.ndarray) -> torch.Tensor:
        pace = 0.1 * torch.from_numpy(indices)[:, None, None, None, None] + 0.2
        return torch.polar(torch.ones(1), pace * torch.arange(5)[:, None, None, None]).repeat(1, 1, 1, 2, 4)

    def speeds_m_per_s(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(indices).float()


def tiny_lam(folder: Path) -> tuple[LAM, TokenSamples]:
    lam = lam_for(ModelSpec(backbone="mlp", num_layers=1, tokenizer="patch", tuning="scratch"), SETTING, 0)
    spec = PredictionSpec(num_history=4, num_horizon=1)
    views = NoisyViews(source=Waves(), spec=spec, num_samples=8, seed=0, augment=False)
    return lam, with_reference(lam, tokenise_views(lam.tokenizer, views, folder, "tokens", quiet))


def test_chosen_links_are_those_of_the_source() -> None:
    chosen = ChosenLinks(Waves(), np.array([7, 2, 5]))
    assert len(chosen) == 3 and chosen.speeds_m_per_s(np.array([2, 0])).tolist() == [5.0, 7.0]
    assert torch.equal(chosen.read(np.array([1])), Waves().read(np.array([2])))


def test_the_better_weights_stay(tmp_path: Path) -> None:
    lam, samples = tiny_lam(tmp_path)
    good = {name: value.clone() for name, value in trainable_tensors(lam).items()}
    fresh = weights_sha256(lam)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lam.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    bad = {name: value.clone() for name, value in trainable_tensors(lam).items()}
    spoilt = keep_the_better(lam, good, samples)
    assert not spoilt["gained"] and spoilt["loss_after"] > spoilt["loss_before"]
    assert weights_sha256(lam) == fresh
    helped = keep_the_better(lam, bad, samples)  # now it starts from the bad ones
    assert helped == {
        "loss_before": spoilt["loss_after"],
        "loss_after": spoilt["loss_before"],
        "gained": True,
    }
    assert weights_sha256(lam) == fresh


def test_without_a_gain_the_old_weights_stay(tmp_path: Path) -> None:
    lam, samples = tiny_lam(tmp_path)
    same = {name: value.clone() for name, value in trainable_tensors(lam).items()}
    assert not keep_the_better(lam, same, samples)["gained"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(cache: Path) -> dict[str, Any]:
    """What a run gives that nothing interrupts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRLAM_CACHE", str(cache))
        return transfer.run(quick=True, data=None, on_progress=quiet)


def test_the_table_names_its_figures(whole: dict[str, Any]) -> None:
    json.dumps(whole, allow_nan=False)
    assert set(whole["settings"]["skipped"]) == {"munich", "quadriga"}
    figures = whole["figures"]
    for snr in (10, 20):
        rows = {r["predictor"]: r for r in whole["rows"] if r["snr_db"] == snr}
        best = min(r["nmse_pooled"]["value"] for r in rows.values() if r["kind"] == "classical")
        assert figures[f"umi_nlos.{snr}db.best_classical"] == best
        assert rows["zero_shot"]["over_zero_shot"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        for name in ("zero_shot", "few_shot_5", "few_shot_10"):
            ratio = figures[f"umi_nlos.{snr}db.{name}"] / best
            assert figures[f"umi_nlos.{snr}db.{name}_over_best_classical"] == pytest.approx(ratio)
        note = rows["few_shot_10"]["fine_tuning"]
        assert (note["num_drops"], note["num_held_out"]) == (10, 2)
        if not note["gained"]:
            assert rows["few_shot_10"]["over_zero_shot"]["value"] == 1.0


def test_an_interrupted_run_ends_as_one_that_was_not(
    monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    (tmp_path / "transfer" / "quick").mkdir(parents=True)
    (tmp_path / "transfer" / "datasets").symlink_to(cache / "transfer" / "datasets")
    monkeypatch.setenv("AIRLAM_CACHE", str(tmp_path))
    with pytest.raises(InterruptedError):
        transfer.run(quick=True, data=None, on_progress=stop_in_the_second_training)
    doings: list[str] = []
    resumed = transfer.run(quick=True, data=None, on_progress=lambda what, *_: doings.append(what))
    assert resumed["figures"] == whole["figures"]
    assert "umi_nlos: few_shot_10" in doings and "umi_nlos: few_shot_5" not in doings
    assert not list((tmp_path / "transfer" / "quick" / "umi_nlos").glob("work-*"))


def stop_in_the_second_training(what: str, done: int, *_: object) -> None:
    if what == "umi_nlos: few_shot_10" and done == 2:
        raise InterruptedError


def test_munich_needs_llvm(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("AIRLAM_CACHE", str(cache))
    monkeypatch.setattr(transfer_targets, "good_llvm", lambda: None)
    with ExitStack() as stack:
        targets, skipped = find_targets(replace(QUICK, test_drives=1), None, stack, quiet)
    assert [target.name for target in targets] == ["umi_nlos"] and "LLVM 17" in skipped["munich"]


def test_a_quadriga_set_takes_its_few_drops_from_the_file_beside_it(
    monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRLAM_CACHE", str(cache))
    for name, users in (("set_dev.npz", 2), ("set_train.npz", 3)):
        write_waves(tmp_path / name, users)
    with ExitStack() as stack:
        targets, skipped = find_targets(QUICK, tmp_path / "set_dev.npz", stack, quiet)
        quadriga = targets[-1]
        assert (quadriga.name, len(quadriga.few), len(quadriga.test)) == ("quadriga", 6, 4)
        assert "quadriga" not in skipped
        speeds_kmh = 3.6 * quadriga.test.speeds_m_per_s(np.arange(4))
        assert torch.allclose(speeds_kmh, torch.tensor([50.0, 50.0, 100.0, 100.0]))
    (tmp_path / "set_train.npz").unlink()
    with ExitStack() as stack, pytest.raises(DataError, match=r"_train\.npz is not there"):
        find_targets(QUICK, tmp_path / "set_dev.npz", stack, quiet)


def write_waves(path: Path, num_users: int) -> None:
    """A file in the layout of the QuaDRiGa sets, of waves at the speeds 50 and 100 km/h."""
    values = np.ones((2, num_users, 24, 96, 32, 2), dtype=np.float16)
    np.savez(
        path,
        H_his=values[:, :, :16, :48],
        H_pre=values[:, :, 16:20, :48],
        H_D=values[:, :, 16:20, 48:],
        speeds_kmh=np.array([50, 100]),
        scale=1.0,
    )
