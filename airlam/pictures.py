"""The figures of an evaluation, as SVG."""

import dataclasses
import io
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from airlam.results import (
    BLER,
    POWER_LOSS,
    SUM_RATE,
    THROUGHPUT,
    BeamRow,
    EvaluationResult,
    Kind,
    PredictionRow,
    Row,
)

_MAX_CURVES_PER_KIND = 4  # a figure with more lines cannot be read; the tables have all


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture of the report; ``svg`` is inline markup, which notebooks show too."""

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
    for beams in result.beams:
        if beams.reference is None and beams.metric == POWER_LOSS:
            errors.setdefault(beams.method, []).append(beams.value)
    in_link = {row.method for row in result.link}

    def rank(name: str) -> tuple[bool, float]:
        # those simulated on the link first: a figure that lacks its counterpart helps little
        mean = sum(errors[name]) / len(errors[name]) if errors[name] else math.inf
        return name not in in_link, mean

    return sorted(names, key=rank)[:_MAX_CURVES_PER_KIND]


def pictures(result: EvaluationResult) -> list[Picture]:
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
        ("Power lost", "sweeps ahead", "dB", "Against the best beam of each sweep.", False,
         _by_step(result.beams, POWER_LOSS)),
        ("Best beam chosen", "sweeps ahead", "share of sweeps", "", False, _by_step(result.beams, "top1")),
    ]  # fmt: skip
    figures = [
        Picture(title=title, caption=caption, svg=_curves(result, title, x, y, log, points))
        for title, x, y, caption, log, points in plans
        if points
    ]
    if result.user_nmse:
        caption = "Share of test users whose own NMSE is below the value."
        figures.insert(3, Picture(title="Users", caption=caption, svg=_user_cdf(result)))
    if result.training:
        figures.append(Picture(title="Fine-tuning", caption="", svg=_training_curve(result)))
    if result.network:
        caption = "Of the fine-tuning by the network's devices, on its virtual clock."
        svg = _curve_of_time(result)
        figures.append(Picture(title="Accuracy against time", caption=caption, svg=svg))
    return figures


_Point = tuple[str, float, float, float, float]  # method, x, value, low, high


def _by_snr(rows: Iterable[Row]) -> list[_Point]:
    return [(row.method, row.snr_db, row.value, row.low, row.high) for row in rows]


def _by_group(rows: Iterable[PredictionRow], axis: str) -> list[_Point]:
    own = [row for row in rows if row.group.startswith(f"{axis}=")]
    return [(row.method, float(row.group.partition("=")[2]), row.value, row.low, row.high) for row in own]


def _by_step(rows: Iterable[BeamRow], metric: str) -> list[_Point]:
    own = [row for row in rows if row.metric == metric and row.reference is None]
    return [(row.method, row.step, row.value, row.low, row.high) for row in own]


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
        axes.set_xlabel("step")
        axes.set_ylabel("loss")

    return _svg("Fine-tuning", draw)


def _curve_of_time(result: EvaluationResult) -> Markup:
    def draw(axes: Axes) -> None:
        points = [(row.now_s, row.nmse) for row in result.network]
        axes.plot(*zip(*points, strict=True), label=result.network[0].measure, color=_LAM_COLORS[0])
        axes.set_xlabel("virtual time, s")
        axes.set_ylabel(result.network[0].measure)
        rates = [
            (row.now_s, row.sum_rate_bit_per_s_per_hz)
            for row in result.network
            if row.sum_rate_bit_per_s_per_hz is not None
        ]
        if rates:
            beside = axes.twinx()
            beside.plot(
                *zip(*rates, strict=True), label="sum rate", color=_CLASSICAL_COLORS[0], linestyle="--"
            )
            beside.set_ylabel("sum rate, bit/s/Hz")

    return _svg("Accuracy against time", draw)


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
