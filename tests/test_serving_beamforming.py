"""Precoders over HTTP: what they would give at hand, from channels and from what LAMs predict of them."""

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import pytest
import torch

from airlam.errors import SpecError
from airlam.model.build import lam_for
from airlam.model.graph_precoder import GraphPrecoder, build_precoder
from airlam.radio.channel import PredictionSetting
from airlam.serving.arrays import BINARY, JSON
from airlam.serving.client import Client, RequestRefused
from airlam.serving.connection import Connection
from airlam.serving.downlink_bodies import Users, write_downlinks, write_users
from airlam.serving.downlinks import Downlinks
from airlam.serving.joint_services import JointServices
from airlam.serving.lam_services import LamServices
from airlam.serving.measurement import Measurement
from airlam.serving.monitoring import Metrics
from airlam.serving.precoding import PrecoderServices
from airlam.serving.predictions import Predictions
from airlam.serving.renewal import Renewal
from airlam.serving.server import running
from airlam.serving.services import PrecodingServices
from airlam.specs import ArraySpec, ModelSpec, PrecoderSpec, ServingSpec

FREQUENCIES_HZ = (0.0, 180e3, 360e3)
SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=1, num_cols=4),
    num_user_antennas=2,
    history_frequencies_hz=FREQUENCIES_HZ,
    target_frequencies_hz=FREQUENCIES_HZ,
    slot_duration_s=0.5e-3,
    num_history=4,
    num_horizon=2,
    max_doppler_hz=200.0,
)
SPEC = ServingSpec(
    port=0,
    max_batch_links=4,
    max_queued_links=4,
    max_batch_coefficients=500,
    max_queued_coefficients=1000,
    read_timeout_s=0.5,
)


def lams() -> LamServices:
    spec = ModelSpec(num_layers=1, num_paths=3, lora_rank=2)
    other = replace(SETTING, target_frequencies_hz=tuple(f + 5e6 for f in FREQUENCIES_HZ))
    return LamServices({"a": lam_for(spec, SETTING, 1).eval(), "fdd": lam_for(spec, other, 1).eval()})


def precoder(seed: int) -> GraphPrecoder:
    """One whose answers are not those it starts with."""
    made = build_precoder(PrecoderSpec(width=8, num_edge_channels=2, num_layers=1), seed=seed)
    draw = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return made.eval()


def precoders(metrics: Metrics | None = None) -> PrecoderServices:
    observe = (metrics or Metrics()).service_ran
    return PrecoderServices({"p": precoder(1), "noisy": precoder(2)}, observe, {"noisy": "pilots"})


def users(num_users: int = 3) -> Users:
    random = torch.Generator().manual_seed(num_users)
    history = torch.randn(num_users, 4, 2, 4, 3, dtype=torch.complex64, generator=random)
    asked = Measurement(lam="a", history=history, noise_variance=torch.full((num_users,), 0.1))
    return Users(measurement=asked, receiver_noise_variance=0.05)


def downlinks(*shape: int) -> Downlinks:
    """shape: downlinks, users, antennas."""
    random = torch.Generator().manual_seed(shape[1])
    h = torch.randn(shape, dtype=torch.complex64, generator=random)
    return Downlinks(precoder="p", h=h, noise_variance=torch.linspace(0.05, 0.2, shape[0]))


def covariance(asked: Downlinks) -> torch.Tensor:
    random = torch.Generator().manual_seed(9)
    factor = 0.2 * torch.randn(*asked.h.shape, 4, dtype=torch.complex64, generator=random)
    return factor @ factor.mH


@dataclass(frozen=True)
class Served:
    url: str
    services: JointServices


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    metrics = Metrics()
    services = JointServices(lams(), precoders(metrics))
    with running(services, SPEC, metrics) as url:
        yield Served(url, services)


@pytest.fixture
def client(server: Served) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made


def test_precoders_are_the_runs_own(client: Client) -> None:
    asked = downlinks(3, 2, 5)
    found = client.precode("p", asked.h, asked.noise_variance)
    with torch.no_grad():
        expected = precoder(1).precode(asked.h, asked.noise_variance)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.abs().square().sum((-2, -1)), torch.ones(3), rtol=1e-6, atol=0)


def test_errors_of_estimates_are_heeded(client: Client) -> None:
    asked = downlinks(2, 3, 4)
    errors = covariance(asked)
    for name, seed in (("p", 1), ("noisy", 2)):
        found = client.precode(name, asked.h, asked.noise_variance, errors)
        with torch.no_grad():
            expected = precoder(seed).precode(asked.h, asked.noise_variance, error_covariance=errors)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_run_that_learned_from_pilots_wants_to_know_the_errors(client: Client) -> None:
    asked, served = downlinks(1, 2, 4), users()
    with pytest.raises(RequestRefused, match="trained on estimates; send their error_covariance"):
        client.precode("noisy", asked.h, asked.noise_variance)
    history = served.measurement.history
    with pytest.raises(RequestRefused, match="predictions tell of none"):
        client.predict_and_precode("a", "noisy", history, served.measurement.noise_variance, 0.1)


@pytest.mark.parametrize("lam", ["a", "fdd"])
def test_predicting_and_precoding_at_once_is_one_after_the_other(client: Client, lam: str) -> None:
    asked = users()
    history, noise_variance = asked.measurement.history, asked.measurement.noise_variance
    future = client.predict(lam, history, noise_variance)  # [users, 2 slots, 2 antennas, 4, 3 subcarriers]
    found = client.predict_and_precode(lam, "p", history, noise_variance, 0.05)
    assert found.shape == (2, 3, 4, 3)
    for slot in range(2):
        known = future[:, slot, 0].permute(2, 0, 1).contiguous()  # [subcarriers, users, antennas]
        one_by_one = client.precode("p", known, torch.full((3,), 0.05))
        torch.testing.assert_close(found[slot], one_by_one, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_one_batch_runs_in_several(server: Served) -> None:
    asked = downlinks(40, 3, 4)
    parts = asked.parts(SPEC.max_batch_coefficients)
    assert len(parts) == 2 and all(part.size <= SPEC.max_batch_coefficients for part in parts)
    (whole,) = server.services.precode([asked])
    torch.testing.assert_close(torch.cat(server.services.precode(parts)), whole, rtol=1e-4, atol=1e-5)
    assert downlinks(2, 30, 30).parts(10)[0].size == 1800  # no less than one downlink


def as_json(asked: Downlinks) -> bytes:
    errors = covariance(asked)
    nested = {
        name: {"real": value.real.tolist(), "imag": value.imag.tolist()}
        for name, value in (("channel", asked.h), ("error_covariance", errors))
    }
    return json.dumps({**nested, "noise_variance": asked.noise_variance.tolist()}).encode()


def post(
    server: Served, body: bytes, path: str = "/v1/precoders/p/precode", media: str = BINARY
) -> tuple[int, bytes]:
    parts = urlsplit(server.url)
    connection = Connection(str(parts.hostname), parts.port or 80, 10.0)
    answer = connection.ask("POST", path, f"Content-Type: {media}\r\n", body)
    connection.close()
    return answer.status, answer.body


def test_json_gives_what_binary_gives(server: Served, client: Client) -> None:
    asked = downlinks(2, 2, 4)
    status, body = post(server, as_json(asked), media=JSON)
    assert status == 200, body
    found = json.loads(body)["precoder"]
    expected = client.precode("p", asked.h, asked.noise_variance, covariance(asked))
    torch.testing.assert_close(
        torch.complex(torch.tensor(found["real"]), torch.tensor(found["imag"])),
        expected,
        rtol=1e-4,
        atol=1e-5,
    )
    wanted = users().measurement
    nested = {"real": wanted.history.real.tolist(), "imag": wanted.history.imag.tolist()}
    given = {"history": nested, "noise_variance": [0.1] * 3, "receiver_noise_variance": 0.05}
    status, body = post(server, json.dumps(given).encode(), BOTH, JSON)
    assert status == 200, body
    precoder = client.predict_and_precode("a", "p", wanted.history, wanted.noise_variance, 0.05)
    assert torch.tensor(json.loads(body)["precoder"]["real"]).shape == precoder.shape


BOTH = "/v1/lams/a/precoders/p/precode"
GOOD, GOOD_USERS = write_downlinks(downlinks(1, 2, 4)), write_users(users())
LOUD = replace(users(), receiver_noise_variance=-1.0)
BAD_REQUESTS = {
    "no precoder": ("/v1/precoders/none/precode", GOOD, 404, "no precoder 'none' here; there are p, noisy"),
    "a LAM": ("/v1/precoders/a/precode", GOOD, 404, "no precoder 'a'"),
    "no such LAM": ("/v1/lams/none/precoders/p/precode", GOOD_USERS, 404, "no LAM 'none'"),
    "no precoder behind a LAM": ("/v1/lams/a/precoders/a/precode", GOOD_USERS, 404, "no precoder 'a'"),
    "another's body": ("/v1/precoders/p/precode", GOOD_USERS, 422, "expected channel and noise_variance"),
    "another's body, too": (BOTH, GOOD, 422, "receiver_noise_variance"),
    "garbage": (BOTH, b"garbage", 400, "no safetensors"),
    "large": ("/v1/precoders/p/precode", write_downlinks(downlinks(9, 5, 10)), 422, "at most 500"),
    "too large": ("/v1/precoders/p/precode", bytes(10**5), 413, "expected at most"),
    "many users": (BOTH, write_users(users(5)), 422, "expected 1 to 4"),
    "noise below zero": (BOTH, write_users(LOUD), 422, "expected a positive number"),
    "no time": ("/v1/precoders/p/precode?deadline_ms=0", GOOD, 422, "deadline_ms"),
}


@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_bad_requests_are_refused_with_a_reason(server: Served, client: Client, kind: str) -> None:
    path, body, expected, reason = BAD_REQUESTS[kind]
    status, answer = post(server, body, path)
    assert status == expected and reason in json.loads(answer)["detail"]
    asked = downlinks(1, 2, 4)
    assert client.precode("p", asked.h, asked.noise_variance).shape == (1, 4, 2)


@pytest.mark.parametrize(
    "bounds",
    # 3 users have 21 coefficients and 6 downlinks, 2 have 12 of as many
    [
        {"max_batch_coefficients": 20},
        {"max_batch_coefficients": 100, "max_queued_coefficients": 100},
    ],
)
def test_users_too_many_for_a_downlink_are_refused_before_they_are_predicted(bounds: dict[str, int]) -> None:
    small, asked = replace(SPEC, **bounds), users().measurement
    services = JointServices(lams(), precoders())
    with running(services, small, Metrics()) as url, Client(url) as client:
        with pytest.raises(RequestRefused, match="3 users are too many for one request, with 4 antennas"):
            client.predict_and_precode("a", "p", asked.history, asked.noise_variance, 0.1)
        found = client.predict_and_precode("a", "p", asked.history[:2], asked.noise_variance[:2], 0.1)
        assert found.shape == (2, 3, 4, 2)


def test_errors_that_are_none_fail_their_own_request(client: Client) -> None:
    asked = downlinks(1, 2, 4)
    below_zero = torch.full((1, 2, 4, 4), 50.0, dtype=torch.complex64) + torch.eye(4)
    below_zero[0, 0, 0, 1] = below_zero[0, 0, 1, 0] = 900.0  # Hermitian, yet no covariance
    with pytest.raises(RequestRefused, match="nothing comes of these numbers") as refused:
        client.precode("p", asked.h, asked.noise_variance, below_zero)
    assert refused.value.status == 422


def test_both_tasks_are_one_acyclic_graph(server: Served) -> None:
    graph = server.services.graph
    heads = {graph.service_of(lam, "head.channel_prediction") for lam in ("a", "fdd")}
    assert {source for source, target in graph.edges if target == "precoder@p"} == heads
    assert all(graph.order.index(head) < graph.order.index("precoder@p") for head in heads)
    assert "precoder@noisy" in graph.order  # whose CSI are estimates: no prediction goes there
    assert not any(target == "precoder@noisy" for _, target in graph.edges)
    assert graph.flows["p"] == {"precoder": "precoder@p"}


def test_state_and_metrics_tell_of_precoders(client: Client) -> None:
    asked = downlinks(2, 2, 4)
    client.precode("p", asked.h, asked.noise_variance)
    assert client.precoders()["noisy"]["csi"] == "pilots" and set(client.precoders()) == {"p", "noisy"}
    assert "precoder@p" in {service["name"] for service in json.loads(client.get("/v1/graph"))["services"]}
    load = json.loads(client.get("/v1/load"))
    assert load["requests"]["p"]["answered"] >= 1 and load["services"]["precoder@p"]["passes"] >= 1
    assert load["queued_coefficients"] == 0 and load["max_queued_coefficients"] == 1000
    text = client.get("/metrics").decode()
    assert 'airlam_requests_total{lam="p",status="200"}' in text and "airlam_queued_coefficients 0.0" in text


def test_the_interface_is_described(client: Client) -> None:
    described = json.loads(client.get("/openapi.json"))
    for path in ("/v1/precoders/{precoder}/precode", "/v1/lams/{lam}/precoders/{precoder}/precode"):
        operation = described["paths"][path]["post"]
        assert set(operation["requestBody"]["content"]) == {BINARY, JSON}
        assert {"200", "413", "422", "429", "503", "504"} <= set(operation["responses"])
        names = {one["name"]: one["schema"].get("enum") for one in operation["parameters"]}
        assert names["precoder"] == ["p", "noisy"]
    assert {"JsonDownlinks", "JsonUsers"} <= set(described["components"]["schemas"])


def test_precoders_alone_are_served_without_paths_of_lams() -> None:
    services, asked = JointServices(None, precoders()), downlinks(1, 2, 4)
    with running(services, SPEC, Metrics()) as url, Client(url) as client:
        assert client.precode("p", asked.h, asked.noise_variance).shape == (1, 4, 2)
        assert client.lams() == {}
        assert not any("{lam}" in path for path in json.loads(client.get("/openapi.json"))["paths"])
        with pytest.raises(RequestRefused) as refused:
            client.predict("a", users().measurement.history, users().measurement.noise_variance)
        assert refused.value.status == 404
    with pytest.raises(SpecError, match="no LAM to predict"):
        services.predict([users().measurement])


def test_a_name_stands_for_one_run() -> None:
    with pytest.raises(SpecError, match="both called a"):
        JointServices(lams(), PrecoderServices({"a": precoder(1)}))


class Gated(JointServices):
    """Precoders that answer once their gate is open."""

    def __init__(self) -> None:
        super().__init__(lams(), precoders())
        self.gate, self.calls = threading.Event(), 0

    def precode(self, requests: Sequence[Downlinks]) -> list[torch.Tensor]:
        self.calls += 1
        assert self.gate.wait(10)
        return super().precode(requests)


def in_threads(url: str, count: int, results: list[int]) -> list[threading.Thread]:
    """Requests for precoders of 3 downlinks, 300 coefficients each; the statuses of their answers."""
    asked = downlinks(3, 5, 15)

    def ask() -> None:
        with Client(url) as client:
            try:
                client.precode("p", asked.h, asked.noise_variance)
                results.append(200)
            except RequestRefused as error:
                results.append(error.status)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_overload_of_precoders_is_refused_and_predictions_go_on() -> None:
    gated, results = Gated(), list[int]()
    with running(gated, SPEC, Metrics()) as url, Client(url) as client:
        threads = in_threads(url, 12, results)
        pause = threading.Event()
        for _ in range(500):
            if len(results) == 8:  # one runs, three wait
                break
            pause.wait(0.01)
        assert results == [429] * 8
        asked = users().measurement
        assert len(client.predict("a", asked.history, asked.noise_variance)) == 3
        gated.gate.set()
        for thread in threads:
            thread.join()
    assert sorted(results) == [200] * 4 + [429] * 8


def test_users_under_way_get_their_precoders_when_the_server_ends() -> None:
    gated, found, asked = Gated(), list[torch.Tensor](), users().measurement

    def ask() -> None:
        with Client(url) as client:
            found.append(client.predict_and_precode("a", "p", asked.history, asked.noise_variance, 0.1))

    with running(gated, SPEC, Metrics()) as url:
        thread = threading.Thread(target=ask)
        thread.start()
        pause = threading.Event()
        while gated.calls == 0 and thread.is_alive():
            pause.wait(0.01)
        threading.Timer(0.3, gated.gate.set).start()
    thread.join()
    assert found[0].shape == (2, 3, 4, 3)


@pytest.mark.parametrize(
    ("load", "changed"),
    [
        (lambda: JointServices(lams(), precoders()), True),
        (lambda: lams(), False),
        (lambda: JointServices(lams(), PrecoderServices({"p": precoder(1)})), False),
        (lambda: JointServices(lams(), PrecoderServices({"p": precoder(1), "noisy": precoder(2)})), False),
    ],
)
def test_precoders_are_exchanged_for_their_like_only(load: object, changed: bool) -> None:
    before = JointServices(lams(), precoders())

    async def renewed() -> Predictions:
        serving = Predictions(before, SPEC, Metrics())
        assert await Renewal(serving, load).run() is changed  # type: ignore[arg-type]
        await serving.batcher.drain()
        return serving

    services = asyncio.run(renewed()).services
    assert (services is not before) is changed and isinstance(services, PrecodingServices)
