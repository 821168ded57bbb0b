"""TR 38.901 frequency responses by matrix products: Sionna's draws and values at a fraction of the work.

Sionna (2.2) forms every ray's antenna-by-antenna-by-time coefficient, multiplies it through several times,
and then sums over rays and over paths. Here each factor stays a factor: an element's field is evaluated once
a polarisation, array phases once a row and once a column, Doppler once a ray and slot. What is left is one
matrix product a cluster (its rays) and one a link (its paths),

    h[a, t, f] = sum_p (sum_m A[a, p, m] D[p, m, t]) E[p, f],   (7.5-28) to (7.5-30),

with A the field, phase and array terms of ray m of path p between antenna pair a, D the Doppler terms and E
the delays'. Links go through in groups whose terms stay in the cache.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.datasets.stochastic.directions import Directions, LinkRows, directions, dot, phasor
from airlam.datasets.stochastic.links import Links, links_of
from airlam.datasets.stochastic.raydraw import RayDraw

CHUNK_RAYS = 2**15  # whose fields are evaluated together: few enough for the cache, enough to vectorise
GROUP_BYTES = 2**20  # of the largest term by antennas of the links that are summed together
ACCELERATOR_FACTOR = 2**8  # by which both grow where work is launched rather than called
SUB_CLUSTERS = ((*range(8), 18, 19), (*range(8, 12), 16, 17), tuple(range(12, 16)))  # rays, Table 7.5-5
SUB_CLUSTER_DELAYS = (0.0, 1.28, 2.56)  # of the cluster delay spread


def frequency_response(draw: RayDraw, times_s: torch.Tensor, frequencies_hz: torch.Tensor) -> torch.Tensor:
    """The channel of a draw at any times and frequencies; the same draw may be asked again for others.

    times_s: [num_slots]. frequencies_hz: [num_subcarriers], relative to the carrier.
    Returns complex [batch, num_rx, num_rx_ant, num_tx, num_tx_ant, num_slots, num_subcarriers] in the
    draw's precision and on its device, without gradients. In single precision phases are those of a Doppler
    shift and a delay rounded to 6e-8 of themselves.
    """
    return next(response_batches(draw, times_s, frequencies_hz, len(draw)))


@torch.no_grad()
def response_batches(
    draw: RayDraw, times_s: torch.Tensor, frequencies_hz: torch.Tensor, drops_at_once: int
) -> Iterator[torch.Tensor]:
    """As ``frequency_response``, so many drops at a time: each batch is [drops_at_once or the rest, ...].

    Fields are evaluated for as many links as suit the cache, whatever the batches are.
    """
    links = links_of(draw)
    per_drop = len(links) // len(draw)
    factor = 1 if links.phases.device.type == "cpu" else ACCELERATOR_FACTOR
    at_once = max(1, factor * CHUNK_RAYS // links.num_rays)  # links
    ahead = drops_at_once * max(1, at_once // (drops_at_once * per_drop))  # drops whose fields are evaluated
    for start in range(0, len(draw), ahead):
        chunk = links[start * per_drop : (start + ahead) * per_drop]
        terms = _terms(chunk, draw.wavelength_m) if len(chunk) <= at_once else None
        for first in range(0, min(ahead, len(draw) - start), drops_at_once):
            batch = slice(first * per_drop, (first + drops_at_once) * per_drop)
            size = (len(chunk[batch]), len(times_s), len(frequencies_hz))
            values = _empty_values(draw, *size)
            if terms is not None:
                _sum(terms[batch], times_s, frequencies_hz, values, factor * GROUP_BYTES)
            else:
                for row in range(0, len(values), at_once):
                    part = _terms(chunk[batch][row : row + at_once], draw.wavelength_m)
                    place = values[row : row + at_once]
                    _sum(part, times_s, frequencies_hz, place, factor * GROUP_BYTES)
            yield _in_axes(draw, values, *size[1:])


def _empty_values(draw: RayDraw, num_links: int, num_slots: int, num_subcarriers: int) -> torch.Tensor:
    """Room for some links' responses: complex [links, pairs * slots, subcarriers]."""
    rows = draw.rx_array.num_ant * draw.tx_array.num_ant * num_slots
    return draw.phases.new_empty(num_links, rows, num_subcarriers, dtype=draw.phases.dtype.to_complex())


def _in_axes(draw: RayDraw, values: torch.Tensor, num_slots: int, num_subcarriers: int) -> torch.Tensor:
    """Links' responses in Sionna's axes; a copy only where a drop has many transmitters and receivers."""
    _, num_tx, num_rx = draw.gain.shape
    ends = (draw.rx_array.num_ant, draw.tx_array.num_ant)
    drops = len(values) // (num_tx * num_rx)
    by_link = values.view(drops, num_tx, num_rx, *ends, num_slots, num_subcarriers)
    return rearrange(by_link, "b tx rx i j t f -> b rx i tx j t f").contiguous()


def _sum(
    terms: "Terms",
    times_s: torch.Tensor,
    frequencies_hz: torch.Tensor,
    values: torch.Tensor,
    group_bytes: int,
) -> None:
    """Fills ``values`` [links, pairs * slots, subcarriers], group by group."""
    links = terms.links
    num_pairs, num_slots = links.rx.array.num_ant * links.tx.array.num_ant, len(times_s)
    num_paths = links.delay_s.shape[1] + 2 * links.strongest.shape[1] + 1
    largest = max(num_pairs * max(links.num_rays, num_paths * num_slots), num_paths * len(frequencies_hz))
    group = max(1, group_bytes // (8 * largest))
    for first in range(0, len(links), group):
        part = terms[first : first + group]
        delays = delay_terms(_path_delays_s(part), frequencies_hz)  # [links, paths, subcarriers]
        paths = _path_gains(part, delays.shape[1], times_s)  # [links, paths, pairs, slots]
        torch.bmm(paths.flatten(2).mT, delays, out=values[first : first + group])


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms(LinkRows):
    """The factors of some links that know no pair of antennas and no time yet.

    fields: complex [links, rx polarisations, tx polarisations, rays]. doppler: [links, rays], rad/s.
    specular: those of the line of sight, one ray; None where no link has one.
    """

    links: Links
    rx: Directions
    tx: Directions
    fields: torch.Tensor
    doppler: torch.Tensor
    specular: "Terms | None"


def _terms(links: Links, wavelength_m: torch.Tensor) -> Terms:
    """The factors of the rays, and of the line of sight."""
    rx, tx = directions(links.rx, wavelength_m), directions(links.tx, wavelength_m)
    return Terms(
        links=links,
        rx=rx,
        tx=tx,
        fields=_ray_fields(links, rx, tx),
        doppler=doppler_rate(rx if links.moving == "rx" else tx, links.velocity),
        specular=_specular_terms(links, wavelength_m) if bool((links.los_amplitude != 0).any()) else None,
    )


def _specular_terms(links: Links, wavelength_m: torch.Tensor) -> Terms:
    """The line of sight's, (7.5-29)."""
    rx, tx = directions(links.los_rx, wavelength_m), directions(links.los_tx, wavelength_m)
    fields = rx.theta[:, :, None] * tx.theta[:, None] - rx.phi[:, :, None] * tx.phi[:, None]
    return Terms(
        links=links,
        rx=rx,
        tx=tx,
        fields=fields * links.los_amplitude[:, None, None, None],  # [links, rx pols, tx pols, 1]
        doppler=doppler_rate(rx if links.moving == "rx" else tx, links.velocity),
        specular=None,
    )


def _ray_fields(links: Links, rx: Directions, tx: Directions) -> torch.Tensor:
    """Fields through the phase matrix of (7.5-28): complex [links, rx pols, tx pols, rays]."""
    planes = torch.stack([links.phases.cos(), links.phases.sin()])  # [2, links, 4, rays]
    straight, cross = links.amplitude[:, None], (links.amplitude * links.cross)[:, None]  # [links, 1, rays]
    theta_theta, theta_phi, phi_theta, phi_phi = (planes[:, :, None, k] for k in range(4))
    to_theta = theta_theta * (straight * tx.theta) + theta_phi * (cross * tx.phi)  # [2, links, tx pols, rays]
    to_phi = phi_theta * (cross * tx.theta) + phi_phi * (straight * tx.phi)
    fields = rx.theta[:, :, None] * to_theta[:, :, None] + rx.phi[:, :, None] * to_phi[:, :, None]
    return torch.complex(fields[0], fields[1])


def _path_delays_s(terms: Terms) -> torch.Tensor:
    """Clusters, second and third sub-clusters of the strongest, then the line of sight: [links, paths]."""
    links = terms.links
    delays = [links.delay_s]
    if links.strongest.shape[1]:
        strong = links.delay_s.gather(1, links.strongest)  # [links, 2]
        delays += [strong + offset * links.sub_delay_s for offset in SUB_CLUSTER_DELAYS[1:]]
    if terms.specular is not None:
        delays.append(links.delay_s.min(dim=1, keepdim=True).values)
    return torch.cat(delays, dim=1)


def _path_gains(terms: Terms, num_paths: int, times_s: torch.Tensor) -> torch.Tensor:
    """Sums the rays of each path, in the order of ``_path_delays_s``: [links, paths, pairs, slots]."""
    links = terms.links
    antennas, in_time = _antenna_terms(terms), doppler_terms(terms.doppler, times_s)
    num_clusters, per_cluster = links.delay_s.shape[1], links.rays_per_cluster
    antennas = rearrange(antennas, "l a (n m) -> l n a m", m=per_cluster)  # [links, clusters, pairs, rays]
    in_time = rearrange(in_time, "l t (n m) -> l n m t", m=per_cluster)  # [links, clusters, rays, slots]
    paths = antennas.new_empty(len(antennas), num_paths, antennas.shape[2], len(times_s))
    if paths.device.type == "cpu":
        for link in range(len(antennas)):  # one link's strides are what a batched product takes as they are
            torch.bmm(antennas[link], in_time[link], out=paths[link, :num_clusters])
    else:
        paths[:, :num_clusters] = antennas @ in_time
    if links.strongest.shape[1]:
        _sum_sub_clusters(links, antennas, in_time, paths)
    if terms.specular is not None:
        paths[:, -1] = _antenna_terms(terms.specular) * doppler_terms(terms.specular.doppler, times_s).mT
    return paths


def _sum_sub_clusters(
    links: Links, antennas: torch.Tensor, in_time: torch.Tensor, paths: torch.Tensor
) -> None:
    """Sums the rays of each sub-cluster of the strongest clusters: the first takes the cluster's place."""
    rows = torch.arange(len(paths), device=paths.device)[:, None]
    strong_antennas, strong_time = antennas[rows, links.strongest], in_time[rows, links.strongest]
    first = links.delay_s.shape[1]
    for sub, members in enumerate(SUB_CLUSTERS):
        index = torch.tensor(members, device=paths.device)
        summed = strong_antennas[..., index] @ strong_time[:, :, index]  # [links, 2, pairs, slots]
        if sub == 0:
            paths[rows, links.strongest] = summed
        else:
            paths[:, first : first + summed.shape[1]] = summed
            first += summed.shape[1]


def _antenna_terms(terms: Terms) -> torch.Tensor:
    """Each ray's coefficient between each pair of ports: complex [links, rx ports * tx ports, rays]."""
    values = terms.fields[:, :, None, :, None]  # [links, rx pols, 1, tx pols, 1, rays]
    if terms.rx.columns is not None:
        values = values * terms.rx.steering()[:, None, :, None, None]
    if terms.tx.columns is not None:
        values = values * terms.tx.steering()[:, None, None, None]
    values = values.flatten(3, 4).flatten(1, 2)  # [links, rx ports, tx ports, rays]
    if terms.rx.port is not None:
        values = values[:, terms.rx.port]
    if terms.tx.port is not None:
        values = values[:, :, terms.tx.port]
    return values.flatten(1, 2)  # [links, pairs, rays]


def doppler_rate(end: Directions, velocity: torch.Tensor) -> torch.Tensor:
    """Phase that each ray turns in a second at the moving end: [links, rays], rad/s."""
    return dot(end.unit.unbind(1), velocity[..., None])


def doppler_terms(rate_rad_per_s: torch.Tensor, times_s: torch.Tensor) -> torch.Tensor:
    """exp(j rate t): complex [links, slots, rays] for rates [links, rays] and times [slots].

    The turns up to the first slot are taken out in double precision, so that a window of slots is as smooth
    late in a track as at its start.
    """
    times_s = times_s.to(rate_rad_per_s.device, torch.float64)
    begin = times_s[0] if len(times_s) else 0.0
    start = (rate_rad_per_s.double() * begin).remainder(2 * math.pi).to(rate_rad_per_s.dtype)
    passed_s = (times_s - begin).to(rate_rad_per_s.dtype)
    return phasor(torch.addcmul(start[:, None], rate_rad_per_s[:, None], passed_s[:, None]))


def delay_terms(delay_s: torch.Tensor, frequencies_hz: torch.Tensor) -> torch.Tensor:
    """exp(-j 2 pi f tau): complex [..., paths, subcarriers]; whole cycles go before precision does."""
    cycles = delay_s.double()[..., None] * frequencies_hz.to(delay_s.device, torch.float64)
    return phasor(((cycles - cycles.round()) * (-2 * math.pi)).to(delay_s.dtype))
