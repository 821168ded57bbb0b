"""Beam selection: windows, scores, classical rivals, the LAM, DeepSense's files and the benchmark on them."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from airlam.bench.beamforming import deepsense as bench
from airlam.datasets.deepsense import load_deepsense, metres_from, scenarios_in
from airlam.errors import DataError, SpecError
from airlam.model.beam_selection import BeamHead
from airlam.radio.beam_fitted import Fingerprint, KalmanBeam, PositionMap, predicted_track_m
from airlam.radio.beam_regression import KERNELS, Compared, Known, PowerKernel, PowerStack, fit_regression
from airlam.radio.beam_selection import (
    BeamHistory,
    BeamRecording,
    BeamWindows,
    Persistence,
    StraightLine,
    compare_loss,
    cut_windows,
    extrapolate,
    score_beams,
    split_by_pass,
    summarise_beams,
)
from airlam.specs import ModelSpec, TrainingSpec
from airlam.tasks.beam_selection import classical_predictors, recording_of, tune_beams
from airlam.tokens.beam_history import BeamScales, tokenise_history
from airlam.tokens.position import PositionTokenizer
from airlam.tokens.track import TrackTokenizer

NUM_BEAMS = 16


def passes(num_passes: int, num_sweeps: int = 24, *, seed: int = 0, noise: float = 0.01) -> BeamRecording:
    """Cars at constant speeds on a street 10 m away; a beam is a Gaussian lobe over the angle."""
    rng = np.random.default_rng(seed)
    powers, positions, numbers = [], [], []
    for number in range(num_passes):
        start_m, pace_m = rng.uniform(-16.0, -12.0), rng.uniform(0.7, 1.3)
        along_m = start_m + pace_m * np.arange(num_sweeps)
        beam = (np.arctan2(along_m, 10.0) / math.pi + 0.5) * (NUM_BEAMS - 1)  # [sweeps]
        lobe = np.exp(-((np.arange(NUM_BEAMS) - beam[:, None]) ** 2) / 3)  # [sweeps, beams]
        powers.append(0.1 + lobe + noise * rng.random(lobe.shape))
        fix = np.stack([along_m, np.full(num_sweeps, 10.0), np.zeros(num_sweeps)], axis=1)
        positions.append(fix + 0.1 * rng.standard_normal(fix.shape) * (1, 1, 0))
        numbers.append(np.full(num_sweeps, number))
    return BeamRecording(
        name="made_up",
        power=torch.from_numpy(np.concatenate(powers)),
        position_m=torch.from_numpy(np.concatenate(positions)),
        sequence=torch.from_numpy(np.concatenate(numbers)),
    )


def write_deepsense(folder: Path, scenario: int, recording: BeamRecording) -> dict[str, Path]:
    """The recording as DeepSense's arrays, at a place on the equator; paths by field."""
    count = len(recording.power)
    array_deg = np.tile([0.0, 20.0], (count, 1))
    degrees = np.degrees(recording.position_m[:, :2].numpy()[:, ::-1] / 6_371_000.0)  # north, east
    fields = {
        "unit1_pwr_60ghz": recording.power.numpy(),
        "unit1_loc": array_deg,
        "unit2_loc": array_deg + degrees,
        "seq_index": recording.sequence.numpy(),
    }
    paths = {name: folder / f"scenario{scenario}_{name}_1-{count}.npy" for name in fields}
    for name, values in fields.items():
        np.save(paths[name], values)
    return paths


WINDOWS = cut_windows(passes(12), num_past=8, num_ahead=3)


def of_powers(future: list[list[float]]) -> BeamWindows:
    """Windows whose next sweep has these powers, each a pass of its own."""
    power = torch.tensor(future, dtype=torch.float64)
    history = BeamHistory(power=power[:, None], position_m=torch.zeros(len(power), 1, 3))
    return BeamWindows(history=history, future_power=power[:, None], sequence=torch.arange(len(power)))


def test_windows_lie_within_one_pass() -> None:
    recording = passes(3, 12)
    windows = cut_windows(recording, num_past=8, num_ahead=3)
    assert len(windows) == 3 * (12 - 11 + 1)
    for index in range(len(windows)):
        own = recording.power[recording.sequence == windows.sequence[index]]
        place = index % 2
        assert torch.equal(windows.history.power[index], own[place : place + 8])
        assert torch.equal(windows.future_power[index], own[place + 8 : place + 11])


def test_windows_of_impossible_lengths_are_refused() -> None:
    with pytest.raises(SpecError, match="num_past"):
        cut_windows(passes(1), num_past=1, num_ahead=3)
    assert len(cut_windows(passes(2, 10), num_past=8, num_ahead=3)) == 0


@given(st.integers(2, 12), st.integers(0, 99))
def test_parts_share_no_pass_and_are_all(num_parts: int, seed: int) -> None:
    parts = split_by_pass(WINDOWS.sequence, num_parts, seed)
    assert torch.equal(torch.stack(parts).sum(dim=0), torch.ones(len(WINDOWS), dtype=torch.int64))
    seen = [set(WINDOWS.sequence[part].tolist()) for part in parts]
    assert sum(len(one) for one in seen) == 12
    assert max(map(len, seen)) - min(map(len, seen)) <= 1


def test_more_parts_than_passes_are_refused() -> None:
    with pytest.raises(DataError, match="12 passes"):
        split_by_pass(WINDOWS.sequence, 13, 0)


def test_scores_by_hand() -> None:
    """Half the power kept, one beam off, second best; and the best beam itself."""
    windows = of_powers([[4.0, 2.0, 1.0], [1.0, 3.0, 6.0]])
    scores = score_beams(torch.tensor([[[1.0, 2.0, 0.0]], [[0.0, 1.0, 2.0]]]), windows)
    assert scores.kept[:, 0].tolist() == [0.5, 1.0]
    assert scores.offset[:, 0].tolist() == [1, 0] and scores.rank[:, 0].tolist() == [1, 0]
    summary = summarise_beams(scores, 1)
    assert summary.power_loss_db.value == pytest.approx(-10 * math.log10(0.75))
    assert (summary.top1.value, summary.top3.value, summary.within_one.value) == (0.5, 1.0, 1.0)


def test_scores_of_other_shapes_or_nan_are_refused() -> None:
    windows = of_powers([[1.0, 2.0]])
    with pytest.raises(DataError, match="scores are"):
        score_beams(torch.zeros(1, 1, 3), windows)
    with pytest.raises(DataError, match="NaN"):
        score_beams(torch.full((1, 1, 2), math.nan), windows)


def test_level_of_the_powers_does_not_matter() -> None:
    louder = BeamWindows(
        history=WINDOWS.history, future_power=1e-9 * WINDOWS.future_power, sequence=WINDOWS.sequence
    )
    given_scores = StraightLine(num_ahead=3).predict(WINDOWS.history)
    torch.testing.assert_close(
        score_beams(given_scores, louder).kept, score_beams(given_scores, WINDOWS).kept
    )


def test_comparison_is_paired() -> None:
    scores = score_beams(Persistence(num_ahead=3).predict(WINDOWS.history), WINDOWS)
    same = compare_loss(scores, scores, 2)
    assert same.value == same.low == same.high == 0
    best = score_beams(WINDOWS.future_power, WINDOWS)
    gain = compare_loss(best, scores, 2)
    assert gain.value == pytest.approx(-summarise_beams(scores, 2).power_loss_db.value)
    assert gain.low <= gain.value <= gain.high < 0
    with pytest.raises(DataError, match="same windows"):
        compare_loss(score_beams(WINDOWS.future_power[:9], WINDOWS.select(torch.arange(9))), scores, 1)


@given(st.floats(-3, 3), st.floats(-20, 20), st.integers(2, 8))
def test_a_line_is_continued_exactly(pace: float, start: float, num_points: int) -> None:
    time = torch.arange(num_points + 3, dtype=torch.float64)
    values = (start + pace * time)[None]
    torch.testing.assert_close(extrapolate(values[:, :num_points], 3), values[:, num_points:])


def steady(pace: int) -> BeamHistory:
    """One car whose best beam moves by ``pace`` a sweep, up to beam 40 of 64."""
    beam = 40 - pace * torch.arange(7, -1, -1)  # [8]
    power = torch.full((1, 8, 64), 0.1, dtype=torch.float64).scatter(2, beam[None, :, None], 1.0)
    position_m = torch.stack([beam.double(), torch.full((8,), 5.0), torch.zeros(8)], dim=1)[None]
    return BeamHistory(power=power, position_m=position_m.double())


@pytest.mark.parametrize("pace", [-3, 0, 2])
def test_steady_beams_are_followed(pace: int) -> None:
    history = steady(pace)
    expected = [40 + pace * step for step in (1, 2, 3)]
    for predictor in (StraightLine(num_ahead=3), KalmanBeam(num_ahead=3, process_std=0.1)):
        assert predictor.predict(history).argmax(-1)[0].tolist() == expected
    assert Persistence(num_ahead=3).predict(history).argmax(-1)[0].tolist() == [40] * 3
    torch.testing.assert_close(
        predicted_track_m(history, 3)[0, :, 0], torch.tensor(expected, dtype=torch.float64)
    )


def test_kalman_without_process_noise_is_the_least_squares_line() -> None:
    """From the first two measurements on, a constant pace is fitted to all with equal weights."""
    kalman = KalmanBeam(num_ahead=3, process_std=1e-6).predict(WINDOWS.history)
    line = StraightLine(num_ahead=3).predict(WINDOWS.history)
    torch.testing.assert_close(kalman, line, rtol=1e-4, atol=1e-4)


def test_position_map_recalls_what_was_met_there() -> None:
    """Where passes are all alike, the powers near a predicted position are those of that position."""
    windows = cut_windows(passes(8, seed=3), num_past=8, num_ahead=1)
    held = split_by_pass(windows.sequence, 4, 0)[0]
    fitted = PositionMap.fitted(windows.select(~held))
    summary = summarise_beams(score_beams(fitted.predict(windows.history), windows), 1)
    assert summary.within_one.value > 0.95


def test_fingerprint_knows_its_own_windows() -> None:
    """A window among ten copies of itself is recalled to the bit."""
    copies = WINDOWS.select(torch.arange(20).repeat_interleave(10))
    recalled = Fingerprint.fitted(copies).predict(WINDOWS.history.select(torch.arange(20)))
    torch.testing.assert_close(recalled, WINDOWS.relative_power[:20])


@pytest.mark.parametrize("kernel", KERNELS)
def test_regression_without_a_pass_is_what_it_says(kernel: PowerKernel) -> None:
    """``left_out`` is what solving with the other passes' windows alone gives, about the same mean."""
    regression, own = fit_regression(WINDOWS, kernel), WINDOWS.sequence == 4
    others, test = WINDOWS.select(~own), WINDOWS.select(own)
    rest = (others.relative_power - regression.mean.at(others.history)).flatten(1)
    known = Known.of(others.history, 3)
    matrix = Compared(others.history, known).likeness(kernel)
    weights = torch.linalg.solve(matrix + kernel.noise * torch.eye(len(matrix)), rest)
    found = Compared(test.history, known).likeness(kernel) @ weights  # [own windows, 3 * beams]
    expected = regression.mean.at(test.history) + found.reshape(test.future_power.shape)
    torch.testing.assert_close(regression.left_out[own], expected)
    assert not torch.allclose(regression.predict(test.history), expected, atol=1e-4)


def test_regression_with_little_noise_recalls_its_training() -> None:
    kernel = PowerKernel(pattern=0.3, line=0.0, place=0.0, noise=1e-8, around_line=False)
    torch.testing.assert_close(
        fit_regression(WINDOWS, kernel).predict(WINDOWS.history), WINDOWS.relative_power, rtol=0, atol=1e-3
    )


def test_stack_is_as_good_as_its_best_expert_and_beats_the_line() -> None:
    held = split_by_pass(WINDOWS.sequence, 4, 0)[0]
    training, test = WINDOWS.select(~held), WINDOWS.select(held)
    stack = PowerStack.fitted(training)
    assert stack.weights.sum().item() == pytest.approx(1) and bool((stack.weights >= 0).all())
    errors = [
        (powers - training.relative_power).square().mean().item()
        for powers in (stack.combine(stack.left_out), *stack.left_out.unbind(dim=1))
    ]
    assert errors[0] <= 1.02 * min(errors[1:])  # the scaling to sum 1 may cost a little
    lost = {
        each.name: summarise_beams(score_beams(each.predict(test.history), test), 3).power_loss_db.value
        for each in classical_predictors(training, stack)
    }
    assert lost["power_stack"] < 0.5 * lost["straight_line"] < lost["persistence"]


def test_track_token_tells_where_and_how_fast() -> None:
    position = PositionTokenizer(
        center_m=(0.0, 0.0, 0.0), scale_m=(10.0, 10.0, 1.0), array_height_m=0.0, array_yaw_rad=0.0
    )
    tokenizer = TrackTokenizer(position=position, num_past=3, step_m=2.0)
    fixes = torch.tensor([[[1.0, 0.0, 0.0], [3.0, 1.0, 0.0], [5.0, 4.0, 0.0]]])
    tokens = tokenizer.tokenise(fixes)
    assert tokens.features.shape == (1, 1, tokenizer.num_features) and bool(tokens.mask.all())
    torch.testing.assert_close(tokens.features[0, 0, -4:], torch.tensor([2.0, 2.0, 1.0, 1.5]))
    torch.testing.assert_close(
        tokens.features[:, 0, : position.num_features], position.tokenise(fixes[:, -1]).features[:, 0]
    )


def test_tokens_ignore_the_level_of_the_powers() -> None:
    tokenizer = BeamScales.of(WINDOWS).tokenizer()
    louder = BeamHistory(power=1e-6 * WINDOWS.history.power, position_m=WINDOWS.history.position_m)
    one, other = (tokenise_history(tokenizer, h, WINDOWS.relative_power) for h in (WINDOWS.history, louder))
    assert one["beams"].features.shape[1] == 8 + 3 and one["position"].features.shape[1] == 1
    torch.testing.assert_close(one["beams"].features, other["beams"].features)


def test_a_fresh_head_is_the_stack() -> None:
    """Whatever the backbone says, an untuned LAM weighs experts as the stack does."""
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    head = BeamHead(width=6, num_ahead=2, weights=weights)
    expected = torch.rand(5, 3, 2, 8)
    scores = head(torch.randn(5, 6), expected)
    torch.testing.assert_close(
        scores * 0.02, torch.einsum("beam,e->bam", expected, weights.float()), rtol=1e-4, atol=1e-5
    )


MODEL = ModelSpec(backbone="small", num_layers=1)
TRAINING = TrainingSpec(num_steps=4, batch_size=16, validation_every_steps=4, checkpoint_every_steps=4)


def test_tuning_keeps_near_the_stack_it_starts_from(tmp_path: Path) -> None:
    stack = PowerStack.fitted(WINDOWS)
    lam = tune_beams(WINDOWS, stack, MODEL, TRAINING, tmp_path, lambda *_: None)
    scores = lam.predict(WINDOWS.history)
    assert scores.shape == WINDOWS.future_power.shape
    lost = [
        summarise_beams(score_beams(each.predict(WINDOWS.history), WINDOWS), 3).power_loss_db.value
        for each in (lam, stack)
    ]
    assert lost[0] < lost[1] + 0.05
    assert len(lam.predict(WINDOWS.history.select(torch.arange(0)))) == 0


class FakeDrops:
    """Two trajectories of three drops, two users, one past sweep beside the latest; implements ``field``."""

    spec = SimpleNamespace(name="drawn")

    def field(self, _: str, name: str) -> torch.Tensor:
        drop, user = torch.arange(6)[:, None], torch.arange(2)
        number = 1.0 + 10 * user + drop  # [drops, users]
        return {
            "beam_power": torch.stack([0 * number + 99, number], dim=2)[..., None].repeat(1, 1, 1, 4),
            "gnss_position_m": number[..., None].repeat(1, 1, 3),
            "beam_present": number != 14,  # the second user's first drop on the second trajectory ...
            "gnss_present": number != 2,  # ... and the first user's second on the first
            "trajectory": torch.tensor([0, 0, 0, 1, 1, 1], dtype=torch.int32),
        }[name]


def test_drops_of_a_site_become_passes() -> None:
    """User by user, the latest sweep; another user, another trajectory and a gap begin another pass."""
    recording = recording_of(FakeDrops(), "train")  # type: ignore[arg-type]
    assert recording.power[:, 0].tolist() == [1, 3, 4, 5, 6, 11, 12, 13, 15, 16]
    assert torch.equal(recording.position_m[:, 2], recording.power[:, 3])
    new = (recording.sequence[1:] != recording.sequence[:-1]).tolist()
    assert new == [True, True, False, False, True, False, False, True, False]
    assert len(recording.sequence.unique()) == 5


def test_deepsense_files_become_a_recording(tmp_path: Path) -> None:
    recording = passes(3, 12)
    write_deepsense(tmp_path, 8, recording)
    assert scenarios_in(tmp_path) == (8,)
    loaded = load_deepsense(tmp_path, 8)
    assert loaded.name == "deepsense8"
    assert torch.equal(loaded.power, recording.power) and torch.equal(loaded.sequence, recording.sequence)
    torch.testing.assert_close(loaded.position_m, recording.position_m, rtol=0, atol=1e-6)


def test_calibrated_positions_go_first(tmp_path: Path) -> None:
    paths = write_deepsense(tmp_path, 8, passes(2, 12))
    calibrated = np.load(paths["unit1_loc"])
    np.save(tmp_path / "scenario8_unit2_loc_cal_1-24.npy", calibrated)
    assert load_deepsense(tmp_path, 8).position_m.abs().max() == 0


def test_metres_of_a_degree() -> None:
    """A degree is 111.2 km north, and east half of that at 60 degrees."""
    found = metres_from(np.array([60.0, 10.0]), np.array([[61.0, 10.0], [60.0, 11.0]]))
    np.testing.assert_allclose(found, [[0, 111_195, 0], [55_597, 0, 0]], rtol=1e-4)


@pytest.mark.parametrize("damage", ["missing", "twice", "short", "nan", "pickle", "cut"])
def test_files_that_do_not_fit_are_named(tmp_path: Path, damage: str) -> None:
    path = write_deepsense(tmp_path, 5, passes(2, 12))["seq_index"]
    values = np.load(path)
    if damage == "missing":
        path.unlink()
    elif damage == "twice":
        np.save(tmp_path / "scenario5_seq_index_1-9.npy", values)
    elif damage == "short":
        np.save(path, values[:-1])
    elif damage == "nan":
        np.save(path, np.where(values == 0, np.nan, values))
    elif damage == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="scenario"):
        load_deepsense(tmp_path, 5)


def test_a_folder_without_scenarios_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no scenario"):
        scenarios_in(tmp_path)


def test_impossible_recordings_are_refused() -> None:
    whole = passes(1)
    with pytest.raises(DataError, match="positive"):
        BeamRecording(name="a", power=0 * whole.power, position_m=whole.position_m, sequence=whole.sequence)
    with pytest.raises(DataError, match="expected"):
        BeamRecording(name="a", power=whole.power, position_m=whole.position_m[1:], sequence=whole.sequence)


def test_the_benchmark_scores_every_window_once(tmp_path: Path) -> None:
    write_deepsense(tmp_path, 8, passes(6, 16))
    result = bench.run(tmp_path, True, lambda *_: None)
    figures, rows = result["figures"], result["rows"]
    assert {row["num_windows"] for row in rows} == {6 * (16 - 11 + 1)}
    assert {row["num_passes"] for row in rows} == {6}
    assert figures["deepsense8_h3.straight_line.power_loss_db"] > 0
    for metric in ("power_loss_db", "within_one"):
        assert math.isfinite(figures[f"deepsense8_h3.{metric}"])
    classical = [v for n, v in figures.items() if n.startswith("deepsense8_h3.") and n.count(".") == 2]
    assert figures["deepsense8_h3.best_classical.power_loss_db"] in classical
    low, value, high = (
        figures[f"deepsense8_h3.lam_minus_best_classical_db{end}"] for end in (".low", "", ".high")
    )
    assert low <= value <= high
