"""A dataset's portrait as one picture: PNG, SVG, or a page of HTML with the facts beside it."""

import io
import re
import textwrap
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from airlam.errors import SpecError
from airlam.files import whole_file
from airlam.panel_drawing import draw, plain
from airlam.panels import MapPanel, Panel, PolarPanel, Portrait

SUFFIXES = (".png", ".svg", ".html")
PANEL_INCHES = (4.0, 3.2)
MARGIN_INCHES = 0.1
TITLE_POINTS, TITLE_INCHES = 14, 0.3  # of the font, and from line to line
TEXT_POINTS, LINE_INCHES = 9, 0.17
LETTER_WIDTH = 0.66  # of the font size; most text is narrower
MAX_LINES = 6  # of the title, and of each paragraph below it
MIN_WIDTH_INCHES = 8.0  # which the head's text needs


def write_picture(portrait: Portrait, path: Path) -> None:
    """Draws the portrait into a file that ends in .png, .svg or .html; the same portrait, the same bytes.

    SpecError for any other ending, before anything is drawn.
    """
    require_picture_name(path)
    with whole_file(path) as temporary:
        temporary.write_bytes(_picture(portrait, path.suffix.lower()))


def require_picture_name(path: Path) -> None:
    """SpecError where a file's name has an ending that no picture has."""
    if path.suffix.lower() not in SUFFIXES:
        raise SpecError(f"the picture is {path.name!r}; expected a name ending in {', '.join(SUFFIXES)}")


def _picture(portrait: Portrait, suffix: str) -> bytes:
    # text as paths looks alike everywhere; the salt makes ids repeatable
    options: Any = {"svg.hashsalt": portrait.title, "svg.fonttype": "path", "font.size": 9}
    with matplotlib.rc_context(options):
        figure = _figure(portrait)
        buffer = io.BytesIO()
        if suffix == ".png":
            figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
            return buffer.getvalue()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue() if suffix == ".svg" else _page(portrait, buffer.getvalue().decode()).encode()


def _page(portrait: Portrait, svg: str) -> str:
    """The picture and the facts as one page that asks for nothing over the network."""
    inline = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    inline = re.sub(r"\sxmlns(:\w+)?=\"[^\"]*\"", "", inline)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(files("airlam").joinpath("portrait_picture.html").read_text())
    # all of the text is drawn as paths, so nothing of the user's remains as markup
    return template.render(portrait=portrait, picture=Markup(inline))


def _figure(portrait: Portrait) -> Figure:
    """All panels on a grid, the map first and larger, under a head of text."""
    panels = sorted(portrait.panels, key=lambda panel: not isinstance(panel, MapPanel))
    cells = _cells([_size(panel) for panel in panels])
    num_rows = max(rows.stop for rows, _ in cells)
    num_columns = max(columns.stop for _, columns in cells)
    figure = Figure(figsize=(max(MIN_WIDTH_INCHES, PANEL_INCHES[0] * num_columns), 1.0))
    head_inches = _head(figure, portrait, PANEL_INCHES[1] * num_rows)
    below = 1 - head_inches / figure.get_figheight()
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12, rect=(0, 0, 1, below))
    grid = figure.add_gridspec(num_rows, num_columns)
    for panel, (rows, columns) in zip(panels, cells, strict=True):
        projection = "polar" if isinstance(panel, PolarPanel) else None
        axes = figure.add_subplot(grid[rows, columns], projection=projection)
        _title(axes, panel)
        draw(panel, axes)
    return figure


def _head(figure: Figure, portrait: Portrait, panels_inches: float) -> float:
    """The title and text above panels of some height: sets the figure's, returns its own, in inches."""
    width = figure.get_figwidth()
    title = _wrapped(portrait.title, width, TITLE_POINTS)
    paragraphs = [*portrait.subtitle.splitlines(), *portrait.absent]
    lines = [line for text in paragraphs for line in _wrapped(text, width, TEXT_POINTS)]
    text_top = MARGIN_INCHES + TITLE_INCHES * len(title)
    head_inches = text_top + LINE_INCHES * len(lines) + MARGIN_INCHES
    height = panels_inches + head_inches
    figure.set_figheight(height)
    look: dict[str, Any] = {"x": 0.15 / width, "va": "top"}
    title_look = look | {"fontsize": TITLE_POINTS, "fontweight": "bold"}
    text_look = look | {"fontsize": TEXT_POINTS, "color": "#555555", "linespacing": 1.3}
    figure.text(y=1 - MARGIN_INCHES / height, s=plain("\n".join(title)), **title_look)
    figure.text(y=1 - text_top / height, s=plain("\n".join(lines)), **text_look)
    return head_inches


def _wrapped(text: str, width_inches: float, points: float) -> list[str]:
    """Lines of a font size that fit the width; what is beyond ``MAX_LINES`` of them is left out."""
    letters = int(72 * width_inches / (LETTER_WIDTH * points))
    return textwrap.wrap(text, letters, max_lines=MAX_LINES, placeholder=" …")


def _size(panel: Panel) -> tuple[int, int]:
    """Rows and columns that a panel takes: a map is worth more room than a curve, in its own shape."""
    if not isinstance(panel, MapPanel):
        return 1, 1
    corners_m = [panel.position_m, *([] if panel.outline_m is None else [panel.outline_m])]
    seen_m = np.concatenate([*corners_m, np.zeros((1, 2))])
    width_m, height_m = np.nanmax(seen_m, axis=0) - np.nanmin(seen_m, axis=0)
    return 1 if width_m > 2 * height_m else 2, 2 if width_m > 0.75 * height_m else 1


def _cells(sizes: list[tuple[int, int]]) -> list[tuple[slice, slice]]:
    """Rows and columns of each panel's place; those of one cell are filled in around a larger first."""
    rows, columns = sizes[0]
    taken = sum(height * width for height, width in sizes)
    choices = (5, 4, 3) if columns > 1 else (4, 3)
    num_columns = min(taken // rows, min(choices, key=lambda count: -taken % count))  # fewest empty places
    free = (
        (slice(row, row + 1), slice(column, column + 1))
        for row in range(taken)
        for column in range(num_columns)
        if row >= rows or column >= columns
    )
    return [(slice(0, rows), slice(0, columns)), *(next(free) for _ in sizes[1:])]


def _title(axes: Axes, panel: Panel) -> None:
    axes.set_title(plain(panel.title), loc="left", fontsize=10, fontweight="bold", pad=17)
    axes.annotate(
        plain(panel.note),
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 5),
        textcoords="offset points",
        fontsize=7.5,
        color="#555555",
    )
