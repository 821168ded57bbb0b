"""How each kind of panel is drawn on axes."""

import itertools
import math
from functools import singledispatch
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import MaxNLocator

from airlam.panels import BarPanel, CurvePanel, HeatPanel, ImagePanel, MapPanel, PolarPanel, Relief

# Okabe and Ito's palette, as in the evaluation's figures
_BLUE, _SKY, _VERMILION, _GREEN, _GREY = "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#7A8FA6"
_COLORS = (_BLUE, _VERMILION, _GREEN)
_LOOKS: dict[str, dict[str, Any]] = {
    "measured": {"linewidth": 1.8, "zorder": 3},
    "theory": {"color": "#000000", "linewidth": 1.3, "linestyle": ":", "zorder": 4},
    "dots": {"color": _BLUE, "linestyle": "", "marker": "o", "markersize": 2.5, "alpha": 0.5},
    "other dots": {"color": _VERMILION, "linestyle": "", "marker": "x", "markersize": 2.5, "alpha": 0.5},
}


@singledispatch
def draw(panel: Any, axes: Axes) -> None:
    """Draws a panel of any kind on axes."""
    raise TypeError(f"{type(panel).__name__} is no panel")


@draw.register
def _draw_curves(panel: CurvePanel, axes: Axes) -> None:
    _grid(axes)
    for curve, color in zip(panel.curves, itertools.cycle(_COLORS)):
        look = {"color": color} | _LOOKS[curve.look]
        axes.plot(curve.x, curve.y, label=plain(curve.label), **look)
    if panel.log:
        axes.set_yscale("log")
    if panel.bottom is not None:
        axes.set_ylim(bottom=panel.bottom)
    if len(panel.curves) > 1:
        axes.legend(frameon=False, fontsize=7.5, loc="best")
    axes.set_xlabel(plain(panel.x_label))
    axes.set_ylabel(plain(panel.y_label))


@draw.register
def _draw_bars(panel: BarPanel, axes: Axes) -> None:
    _grid(axes)
    axes.stairs(100 * panel.share, panel.edges, fill=True, color=_SKY, edgecolor=_BLUE, zorder=2)
    axes.set_xlabel(plain(panel.x_label))
    axes.set_ylabel("share of users, %")


@draw.register
def _draw_heat(panel: HeatPanel, axes: Axes) -> None:
    image = axes.imshow(
        panel.values,
        extent=_sides(panel.extent),
        origin="lower",
        aspect="auto",
        cmap="cividis",
        interpolation="nearest",
    )
    _colorbar(axes, image, panel.value_label)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(plain(panel.x_label))
    axes.set_ylabel(plain(panel.y_label))


@draw.register
def _draw_polar(panel: PolarPanel, axes: Axes) -> None:
    assert isinstance(axes, PolarAxes)
    axes.set_theta_zero_location("N")
    angle = np.append(panel.angle_rad, panel.angle_rad[0] + 2 * math.pi)
    distance_m = np.append(panel.distance_m, panel.distance_m[0])
    axes.fill(angle, distance_m, color=_SKY, alpha=0.25, linewidth=0)
    axes.plot(angle, distance_m, color=_BLUE, linewidth=1.2, marker="o", markersize=2.5)
    axes.plot(0.0, 0.0, color=_VERMILION, marker="^", markersize=6)
    axes.set_ylim(bottom=0.0)
    axes.set_xticklabels([])
    axes.set_rlabel_position(-45)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} m")
    axes.tick_params(axis="y", labelsize=7.5, labelcolor="#555555")


@draw.register
def _draw_images(panel: ImagePanel, axes: Axes) -> None:
    """Each image on axes of its own, two in a row."""
    axes.set_axis_off()
    columns = min(2, len(panel.images))
    rows = math.ceil(len(panel.images) / columns)
    for index, (image, label) in enumerate(zip(panel.images, panel.labels, strict=True)):
        row, column = divmod(index, columns)
        inner = axes.inset_axes((column / columns, 1 - (row + 1) / rows, 0.98 / columns, 0.98 / rows))
        inner.imshow(image, interpolation="nearest")
        inner.set_axis_off()
        inner.annotate(
            plain(label),
            (0, 0),
            xycoords="axes fraction",
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=7,
            color="white",
            bbox={"boxstyle": "square,pad=0.2", "facecolor": "black", "alpha": 0.6, "linewidth": 0},
        )


@draw.register
def _draw_map(panel: MapPanel, axes: Axes) -> None:
    if panel.relief is not None:
        _draw_relief(panel.relief, axes)
    if panel.outline_m is not None:
        axes.plot(*panel.outline_m.T, color=_GREY, linewidth=1, linestyle="--", label="users' area", zorder=2)
    if panel.tracks_m:
        axes.add_collection(LineCollection(list(panel.tracks_m), colors=_GREY, linewidths=0.8, zorder=2))
    _draw_users(panel, axes)
    _draw_boresight(panel, axes)
    axes.plot(0, 0, color="black", marker="^", markersize=8, linestyle="", label="base station", zorder=5)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel("x from the base station, m")
    axes.set_ylabel("y, m")
    # below the axis' label: the pad counts in letters, whatever the map's height
    axes.legend(
        fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.8, ncols=2, frameon=False
    )


def _draw_boresight(panel: MapPanel, axes: Axes) -> None:
    """An arrow of fixed length on paper, whatever the scale."""
    angle = math.radians(panel.boresight_deg)
    axes.annotate(
        "",
        xy=(0, 0),
        xytext=(30 * math.cos(angle), 30 * math.sin(angle)),
        textcoords="offset points",
        arrowprops={"arrowstyle": "<|-", "color": "black", "linewidth": 1.2},
        zorder=5,
    )


def _draw_relief(relief: Relief, axes: Axes) -> None:
    high_m = np.quantile(relief.height_m, 0.98)  # a spire is not to bleach all other roofs
    axes.imshow(
        relief.height_m,
        extent=_sides(relief.extent_m),
        origin="lower",
        cmap="Greys",
        vmin=0.0,
        vmax=2.0 * max(1.0, float(high_m)),  # pale, so that users stand out
        zorder=0,
    )


def _draw_users(panel: MapPanel, axes: Axes) -> None:
    """Shape says line of sight; colour says path loss where there is any, else line of sight again."""
    markers = ((~panel.los, "no line of sight", "x", _VERMILION), (panel.los, "line of sight", "o", _BLUE))
    loss = panel.path_loss_db
    drawn = None
    for chosen, label, marker, color in markers:
        if not chosen.any():
            continue
        shown: dict[str, Any] = {"c": color}
        if loss is not None:
            shown = {"c": loss[chosen], "cmap": "cividis_r", "vmin": loss.min(), "vmax": loss.max()}
        x, y = panel.position_m[chosen].T
        points = axes.scatter(x, y, s=9, marker=marker, linewidths=0.7, label=label, zorder=3, **shown)
        drawn = points if loss is not None else None
    if drawn is not None:
        _colorbar(axes, drawn, "path loss, dB")


def _colorbar(axes: Axes, drawn: Any, label: str) -> None:
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(drawn, ax=axes, label=plain(label), shrink=0.8, pad=0.02)


def _sides(extent: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """A rectangle's corners as its left, right, bottom and top."""
    x_from, y_from, x_to, y_to = extent
    return x_from, x_to, y_from, y_to


def _grid(axes: Axes) -> None:
    axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def plain(text: str) -> str:
    """Text that matplotlib draws as it is, without reading dollars as mathematics."""
    return text.replace("$", r"\$")
