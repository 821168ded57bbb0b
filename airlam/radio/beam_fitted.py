r"""Classical beam selection fitted to a site's own passes: Kalman filter, position map, fingerprints.

What is chosen in fitting is chosen on the training passes alone.
"""

from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.radio.beam_selection import BeamHistory, BeamWindows, extrapolate, near, score_beams

NEIGHBOURS = 10
POSITION_POINTS = 5  # fixes on a line: GNSS errors vary slowly, so few of them say as much as many
PROCESS_STDS = (0.03, 0.1, 0.3, 1.0)  # of the beam's pace from sweep to sweep, over the measurement's error
_NUM_BLOCK = 1024  # windows whose distances are computed at once


@dataclass(frozen=True, slots=True, kw_only=True)
class KalmanBeam:
    """A filter of constant pace on the best beam's number, continued to the steps ahead.

    State: number and pace, the pace a random walk of standard deviation ``process_std`` a sweep; a sweep
    measures the number with unit error. Bar-Shalom, Li and Kirubarajan, Estimation (2001), sec. 6.3.
    """

    num_ahead: int
    process_std: float
    name: str = "kalman"

    @staticmethod
    def fitted(training: BeamWindows) -> "KalmanBeam":
        """With the process noise that keeps most power on the training windows."""
        candidates = [KalmanBeam(num_ahead=training.num_ahead, process_std=std) for std in PROCESS_STDS]
        kept = [power_kept(each.predict(training.history), training) for each in candidates]
        return candidates[kept.index(max(kept))]

    def predict(self, history: BeamHistory) -> torch.Tensor:
        """See ``BeamPredictor``."""
        weights = _filter_weights(history.power.shape[1], self.process_std)  # [2, num_past]
        number, pace = (history.best @ weights.T).unbind(dim=-1)  # [n]
        ahead = torch.arange(1.0, self.num_ahead + 1, dtype=number.dtype)
        return near(number[:, None] + pace[:, None] * ahead, history.power.shape[-1])


def _filter_weights(num_past: int, process_std: float) -> torch.Tensor:
    """The filter is linear and its gains depend on no data: its last state as weights of the measurements.

    Starts at the first two measurements. Returns float64 [2, num_past]: of the number, of the pace.
    """
    move = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    drift = torch.tensor([0.5, 1.0], dtype=torch.float64) * process_std
    state = torch.zeros(2, num_past, dtype=torch.float64)  # of unit measurements
    state[0, 1], state[1, 1], state[1, 0] = 1.0, 1.0, -1.0
    covariance = torch.tensor([[1.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    for index in range(2, num_past):
        state, covariance = move @ state, move @ covariance @ move.T + drift[:, None] * drift
        gain = covariance[:, 0] / (covariance[0, 0] + 1)  # [2]
        innovation = -state[0]
        innovation[index] += 1
        state = state + gain[:, None] * innovation
        covariance = covariance - gain[:, None] * covariance[0]
    return state


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionMap:
    """The measured position on a straight line, and the powers that passes met near where it leads.

    position_m: float64 [n, 2], training positions; power: float64 [n, num_beams], relative powers there.
    Scores are the mean over the nearest ``NEIGHBOURS``.
    """

    num_ahead: int
    position_m: torch.Tensor
    power: torch.Tensor
    name: str = "position_line"

    @staticmethod
    def fitted(training: BeamWindows) -> "PositionMap":
        """Remembers the last sweep of every training window."""
        power = training.history.power[:, -1]
        return PositionMap(
            num_ahead=training.num_ahead,
            position_m=training.history.position_m[:, -1, :2],
            power=power / power.amax(dim=-1, keepdim=True),
        )

    def predict(self, history: BeamHistory) -> torch.Tensor:
        """See ``BeamPredictor``."""
        ahead = rearrange(predicted_track_m(history, self.num_ahead), "n a xy -> (n a) xy")
        scores = _mean_of_nearest(ahead, self.position_m, self.power)  # [n * num_ahead, num_beams]
        return rearrange(scores, "(n a) b -> n a b", a=self.num_ahead)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """The mean of what followed the ``NEIGHBOURS`` training histories whose powers in dB are nearest.

    pattern_db: float64 [n, num_past * num_beams]; future: float64 [n, num_ahead, num_beams].
    """

    pattern_db: torch.Tensor
    future: torch.Tensor
    name: str = "fingerprint"

    @staticmethod
    def fitted(training: BeamWindows) -> "Fingerprint":
        """Remembers every training window."""
        return Fingerprint(pattern_db=patterns_db(training.history), future=training.relative_power)

    def predict(self, history: BeamHistory) -> torch.Tensor:
        """See ``BeamPredictor``."""
        flat = rearrange(self.future, "n a b -> n (a b)")
        scores = _mean_of_nearest(patterns_db(history), self.pattern_db, flat)
        return rearrange(scores, "n (a b) -> n a b", a=self.future.shape[1])


def predicted_track_m(history: BeamHistory, num_ahead: int) -> torch.Tensor:
    """Horizontal positions on a line through the last fixes: float64 [n, num_ahead, 2], m."""
    coordinates = rearrange(history.position_m[:, -POSITION_POINTS:, :2], "n t xy -> (n xy) t")
    return rearrange(extrapolate(coordinates, num_ahead), "(n xy) a -> n a xy", xy=2)


def patterns_db(history: BeamHistory) -> torch.Tensor:
    """All powers of a history in dB below its strongest: float64 [n, num_past * num_beams]."""
    power_db = 10 * history.power.flatten(1).log10()
    return power_db - power_db.amax(dim=1, keepdim=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Rows that others are compared with, made ready once.

    centre: float64 [features], their mean, about which differences of large squares lose no digits; centred:
    float64 [m, features]; squares: float64 [m], of each centred row.
    """

    centre: torch.Tensor
    centred: torch.Tensor
    squares: torch.Tensor

    @staticmethod
    def of(rows: torch.Tensor) -> "Points":
        """rows: float64 [m, features]."""
        centre = rows.mean(dim=0)
        centred = rows - centre
        return Points(centre=centre, centred=centred, squares=centred.square().sum(dim=1))

    def mean_square(self, rows: torch.Tensor) -> torch.Tensor:
        """Mean squared difference between other rows, float64 [n, features], and these: float64 [n, m]."""
        own = rows - self.centre
        squares = own.square().sum(dim=1)[:, None] + self.squares - 2 * own @ self.centred.T
        return squares.clamp_min_(0) / rows.shape[1]


def _mean_of_nearest(points: torch.Tensor, known: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Mean value at the nearest known points: float64 [n, features] to [n, values]."""
    count = min(NEIGHBOURS, len(known))
    found, ready = values.new_empty(len(points), values.shape[1]), Points.of(known)
    for start in range(0, len(points), _NUM_BLOCK):
        distance = ready.mean_square(points[start : start + _NUM_BLOCK])  # [block, known]
        nearest = distance.topk(count, largest=False).indices
        found[start : start + _NUM_BLOCK] = values[nearest].mean(dim=1)
    return found


def power_kept(scores: torch.Tensor, windows: BeamWindows) -> float:
    """Mean power kept, over all steps ahead."""
    return score_beams(scores, windows).kept.mean().item()
