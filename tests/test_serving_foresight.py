"""Runs that tuned predictor and precoder together, over HTTP: what the pair gives at hand, or by sessions."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from airlam.errors import SpecError
from airlam.model.build import lam_for
from airlam.model.graph_precoder import build_precoder
from airlam.model.predictive_precoder import PredictivePrecoder, whole_array
from airlam.model.storage import trainable_tensors
from airlam.radio.channel import PredictionSetting
from airlam.serving.client import Client, RequestRefused
from airlam.serving.downlinks import Downlinks
from airlam.serving.foresight import Foresight, foreseeing
from airlam.serving.lam_services import LamServices
from airlam.serving.measurement import Measurement
from airlam.serving.monitoring import Metrics
from airlam.serving.ray_messages import FUTURE, PHASES, RUN, request_of, state_in
from airlam.serving.ray_recipes import recipe_of
from airlam.serving.ray_replica import Phases
from airlam.serving.server import running
from airlam.serving.services import PrecodingServices
from airlam.specs import (
    ArraySpec,
    BeamformingSpec,
    ModelSpec,
    PrecoderSpec,
    RunSpec,
    ServingSpec,
    spec_to_toml,
)
from airlam.tasks.beamforming_predicted import error_tokenizer
from airlam.tasks.run_setting import SETTING_FILE, write_setting
from airlam.tasks.service_profiles import lam_profile
from airlam.tasks.serving import guarded_lams, services_of
from airlam.tokens.path_error import POWER

FREQUENCIES_HZ = tuple(180e3 * index for index in range(5))
SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=1, num_cols=3, polarization="dual", polarization_type="cross"),
    num_user_antennas=2,
    history_frequencies_hz=FREQUENCIES_HZ,
    target_frequencies_hz=FREQUENCIES_HZ,
    slot_duration_s=0.5e-3,
    num_history=4,
    num_horizon=2,
    max_doppler_hz=200.0,
)
MODEL = ModelSpec(num_layers=1, num_paths=3, lora_rank=2)
NOISE_VARIANCE = 0.1
# one downlink of 3 users has 3 (6 + 3) coefficients and 3 * 3 * 3 of errors; a request has 10 of them
SPEC = ServingSpec(port=0, max_batch_links=8, max_batch_coefficients=300, max_queued_coefficients=1000)
EVERY = torch.arange(len(FREQUENCIES_HZ))


def pair() -> PredictivePrecoder:
    """One whose answers are not those it starts with."""
    spec = PrecoderSpec(width=8, num_edge_channels=2, num_layers=1)
    made = PredictivePrecoder(lam_for(MODEL, SETTING, 1), build_precoder(spec, seed=1), SETTING)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in trainable_tensors(made).values():
            value.add_(0.05 * torch.randn(value.shape, generator=draw))
    return made.eval()


def histories(num_users: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a few waves each, and the variance of the noise in them."""
    draw = torch.Generator().manual_seed(num_users)
    shape = (num_users, 4, 2, 6, 5)
    slots, carriers = torch.arange(4)[:, None, None, None], torch.arange(5)
    phase = torch.rand(num_users, 3, 3, generator=draw)  # of delay, angle and Doppler, three waves a user
    history = torch.zeros(shape, dtype=torch.complex64)
    for wave in range(3):
        delay, angle, doppler = (phase[:, wave, k].view(-1, 1, 1, 1, 1) for k in range(3))
        turns = 0.1 * delay * carriers + angle * torch.arange(6)[:, None] + 0.1 * doppler * slots
        history += torch.polar(torch.ones(()), 2 * torch.pi * turns)
    noise = torch.randn(shape, dtype=torch.complex64, generator=draw)
    return history + 0.3 * noise, torch.full((num_users,), 0.09)


def monolithic(
    model: PredictivePrecoder, history: torch.Tensor, variance: torch.Tensor, power: torch.Tensor
) -> torch.Tensor:
    """W [num_horizon, num_subcarriers, num_bs_ant, num_users] of the model's own forward pass."""
    tokens = error_tokenizer(model.lam, EVERY).tokenise(history, variance)
    tokens = replace(tokens, context={**tokens.context, POWER: power})
    with torch.no_grad():
        found: torch.Tensor = model(tokens, EVERY, torch.full((1,), NOISE_VARIANCE), len(history))
    return found[0]


def folder_of(spec: RunSpec, folder: Path) -> Path:
    (folder / "run.toml").write_text(spec_to_toml(spec))
    (folder / "summary.json").write_text("{}")
    write_setting(folder, SETTING)
    return folder


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, as fine-tuning leaves it; of the run that it began with nothing is left."""
    folder = tmp_path_factory.mktemp("joint")
    pair().save(folder / "lam")
    own = BeamformingSpec(csi="predicted", predictor=str(folder / "gone"))
    spec = RunSpec(name="joint", dataset="none.h5", task="beamforming", beamforming=own)
    return folder_of(spec, folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of channel prediction on the same backbone."""
    folder = tmp_path_factory.mktemp("alone")
    lam_for(MODEL, SETTING, 1).save(folder / "lam")
    return folder_of(RunSpec(name="alone", dataset="none.h5", model=MODEL), folder)


@dataclass(frozen=True)
class Served:
    url: str
    services: PrecodingServices


@pytest.fixture(scope="module")
def server(joint: Path, alone: Path) -> Iterator[Served]:
    metrics = Metrics()
    services = services_of([joint, alone], metrics)
    assert isinstance(services, PrecodingServices)
    with running(services, SPEC, metrics) as url:
        yield Served(url, services)


@pytest.fixture
def client(server: Served) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made


@pytest.mark.parametrize("num_users", [1, 3])
def test_precoders_are_those_of_the_pair_at_hand(client: Client, num_users: int) -> None:
    history, variance = histories(num_users)
    found = client.predict_and_precode("joint", "joint", history, variance, NOISE_VARIANCE)
    assert found.shape == (2, 5, 6, num_users)
    expected = monolithic(pair(), history, variance, torch.ones(num_users))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_users_under_power_control_are_served_as_they_are_evaluated(client: Client) -> None:
    """An evaluation divides futures by their power; who asks divides what it has measured."""
    history, variance = histories()
    power = torch.tensor([0.25, 1.0, 4.0])  # whose roots round nothing
    gain = power.rsqrt()
    scaled = history * gain.view(-1, 1, 1, 1, 1)
    found = client.predict_and_precode("joint", "joint", scaled, variance * gain.square(), NOISE_VARIANCE)
    torch.testing.assert_close(found, monolithic(pair(), history, variance, power), rtol=1e-3, atol=1e-4)


def test_errors_matter(client: Client) -> None:
    history, variance = histories()
    found = client.predict_and_precode("joint", "joint", history, variance, NOISE_VARIANCE)
    future = client.predict("joint", history, variance)
    sure = future[:, 0, 0].permute(2, 0, 1).contiguous()  # [subcarriers, users, antennas]
    with torch.no_grad():
        untold = pair().precoder.precode(sure, torch.full((5,), NOISE_VARIANCE))
    assert (found[0] - untold).abs().max() > 1e-3


def test_the_predictor_predicts_for_others_too(client: Client) -> None:
    history, variance = histories(2)
    model = pair()
    with torch.no_grad():
        tokens = model.lam.tokenizer.tokenise(history, variance)
        expected = model.lam.head().channel(model.lam(tokens), tokens.context)
    torch.testing.assert_close(client.predict("joint", history, variance), expected, rtol=1e-3, atol=1e-3)
    both = client.predict_all(["joint", "alone"], history, variance)
    torch.testing.assert_close(both["joint"], expected, rtol=1e-3, atol=1e-3)
    assert both["alone"].shape == expected.shape


def opened(client: Client, history: torch.Tensor, slots: range) -> list[str]:
    names = [client.open_session("joint") for _ in history]
    for user, name in enumerate(names):
        for slot in slots:
            assert client.add_slot(name, history[user, slot], 0.09, slot, predict=False) is None
    return names


def test_histories_of_sessions_give_what_whole_histories_give(client: Client) -> None:
    history, variance = histories()
    names = opened(client, history, range(4))
    found = client.precode_sessions("joint", "joint", names, NOISE_VARIANCE)
    expected = client.predict_and_precode("joint", "joint", history, variance, NOISE_VARIANCE)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    two = client.precode_sessions("joint", "joint", names[1:], NOISE_VARIANCE)  # another choice of users
    assert two.shape == (2, 5, 6, 2)
    answer = client.add_slot(names[0], history[0, 3], 0.09, 4)
    assert answer is not None and answer.shape == (1, 2, 2, 6, 5)


def test_sessions_that_cannot_be_served_are_refused(client: Client) -> None:
    history, _ = histories()
    first, second = opened(client, history[:2], range(4))
    (young,) = opened(client, history[:1], range(3))
    (other,) = (client.open_session("alone"),)
    for names, noise_variance, status, reason in (
        ([first, young], 0.1, 409, "not whole yet"),
        ([first, other], 0.1, 404, "no such session"),
        ([first, "none"], 0.1, 404, "no such session"),
        ([first, first], 0.1, 422, "session=NAME once for each session"),
        ([], 0.1, 422, "session=NAME once for each session"),
        ([f"x{index}" for index in range(9)], 0.1, 422, "9 users are asked for; expected 1 to 8"),
        ([first, second], -1.0, 422, "receiver_noise_variance is '-1.0'; expected a positive number"),
    ):
        with pytest.raises(RequestRefused, match=reason) as refused:
            client.precode_sessions("joint", "joint", names, noise_variance)
        assert refused.value.status == status
    assert client.precode_sessions("joint", "joint", [first, second], 0.1).shape == (2, 5, 6, 2)


def test_a_precoder_takes_what_its_own_predictor_says(client: Client) -> None:
    history, variance = histories()
    with pytest.raises(RequestRefused, match="a predictor of its own; ask for LAM 'joint'"):
        client.predict_and_precode("alone", "joint", history, variance, NOISE_VARIANCE)
    channel = history[:, 0, 0, :, 0][None]  # [1, users, antennas]
    with pytest.raises(RequestRefused, match="send their error_covariance"):
        client.precode("joint", channel, torch.full((1,), 0.1))


def test_errors_may_be_told_of_one_polarisation(client: Client) -> None:
    channel = histories()[0][:, :2, 0, :, 0].transpose(0, 1).contiguous()  # [2, users, antennas]
    draw = torch.Generator().manual_seed(2)
    factor = 0.2 * torch.randn(2, 3, 3, 3, dtype=torch.complex64, generator=draw)
    ports = factor @ factor.mH
    noise_variance = torch.full((2,), 0.1)
    found = client.precode("joint", channel, noise_variance, ports)
    whole = client.precode("joint", channel, noise_variance, whole_array(ports, 2))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)
    rounded = torch.diag(torch.tensor([1.0, 1.0, -1e-7])).to(ports.dtype).expand_as(ports)
    assert client.precode("joint", channel, noise_variance, rounded).shape == (2, 6, 3)
    for shape in ((2, 3, 4, 4), (2, 3, 0, 0), (2, 3, 3, 6), (2, 1, 3, 3), (2, 3, 3)):
        with pytest.raises(SpecError, match="error_covariance is"):
            Downlinks(
                precoder="joint",
                h=channel,
                noise_variance=noise_variance,
                error_covariance=torch.zeros(shape, dtype=torch.complex64),
            )


def test_one_graph_names_both_and_shares_the_backbone(server: Served, client: Client) -> None:
    graph = server.services.graph
    flow = graph.flows["joint"]
    assert list(flow) == [
        "tokenizer.csi",
        "embedding",
        "block.0",
        "norm",
        "head.channel_prediction",
        "precoder",
    ]
    for module in ("tokenizer.csi", "block.0", "norm"):
        assert flow[module] == graph.flows["alone"][module] == module
    head = flow["head.channel_prediction"]
    assert head != graph.flows["alone"]["head.channel_prediction"]
    assert [source for source, target in graph.edges if target == "precoder@joint"] == [head]
    assert graph.order.index(head) < graph.order.index("precoder@joint")
    assert client.precoders()["joint"]["csi"] == "predicted" and set(client.lams()) == {"joint", "alone"}
    history, variance = histories(1)
    client.predict_and_precode("joint", "joint", history, variance, NOISE_VARIANCE)
    passes = json.loads(client.get("/v1/load"))["services"]
    assert {"block.0", head, "precoder@joint"} <= set(passes)


def test_room_is_counted_with_errors(joint: Path) -> None:
    history, variance = histories()
    for bound in ({"max_batch_coefficients": 53}, {"max_queued_coefficients": 530}):
        services = services_of([joint], Metrics())
        with running(services, replace(SPEC, **bound), Metrics()) as url, Client(url) as client:
            with pytest.raises(RequestRefused, match="3 users are too many for one request"):
                client.predict_and_precode("joint", "joint", history, variance, NOISE_VARIANCE)
            found = client.predict_and_precode("joint", "joint", history[:2], variance[:2], NOISE_VARIANCE)
            assert found.shape == (2, 5, 6, 2)


def test_another_process_foresees_alike() -> None:
    """As over Ray: recipe, message, phases, answer."""
    history, variance = histories(2)
    one = Measurement(lam="joint", history=history, noise_variance=variance, with_errors=True)
    asked = {"joint": [one]}
    made = pair()
    lams = {"joint": foreseeing(made.lam, made.levels.detach())}
    assert lam_profile(lams["joint"]).by_name["head.channel_prediction"].forward_flops > 0
    answer = Phases(recipe_of(lams)).handle(request_of(asked, PHASES, {}))
    assert answer.header.operation != RUN
    found = Foresight.unpacked(state_in(answer)["joint"][FUTURE], SETTING)
    expected, future = LamServices(lams).predict([one, replace(one, with_errors=False)])
    torch.testing.assert_close(future, found.future, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.packed, expected, rtol=1e-5, atol=1e-6)
    assert found.future.shape == (2, 2, 2, 6, 5) and found.error_covariance.shape == (2, 2, 5, 3, 3)


def test_a_folder_of_an_older_version_is_served_by_its_predictors(
    joint: Path, alone: Path, tmp_path: Path
) -> None:
    for path in ("lam", "summary.json"):
        (tmp_path / path).symlink_to(joint / path)
    own = BeamformingSpec(csi="predicted", predictor=str(alone))
    spec = RunSpec(name="older", dataset="none.h5", task="beamforming", beamforming=own)
    (tmp_path / "run.toml").write_text(spec_to_toml(spec))
    assert not (tmp_path / SETTING_FILE).exists()
    assert guarded_lams([tmp_path])[0]["older"].tokenizer.setting == SETTING


def test_two_runs_of_one_name_are_refused(joint: Path) -> None:
    with pytest.raises(SpecError, match="two runs are called 'joint'"):
        guarded_lams([joint, joint])
    with pytest.raises(SpecError, match="two runs are called 'joint'"):
        services_of([joint, joint], Metrics())
