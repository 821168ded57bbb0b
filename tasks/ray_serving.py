"""Fine-tuned runs served over a Ray cluster: what ``airlam serve --ray`` does."""

from collections.abc import Callable, Sequence
from pathlib import Path

from airlam.serving.lam_services import LamServices
from airlam.serving.monitoring import Metrics
from airlam.serving.ray_deployments import Deployments
from airlam.serving.ray_planning import plan_cluster
from airlam.serving.ray_recipes import recipe_of
from airlam.serving.ray_services import RemoteLams, SharedOut, guarded
from airlam.serving.server import serve
from airlam.serving.service_loads import service_loads
from airlam.serving.services import Services
from airlam.serving.side_by_side import SideBySide
from airlam.specs import ServingSpec
from airlam.tasks.service_profiles import lam_profile
from airlam.tasks.serving import guarded_lams, served_beams, services_of


def serve_over_ray(
    folders: Sequence[Path],
    spec: ServingSpec,
    address: str,
    on_listening: Callable[[str], None],
) -> None:
    """Serves some runs as ``serve_runs`` does, LAMs of channel prediction on a Ray cluster.

    Precoders, which take less time than a message to another process, and beam selection stay in this one.
    address: ``local`` starts Ray here,
    otherwise what ``ray.init`` takes. SIGHUP has it look at the cluster anew, too: machines that have joined
    are used. DataError where Ray is absent or out of reach.
    """
    metrics = Metrics()
    deployments = Deployments(address)
    try:

        def predicting(own: Sequence[Path], told: Metrics) -> Services:
            beams = served_beams(own)
            if not beams:
                return remote_services(own, told, deployments)
            here = LamServices({}, told.service_ran, beams, is_whole=False)
            remote = len(own) > len(beams)
            return SideBySide(remote_services(own, told, deployments), here) if remote else here

        def load() -> Services:
            return services_of(folders, metrics, predicting)

        serve(load(), spec, metrics, on_listening, load)
    finally:
        deployments.close()


def remote_services(folders: Sequence[Path], metrics: Metrics, deployments: Deployments) -> SharedOut:
    """The LAMs of some runs on a cluster's nodes, until they are closed."""
    lams, guards = guarded_lams(folders)
    recipe, profiles = recipe_of(lams), {name: lam_profile(lam) for name, lam in lams.items()}
    whole = LamServices(lams)
    loads = service_loads(whole.graph, profiles)
    plan = plan_cluster(whole.graph, loads, whole.settings, deployments.survey(), deployments.home)
    replicas = {node: deployments.replicas_of(node) for node in plan.nodes}
    number, fleet = deployments.bring(recipe, replicas)
    remote = RemoteLams(
        fleet,
        plan.hosts,
        plan.graph,
        whole.settings,
        whole.num_bytes,
        on_close=lambda: deployments.take_away(number),
        observe=metrics.service_ran,
    )
    return SharedOut(guarded(remote, guards, metrics.service_ran), sum(replicas.values()))
