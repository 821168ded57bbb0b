"""The loop: it learns, stops early on its best, and a killed run ends as if it had never been killed."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from airlam.errors import AirlamError, DataError, SpecError
from airlam.specs import TrainingSpec
from airlam.training import CHECKPOINT_FOLDER, METRICS_FILE, Progress, fit, learning_rate, read_metrics
from airlam.training.precision import choose_device, choose_precision

SPEC = TrainingSpec(
    num_steps=20,
    batch_size=4,
    accumulation_steps=2,
    learning_rate=1e-2,
    validation_every_steps=5,
    checkpoint_every_steps=4,
    device="cpu",
    seed=3,
)


@dataclass(frozen=True)
class Pairs:
    """y = A x with a little noise."""

    num: int
    seed: int

    def __len__(self) -> int:
        return self.num

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        matrix = torch.randn(6, 3, generator=torch.Generator().manual_seed(99))
        x = torch.randn(self.num, 6, generator=torch.Generator().manual_seed(self.seed))
        return x[indices], (x @ matrix)[indices]


def net() -> nn.Module:
    """With dropout and running statistics: both must survive a kill."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def squared_error(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean(dim=1)


TRAIN, VALIDATION = Pairs(30, 1), Pairs(10, 2)


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns_and_says_what_it_cost(tmp_path: Path) -> None:
    seen: list[Progress] = []
    model = net()
    spec = replace(SPEC, num_steps=150, patience=100)
    summary = fit(model, squared_error, TRAIN, VALIDATION, spec, tmp_path, seen.append)
    assert summary.stop_reason == "finished" and summary.num_steps == 150
    assert summary.num_samples_seen == 150 * 8
    assert summary.best_validation_loss is not None
    assert summary.best_validation_loss < 0.5 * seen[0].loss
    assert summary.precision == "float32"  # no backbone in it
    final = squared_error(model.eval(), VALIDATION.batch(torch.arange(10))).mean().item()
    assert final == pytest.approx(summary.best_validation_loss, rel=1e-5)  # the best weights are back
    # 2 (6 x 16 + 16 x 3) a sample forward, twice that backward, less the gradient of the input
    assert summary.flops_per_sample == 3 * 2 * (6 * 16 + 16 * 3) - 2 * 6 * 16
    assert summary.num_trainable == summary.num_parameters == 6 * 16 + 16 + 32 + 16 * 3 + 3
    assert [p.step for p in seen] == list(range(1, 151))
    assert seen[-1].seconds_left == 0 and seen[0].seconds_left > 0
    assert set(summary.to_dict()) >= {"trainable_share", "seconds", "peak_memory_bytes", "precision"}


def test_the_caller_s_randomness_is_untouched(tmp_path: Path) -> None:
    model, before = net(), torch.get_rng_state()
    fit(model, squared_error, TRAIN, VALIDATION, replace(SPEC, num_steps=2), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_frozen_weights_stay(tmp_path: Path) -> None:
    model = net()
    model[0].weight.requires_grad_(False)  # type: ignore[index, union-attr]
    before = model.get_parameter("0.weight").clone()
    summary = fit(model, squared_error, TRAIN, VALIDATION, SPEC, tmp_path)
    assert torch.equal(model.get_parameter("0.weight"), before)
    assert summary.num_trainable == summary.num_parameters - 96


def test_stops_early_on_the_best(tmp_path: Path) -> None:
    """A validation that only worsens: stops after ``patience`` more, with the first weights validated."""

    def rising(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        loss = squared_error(model, batch)
        return loss if model.training else -loss

    spec = replace(SPEC, num_steps=200, patience=2)
    summary = fit(net(), rising, TRAIN, VALIDATION, spec, tmp_path)
    assert summary.stop_reason == "early"
    assert summary.num_steps == summary.best_step + 2 * 5


_KILLED = """
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("loop_tests", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
sys.modules["loop_tests"] = tests
spec.loader.exec_module(tests)
kill_at = int(sys.argv[3])

def watch(progress):
    if progress.step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

data = tests.TRAIN, tests.VALIDATION
tests.fit(tests.net(), tests.squared_error, *data, tests.SPEC, Path(sys.argv[2]), watch)
"""


@pytest.mark.parametrize("kill_at", [2, 9])
def test_killed_and_resumed_equals_never_killed(kill_at: int, tmp_path: Path) -> None:
    whole = net()
    fit(whole, squared_error, TRAIN, VALIDATION, SPEC, tmp_path / "whole")
    command = [sys.executable, "-c", _KILLED, __file__, str(tmp_path / "killed"), str(kill_at)]
    process = subprocess.run(command, capture_output=True, check=False, env={**os.environ})
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    resumed = net()
    summary = fit(resumed, squared_error, TRAIN, VALIDATION, SPEC, tmp_path / "killed")
    assert summary.num_steps == 20
    assert same(resumed, whole)
    lines = read_metrics(tmp_path / "killed" / METRICS_FILE)
    assert [line["step"] for line in lines] == list(range(1, 21))
    expected = read_metrics(tmp_path / "whole" / METRICS_FILE)
    assert [line["loss"] for line in lines] == [line["loss"] for line in expected]


class StopError(Exception):
    """Ends a run from its progress callback, as a crash would."""


@pytest.mark.parametrize("crash_at", [4, 7, 15, 19])
def test_crashed_anywhere_resumes_the_same(crash_at: int, tmp_path: Path) -> None:
    whole = net()
    fit(whole, squared_error, TRAIN, VALIDATION, SPEC, tmp_path / "whole")

    def crash(progress: Progress) -> None:
        if progress.step == crash_at:
            raise StopError

    with pytest.raises(StopError):
        fit(net(), squared_error, TRAIN, VALIDATION, SPEC, tmp_path / "crashed", crash)
    resumed = net()
    fit(resumed, squared_error, TRAIN, VALIDATION, SPEC, tmp_path / "crashed")
    assert same(resumed, whole)


@dataclass(frozen=True)
class GroupedPairs:
    """Pairs in groups that must not meet in a batch."""

    groups: tuple[Pairs, ...]

    def __len__(self) -> int:
        return sum(self.group_sizes)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        return tuple(len(group) for group in self.groups)

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ends = torch.tensor(self.group_sizes).cumsum(0)
        (group,) = torch.searchsorted(ends, indices, right=True).unique().tolist()
        return self.groups[group].batch(indices - int(ends[group]) + self.group_sizes[group])


@pytest.mark.parametrize("crash_at", [6, 13])
def test_groups_never_meet_in_a_batch_and_resume_the_same(crash_at: int, tmp_path: Path) -> None:
    train = GroupedPairs(
        (Pairs(9, 1), Pairs(5, 2), Pairs(3, 3))
    )  # the unpacking in batch fails on a mixed one
    validation = GroupedPairs((Pairs(5, 4), Pairs(6, 5)))
    whole, resumed = net(), net()
    expected = fit(whole, squared_error, train, validation, SPEC, tmp_path / "whole")

    def crash(progress: Progress) -> None:
        if progress.step == crash_at:
            raise StopError

    with pytest.raises(StopError):
        fit(net(), squared_error, train, validation, SPEC, tmp_path / "crashed", crash)
    summary = fit(resumed, squared_error, train, validation, SPEC, tmp_path / "crashed")
    assert same(resumed, whole)
    assert summary.best_validation_loss == expected.best_validation_loss


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first, again = net(), net()
    summary = fit(first, squared_error, TRAIN, VALIDATION, SPEC, tmp_path)
    seen: list[Progress] = []
    repeated = fit(again, squared_error, TRAIN, VALIDATION, SPEC, tmp_path, seen.append)
    assert not seen and same(first, again)
    assert replace(repeated, peak_memory_bytes=0) == replace(summary, peak_memory_bytes=0)


def test_interrupt_checkpoints_and_stops(tmp_path: Path) -> None:
    before, whole = signal.getsignal(signal.SIGINT), net()  # a shell's background job ignores it
    fit(whole, squared_error, TRAIN, VALIDATION, SPEC, tmp_path / "whole")

    def interrupt(progress: Progress) -> None:
        if progress.step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    model = net()
    summary = fit(model, squared_error, TRAIN, VALIDATION, SPEC, tmp_path / "run", interrupt)
    assert summary.stop_reason == "interrupted" and summary.num_steps == 7
    assert (tmp_path / "run" / CHECKPOINT_FOLDER / "step_00000007").is_dir()
    assert signal.getsignal(signal.SIGINT) is before
    resumed = net()
    assert fit(resumed, squared_error, TRAIN, VALIDATION, SPEC, tmp_path / "run").stop_reason == "finished"
    assert same(resumed, whole)


def test_runs_outside_the_main_thread(tmp_path: Path) -> None:
    results: list[int] = []
    spec = replace(SPEC, num_steps=2)

    def work() -> None:
        results.append(fit(net(), squared_error, TRAIN, VALIDATION, spec, tmp_path).num_steps)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 2e-2}, "learning_rate was 0.01"),
        ({"seed": 4}, "seed was 3"),
        ({"num_steps": 9}, "num_steps"),
    ],
)
def test_another_run_s_checkpoint_is_refused(change: dict[str, float], message: str, tmp_path: Path) -> None:
    spec = replace(SPEC, num_steps=2)
    fit(net(), squared_error, TRAIN, VALIDATION, spec, tmp_path)
    with pytest.raises(DataError, match=message):
        fit(net(), squared_error, TRAIN, VALIDATION, replace(spec, **change), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="trainable tensors"):
        fit(nn.Linear(6, 3), squared_error, TRAIN, VALIDATION, spec, tmp_path)


def test_long_identities_are_told_apart(tmp_path: Path) -> None:
    """Two runs may differ in the last digit of a checksum only; the message must not show the same twice."""
    spec = replace(SPEC, num_steps=2)
    fit(net(), squared_error, TRAIN, VALIDATION, spec, tmp_path, identity="x" * 500 + "1")
    fit(net(), squared_error, TRAIN, VALIDATION, spec, tmp_path, identity="x" * 500 + "1")
    with pytest.raises(DataError, match=r"identity .*was '(\w{12})', now it is '(?!\1)\w{12}'"):
        fit(net(), squared_error, TRAIN, VALIDATION, spec, tmp_path, identity="x" * 500 + "2")


def test_a_loss_that_is_not_finite_names_the_step(tmp_path: Path) -> None:
    calls = 0

    def breaking(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = squared_error(model, batch)
        return loss * torch.nan if calls > 14 else loss

    with pytest.raises(AirlamError, match="step 6: loss nan"):
        fit(net(), breaking, TRAIN, VALIDATION, SPEC, tmp_path)
    assert (tmp_path / CHECKPOINT_FOLDER / "step_00000004").is_dir()


def test_nothing_to_train_or_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nothing in this model trains"):
        fit(net().requires_grad_(False), squared_error, TRAIN, VALIDATION, SPEC, tmp_path)
    with pytest.raises(SpecError, match="0 validation samples"):
        fit(net(), squared_error, TRAIN, Pairs(0, 2), SPEC, tmp_path)


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    """Without dropout and running statistics two batches of 4 are one of 8."""
    models = []
    for batch_size, parts in ((8, 1), (4, 2)):
        torch.manual_seed(0)
        model = nn.Linear(6, 3)
        spec = replace(SPEC, batch_size=batch_size, accumulation_steps=parts)
        fit(model, squared_error, TRAIN, VALIDATION, spec, tmp_path / str(parts))
        models.append(model)
    torch.testing.assert_close(models[0].weight, models[1].weight, rtol=1e-4, atol=1e-5)


def test_learning_rate_rises_then_falls() -> None:
    spec = TrainingSpec(num_steps=1000, learning_rate=1e-3)
    rates = [learning_rate(spec, step) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-3 / 50, rel=1e-3)
    assert rates.index(max(rates)) == 49
    assert all(later < sooner for sooner, later in pairwise(rates[49:]))
    assert rates[-1] == pytest.approx(0.02e-3, rel=0.01)


def test_device_and_precision() -> None:
    cpu = torch.device("cpu")
    assert choose_precision(replace(SPEC, precision="float32"), cpu) == torch.float32
    assert choose_precision(replace(SPEC, precision="bfloat16"), cpu) == torch.bfloat16
    assert choose_device(SPEC) == cpu
    if not torch.cuda.is_available():
        assert choose_device(replace(SPEC, device="auto")) == cpu
        with pytest.raises(SpecError, match="sees no GPU"):
            choose_device(replace(SPEC, device="cuda"))
