"""A Ray cluster as an ``EdgeNetwork``: nodes' names, and as measured their speed and the wires.

A node is called after the resource that it alone lends (``ray start --resources '{"edge": 1}'``), or else
after its address. All wires lead to the node where the server is, since all messages do.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from airlam.errors import DataError
from airlam.ray_cluster import first_line
from airlam.specs import require
from airlam.split.network import EdgeNetwork, Node, WiredLink

TRACE = 1e-3  # of a resource that only says where
_NO_NAMES = ("CPU", "GPU", "TPU", "memory", "object_store_memory", "node:", "accelerator_type:", "bundle_")
_ADDRESS = "node:"
_HEAD = "node:__internal_head__"
_SIZE = 384  # of the matrices that are multiplied to see how fast a node is
_REPEATS = 5
_PAYLOAD_BYTES = 2**22
_PROBE_S = 120.0  # for a node to start a process that has torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterNode:
    """A machine of the cluster. name: also the resource by which Ray places something there."""

    name: str
    num_cpus: int
    memory_bytes: float
    is_home: bool


def cluster_nodes(ray: Any) -> tuple[ClusterNode, ...]:
    """The nodes that are alive, home first; SpecError where two cannot be told apart."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    home = ray.get_runtime_context().get_node_id()
    lent = Counter(resource for node in alive for resource in node["Resources"])
    nodes = [
        ClusterNode(
            name=_name_of(node["Resources"], lent),
            num_cpus=max(1, int(node["Resources"].get("CPU", 1))),
            memory_bytes=node["Resources"].get("memory", float("inf")),
            is_home=node["NodeID"] == home,
        )
        for node in alive
    ]
    return tuple(sorted(nodes, key=lambda node: not node.is_home))


def _name_of(resources: dict[str, float], lent: Counter[str]) -> str:
    own = sorted(name for name in resources if not name.startswith(_NO_NAMES) and lent[name] == 1)
    address = [name for name in resources if name.startswith(_ADDRESS) and name != _HEAD]
    names = own or [name for name in address if lent[name] == 1]
    require(
        len(names) > 0,
        f"two nodes of the cluster have one address, {', '.join(address)}, and no names; start each with "
        "ray start --resources '{\"NAME\": 1}'",
    )
    return names[0]


def measured_network(ray: Any, nodes: Sequence[ClusterNode]) -> EdgeNetwork:
    """Nodes with the rate of their matrix products, and wires with that of a message and its delay.

    DataError where a node does not answer.
    """
    home = nodes[0]
    servers, wires = [], []
    for node in nodes:
        flops_per_s, delay_s, rate_bps = _measured(ray, node)
        servers.append(
            Node(
                name=node.name,
                kind="server",
                compute_flops_per_s=flops_per_s * node.num_cpus,
                memory_bytes=node.memory_bytes,
            )
        )
        if node is not home:
            wires.append(WiredLink(first=home.name, second=node.name, rate_bps=rate_bps, latency_s=delay_s))
    return EdgeNetwork(nodes=tuple(servers), wired_links=tuple(wires))


def _measured(ray: Any, node: ClusterNode) -> tuple[float, float, float]:
    """FLOP/s of one core, seconds of an empty message one way, bit/s of a long one."""
    probe = ray.remote(num_cpus=0, resources={node.name: TRACE})(_probe)

    def seconds(data: bytes) -> tuple[float, bytes]:
        started_s = time.perf_counter()
        try:
            found: bytes = ray.get(probe.remote(data), timeout=_PROBE_S)
        except ray.exceptions.RayError as error:
            raise DataError(
                f"node {node.name} does not answer ({first_line(error)}); see ray status"
            ) from None
        return time.perf_counter() - started_s, found

    flops_per_s = float(json.loads(seconds(b"1")[1]))
    empty_s = min(seconds(b"")[0] for _ in range(_REPEATS))
    full_s = min(seconds(bytes(_PAYLOAD_BYTES))[0] for _ in range(_REPEATS))
    rate_bps = 8 * _PAYLOAD_BYTES / max(full_s - empty_s, 1e-6)
    return flops_per_s, empty_s / 2, rate_bps


def _probe(data: bytes) -> bytes:
    """Runs on a node: the rate of a matrix product on one thread, where it is asked for by a single byte."""
    if len(data) != 1:
        return b""
    torch.set_num_threads(1)
    matrix, best_s = torch.rand(_SIZE, _SIZE), float("inf")
    for _ in range(_REPEATS):
        started_s = time.perf_counter()
        matrix @ matrix
        best_s = min(best_s, time.perf_counter() - started_s)
    return json.dumps(2 * _SIZE**3 / best_s).encode()
