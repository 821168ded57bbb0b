"""From a network's spec and a model's to a plan: what ``airlam plan`` does."""

import dataclasses
import math
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from airlam.datasets.catalog import packaged_spec
from airlam.datasets.store import ChannelDataset
from airlam.errors import SpecError
from airlam.model.build import lam_for
from airlam.model.lam import CHANNEL_PREDICTION, LAM
from airlam.radio.channel import PredictionSetting
from airlam.specs import (
    DatasetSpec,
    ModelSpec,
    NetworkSpec,
    PredictionSpec,
    RunSpec,
    parse_spec,
    read_spec,
    require,
)
from airlam.split.fleet import OWN_DEVICE, Fleet, FleetPlan, plan_fleet
from airlam.split.graph import ModuleGraph, Precision
from airlam.split.network import EdgeNetwork
from airlam.split.part import EMBEDDING, freeze
from airlam.split.plan import Schedule
from airlam.split.plan_report import cost_values, plan_text
from airlam.split.planner_problem import Budgets, Choices, Objective
from airlam.split.profile import profile_lam
from airlam.split.timeline import Mode
from airlam.tasks.drawn_network import drawn

ON_DEVICE = ("tokenizer.csi", f"head.{CHANNEL_PREDICTION}")  # where measurements and labels are
PACKAGED = ("edge_network",)
_PROFILED_LINKS = 4  # loads are proportional to the batch, so a few links tell them
_NOISE_VARIANCE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningRequest:
    """What to plan. dataset: its channels' sizes; on_device: modules that stay on each device.

    num_devices: of the network, the first so many take part; None for all. same_cut: as in ``Fleet``. ranks:
    LoRA ranks to choose from, by default the model's own.
    """

    network: NetworkSpec
    model: ModelSpec = field(default_factory=ModelSpec)
    prediction: PredictionSpec = field(default_factory=PredictionSpec)
    dataset: DatasetSpec = field(default_factory=lambda: packaged_spec("demo"))
    batch_size: int = 32
    mode: Mode = "training"
    on_device: tuple[str, ...] = ON_DEVICE
    freeze_embedding: bool = False
    num_devices: int | None = None
    same_cut: bool = False
    ranks: tuple[int, ...] = ()
    precisions: tuple[Precision, ...] = ("fp32",)
    objective: Objective = field(default_factory=Objective)
    budgets: Budgets = field(default_factory=Budgets)

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"batch_size must be at least 1, got {self.batch_size}")
        largest = len(self.network.devices_by_name)
        known = self.num_devices is None or 1 <= self.num_devices <= largest
        require(known, f"num_devices is {self.num_devices}; the network has {largest}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningResult:
    """The graph, the network at its mean gains, and the plan."""

    graph: ModuleGraph
    network: EdgeNetwork
    found: FleetPlan

    def text(self) -> str:
        """For a terminal."""
        optimal = sum(one.is_optimal for one in self.found.planned.values())
        proven = f"proven optimal for {optimal} of {len(self.found.planned)} devices, each with its shares"
        return f"{plan_text(self.graph, self.network, self.found.plan, self.found.cost)}\n{proven}"

    def values(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "plan": self.found.plan.to_dict(),
            "cost": cost_values(self.found.cost),
            "proven_optimal": {name: one.is_optimal for name, one in self.found.planned.items()},
        }


def plan_network(request: PlanningRequest) -> PlanningResult:
    """Profiles the model, draws the network's mean gains, and plans all devices with equal shares."""
    task = request.prediction
    setting = PredictionSetting.from_dataset(request.dataset, task.num_history, task.num_horizon, task.duplex)
    lam = lam_for(dataclasses.replace(request.model, random_weights=True), setting, seed=0)
    if request.freeze_embedding:
        freeze(lam, EMBEDDING)
    graph = profiled(lam, setting, request.mode).for_batch(request.batch_size)
    network = drawn(request.network).network
    fleet = Fleet(
        graph=graph,
        network=network,
        schedule=Schedule.equal(network, network.devices[: request.num_devices]),
        mode=request.mode,
        objective=request.objective,
        budgets=request.budgets,
        same_cut=request.same_cut,
        choices=Choices(
            pins={name: (OWN_DEVICE,) for name in request.on_device}
            | {name: (OWN_DEVICE, *network.servers) for name in graph.order if name not in request.on_device},
            ranks=request.ranks or (request.model.lora_rank,),
            precisions=request.precisions,
        ),
    )
    return PlanningResult(graph=graph, network=network, found=plan_fleet(fleet))


def profiled(lam: LAM, setting: PredictionSetting, mode: Mode) -> ModuleGraph:
    """The LAM's graph for a few links of noise, which fill all of its tokens.

    In training the tokeniser counts as free: the loop makes each sample's tokens once, before it starts.
    """
    shape = (setting.num_user_antennas, setting.base_station.num_ports)
    generator = torch.Generator().manual_seed(0)
    history = torch.randn(
        (_PROFILED_LINKS, setting.num_history, *shape, len(setting.history_frequencies_hz)),
        dtype=torch.complex64,
        generator=generator,
    )
    future = torch.randn(
        (_PROFILED_LINKS, setting.num_horizon, *shape, len(setting.target_frequencies_hz)),
        dtype=torch.complex64,
        generator=generator,
    )
    noise_variance = torch.full((_PROFILED_LINKS,), _NOISE_VARIANCE)
    tokens = lam.tokenizer.with_target(lam.tokenizer.tokenise(history, noise_variance), future)
    if mode == "training":
        return profile_lam(lam, tokens)
    return profile_lam(lam, tokens, history=history, noise_variance=noise_variance)


def resolve_network(name_or_path: str) -> NetworkSpec:
    """The spec in a TOML file, or the packaged one of that name: ``edge_network``."""
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        return read_spec(NetworkSpec, path)
    if name_or_path not in PACKAGED:
        raise SpecError(
            f"{name_or_path!r} is no TOML file and no packaged network; known: {', '.join(PACKAGED)}"
        )
    text = files("airlam.tasks").joinpath(f"{name_or_path}.toml").read_text()
    return parse_spec(NetworkSpec, text, f"packaged network {name_or_path}")


def request_of(network: str, run: Path | None, **options: Any) -> PlanningRequest:
    """A request for a network, with the model, task and batch size of a run file where one is given.

    Channels have the sizes of the run's dataset where that has been generated. options: fields of the
    request, which go before the run's.
    """
    spec = resolve_network(network)
    if run is None:
        return PlanningRequest(network=spec, **options)
    taken = read_spec(RunSpec, run)
    require(
        taken.task == "channel_prediction",
        f"{run} is of {taken.task}, whose model is not split; give a run of channel_prediction, or none",
    )
    of_run: dict[str, Any] = {
        "model": taken.model,
        "prediction": taken.prediction,
        "batch_size": taken.training.batch_size,
    }
    if (run.parent / taken.dataset).is_file():
        with ChannelDataset.open(run.parent / taken.dataset) as dataset:
            of_run["dataset"] = dataset.spec
    return PlanningRequest(network=spec, **(of_run | options))


def options_of(
    *,
    model: str | None,
    batch_size: int | None,
    mode: Mode,
    on_device: str,
    freeze_embedding: bool,
    num_devices: int | None,
    same_cut: bool,
    ranks: str,
    rank_value_s: float,
    precisions: str,
    energy_s_per_j: float,
    max_latency_s: float | None,
    max_energy_j: float | None,
) -> dict[str, Any]:
    """What the command line says, as fields of a request; commas separate lists, None says nothing."""
    options: dict[str, Any] = {
        "mode": mode,
        "on_device": (*ON_DEVICE, *_split(on_device)),
        "freeze_embedding": freeze_embedding,
        "num_devices": num_devices,
        "same_cut": same_cut,
        "ranks": tuple(_number(text) for text in _split(ranks)),
        "precisions": _split(precisions),
        "objective": Objective(energy_s_per_j=energy_s_per_j, rank_value_s=rank_value_s),
        "budgets": Budgets(
            latency_s=math.inf if max_latency_s is None else max_latency_s,
            energy_j=math.inf if max_energy_j is None else max_energy_j,
        ),
    }
    if model is not None:
        options["model"] = ModelSpec(backbone=model)
    if batch_size is None and mode == "inference":
        batch_size = 1  # a request
    return options if batch_size is None else options | {"batch_size": batch_size}


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _number(text: str) -> int:
    if not text.isdecimal():
        raise SpecError(f"rank {text!r} is no whole number; write ranks as 4,8,16")
    return int(text)
