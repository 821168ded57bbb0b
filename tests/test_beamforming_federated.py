"""Base stations train one precoder together: as well as in one place, and no channel leaves any of them."""

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from airlam.datasets.store import ChannelDataset
from airlam.errors import SpecError
from airlam.model.graph_precoder import gram_of
from airlam.model.precoder_chain import GRAM, GramTokenizer, PrecoderLam, answers_of
from airlam.model.storage import trainable_tensors
from airlam.pictures import pictures
from airlam.specs import (
    ArraySpec,
    BeamformingSpec,
    DeviceSpec,
    FederatedSpec,
    LinkSpec,
    ModelSpec,
    NetworkSpec,
    PrecoderSpec,
    RunSpec,
    ScenarioSpec,
    ServerSpec,
    SplitSizes,
    TrainingSpec,
)
from airlam.split.messages import Message
from airlam.split.transport import InProcess
from airlam.tasks.beamforming_data import Views, all_drops, read_views
from airlam.tasks.beamforming_evaluation import measure
from airlam.tasks.beamforming_federated import device_tokens, federated_spec, precoder_loss, precoder_setup
from airlam.tasks.beamforming_run import precoder_lam
from airlam.tasks.channel_prediction import quiet
from airlam.tasks.evaluation import evaluate
from airlam.tasks.federated import devices_of
from airlam.tasks.runs import finetune
from airlam.tasks.task import Run
from airlam.tokens.base import TokenBatch
from airlam.training.federated.engine import Federation
from airlam.training.federated.report import read_rounds
from airlam.training.loop import fit

NETWORK = NetworkSpec(
    name="cells",
    servers=(ServerSpec(name="edge", compute_flops_per_s=1e12, memory_bytes=1e10),),
    devices=(
        DeviceSpec(name="station", count=3, compute_flops_per_s=1e11, memory_bytes=1e9, path_gain_db=-90.0),
    ),
    scenario=ScenarioSpec(fading="none"),
)
RUN = RunSpec(
    name="r",
    dataset="d.h5",
    task="beamforming",
    beamforming=BeamformingSpec(min_users=3, max_users=5),
    precoder=PrecoderSpec(width=8, num_edge_channels=2, num_layers=1, num_stages=2),
    training=TrainingSpec(
        num_steps=40,
        batch_size=8,
        num_samples=192,
        learning_rate=1e-2,
        validation_every_steps=20,
        checkpoint_every_steps=10,
    ),
    link=LinkSpec(num_users=5, snr_db=(10.0,)),
    network=NETWORK,
    federated=FederatedSpec(method="fedavg", policy="all", freeze_embedding=False),
)
BACKBONE = PrecoderSpec(
    width=8,
    num_edge_channels=2,
    num_layers=1,
    num_stages=2,
    backbone=ModelSpec(backbone="small", num_layers=1, lora_rank=2),
)


@pytest.fixture(scope="module")
def base(downlink_dataset: Callable[..., Path]) -> Path:
    """A folder with a tiny dataset of five users a drop, on an array that they crowd."""
    array = ArraySpec(num_rows=1, num_cols=3, polarization="dual", polarization_type="cross")
    return downlink_dataset(5, array, SplitSizes(train=18, validation=6, test=12))


@pytest.fixture(scope="module")
def trained(base: Path) -> Path:
    return finetune(RUN, base, base / "runs", quiet)


def opened(base: Path, spec: RunSpec = RUN) -> Run:
    dataset = ChannelDataset.open(base / "d.h5")
    return Run(spec=spec, dataset=dataset, folder=base, on_progress=quiet)


def training_views(run: Run) -> Views:
    return read_views(run.dataset, "train", all_drops(run.dataset, "train"), quiet)


def test_rounds_are_reported_and_evaluated(trained: Path) -> None:
    together = json.loads((trained / "summary.json").read_text())["federated"]
    assert together["method"] == "fedavg" and together["num_devices"] == 3
    missing = [point["nmse"] for point in together["curve"]]
    assert len(missing) == 3 and missing[-1] < missing[0] < 0.5
    assert len(read_rounds(trained)) == 40
    result = evaluate(trained, link=False)
    assert {row.measure for row in result.network} == {"share of WMMSE's sum rate that is missing"}
    assert "Accuracy against time" in {picture.title for picture in pictures(result)}
    assert "sent up by devices" in {row.quantity for row in result.cost}


@dataclass(frozen=True)
class OneByOne:
    """The devices' samples in one place, each batch of one device's; implements ``GroupedSamples``."""

    tokens: tuple[TokenBatch, ...]

    def __len__(self) -> int:
        return sum(self.group_sizes)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        return tuple(len(tokens) for tokens in self.tokens)

    def batch(self, indices: torch.Tensor) -> TokenBatch:
        size = self.group_sizes[0]
        return self.tokens[int(indices[0]) // size].select(indices % size)


def central_loss(model: nn.Module, tokens: TokenBatch) -> torch.Tensor:
    assert isinstance(model, PrecoderLam)
    return precoder_loss(model, model(tokens), tokens.context)


def test_it_is_as_good_as_training_in_one_place(trained: Path, base: Path, tmp_path: Path) -> None:
    run = opened(base)
    lam = precoder_lam(RUN)
    tokens = device_tokens(run, lam, training_views(run), devices_of(NETWORK), federated_spec(RUN, lam))
    assert sorted(batch.features.shape[1] for batch in tokens.values()) == [3, 4, 5]
    samples = OneByOne(tuple(tokens.values()))
    training = dataclasses.replace(RUN.training, accumulation_steps=3)  # as many samples a step
    fit(lam, central_loss, samples, samples, training, tmp_path)
    lam.save(tmp_path / "lam")
    central = measure(dataclasses.replace(run, folder=_as_run(trained, tmp_path)), link=False)
    together = measure(dataclasses.replace(run, folder=trained), link=False)
    rates = [
        next(r.value for r in result.link if r.method == "lam" and r.metric == "sum_rate_bit_per_s_per_hz")
        for result in (central, together)
    ]
    assert rates[1] >= 0.95 * rates[0]
    untuned = 1 - _missing(trained)[0]
    assert 1 - _missing(trained)[-1] > untuned  # and there was something to learn


def _as_run(trained: Path, folder: Path) -> Path:
    """A folder with the files beside the model that an evaluation reads."""
    (folder / "summary.json").write_bytes((trained / "summary.json").read_bytes())
    return folder


def _missing(folder: Path) -> list[float]:
    curve = json.loads((folder / "summary.json").read_text())["federated"]["curve"]
    return [point["nmse"] for point in curve]


@pytest.mark.parametrize(
    ("precoder", "csi"), [(RUN.precoder, "perfect"), (BACKBONE, "pilots")], ids=["fedavg", "federated_lora"]
)
def test_no_channel_leaves_a_station(
    base: Path, precoder: PrecoderSpec, csi: Literal["perfect", "pilots"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a station answers after it was given its samples is a number or a weight."""
    own = BeamformingSpec(min_users=3, max_users=5, csi=csi)
    spec = dataclasses.replace(RUN, precoder=precoder, beamforming=own, federated=None)
    given: list[tuple[str, Message]] = []
    deliver = InProcess.next_answer

    def overhear(transport: InProcess) -> tuple[int, Any]:
        asked = transport._waiting[0][2]
        ticket, answer = deliver(transport)
        assert isinstance(answer, Message)
        given.append((asked.header.operation, answer))
        return ticket, answer

    monkeypatch.setattr(InProcess, "next_answer", overhear)
    run = opened(base, spec)
    lam = precoder_lam(spec)
    federation = Federation(precoder_setup(run, copy.deepcopy(lam), training_views(run)))
    for _ in range(2):
        assert len(federation.run_round().ran) == 3
    federation.close()
    weights = trainable_tensors(lam)
    shapes = {tuple(value.shape) for value in weights.values()} | {()}
    assert {operation for operation, _ in given} >= {"hold", "forward", "step", "weights"}
    for operation, answer in given:
        for name, value in answer.tensors.items():
            assert not value.is_complex()
            assert tuple(value.shape) in shapes, (operation, name, value.shape)
        if operation == "forward":
            assert set(answer.tensors) == {"loss", "norm"}
    sent = {name for _, _, name in federation.session.air.traffic.sent}
    assert sent == {f"weights/{name}" for name in weights}
    adapters = {name for name in weights if "lora_" in name}
    assert bool(adapters) == (precoder.backbone is not None)


def test_interrupted_and_started_again_it_ends_the_same(trained: Path, base: Path, tmp_path: Path) -> None:
    def stop_at_25(what: str, done: int, total: int, detail: str = "") -> None:
        if what == "rounds" and done == 25:
            raise KeyboardInterrupt

    spec = dataclasses.replace(RUN, dataset=str(base / "d.h5"))
    with pytest.raises(KeyboardInterrupt):
        finetune(spec, tmp_path, tmp_path, stop_at_25)
    folder = finetune(spec, tmp_path, tmp_path, quiet)
    name = Path("lam") / "weights.safetensors"
    assert (folder / name).read_bytes() == (trained / name).read_bytes()


def test_tokens_are_the_gram_matrix_and_the_head_is_the_precoder() -> None:
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(3, 4, 6, dtype=torch.complex64, generator=draw)
    noise = torch.full((3,), 0.2)
    lam = precoder_lam(RUN).eval()
    tokens = lam.tokenizer.tokenise(h, noise)
    assert tokens.features.shape == (3, 4, 10) and bool(tokens.mask.all())
    gram = gram_of(h, noise)
    assert torch.equal(tokens.context[GRAM], gram)
    assert torch.equal(torch.complex(tokens.features[..., :4], tokens.features[..., 5:9]), gram)
    assert not tokens.features[..., [4, 9]].any()
    with torch.no_grad():
        found, direct = answers_of(lam(tokens)), lam.precoder(gram)
    assert len(found) == len(direct) == 2
    for one, other in zip(found, direct, strict=True):
        assert torch.equal(one.log_dual, other.log_dual) and torch.equal(one.log_stream, other.log_stream)
    state = lam.forward_module("tokenizer.csi", {"history": h, "noise_variance": noise})
    for name in lam.module_names[1:]:
        state = state | lam.forward_module(name, state)
    assert torch.equal(state["stage.1.dual"], direct[1].log_dual)
    with pytest.raises(SpecError, match="6 users for rows of 5"):
        GramTokenizer(5).tokenise(torch.ones(1, 6, 8, dtype=torch.complex64), noise[:1])


def test_what_cannot_be_federated_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match='method "split" would send rows of the Gram matrix'):
        dataclasses.replace(RUN, federated=FederatedSpec())
    foreseeing = BeamformingSpec(csi="predicted", predictor="p")
    with pytest.raises(SpecError, match="devices do not tune predictors"):
        dataclasses.replace(RUN, beamforming=foreseeing)
    with pytest.raises(SpecError, match="train in one process; drop --transport"):
        finetune(RUN, base, tmp_path / "b", quiet, transport="ray")
    lora = dataclasses.replace(RUN, federated=FederatedSpec(method="federated_lora"))
    with pytest.raises(SpecError, match="federated_lora tunes by 'lora'"):
        finetune(lora, base, tmp_path / "c", quiet)
