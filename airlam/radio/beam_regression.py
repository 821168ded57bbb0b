r"""Regression of the powers of the sweeps to come, and several regressions put together.

Kernel ridge regression needs no training by steps, and what it would have expected of a pass without having
seen it follows in closed form: whatever learns from its expectations can be given honest ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property

import scipy.optimize
import torch
from einops import einsum, rearrange

from airlam.errors import DataError
from airlam.radio.beam_fitted import Points, patterns_db, power_kept, predicted_track_m
from airlam.radio.beam_selection import BeamHistory, BeamWindows, extrapolate

LINES = (5, 8)  # sweeps on the lines that a kernel compares
_JITTER = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerKernel:
    """How alike two histories are: exp(-pattern d(x, x') - line d(e, e') - place d(p, p')), d a mean square.

    x: the sweeps' powers in dB; e: where straight lines through the last 5 and 8 best beams lead, at the last
    step ahead; p: where one through the last positions leads, in metres. ``noise`` is added to the diagonal.
    With ``around_line`` the regression is of what remains of the powers about the straight line's mean
    profile, else of what remains about their mean.
    """

    pattern: float
    line: float
    place: float
    noise: float
    around_line: bool


KERNELS = (  # each is best somewhere: on steady passes, few passes, good positions, bad ones
    PowerKernel(pattern=0.3, line=0.003, place=0.0, noise=0.03, around_line=False),
    PowerKernel(pattern=0.1, line=0.0, place=0.0, noise=0.05, around_line=True),
    PowerKernel(pattern=0.01, line=0.0, place=0.05, noise=0.03, around_line=False),
    PowerKernel(pattern=0.01, line=0.0, place=0.01, noise=0.03, around_line=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Training histories, with what kernels compare of them: patterns in dB, ends of lines, places."""

    history: BeamHistory
    num_ahead: int
    pattern: Points
    line: Points
    place: Points

    @staticmethod
    def of(history: BeamHistory, num_ahead: int) -> "Known":
        """num_ahead: sweeps to predict, to whose last one lines and tracks are continued."""
        return Known(
            history=history,
            num_ahead=num_ahead,
            pattern=Points.of(patterns_db(history)),
            line=Points.of(_line_ends(history, num_ahead)),
            place=Points.of(_track_ends_m(history, num_ahead)),
        )


class Compared:
    """Histories beside known ones; each distance is computed once, for whichever kernels ask for it."""

    def __init__(self, history: BeamHistory, known: Known) -> None:
        self.history, self._known = history, known

    @cached_property
    def _pattern(self) -> torch.Tensor:
        return self._known.pattern.mean_square(patterns_db(self.history))

    @cached_property
    def _line(self) -> torch.Tensor:
        return self._known.line.mean_square(_line_ends(self.history, self._known.num_ahead))

    @cached_property
    def _place(self) -> torch.Tensor:
        return self._known.place.mean_square(_track_ends_m(self.history, self._known.num_ahead))

    def likeness(self, kernel: PowerKernel) -> torch.Tensor:
        """The kernel between all pairs: float64 [len(history), known histories]."""
        distance = kernel.pattern * self._pattern
        if kernel.line:
            distance += kernel.line * self._line
        if kernel.place:
            distance += kernel.place * self._place
        return distance.neg_().exp_()


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerRegression:
    """Kernel ridge regression of the relative powers of the sweeps to come; the scores are those powers.

    P(x) = M(x) + k(x, X) (K + noise I)^-1 (Y - M(X)), the mean of a Gaussian process with mean M (Rasmussen
    and Williams, 2006, eq. 2.38). ``left_out``: for each training window what the fit to the other passes
    expects, float64 [n, num_ahead, num_beams]; of none where the regression was read from tensors.
    """

    kernel: PowerKernel
    known: Known
    mean: "_Mean"
    weights: torch.Tensor  # float64 [n, num_ahead * num_beams]
    left_out: torch.Tensor
    name: str = "power_regression"

    def predict(self, history: BeamHistory) -> torch.Tensor:
        """See ``BeamPredictor``."""
        return self.expect(Compared(history, self.known))

    def expect(self, given: Compared) -> torch.Tensor:
        """``predict`` of histories that have been set beside the known ones."""
        alike = given.likeness(self.kernel)  # [n, training windows]
        remainder = rearrange(alike @ self.weights, "n (a b) -> n a b", a=self.known.num_ahead)
        return self.mean.at(given.history) + remainder


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerStack:
    """Several regressions of the same passes, weighted by how well they do on passes left out.

    The weights w >= 0 minimise || Y - M - sum_e w_e (L_e - M) ||^2, M the mean power of each beam and L_e
    what regression e expects of the passes left out; then they are scaled to sum 1. Breiman, Stacked
    regressions, Machine Learning 24 (1996).
    """

    experts: tuple[PowerRegression, ...]
    weights: torch.Tensor  # float64 [experts]
    best: PowerRegression  # the one that keeps most power on passes left out
    name: str = "power_stack"

    @staticmethod
    def fitted(training: BeamWindows, kernels: Sequence[PowerKernel] = KERNELS) -> "PowerStack":
        """One regression a kernel."""
        known = Known.of(training.history, training.num_ahead)
        itself = Compared(training.history, known)
        experts = tuple(_fitted(training, kernel, known, itself) for kernel in kernels)
        kept = [power_kept(expert.left_out, training) for expert in experts]
        return PowerStack(
            experts=experts,
            weights=_stacking_weights(experts, training.relative_power),
            best=experts[kept.index(max(kept))],
        )

    @property
    def left_out(self) -> torch.Tensor:
        """What each expects of training passes without them: float64 [n, experts, num_ahead, num_beams]."""
        return torch.stack([expert.left_out for expert in self.experts], dim=1)

    def expect(self, history: BeamHistory) -> torch.Tensor:
        """What each expects: float64 [n, experts, num_ahead, num_beams], relative powers."""
        given = Compared(history, self.experts[0].known)  # all have the same
        return torch.stack([expert.expect(given) for expert in self.experts], dim=1)

    def predict(self, history: BeamHistory) -> torch.Tensor:
        """See ``BeamPredictor``."""
        return self.combine(self.expect(history))

    def combine(self, expected: torch.Tensor) -> torch.Tensor:
        """The weighted sum over experts: [n, experts, num_ahead, num_beams] to [n, num_ahead, num_beams]."""
        return einsum(expected, self.weights, "n e a b, e -> n a b")

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that ``predict`` needs, by name; ``left_out`` is not among it."""
        history = self.experts[0].known.history
        found = {
            "power": history.power,
            "position_m": history.position_m,
            "weights": self.weights,
            "best": torch.tensor([expert is self.best for expert in self.experts].index(True)),
            "kernels": torch.tensor([astuple(e.kernel) for e in self.experts], dtype=torch.float64),
        }
        for index, expert in enumerate(self.experts):
            found[f"{index}.weights"], found[f"{index}.constant"] = expert.weights, expert.mean.constant
            if expert.mean.profile is not None:
                found[f"{index}.profile"] = expert.mean.profile
        return found

    def held(self) -> list[torch.Tensor]:
        """All that is in memory for ``predict``: what ``tensors`` names, and what was made ready of it."""
        known = self.experts[0].known
        ready = [known.pattern, known.line, known.place]
        return [*self.tensors().values(), *(each for one in ready for each in (one.centred, one.squares))]

    @staticmethod
    def from_tensors(given: Mapping[str, torch.Tensor], where: str) -> "PowerStack":
        """Of what ``tensors`` gave; DataError naming ``where`` for anything else."""
        kernels = [
            PowerKernel(pattern=pattern, line=line, place=place, noise=noise, around_line=bool(around_line))
            for pattern, line, place, noise, around_line in _table(given, "kernels", where, 5).tolist()
        ]
        sizes = _stack_sizes(given, kernels, where)
        for name in {*sizes} | {*given}:
            found = None if name not in given else (tuple(given[name].shape), given[name].dtype)
            expected = None if name not in sizes else (sizes[name], _dtype(name))
            if found != expected:
                raise DataError(
                    f"{where}: {name} is {found}, expected {expected}; it holds no such regressions"
                )
        if not all(value.isfinite().all() for value in given.values()):
            raise DataError(f"{where}: a value is not finite; it is damaged")
        history = BeamHistory(power=given["power"], position_m=given["position_m"])
        none = given["0.constant"].new_zeros(0, *given["0.constant"].shape)
        known = Known.of(history, len(given["0.constant"]))
        experts = tuple(
            PowerRegression(
                kernel=kernel,
                known=known,
                mean=_Mean(constant=given[f"{index}.constant"], profile=given.get(f"{index}.profile")),
                weights=given[f"{index}.weights"],
                left_out=none,
            )
            for index, kernel in enumerate(kernels)
        )
        best = int(given["best"])
        if not 0 <= best < len(experts):
            raise DataError(f"{where}: best is {best}; expected 0 to {len(experts) - 1}")
        return PowerStack(experts=experts, weights=given["weights"], best=experts[best])


def _dtype(name: str) -> torch.dtype:
    return torch.int64 if name == "best" else torch.float64


def _table(given: Mapping[str, torch.Tensor], name: str, where: str, num_columns: int) -> torch.Tensor:
    """A matrix of so many columns and at least a row."""
    value = given.get(name)
    if value is None or value.ndim != 2 or not len(value) or value.shape[1] != num_columns:
        raise DataError(f"{where} lacks {name} [rows, {num_columns}]; it holds no such regressions")
    return value


def _stack_sizes(
    given: Mapping[str, torch.Tensor], kernels: Sequence[PowerKernel], where: str
) -> dict[str, tuple[int, ...]]:
    """The shape that each tensor of a stack has to have, given those of its histories and its first mean."""
    power, mean = given.get("power"), given.get("0.constant")
    if power is None or power.ndim != 3 or mean is None or mean.ndim != 2:
        raise DataError(f"{where} lacks power or 0.constant; it holds no such regressions")
    (num_windows, num_past, num_beams), num_ahead = power.shape, len(mean)
    sizes: dict[str, tuple[int, ...]] = {
        "power": (num_windows, num_past, num_beams),
        "position_m": (num_windows, num_past, 3),
        "weights": (len(kernels),),
        "best": (),
        "kernels": (len(kernels), 5),
    }
    for index, kernel in enumerate(kernels):
        sizes[f"{index}.weights"] = (num_windows, num_ahead * num_beams)
        sizes[f"{index}.constant"] = (num_ahead, num_beams)
        if kernel.around_line:
            sizes[f"{index}.profile"] = (num_ahead, 2 * num_beams - 1)
    return sizes


def _stacking_weights(experts: Sequence[PowerRegression], relative: torch.Tensor) -> torch.Tensor:
    """float64 [experts], of sum 1; even ones where no expert is better than the mean."""
    mean = relative.mean(dim=0)
    columns = torch.stack([(expert.left_out - mean).flatten() for expert in experts], dim=1)
    factor = torch.linalg.qr(columns, mode="r").R  # [experts, experts]; the norm without the long columns
    moment = columns.T @ (relative - mean).flatten()  # [experts]
    target = torch.linalg.solve_triangular(factor.T, moment[:, None], upper=False)[:, 0]
    found, _ = scipy.optimize.nnls(factor.numpy(), target.numpy())
    weights = torch.from_numpy(found)
    total = weights.sum()
    return weights / total if total > 0 else torch.full_like(weights, 1 / len(weights))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mean:
    """Mean of the powers, or their mean profile about the straight line of eight sweeps.

    constant: float64 [num_ahead, num_beams], of use where ``profile`` is None.
    profile: float64 [num_ahead, 2 * num_beams - 1], by beam minus line.
    """

    constant: torch.Tensor
    profile: torch.Tensor | None

    @staticmethod
    def of(training: BeamWindows, around_line: bool) -> "_Mean":
        relative = training.relative_power
        profile = _profile(training.history, relative) if around_line else None
        return _Mean(constant=relative.mean(dim=0), profile=profile)

    def at(self, history: BeamHistory) -> torch.Tensor:
        """float64 [n, num_ahead, num_beams]."""
        if self.profile is None:
            return self.constant.expand(len(history), *self.constant.shape)
        lower, share = _places(history, *self.constant.shape)
        table = self.profile.expand(len(history), *self.profile.shape)  # [n, num_ahead, offsets]
        return (1 - share) * table.gather(-1, lower) + share * table.gather(-1, lower + 1)


def _places(history: BeamHistory, num_ahead: int, num_beams: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each beam's offset from the line as a row of the profile below it, and the share of the row above.

    Both [n, num_ahead, num_beams], int64 and float64.
    """
    line = extrapolate(history.best[:, -max(LINES) :], num_ahead).clamp(0, num_beams - 1)
    offset = torch.arange(num_beams, dtype=line.dtype) - line[..., None] + (num_beams - 1)
    lower = offset.floor().clamp(0, 2 * num_beams - 3).long()
    return lower, offset - lower


def _profile(history: BeamHistory, relative: torch.Tensor) -> torch.Tensor:
    """Mean relative power by offset from the line: float64 [num_ahead, 2 * num_beams - 1]; 0 where unseen."""
    num_ahead, num_beams = relative.shape[1:]
    lower, share = _places(history, num_ahead, num_beams)
    total = relative.new_zeros(num_ahead, 2 * num_beams - 1)
    weight = torch.zeros_like(total)
    for row, part in ((lower, 1 - share), (lower + 1, share)):
        flat = rearrange(row, "n a b -> a (n b)")
        weight.scatter_add_(1, flat, rearrange(part, "n a b -> a (n b)"))
        total.scatter_add_(1, flat, rearrange(part * relative, "n a b -> a (n b)"))
    return total / weight.clamp_min(_JITTER)


def fit_regression(training: BeamWindows, kernel: PowerKernel) -> PowerRegression:
    """The regression, and what it would expect of each pass without having seen it.

    That is y_g - (A_gg)^-1 (A (y - m))_g for the windows g of a pass, A = (K + noise I)^-1: Rasmussen and
    Williams, 2006, eq. 5.12, for groups. The mean m itself is of all training windows.
    """
    known = Known.of(training.history, training.num_ahead)
    return _fitted(training, kernel, known, Compared(training.history, known))


def _fitted(training: BeamWindows, kernel: PowerKernel, known: Known, itself: Compared) -> PowerRegression:
    """known: the training histories; itself: they beside each other."""
    mean = _Mean.of(training, kernel.around_line)
    rest = rearrange(training.relative_power - mean.at(training.history), "n a b -> n (a b)")
    matrix = itself.likeness(kernel)
    matrix.diagonal().add_(kernel.noise)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    weights = inverse @ rest  # [n, num_ahead * num_beams]
    missed = torch.empty_like(rest)
    for one in training.sequence.unique():  # type: ignore[no-untyped-call]
        own = (training.sequence == one).nonzero()[:, 0]
        missed[own] = torch.linalg.solve(inverse[own][:, own], weights[own])
    left_out = training.relative_power - rearrange(missed, "n (a b) -> n a b", a=training.num_ahead)
    return PowerRegression(kernel=kernel, known=known, mean=mean, weights=weights, left_out=left_out)


def _track_ends_m(history: BeamHistory, num_ahead: int) -> torch.Tensor:
    """Where a line through the last positions leads at the last step: float64 [n, 2]."""
    return predicted_track_m(history, num_ahead)[:, -1]


def _line_ends(history: BeamHistory, num_ahead: int) -> torch.Tensor:
    """Where each of ``LINES`` through the best beams leads at the last step: float64 [n, lines]."""
    return torch.cat([extrapolate(history.best[:, -num:], num_ahead)[:, -1:] for num in LINES], dim=1)
