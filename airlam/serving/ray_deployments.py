"""LAMs brought to the nodes of a Ray cluster, one Ray Serve application a node, and taken away again.

What is brought in later stands beside what is there, on replicas of its own: a request meets weights of one
generation only, wherever its phases run. Ray Serve replaces replicas that die; its HTTP proxies do not start.
"""

import asyncio
import importlib
import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any

from airlam.errors import DataError
from airlam.ray_cluster import connect, serve_library
from airlam.serving.ray_fleet import Fleet
from airlam.serving.ray_nodes import TRACE, cluster_nodes, measured_network
from airlam.serving.ray_recipes import LamsRecipe
from airlam.serving.ray_replica import Replica
from airlam.split.network import EdgeNetwork

BUILD_S = 300.0  # for replicas to start, take their weights and be warm
_GONE_S = 30.0  # for replicas to end
_POLL_S = 0.05
_HEALTH_PERIOD_S = 1.0
_HEALTH_TIMEOUT_S = 10.0
_CANCEL_S = 10.0
_STORE_BYTES = 2**30  # where Ray is started here: of old and new weights, taken as they come
_REPLICAS_ALONE = 2  # on the only node, so that one may die


class Deployments:
    """What one server has on a cluster. address: ``local``, or what ``ray.init`` takes.

    DataError where Ray is absent or out of reach.
    """

    def __init__(self, address: str) -> None:
        self._name = f"airlam-{secrets.token_hex(4)}"
        self._count = 0
        self._standing: dict[int, tuple[Fleet, list[str], Any]] = {}
        self._ray, self._owned = connect(address, object_store_memory=_STORE_BYTES)
        self._serve = serve_library()
        try:
            logging.getLogger("ray.serve").setLevel(logging.ERROR)
            self._serve.start(http_options={"location": "NoServer"}, logging_config={"log_level": "ERROR"})
            self.nodes = cluster_nodes(self._ray)
        except BaseException:
            self.close()
            raise

    @property
    def home(self) -> str:
        """The node that this process is on."""
        return self.nodes[0].name

    def survey(self) -> EdgeNetwork:
        """The cluster as it is now, with machines that have joined and without those that are lost."""
        self.nodes = cluster_nodes(self._ray)
        return measured_network(self._ray, self.nodes)

    def bring(self, recipe: LamsRecipe, nodes: Mapping[str, int]) -> tuple[int, Fleet]:
        """Replicas of some LAMs on some nodes, warm, and the number by which they are told from others.

        nodes: how many replicas on each. DataError where they do not come up.
        """
        self._count += 1
        weights = self._ray.put(recipe.weights)
        targets = [
            self._serve.RunTarget(
                target=self._application(node, count, recipe.shapes, weights),
                name=f"{self._name}-{self._count}-{node}",
                route_prefix=None,
            )
            for node, count in nodes.items()
        ]
        names = [target.name for target in targets]
        handles = self._serve.run_many(targets, wait_for_applications_running=False)
        failures = (
            self._ray.exceptions.RayActorError,
            self._ray.exceptions.NodeDiedError,
            self._ray.exceptions.LocalRayletDiedError,
            self._ray.exceptions.OutOfMemoryError,
            self._ray.exceptions.RaySystemError,
            self._ray.exceptions.ObjectLostError,
            self._ray.exceptions.WorkerCrashedError,
            self._serve.exceptions.RayServeException,
            TimeoutError,
        )
        fleet = Fleet(dict(zip(nodes, handles, strict=True)), failures)
        self._standing[self._count] = fleet, names, weights
        try:
            self._await_running(names)
        except BaseException:
            self.take_away(self._count)
            raise
        return self._count, fleet

    def replicas_of(self, node: str) -> int:
        """How many a node gets."""
        return 1 if len(self.nodes) > 1 else _REPLICAS_ALONE

    def take_away(self, number: int) -> None:
        """Has the replicas of this number end, once they have answered; waits for none of them."""
        fleet, names, _ = self._standing.pop(number)
        fleet.close()
        for name in names:
            self._serve.delete(name, _blocking=False)  # else a lost node would be waited for

    def close(self) -> None:
        """Ends all replicas, and Ray where it was started here."""
        for number in list(self._standing):
            self.take_away(number)
        self._await_gone()
        self._end_routing()
        if self._owned:
            # or the next connection would take it for its own; to shut Serve down could end others' services
            self._serve.context._set_global_client(None)
            self._ray.shutdown()

    def _end_routing(self) -> None:
        """Ray Serve's routers, in a thread of their own, would wait for lost replicas as long as we live."""
        loop = importlib.import_module("ray.serve._private.router").SingletonThreadRouter._asyncio_loop
        if loop is not None:
            asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result(_CANCEL_S)

    def _application(self, node: str, num_replicas: int, shapes: str, weights: Any) -> Any:
        cpus = next(one.num_cpus for one in self.nodes if one.name == node)
        deployment = self._serve.deployment(Replica).options(
            name=node,
            num_replicas=num_replicas,
            max_ongoing_requests=2,  # one that runs, and one whose bytes have come
            health_check_period_s=_HEALTH_PERIOD_S,
            health_check_timeout_s=_HEALTH_TIMEOUT_S,
            graceful_shutdown_wait_loop_s=0.1,
            ray_actor_options={"num_cpus": 0, "resources": {node: TRACE}},
        )
        return deployment.bind(shapes, [weights], max(1, cpus // num_replicas))

    def _await_gone(self) -> None:
        """Until Ray Serve has told this process' routers, which else hold on to requests to lost nodes."""
        limit_s = time.monotonic() + _GONE_S
        while self._count and any(n.startswith(self._name) for n in self._serve.status().applications):
            if time.monotonic() > limit_s:
                return
            time.sleep(_POLL_S)

    def _await_running(self, names: list[str]) -> None:
        limit_s = time.monotonic() + BUILD_S
        while True:
            found = self._serve.status().applications
            states = {name: found[name].status.value for name in names if name in found}
            if all(states.get(name) == "RUNNING" for name in names):
                return
            failed = next((name for name, state in states.items() if state == "DEPLOY_FAILED"), None)
            if failed is not None:
                reason = found[failed].message.strip().splitlines()[-1]
                raise DataError(f"replicas do not start: {reason}; see ray's logs on that node")
            if time.monotonic() > limit_s:
                waiting = ", ".join(name for name in names if states.get(name) != "RUNNING")
                raise DataError(f"{waiting} did not start within {BUILD_S:g} s; see ray status")
            time.sleep(_POLL_S)


async def _cancel_others() -> None:
    """Ends what the running loop has under way."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
