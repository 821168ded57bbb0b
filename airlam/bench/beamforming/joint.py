"""Predictor and precoder of the benchmark tuned together through the rate: trained once and kept.

The setting is the prediction benchmark's sum rates', on drops of their own: four users at 60 km/h, histories
and downlinks of 20 dB. ``LEVEL`` leaves the predictor as it ships, so that what its tuning adds can be told.
"""

import copy
import dataclasses
import json
import time

from airlam.bench import trained
from airlam.bench.kept import digest, weights_sha256
from airlam.bench.prediction.sources import drawn_links, drawn_setting
from airlam.bench.prediction.sumrate import NUM_USERS, SEED, SNR_DB, SPEED_KMH
from airlam.bench.trained import cache_folder
from airlam.files import write_json
from airlam.model.graph_precoder import GraphPrecoder
from airlam.model.predictive_precoder import PredictivePrecoder
from airlam.model.storage import fingerprint
from airlam.specs import BeamformingSpec, MobilitySpec, SplitSizes, TrainingSpec, spec_to_dict
from airlam.tasks.beamforming_predicted import NUM_PLACES, REGROUPED, predicted_downlinks, tune_jointly
from airlam.tasks.channel_prediction import Progress
from airlam.units import KMH_PER_M_PER_S

JOINT, LEVEL = "joint", "level"
_SEED = SEED + 1  # of the drops, apart from those that are fitted and tested on
_PREDICTION = dataclasses.replace(trained.PREDICTION, min_snr_db=SNR_DB, max_snr_db=SNR_DB)
_USERS = BeamformingSpec(
    min_users=NUM_USERS,
    max_users=NUM_USERS,
    min_snr_db=SNR_DB,
    max_snr_db=SNR_DB,
    csi="predicted",
    predictor=trained.LAM,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JointScale:
    """Sizes of a training: drops of one user each, and the optimiser."""

    name: str
    drops: SplitSizes
    training: TrainingSpec


FULL = JointScale(
    name="full",
    drops=SplitSizes(train=1024, validation=256, test=0),
    training=TrainingSpec(
        num_steps=240,
        batch_size=16,
        learning_rate=5e-4,
        num_samples=1024,
        validation_every_steps=40,
        checkpoint_every_steps=40,
        patience=6,
    ),
)
QUICK = JointScale(
    name="quick",
    drops=SplitSizes(train=8, validation=8, test=0),
    training=TrainingSpec(
        num_steps=2,
        batch_size=2,
        num_samples=4,
        validation_every_steps=2,
        checkpoint_every_steps=2,
    ),
)


def tuned(name: str, scale: JointScale, graph: GraphPrecoder, on_progress: Progress) -> PredictivePrecoder:
    """``JOINT`` or ``LEVEL`` of the shipped LAM and ``graph``: from the cache, else trained into it."""
    folder = trained.models_folder(trained.FULL)
    seed = trained.read_card(folder)["lam_training"]["seed"]
    spec = trained.dataset_spec("uma_omni", scale.drops, _SEED)
    speed = SPEED_KMH / KMH_PER_M_PER_S
    slow = dataclasses.replace(spec, mobility=MobilitySpec(min_speed_m_per_s=speed, max_speed_m_per_s=speed))
    # as airlam.bench.prediction.sumrate.served_links has them, of other drops
    links_of = slow, trained.PREDICTION, spec.max_doppler_hz
    setting = drawn_setting(*links_of)
    lam = trained.load_lam(folder, setting).lam
    model = PredictivePrecoder(lam, copy.deepcopy(graph), setting)
    held = [p for p in lam.parameters() if p.requires_grad and name == LEVEL]
    for parameter in held:
        parameter.requires_grad_(False)
    tables = [spec_to_dict(each) for each in (slow, _PREDICTION, _USERS, lam.spec)]
    data = digest(tables, REGROUPED, NUM_PLACES)
    weights = weights_sha256(lam), fingerprint(graph.state_dict())
    key = digest(name, data, spec_to_dict(scale.training), *weights)
    place = cache_folder() / "beamforming" / scale.name
    note = place / f"{name}.json"
    if note.exists() and json.loads(note.read_text()).get("key") == key:
        return PredictivePrecoder.load(place / name, setting, seed)
    splits = {split: drawn_links(slow, split, *links_of[1:]) for split in ("train", "validation")}
    tokens = place / "work" / f"tokens-{data}"
    samples = {
        split: predicted_downlinks(
            lam,
            links,
            _PREDICTION,
            _USERS,
            len(links),
            REGROUPED * len(links) if split == "train" else len(links),
            seed=_SEED + index,
            folder=tokens / split,
            on_progress=on_progress,
        )
        for index, (split, links) in enumerate(splits.items())
    }
    work = place / "work" / f"{name}-{key}"
    began = time.monotonic()
    summary, before = tune_jointly(
        model,
        samples["train"],
        samples["validation"],
        scale.training,
        work,
        on_progress=on_progress,
        identity=key,
    )
    for parameter in held:  # a saved LAM counts what does not train as weights that are found elsewhere
        parameter.requires_grad_(True)
    model.save(place / name)
    cost = {"seconds": time.monotonic() - began, "validation_loss_before": before, **summary.to_dict()}
    write_json(note, {"key": key, **cost})
    return PredictivePrecoder.load(place / name, setting, seed)
