"""The server over real sockets: the LAMs' own predictions, bounds that hold, and nothing that harms it."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import torch

from airlam.errors import SpecError
from airlam.model.build import lam_for
from airlam.radio.channel import PredictionSetting
from airlam.serving.arrays import BINARY
from airlam.serving.bodies import write_measurement
from airlam.serving.client import Client, RequestRefused, ServerLost
from airlam.serving.lam_services import LamServices
from airlam.serving.measurement import Measurement
from airlam.serving.monitoring import Metrics
from airlam.serving.replay import replay
from airlam.serving.server import running
from airlam.serving.service_graph import TaskModules, merge
from airlam.specs import ArraySpec, ModelSpec, ServingSpec
from airlam.tokens.beam_history import BeamScales

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
SPEC = ServingSpec(port=0, max_batch_links=4, max_queued_links=4, read_timeout_s=0.5, max_sessions=3)


def measurement(num_links: int = 1, lam: str = "a") -> Measurement:
    random = torch.Generator().manual_seed(num_links)
    history = torch.randn(num_links, 4, 1, 2, 4, dtype=torch.complex64, generator=random)
    return Measurement(lam=lam, history=history, noise_variance=torch.full((num_links,), 0.1))


class Served(SimpleNamespace):
    url: str
    services: LamServices
    metrics: Metrics


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """Two LAMs on one backbone, one of which looks at another band."""
    spec = ModelSpec(num_layers=1, num_paths=3, lora_rank=2)
    other = replace(SETTING, target_frequencies_hz=tuple(f + 5e6 for f in FREQUENCIES_HZ))
    lams = {"a": lam_for(spec, SETTING, 1).eval(), "fdd": lam_for(spec, other, 1).eval()}
    metrics = Metrics()
    services = LamServices(lams, metrics.service_ran)
    with running(services, SPEC, metrics) as url:
        yield Served(url=url, services=services, metrics=metrics)


@pytest.fixture
def client(server: Served) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made


def exchange(server: Served, sent: bytes, *, end: bool = False) -> bytes:
    """What comes back for some bytes, until the server closes or a second passes."""
    parts = urlsplit(server.url)
    found = b""
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as sock:
        sock.sendall(sent)
        if end:
            sock.shutdown(socket.SHUT_WR)
        sock.settimeout(1.0)
        try:
            while part := sock.recv(65536):
                found += part
        except TimeoutError:
            pass
    return found


def post(body: bytes, *, path: str = "/v1/lams/a/predict", media: str = BINARY, **headers: str) -> bytes:
    lines = {"Host": "x", "Content-Type": media, "Content-Length": str(len(body)), "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def check_unharmed(server: Served) -> None:
    with Client(server.url) as client:
        assert client.predict("a", measurement().history, measurement().noise_variance).shape == (
            1,
            2,
            1,
            2,
            4,
        )


def test_predictions_are_the_lams_own(server: Served, client: Client) -> None:
    for name in ("a", "fdd"):
        asked = measurement(3, name)
        (expected,) = server.services.predict([asked])
        found = client.predict(name, asked.history, asked.noise_variance)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_several_lams_predict_from_one_measurement(server: Served, client: Client) -> None:
    asked = measurement(2)
    found = client.predict_all(["fdd", "a"], asked.history, asked.noise_variance)
    assert set(found) == {"a", "fdd"}
    for name, future in found.items():
        alone = client.predict(name, asked.history, asked.noise_variance)
        torch.testing.assert_close(future, alone, rtol=1e-5, atol=1e-6)
    answer = exchange(server, post(GOOD, path="/v1/predict?lam=a", Accept="application/json"))
    assert list(json.loads(answer.partition(b"\r\n\r\n")[2])["futures"]) == ["a"]


def test_json_gives_what_binary_gives(server: Served, client: Client) -> None:
    asked = measurement(2)
    expected = client.predict("a", asked.history, asked.noise_variance)
    history = {"real": asked.history.real.tolist(), "imag": asked.history.imag.tolist()}
    body = json.dumps({"history": history, "noise_variance": asked.noise_variance.tolist()}).encode()
    answer = exchange(server, post(body, media="application/json", Accept="application/json"))
    assert status(answer) == 200
    found = json.loads(answer.partition(b"\r\n\r\n")[2])["future"]
    torch.testing.assert_close(
        torch.complex(torch.tensor(found["real"]), torch.tensor(found["imag"])),
        expected,
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_session_predicts_once_its_history_is_whole(client: Client) -> None:
    asked = measurement()
    session = client.open_session("a")
    answers = [client.add_slot(session, asked.history[0, i % 4], 0.1, slot=i) for i in range(5)]
    assert answers[:3] == [None] * 3 and answers[4] is not None
    expected = client.predict("a", asked.history, asked.noise_variance)
    assert answers[3] is not None
    torch.testing.assert_close(answers[3], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(RequestRefused, match="not after slot 4") as refused:
        client.add_slot(session, asked.history[0, 0], 0.1, slot=4)
    assert refused.value.status == 409
    assert client.add_slot(session, asked.history[0, 0], 0.1, slot=9) is None
    client.close_session(session)
    with pytest.raises(RequestRefused, match="no such session"):
        client.add_slot(session, asked.history[0, 0], 0.1)


def test_sessions_are_bounded(client: Client) -> None:
    names = [client.open_session("a") for _ in range(SPEC.max_sessions)]
    with pytest.raises(RequestRefused) as refused:
        client.open_session("a")
    assert refused.value.status == 429
    for name in names:
        client.close_session(name)


GOOD = write_measurement(measurement())
BAD_REQUESTS = {
    "no LAM": (post(GOOD, path="/v1/lams/none/predict"), 404),
    "media": (post(GOOD, media="text/plain"), 415),
    "compressed": (post(GOOD, Content_Encoding="gzip"), 415),
    "garbage": (post(b"garbage"), 400),
    "empty": (post(b""), 400),
    "wrong shape": (post(write_measurement(replace(measurement(), history=measurement(2).history))), 422),
    "too many links": (post(write_measurement(measurement(5))), 422),
    "too large": (post(b"0" * 10**5), 413),
    "declared too large": (post(b"", Content_Length=str(10**12)), 413),
    "a deadline of no time": (post(GOOD, path="/v1/lams/a/predict?deadline_ms=0"), 422),
    "a deadline that is no number": (post(GOOD, path="/v1/lams/a/predict?deadline_ms=NaN"), 422),
    "a slot below zero": (post(GOOD, path="/v1/sessions/x/slots?slot=-1"), 422),
    "no LAM among several": (post(GOOD, path="/v1/predict?lam=a&lam=none"), 404),
    "no LAMs at all": (post(GOOD, path="/v1/predict"), 422),
    "a LAM twice": (post(GOOD, path="/v1/predict?lam=a&lam=a"), 422),
    "too many links for several": (
        post(write_measurement(measurement(3)), path="/v1/predict?lam=a&lam=fdd"),
        422,
    ),
    "no session": (post(GOOD, path="/v1/sessions/x/slots"), 404),
    "another method": (b"PUT /v1/lams/a/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
    "no such path": (b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
}


@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_bad_requests_are_refused_with_a_reason(server: Served, kind: str) -> None:
    request, expected = BAD_REQUESTS[kind]
    answer = exchange(server, request)
    assert status(answer) == expected, answer
    assert len(answer.partition(b"\r\n\r\n")[2]) > 5
    check_unharmed(server)


def test_a_body_without_a_length_is_bounded_too(server: Served) -> None:
    head = post(b"", Transfer_Encoding="chunked").replace(b"Content-Length: 0\r\n", b"")
    chunk = b"10000\r\n" + b"0" * 0x10000 + b"\r\n"
    assert status(exchange(server, head + 2 * chunk)) == 413
    check_unharmed(server)


def test_bodies_that_are_read_together_are_bounded(server: Served) -> None:
    """Here to 1000 bytes; a link has 412, four have more, which one alone may have."""
    small = replace(SPEC, max_reading_bytes=1000, read_timeout_s=5.0)
    whole, large = post(write_measurement(measurement())), post(write_measurement(measurement(4)))
    assert len(large) > 1000
    with running(server.services, small, Metrics()) as url:
        served = Served(url=url)
        parts = urlsplit(url)
        assert status(exchange(served, large)) == 200
        with socket.create_connection((parts.hostname, parts.port), timeout=5) as slow:
            slow.sendall(large[:1100])  # of a header and a body
            time.sleep(0.2)
            refused = exchange(served, whole)
            assert status(refused) == 429 and b"too many bodies" in refused
            slow.sendall(large[1100:])
            assert status(slow.recv(65536)) == 200
        assert status(exchange(served, whole)) == 200


def test_a_truncated_body_harms_nobody(server: Served) -> None:
    assert status(exchange(server, post(GOOD[:-9], Content_Length=str(len(GOOD) - 9)))) == 400
    exchange(server, post(GOOD)[:-9], end=True)  # nobody is left to be answered
    check_unharmed(server)


def test_a_slow_body_is_refused(server: Served) -> None:
    started_s = time.monotonic()
    assert status(exchange(server, post(GOOD)[:-9])) == 408
    assert time.monotonic() - started_s < 5
    check_unharmed(server)


@pytest.mark.parametrize("head", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_slow_header_is_cut_off(server: Served, head: bytes) -> None:
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as sock:
        sock.sendall(head)
        assert sock.recv(100) == b""  # closed, not timed out
    check_unharmed(server)


def test_an_endless_header_is_cut_off(server: Served) -> None:
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as sock, pytest.raises(OSError):
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: ")
        for _ in range(2000):
            sock.sendall(b"x" * 4096)
    check_unharmed(server)


def test_state_and_metrics_are_told(server: Served, client: Client) -> None:
    check_unharmed(server)
    shapes = client.lams()
    assert shapes["a"]["history"] == [4, 1, 2, 4] and shapes["fdd"]["future"] == [2, 1, 2, 4]
    graph = json.loads(client.get("/v1/graph"))
    assert {"block.0", "norm"} <= {service["name"] for service in graph["services"]}
    assert set(graph["flows"]) == {"a", "fdd"}
    assert json.loads(client.get("/healthz")) == {"status": "alive"}
    assert json.loads(client.get("/readyz")) == {"status": "ready"}
    text = client.get("/metrics").decode()
    assert re.search(r'airlam_requests_total\{lam="a",status="200"\} [1-9]', text)
    assert (
        "airlam_queued_links 0.0" in text and 'airlam_service_seconds_count{service="tokenizer.csi"}' in text
    )
    assert 'lam="none"' not in text  # what senders make up is no label


def test_a_small_answer_does_not_wait_for_an_acknowledgement(client: Client) -> None:
    def took_s() -> float:
        started_s = time.perf_counter()
        client.get("/healthz")
        return time.perf_counter() - started_s

    assert min(took_s() for _ in range(20)) < 0.035  # Linux delays acknowledgements by 40 ms


def test_the_interface_is_described(client: Client) -> None:
    described = json.loads(client.get("/openapi.json"))
    predict = described["paths"]["/v1/lams/{lam}/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {BINARY, "application/json"}
    assert {"200", "413", "415", "422", "429", "503", "504"} <= set(predict["responses"])
    assert {"/v1/sessions/{session}/slots", "/metrics", "/readyz"} <= set(described["paths"])


def test_each_operation_is_described_once(client: Client) -> None:
    described = json.loads(client.get("/openapi.json"))
    operations = [operation for path in described["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"] for operation in operations)
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))
    assert references <= set(described["components"]["schemas"])


def test_the_page_shows_the_load_and_needs_nothing_from_elsewhere(server: Served) -> None:
    check_unharmed(server)
    with Client(server.url) as client:
        load = json.loads(client.get("/v1/load"))
        page = client.get("/").decode()
        assets = [client.get("/" + name).decode() for name in re.findall(r'(?:src|href)="(live\.\w+)"', page)]
    head = exchange(server, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").partition(b"\r\n\r\n")[
        0
    ]
    assert b"default-src 'none'" in head and b"text/html" in head
    assert len(assets) == 2 and not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page + "".join(assets))
    assert "<style" not in page and not re.search(r"<script(?! src)", page) and "innerHTML" not in assets[1]
    services = {service.name for service in server.services.graph.services}
    assert {*load["services"]} == services
    assert (
        load["requests"]["a"]["answered"] >= 1 and load["batches"]["links"] >= load["batches"]["count"] >= 1
    )


class Gated:
    """Services that answer once their gate is open; the first request, which warms up, passes."""

    def __init__(self) -> None:
        self.settings = {"a": SETTING}
        self.beam_settings = dict[str, BeamScales]()
        self.graph = merge({"a": TaskModules.chain({"head": "1"})})
        self.gate = threading.Event()
        self.calls = 0

    def warm(self) -> None:
        self.predict([measurement()])

    def predict(self, requests: Sequence[Measurement]) -> list[torch.Tensor]:
        self.calls += 1
        assert self.calls == 1 or self.gate.wait(10)
        return [torch.ones(len(request), 2, 1, 2, 4, dtype=torch.complex64) for request in requests]


def in_threads(url: str, count: int, results: list[Any]) -> list[threading.Thread]:
    def ask() -> None:
        with Client(url) as client:
            try:
                results.append(client.predict("a", measurement().history, measurement().noise_variance))
            except RequestRefused as error:
                results.append(error)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def wait_for(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def test_overload_is_refused_and_those_who_wait_are_answered() -> None:
    gated, results = Gated(), cast(list[Any], [])
    with running(cast(LamServices, gated), SPEC, Metrics()) as url:
        threads = in_threads(url, 20, results)
        wait_for(lambda: len(results) == 15)  # one runs, four wait
        assert {error.status for error in results} == {429}
        assert all(error.retry_after_s is not None for error in results)
        gated.gate.set()
        for thread in threads:
            thread.join()
    assert sum(isinstance(result, torch.Tensor) for result in results) == 5


def test_requests_under_way_are_answered_when_the_server_ends() -> None:
    gated, results = Gated(), cast(list[Any], [])
    with running(cast(LamServices, gated), SPEC, Metrics()) as url:
        threads = in_threads(url, 3, results)
        wait_for(lambda: gated.calls == 2)
        time.sleep(0.1)
        threading.Timer(0.3, gated.gate.set).start()
    for thread in threads:
        thread.join()
    assert [isinstance(result, torch.Tensor) for result in results] == [True] * 3
    with Client(url) as client, pytest.raises(ServerLost, match="no answer"):
        client.get("/healthz")


def test_a_replay_reports_latencies_and_failures(server: Served) -> None:
    asked = measurement()

    def send(client: Client, number: int) -> None:
        client.predict("none" if number == 3 else "a", asked.history, asked.noise_variance)

    report = replay(server.url, send, rate_per_s=20.0, duration_s=0.5, num_connections=2)
    assert report.num_requests == 10 and report.failures == {"HTTP 404": 1}
    assert 0 < report.quantile_ms(0.5) <= report.quantile_ms(0.99)
    assert report.duration_s >= 0.45 and any("1 failed: HTTP 404" in line for line in report.lines())


def test_addresses_that_cannot_be_had_are_told() -> None:
    with pytest.raises(SpecError, match="http://HOST:PORT"):
        Client("ftp://x")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        spec = replace(SPEC, port=taken.getsockname()[1])
        with (
            pytest.raises(SpecError, match="cannot listen"),
            running(cast(LamServices, Gated()), spec, Metrics()),
        ):
            pass


def test_bounds_of_the_spec() -> None:
    for bad in (
        {"port": 70000},
        {"max_batch_links": 0},
        {"deadline_s": float("inf")},
        {"max_queued_links": 3},
    ):
        with pytest.raises(SpecError, match=next(iter(bad))):
            replace(ServingSpec(), **bad)
