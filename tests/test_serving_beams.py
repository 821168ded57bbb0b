"""Beam selection served: the LAM's own choices, on the backbone that channel prediction has."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import httpx
import pytest
import torch

from airlam.errors import SpecError
from airlam.model.build import lam_for
from airlam.model.lam_beams import LamBeams
from airlam.radio.beam_regression import PowerStack
from airlam.radio.beam_selection import BeamHistory, BeamWindows
from airlam.radio.channel import PredictionSetting
from airlam.serving import lam_services
from airlam.serving.arrays import BINARY, JSON, saved
from airlam.serving.beam_bodies import write_sweeps
from airlam.serving.client import Client, RequestRefused
from airlam.serving.guarding import GuardedServices
from airlam.serving.joint_services import JointServices
from airlam.serving.lam_services import LamServices
from airlam.serving.measurement import Measurement, Question, Sweeps
from airlam.serving.monitoring import Metrics
from airlam.serving.precoding import PrecoderServices
from airlam.serving.renewal import _check
from airlam.serving.server import running
from airlam.serving.side_by_side import SideBySide
from airlam.specs import ArraySpec, ModelSpec, ServingSpec
from airlam.tokens.beam_history import BeamScales

NUM_PAST, NUM_AHEAD, NUM_BEAMS = 3, 2, 8
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
SPEC = ServingSpec(port=0, max_batch_links=4, max_queued_links=16)
MODEL = ModelSpec(num_layers=2, num_paths=3, lora_rank=2)


def history(count: int, seed: int = 0) -> BeamHistory:
    random = torch.Generator().manual_seed(seed)
    power = torch.rand(count, NUM_PAST, NUM_BEAMS, generator=random) + 0.01
    return BeamHistory(
        power=power.double(), position_m=(30 * torch.rand(count, NUM_PAST, 3, generator=random)).double()
    )


def beams(model: ModelSpec = MODEL, seed: int = 1) -> LamBeams:
    """A LAM whose trainable weights have all moved."""
    random = torch.Generator().manual_seed(seed)
    future = torch.rand(12, NUM_AHEAD, NUM_BEAMS, generator=random).double() + 0.01
    windows = BeamWindows(history=history(12, seed), future_power=future, sequence=torch.arange(12) // 3)
    found = LamBeams.untuned(PowerStack.fitted(windows), BeamScales.of(windows), model, seed=1)
    for parameter in found.lam.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)
    found.lam.eval()
    return found


def measurement(num_links: int) -> Measurement:
    drawn = torch.randn(
        num_links, 4, 1, 2, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(3)
    )
    return Measurement(lam="a", history=drawn, noise_variance=torch.full((num_links,), 0.1))


def services(metrics: Metrics | None = None) -> LamServices:
    observe = (metrics or Metrics()).service_ran
    return LamServices({"a": lam_for(MODEL, SETTING, 1).eval()}, observe, {"street": beams()})


def shares(count: int, seed: int = 0) -> torch.Tensor:
    return beams().predict(history(count, seed)).softmax(-1).float()


def test_one_pass_of_one_backbone_answers_both_tasks() -> None:
    served = services()
    blocks = [one for one in served.graph.services if one.module.startswith(("block.", "norm"))]
    assert [one.tasks for one in blocks] == [("a", "street")] * 3  # each block once
    passes: list[tuple[str, int]] = []
    served._observe = lambda service, rows, duration_s: passes.append((service, rows))
    asked: list[Question] = [
        Sweeps(lam="street", history=history(2)),
        measurement(3),
        Sweeps(lam="street", history=history(1, 5)),
    ]
    first, future, last = served.predict(asked)
    assert ("block.0", 6) in passes and ("block.1", 6) in passes
    torch.testing.assert_close(first, shares(2), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(last, shares(1, 5), rtol=1e-4, atol=1e-6)
    (alone,) = LamServices({"a": lam_for(MODEL, SETTING, 1).eval()}).predict([measurement(3)])
    torch.testing.assert_close(future, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.sum(-1), torch.ones(2, NUM_AHEAD))


def test_rows_that_would_be_padded_a_lot_have_a_pass_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window has seven tokens, a link eight."""
    monkeypatch.setattr(lam_services, "_MOST_PADDING", 1)
    longer = replace(MODEL, num_paths=40)
    served = LamServices({"a": lam_for(longer, SETTING, 1).eval()}, beams={"street": beams()})
    passes: list[tuple[str, int]] = []
    served._observe = lambda service, rows, duration_s: passes.append((service, rows))
    for windows, expected in ((1, [3]), (2, [2, 2])):
        passes.clear()
        answers = served.predict([measurement(2), Sweeps(lam="street", history=history(windows))])
        assert [rows for service, rows in passes if service == "block.1"] == expected
        torch.testing.assert_close(answers[1], shares(windows), rtol=1e-4, atol=1e-6)
        alone = LamServices({"a": lam_for(longer, SETTING, 1).eval()}).predict([measurement(2)])
        torch.testing.assert_close(answers[0], alone[0], rtol=1e-4, atol=1e-5)


def test_a_shared_backbone_is_loaded_once() -> None:
    apart = LamServices({"a": lam_for(MODEL, SETTING, 1).eval()}).num_bytes
    alone = LamServices({}, beams={"street": beams()}).num_bytes
    backbone = beams().lam.backbone
    served = (p for name, p in backbone.named_parameters() if "original_module" not in name)
    frozen = [*(p for p in served if not p.requires_grad), *backbone.buffers()]
    one_backbone = sum(tensor.untyped_storage().nbytes() for tensor in frozen)
    assert services().num_bytes == apart + alone - one_backbone


def test_a_shallower_lam_leaves_the_shared_backbone_earlier() -> None:
    deep, shallow = (replace(MODEL, backbone="airlam", num_layers=depth) for depth in (2, 1))
    served = LamServices({"a": lam_for(deep, SETTING, 1).eval()}, beams={"street": beams(shallow)})
    assert served.graph.flows["street"]["block.0"] == served.graph.flows["a"]["block.0"]
    assert "block.1" not in served.graph.flows["street"]
    found = served.predict([Sweeps(lam="street", history=history(2)), measurement(1)])[0]
    expected = beams(shallow).predict(history(2)).softmax(-1).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_experts_lead_to_the_tokens_and_to_the_head() -> None:
    graph = services().graph
    targets = {target for source, target in graph.edges if source == "experts@street"}
    assert targets == {"embedding@street", "head.beam_selection@street"}


def test_guards_and_precoders_leave_sweeps_alone() -> None:
    found = JointServices(GuardedServices(services(), {}), PrecoderServices({}))
    assert found.beam_settings["street"].num_beams == NUM_BEAMS
    answers = found.predict([measurement(1), Sweeps(lam="street", history=history(2))])
    torch.testing.assert_close(answers[1], shares(2), rtol=1e-4, atol=1e-6)


def test_side_by_side_nothing_is_shared_and_answers_keep_their_order() -> None:
    lams = LamServices({"a": lam_for(MODEL, SETTING, 1).eval()})
    both = SideBySide(lams, LamServices({}, beams={"street": beams()}, is_whole=False))
    names = [one.name for one in both.graph.services]
    assert len(set(names)) == len(names) and "block.0@street" in names and "block.0" in names
    answers = both.predict([measurement(1), Sweeps(lam="street", history=history(2)), measurement(2)])
    assert [len(answer) for answer in answers] == [1, 2, 2]
    torch.testing.assert_close(answers[1], shares(2), rtol=1e-4, atol=1e-6)


def test_clients_keep_what_they_know() -> None:
    old = services()
    with pytest.raises(SpecError, match="'street' is gone"):
        _check(old, LamServices({"a": lam_for(MODEL, SETTING, 1).eval()}))
    _check(old, LamServices({"a": lam_for(MODEL, SETTING, 1).eval()}, beams={"street": beams(seed=4)}))


@dataclass(frozen=True)
class Served:
    url: str


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    metrics = Metrics()
    with running(services(metrics), SPEC, metrics) as url:
        yield Served(url)


def test_choices_are_the_lams_own(server: Served) -> None:
    asked, expected = history(3), shares(3)
    with Client(server.url) as client:
        assert client.beam_lams()["street"]["takes"]["power"] == ["windows", NUM_PAST, NUM_BEAMS]
        three = client.choose_beams("street", asked.power, asked.position_m)
        every = client.choose_beams("street", asked.power, asked.position_m, top=99)
    assert three.beam.shape == (3, NUM_AHEAD, 3) and every.beam.shape == (3, NUM_AHEAD, NUM_BEAMS)
    assert torch.equal(every.beam[..., :3], three.beam)
    assert httpx.get(f"{server.url}/v1/load").json()["requests"]["street"]["answered"] >= 2
    assert torch.equal(every.beam[..., 0], expected.argmax(-1))
    torch.testing.assert_close(every.share, expected.sort(-1, descending=True).values, rtol=1e-4, atol=1e-6)


def test_json_gives_what_binary_gives(server: Served) -> None:
    asked = history(2)
    body = {"power": asked.power.tolist(), "position_m": asked.position_m.tolist()}
    answer = httpx.post(f"{server.url}/v1/beams/street/choose?top=2", json=body)
    with Client(server.url) as client:
        expected = client.choose_beams("street", asked.power, asked.position_m, top=2)
    assert answer.status_code == 200 and answer.json()["beam"] == expected.beam.tolist()
    torch.testing.assert_close(torch.tensor(answer.json()["share"]), expected.share, rtol=1e-5, atol=1e-7)


def changed(**arrays: torch.Tensor) -> bytes:
    own = {"power": history(1).power.float(), "position_m": history(1).position_m.float()}
    return saved(**(own | arrays))


ONE = torch.full((1, NUM_PAST, NUM_BEAMS), 0.5)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (changed(power=ONE.double()), 422, "power is float64"),
        (changed(power=ONE[:, 1:]), 422, "expected float32 (windows, 3, 8)"),
        (changed(power=0 * ONE), 422, "out of range"),
        (changed(power=ONE / 0), 422, "out of range"),
        (changed(power=ONE * float("nan")), 422, "NaN"),
        (changed(position_m=torch.full((1, NUM_PAST, 3), 1e7)), 422, "position"),
        (changed(position_m=torch.zeros(2, NUM_PAST, 3)), 422, "expected float32 (1, 3, 3)"),
        (write_sweeps(history(5)), 422, "5 windows; expected 1 to 4"),
        (write_sweeps(history(1))[:-3], 400, "no safetensors"),
        (saved(power=ONE), 422, "expected power and position_m"),
    ],
)
def test_what_is_no_window_is_refused(server: Served, body: bytes, status: int, words: str) -> None:
    answer = httpx.post(
        f"{server.url}/v1/beams/street/choose", content=body, headers={"content-type": BINARY}
    )
    assert answer.status_code == status and words in answer.json()["detail"]


def test_unknown_names_and_queries_are_refused(server: Served) -> None:
    asked = history(1)
    with Client(server.url) as client:
        with pytest.raises(RequestRefused, match="no LAM 'a' chooses beams") as refused:
            client.choose_beams("a", asked.power, asked.position_m)
        assert refused.value.status == 404
        with pytest.raises(RequestRefused, match="top is '0'"):
            client.choose_beams("street", asked.power, asked.position_m, top=0)
        with pytest.raises(RequestRefused) as refused:  # it predicts no channels
            client.predict("street", measurement(1).history, measurement(1).noise_variance)
        assert refused.value.status == 404
    document = httpx.get(f"{server.url}/openapi.json").json()
    known = document["paths"]["/v1/beams/{beam_lam}/choose"]["post"]["parameters"][0]
    assert known["schema"]["enum"] == ["street"]
    wrong = httpx.post(f"{server.url}/v1/beams/street/choose", content=b"{", headers={"content-type": JSON})
    assert wrong.status_code == 400 and json.loads(wrong.text)["detail"]
