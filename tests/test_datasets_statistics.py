"""What the generator draws has the statistics of TR 38.901 (v19.2, as Sionna 2.2 packages its tables).

Large-scale parameters are taken where Sionna hands them on, rays where it has drawn them, channels from the
batch. Tolerances are four standard errors of the figure at hand, from the sample; seeds are fixed. Numbers
that changed since v16.1 (the means and spreads of UMi and UMa in table 7.5-6) are the later ones.
"""

import copy
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import j0
from scipy.stats import norm
from sionna.phy.channel.tr38901 import CDL, LSP, LSPGenerator, Rays, RaysGenerator

from airlam.datasets.stochastic.synthesis import draw_drops
from airlam.radio.channel import ChannelBatch
from airlam.specs import (
    ArraySpec,
    ChannelSpec,
    DatasetSpec,
    GridSpec,
    MobilitySpec,
    PlacementSpec,
)
from airlam.units import SPEED_OF_LIGHT_M_PER_S

Values = NDArray[np.float64]
NUM_DROPS = 4000
SIGMAS = 4.0
STEP_HZ, STEP_S, STEP_WAVES = (
    10e6,
    2e-3,
    0.233,
)  # from one subcarrier, slot to the next; a user's way meanwhile
HEIGHT_M = {"umi": 10.0, "uma": 25.0, "rma": 35.0}
CELLS = [(model, los) for model in ("umi", "uma", "rma") for los in ("los", "nlos")]
# table 7.5-3: offsets of the rays of a cluster
RAY_OFFSETS = np.array([0.0447, 0.1413, 0.2492, 0.3715, 0.5129, 0.6797, 0.8844, 1.1481, 1.5195, 2.1551])
RAY_OFFSETS = np.concatenate([RAY_OFFSETS, -RAY_OFFSETS])


def cell_spec(model: str, **changes: Any) -> DatasetSpec:
    """Single antennas, users around a base station at the origin; ``changes`` are fields of the spec."""
    channel = {"model": model, "carrier_frequency_hz": 3.5e9} | changes.pop("channel", {})
    speed = STEP_WAVES * SPEED_OF_LIGHT_M_PER_S / channel["carrier_frequency_hz"] / STEP_S
    fields: dict[str, Any] = {
        "base_station": ArraySpec(),
        "mobility": MobilitySpec(min_speed_m_per_s=speed, max_speed_m_per_s=speed),
        "grid": GridSpec(
            subcarrier_spacing_hz=STEP_HZ, num_uplink_subcarriers=2, num_slots=2, slot_duration_s=STEP_S
        ),
    }
    if model in HEIGHT_M:
        fields["placement"] = PlacementSpec(
            base_station_height_m=HEIGHT_M[model],
            user_center_m=(0.0, 0.0),
            min_radius_m=35.0,
            max_radius_m=changes.pop("max_radius_m", 400.0),
        )
    return DatasetSpec(name=model, channel=ChannelSpec(**channel), **(fields | changes))


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A batch with what Sionna drew for it, seen from base station (departure) to user (arrival)."""

    batch: ChannelBatch
    lsp: LSP
    rays: Rays

    def parameter(self, name: str) -> Values:
        """A large-scale parameter of each link: float64 [num_drops]."""
        values: Values = getattr(self.lsp, name).double().numpy().ravel()
        return values

    def of_rays(self, name: str) -> Values:
        """Delays, powers [num_drops, clusters] or angles in rad [num_drops, clusters, rays]."""
        values: Values = getattr(self.rays, name)[:, 0, 0].double().numpy()
        return values

    @property
    def h(self) -> torch.Tensor:
        """Channels without their shadow fading: complex64 [num_drops, 2 slots, 2 subcarriers]."""
        links = self.batch.links()[:, 0, :, 0, 0]
        return links / torch.from_numpy(self.parameter("sf")).float().sqrt()[:, None, None]

    @property
    def distance_2d_m(self) -> Values:
        distance_m: Values = self.batch.position_m[:, 0, :2].double().norm(dim=-1).numpy()
        return distance_m


def drawn(spec: DatasetSpec, num_drops: int = NUM_DROPS) -> Draw:
    """Drops, and what Sionna's generators of large-scale parameters and of rays gave on the way."""
    kept: dict[type, Any] = {}

    def keep(kind: type, original: Any) -> Any:
        def call(self: Any, *arguments: Any) -> Any:
            found = original(self, *arguments)
            kept[kind] = copy.copy(found)  # for the uplink, Sionna swaps arrival and departure in place
            return found

        return call

    with pytest.MonkeyPatch.context() as patch:
        for kind in (LSPGenerator, RaysGenerator):
            patch.setattr(kind, "__call__", keep(kind, kind.__call__))
        batch = draw_drops(spec, 1, num_drops)
    return Draw(batch=batch, lsp=kept[LSPGenerator], rays=kept[RaysGenerator])


@functools.cache
def cell(model: str, los: str) -> Draw:
    """Links of a cell, all with or all without line of sight, with shadow fading."""
    return drawn(cell_spec(model, channel={"los": los, "shadow_fading": True}))


def assert_mean(values: Values, expected: float, tightness: float) -> None:
    """The mean of ``values`` is the expected one, within a standard error that is below ``tightness``."""
    error = values.std() / math.sqrt(len(values))
    assert SIGMAS * error < tightness
    assert abs(values.mean() - expected) < SIGMAS * error + 1e-9


def assert_spread(values: Values, expected: float) -> None:
    """The standard deviation is the expected one; its error follows from the fourth moment."""
    centred = values - values.mean()
    error = math.sqrt(((centred**4).mean() - centred.var() ** 2) / len(values)) / (2 * centred.std())
    assert abs(centred.std() - expected) < SIGMAS * error


# table 7.5-6: mean = a + b lg(f + offset) and standard deviation = c + d lg(f + offset), f in GHz, of
# lg(DS / s), of the lg of angle spreads in degrees, and of K in dB
LAWS: dict[tuple[str, str], dict[str, tuple[float, float, float, float]]] = {
    ("umi", "los"): {
        "ds": (-7.28, -0.18, 0.39, 0.0),
        "asd": (1.21, -0.05, 0.29, 0.08),
        "asa": (1.66, -0.07, 0.26, 0.021),
        "zsa": (0.81, -0.11, 0.29, -0.03),
        "k_factor": (9.0, 0.0, 5.0, 0.0),
    },
    ("umi", "nlos"): {
        "ds": (-6.87, -0.22, 0.22, 0.19),
        "asd": (1.54, -0.24, 0.33, 0.10),
        "asa": (1.76, -0.07, 0.27, 0.05),
        "zsa": (0.92, -0.03, 0.35, -0.05),
    },
    ("uma", "los"): {
        "ds": (-7.067, -0.0794, 0.57, 0.026),
        "asd": (0.92, 0.0, 0.31, 0.0),
        "asa": (1.76, 0.0, 0.19, 0.0),
        "zsa": (0.96, 0.0, 0.15, 0.0),
        "k_factor": (9.0, 0.0, 3.5, 0.0),
    },
    ("uma", "nlos"): {
        "ds": (-6.47, -0.134, 0.39, 0.0),
        "asd": (1.09, 0.0, 0.44, 0.0),
        "asa": (2.04, -0.25, 0.17, -0.03),
        "zsa": (1.445, -0.2856, 0.17, 0.0),
    },
    ("rma", "los"): {
        "ds": (-7.49, 0.0, 0.55, 0.0),
        "asd": (0.90, 0.0, 0.38, 0.0),
        "asa": (1.52, 0.0, 0.24, 0.0),
        "zsa": (0.47, 0.0, 0.40, 0.0),
        "k_factor": (7.0, 0.0, 4.0, 0.0),
    },
    ("rma", "nlos"): {
        "ds": (-7.43, 0.0, 0.48, 0.0),
        "asd": (0.95, 0.0, 0.45, 0.0),
        "asa": (1.52, 0.0, 0.13, 0.0),
        "zsa": (0.58, 0.0, 0.37, 0.0),
    },
}
LG_OFFSET = {"umi": 1.0, "uma": 0.0, "rma": 0.0}
LOWEST_GHZ = {"umi": 2.0, "uma": 6.0, "rma": 0.0}  # note 6 to the table
LARGEST_DEG = {"asd": 104.0, "asa": 104.0, "zsa": 52.0}  # step 4
SHADOW_DB = {("umi", "los"): 4.0, ("umi", "nlos"): 7.82, ("uma", "los"): 4.0, ("uma", "nlos"): 6.0,
             ("rma", "los"): 4.0, ("rma", "nlos"): 8.0}  # fmt: skip


def law(model: str, los: str, name: str, carrier_hz: float) -> tuple[float, float]:
    """Mean and standard deviation of table 7.5-6."""
    a, b, c, d = LAWS[model, los][name]
    lg = math.log10(max(carrier_hz / 1e9, LOWEST_GHZ[model]) + LG_OFFSET[model])
    return a + b * lg, c + d * lg


def clipped(mean: float, spread: float, top: float) -> tuple[float, float]:
    """Mean and standard deviation of min(X, top) for a normal X, by quadrature over its quantiles."""
    x = np.minimum(norm.ppf((np.arange(200_000) + 0.5) / 200_000) * spread + mean, top)
    return float(x.mean()), float(x.std())


def assert_law(draw: Draw, model: str, los: str, carrier_hz: float) -> None:
    for name in LAWS[model, los]:
        mean, spread = law(model, los, name, carrier_hz)
        values = np.log10(draw.parameter(name)) * (10 if name == "k_factor" else 1)
        if name in LARGEST_DEG:
            mean, spread = clipped(mean, spread, math.log10(LARGEST_DEG[name]))
        assert_mean(values, mean, tightness=0.1 * spread)
        assert_spread(values, spread)


@pytest.mark.parametrize(("model", "los"), CELLS)
def test_delay_and_angle_spreads_and_k_are_the_tables(model: str, los: str) -> None:
    assert_law(cell(model, los), model, los, 3.5e9)


@pytest.mark.parametrize(("model", "los"), CELLS[:4])
def test_their_means_move_with_the_carrier(model: str, los: str) -> None:
    draw = drawn(cell_spec(model, channel={"los": los, "carrier_frequency_hz": 28e9}))
    assert_law(draw, model, los, 28e9)


@pytest.mark.parametrize(("model", "los"), CELLS)
def test_zenith_spread_of_departure_falls_with_distance(model: str, los: str) -> None:
    """Tables 7.5-7, 7.5-8 and 7.5-9, with d in km; users lower than the base station."""
    draw = cell(model, los)
    d = draw.distance_2d_m / 1e3
    drop_m = HEIGHT_M[model] - 1.5
    mean, spread = {
        ("umi", "los"): (np.maximum(-0.21, -14.8 * d + 0.01 * drop_m + 0.83), 0.35),
        ("umi", "nlos"): (np.maximum(-0.5, -3.1 * d + 0.2), 0.35),
        ("uma", "los"): (np.maximum(-0.5, -2.1 * d + 0.75), 0.40),
        ("uma", "nlos"): (np.maximum(-0.5, -2.1 * d + 0.9), 0.49),
        ("rma", "los"): (np.maximum(-1.0, -0.17 * d + 0.22), 0.34),
        ("rma", "nlos"): (np.maximum(-1.0, -0.19 * d + 0.28), 0.30),
    }[model, los]
    residual = (np.log10(draw.parameter("zsd")) - mean) / spread
    assert_mean(residual, 0.0, tightness=0.1)
    assert_spread(residual, 1.0)


@pytest.mark.parametrize(("model", "los"), CELLS)
def test_shadow_fading_is_log_normal_about_one(model: str, los: str) -> None:
    fading_db = 10 * np.log10(cell(model, los).parameter("sf"))
    assert_mean(fading_db, 0.0, tightness=0.1 * SHADOW_DB[model, los])
    assert_spread(fading_db, SHADOW_DB[model, los])


@pytest.mark.parametrize(
    ("model", "los", "pair", "expected"),
    [
        ("umi", "los", ("ds", "sf"), -0.4),
        ("umi", "los", ("ds", "k_factor"), -0.7),
        ("umi", "los", ("sf", "k_factor"), 0.5),
        ("umi", "nlos", ("ds", "sf"), -0.7),
        ("uma", "los", ("ds", "k_factor"), -0.4),
        ("uma", "nlos", ("ds", "sf"), -0.4),
        ("uma", "nlos", ("asd", "ds"), 0.4),
        ("rma", "nlos", ("ds", "sf"), -0.5),
    ],
)
def test_large_scale_parameters_are_correlated(
    model: str, los: str, pair: tuple[str, str], expected: float
) -> None:
    first, second = (np.log10(cell(model, los).parameter(name)) for name in pair)
    found = np.corrcoef(first, second)[0, 1]
    # the few angle spreads that are cut at 104 degrees take at most 0.01 of a correlation
    assert abs(found - expected) < SIGMAS * (1 - expected**2) / math.sqrt(NUM_DROPS) + 0.01 * ("asd" in pair)


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Columns of tables 7.5-2 and 7.5-6 that steps 5 to 7 need."""

    number: int
    delay_scaling: float
    azimuth_scaling: float  # C_phi without line of sight
    asa_of_cluster_deg: float
    delay_spread_s: float  # of a cluster


CLUSTERS = {
    ("umi", "los"): Clusters(
        number=12, delay_scaling=3.0, azimuth_scaling=1.146, asa_of_cluster_deg=17.0, delay_spread_s=5e-9
    ),
    ("umi", "nlos"): Clusters(
        number=19, delay_scaling=2.1, azimuth_scaling=1.273, asa_of_cluster_deg=22.0, delay_spread_s=11e-9
    ),
    ("uma", "los"): Clusters(
        number=12, delay_scaling=2.5, azimuth_scaling=1.146, asa_of_cluster_deg=11.0, delay_spread_s=3.91e-9
    ),
    ("uma", "nlos"): Clusters(
        number=20, delay_scaling=2.3, azimuth_scaling=1.289, asa_of_cluster_deg=15.0, delay_spread_s=3.91e-9
    ),
    ("rma", "los"): Clusters(
        number=11, delay_scaling=3.8, azimuth_scaling=1.123, asa_of_cluster_deg=3.0, delay_spread_s=3.91e-9
    ),
    ("rma", "nlos"): Clusters(
        number=10, delay_scaling=1.7, azimuth_scaling=1.090, asa_of_cluster_deg=3.0, delay_spread_s=3.91e-9
    ),
}


def delay_spread(delay: Values, power: Values) -> Values:
    """RMS delay of each link from [links, paths]."""
    share = power / power.sum(axis=1, keepdims=True)
    mean = (share * delay).sum(axis=1)
    spread: Values = np.sqrt((share * (delay - mean[:, None]) ** 2).sum(axis=1))
    return spread


def circular_spread_deg(angle_rad: Values, power: Values) -> Values:
    """sqrt(-2 ln |sum p exp(j phi) / sum p|), annex A, from [links, rays]."""
    length = np.abs((power * np.exp(1j * angle_rad)).sum(axis=1)) / power.sum(axis=1)
    spread: Values = np.degrees(np.sqrt(-2 * np.log(length)))
    return spread


def with_line_of_sight(power: Values, specular: Values, k: Values | None) -> tuple[Values, Values]:
    """Paths' powers and values with the specular path in front: power K / (K + 1), its value 0."""
    if k is None:
        return power, specular
    share = 1 / (k[:, None] + 1)
    zero = np.zeros((len(power), 1))
    return np.concatenate([k[:, None] * share, power * share], 1), np.concatenate([zero, specular], 1)


def steps_5_to_7(draw: Draw, column: Clusters, k: Values | None) -> tuple[Values, Values]:
    """Delay spreads in s and azimuth spreads of arrival in degrees, drawn anew as the standard says."""
    rng = np.random.default_rng(7)
    ds, asa = draw.parameter("ds")[:, None], draw.parameter("asa")[:, None]
    shape, r = (len(ds), column.number), column.delay_scaling
    delay = np.sort(-r * ds * np.log(rng.uniform(size=shape)), axis=1)
    delay -= delay[:, :1]
    power = np.exp(-delay * (r - 1) / (r * ds)) * 10 ** (-rng.normal(0, 3.0, shape) / 10)
    power /= power.sum(axis=1, keepdims=True)
    power[power < power.max(axis=1, keepdims=True) * 10**-2.5] = 0
    scaling = np.full((len(ds), 1), column.azimuth_scaling)
    if k is not None:
        k_db = 10 * np.log10(k)[:, None]
        delay /= 0.7705 - 0.0433 * k_db + 0.0002 * k_db**2 + 0.000017 * k_db**3
        scaling *= 1.1035 - 0.028 * k_db - 0.002 * k_db**2 + 0.0001 * k_db**3
    total, of_path = with_line_of_sight(power, delay, k)
    first = power.copy()
    if k is not None:  # (7.5-8): the first cluster and the specular path share a direction
        first = power / (k[:, None] + 1)
        first[:, 0] += (k / (k + 1)).ravel()
    level = np.log(np.maximum(first / first.max(axis=1, keepdims=True), 1e-6))
    azimuth = rng.choice([-1.0, 1.0], shape) * 2 * asa / 1.4 * np.sqrt(-level) / scaling
    azimuth += rng.normal(size=shape) * asa / 7
    if k is not None:
        azimuth -= azimuth[:, :1]
    rays = (azimuth[..., None] + column.asa_of_cluster_deg * RAY_OFFSETS).reshape(len(ds), -1)
    ray_power, ray_angle = with_line_of_sight(np.repeat(power, 20, axis=1) / 20, np.radians(rays), k)
    return delay_spread(of_path, total), circular_spread_deg(ray_angle, ray_power)


@pytest.mark.parametrize(("model", "los"), CELLS)
def test_rays_have_the_spreads_that_the_procedure_gives(model: str, los: str) -> None:
    """Steps 5 to 7 written out once more, from the same large-scale parameters with dice of their own."""
    draw = cell(model, los)
    k = draw.parameter("k_factor") if los == "los" else None
    power, azimuth = draw.of_rays("powers"), draw.of_rays("aoa")
    total, delay = with_line_of_sight(power, draw.of_rays("delays"), k)
    back = -draw.batch.position_m[:, 0].double().numpy()  # from the user to the base station
    sight = np.arctan2(back[:, 1], back[:, 0])[:, None]  # [drops, 1]
    flat = azimuth.reshape(len(power), -1) - sight
    ray_power, ray_angle = with_line_of_sight(np.repeat(power, 20, axis=1) / 20, flat, k)
    found = delay_spread(delay, total), circular_spread_deg(ray_angle, ray_power)
    for ours, theirs in zip(found, steps_5_to_7(draw, CLUSTERS[model, los], k), strict=True):
        difference = np.log10(ours) - np.log10(theirs)
        assert_mean(difference, 0.0, tightness=0.05)


def correlation(first: torch.Tensor, second: torch.Tensor) -> NDArray[np.complex128]:
    """h1 conj(h2) of each link: complex128 [links] from complex64 [links]."""
    product: NDArray[np.complex128] = (first * second.conj()).to(torch.complex128).numpy()
    return product


def assert_follows(measured: NDArray[np.complex128], predicted: NDArray[Any], tightness: float) -> None:
    """Link by link, ``measured`` has the mean ``predicted``: their regression has slope 1 and no more."""
    weight = (np.abs(predicted) ** 2).sum()
    residual = (measured - predicted) * predicted.conj()
    for part in (residual.real, residual.imag):
        error = part.std() * math.sqrt(len(part)) / weight
        assert SIGMAS * error < tightness
        assert abs(part.sum() / weight) < SIGMAS * error


@pytest.mark.parametrize(("model", "los"), [("umi", "los"), ("uma", "los"), ("rma", "los"), ("umi", "nlos")])
def test_channels_have_the_k_and_the_delays_that_were_drawn(model: str, los: str) -> None:
    """E h(f) conj(h(f + df)) = (K + sum P exp(j 2 pi df tau)) / (K + 1), at 10 MHz, over Sionna's phases."""
    draw = cell(model, los)
    power, delay = draw.of_rays("powers"), draw.of_rays("delays")
    power, delay = split_clusters(power, delay, CLUSTERS[model, los].delay_spread_s)
    predicted = (power * np.exp(2j * math.pi * STEP_HZ * delay)).sum(axis=1)
    if los == "los":
        k = draw.parameter("k_factor")
        predicted = (k + predicted) / (k + 1)
        coherent = (np.abs(predicted) ** 2).mean()
        assert coherent > 0.5  # the specular path rules: a channel without K would fail below
    assert_follows(correlation(draw.h[:, 0, 0], draw.h[:, 0, 1]), predicted, tightness=0.15)


def split_clusters(power: Values, delay: Values, cluster_spread_s: float) -> tuple[Values, Values]:
    """The two strongest clusters as three each (step 11, table 7.5-5): 10, 6 and 4 of 20 rays."""
    strongest = np.argsort(-power, axis=1)[:, :2]
    rows = np.arange(len(power))[:, None]
    powers, delays = [power.copy()], [delay]
    powers[0][rows, strongest] *= 0.5
    for share, offset in ((0.3, 1.28), (0.2, 2.56)):
        powers.append(power[rows, strongest] * share)
        delays.append(delay[rows, strongest] + offset * cluster_spread_s)
    return np.concatenate(powers, 1), np.concatenate(delays, 1)


@pytest.mark.parametrize("model", ["umi", "uma", "rma"])
def test_doppler_over_all_headings_is_clarkes_at_each_rays_elevation(model: str) -> None:
    """E h(t) conj(h(t + T)) = sum P J0(2 pi f_d T sin(zenith)), as headings are uniform and of their own."""
    draw = cell(model, "nlos")
    waves = j0(2 * math.pi * STEP_WAVES * np.sin(draw.of_rays("zoa"))).mean(axis=2)  # [drops, clusters]
    predicted = (draw.of_rays("powers") * waves).sum(axis=1)
    assert predicted.mean() < 0.6  # users have moved
    assert_follows(correlation(draw.h[:, 0, 0], draw.h[:, 1, 0]), predicted, tightness=0.25)


def test_tdl_has_clarkes_doppler() -> None:
    spec = cell_spec("tdl_a", channel={"delay_spread_s": 100e-9})
    h = draw_drops(spec, 1, 4 * NUM_DROPS).links()[:, 0, :, 0, 0, 0]  # [drops, 2 slots]
    expected = j0(2 * math.pi * STEP_WAVES)
    product = correlation(h[:, 0], h[:, 1])
    assert_mean(product.real, expected, tightness=0.05)
    assert_mean(product.imag, 0.0, tightness=0.05)


# tables 7.7.1-1 and 7.7.1-4: normalised delay, power in dB, AOD, AOA, ZOD, ZOA in degrees; CDL-D's first row
# is the specular path
CDL_A = """
0 -13.4 -178.1 51.3 50.2 125.4; 0.3819 0 -4.2 -152.7 93.2 91.3; 0.4025 -2.2 -4.2 -152.7 93.2 91.3
0.5868 -4 -4.2 -152.7 93.2 91.3; 0.461 -6 90.2 76.6 122 94; 0.5375 -8.2 90.2 76.6 122 94
0.6708 -9.9 90.2 76.6 122 94; 0.575 -10.5 121.5 -1.8 150.2 47.1; 0.7618 -7.5 -81.7 -41.9 55.2 56
1.5375 -15.9 158.4 94.2 26.4 30.1; 1.8978 -6.6 -83 51.9 126.4 58.8; 2.2242 -16.7 134.8 -115.9 171.6 26
2.1718 -12.4 -153 26.6 151.4 49.2; 2.4942 -15.2 -172 76.6 157.2 143.1; 2.5119 -10.8 -129.9 -7 47.2 117.4
3.0582 -11.3 -136 -23 40.4 122.7; 4.081 -12.7 165.4 -47.2 43.3 123.2; 4.4579 -16.2 148.4 110.4 161.8 32.6
4.5695 -18.3 132.7 144.5 10.8 27.2; 4.7966 -18.9 -118.6 155.3 16.7 15.2; 5.0066 -16.6 -154.1 102 171.7 146
5.3043 -19.9 126.5 -151.8 22.7 150.7; 9.6586 -29.7 -56.2 55.2 144.9 156.1
"""
CDL_D = """
0 -0.2 0 -180 98.5 81.5; 0 -13.5 0 -180 98.5 81.5; 0.035 -18.8 89.2 89.2 85.5 86.9
0.612 -21 89.2 89.2 85.5 86.9; 1.363 -22.8 89.2 89.2 85.5 86.9; 1.405 -17.9 13 163 97.5 79.4
1.804 -20.1 13 163 97.5 79.4; 2.596 -21.9 13 163 97.5 79.4; 1.775 -22.9 34.6 -137 98.5 78.2
4.042 -27.8 -64.5 74.5 88.4 73.6; 7.937 -23.6 -32.9 127.7 91.3 78.3; 9.424 -24.8 52.6 -119.6 103.8 87
9.708 -30 -132.1 -9.1 80.3 70.6; 12.525 -27.7 77.2 -83.8 86.5 72.9
"""
CLUSTER_DEG = {"cdl_a": (5.0, 11.0, 3.0, 3.0), "cdl_d": (5.0, 8.0, 3.0, 3.0)}  # ASD, ASA, ZSD, ZSA


@dataclass(frozen=True, kw_only=True)
class Table:
    """A CDL table with its rays: each cluster's [clusters, azimuth offset, zenith offset], in rad."""

    delay: Values
    power: Values
    departure: tuple[Values, Values]  # azimuth, zenith
    arrival: tuple[Values, Values]

    def phases(self, end: str, vector: Values) -> NDArray[np.complex128]:
        """sum P exp(j 2 pi r . vector) for each of [links, 3] vectors in wavelengths, r towards the rays."""
        azimuth, zenith = self.departure if end == "bs" else self.arrival
        towards = np.stack(
            np.broadcast_arrays(
                np.sin(zenith) * np.cos(azimuth), np.sin(zenith) * np.sin(azimuth), np.cos(zenith)
            )
        )  # [3, clusters, 20, 20]: azimuths and zeniths of a cluster are coupled at random
        turns = np.einsum("lx,xcmn->lcmn", vector, towards)
        mean: NDArray[np.complex128] = np.exp(2j * math.pi * turns).mean(axis=(2, 3)) @ self.power
        return mean


def table(model: str) -> Table:
    """The table with its powers normalised; the specular path has no offsets."""
    text = {"cdl_a": CDL_A, "cdl_d": CDL_D}[model]
    rows = np.array([row.split() for line in text.split("\n") if line for row in line.split(";")], float)
    power = 10 ** (rows[:, 1] / 10)
    offsets = np.tile(RAY_OFFSETS, (len(rows), 1))
    offsets[0] *= model != "cdl_d"
    asd, asa, zsd, zsa = (np.radians(angle * offsets) for angle in CLUSTER_DEG[model])
    aod, aoa, zod, zoa = np.radians(rows[:, 2:]).T[:, :, None]
    return Table(
        delay=rows[:, 0],
        power=power / power.sum(),
        departure=((aod + asd)[:, :, None], (zod + zsd)[:, None, :]),
        arrival=((aoa + asa)[:, :, None], (zoa + zsa)[:, None, :]),
    )


@pytest.mark.parametrize("model", ["cdl_a", "cdl_d"])
def test_cdl_tables_have_unit_delay_spread_and_the_channels_follow_them(model: str) -> None:
    column = table(model)
    assert delay_spread(column.delay[None], column.power[None])[0] == pytest.approx(1.0, abs=0.02)
    grid = GridSpec(subcarrier_spacing_hz=1e6, num_uplink_subcarriers=5, num_slots=1)
    spec = cell_spec(model, channel={"delay_spread_s": 100e-9}, grid=grid)
    h = draw_drops(spec, 1, 2 * NUM_DROPS).links()[:, 0, 0, 0, 0]  # [drops, 5]
    for apart in (1, 4):
        turns = apart * 1e6 * 100e-9 * column.delay  # [clusters]
        expected = (column.power * np.exp(2j * math.pi * turns)).sum()
        product = correlation(h[:, 0], h[:, apart])
        assert_mean(product.real, expected.real, tightness=0.06)
        assert_mean(product.imag, expected.imag, tightness=0.06)


@pytest.mark.parametrize("direction", ["uplink", "downlink"])
@pytest.mark.parametrize("model", ["cdl_a", "cdl_d"])
def test_cdl_arrays_see_the_tables_angles_of_departure(model: str, direction: str) -> None:
    """E h_0 conj(h_d) over columns (along y) and rows (along z) half a wavelength apart."""
    array = ArraySpec(num_rows=2, num_cols=2)
    channel = {"delay_spread_s": 100e-9, "direction": direction}
    batch = draw_drops(cell_spec(model, channel=channel, base_station=array), 1, 2 * NUM_DROPS)
    h = batch.links()[:, 0, 0, 0, :, 0]  # [drops, (col row)]
    along_y, along_z = np.array([[0.0, 0.5, 0.0]]), np.array([[0.0, 0.0, -0.5]])  # rows count downwards
    for other, step in ((2, along_y), (1, along_z)):
        expected = table(model).phases("bs", -step)[0]
        product = correlation(h[:, 0], h[:, other])
        assert_mean(product.real, expected.real, tightness=0.06)
        assert_mean(product.imag, expected.imag, tightness=0.06)


@pytest.mark.parametrize("direction", ["uplink", "downlink"])
@pytest.mark.parametrize("model", ["cdl_a", "cdl_d"])
def test_cdl_doppler_is_the_speed_towards_each_ray(model: str, direction: str) -> None:
    """E h(t) conj(h(t + T)) = sum P exp(-j 2 pi T v . r / lambda), link by link at its own velocity."""
    velocities: list[torch.Tensor] = []
    original = CDL.__init__

    def keep(self: Any, *arguments: Any, ut_velocity: torch.Tensor, **options: Any) -> None:
        velocities.append(ut_velocity)
        original(self, *arguments, ut_velocity=ut_velocity, **options)

    spec = cell_spec(model, channel={"delay_spread_s": 100e-9, "direction": direction})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CDL, "__init__", keep)
        batch = draw_drops(spec, 1, 1500)
    h = batch.links()[:, 0, :, 0, 0, 0]  # [drops, 2 slots]
    way_waves = velocities[0].double().numpy() * STEP_S * 3.5e9 / SPEED_OF_LIGHT_M_PER_S  # [drops, 3]
    predicted = table(model).phases("user", -way_waves)
    assert np.abs(predicted - 1).mean() > 0.2  # users have moved
    assert_follows(correlation(h[:, 0], h[:, 1]), predicted, tightness=0.35)


def expected_path_loss_db(model: str, los: str, draw: Draw, carrier_hz: float) -> Values:
    """Table 7.4.1-1 for users 1.5 m high; RMa with streets of 20 m and buildings of 5 m."""
    d2, h_bs, h_ut, f = draw.distance_2d_m, HEIGHT_M[model], 1.5, carrier_hz / 1e9
    d3 = np.hypot(d2, h_bs - h_ut)
    if model == "rma":
        edge_m = 2 * math.pi * h_bs * h_ut * carrier_hz / SPEED_OF_LIGHT_M_PER_S
        near = rma_near_db(d3, f)
        sight = np.where(d2 <= edge_m, near, rma_near_db(np.full(1, edge_m), f) + 40 * np.log10(d3 / edge_m))
        blocked = 161.04 - 7.1 * math.log10(20) + 7.5 * math.log10(5)
        blocked -= (24.37 - 3.7 * (5 / h_bs) ** 2) * math.log10(h_bs)
        blocked += (43.42 - 3.1 * math.log10(h_bs)) * (np.log10(d3) - 3) + 20 * math.log10(f)
        blocked -= 3.2 * math.log10(11.75 * h_ut) ** 2 - 4.97
        return sight if los == "los" else np.maximum(sight, blocked)
    edge_m = 4 * (h_bs - 1) * (h_ut - 1) * carrier_hz / SPEED_OF_LIGHT_M_PER_S
    a, b, c = (32.4, 21, 9.5) if model == "umi" else (28.0, 22, 9)
    near = a + b * np.log10(d3) + 20 * math.log10(f)
    far = a + 40 * np.log10(d3) + 20 * math.log10(f) - c * np.log10(edge_m**2 + (h_bs - h_ut) ** 2)
    sight = np.where(d2 <= edge_m, near, far)
    blocked = (
        35.3 * np.log10(d3) + 22.4 + 21.3 * math.log10(f)
        if model == "umi"
        else 13.54 + 39.08 * np.log10(d3) + 20 * math.log10(f)
    )
    return sight if los == "los" else np.maximum(sight, blocked)


def rma_near_db(d3: Values, f: float) -> Values:
    """PL1 of RMa for buildings of 5 m."""
    tall = 5**1.72
    loss: Values = 20 * np.log10(40 * math.pi * d3 * f / 3) + min(0.03 * tall, 10) * np.log10(d3)
    return loss - min(0.044 * tall, 14.77) + 0.002 * math.log10(5) * d3


def path_loss_draw(model: str, los: str, **channel: Any) -> Draw:
    """Users up to 3 km away: beyond the breakpoint of each model."""
    own = {"los": los, "path_loss": True, "carrier_frequency_hz": 2.0e9} | channel
    return drawn(cell_spec(model, channel=own, max_radius_m=3000.0), 2000)


@pytest.mark.parametrize(("model", "los"), CELLS[:4])
def test_path_loss_is_the_tables_at_every_distance(model: str, los: str) -> None:
    draw = path_loss_draw(model, los)
    found = draw.batch.path_loss_db[:, 0].double().numpy()
    assert np.abs(found - expected_path_loss_db(model, los, draw, 2.0e9)).max() < 0.02


@pytest.mark.parametrize("los", ["los", "nlos"])
def test_rma_users_sit_in_cars(los: str) -> None:
    """Sionna takes RMa's outdoor users for drivers (table 7.2-3); a car costs N(9, 5) dB, 7.4.3.2."""
    draw = path_loss_draw("rma", los)
    found = draw.batch.path_loss_db[:, 0].double().numpy()
    car_db = found - expected_path_loss_db("rma", los, draw, 2.0e9)
    assert_mean(car_db, 9.0, tightness=0.5)
    assert_spread(car_db, 5.0)


@pytest.mark.parametrize("model", ["umi", "uma"])
def test_indoor_users_lose_a_wall_and_a_way(model: str) -> None:
    """7.4.3.1, low-loss: the wall at 28 GHz, 0.5 dB/m over min(U1, U2), U up to 25 m, and N(0, 4.4) dB."""
    draw = path_loss_draw(model, "nlos", indoor_probability=1.0, carrier_frequency_hz=28e9)
    found = draw.batch.path_loss_db[:, 0].double().numpy()
    glass, concrete = 2 + 0.2 * 28, 5 + 4 * 28
    wall_db = 5 - 10 * math.log10(0.3 * 10 ** (-glass / 10) + 0.7 * 10 ** (-concrete / 10))
    inside_db = found - expected_path_loss_db(model, "nlos", draw, 28e9)
    assert_mean(inside_db, wall_db + 0.5 * 25 / 3, tightness=0.5)
    assert_spread(inside_db, math.sqrt(4.4**2 + 0.25 * 25**2 / 18))


@pytest.mark.parametrize("model", ["umi", "uma", "rma"])
def test_channels_carry_path_loss_and_shadow_fading(model: str) -> None:
    draw = path_loss_draw(model, "nlos", shadow_fading=True)
    power = draw.batch.h_freq[..., 0, 0].flatten(1).abs().square().double().numpy()[:, 0]
    gain = 10 ** (-draw.batch.path_loss_db[:, 0].double().numpy() / 10) * draw.parameter("sf")
    assert_mean(power / gain, 1.0, tightness=0.15)


@pytest.mark.parametrize("model", ["umi", "uma", "rma"])
def test_line_of_sight_is_as_likely_as_the_table_says(model: str) -> None:
    """Table 7.4.2-1, in rings."""
    draw = drawn(cell_spec(model, channel={"los": "mixed"}))
    d, los = draw.distance_2d_m, draw.batch.los[:, 0].numpy()
    near, scale = {"umi": (18.0, 36.0), "uma": (18.0, 63.0), "rma": (10.0, 1000.0)}[model]
    if model == "rma":
        likely = np.exp(-(d - near) / scale)
    else:
        likely = near / d + np.exp(-d / scale) * (1 - near / d)
    for ring in np.array_split(np.argsort(d), 6):
        error = math.sqrt((likely[ring] * (1 - likely[ring])).sum())
        assert abs(los[ring].sum() - likely[ring].sum()) < SIGMAS * error
