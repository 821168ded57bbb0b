"""Where a dataset's users are: the panels of its portrait that need positions."""

import math

import numpy as np
from numpy.typing import NDArray

from airlam.datasets.portrait.relief import site_relief
from airlam.datasets.portrait.sample import read_values, spread
from airlam.datasets.store import ChannelDataset
from airlam.panels import Curve, CurvePanel, MapPanel, Panel
from airlam.specs import DatasetSpec
from airlam.units import SPEED_OF_LIGHT_M_PER_S

MAX_PLACES = 3000  # dots of a panel; more hide each other


def map_panel(dataset: ChannelDataset, split: str) -> Panel | str:
    """Positions from above with what is known about them, or why there is no map."""
    spec = dataset.spec
    if spec.channel.is_link_level:
        return f"No map: {spec.channel.model.upper().replace('_', '-')} knows no places."
    position_m, loss_db, los = _places(dataset, split)
    if not position_m.any():
        return "No map: the file gives no positions."
    relief = site_relief(dataset.path)
    return MapPanel(
        title="Users from above",
        position_m=position_m[:, :2],
        los=los,
        path_loss_db=loss_db if spec.channel.knows_path_loss else None,
        tracks_m=_tracks(dataset, split),
        outline_m=_outline(spec),
        boresight_deg=spec.site.base_station_yaw_deg if spec.site is not None else 0.0,
        relief=relief,
        note=f"{len(los)} positions, {100 * los.mean():.0f} % in line of sight"
        + ("" if relief is None else "; the darker, the higher the building"),
    )


def path_loss_panel(dataset: ChannelDataset, split: str) -> Panel | str:
    """Path loss against distance, beside free space; empty where the model has none."""
    spec = dataset.spec
    if not spec.channel.knows_path_loss:
        return ""
    position_m, loss_db, los = _places(dataset, split)
    distance_m = np.linalg.norm(position_m - _mast_m(spec), axis=1).clip(min=1.0)
    line_m = np.geomspace(distance_m.min(), distance_m.max(), 50)
    wave_m = SPEED_OF_LIGHT_M_PER_S / spec.channel.carrier_frequency_hz
    curves = (
        Curve(label="no line of sight", x=distance_m[~los], y=loss_db[~los], look="other dots"),
        Curve(label="line of sight", x=distance_m[los], y=loss_db[los], look="dots"),
        Curve(label="free space", x=line_m, y=20 * np.log10(4 * math.pi * line_m / wave_m), look="theory"),
    )
    return CurvePanel(
        title="Path loss",
        x_label="distance, m",
        y_label="path loss, dB",
        curves=tuple(curve for curve in curves if len(curve.x)),
    )


def _places(
    dataset: ChannelDataset, split: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Position [n, 3], path loss in dB [n] and line of sight [n] of users in evenly spread drops."""
    rows = spread(dataset.num_drops(split), max(1, MAX_PLACES // dataset.spec.num_users))
    position_m = read_values(dataset, split, "position_m", rows).reshape(-1, 3)
    loss_db = read_values(dataset, split, "path_loss_db", rows).reshape(-1)
    return position_m, loss_db, dataset.field(split, "los", rows).numpy().reshape(-1)


def _tracks(dataset: ChannelDataset, split: str) -> tuple[NDArray[np.float64], ...]:
    """Each user's way along each trajectory in order of time: float64 [num_steps, 2] each."""
    if not dataset.spec.channel.is_ray_traced:
        return ()
    trajectory = dataset.field(split, "trajectory").numpy()  # [drops]
    order = np.lexsort((read_values(dataset, split, "time_s"), trajectory))
    position_m = read_values(dataset, split, "position_m", order)  # [drops, users, 3]
    starts = np.flatnonzero(np.diff(trajectory[order])) + 1
    return tuple(part[:, user, :2] for part in np.split(position_m, starts) for user in range(part.shape[1]))


def _outline(spec: DatasetSpec) -> NDArray[np.float64] | None:
    """The edge of the arc or area in which users are placed: float64 [num_points, 2], NaN between parts."""
    if spec.site is not None:
        x_from, y_from, x_to, y_to = spec.site.area_m
        corners = np.array([(x_from, y_from), (x_to, y_from), (x_to, y_to), (x_from, y_to), (x_from, y_from)])
        from_mast: NDArray[np.float64] = corners - np.array(spec.site.origin_m[:2])
        return from_mast
    place = spec.placement
    angles = np.radians(np.linspace(*place.arc_deg, 90))
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # [90, 2]
    outer, inner = place.max_radius_m * around, place.min_radius_m * around[::-1]
    whole_circle = place.arc_deg[1] - place.arc_deg[0] >= 360
    ring = [outer, np.full((1, 2), np.nan), inner] if whole_circle else [outer, inner, outer[:1]]
    edge: NDArray[np.float64] = np.array(place.user_center_m) + np.concatenate(ring)
    return edge


def _mast_m(spec: DatasetSpec) -> NDArray[np.float64]:
    """The base station's antennas, from the origin of positions: float64 [3]."""
    if spec.site is None:
        return np.array([0.0, 0.0, spec.placement.base_station_height_m])
    return np.subtract(spec.site.base_station_position_m, spec.site.origin_m)
