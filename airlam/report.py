"""An evaluation as metrics.json, as tables for the terminal, and as one self-contained HTML page.

``EvaluationResult`` is all that goes in: what was compared, how it scored, what it cost. The page holds its
figures as inline SVG, asks for nothing over the network, and prints.
"""

import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Group
from rich.table import Table
from rich.text import Text

from airlam.errors import DataError, SpecError
from airlam.files import whole_file, write_json
from airlam.units import linear_to_db

Kind = Literal["classical", "learned", "lam", "bound"]
KINDS: tuple[Kind, ...] = ("classical", "learned", "lam", "bound")
SUM_RATE, BLER, THROUGHPUT = "sum_rate_bit_per_s_per_hz", "bler", "throughput_bit_per_s_per_hz"
TARGET_BLER = 0.1  # where links are operated by custom
_MAX_CURVES_PER_KIND = 4  # a figure with more lines cannot be read; the tables have all
_METRIC_LABELS = {
    "nmse_pooled": "NMSE, pooled (error energy over channel energy, all users together)",
    "nmse_mean": "NMSE, mean of the users' own ratios",
    "nmse_median": "NMSE, median user",
    SUM_RATE: "Sum rate, bit/s/Hz",
    THROUGHPUT: "Throughput, bit/s/Hz",
    BLER: "Block error rate",
    "ber": "Bit error rate after decoding",
}


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

    metric: "sum_rate_bit_per_s_per_hz", "ber", "bler" or "throughput_bit_per_s_per_hz".
    """

    method: str
    snr_db: float
    metric: str
    value: float
    low: float
    high: float


Row = PredictionRow | LinkRow


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
    snr_db_at_target_bler: dict[str, float | None] = field(default_factory=dict)
    user_nmse: dict[str, tuple[float, ...]] = field(default_factory=dict)
    training: tuple[TrainingRow, ...] = ()
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
        scores: list[Row] = [*self.prediction, *self.link]
        rows: list[Row | GainRow | CostRow] = [*scores, *self.gains, *self.cost]
        scored = {row.method for row in scores}
        named = {row.method for row in rows} | {row.reference for row in self.gains}
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
            "training": TrainingRow,
            "cost": CostRow,
        }
        try:
            values = json.loads(path.read_text())
            del values["headline"]
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


def write_report(result: EvaluationResult, folder: Path) -> Path:
    """Writes metrics.json and report.html into ``folder``; returns the page's path."""
    write_json(folder / "metrics.json", result.to_dict())
    page = folder / "report.html"
    with whole_file(page) as temporary:
        temporary.write_text(render_html(result))
    return page


def headline(result: EvaluationResult) -> Headline:
    """The LAM against the best classical method: prediction error, sum rate, SNR for the target BLER.

    Each is taken at the middle of its SNRs, and the best classical method is chosen by that same figure.
    """
    parts = [_prediction_headline(result), _rate_headline(result), _bler_headline(result)]
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
    sentence = (
        f"Link, {at_db:g} dB: precoding on {result.label(lam.method)} {verb} {abs(difference):.2f} bit/s/Hz"
        f"{share} of sum rate against {result.label(classical.method)}, the best classical method "
        f"({lam.value:.2f} against {classical.value:.2f} bit/s/Hz{_certainty(result, lam, classical)})."
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
            open_question = "; no clear difference" if gain.low <= 0 <= gain.high else ""
            return f"; 95 % interval of the difference {gain.low:.4g} to {gain.high:.4g}{open_question}"
    return ""


def text_table(result: EvaluationResult) -> Group:
    """The report for a rich console: errors, rates, block errors, then the headline."""
    parts: list[Table | Text] = []
    for metric in ("nmse_pooled", SUM_RATE, BLER):
        grid, lines = _table(result, metric)
        if not lines:
            continue
        table = Table(title=_METRIC_LABELS[metric], title_justify="left")
        table.add_column("method")
        for snr_db in grid:
            table.add_column(f"{snr_db:g} dB", justify="right")
        for method, cells in lines:
            texts = ["" if row is None else _number(row.value) for row in cells]
            table.add_row(Text(method.label), *texts, style="bold" if method.kind == "lam" else None)
        parts.append(table)
    parts += [Text(sentence) for sentence in headline(result).sentences]
    return Group(*parts)


def render_html(result: EvaluationResult) -> str:
    """The page, as text; whatever comes from the result is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"] = _number
    template = environment.from_string(files("airlam").joinpath("report.html").read_text())
    tables = [(_METRIC_LABELS[metric], *_table(result, metric)) for metric in _METRIC_LABELS]
    return template.render(
        result=result,
        task=result.task.replace("_", " ").capitalize(),
        headline=headline(result),
        target_bler=TARGET_BLER,
        figures=_figures(result),
        tables=[table for table in tables if table[2]],
        settings=list(_flat(result.settings)),
    )


def _table(
    result: EvaluationResult, metric: str
) -> tuple[list[float], list[tuple[Method, list[Row | None]]]]:
    """SNRs, and for each method that has the metric its rows at these SNRs."""
    overall = [row for row in result.prediction if row.group == "all"]
    scores: list[Row] = [*overall, *result.link]
    rows = {(row.method, row.snr_db): row for row in scores if row.metric == metric}
    grid = sorted({snr_db for _, snr_db in rows})
    lines = [(method, [rows.get((method.name, snr_db)) for snr_db in grid]) for method in result.methods]
    return grid, [line for line in lines if any(line[1])]


def _number(value: float) -> str:
    """Three significant digits, without an exponent where a short decimal does."""
    if value != 0 and abs(value) < 1e-4:
        return f"{value:.2e}"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:#.3g}"


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """Dotted names and texts of nested settings."""
    if not isinstance(value, dict):
        yield name, str(value)
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{name}.{key}" if name else str(key))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    """One picture of the page."""

    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
    color: str
    linestyle: str
    marker: str
    linewidth: float
    order: int


# Okabe and Ito's palette, told apart with colour-blind eyes; the LAM alone has its vermilion and a thick line
_LAM_COLORS = ("#D55E00", "#E69F00", "#A03000")
_CLASSICAL_COLORS = ("#0072B2", "#56B4E9", "#003B5C", "#7A8FA6")
_LEARNED_COLORS = ("#009E73", "#CC79A7", "#00664B", "#8C4A75")


def _styles(result: EvaluationResult) -> dict[str, _Style]:
    """One look per method, the same in every figure; the drawn methods only, best of each kind first."""
    looks: dict[Kind, tuple[tuple[str, ...], str, str, float]] = {
        "lam": (_LAM_COLORS, "-", "o^v", 2.6),
        "classical": (_CLASSICAL_COLORS, "--", "sDPX", 1.5),
        "learned": (_LEARNED_COLORS, "-.", "<>dp", 1.5),
        "bound": (("#000000", "#555555"), ":", "  ", 1.5),
    }
    styles = {}
    for kind, (colors, linestyle, markers, linewidth) in looks.items():
        drawn = _drawn(result, kind)[: len(colors)]
        for index, name in enumerate(drawn):
            styles[name] = _Style(
                color=colors[index],
                linestyle=linestyle,
                marker=markers[index],
                linewidth=linewidth,
                order=3 if kind == "lam" else 2,
            )
    return styles


def _drawn(result: EvaluationResult, kind: Kind) -> list[str]:
    """The methods of a kind that figures show: of the classical and learned ones, the best few."""
    names = [method.name for method in result.methods if method.kind == kind]
    errors: dict[str, list[float]] = {name: [] for name in names}
    for row in result.prediction:
        if row.method in errors and row.group == "all" and row.metric == "nmse_pooled":
            errors[row.method].append(row.value)
    in_link = {row.method for row in result.link}

    def rank(name: str) -> tuple[bool, float]:
        # those simulated on the link first: a figure that lacks its counterpart helps little
        mean = sum(errors[name]) / len(errors[name]) if errors[name] else math.inf
        return name not in in_link, mean

    return sorted(names, key=rank)[:_MAX_CURVES_PER_KIND]


def _figures(result: EvaluationResult) -> list[_Figure]:
    """The pictures for which there are results."""
    middle = sorted({row.snr_db for row in result.prediction})
    at_db = middle[len(middle) // 2] if middle else 0.0
    pooled = [row for row in result.prediction if row.metric == "nmse_pooled"]
    overall = [row for row in pooled if row.group == "all"]
    grouped = [row for row in pooled if row.snr_db == at_db]
    link = {
        metric: [row for row in result.link if row.metric == metric]
        for metric in (SUM_RATE, BLER, THROUGHPUT)
    }
    plans: list[tuple[str, str, str, str, bool, list[_Point]]] = [
        ("Prediction error", "SNR of the measured history, dB", "pooled NMSE", "", True, _by_snr(overall)),
        ("Prediction error by speed", "speed, km/h", "pooled NMSE", f"History at {at_db:g} dB.", True,
         _by_group(grouped, "speed_kmh")),
        ("Prediction error by step", "slots ahead", "pooled NMSE", f"History at {at_db:g} dB.", True,
         _by_group(grouped, "step")),
        ("Sum rate", "transmit SNR, dB", "bit/s/Hz", "From the SINR, before any overhead.", False,
         _by_snr(link[SUM_RATE])),
        ("Block error rate", "transmit SNR, dB", "BLER", "A line that leaves the axes goes to 0.",
         True, _by_snr(link[BLER])),
        ("Throughput", "transmit SNR, dB", "delivered bit/s/Hz", "At one modulation and code rate.",
         False, _by_snr(link[THROUGHPUT])),
    ]  # fmt: skip
    figures = [
        _Figure(title=title, caption=caption, svg=_curves(result, title, x, y, log, points))
        for title, x, y, caption, log, points in plans
        if points
    ]
    if result.user_nmse:
        caption = "Share of test users whose own NMSE is below the value."
        figures.insert(3, _Figure(title="Users", caption=caption, svg=_user_cdf(result)))
    if result.training:
        figures.append(_Figure(title="Fine-tuning", caption="", svg=_training_curve(result)))
    return figures


_Point = tuple[str, float, float, float, float]  # method, x, value, low, high


def _by_snr(rows: Iterable[Row]) -> list[_Point]:
    return [(row.method, row.snr_db, row.value, row.low, row.high) for row in rows]


def _by_group(rows: Iterable[PredictionRow], axis: str) -> list[_Point]:
    own = [row for row in rows if row.group.startswith(f"{axis}=")]
    return [(row.method, float(row.group.partition("=")[2]), row.value, row.low, row.high) for row in own]


def _curves(
    result: EvaluationResult, title: str, x_label: str, y_label: str, log: bool, points: list[_Point]
) -> Markup:
    """One line a method with its interval as a band."""
    bottom = min((point[2] for point in points if point[2] > 0), default=1.0) / 2

    def draw(axes: Axes) -> None:
        for name, style in _styles(result).items():
            own = sorted(point[1:] for point in points if point[0] == name)
            if not own:
                continue
            xs, *heights = zip(*own, strict=True)
            if log:  # a value of 0 lies below the axes' bottom, where the line leaves them
                heights = [tuple(max(height, bottom / 10) for height in line) for line in heights]
            values, lows, highs = heights
            axes.plot(xs, values, label=_plain(result.label(name)), **_line(style))
            axes.fill_between(xs, lows, highs, color=style.color, alpha=0.12, linewidth=0)
        if log:
            axes.set_yscale("log")
            axes.set_ylim(bottom=bottom)
        if all(float(point[1]).is_integer() for point in points):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return _svg(title, draw)


def _user_cdf(result: EvaluationResult) -> Markup:
    def draw(axes: Axes) -> None:
        for name, style in _styles(result).items():
            errors = sorted(result.user_nmse.get(name, ()))
            if errors:
                share = [(index + 1) / len(errors) for index in range(len(errors))]
                axes.plot(errors, share, label=_plain(result.label(name)), **_line(style) | {"marker": None})
        axes.set_xscale("log")
        axes.set_xlabel("NMSE of the user")
        axes.set_ylabel("share of users")

    return _svg("Users", draw)


def _training_curve(result: EvaluationResult) -> Markup:
    def draw(axes: Axes) -> None:
        for key, label, color in (
            ("train_loss", "training", _CLASSICAL_COLORS[1]),
            ("validation_loss", "validation", _LAM_COLORS[0]),
        ):
            points = [
                (row.step, getattr(row, key)) for row in result.training if getattr(row, key) is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, color=color)
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")

    return _svg("Fine-tuning", draw)


def _plain(text: str) -> str:
    """Text that matplotlib draws as it is, without reading dollars as mathematics."""
    return text.replace("$", r"\$")


def _line(style: _Style) -> dict[str, Any]:
    """The style as arguments of ``plot``."""
    values = dataclasses.asdict(style)
    return {"zorder": values.pop("order"), "markersize": 5} | values


def _svg(title: str, draw: Callable[[Axes], None]) -> Markup:
    """A figure as inline SVG: the same bytes for the same data, ids of its own, no address in it."""
    # text as paths looks alike everywhere; the salt keeps ids of several figures on one page apart
    with matplotlib.rc_context({"svg.hashsalt": title, "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(6.2, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|\sxmlns(:\w+)?=\"[^\"]*\"", "", svg, flags=re.DOTALL)
    # all of the text is drawn as paths, so nothing of the user's remains as markup
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{Markup.escape(title)}" ', 1))
