"""What is served behind a guard equals what was evaluated behind it."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from airlam.errors import DataError
from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction.guard import Guarded
from airlam.radio.prediction.path_eb import PathEb
from airlam.serving.guarding import GuardedServices, LinkGuard, untuned_name
from airlam.serving.lam_services import LamServices
from airlam.serving.measurement import Measurement
from airlam.specs import ArraySpec, ModelSpec
from airlam.tasks.channel_prediction import LamPredictor
from airlam.tasks.run_guard import GUARD_FILE, read_guard, write_guard

FREQUENCIES_HZ = tuple(180e3 * i for i in range(8))
SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=1, num_cols=4),
    num_user_antennas=1,
    history_frequencies_hz=FREQUENCIES_HZ,
    target_frequencies_hz=FREQUENCIES_HZ,
    slot_duration_s=0.5e-3,
    num_history=6,
    num_horizon=2,
    max_doppler_hz=200.0,
)
SPEC = ModelSpec(num_layers=1, num_paths=5, lora_rank=2)
LEVELS_DB, EDGES = (0.0, 20.0), torch.tensor([[0.8], [0.8]])
CHOSEN = ((0, 1), (2, 0))


def tuned() -> LAM:
    lam = lam_for(SPEC, SETTING, 1).eval()
    random = torch.Generator().manual_seed(5)
    for parameter in lam.parameters():
        if parameter.requires_grad:
            parameter.data += 0.03 * torch.randn(parameter.shape, generator=random)
    return lam


def predictor(lam: LAM) -> LamPredictor:
    return LamPredictor(tokenizer=lam.tokenizer, lam=lam)


def evaluated(chosen: tuple[tuple[int, ...], ...] = CHOSEN) -> Guarded:
    ways = (predictor(tuned()), predictor(lam_for(SPEC, SETTING, 1).eval()), PathEb(SETTING))
    return Guarded(name="lam", predictors=ways, levels_db=LEVELS_DB, edges=EDGES, chosen=chosen)


def requests() -> list[Measurement]:
    """Links of two SNRs, steady and fading ones, some of them with another LAM's between them."""
    random = torch.Generator().manual_seed(3)

    def drawn(lam: str, num_links: int) -> Measurement:
        steady = torch.randn(num_links, 1, 1, 4, 8, dtype=torch.complex64, generator=random)
        fading = torch.randn(num_links, 6, 1, 4, 8, dtype=torch.complex64, generator=random)
        is_steady = (torch.arange(num_links) % 2 == 0).view(-1, 1, 1, 1, 1)
        variance = torch.where(torch.arange(num_links) % 4 < 2, 0.01, 0.5)
        history = torch.where(is_steady, steady.expand_as(fading), fading)
        noise = torch.randn(history.shape, dtype=torch.complex64, generator=random)
        noisy = history + noise * variance.sqrt().view(-1, 1, 1, 1, 1)
        return Measurement(lam=lam, history=noisy, noise_variance=variance)

    return [drawn("a", 5), drawn("plain", 2), drawn("a", 1), drawn("a", 8)]


def served(chosen: tuple[tuple[int, ...], ...] = CHOSEN) -> GuardedServices:
    lams = {"a": tuned(), untuned_name("a"): lam_for(SPEC, SETTING, 1).eval(), "plain": tuned()}
    guard = LinkGuard(levels_db=LEVELS_DB, edges=EDGES, chosen=chosen)
    return GuardedServices(LamServices(lams), {"a": guard})


def test_served_predictions_are_the_evaluated_ones() -> None:
    asked, guard = requests(), LinkGuard(levels_db=LEVELS_DB, edges=EDGES, chosen=CHOSEN)
    ways = {way for request in asked if request.lam == "a" for way in guard.places(request).tolist()}
    assert ways == {0, 1, 2}  # else this shows little
    plain = predictor(tuned())
    for request, future in zip(asked, served().predict(asked), strict=True):
        judge = evaluated() if request.lam == "a" else plain
        expected = judge.predict(request.history, request.noise_variance)
        assert (future - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_guard_that_trusts_the_lam_changes_nothing() -> None:
    asked = requests()
    alone = LamServices({"a": tuned(), "plain": tuned()}).predict(asked)
    for first, second in zip(served(((0, 0), (0, 0))).predict(asked), alone, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_fallbacks_are_services_but_no_lams_to_ask() -> None:
    services = served()
    assert set(services.settings) == {"a", "plain"}
    assert "path_eb@a" in {service.name for service in services.graph.services}
    assert services.graph.service_of("a", "block.0") == services.graph.service_of(
        untuned_name("a"), "block.0"
    )


def test_a_guard_is_kept_in_the_runs_folder(tmp_path: Path) -> None:
    assert read_guard(tmp_path) is None
    write_guard(tmp_path, evaluated())
    guard = read_guard(tmp_path)
    assert guard is not None and guard.chosen == CHOSEN and guard.levels_db == LEVELS_DB
    torch.testing.assert_close(guard.edges, EDGES)
    for spoilt in ("{", "{}", (tmp_path / GUARD_FILE).read_text().replace("2", "7")):
        (tmp_path / GUARD_FILE).write_text(spoilt)
        with pytest.raises(DataError, match=r"guard\.json is damaged"):
            read_guard(tmp_path)


def test_a_guard_of_other_sizes_is_refused(tmp_path: Path) -> None:
    write_guard(tmp_path, replace(copy.copy(evaluated()), chosen=((0, 1), (2,))))
    with pytest.raises(DataError, match="sizes do not agree"):
        read_guard(tmp_path)
