"""What an evaluation found: who was compared, how each scored, what it cost, and the answer in a sentence."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from airlam.errors import DataError, SpecError
from airlam.units import linear_to_db

Kind = Literal["classical", "learned", "lam", "bound"]
KINDS: tuple[Kind, ...] = ("classical", "learned", "lam", "bound")
SUM_RATE, BLER, THROUGHPUT = "sum_rate_bit_per_s_per_hz", "bler", "throughput_bit_per_s_per_hz"
SHARE = "share_of_wmmse_100"  # of its sum rate
POWER_LOSS = "power_loss_db"
POOLED_NMSE = "pooled NMSE"  # what rounds are measured by where nothing else is named
TARGET_BLER = 0.1  # where links are operated by custom


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One thing compared: ``name`` is its key in all rows, ``label`` what people read."""

    name: str
    label: str
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRow:
    """One prediction error with its 95 % interval.

    group: "all", "speed_kmh=<centre of the bin>" or "step=<1, 2, ...>".
    metric: "nmse_pooled", "nmse_mean" or "nmse_median", linear.
    """

    method: str
    snr_db: float
    group: str
    metric: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRow:
    """One figure of one method at one SNR of the link, with its 95 % interval over groups of users.

    metric: "sum_rate_bit_per_s_per_hz", "share_of_wmmse_100", "ber", "bler" or
    "throughput_bit_per_s_per_hz".
    """

    method: str
    snr_db: float
    metric: str
    value: float
    low: float
    high: float


Row = PredictionRow | LinkRow


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamRow:
    """One figure of one method's beams ``step`` sweeps ahead, with its 95 % interval over passes.

    metric: "power_loss_db", or "top1", "top3" or "within_one", shares of windows. reference: the method whose
    figure has been taken from this one's, window by window; None: the figure itself.
    """

    method: str
    step: int
    metric: str
    value: float
    low: float
    high: float
    reference: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GainRow:
    """``method`` minus ``reference``, paired sample by sample, with the 95 % interval of the difference."""

    method: str
    reference: str
    snr_db: float
    metric: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """Losses at one step of the fine-tuning; None where none was measured."""

    step: int
    train_loss: float | None = None
    validation_loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRow:
    """How a fine-tuning by a network's devices stood on validation drops after so much virtual time.

    nmse: the measure's value, less being better, which is an NMSE where no other is named. The sum rate is of
    users served on what was predicted for them.
    """

    now_s: float
    uplink_bytes: int
    nmse: float
    measure: str = POOLED_NMSE
    sum_rate_bit_per_s_per_hz: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """One cost of one method, e.g. quantity "trainable share", unit "%"."""

    method: str
    quantity: str
    value: float
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """Everything that the report says.

    snr_db_at_target_bler: per method, None where the simulated SNRs do not bracket it.
    user_nmse: each test user's own NMSE (mean over SNRs or at one: say which in the notes), for the CDF.
    settings: nested plain values (data, splits and seeds, model, training, link). notes: sentences, e.g.
    which part is a reconstruction and how channels were normalised.

    SpecError where a row names a method that is not listed, a listed method has no row, or a value is not
    finite.
    """

    task: str
    settings: dict[str, Any]
    methods: tuple[Method, ...]
    prediction: tuple[PredictionRow, ...] = ()
    link: tuple[LinkRow, ...] = ()
    gains: tuple[GainRow, ...] = ()
    beams: tuple[BeamRow, ...] = ()
    snr_db_at_target_bler: dict[str, float | None] = field(default_factory=dict)
    user_nmse: dict[str, tuple[float, ...]] = field(default_factory=dict)
    training: tuple[TrainingRow, ...] = ()
    network: tuple[NetworkRow, ...] = ()
    cost: tuple[CostRow, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise SpecError(f"methods are {names}; every name must be there once")
        for method in self.methods:
            if method.kind not in KINDS:
                raise SpecError(f"method {method.name!r} is of kind {method.kind!r}; expected one of {KINDS}")
        scores: list[Row | BeamRow] = [*self.prediction, *self.link, *self.beams]
        rows: list[Row | BeamRow | GainRow | CostRow] = [*scores, *self.gains, *self.cost]
        scored = {row.method for row in scores}
        compared = {row.reference for row in self.gains} | {row.reference for row in self.beams}
        named = {row.method for row in rows} | {name for name in compared if name is not None}
        unknown = (named | set(self.user_nmse) | set(self.snr_db_at_target_bler)) - set(names)
        if unknown:
            raise SpecError(
                f"results name {sorted(unknown)}, which methods does not list; add them to methods"
            )
        missing = [name for name in names if name not in scored]
        if missing:
            raise SpecError(f"no result for {missing}; evaluate them or take them out of methods")
        for row in rows:
            values = (v for v in dataclasses.astuple(row) if isinstance(v, float))
            if not all(map(math.isfinite, values)):
                raise SpecError(f"a result is not finite: {row}; look for NaN in the predictions")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the headline's figures included."""
        values = dataclasses.asdict(self)
        return {"headline": headline(self).figures, **values}

    @staticmethod
    def read(path: Path) -> "EvaluationResult":
        """The result that ``write_report`` put into a metrics.json; DataError if it is none."""
        kinds = {
            "methods": Method,
            "prediction": PredictionRow,
            "link": LinkRow,
            "gains": GainRow,
            "beams": BeamRow,
            "training": TrainingRow,
            "network": NetworkRow,
            "cost": CostRow,
        }
        try:
            values = json.loads(path.read_text())
            del values["headline"]
            values.setdefault("beams", ())  # older versions knew none
            for name, kind in kinds.items():
                values[name] = tuple(kind(**row) for row in values[name])
            values["user_nmse"] = {name: tuple(v) for name, v in values["user_nmse"].items()}
            return EvaluationResult(**values | {"notes": tuple(values["notes"])})
        except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not an evaluation's metrics ({error}); run evaluate again") from error

    def label(self, name: str) -> str:
        """What people read for a method."""
        return next(method.label for method in self.methods if method.name == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The answer in sentences, and its figures under dotted names."""

    sentences: tuple[str, ...]
    figures: dict[str, float]


def headline(result: EvaluationResult) -> Headline:
    """The LAM against the best classical method: prediction error, sum rate, SNR for the target BLER, beams.

    Each is taken at the middle of its SNRs, beams at the last sweep ahead, and the best classical method is
    chosen by that same figure.
    """
    parts = [
        _prediction_headline(result),
        _rate_headline(result),
        _bler_headline(result),
        _beam_headline(result),
    ]
    present = [part for part in parts if part is not None]
    sentences = tuple(sentence for sentence, _ in present)
    figures = {name: value for _, part in present for name, value in part.items()}
    if not present:
        sentences = ("Nothing to compare: there is no LAM beside a classical method in these results.",)
    return Headline(sentences=sentences, figures=figures)


Sentence = tuple[str, dict[str, float]]


def _prediction_headline(result: EvaluationResult) -> Sentence | None:
    rows = [row for row in result.prediction if row.group == "all" and row.metric == "nmse_pooled"]
    at_db, lam, classical = _contest(result, rows, largest=False)
    if lam is None or classical is None:
        return None
    gain_db = linear_to_db(classical.value / lam.value) if min(lam.value, classical.value) > 0 else 0.0
    verb = "lowers" if gain_db >= 0 else "raises"
    sentence = (
        f"Prediction, {at_db:g} dB: {result.label(lam.method)} {verb} the error by {abs(gain_db):.2f} dB "
        f"against {result.label(classical.method)}, the best classical method "
        f"(pooled NMSE {lam.value:.4f} against {classical.value:.4f}{_certainty(result, lam, classical)})."
    )
    figures = {"nmse.lam": lam.value, "nmse.best_classical": classical.value, "nmse.gain_db": gain_db}
    return sentence, figures | {"nmse.snr_db": at_db}


def _rate_headline(result: EvaluationResult) -> Sentence | None:
    rows = [row for row in result.link if row.metric == SUM_RATE]
    at_db, lam, classical = _contest(result, rows, largest=True)
    if lam is None or classical is None:
        return None
    difference = lam.value - classical.value
    share = f" ({100 * difference / classical.value:+.1f} %)" if classical.value > 0 else ""
    verb = "gains" if difference >= 0 else "loses"
    how = "precoding on " if result.prediction else ""  # else the methods are precoders themselves
    sentence = (
        f"Link, {at_db:g} dB: {how}{result.label(lam.method)} {verb} {abs(difference):.2f} bit/s/Hz"
        f"{share} of sum rate against {result.label(classical.method)}, the best classical method "
        f"on the link ({lam.value:.2f} against {classical.value:.2f} bit/s/Hz"
        f"{_certainty(result, lam, classical)})."
    )
    figures = {"sum_rate.lam": lam.value, "sum_rate.best_classical": classical.value}
    return sentence, figures | {"sum_rate.gain": difference, "sum_rate.snr_db": at_db}


def _bler_headline(result: EvaluationResult) -> Sentence | None:
    lam, classical = (
        min(
            (
                (snr_db, method.name)
                for method in result.methods
                if method.kind == kind
                and (snr_db := result.snr_db_at_target_bler.get(method.name)) is not None
            ),
            default=None,
        )
        for kind in ("lam", "classical")
    )
    if lam is None or classical is None:
        return None
    gain_db = classical[0] - lam[0]
    sentence = (
        f"Block error rate {100 * TARGET_BLER:g} %: {result.label(lam[1])} needs {abs(gain_db):.2f} dB "
        f"{'less' if gain_db >= 0 else 'more'} transmit power than {result.label(classical[1])} "
        f"({lam[0]:.2f} against {classical[0]:.2f} dB)."
    )
    return sentence, {"snr_at_bler.lam_db": lam[0], "snr_at_bler.best_classical_db": classical[0]}


def _beam_headline(result: EvaluationResult) -> Sentence | None:
    step = max((row.step for row in result.beams), default=0)
    kinds = {method.name: method.kind for method in result.methods}
    lost = [row for row in result.beams if (row.step, row.metric, row.reference) == (step, POWER_LOSS, None)]
    lam, classical = (
        min((row for row in lost if kinds[row.method] == kind), key=lambda row: row.value, default=None)
        for kind in ("lam", "classical")
    )
    if lam is None or classical is None:
        return None
    difference_db = lam.value - classical.value
    certainty = next(
        (
            _interval_text(row)
            for row in result.beams
            if (row.method, row.reference, row.step) == (lam.method, classical.method, step)
        ),
        "",
    )
    sentence = (
        f"Beams, {step} sweep{'s' if step > 1 else ''} ahead: {result.label(lam.method)} loses "
        f"{lam.value:.3f} dB of the best beam's power, {abs(difference_db):.3f} dB "
        f"{'less' if difference_db <= 0 else 'more'} than {result.label(classical.method)}, the best "
        f"classical method{certainty}."
    )
    figures = {"beams.lam_db": lam.value, "beams.best_classical_db": classical.value}
    return sentence, figures | {"beams.difference_db": difference_db, "beams.step": float(step)}


def _contest(
    result: EvaluationResult, rows: list[Any], *, largest: bool
) -> tuple[float, Row | None, Row | None]:
    """The middle SNR of the rows, and there the best LAM and the best classical method."""
    if not rows:
        return 0.0, None, None
    grid = sorted({row.snr_db for row in rows})
    at_db = grid[len(grid) // 2]
    kinds = {method.name: method.kind for method in result.methods}
    best: list[Row | None] = []
    for kind in ("lam", "classical"):
        own = [row for row in rows if row.snr_db == at_db and kinds[row.method] == kind]
        best.append((max if largest else min)(own, key=lambda row: row.value, default=None))
    return at_db, best[0], best[1]


def _certainty(result: EvaluationResult, lam: Row, classical: Row) -> str:
    """Says what the paired interval says, where there is one."""
    for gain in result.gains:
        if (gain.method, gain.reference, gain.metric, gain.snr_db) == (
            lam.method,
            classical.method,
            lam.metric,
            lam.snr_db,
        ):
            return _interval_text(gain)
    return ""


def _interval_text(difference: GainRow | BeamRow) -> str:
    low, high = difference.low, difference.high
    open_question = "; no clear difference" if low <= 0 <= high else ""
    return f"; 95 % interval of the difference {low:.4g} to {high:.4g}{open_question}"
