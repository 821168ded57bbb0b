"""Radio gains of an edge network's devices over time: places, path loss, shadowing, fading of each round.

TR 38.901's large-scale models are Sionna's. Cells are drawn apart and do not interfere. What a seed gives is
the same whatever was drawn before, so a resumed run meets the channels that it would have met.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sionna.phy import config

from airlam.datasets.stochastic.models import SCENARIOS, antenna_array
from airlam.specs import ArraySpec, NetworkSpec, ScenarioSpec

USER_HEIGHT_M = 1.5
BASE_STATION_HEIGHT_M = {"uma": 25.0, "umi": 10.0, "rma": 35.0}  # TR 38.901, tables 7.2-1 and 7.2-3
INTERCEPT_DB, SLOPE_DB, SHADOWING_DB = 128.1, 37.6, 8.0  # TR 36.814, macro cell, d in km
_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class EdgeScenario:
    """What stays from round to round; ``gains`` adds the fading of one.

    devices: names. distance_m: in the plane, to the own server. path_loss_db, shadowing_db: the latter added
    to the gain. rician_factor: K, linear, 0 for Rayleigh fading. All but names: [num_devices].
    """

    devices: tuple[str, ...]
    distance_m: _Floats
    path_loss_db: _Floats
    shadowing_db: _Floats
    rician_factor: _Floats
    antenna_gain_db: float
    is_fading: bool
    seed: int

    @property
    def mean_gain(self) -> _Floats:
        """E |h|^2 over fading, linear [num_devices]."""
        return np.asarray(10 ** ((self.antenna_gain_db - self.path_loss_db + self.shadowing_db) / 10))

    def mean_gains(self) -> Mapping[str, float]:
        """The same by device: what long-term plans are made on."""
        return dict(zip(self.devices, self.mean_gain.tolist(), strict=True))

    def gains(self, round_index: int) -> Mapping[str, float]:
        r"""|h|^2 of one round by device, linear: the same for the same seed and round.

        h = sqrt(g) (sqrt(K / (K + 1)) + sqrt(1 / (K + 1)) z), z ~ CN(0, 1), g the mean gain; rounds are
        independent.
        """
        if not self.is_fading:
            return self.mean_gains()
        generator = np.random.default_rng((self.seed, round_index))
        parts = generator.normal(scale=math.sqrt(0.5), size=(2, len(self.devices)))
        diffuse = np.sqrt(1 / (self.rician_factor + 1))
        steady = np.sqrt(self.rician_factor / (self.rician_factor + 1))
        power = (steady + diffuse * parts[0]) ** 2 + (diffuse * parts[1]) ** 2
        return dict(zip(self.devices, (self.mean_gain * power).tolist(), strict=True))


def draw_scenario(spec: NetworkSpec) -> EdgeScenario:
    """Places and large-scale fading of all devices, from ``spec.scenario.seed``.

    A device with a ``path_gain_db`` keeps it: no distance (NaN), no shadowing, Rayleigh fading if any.
    """
    scenario, devices = spec.scenario, tuple(spec.devices_by_name)
    generator = np.random.default_rng(scenario.seed)
    distance_m = _distances_m(scenario, generator, len(devices))
    angle = generator.uniform(0, 2 * math.pi, len(devices))
    if scenario.model == "log_distance":
        loss_db = INTERCEPT_DB + SLOPE_DB * np.log10(distance_m / 1000)
        shadowing_db, k_factor = generator.normal(0, SHADOWING_DB, len(devices)), np.zeros(len(devices))
    else:
        sionna_seed = int(generator.integers(2**63))
        loss_db, shadowing_db, k_factor = _tr38901(scenario, distance_m, angle, sionna_seed)
    fixed_db = np.array([d.path_gain_db is not None for d in spec.devices_by_name.values()])
    given_db = np.array([d.path_gain_db or 0.0 for d in spec.devices_by_name.values()])
    return EdgeScenario(
        devices=devices,
        distance_m=np.where(fixed_db, np.nan, distance_m),
        path_loss_db=np.where(fixed_db, scenario.antenna_gain_db - given_db, loss_db),
        shadowing_db=np.where(fixed_db, 0.0, shadowing_db) * scenario.shadow_fading,
        rician_factor=np.where(fixed_db, 0.0, k_factor) * (scenario.fading == "rician"),
        antenna_gain_db=scenario.antenna_gain_db,
        is_fading=scenario.fading != "none",
        seed=scenario.seed,
    )


def _distances_m(scenario: ScenarioSpec, generator: np.random.Generator, num: int) -> _Floats:
    """Uniform in the area of the ring: r^2 is uniform."""
    low, high = scenario.min_radius_m**2, scenario.max_radius_m**2
    return np.sqrt(generator.uniform(low, high, num))


def _tr38901(
    scenario: ScenarioSpec, distance_m: _Floats, angle: _Floats, seed: int
) -> tuple[_Floats, _Floats, _Floats]:
    """Path loss and shadowing in dB and the K-factor, 0 without line of sight; each [num_devices]."""
    model = _sionna_model(scenario)
    places = np.stack([distance_m * np.cos(angle), distance_m * np.sin(angle)], axis=-1)
    user_m = torch.full((1, len(distance_m), 3), USER_HEIGHT_M)
    user_m[0, :, :2] = torch.from_numpy(places)
    server_m = torch.tensor([[[0.0, 0.0, BASE_STATION_HEIGHT_M[scenario.model]]]])
    generator = config.torch_rng("cpu")
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        model.set_topology(
            ut_loc=user_m,
            bs_loc=server_m,
            ut_orientations=torch.zeros_like(user_m),
            bs_orientations=torch.zeros_like(server_m),
            ut_velocities=torch.zeros_like(user_m),
            in_state=torch.zeros(user_m.shape[:2], dtype=torch.bool),
            los="random",
        )
    finally:
        generator.set_state(state)
    large = model._lsp
    los = model._scenario.los[0, 0]  # [num_devices]
    k_factor = torch.where(los, large.k_factor[0, 0], 0.0)
    return (
        large.pathloss[0, 0].double().numpy(),
        10 * large.sf[0, 0].double().log10().numpy(),
        k_factor.double().numpy(),
    )


def _sionna_model(scenario: ScenarioSpec) -> Any:
    """Sionna's system-level model between single isotropic antennas, without a topology yet."""
    antenna = antenna_array(ArraySpec(antenna_pattern="omni"), scenario.carrier_frequency_hz)
    options: dict[str, Any] = {} if scenario.model == "rma" else {"o2i_model": "low"}
    return SCENARIOS[scenario.model](
        carrier_frequency=scenario.carrier_frequency_hz,
        ut_array=antenna,
        bs_array=antenna,
        direction="uplink",
        precision="single",
        device="cpu",
        **options,
    )
