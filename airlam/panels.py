"""What a look into a dataset finds, ready to be drawn: panels of plain arrays with their labels."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line of a panel, or dots; x and y: [num_points]. NaN leaves a gap."""

    label: str
    x: Floats
    y: Floats
    look: Literal["measured", "theory", "dots", "other dots"] = "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePanel:
    """Curves on common axes."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    note: str = ""
    log: bool = False  # of the y axis
    bottom: float | None = None  # of the y axis


@dataclass(frozen=True, slots=True, kw_only=True)
class BarPanel:
    """A histogram: ``share`` [num_bins], 0 to 1, between ``edges`` [num_bins + 1]."""

    title: str
    x_label: str
    edges: Floats
    share: Floats
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatPanel:
    """Values [num_rows, num_columns] over a rectangle, row 0 at its smallest y.

    extent: (x from, y from, x to, y to).
    """

    title: str
    x_label: str
    y_label: str
    value_label: str
    values: Floats
    extent: tuple[float, float, float, float]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolarPanel:
    """Distances around a point; angle_rad counts counter-clockwise from the top. Both [num_directions]."""

    title: str
    angle_rad: Floats
    distance_m: Floats
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePanel:
    """Photographs, uint8 [num_images, num_rows, num_columns, 3], side by side, each with its label."""

    title: str
    images: NDArray[np.uint8]
    labels: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relief:
    """Heights above the ground in metres, [num_rows, num_columns], row 0 at the smallest y.

    extent_m: (x from, y from, x to, y to), from the base station's mast.
    """

    height_m: Floats
    extent_m: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPanel:
    """Where the users are, seen from above; the base station's mast is the origin.

    position_m: [num_positions, 2]. los: bool [num_positions]. path_loss_db: [num_positions], None where the
    model has none. tracks_m: positions of a user in order of time, each [num_steps, 2]. outline_m: the edge
    of where users may be, [num_points, 2] with NaN between its parts, or None.
    """

    title: str
    position_m: Floats
    los: NDArray[np.bool_]
    path_loss_db: Floats | None
    tracks_m: tuple[Floats, ...]
    outline_m: Floats | None
    boresight_deg: float  # from x towards y
    relief: Relief | None
    note: str = ""


Panel = CurvePanel | BarPanel | HeatPanel | PolarPanel | ImagePanel | MapPanel


@dataclass(frozen=True, slots=True, kw_only=True)
class Portrait:
    """A dataset at a glance: panels, what is left out and why, and the facts as text."""

    title: str
    subtitle: str
    panels: tuple[Panel, ...]
    absent: tuple[str, ...]
    facts: str
