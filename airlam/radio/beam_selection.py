"""Choosing the beam of a sweep to come: what is asked, how it is scored, and answers without training.

A base station sweeps a codebook again and again; from the last sweeps (and positions of the user) a predictor
scores every beam of the next ones, and the beam with the highest score is taken. Beams are numbered in the
order of the angles they look at, so that a beam's neighbours are one number away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from einops import rearrange

from airlam.errors import DataError, SpecError
from airlam.radio.metrics import QUANTILES, Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamRecording:
    """Sweeps in the order of their times, from one or more passes of a user.

    power: float64 [num_sweeps, num_beams], received power of each beam, linear, positive.
    position_m: float64 [num_sweeps, 3], the user's measured position, the base station at the origin.
    sequence: int64 [num_sweeps], equal for sweeps of one pass.
    """

    name: str
    power: torch.Tensor
    position_m: torch.Tensor
    sequence: torch.Tensor

    def __post_init__(self) -> None:
        count = len(self.power)
        if self.power.ndim != 2 or self.position_m.shape != (count, 3) or self.sequence.shape != (count,):
            raise DataError(
                f"{self.name}: power, position and sequence are {tuple(self.power.shape)}, "
                f"{tuple(self.position_m.shape)} and {tuple(self.sequence.shape)}; expected [n, beams], "
                "[n, 3] and [n]"
            )
        if not bool((self.power > 0).all() & self.power.isfinite().all() & self.position_m.isfinite().all()):
            raise DataError(
                f"{self.name}: expected positive finite powers and finite positions; leave out others"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamHistory:
    """What a predictor may know.

    power: float64 [n, num_past, num_beams], the last sweeps, oldest first.
    position_m: float64 [n, num_past, 3], measured at the same times.
    """

    power: torch.Tensor
    position_m: torch.Tensor

    def __len__(self) -> int:
        return len(self.power)

    @property
    def best(self) -> torch.Tensor:
        """The strongest beam of each sweep: float64 [n, num_past]."""
        return self.power.argmax(dim=-1).double()

    def select(self, index: torch.Tensor) -> "BeamHistory":
        """The windows at ``index``, int64 or bool [n]."""
        return BeamHistory(power=self.power[index], position_m=self.position_m[index])


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamWindows:
    """Histories with what came after them.

    future_power: float64 [n, num_ahead, num_beams]. sequence: int64 [n], the pass that each window is of.
    """

    history: BeamHistory
    future_power: torch.Tensor
    sequence: torch.Tensor

    def __len__(self) -> int:
        return len(self.history)

    @property
    def num_ahead(self) -> int:
        """Sweeps to predict."""
        return self.future_power.shape[1]

    @property
    def num_beams(self) -> int:
        """Beams of a sweep."""
        return self.future_power.shape[2]

    @property
    def relative_power(self) -> torch.Tensor:
        """Each future sweep over its strongest beam: float64 [n, num_ahead, num_beams]."""
        return self.future_power / self.future_power.amax(dim=-1, keepdim=True)

    def select(self, index: torch.Tensor) -> "BeamWindows":
        """The windows at ``index``, int64 or bool [n]."""
        return BeamWindows(
            history=self.history.select(index),
            future_power=self.future_power[index],
            sequence=self.sequence[index],
        )


class BeamPredictor(Protocol):
    """Last sweeps in, scores of the beams of the next ones out."""

    @property
    def name(self) -> str:
        """Short key, e.g. ``straight_line``."""
        ...

    def predict(self, history: BeamHistory) -> torch.Tensor:
        """float64 [n, num_ahead, num_beams]; the beam with the highest score is taken."""
        ...


def cut_windows(recording: BeamRecording, *, num_past: int, num_ahead: int) -> BeamWindows:
    """Every window of ``num_past`` sweeps and ``num_ahead`` more that lies within one pass."""
    start = window_starts(recording, num_past=num_past, num_ahead=num_ahead)  # [n]
    length = num_past + num_ahead
    past, ahead = (
        start[:, None] + torch.arange(*span) for span in ((0, num_past), (num_past, length))
    )  # [n, num_past], [n, num_ahead]
    return BeamWindows(
        history=BeamHistory(power=recording.power[past], position_m=recording.position_m[past]),
        future_power=recording.power[ahead],
        sequence=recording.sequence[start],
    )


def window_starts(recording: BeamRecording, *, num_past: int, num_ahead: int) -> torch.Tensor:
    """The first sweep of each window of ``cut_windows``: int64 [n]."""
    if num_past < 2 or num_ahead < 1:
        raise SpecError(f"num_past and num_ahead are {num_past} and {num_ahead}; expected >= 2 and >= 1")
    length = num_past + num_ahead
    start = torch.arange(max(len(recording.power) - length + 1, 0))
    return start[recording.sequence[start] == recording.sequence[start + length - 1]]


def split_by_pass(sequence: torch.Tensor, num_parts: int, seed: int) -> list[torch.Tensor]:
    """Windows in parts that share no pass: bool [n] each, true where a window is of the part.

    Passes are dealt out in random order, so that parts differ by at most one pass. DataError where there are
    fewer passes than parts.
    """
    passes: torch.Tensor = sequence.unique()  # type: ignore[no-untyped-call]
    if len(passes) < num_parts:
        raise DataError(f"{len(passes)} passes cannot be split in {num_parts} parts; give more recordings")
    order = passes[torch.randperm(len(passes), generator=torch.Generator().manual_seed(seed))]
    return [torch.isin(sequence, order[part::num_parts]) for part in range(num_parts)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamScores:
    """How each window's choice did, at each step ahead.

    kept: float64 [n, num_ahead], the chosen beam's power over the best one's, above 0 to 1.
    offset: int64 [n, num_ahead], chosen minus best beam. rank: int64 [n, num_ahead], beams scored above the
    best one. sequence: int64 [n].
    """

    kept: torch.Tensor
    offset: torch.Tensor
    rank: torch.Tensor
    sequence: torch.Tensor

    @staticmethod
    def concatenate(parts: "Sequence[BeamScores]") -> "BeamScores":
        """Parts that share no pass, in order."""
        return BeamScores(
            kept=torch.cat([part.kept for part in parts]),
            offset=torch.cat([part.offset for part in parts]),
            rank=torch.cat([part.rank for part in parts]),
            sequence=torch.cat([part.sequence for part in parts]),
        )


def score_beams(scores: torch.Tensor, windows: BeamWindows) -> BeamScores:
    """What taking the highest score costs; scores: float [n, num_ahead, num_beams].

    DataError where shapes differ or a score is NaN.
    """
    if scores.shape != windows.future_power.shape:
        raise DataError(f"scores are {tuple(scores.shape)}; expected {tuple(windows.future_power.shape)}")
    if bool(scores.isnan().any()):
        raise DataError("a beam's score is NaN; check what the predictor was given")
    chosen, best = scores.argmax(dim=-1), windows.future_power.argmax(dim=-1)  # [n, num_ahead]
    own = scores.gather(-1, best[..., None])  # [n, num_ahead, 1]
    return BeamScores(
        kept=windows.relative_power.gather(-1, chosen[..., None])[..., 0],
        offset=chosen - best,
        rank=(scores > own).sum(dim=-1),
        sequence=windows.sequence,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSummary:
    """One step ahead: top-1, top-3, within one beam (shares of windows), and the power lost.

    power_loss_db = -10 log10 mean(kept): what the mean received power falls by, in dB, were every best beam
    equally strong.
    """

    num_windows: int
    num_passes: int
    top1: Interval
    top3: Interval
    within_one: Interval
    power_loss_db: Interval


def summarise_beams(
    scores: BeamScores, step: int, *, num_resamples: int = 1000, seed: int = 0
) -> BeamSummary:
    """Figures at one step ahead (1, 2, ...), with 95 % bootstrap intervals over passes."""
    at = step - 1
    columns = {
        "top1": (scores.rank[:, at] < 1).double(),
        "top3": (scores.rank[:, at] < 3).double(),
        "within_one": (scores.offset[:, at].abs() <= 1).double(),
    }
    sums, counts = _resampled(scores.sequence, [*columns.values(), scores.kept[:, at]], num_resamples, seed)
    means = dict(zip((*columns, "kept"), sums / counts, strict=True))  # [1 + num_resamples] each
    loss_db = -10 * means.pop("kept").log10()
    return BeamSummary(
        num_windows=len(scores.sequence),
        num_passes=len(scores.sequence.unique()),  # type: ignore[no-untyped-call]
        power_loss_db=_interval(loss_db),
        **{name: _interval(value) for name, value in means.items()},
    )


def compare_loss(
    method: BeamScores, reference: BeamScores, step: int, *, num_resamples: int = 1000, seed: int = 0
) -> Interval:
    """Power loss in dB of ``method`` minus that of ``reference`` on the same windows; negative is better.

    The interval is paired: both are drawn together, pass by pass.
    """
    if not torch.equal(method.sequence, reference.sequence):
        raise DataError("the two methods were not scored on the same windows; compare them on one test set")
    kept = [scores.kept[:, step - 1] for scores in (method, reference)]
    sums, _ = _resampled(method.sequence, kept, num_resamples, seed)
    return _interval(-10 * (sums[0] / sums[1]).log10())


def _resampled(
    sequence: torch.Tensor, columns: Sequence[torch.Tensor], num_resamples: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums and counts over resamples of passes, the sample as it is first.

    columns: float64 [n] each. Returns float64 [columns, 1 + num_resamples] and [1 + num_resamples].
    """
    index: torch.Tensor = sequence.unique(return_inverse=True)[1]  # type: ignore[no-untyped-call]
    num_passes = int(index.max()) + 1
    table = torch.stack([*columns, torch.ones_like(columns[0])])  # [columns + 1, n]
    by_pass = table.new_zeros(len(table), num_passes).index_add_(1, index, table)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(num_passes, (num_resamples, num_passes), generator=generator)
    again = by_pass[:, drawn].sum(dim=-1)  # [columns + 1, num_resamples]
    sums = torch.cat([by_pass.sum(dim=-1, keepdim=True), again], dim=-1)
    return sums[:-1], sums[-1]


def _interval(values: torch.Tensor) -> Interval:
    """The first value, and the percentiles of the others; float64 [1 + num_resamples]."""
    low, high = values[1:].quantile(torch.tensor(QUANTILES, dtype=values.dtype)).tolist()
    return Interval(value=values[0].item(), low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Persistence:
    """The last sweep again: its powers are the scores of every step ahead."""

    num_ahead: int
    name: str = "persistence"

    def predict(self, history: BeamHistory) -> torch.Tensor:
        """See ``BeamPredictor``."""
        return history.power[:, -1:].expand(-1, self.num_ahead, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StraightLine:
    """The best beam's number on a least-squares line through the last ``num_points`` sweeps.

    Scores fall with the distance to the line at each step ahead, which may lie between beams.
    """

    num_ahead: int
    num_points: int = 8

    @property
    def name(self) -> str:
        """With the number of points, where it is not all eight of the published figure."""
        return "straight_line" if self.num_points == 8 else f"straight_line_{self.num_points}"

    def predict(self, history: BeamHistory) -> torch.Tensor:
        """See ``BeamPredictor``."""
        place = extrapolate(history.best[:, -self.num_points :], self.num_ahead)  # [n, num_ahead]
        return near(place, history.power.shape[-1])


def extrapolate(values: torch.Tensor, num_ahead: int) -> torch.Tensor:
    """A least-squares line through each row, continued: float64 [n, points] to [n, num_ahead]."""
    num_points = values.shape[1]
    time = torch.arange(1.0 - num_points, 1.0, dtype=values.dtype)  # the last point is at 0
    centred = time - time.mean()
    slope = (values @ centred) / centred.square().sum()  # [n]
    ahead = torch.arange(1, num_ahead + 1) - time.mean()  # [num_ahead]
    return values.mean(dim=1, keepdim=True) + slope[:, None] * ahead


def near(place: torch.Tensor, num_beams: int) -> torch.Tensor:
    """Scores that fall with the distance to a place between beams: [n, ahead] to [n, ahead, num_beams]."""
    beams = torch.arange(num_beams, dtype=place.dtype)
    return -(rearrange(place, "n a -> n a 1") - beams).abs()
