"""Channel prediction over edge servers, each with 5 % of the samples: the experiment of Wang et al., Edge
Large AI Models (2505.00321, Fig. 4), and what it leaves out.

There 2, 5 or 10 edge servers tune LLM4CP with LoRA on QuaDRiGa channels, against LLM4CP, GRU and RNN on one
server's samples; the figure shows training loss against epochs. Here the channels are Sionna's in LLM4CP's
setting, and the LAM is one on antenna and subcarrier patches, as LLM4CP, beside ours on path tokens; both are
reconstructions of the experiment. Added: test NMSE on unseen drops with the best classical predictor beside
it, servers whose users differ (by speed; by generator: UMa with directional users, with omnidirectional ones,
UMi; by ray-traced site), bytes, and air time over a common band of 10 MHz at 20 dB. Every server takes part
in every round, a round is an epoch of its samples, and what trains is averaged after it.
"""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from airlam.bench.federated.scoring import predictor_nmse
from airlam.bench.federated.server_data import SPEED, ServerData, open_server_data
from airlam.model.build import lam_for
from airlam.model.comparators import LearnedPredictor, matched, portwise_nmse
from airlam.model.lam import count_parameters
from airlam.radio.prediction.path_eb import PathEb
from airlam.specs import (
    DeviceSpec,
    FederatedSpec,
    ModelSpec,
    NetworkSpec,
    PredictionSpec,
    RunSpec,
    ScenarioSpec,
    ServerSpec,
    SplitSizes,
    TrainingSpec,
)
from airlam.split.node import nmse_loss
from airlam.tasks.channel_prediction import (
    LinkSource,
    MixedLinks,
    NoisyViews,
    Progress,
    quiet,
    tokenise_views,
)
from airlam.tasks.device_data import OwnLinks, device_samples
from airlam.tasks.drawn_network import drawn
from airlam.tasks.federated import nmse_evaluation, setup_of
from airlam.training.federated.run import train_together
from airlam.training.loop import fit
from airlam.training.metrics import read_metrics

SHARE = 0.05  # of all training drops, at each server
PREDICTION = PredictionSpec(min_snr_db=5.0, max_snr_db=20.0)
MODELS = {
    "path": ModelSpec(backbone="airlam", num_layers=2),
    "patch": ModelSpec(backbone="small", num_layers=2, tokenizer="patch"),
}
PEERS = ("gru", "rnn")
_PEER_PORTS = 8  # of a sample, as where the peers are trained alone
_PATH_GAIN_DB = -107.0  # 20 dB on the whole band: 23 dBm over -104 dBm of noise in 10 MHz


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServersScale:
    """How much of it; site_drops: of each ray-traced site; peer_steps: of the GRU and the RNN."""

    drops: SplitSizes
    site_drops: SplitSizes | None
    numbers: tuple[int, ...]
    num_epochs: int
    batch_size: int
    peer_steps: int

    @property
    def samples_each(self) -> int:
        """Of a server."""
        return round(SHARE * self.drops.train)


FULL = ServersScale(
    drops=SplitSizes(train=2000, validation=128, test=256),
    site_drops=SplitSizes(train=400, validation=50, test=100),
    numbers=(2, 5, 10),
    num_epochs=30,
    batch_size=20,
    peer_steps=1000,
)
QUICK = ServersScale(
    drops=SplitSizes(train=80, validation=8, test=8),
    site_drops=None,
    numbers=(2,),
    num_epochs=2,
    batch_size=4,
    peer_steps=4,
)


def run_servers(
    scale: ServersScale, folder: Path, on_progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row a run: loss by epoch, NMSE on the test drops, bytes up, seconds on the air; and the settings."""
    most = max(scale.numbers)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        data = open_server_data(scale.drops, scale.site_drops, PREDICTION, stack, on_progress)
        plans = [("iid", number) for number in (1, *scale.numbers)] + [(SPEED, most)]
        plans += [(kind, number) for kind in data.sources for number in (1, most)]
        total = len(MODELS) * len(plans) + len(PEERS) + 1 + len(data.sources)
        bench = _Bench(scale, data, folder)
        for name in MODELS:
            for partition, number in plans:
                on_progress(f"{name} tokens, {partition}", len(rows), total, f"{number} servers")
                rows.append(bench.together(name, partition, number))
        for name in PEERS:
            on_progress(name, len(rows), total, "one server")
            rows.append(bench.peer(name))
        for partition in ("iid", *data.sources):
            rows.append(bench.classical(partition))
    on_progress("servers", total, total, "")
    return rows, dataclasses.asdict(scale) | {"skipped": dict(data.skipped)}


class _Bench:
    """The runs, all scored on the same test drops."""

    def __init__(self, scale: ServersScale, data: ServerData, folder: Path) -> None:
        self.scale, self.data, self.folder = scale, data, folder

    def together(self, model: str, partition: str, number: int) -> dict[str, Any]:
        """Servers that tune one LAM; one alone is the local LAM."""
        spec = self._run_spec(MODELS[model], number)
        assert spec.network is not None
        lam = lam_for(spec.model, self.data.setting(partition), spec.training.seed)
        owned = self._owned(partition, list(spec.network.devices_by_name))
        place = self.folder / f"{model}-{partition}-{number}"
        samples = device_samples(
            lam,
            owned,
            PREDICTION,
            num_samples=number * self.scale.samples_each,
            seed=1,
            folder=place / "train",
            on_progress=quiet,
        )
        evaluations = {
            split: nmse_evaluation(
                tokenise_views(
                    lam.tokenizer, self._views(split, partition), place / split, split, quiet
                ).tokens
            )
            for split in ("validation", "test")
        }
        federated = FederatedSpec(
            method="federated_lora",
            policy="all",
            freeze_embedding=model == "path",
            steps_per_round=self.scale.samples_each // self.scale.batch_size,
        )
        setup = setup_of(spec, lam, samples, drawn(spec.network), federated)
        result = train_together(dataclasses.replace(setup, loss=nmse_loss), evaluations["validation"])
        return {
            "name": f"{model}_{number}",
            "partition": partition,
            "num_servers": number,
            "test_nmse": evaluations["test"](result.lam),
            "loss": [report.loss for report in result.reports],
            "uplink_bytes": sum(report.uplink_bytes for report in result.reports) if number > 1 else 0,
            "air_s": result.reports[-1].now_s if number > 1 else 0.0,
        }

    def peer(self, name: str) -> dict[str, Any]:
        """A recurrent network of the LAM's trainable size on the first server's samples."""
        scale, setting = self.scale, self.data.setting("iid")
        net = matched(name, setting, count_parameters(lam_for(MODELS["path"], setting, 1)).trainable)
        owned = self._owned("iid", ["server"])["server"]
        views = {
            "train": NoisyViews(
                source=owned, spec=PREDICTION, num_samples=scale.samples_each, seed=1, num_ports=_PEER_PORTS
            ),
            "validation": dataclasses.replace(self._views("validation", "iid"), num_ports=_PEER_PORTS),
        }
        every = max(1, scale.peer_steps // 20)
        training = TrainingSpec(
            num_steps=scale.peer_steps,
            batch_size=scale.batch_size,
            num_samples=scale.samples_each,
            validation_every_steps=every,
            checkpoint_every_steps=scale.peer_steps,
            patience=1000,
        )
        place = self.folder / name
        fit(net, portwise_nmse, views["train"], views["validation"], training, place)
        losses = [line["loss"] for line in read_metrics(place / "metrics.jsonl")]
        epoch = max(1, scale.samples_each // scale.batch_size)
        means = [float(np.mean(losses[start : start + epoch])) for start in range(0, len(losses), epoch)]
        predictor = LearnedPredictor(name, net.eval())
        row = {"name": f"{name}_1", "partition": "iid", "num_servers": 1, "uplink_bytes": 0, "air_s": 0.0}
        return row | {"test_nmse": predictor_nmse(predictor, self._views("test", "iid")), "loss": means}

    def classical(self, partition: str) -> dict[str, Any]:
        """Path-EB, which learns nothing."""
        row = {"name": "path_eb", "partition": partition, "num_servers": 0, "uplink_bytes": 0, "air_s": 0.0}
        return row | {
            "test_nmse": predictor_nmse(PathEb(self.data.setting(partition)), self._views("test", partition)),
            "loss": [],
        }

    def _owned(self, partition: str, servers: list[str]) -> dict[str, LinkSource]:
        """Each server's drops, 5 % of all."""
        parts = self.data.divided(partition, servers)
        return {server: self._own_share(parts[server]) for server in servers}

    def _own_share(self, source: LinkSource) -> LinkSource:
        draw = np.random.default_rng(1)
        return OwnLinks(source, draw.permutation(len(source))[: self.scale.samples_each])

    def _views(self, split: str, partition: str) -> NoisyViews:
        """What is scored: drops like those of the servers together."""
        source = MixedLinks(self.data.split(partition, split))
        count = self.scale.drops.test if split == "test" else self.scale.drops.validation
        return NoisyViews(source=source, spec=PREDICTION, num_samples=count, seed=0, augment=False)

    def _run_spec(self, model: ModelSpec, number: int) -> RunSpec:
        scale = self.scale
        steps = scale.samples_each // scale.batch_size
        training = TrainingSpec(
            num_steps=scale.num_epochs * steps,
            batch_size=scale.batch_size,
            learning_rate=1e-3,
            validation_every_steps=2 * steps,
            patience=1000,
        )
        server = DeviceSpec(
            name="server",
            count=number,
            compute_flops_per_s=2e12,
            memory_bytes=16e9,
            path_gain_db=_PATH_GAIN_DB,
        )
        network = NetworkSpec(
            name="servers",
            servers=(ServerSpec(name="center", compute_flops_per_s=20e12, memory_bytes=80e9),),
            devices=(server,),
            scenario=ScenarioSpec(fading="none"),
        )
        return RunSpec(
            name="bench", dataset="", prediction=PREDICTION, model=model, training=training, network=network
        )


def servers_figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Under ``servers.``: last training loss and test NMSE of the servers over those of one alone."""
    found = {(row["partition"], row["name"]): row for row in rows}
    figures: dict[str, float] = {}
    for (partition, name), row in found.items():
        key = f"servers.{name}" if partition == "iid" else f"servers.{name}_by_{partition}"
        figures[f"{key}.test_nmse"] = row["test_nmse"]
        one = name.partition("_")[0] + "_1"
        alone = found.get((partition, one)) or found.get(("iid", one))
        if row["num_servers"] > 1 and alone is not None:
            figures[f"{key}.loss_over_local"] = row["loss"][-1] / alone["loss"][-1]
    return figures
