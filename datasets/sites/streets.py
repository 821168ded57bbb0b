"""The streets of a scene, found by looking straight down on it, and ways along them.

Ground is the largest surface that can be crossed without a step; roofs and courtyards are cut off from it by
walls. Ways keep to the middle of a street and turn round where there is room.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import cKDTree

from airlam.datasets.sites.scene import Array, Scene
from airlam.errors import SpecError

Mask = NDArray[np.bool_]

CELL_M = 1.0
MAX_CELLS = 500  # along an axis; a larger area has larger cells
STEP_M = 0.4  # between neighbours a metre apart, more than which is a wall or a kerb too high
CLEARANCE_M = 3.0  # of a way from walls
COMFORT_M = 6.0  # nearer to a wall than this, a way costs more
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
BEHIND_M = (15.0, 8.0, 0.0)  # room that a turn takes; a smaller one only where there is no other way
BACK_CELLS = 6  # over which the direction of a way is taken
MAX_DEAD_ENDS = 200
LONGEST_WAY_M = 200_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeightMap:
    """Heights of the topmost surfaces in the middles of square cells, rows along y and columns along x.

    height_m: float64 [rows, columns], 0 where the scene has nothing. extent_m: x and y from, x and y to.
    """

    height_m: Array
    extent_m: tuple[float, float, float, float]
    cell_m: float

    def cell(self, position_m: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column of the cells of positions [..., 2 or 3], the nearest ones outside the map."""
        rows, columns = self.height_m.shape
        column = np.floor((position_m[..., 0] - self.extent_m[0]) / self.cell_m).astype(np.int64)
        row = np.floor((position_m[..., 1] - self.extent_m[1]) / self.cell_m).astype(np.int64)
        return np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)

    def middles_m(self) -> Array:
        """x and y of each cell's middle: float64 [rows, columns, 2]."""
        rows, columns = self.height_m.shape
        x = self.extent_m[0] + (np.arange(columns) + 0.5) * self.cell_m
        y = self.extent_m[1] + (np.arange(rows) + 0.5) * self.cell_m
        return np.stack(np.meshgrid(x, y), axis=-1)


def look_down(scene: Scene, area_m: tuple[float, float, float, float]) -> HeightMap:
    """The map of an area, by a ray straight down on each cell."""
    x_from, y_from, x_to, y_to = area_m
    cell_m = max(CELL_M, (x_to - x_from) / MAX_CELLS, (y_to - y_from) / MAX_CELLS)
    columns, rows = (max(1, int(span / cell_m)) for span in (x_to - x_from, y_to - y_from))
    extent_m = (x_from, y_from, x_from + columns * cell_m, y_from + rows * cell_m)
    empty = HeightMap(height_m=np.zeros((rows, columns)), extent_m=extent_m, cell_m=cell_m)
    heights = heights_m(scene, empty.middles_m().reshape(-1, 2)).reshape(rows, columns)
    return HeightMap(height_m=heights, extent_m=extent_m, cell_m=cell_m)


def heights_m(scene: Scene, places_m: Array) -> Array:
    """Height of the topmost surface at places [n, 2]: float64 [n], 0 where there is none."""
    top = float(scene.bounds_m[1][2]) + 1.0
    origins = np.column_stack([places_m, np.full(len(places_m), top)])
    distances = scene.cast(origins, np.broadcast_to([0.0, 0.0, -1.0], origins.shape))
    return np.where(np.isfinite(distances), top - distances, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Streets:
    """Where to drive: the cells of the ground with room around them.

    clearance_m: float64 [rows, columns], distance to the nearest cell that is not ground. open: bool
    [rows, columns], the cells that ways may use, connected to each other. graph: the cost in metres of going
    from one open cell to a neighbour; node n is cell ``cells[n]`` (row, column), at ``places_m[n]``.
    """

    map: HeightMap
    clearance_m: Array
    open: Mask
    graph: csr_array
    cells: NDArray[np.int64]
    places_m: Array

    def ground_m(self, position_m: Array) -> Array:
        """Height of the ground at positions [..., 2], between the middles of cells: float64 [...]."""
        x_from, y_from, *_ = self.map.extent_m
        column = (position_m[..., 0] - x_from) / self.map.cell_m - 0.5
        row = (position_m[..., 1] - y_from) / self.map.cell_m - 0.5
        ground: Array = ndimage.map_coordinates(self.map.height_m, [row, column], order=1, mode="nearest")
        return ground

    def has_room(self, position_m: Array, clearance_m: float) -> bool:
        """Whether all positions [..., 2] are on the ground, so far from everything else."""
        x_from, y_from, x_to, y_to = self.map.extent_m
        x, y = position_m[..., 0], position_m[..., 1]
        inside = (x >= x_from) & (x <= x_to) & (y >= y_from) & (y <= y_to)
        return bool(inside.all() and (self.clearance_m[self.map.cell(position_m)] >= clearance_m).all())


def find_streets(height_map: HeightMap) -> Streets:
    """The streets of a map; SpecError where there is no room to drive at all."""
    ground = _largest(np.ones_like(height_map.height_m, dtype=bool), height_map)
    # the area's edge is no wall
    padded = np.pad(ground, 1, mode="edge")
    clearance_m = ndimage.distance_transform_edt(padded)[1:-1, 1:-1] * height_map.cell_m
    if ground.all():
        clearance_m = np.full(ground.shape, np.inf)
    wide = ground & (clearance_m >= CLEARANCE_M)
    if not wide.any():
        raise SpecError(
            f"area_m {height_map.extent_m} has no ground with {CLEARANCE_M:g} m of room around it; "
            "take an area with streets"
        )
    return _streets(height_map, clearance_m, _largest(wide, height_map))


def restrict(streets: Streets, covered: NDArray[np.bool_], places_m: Array) -> Streets:
    """The streets whose nearest of some places [n, 2] is covered, those connected to each other.

    covered: bool [n]; at least one place is.
    """
    nearest = cKDTree(places_m).query(streets.places_m)[1]  # [nodes]
    kept = np.zeros_like(streets.open)
    rows, columns = streets.cells[covered[nearest]].T
    kept[rows, columns] = True
    return _streets(streets.map, streets.clearance_m, _largest(kept, streets.map))


def _streets(height_map: HeightMap, clearance_m: Array, open_cells: Mask) -> Streets:
    cells = np.argwhere(open_cells)  # [nodes, 2]
    cost = 1 + COMFORT_M / np.clip(clearance_m, CLEARANCE_M, 10 * COMFORT_M)  # walls are kept away from
    return Streets(
        map=height_map,
        clearance_m=clearance_m,
        open=open_cells,
        graph=_graph(open_cells, height_map, cost),
        cells=cells,
        places_m=height_map.middles_m()[open_cells],
    )


def _largest(mask: Mask, height_map: HeightMap) -> Mask:
    """The largest part of the mask within which one can go without a step."""
    graph = _graph(mask, height_map, np.ones(mask.shape))
    labels = connected_components(graph, directed=False)[1]
    kept = np.zeros_like(mask)
    kept[mask] = labels == np.bincount(labels).argmax()
    return kept


def _graph(mask: Mask, height_map: HeightMap, cost: Array) -> csr_array:
    """Edges between neighbouring cells of a mask without a step between them, both ways."""
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(mask.sum())
    starts, ends, weights = [], [], []
    for down, right in NEIGHBOURS:
        here, there = _shifted(mask.shape, down, right)
        length_m = height_map.cell_m * float(np.hypot(down, right))
        rise_m = np.abs(height_map.height_m[there] - height_map.height_m[here])
        joined = mask[here] & mask[there] & (rise_m <= STEP_M * length_m)
        starts.append(number[here][joined])
        ends.append(number[there][joined])
        weights.append((length_m * (cost[here] + cost[there]) / 2)[joined])
    start, end, weight = np.concatenate(starts), np.concatenate(ends), np.concatenate(weights)
    pairs = (np.concatenate([start, end]), np.concatenate([end, start]))
    return csr_array((np.concatenate([weight, weight]), pairs), shape=(mask.sum(), mask.sum()))


def _shifted(
    shape: tuple[int, ...], down: int, right: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of all cells that have a neighbour there, and of those neighbours."""
    rows, columns = shape
    left = max(0, -right)
    here = (slice(0, rows - down), slice(left, columns - max(0, right)))
    there = (slice(down, rows), slice(left + right, columns - max(0, right) + right))
    return here, there


def find_way(streets: Streets, length_m: float, rng: np.random.Generator) -> Array:
    """A way of at least ``length_m`` along the streets, from place to place: float64 [points, 2].

    Shortest ways between places drawn at random, each the continuation of the one before. Nobody turns on
    the spot: a leg into a dead end is drawn anew, and only where nothing else is found a tighter turn will
    do. SpecError where the streets are a single cell, and beyond ``LONGEST_WAY_M``.
    """
    if len(streets.cells) < 2:
        raise SpecError(
            f"area_m {streets.map.extent_m} has a single place to drive on; take a larger area with streets"
        )
    if length_m > LONGEST_WAY_M:
        raise SpecError(
            f"a trajectory needs a way of {length_m / 1000:.0f} km; expected at most "
            f"{LONGEST_WAY_M / 1000:.0f} km: take fewer shard_drops or a smaller position_interval_s"
        )
    ways = (_way(streets, length_m, behind_m, rng) for behind_m in BEHIND_M)
    # the last of them always goes on: who may turn on the spot meets no dead end
    return streets.places_m[next(way for way in ways if way is not None)]


def _way(streets: Streets, length_m: float, behind_m: float, rng: np.random.Generator) -> list[int] | None:
    """Cells of a way whose legs keep out of what lies within ``behind_m`` behind.

    None after many dead ends.
    """
    nodes, gone_m = [int(rng.integers(len(streets.cells)))], 0.0
    before_leg: list[tuple[int, float]] = []  # nodes and metres
    dead_ends = 0
    while dead_ends < MAX_DEAD_ENDS:
        if gone_m >= length_m and len(nodes) >= 3:
            return nodes
        leg = _next_leg(streets, nodes, length_m - gone_m, behind_m, rng)
        if leg:
            before_leg.append((len(nodes), gone_m))
            gone_m += _length_m(streets, [nodes[-1], *leg])
            nodes += leg
            continue
        dead_ends += 1
        if before_leg:  # the last leg led here
            count, gone_m = before_leg.pop()
            del nodes[count:]
        else:
            nodes = [int(rng.integers(len(streets.cells)))]
    return None


def _length_m(streets: Streets, nodes: list[int]) -> float:
    return float(np.linalg.norm(np.diff(streets.places_m[nodes], axis=0), axis=1).sum())


def _next_leg(
    streets: Streets, nodes: list[int], length_m: float, behind_m: float, rng: np.random.Generator
) -> list[int]:
    """Cells of the shortest way to a place drawn among those far enough, or among the farther half.

    Empty where there is nowhere to go.
    """
    offset_m = streets.places_m - streets.places_m[nodes[-1]]
    ahead_m = streets.places_m[nodes[-1]] - streets.places_m[nodes[-min(len(nodes), BACK_CELLS)]]
    allowed = (offset_m @ ahead_m >= 0) | (np.linalg.norm(offset_m, axis=1) > behind_m)
    allowed[nodes[-1]] = True
    kept = np.flatnonzero(allowed)
    start = int(np.searchsorted(kept, nodes[-1]))
    cost, before = dijkstra(streets.graph[kept][:, kept], indices=start, return_predecessors=True)
    reached = np.isfinite(cost) & (cost > 0)
    if not reached.any() or cost[reached].max() < behind_m * (1 + COMFORT_M / CLEARANCE_M):
        return []
    far = reached & (cost >= min(2 * length_m, np.median(cost[reached])))
    end = int(rng.choice(np.flatnonzero(far)))
    leg = []
    while end != start:
        leg.append(int(kept[end]))
        end = int(before[end])
    return leg[::-1]
