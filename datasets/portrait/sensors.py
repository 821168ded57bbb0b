"""What a dataset's sensors see: panels of its portrait, along the first trajectory with readings."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airlam.datasets.fields import reading_fields
from airlam.datasets.portrait.sample import read_values, spread
from airlam.datasets.store import ChannelDataset
from airlam.panels import Curve, CurvePanel, HeatPanel, ImagePanel, Panel, PolarPanel
from airlam.specs.sensors import presence_and_age

MAX_IMAGES = 4
MAX_STEPS = 200  # of a trajectory, in a panel over time
BEAM_FLOOR_DB = -25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Drops in which a source has a sensor's reading, in order of trajectory and time.

    drops: int64 [num_drops]. source: the user, or 0 for the base station. trajectory: int64 [num_drops].
    time_s: float64 [num_drops].
    """

    drops: NDArray[np.int64]
    source: int
    trajectory: NDArray[np.int64]
    time_s: NDArray[np.float64]

    def __getitem__(self, chosen: NDArray[np.integer[Any]] | NDArray[np.bool_] | slice) -> "Seen":
        """Some of the drops."""
        return Seen(
            drops=self.drops[chosen],
            source=self.source,
            trajectory=self.trajectory[chosen],
            time_s=self.time_s[chosen],
        )

    @property
    def whose(self) -> str:
        """The user and the first trajectory, for a note."""
        return f"user {self.source}, trajectory {self.trajectory[0]}"


def sensor_panels(dataset: ChannelDataset, split: str) -> list[Panel | str]:
    """Images, a range scan, and the others over time: of the sensors that the dataset has, or why not."""
    there = reading_fields(dataset.spec)
    panels: list[Panel | str] = []
    if "camera_image" in there:
        panels.append(_image_panel(dataset, split))
    if "range_scan_m" in there:
        panels.append(_range_panel(dataset, split))
    if "beam_power" in there:
        panels.append(_beam_panel(dataset, split))
    if "gnss_position_m" in there:
        panels.append(_position_panel(dataset, split))
    if "inertial_reading" in there:
        panels += _inertial_panels(dataset, split)
    return panels


def seen_of(dataset: ChannelDataset, split: str, reading: str) -> Seen | None:
    """Where a reading is there, for the first user who ever has it; None where all are missing."""
    num_drops = dataset.num_drops(split)
    present = dataset.field(split, presence_and_age(reading)[0]).numpy().reshape(num_drops, -1)
    if not present.any():
        return None
    source = int(present.any(axis=0).argmax())
    trajectory = dataset.field(split, "trajectory").long().numpy()
    time_s = read_values(dataset, split, "time_s")
    order = np.lexsort((time_s, trajectory))
    drops = order[present[order, source]]
    return Seen(drops=drops, source=source, trajectory=trajectory[drops], time_s=time_s[drops])


def _image_panel(dataset: ChannelDataset, split: str) -> Panel | str:
    """Images evenly spread over the split."""
    seen = seen_of(dataset, split, "camera_image")
    if seen is None:
        return "No images: the camera's are all missing."
    few = seen[spread(len(seen.drops), MAX_IMAGES)]
    labels = [
        f"trajectory {trajectory}, {time_s:.1f} s"
        for trajectory, time_s in zip(few.trajectory, few.time_s, strict=True)
    ]
    return ImagePanel(
        title="Camera at the base station",
        images=dataset.field(split, "camera_image", few.drops).numpy(),
        labels=tuple(labels),
    )


def _range_panel(dataset: ChannelDataset, split: str) -> Panel | str:
    """The scan in the middle of the split."""
    seen = seen_of(dataset, split, "range_scan_m")
    if seen is None:
        return "No range scan: all are missing."
    one = seen[len(seen.drops) // 2 :][:1]
    scan_m = read_values(dataset, split, "range_scan_m", one.drops)[0, one.source]  # [num_directions]
    return PolarPanel(
        title="Range scan around a user",
        angle_rad=2 * np.pi * np.arange(len(scan_m)) / len(scan_m),
        distance_m=scan_m,
        note=f"heading upwards; {one.whose}, {one.time_s[0]:.1f} s",
    )


def _beam_panel(dataset: ChannelDataset, split: str) -> Panel | str:
    """The latest sweep, along the trajectory on which it is there first."""
    seen = _along_first(dataset, split, "beam_power")
    if seen is None:
        return "No beam powers: all are missing."
    sweeps = read_values(dataset, split, "beam_power", seen.drops)  # [drops, users, past, beams]
    power = sweeps[:, seen.source, -1]  # [drops, beams]
    level_db = 10 * np.log10((power / power.max(initial=1e-300)).clip(min=10 ** (BEAM_FLOOR_DB / 10)))
    assert dataset.spec.site is not None  # a dataset with readings is ray-traced
    last_s = float(seen.time_s[-1]) + dataset.spec.site.position_interval_s
    latest = _over_even_steps(seen.time_s, last_s, dataset.spec.site.position_interval_s)  # [steps]
    return HeatPanel(
        title="Beam powers along a trajectory",
        x_label="time, s",
        y_label="beam",
        value_label="power, dB",
        values=level_db[latest].T,
        extent=(float(seen.time_s[0]), -0.5, last_s, power.shape[1] - 0.5),
        note=f"latest sweep; {seen.whose}",
    )


def _over_even_steps(time_s: NDArray[np.float64], last_s: float, step_s: float) -> NDArray[np.int64]:
    """For each step from first to last, the latest of some times then: a gap shows what was last known.

    At most ``MAX_STEPS`` of them, longer ones where the way is longer.
    """
    num_steps = int(np.clip(np.rint((last_s - time_s[0]) / step_s), 1, MAX_STEPS))
    edges_s = np.linspace(time_s[0], last_s, num_steps + 1)
    middles_s = (edges_s[:-1] + edges_s[1:]) / 2  # [steps]
    return np.searchsorted(time_s, middles_s, side="right") - 1


def _position_panel(dataset: ChannelDataset, split: str) -> Panel | str:
    """What GNSS says less where the user is; it was said some time ago, so motion counts too."""
    seen = _along_first(dataset, split, "gnss_position_m")
    if seen is None:
        return "No GNSS positions: all are missing."
    said_m, true_m = (
        read_values(dataset, split, name, seen.drops)[:, seen.source]  # [drops, xyz]
        for name in ("gnss_position_m", "position_m")
    )
    errors = dict(zip("xyz", (said_m - true_m).T, strict=True))
    return _over_time(seen, "GNSS position less the true one", "error, m", errors)


def _inertial_panels(dataset: ChannelDataset, split: str) -> list[Panel | str]:
    """The latest sample of each drop."""
    seen = _along_first(dataset, split, "inertial_reading")
    if seen is None:
        return ["No inertial readings: all are missing."]
    samples = read_values(dataset, split, "inertial_reading", seen.drops)  # [drops, users, samples, 3]
    forwards, left, turn_rate = samples[:, seen.source, -1].T  # [drops] each
    accelerations = {"forwards": forwards, "to the left": left}
    return [
        _over_time(seen, "Accelerometer", "acceleration, m/s²", accelerations),
        _over_time(seen, "Gyroscope", "turn rate, rad/s", {"to the left": turn_rate}),
    ]


def _over_time(seen: Seen, title: str, y_label: str, values: dict[str, NDArray[np.float64]]) -> CurvePanel:
    """Curves [num_drops] by label, against the time of their drops."""
    return CurvePanel(
        title=title,
        x_label="time, s",
        y_label=y_label,
        curves=tuple(Curve(label=label, x=seen.time_s, y=each) for label, each in values.items()),
        note=seen.whose,
    )


def _along_first(dataset: ChannelDataset, split: str, reading: str) -> Seen | None:
    """Where a reading is there along the first trajectory that has any, at most ``MAX_STEPS`` times."""
    seen = seen_of(dataset, split, reading)
    if seen is None:
        return None
    return seen[seen.trajectory == seen.trajectory[0]][:MAX_STEPS]
