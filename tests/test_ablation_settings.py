"""The ablation's variants where none was trained: the same weights, beside everyone, on the same links."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from airlam.bench import ablation, ablation_settings, trained
from airlam.bench.ablation_variants import QUICK
from airlam.bench.prediction import csi4cast, sca, sumrate
from airlam.bench.prediction.sources import HeldLinks, drawn_links
from airlam.bench.prediction.table import OTHER_RATIO
from airlam.datasets.catalog import CSI4CAST_CELLS, packaged_spec
from airlam.errors import DataError, SpecError
from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.specs import ModelSpec, SplitSizes
from airlam.tasks.channel_prediction import LamPredictor, quiet
from airlam.tasks.comparison import observe

PATH = ModelSpec(backbone="mlp", num_layers=1, tuning="scratch")
PATCH = dataclasses.replace(PATH, tokenizer="patch")


@pytest.fixture(scope="module")
def uma() -> HeldLinks:
    spec = trained.dataset_spec("uma_omni", SplitSizes(train=0, validation=0, test=3), seed=1)
    return drawn_links(spec, "test", trained.PREDICTION)


@pytest.fixture(scope="module")
def scas() -> HeldLinks:
    """Another array, grid, history and horizon."""
    sizes = SplitSizes(train=0, validation=0, test=3)
    spec = dataclasses.replace(packaged_spec("sca_llm_uma"), drops=sizes, seed=2)
    return drawn_links(spec, "test", sca.PREDICTION)


def perturbed(spec: ModelSpec, links: HeldLinks) -> LAM:
    """A LAM whose head says something."""
    lam = lam_for(spec, links.setting, seed=3).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in lam.heads.parameters():
            value += 0.05 * torch.randn(value.shape, generator=generator)
    return lam


def predict(lam: LAM, links: HeldLinks) -> torch.Tensor:
    seen = observe(links.links, links, 10.0, 0)
    predictor = LamPredictor(tokenizer=lam.tokenizer, lam=lam)
    return predictor.predict(seen.history, seen.noise_variance)


@pytest.mark.parametrize("spec", [PATH, PATCH])
def test_a_lam_moved_to_where_it_was_trained_predicts_the_same(spec: ModelSpec, uma: HeldLinks) -> None:
    lam = perturbed(spec, uma)
    there = ablation_settings.moved(lam, uma.setting)
    assert torch.equal(predict(there, uma), predict(lam, uma))


def test_a_moved_lam_is_the_one_that_its_folder_gives_there(
    uma: HeldLinks, scas: HeldLinks, tmp_path: Path
) -> None:
    lam = perturbed(PATH, uma)
    lam.save(tmp_path / "lam")
    loaded = lam_for(PATH, scas.setting, seed=9).eval()
    loaded.load(tmp_path / "lam")
    there = ablation_settings.moved(lam, scas.setting)
    assert torch.equal(predict(there, scas), predict(loaded, scas))


def test_only_patches_of_another_shape_are_left_out(uma: HeldLinks, scas: HeldLinks) -> None:
    lams = {"mlp": perturbed(PATH, uma), "no_physics": perturbed(PATCH, uma)}
    found = {
        links.setting: [each.name for each in ablation_settings.variants_in(lams, links.setting)]
        for links in (uma, scas)
    }
    assert found == {uma.setting: ["mlp", "no_physics"], scas.setting: ["mlp"]}
    with pytest.raises(DataError):
        ablation_settings.moved(lams["no_physics"], scas.setting)


HEADLINES = {csi4cast.SETTING: csi4cast.METRIC, sca.SETTING: sca.METRIC, sumrate.SETTING: sumrate.METRIC}


@pytest.mark.parametrize("setting", HEADLINES)
def test_what_learned_nothing_scores_as_what_it_starts_from(
    setting: str, uma: HeldLinks, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = dict(list(CSI4CAST_CELLS.items())[::14])
    monkeypatch.setattr(csi4cast, "CSI4CAST_CELLS", cells)
    lams = {"path": lam_for(PATH, uma.setting, seed=0), "patch": lam_for(PATCH, uma.setting, seed=0)}
    (part,) = ablation_settings.measure([setting], lams, QUICK, None, quiet)
    score: dict[str, list[float]] = {}
    for row in part.rows:
        if row.metric == HEADLINES[setting]:
            score.setdefault(row.predictor, []).append(row.value)
    assert len(score["path"]) == {csi4cast.SETTING: 2, sca.SETTING: 3, sumrate.SETTING: 1}[setting]
    # its front end iterates less than Path-EB
    assert score["path"] == pytest.approx(score["path_eb"], rel=0.1)
    if setting == sumrate.SETTING:
        assert score["patch"] == pytest.approx(score["hold"], rel=1e-3)
        assert "left_out" not in part.about
        assert part.figures["sumrate_60kmh.path"] == score["path"][0]
    else:
        assert part.about["left_out"] == ["patch"] and "patch" not in score
    if setting == sca.SETTING:
        assert [part.figures[f"sca.{speed}kmh.path_db"] for speed in sca.SPEEDS_KMH] == score["path"]
    if setting == csi4cast.SETTING:
        ratios = [row.value for row in part.rows if (row.metric, row.predictor) == (OTHER_RATIO, "path")]
        mean = part.figures["csi4cast.path_over_best_classical"]
        assert mean == pytest.approx(math.sqrt(ratios[0] * ratios[1]))
        assert 0 <= part.figures["csi4cast.path.cells_won"] <= part.figures["csi4cast.cells"] == 2


def test_a_setting_that_is_not_there_or_lacks_its_data_is_refused() -> None:
    with pytest.raises(SpecError, match="nowhere"):
        ablation.run(quick=True, only=["nowhere"], on_progress=quiet)
    with pytest.raises(SpecError, match="--data"):
        ablation.run(quick=True, only=["quadriga"], on_progress=quiet)
