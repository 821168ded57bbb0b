"""From a network file to a printed plan: what ``airlam plan`` says, and what it refuses."""

import json
from pathlib import Path

import pytest

from airlam import cli
from airlam.errors import SpecError
from airlam.specs import DeviceSpec, ModelSpec, NetworkSpec, ServerSpec, spec_to_toml
from airlam.split.plan import SplitPlan
from airlam.tasks.planning import PlanningRequest, options_of, plan_network, request_of, resolve_network

ROOT = Path(__file__).resolve().parents[1]
NETWORK = NetworkSpec(
    name="two",
    servers=(ServerSpec(name="edge", compute_flops_per_s=1e14, memory_bytes=1e10),),
    devices=(
        DeviceSpec(name="phone", compute_flops_per_s=1e9, memory_bytes=1e9, count=2, path_gain_db=-70.0),
    ),
)


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["airlam", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


@pytest.fixture
def network_file(tmp_path: Path) -> Path:
    path = tmp_path / "network.toml"
    path.write_text(spec_to_toml(NETWORK))
    return path


def test_slow_devices_leave_blocks_to_a_fast_server() -> None:
    result = plan_network(PlanningRequest(network=NETWORK, model=ModelSpec(num_layers=2), batch_size=8))
    plan = result.found.plan
    assert plan.replicas["block.0"] == ("edge",)
    assert (
        plan.replicas["tokenizer.csi"] == plan.replicas["head.channel_prediction"] == ("phone.0", "phone.1")
    )
    assert result.graph.batch_size == 8
    assert "slowest of 2 flows" in result.text()


def test_the_command_prints_a_table_or_json(
    network_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "plan",
        str(network_file),
        "--model",
        "small",
        "--precisions",
        "fp32,int8",
        "--freeze-embedding",
    )
    assert run(*arguments, monkeypatch=monkeypatch) == 0
    table = capfd.readouterr().out
    assert "block.3" in table
    assert run(*arguments, "--json", monkeypatch=monkeypatch) == 0
    values = json.loads(capfd.readouterr().out)
    plan = SplitPlan.from_dict(values["plan"])
    assert plan.flow_names == ("phone.0", "phone.1")
    assert set(values["proven_optimal"].values()) == {True}
    assert values["cost"]["latency_s"] > 0


def test_what_cannot_be_is_one_line(
    network_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ("plan", str(network_file), "--model", "small", "--max-latency", "1e-9")
    assert run(*arguments, monkeypatch=monkeypatch) == 2
    said = capfd.readouterr().err
    assert said.startswith("airlam: phone.0: no plan is within all limits")
    assert "latency budget" in said
    assert len(said.splitlines()) == 1


def test_a_run_brings_its_model_and_batch(network_file: Path) -> None:
    request = request_of(str(network_file), ROOT / "notebooks" / "quickstart_run.toml", mode="inference")
    assert request.batch_size > 1
    assert request.mode == "inference"
    assert request.network == NETWORK


def test_the_shipped_network_can_be_read() -> None:
    assert len(resolve_network("edge_network").devices_by_name) == 20
    assert resolve_network(str(ROOT / "tasks" / "edge_network.toml")) == resolve_network("edge_network")
    with pytest.raises(SpecError, match="'edge_netwrk' is no TOML file and no packaged network"):
        resolve_network("edge_netwrk")


def test_slips_are_named() -> None:
    with pytest.raises(SpecError, match="rank 'x' is no whole number"):
        options_of(
            model=None,
            batch_size=None,
            mode="training",
            on_device="",
            freeze_embedding=False,
            num_devices=None,
            same_cut=False,
            ranks="4,x",
            rank_value_s=0,
            precisions="fp32",
            energy_s_per_j=0,
            max_latency_s=None,
            max_energy_j=None,
        )
    with pytest.raises(SpecError, match="num_devices is 3; the network has 2"):
        PlanningRequest(network=NETWORK, num_devices=3)
