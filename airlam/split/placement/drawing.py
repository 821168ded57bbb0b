"""Service problems drawn from a seed, for benchmarks, training and tests."""

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np

from airlam.split.graph import Edge, Module, ModuleGraph
from airlam.split.network import EdgeNetwork, Node, WiredLink
from airlam.split.placement.services import RequestClass, ServiceProblem

_DEMAND = 0.55  # of all servers' speed that the work of all classes takes, at 1 of ``load``
_ROOM = 1.9  # of memory, in what two replicas of every service take, at 1 of ``room``


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How problems are drawn.

    Services come in tasks that share their first and their middle ones, as LAMs share tokenisers and a
    backbone; with ``branches`` a task may have a second modality, whose encoder joins before the middle.
    Servers form a ring with chords; each class has its home on one of them, where an access point stands.
    load: 1 for a share of 0.55 of all servers' speed. room: 1 for 1.9 times the memory of two replicas each.
    """

    num_servers: tuple[int, int] = (4, 5)
    num_tasks: tuple[int, int] = (2, 3)
    num_classes: tuple[int, int] = (3, 4)
    branches: bool = True
    load: tuple[float, float] = (0.6, 1.0)
    room: tuple[float, float] = (0.8, 1.6)

    def draw(self, generator: np.random.Generator) -> ServiceProblem:
        """One problem; it may turn out to be infeasible."""
        network = self._network(generator)
        tasks, modules, edges = self._tasks(generator)
        graph = ModuleGraph(modules=tuple(modules.values()), edges=tuple(edges.values()))
        needed = 2 * sum(one.parameter_bytes + one.working_bytes for one in modules.values())
        network = _with_memory(network, _ROOM * needed * generator.uniform(*self.room), generator)
        return self._classes(generator, graph, network, tasks)

    def _network(self, generator: np.random.Generator) -> EdgeNetwork:
        count = int(generator.integers(self.num_servers[0], self.num_servers[1] + 1))
        names = [f"server{i}" for i in range(count)]
        speeds = np.exp(generator.uniform(np.log(5e11), np.log(4e12), count))
        nodes = tuple(
            Node(name=name, kind="server", compute_flops_per_s=float(speed), energy_j_per_flop=1e-11)
            for name, speed in zip(names, speeds, strict=True)
        )
        pairs = {tuple(sorted((i, (i + 1) % count))) for i in range(count)}
        chords = [pair for pair in itertools.combinations(range(count), 2) if pair not in pairs]
        pairs |= {pair for pair in chords if generator.uniform() < 0.3}
        wires = tuple(
            WiredLink(
                first=names[i],
                second=names[j],
                rate_bps=float(np.exp(generator.uniform(np.log(3e8), np.log(4e9)))),
                latency_s=float(generator.uniform(2e-4, 2e-3)),
            )
            for i, j in sorted(pairs)
        )
        return EdgeNetwork(nodes=nodes, wired_links=wires)

    def _tasks(
        self, generator: np.random.Generator
    ) -> tuple[list[tuple[str, ...]], dict[str, Module], dict[tuple[str, str], Edge]]:
        """Services of each task, and all modules and edges."""
        modules: dict[str, Module] = {}
        edges: dict[tuple[str, str], Edge] = {}
        tasks = []
        for task in range(int(generator.integers(self.num_tasks[0], self.num_tasks[1] + 1))):
            chain = ["tokenizer", f"embedding{task % 2}", "backbone", f"head{task}"]
            names, joins = list(chain), list(itertools.pairwise(chain))
            if self.branches and generator.uniform() < 0.5:
                names.append("image_encoder")
                joins.append(("image_encoder", "backbone"))
            for name in names:
                if name not in modules:
                    modules[name] = _module(generator, name)
            for source, target in joins:
                size = int(np.exp(generator.uniform(np.log(2e4), np.log(8e5))))
                edge = Edge(source=source, target=target, num_elements=0, fixed_bytes=size)
                edges.setdefault((source, target), edge)
            tasks.append(tuple(names))
        return tasks, modules, edges

    def _classes(
        self,
        generator: np.random.Generator,
        graph: ModuleGraph,
        network: EdgeNetwork,
        tasks: list[tuple[str, ...]],
    ) -> ServiceProblem:
        count = int(generator.integers(self.num_classes[0], self.num_classes[1] + 1))
        weights = generator.dirichlet(np.full(count, 3.0))
        speed = sum(node.compute_flops_per_s for node in network.nodes)
        load = _DEMAND * generator.uniform(*self.load)
        classes = []
        for n in range(count):
            services = tasks[n % len(tasks)]
            flops = sum(graph.by_name[name].forward_flops for name in services)
            classes.append(
                RequestClass(
                    name=f"class{n}",
                    home=str(generator.choice(network.servers)),
                    services=services,
                    arrival_per_s=float(weights[n] * load * speed / flops),
                    deadline_s=0.1,
                    input_bytes=int(np.exp(generator.uniform(np.log(3e4), np.log(1e6)))),
                    output_bytes=int(generator.integers(1_000, 50_000)),
                )
            )
        return ServiceProblem(graph=graph, network=network, classes=tuple(classes))


def _module(generator: np.random.Generator, name: str) -> Module:
    """The backbone takes about ten times the work and memory of the others."""
    factor = 10.0 if name == "backbone" else 1.0
    flops = factor * np.exp(generator.uniform(np.log(2e8), np.log(2e9)))
    size = factor * np.exp(generator.uniform(np.log(2e7), np.log(2e8)))
    working = 0.1 * size
    return Module(
        name=name, forward_flops=float(flops), parameter_bytes=int(size), working_bytes=int(working)
    )


def _with_memory(network: EdgeNetwork, total: float, generator: np.random.Generator) -> EdgeNetwork:
    """The servers with this much memory together, in uneven parts."""
    parts = generator.dirichlet(np.full(len(network.nodes), 6.0))
    nodes = tuple(
        dataclasses.replace(node, memory_bytes=float(part * total))
        for node, part in zip(network.nodes, parts, strict=True)
    )
    return dataclasses.replace(network, nodes=nodes)
