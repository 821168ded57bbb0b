"""From run folders and a network file to a placement: what ``airlam place`` says, and what it refuses."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from airlam import cli
from airlam.datasets.catalog import packaged_spec
from airlam.datasets.generate import generate
from airlam.errors import SpecError
from airlam.model.build import lam_for
from airlam.model.graph_precoder import build_precoder
from airlam.model.lam_beams import LamBeams
from airlam.model.precoder_chain import save_precoder
from airlam.model.predictive_precoder import PredictivePrecoder
from airlam.radio.beam_regression import PowerStack
from airlam.radio.beam_selection import BeamHistory, BeamWindows
from airlam.radio.channel import PredictionSetting
from airlam.serving.monitoring import Metrics
from airlam.specs import (
    ArraySpec,
    BeamformingSpec,
    CellSpec,
    DeviceSpec,
    LinkSpec,
    ModelSpec,
    NetworkSpec,
    PrecoderSpec,
    RunSpec,
    ServerSpec,
    SplitSizes,
    WireSpec,
    spec_to_toml,
)
from airlam.tasks.placing import PlacingRequest, place_runs
from airlam.tasks.run_setting import write_setting
from airlam.tasks.runs import LAM_FOLDER, RUN_FILE, SUMMARY_FILE
from airlam.tasks.served_tasks import predicting_task, served_tasks
from airlam.tasks.service_profiles import precoder_profile
from airlam.tasks.serving import services_of
from airlam.tokens.beam_history import BeamScales

FREQUENCIES_HZ = tuple(180e3 * i for i in range(8))
SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=1, num_cols=4),
    num_user_antennas=1,
    history_frequencies_hz=FREQUENCIES_HZ,
    target_frequencies_hz=FREQUENCIES_HZ,
    slot_duration_s=0.5e-3,
    num_history=6,
    num_horizon=2,
    max_doppler_hz=200.0,
)
MODEL = ModelSpec(backbone="small", num_layers=1, num_paths=4)
MODEL_OF_BEAMS = ModelSpec(num_layers=1)
GRAPH = PrecoderSpec(width=8, num_edge_channels=2, num_layers=1)
NETWORK = NetworkSpec(
    name="three",
    cell=CellSpec(uplink_bandwidth_hz=1e6, downlink_bandwidth_hz=1e6),
    servers=tuple(ServerSpec(name=f"s{i}", compute_flops_per_s=1e12, memory_bytes=1e8) for i in range(3)),
    wires=tuple(WireSpec(first="s0", second=f"s{i}", rate_bps=1e9, latency_s=1e-3) for i in (1, 2)),
    devices=(
        DeviceSpec(name="phone", compute_flops_per_s=1e9, memory_bytes=1e9, count=2, path_gain_db=-90.0),
    ),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished runs as fine-tuning leaves them, of one backbone with heads of their own."""
    folders = []
    for seed, name in enumerate("ab"):
        folder = tmp_path_factory.mktemp("runs") / name
        folder.mkdir()
        lam, random = lam_for(MODEL, SETTING, RunSpec(name=name, dataset="").training.seed), torch.Generator()
        for parameter in lam.parameters():
            if parameter.requires_grad:
                parameter.data += 0.03 * torch.randn(parameter.shape, generator=random.manual_seed(seed))
        lam.save(folder / LAM_FOLDER)
        (folder / RUN_FILE).write_text(spec_to_toml(RunSpec(name=name, dataset="none.h5", model=MODEL)))
        (folder / SUMMARY_FILE).write_text("{}")
        write_setting(folder, SETTING)
        folders.append(folder)
    return folders


def test_runs_are_placed_with_their_replicas_near_those_who_ask(runs: list[Path]) -> None:
    result = place_runs(PlacingRequest(network=NETWORK, folders=runs, rate_per_s=50.0))
    hosts = result.placed.placement.hosts
    assert all(len(nodes) == 2 for nodes in hosts.values()) and "block.0" in hosts
    assert {one.name: one.arrival_per_s for one in result.problem.classes} == {
        "a from s0": 100.0,
        "b from s0": 100.0,
    }
    assert all(node == "s0" for route in result.placed.placement.routes.values() for node in route.values())
    slot, future = 4 * 8 * 8 + 4, 2 * 4 * 8 * 8  # bytes: complex64, and the noise variance
    assert result.problem.classes[0].input_bytes == slot and result.problem.classes[0].output_bytes == future
    assert set(result.radio_s) == {"a from s0", "b from s0"}
    assert set(result.radio_s["a from s0"]) == {"phone.0", "phone.1"}
    text = result.text()
    assert "proven optimal" in text and "block.0" in text and "on the radio besides" in text


def test_the_command_prints_a_table_or_json(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    network = tmp_path / "network.toml"
    network.write_text(spec_to_toml(NETWORK))
    command = ["airlam", "place", *map(str, runs), "--network", str(network), "--replicas", "3"]
    for arguments in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", [*command, *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code
        printed = capfd.readouterr().out
        if arguments:
            values = json.loads(printed)
            assert set(values["hosts"]["norm"]) == {"s0", "s1", "s2"} and values["gap"] < 1e-5
        else:
            assert "replicas" in printed


def test_what_cannot_be_is_told(runs: list[Path]) -> None:
    with pytest.raises(SpecError, match=r"% of the radio link of phone\.0"):
        place_runs(PlacingRequest(network=NETWORK, folders=runs, rate_per_s=1e4))
    with pytest.raises(SpecError, match="positive number"):
        PlacingRequest(network=NETWORK, folders=runs, rate_per_s=0.0)
    with pytest.raises(SpecError, match="the network has 2"):
        PlacingRequest(network=NETWORK, folders=runs, num_devices=3)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs of beam selection, of beamforming, and of beamforming on predicted channels."""
    root = tmp_path_factory.mktemp("others")
    generate(dataclasses.replace(packaged_spec("quickstart"), drops=SplitSizes(train=1)), root / "d.h5")
    windows = BeamWindows(
        history=BeamHistory(
            power=torch.rand(6, 9, 4).double() + 0.1, position_m=torch.rand(6, 9, 3).double()
        ),
        future_power=torch.rand(6, 2, 4).double() + 0.1,
        sequence=torch.arange(6) // 3,
    )
    beams = LamBeams.untuned(PowerStack.fitted(windows), BeamScales.of(windows), MODEL_OF_BEAMS, seed=1)
    beams.save(root / "beams" / LAM_FOLDER)
    save_precoder(build_precoder(GRAPH), root / "known" / LAM_FOLDER)
    pair = PredictivePrecoder(lam_for(MODEL, SETTING, 1), build_precoder(GRAPH), SETTING)
    pair.save(root / "joint" / LAM_FOLDER)
    write_setting(root / "joint", SETTING)
    specs = (
        RunSpec(name="beams", dataset="none.h5", task="beam_selection", model=MODEL_OF_BEAMS),
        RunSpec(name="known", dataset=str(root / "d.h5"), task="beamforming"),
        RunSpec(
            name="joint",
            dataset="none.h5",
            task="beamforming",
            beamforming=BeamformingSpec(csi="predicted", predictor="none"),
        ),
    )
    for spec in specs:
        (root / spec.name / RUN_FILE).write_text(spec_to_toml(spec))
        (root / spec.name / SUMMARY_FILE).write_text("{}")
    return {spec.name: root / spec.name for spec in specs}


def test_runs_of_every_task_are_placed_as_they_are_served(runs: list[Path], others: dict[str, Path]) -> None:
    folders = [runs[0], *others.values()]
    result = place_runs(PlacingRequest(network=NETWORK, folders=folders, rate_per_s=2.0))
    served = services_of(folders, Metrics()).graph
    assert set(result.placed.placement.hosts) == {one.name for one in served.services}
    classes = {one.name: one for one in result.problem.classes}
    assert set(classes) == {f"{name} from s0" for name in ("a", *others)}
    for name in others:
        assert set(classes[f"{name} from s0"].services) == set(served.flows[name].values())
    assert classes["beams from s0"].arrival_per_s == 4.0
    assert classes["joint from s0"].arrival_per_s == 4.0 / LinkSpec().num_users  # as many at once
    assert set(result.radio_s) == {"a from s0"}  # the base station asks for the others


def test_work_grows_with_what_is_asked(others: dict[str, Path]) -> None:
    _, tasks = served_tasks(list(others.values()))
    alone = precoder_profile(build_precoder(GRAPH), 4, 4)
    joint = tasks["joint"].profile.by_name["precoder"]
    assert joint.forward_flops >= 2 * 8 * alone.by_name["precoder"].forward_flops  # slots, subcarriers
    one = predicting_task(lam_for(MODEL, SETTING, 1)).profile.by_name["block.0"]
    assert tasks["joint"].profile.by_name["block.0"].forward_flops == pytest.approx(4 * one.forward_flops)
    experts = tasks["beams"].profile.by_name["experts"]
    stack = LamBeams.load(others["beams"] / LAM_FOLDER).stack
    assert experts.parameter_bytes == sum(t.numel() * t.element_size() for t in stack.held())
    assert all(module.working_bytes > 0 for task in tasks.values() for module in task.profile.modules)
