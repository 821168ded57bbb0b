"""LAMs are exchanged under load: no request fails, each answer is of the old LAM or of the new one."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.radio.channel import PredictionSetting
from airlam.serving.batching import DeadlineMissed
from airlam.serving.client import Client
from airlam.serving.measurement import Measurement, Question
from airlam.serving.monitoring import Metrics
from airlam.serving.predictions import Predictions
from airlam.serving.renewal import Renewal
from airlam.serving.service_graph import ServiceGraph
from airlam.specs import ArraySpec, ModelSpec, RunSpec, ServingSpec, spec_to_toml
from airlam.tasks.run_setting import write_setting
from airlam.tasks.serving import served_lams
from airlam.tokens.beam_history import BeamScales

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


def tuned(seed: int) -> LAM:
    lam = lam_for(SPEC.model, SETTING, SPEC.training.seed)
    random = torch.Generator().manual_seed(seed)
    for parameter in lam.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    return lam


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
def server(folder: Path) -> Iterator[tuple[str, int]]:
    command = [sys.executable, "-P", "-m", "airlam", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def expected(folder: Path) -> torch.Tensor:
    lam = served_lams([folder])["a"]
    with torch.no_grad():
        tokens = lam.tokenizer.tokenise(HISTORY, NOISE_VARIANCE)
        return lam.head().channel(lam(tokens), tokens.context)


def renewals(url: str, outcome: str) -> int:
    with Client(url) as client:
        found = re.search(rf'renewals_total{{outcome="{outcome}"}} (\d+)', client.get("/metrics").decode())
    return 0 if found is None else int(found[1])


def await_renewal(url: str, outcome: str) -> None:
    for _ in range(3000):
        if renewals(url, outcome):
            return
        time.sleep(0.02)
    raise AssertionError("the LAMs were not read anew")


def test_lams_are_exchanged_without_a_failed_request(folder: Path, server: tuple[str, int]) -> None:
    url, pid = server
    old = expected(folder)
    answers: list[torch.Tensor] = []
    done = threading.Event()

    def ask() -> None:
        with Client(url, timeout_s=120.0) as client:
            while not done.is_set():
                answers.append(client.predict("a", HISTORY, NOISE_VARIANCE))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(answers) < 4 and all(thread.is_alive() for thread in threads):
        time.sleep(0.02)
    tuned(2).save(folder / "lam")
    new = expected(folder)
    os.kill(pid, signal.SIGHUP)
    await_renewal(url, "succeeded")
    with Client(url) as client:
        torch.testing.assert_close(client.predict("a", HISTORY, NOISE_VARIANCE), new, rtol=1e-4, atol=1e-5)
    done.set()
    for thread in threads:
        thread.join()
    distances = torch.stack([torch.stack([(a - old).abs().max(), (a - new).abs().max()]) for a in answers])
    assert (old - new).abs().max() > 1e-2
    assert distances.min(dim=1).values.max() < 1e-5 * old.abs().max() + 1e-5
    assert set(distances.argmin(dim=1).tolist()) == {0, 1}  # both have answered


def test_lams_that_cannot_be_read_leave_the_old_ones(folder: Path, server: tuple[str, int]) -> None:
    url, pid = server
    succeeded = renewals(url, "succeeded")  # an answer: the server is ready
    with Client(url) as client:
        before = client.predict("a", HISTORY, NOISE_VARIANCE)
        (folder / "lam" / "weights.safetensors").write_bytes(b"0" * 100)
        os.kill(pid, signal.SIGHUP)
        await_renewal(url, "failed")
        torch.testing.assert_close(client.predict("a", HISTORY, NOISE_VARIANCE), before, rtol=0, atol=0)
    assert renewals(url, "succeeded") == succeeded


@dataclass
class Told:
    """Services that write down what is done to them."""

    name: str
    done: list[str]
    setting: PredictionSetting = SETTING
    warming: Callable[[], None] = lambda: None
    graph: ServiceGraph = field(default_factory=lambda: ServiceGraph(services=(), edges=(), flows={}))
    beam_settings: dict[str, BeamScales] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, PredictionSetting]:
        return {"a": self.setting}

    def warm(self) -> None:
        self.warming()
        self.done.append(f"{self.name} warm")

    def predict(self, requests: Sequence[Question]) -> list[torch.Tensor]:
        time.sleep(0.1)
        self.done.append(f"{self.name} predicts")
        return [torch.zeros(1, dtype=torch.complex64) for _ in requests]

    def close(self) -> None:
        self.done.append(f"{self.name} closed")


def exchanged(old: Told, new: Told) -> bool:
    """Under a request that the old services answer."""

    async def run() -> bool:
        serving = Predictions(old, ServingSpec(), Metrics())
        asked = Measurement(lam="a", history=HISTORY, noise_variance=NOISE_VARIANCE)
        under_way = asyncio.create_task(serving.batcher.submit(asked, 10.0))
        await asyncio.sleep(0)
        succeeded = await Renewal(serving, lambda: new).run()
        await under_way
        await serving.batcher.drain()
        assert serving.services is (new if succeeded else old)
        return succeeded

    return asyncio.run(run())


def test_those_who_lose_their_place_are_closed_behind_the_batch_under_way() -> None:
    done: list[str] = []
    assert exchanged(Told("old", done), Told("new", done))
    assert done == ["old predicts", "new warm", "old closed"]


def test_those_who_are_refused_are_closed_at_once() -> None:
    done: list[str] = []
    assert not exchanged(Told("old", done), Told("new", done, setting=replace(SETTING, num_horizon=1)))
    assert done == ["old predicts", "new closed"]

    def lost() -> None:
        raise DeadlineMissed("no replica answered within 60 s")

    done.clear()
    assert not exchanged(Told("old", done), Told("new", done, warming=lost))
    assert done == ["old predicts", "new closed"]
