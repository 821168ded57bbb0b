"""A LAM in the training loop: it learns; crashed and resumed it is the same to the bit, in bfloat16 too."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from airlam.model.heads import PatchHead
from airlam.model.lam import LAM, build_lam, count_parameters
from airlam.radio.channel import PredictionSetting
from airlam.specs import ArraySpec, ModelSpec, TrainingSpec
from airlam.tokens.base import TokenBatch
from airlam.tokens.patch import PatchTokenizer
from airlam.training import Progress, fit

FREQUENCIES_HZ = tuple(180e3 * i for i in range(4))
SETTING = PredictionSetting(
    base_station=ArraySpec(num_cols=4),
    num_user_antennas=1,
    history_frequencies_hz=FREQUENCIES_HZ,
    target_frequencies_hz=FREQUENCIES_HZ,
    slot_duration_s=0.5e-3,
    num_history=6,
    num_horizon=2,
    max_doppler_hz=200.0,
)
TOKENIZER = PatchTokenizer(SETTING, max_tokens=8)
SPEC = TrainingSpec(
    num_steps=6,
    batch_size=8,
    learning_rate=3e-3,
    validation_every_steps=3,
    checkpoint_every_steps=2,
    device="cpu",
)


@dataclass(frozen=True)
class TurningLinks:
    """Noisy channels whose phase turns at a random steady pace."""

    num: int
    seed: int

    def __len__(self) -> int:
        return self.num

    def batch(self, indices: torch.Tensor) -> TokenBatch:
        generator = torch.Generator().manual_seed(self.seed)
        first = torch.randn(self.num, 1, 1, 4, 4, dtype=torch.complex64, generator=generator)
        pace = torch.rand(self.num, 1, 1, 1, 1, generator=generator)
        slots = torch.arange(8)[None, :, None, None, None]
        links = first * torch.polar(torch.ones(1), pace * slots)
        noise = torch.randn(links[:, :6].shape, dtype=torch.complex64, generator=generator)
        tokens = TOKENIZER.tokenise(links[:, :6] + 0.1 * noise, torch.full((self.num,), 0.01))
        return TOKENIZER.with_target(tokens, links[:, 6:]).select(indices)


def lam() -> LAM:
    spec = ModelSpec(tokenizer="patch", num_layers=1)
    return build_lam(spec, TOKENIZER, lambda width: PatchHead(TOKENIZER, width))


def nmse(model: nn.Module, tokens: TokenBatch) -> torch.Tensor:
    assert isinstance(model, LAM)
    error, energy = model.head().squared_error(model(tokens), tokens.context)
    return error / energy


def test_it_learns_beyond_hold(tmp_path: Path) -> None:
    validation = TurningLinks(32, 2)
    held = nmse(lam().eval(), validation.batch(torch.arange(32))).mean().item()
    model = lam()
    summary = fit(model, nmse, TurningLinks(256, 1), validation, replace(SPEC, num_steps=40), tmp_path)
    assert summary.best_validation_loss is not None
    assert summary.best_validation_loss < 0.5 * held
    assert summary.num_trainable == count_parameters(model).trainable < summary.num_parameters


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_crashed_and_resumed_is_the_same(precision: str, tmp_path: Path) -> None:
    spec = replace(SPEC, precision=precision)  # type: ignore[arg-type]
    train, validation = TurningLinks(32, 1), TurningLinks(8, 2)

    def crash(progress: Progress) -> None:
        if progress.step == 5:
            raise RuntimeError

    whole, resumed = lam(), lam()
    assert fit(whole, nmse, train, validation, spec, tmp_path / "whole").precision == precision
    with pytest.raises(RuntimeError):
        fit(lam(), nmse, train, validation, spec, tmp_path / "crashed", crash)
    fit(resumed, nmse, train, validation, spec, tmp_path / "crashed")
    expected, got = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert not torch.equal(expected["embedding.0.weight"], lam().state_dict()["embedding.0.weight"])
