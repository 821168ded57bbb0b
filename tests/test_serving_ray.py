"""LAMs served over two Ray nodes of this machine: kill -9, a lost node and an exchange cost no request."""

import asyncio
import gc
import importlib.util
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.radio.channel import PredictionSetting
from airlam.serving.client import Client
from airlam.serving.measurement import Measurement
from airlam.serving.monitoring import Metrics
from airlam.serving.predictions import Predictions
from airlam.serving.ray_deployments import Deployments
from airlam.serving.ray_fleet import Fleet
from airlam.serving.ray_services import SharedOut
from airlam.serving.renewal import Renewal
from airlam.serving.server import running
from airlam.specs import ArraySpec, ModelSpec, RunSpec, ServingSpec, spec_to_toml
from airlam.tasks.ray_serving import remote_services
from airlam.tasks.run_setting import write_setting
from airlam.tasks.serving import services_of

SPEC = RunSpec(name="a", dataset="none.h5", model=ModelSpec(num_layers=1, num_paths=3, lora_rank=2))
FREQUENCIES_HZ = (0.0, 180e3, 360e3, 540e3)
SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=1, num_cols=2),
    num_user_antennas=1,
    history_frequencies_hz=FREQUENCIES_HZ,
    target_frequencies_hz=FREQUENCIES_HZ,
    slot_duration_s=0.5e-3,
    num_history=4,
    num_horizon=2,
    max_doppler_hz=200.0,
)
HISTORY = torch.randn(1, 4, 1, 2, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
NOISE_VARIANCE = torch.full((1,), 0.1)
PATIENT = ServingSpec(port=0, deadline_s=60.0)
BACK_S = 120.0  # for a machine that has other things to do
NODES = ("edge", "cloud")
pytestmark = [
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("ray", "psutil")),
        reason="Ray is not installed",
    ),
    # Ray does not wait for the processes that it starts
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray Serve's, of pydantic
]


def tuned(seed: int) -> LAM:
    lam = lam_for(SPEC.model, SETTING, SPEC.training.seed)
    random = torch.Generator().manual_seed(seed)
    for parameter in lam.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    return lam


def expected(folder: Path) -> torch.Tensor:
    asked = Measurement(lam="a", history=HISTORY, noise_variance=NOISE_VARIANCE)
    return services_of([folder], Metrics()).predict([asked])[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's, as fine-tuning leaves it."""
    made = tmp_path_factory.mktemp("a")
    tuned(1).save(made / "lam")
    write_setting(made, SETTING)
    (made / "run.toml").write_text(spec_to_toml(SPEC))
    (made / "summary.json").write_text("{}")
    return made


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, told apart by the names that they lend."""
    if "ray" not in sys.modules:
        # read when Ray is imported and kept by this process: clusters of later tests have to find it, too
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.environ |= {**token, "RAY_USAGE_STATS_ENABLED": "0"}
    from ray.cluster_utils import Cluster

    common = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args={**common, "resources": {NODES[0]: 1}})
    started.other = started.add_node(**common, resources={NODES[1]: 1})
    try:
        yield started
    finally:
        started.shutdown()
    gc.collect()  # while warnings are those of this module


@dataclass(kw_only=True)
class Served:
    deployments: Deployments
    services: SharedOut
    url: str

    @property
    def fleet(self) -> Fleet:
        ((fleet, _, _),) = self.deployments._standing.values()
        return fleet


@pytest.fixture(scope="module")
def served(cluster: Any, folder: Path) -> Iterator[Served]:
    deployments, metrics = Deployments(cluster.address), Metrics()
    try:
        services = remote_services([folder], metrics, deployments)
        with running(services, PATIENT, metrics) as url:
            yield Served(deployments=deployments, services=services, url=url)
    finally:
        deployments.close()


@dataclass
class Load:
    answers: list[torch.Tensor] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def await_more(self, count: int) -> None:
        """Until so many more answers have come."""
        wanted, limit_s = len(self.answers) + count, time.monotonic() + BACK_S
        while len(self.answers) < wanted and not self.failures:
            assert time.monotonic() < limit_s, "no answers come"
            time.sleep(0.02)


@contextmanager
def loaded(url: str, num_users: int = 3) -> Iterator[Load]:
    """Users who ask again as soon as they are answered; all of them are to be answered."""
    found, done = Load(), threading.Event()

    def ask() -> None:
        try:
            with Client(url, timeout_s=BACK_S) as client:
                while not done.is_set():
                    began_s = time.monotonic()
                    found.answers.append(client.predict("a", HISTORY, NOISE_VARIANCE))
                    found.waited_s.append(time.monotonic() - began_s)
        except BaseException as error:
            found.failures.append(error)
            raise

    threads = [threading.Thread(target=ask) for _ in range(num_users)]
    for thread in threads:
        thread.start()
    try:
        found.await_more(4)
        yield found
        found.await_more(4)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not found.failures


def test_two_nodes_answer_what_one_process_does(served: Served, folder: Path) -> None:
    assert [node.name for node in served.deployments.nodes] == list(NODES)
    network = served.deployments.survey()
    assert network.servers == NODES and network.by_name["cloud"].compute_flops_per_s > 1e6
    assert [s.nodes for s in served.services.graph.services] == [NODES] * len(served.services.graph.services)
    assert set(served.fleet.process_ids()) == set(NODES)
    with loaded(served.url) as load:
        pass
    for answer in load.answers:
        torch.testing.assert_close(answer, expected(folder), rtol=1e-5, atol=1e-6)


def test_replicas_open_no_port_but_rays_own(served: Served) -> None:
    """Ray's asks for the cluster's token; what Ray Serve would open beside it unpickles for anybody."""
    import psutil

    for process_id in served.fleet.process_ids().values():
        found = psutil.Process(process_id).net_connections("inet")
        assert len([each for each in found if each.status == psutil.CONN_LISTEN]) == 1


def test_a_replica_killed_under_load_costs_no_request(
    served: Served, folder: Path, record_property: Any
) -> None:
    with loaded(served.url) as load:
        before = served.fleet.process_ids()["edge"]
        killed_s = time.monotonic()
        os.kill(before, signal.SIGKILL)
        while served.fleet.is_up("edge"):
            assert time.monotonic() - killed_s < BACK_S
            time.sleep(0.01)
        while not served.fleet.is_up("edge"):
            assert time.monotonic() - killed_s < BACK_S
            time.sleep(0.01)
        back_s = time.monotonic() - killed_s
        assert served.fleet.process_ids()["edge"] != before
    record_property("recovered_s", back_s)
    print(f"replaced within {back_s:.1f} s; the longest wait for an answer was {max(load.waited_s):.2f} s")
    assert all((answer - expected(folder)).abs().max() < 1e-5 for answer in load.answers)


def test_adapters_are_exchanged_without_a_failed_request(cluster: Any, folder: Path, tmp_path: Path) -> None:
    """As a user does it: a command, and SIGHUP."""
    old = expected(folder)
    command = [sys.executable, "-P", "-m", "airlam", "serve", str(folder), "--port", "0", "--ray"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [*command, cluster.address], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with loaded(url) as load:
            tuned(2).save(folder / "lam")
            new = expected(folder)
            os.kill(process.pid, signal.SIGHUP)
            limit_s = time.monotonic() + BACK_S
            while not renewed(url):
                assert time.monotonic() < limit_s
                time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0, (tmp_path / "log").read_text()
    distances = torch.stack(
        [torch.stack([(a - old).abs().max(), (a - new).abs().max()]) for a in load.answers]
    )
    assert (old - new).abs().max() > 1e-2
    assert distances.min(dim=1).values.max() < 1e-5 * old.abs().max() + 1e-5
    assert set(distances.argmin(dim=1).tolist()) == {0, 1}  # both have answered


def test_an_exchange_that_is_refused_leaves_nothing_behind(
    served: Served, folder: Path, tmp_path: Path
) -> None:
    """Here it is for another setting than clients know."""
    for name in ("lam", "run.toml", "summary.json"):
        (tmp_path / name).symlink_to(folder / name)
    write_setting(tmp_path, replace(SETTING, slot_duration_s=1e-3))
    brought: list[int] = []

    def load() -> SharedOut:
        services = remote_services([tmp_path], Metrics(), served.deployments)
        brought.append(len(served.deployments._standing))
        return services

    async def exchanged() -> bool:
        serving = Predictions(served.services, PATIENT, Metrics())
        succeeded = await Renewal(serving, load).run()
        await serving.batcher.drain()
        return succeeded

    with Client(served.url) as client:
        before = client.predict("a", HISTORY, NOISE_VARIANCE)
    assert not asyncio.run(exchanged())
    assert brought == [2] and served.fleet.is_up("edge")  # one is left
    applications, limit_s = served.deployments._serve.status, time.monotonic() + BACK_S
    while sum(name.startswith(served.deployments._name) for name in applications().applications) > len(NODES):
        assert time.monotonic() < limit_s
        time.sleep(0.1)
    with Client(served.url) as client:
        found = client.predict("a", HISTORY, NOISE_VARIANCE)
    torch.testing.assert_close(found, before, rtol=1e-5, atol=1e-6)


def renewed(url: str) -> bool:
    with Client(url) as client:
        return (
            re.search(r'renewals_total{outcome="succeeded"} 1', client.get("/metrics").decode()) is not None
        )


def test_a_lost_node_costs_no_request(cluster: Any, served: Served) -> None:
    with loaded(served.url) as load:
        cluster.remove_node(cluster.other, allow_graceful=False)
        limit_s = time.monotonic() + BACK_S
        while served.fleet.is_up("cloud"):
            assert time.monotonic() < limit_s
            time.sleep(0.02)
    assert served.fleet.is_up("edge")
    print(f"a node was lost; the longest wait for an answer was {max(load.waited_s):.2f} s")
