"""Fine-tuning by twenty devices of one cell: virtual time and bytes to a target NMSE, against the baselines.

10 MHz up and down, devices evenly over a disc of 300 m, path loss 128.1 + 37.6 log10(d / km) dB with 8 dB of
shadowing, Rayleigh fading new in each round, 23 dBm; devices of two speeds. A small LAM on path tokens starts
pretrained; embeddings are frozen, LoRA and head train. Each device has users of its own range of speeds. Each
seed draws places, fading, batches and adapters anew. All runs of a seed have the same samples, batches,
number of rounds and learning rates; they differ in who takes part with which bandwidth, in what is sent, or
in how precisely.

The target is where centralised training has made ``TARGET_SHARE`` of its whole gain on the validation drops.
A run that does not get there is counted with all of its time and bytes, which favours it, and in
``unreached``. What is best on the validation drops is then measured on the test drops.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airlam.bench.federated.scoring import predictor_nmse
from airlam.bench.kept import kept_dataset
from airlam.bench.trained import cache_folder
from airlam.datasets.catalog import packaged_spec
from airlam.datasets.store import ChannelDataset
from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.radio.prediction.path_eb import PathEb
from airlam.specs import (
    CellSpec,
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
from airlam.tasks.channel_prediction import DatasetLinks, NoisyViews, Progress, quiet, tokenise_views
from airlam.tasks.device_data import device_samples, divide_links
from airlam.tasks.drawn_network import drawn
from airlam.tasks.federated import VALIDATION_SAMPLES, nmse_evaluation, setup_of
from airlam.tokens.base import TokenBatch
from airlam.training.federated.centralised import train_centrally
from airlam.training.federated.report import CurvePoint, first_at
from airlam.training.federated.run import Evaluate, train_together
from airlam.training.federated.setup import Setup

TARGET_SHARE = 0.75
OURS, CENTRALISED, CLASSICAL = "split", "centralised", "path_eb"
PREDICTION = PredictionSpec(num_history=8, num_horizon=4, min_snr_db=5.0, max_snr_db=25.0)
MODEL = ModelSpec(backbone="airlam", num_layers=2, num_paths=16, lora_rank=4)
FULL_MODEL = dataclasses.replace(MODEL, tuning="full")
SCHEDULES: dict[str, FederatedSpec] = {
    "equal_bandwidth": FederatedSpec(policy="all", bandwidth="equal"),
    "all": FederatedSpec(policy="all"),
    "random": FederatedSpec(policy="random", bandwidth="equal"),
    "random_optimal_bandwidth": FederatedSpec(policy="random"),
    "best_channel": FederatedSpec(policy="best_channel", bandwidth="equal"),
    "round_robin": FederatedSpec(policy="round_robin", bandwidth="equal"),
    "ours_equal_bandwidth": FederatedSpec(bandwidth="equal"),
}
METHODS: dict[str, FederatedSpec] = {
    "split_int8": FederatedSpec(precision="int8"),
    "split_bf16": FederatedSpec(precision="bf16"),
    "federated_lora": FederatedSpec(method="federated_lora"),
    "fedavg": FederatedSpec(method="fedavg"),
}
OF_ONE_S_OWN: dict[str, FederatedSpec] = {
    "personal_head": FederatedSpec(head="personal"),
    "local": FederatedSpec(method="local"),
}
CASES = {OURS: FederatedSpec(), **SCHEDULES, **METHODS, **OF_ONE_S_OWN}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CellScale:
    """How much of it. rare_validation_steps: between validations where every device has a model of its
    own."""

    drops: SplitSizes
    training: TrainingSpec
    rare_validation_steps: int
    num_devices: int
    devices_per_round: int
    num_seeds: int


FULL = CellScale(
    drops=SplitSizes(train=640, validation=128, test=128),
    training=TrainingSpec(
        num_steps=60,
        batch_size=8,
        learning_rate=1e-3,
        num_samples=1280,
        validation_every_steps=2,
        patience=1000,
    ),
    rare_validation_steps=12,
    num_devices=20,
    devices_per_round=10,
    num_seeds=3,
)
QUICK = CellScale(
    drops=SplitSizes(train=16, validation=8, test=8),
    training=TrainingSpec(
        num_steps=4, batch_size=4, learning_rate=1e-3, num_samples=32, validation_every_steps=2, patience=1000
    ),
    rare_validation_steps=4,
    num_devices=4,
    devices_per_round=2,
    num_seeds=1,
)


class OneSeed:
    """The runs of one seed, all on the same samples, which ``folder`` keeps."""

    def __init__(self, scale: CellScale, seed: int, folder: Path) -> None:
        self.scale, self.seed = scale, seed
        self.spec = RunSpec(
            name="bench",
            dataset="",
            prediction=PREDICTION,
            model=MODEL,
            training=dataclasses.replace(scale.training, seed=seed),
            network=network_spec(scale.num_devices, seed),
        )
        self.target = math.nan
        spec = dataclasses.replace(packaged_spec("quickstart"), name="federated", drops=scale.drops)
        with kept_dataset(spec, cache_folder() / "federated" / "channels.h5", quiet) as dataset:
            self._read(dataset, folder)

    def _read(self, dataset: ChannelDataset, folder: Path) -> None:
        assert self.spec.network is not None
        source = DatasetLinks(dataset, "train", PREDICTION)
        self.setting = source.setting
        lam = lam_for(MODEL, self.setting, self.seed)
        devices = tuple(self.spec.network.devices_by_name)
        self.samples: dict[str, TokenBatch] = device_samples(
            lam,
            divide_links(source, devices, "speed", self.seed),
            PREDICTION,
            num_samples=self.scale.training.num_samples,
            seed=self.seed,
            folder=folder / str(self.seed),
            on_progress=quiet,
        )
        # the same for all seeds, so tokens are made once
        self.evaluate = _evaluation(lam, dataset, "validation", folder)
        self.test = _evaluation(lam, dataset, "test", folder)
        self.classical_nmse = predictor_nmse(PathEb(self.setting), _views(dataset, "test"))

    def setup(self, federated: FederatedSpec, training: TrainingSpec | None = None) -> Setup:
        """One run, from the start."""
        assert self.spec.network is not None
        model = FULL_MODEL if federated.method == "fedavg" else MODEL
        federated = dataclasses.replace(federated, devices_per_round=self.scale.devices_per_round)
        spec = dataclasses.replace(self.spec, training=training or self.spec.training)
        lam = lam_for(model, self.setting, self.seed)
        return setup_of(spec, lam, self.samples, drawn(self.spec.network), federated)

    def classical(self) -> dict[str, Any]:
        """Path-EB with all of its paths, which learns nothing."""
        return {"seed": self.seed, "name": CLASSICAL, "test_nmse": self.classical_nmse}

    def centralised(self) -> dict[str, Any]:
        """Sets the target, and is a row of its own."""
        setup = self.setup(CASES[OURS])
        start = self.test(setup.lam.eval())
        found = train_centrally(setup, self.evaluate)
        first, best = found.curve[0].nmse, min(point.nmse for point in found.curve)
        self.target = first - TARGET_SHARE * (first - best)
        row = {"seed": self.seed, "name": CENTRALISED, "target_nmse": self.target, "test_nmse_before": start}
        return row | {"test_nmse": self.test(found.lam)} | _ends(found.curve)

    def case(self, name: str) -> dict[str, Any]:
        """One run; the test NMSE is the first device's where each has a model of its own."""
        training = self.spec.training
        if name in OF_ONE_S_OWN:
            rare = self.scale.rare_validation_steps
            training = dataclasses.replace(training, validation_every_steps=rare)
        result = train_together(self.setup(CASES[name], training), self.evaluate)
        curve, reports = result.curve, result.reports
        reached = first_at(curve, self.target)
        counted = reached or curve[-1]
        return {
            "seed": self.seed,
            "name": name,
            "reached": reached is not None,
            "to_target_s": counted.now_s,
            "to_target_rounds": counted.num_rounds,
            "to_target_uplink_bytes": counted.uplink_bytes,
            "round_s": reports[-1].now_s / len(reports),
            "uplink_bytes": curve[-1].uplink_bytes,
            "mean_devices": sum(len(report.ran) for report in reports) / len(reports),
            "energy_j": sum(report.energy_j for report in reports),
            "test_nmse": self.test(result.lam),
            "curve": [[point.num_rounds, point.now_s, point.nmse] for point in curve],
        } | _ends(curve)


def _views(dataset: ChannelDataset, split: str) -> NoisyViews:
    source = DatasetLinks(dataset, split, PREDICTION)
    return NoisyViews(source=source, spec=PREDICTION, num_samples=VALIDATION_SAMPLES, seed=0, augment=False)


def _evaluation(lam: LAM, dataset: ChannelDataset, split: str, folder: Path) -> Evaluate:
    views = _views(dataset, split)
    return nmse_evaluation(tokenise_views(lam.tokenizer, views, folder / split, split, quiet).tokens)


def run_cell(scale: CellScale, folder: Path, on_progress: Progress) -> list[dict[str, Any]]:
    """A row for each run of each seed."""
    rows: list[dict[str, Any]] = []
    total = scale.num_seeds * (len(CASES) + 2)
    for seed in range(1, scale.num_seeds + 1):
        on_progress(CENTRALISED, len(rows), total, f"seed {seed}")
        bench = OneSeed(scale, seed, folder)
        rows += [bench.classical(), bench.centralised()]
        for name in CASES:
            on_progress(name, len(rows), total, f"seed {seed}")
            rows.append(bench.case(name))
    on_progress("cell", total, total, "")
    return rows


def figures_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Geometric means over seeds of ratios between the runs of one; see ``airlam.bench.federated.run``."""
    found = {(row["seed"], row["name"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows})

    def ratio(above: str, below: str, key: str) -> float:
        logs = [math.log(found[seed, above][key] / found[seed, below][key]) for seed in seeds]
        return math.exp(sum(logs) / len(logs))

    others = [*SCHEDULES, "federated_lora", "fedavg"]
    figures = {f"speedup_vs_{name}": ratio(name, OURS, "to_target_s") for name in others}
    figures |= {
        "speedup_int8_vs_fp32": ratio(OURS, "split_int8", "to_target_s"),
        "speedup_bf16_vs_fp32": ratio(OURS, "split_bf16", "to_target_s"),
        "nmse_over_centralised": ratio(OURS, CENTRALISED, "test_nmse"),
        "nmse_over_best_classical": ratio(OURS, CLASSICAL, "test_nmse"),
        "nmse_int8_over_centralised": ratio("split_int8", CENTRALISED, "test_nmse"),
        "nmse_federated_lora_over_centralised": ratio("federated_lora", CENTRALISED, "test_nmse"),
        "nmse_fedavg_over_centralised": ratio("fedavg", CENTRALISED, "test_nmse"),
        # of devices with models of their own the mean over all, which only validation has
        "nmse_personal_over_centralised": ratio("personal_head", CENTRALISED, "best_nmse"),
        "nmse_local_over_centralised": ratio("local", CENTRALISED, "best_nmse"),
    }
    for name in ("federated_lora", "fedavg"):
        figures[f"uplink_bytes_vs_{name}"] = ratio(name, OURS, "to_target_uplink_bytes")
        figures[f"uplink_bytes_int8_vs_{name}"] = ratio(name, "split_int8", "to_target_uplink_bytes")
    gained = {
        name: sum(found[s, CENTRALISED]["test_nmse_before"] - found[s, name]["test_nmse"] for s in seeds)
        for name in (OURS, CENTRALISED)
    }
    figures["share_of_gain"] = gained[OURS] / gained[CENTRALISED]
    missed = {name: sum(not found[seed, name]["reached"] for seed in seeds) for name in CASES}
    return figures | {f"unreached.{name}": float(count) for name, count in missed.items() if count}


def _ends(curve: Sequence[CurvePoint]) -> dict[str, float]:
    return {
        "first_nmse": curve[0].nmse,
        "best_nmse": min(point.nmse for point in curve),
        "last_nmse": curve[-1].nmse,
    }


def network_spec(num_devices: int, seed: int) -> NetworkSpec:
    """The cell of the setting above."""
    fast = num_devices // 2
    phone = DeviceSpec(name="phone", compute_flops_per_s=100e9, count=fast, memory_bytes=2e9, latency_s=1e-3)
    sensor = dataclasses.replace(phone, name="sensor", compute_flops_per_s=20e9, count=num_devices - fast)
    return NetworkSpec(
        name="cell",
        servers=(ServerSpec(name="edge", compute_flops_per_s=2e12, memory_bytes=16e9),),
        devices=(phone, sensor),
        cell=CellSpec(noise_figure_db=5.0),
        scenario=ScenarioSpec(model="log_distance", fading="rayleigh", seed=seed),
    )


def settings_of(scale: CellScale) -> dict[str, Any]:
    """What a reader needs to know of the runs."""
    return {
        "devices": scale.num_devices,
        "devices_per_round": scale.devices_per_round,
        "rounds": scale.training.num_steps,
        "samples": scale.training.num_samples,
        "batch_size": scale.training.batch_size,
        "seeds": scale.num_seeds,
        "target_share": TARGET_SHARE,
        "partition": "speed",
        "model": f"{MODEL.backbone}, {MODEL.num_layers} blocks, rank {MODEL.lora_rank}",
    }
