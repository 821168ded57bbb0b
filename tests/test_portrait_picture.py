"""A portrait's picture: where things are drawn, text that fits, files that are refused."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from airlam.errors import SpecError
from airlam.panel_drawing import draw
from airlam.panels import Curve, CurvePanel, HeatPanel, MapPanel, PolarPanel, Portrait, Relief
from airlam.portrait_picture import _cells, _figure, write_picture

CURVE = CurvePanel(
    title="Curve",
    x_label="x",
    y_label="y",
    curves=(Curve(label="measured", x=np.arange(3.0), y=np.arange(3.0)),),
)
PORTRAIT = Portrait(title="a set", subtitle="of channels", panels=(CURVE,), absent=(), facts="facts")
MAP = MapPanel(
    title="Map",
    position_m=np.array([[10.0, 0.0], [20.0, 5.0]]),
    los=np.array([True, False]),
    path_loss_db=None,
    tracks_m=(),
    outline_m=None,
    boresight_deg=120.0,
    relief=Relief(height_m=np.zeros((2, 4)), extent_m=(-40.0, -10.0, 60.0, 30.0)),
)


def axes_of(panel: Any, **options: Any) -> Axes:
    """The panel, drawn."""
    axes = Figure().add_subplot(**options)
    draw(panel, axes)
    return axes


@pytest.mark.parametrize("first", [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("num_panels", range(1, 16))
def test_places_on_the_page_never_overlap(first: tuple[int, int], num_panels: int) -> None:
    taken = np.zeros((20, 6), int)
    for rows, columns in _cells([first, *[(1, 1)] * (num_panels - 1)]):
        taken[rows, columns] += 1
    assert taken.max() == 1 and taken.sum() == num_panels - 1 + first[0] * first[1]


def test_the_boresight_is_an_arrow_in_its_direction() -> None:
    axes = axes_of(MAP)
    (tip,) = [text.xyann for text in axes.texts if getattr(text, "arrowprops", None)]
    assert math.degrees(math.atan2(tip[1], tip[0])) == pytest.approx(120)


def test_relief_and_heat_lie_where_they_belong() -> None:
    assert axes_of(MAP).images[0].get_extent() == [-40, 60, -10, 30]
    heat = HeatPanel(
        title="Heat",
        x_label="x",
        y_label="y",
        value_label="v",
        values=np.zeros((3, 5)),
        extent=(1.0, -0.5, 6.0, 2.5),
    )
    assert axes_of(heat).images[0].get_extent() == [1, 6, -0.5, 2.5]


def test_a_scan_has_the_heading_on_top_and_the_left_on_the_left() -> None:
    angle_rad = 2 * math.pi * np.arange(4) / 4
    panel = PolarPanel(title="Scan", angle_rad=angle_rad, distance_m=np.array([40.0, 30.0, 20.0, 10.0]))
    axes = axes_of(panel, projection="polar")
    line = axes.lines[0].get_xydata()
    middle = axes.transData.transform((0.0, 0.0))
    ahead, left, behind, right, _ = axes.transData.transform(line) - middle
    assert ahead[1] > 0 and behind[1] < 0 and left[0] < 0 and right[0] > 0
    assert np.linalg.norm(left) > np.linalg.norm(right)
    assert axes.get_ylim()[0] == 0


@pytest.mark.parametrize("text", ["word " * 400, "x" * 3000, "first line\n" + "Wide " * 100])
def test_text_of_any_length_fits_above_the_panels(text: str) -> None:
    figure = _figure(dataclasses.replace(PORTRAIT, title=text, subtitle=text, absent=(text,)))
    figure.draw_without_rendering()
    width, height = figure.bbox.width, figure.bbox.height
    title, head = (each.get_window_extent() for each in figure.texts)
    (panel,) = (axes.get_tightbbox() for axes in figure.axes)
    assert panel is not None
    assert title.x0 > 0 and title.x1 < width and head.x1 < width and title.y1 < height
    assert panel.y1 < head.y0 and head.y1 < title.y0
    assert figure.get_figheight() < 10


def test_short_text_is_kept_whole() -> None:
    title, head = _figure(dataclasses.replace(PORTRAIT, absent=("No map.",))).texts
    assert title.get_text() == "a set" and head.get_text() == "of channels\nNo map."


def test_another_ending_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"expected a name ending in \.png, \.svg, \.html"):
        write_picture(PORTRAIT, tmp_path / "street.pdf")
    assert not (tmp_path / "street.pdf").exists()
