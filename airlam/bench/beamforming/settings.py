"""What the precoders are trained and measured on, and how large a run is.

Sionna UMa without line of sight, users all round a base station of 38.901 elements, each at unit mean power,
0 dBW over -10 dBW: the peers' setting as far as it is told, geometry and array being a reconstruction.
"""

import dataclasses

import torch

from airlam.specs import ChannelModel, ModelSpec, PlacementSpec, PrecoderSpec, TrainingSpec
from airlam.tasks.beamforming import downlink_spec, draw_users, unit_power

NOISE_VARIANCE = 0.1
ALL_ROUND = PlacementSpec(
    user_center_m=(0.0, 0.0), min_radius_m=35.0, max_radius_m=250.0, arc_deg=(-180.0, 180.0)
)
GRAPH, GRAPH_LAM, REFERENCE = "graph", "graph_lam", "wmmse_100"
BEST = GRAPH
PRECODERS: dict[str, PrecoderSpec] = {
    GRAPH: PrecoderSpec(),
    GRAPH_LAM: PrecoderSpec(backbone=ModelSpec(backbone="airlam", num_layers=2, lora_rank=4)),
}
Case = tuple[ChannelModel, int, tuple[int, int]]  # model, users, rows and columns of the array
SEEN: dict[str, Case] = {"n16k8": ("uma", 8, (2, 8)), "n16k16": ("uma", 16, (2, 8))}
UNSEEN: dict[str, Case] = {  # numbers of users and of antennas that no training sample has
    "unseen_n24k9": ("uma", 9, (3, 8)),
    "unseen_n40k20": ("uma", 20, (5, 8)),
    "unseen_n12k5_umi": ("umi", 5, (2, 6)),
    "unseen_n128k24_umi": ("umi", 24, (8, 16)),
}
TRAINED_USERS = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes of a run. num_groups: pairs of a number of users and an array in training."""

    name: str
    pool_drops: int
    num_groups: int
    group_size: int
    imitation_steps: int
    training: TrainingSpec
    backbone_training: TrainingSpec  # of a trained graph with a backbone behind it
    test_drops: int
    repeats: int


_TRAINING = TrainingSpec(
    num_steps=12_000,
    batch_size=128,
    learning_rate=5e-3,
    weight_decay=1e-3,
    validation_every_steps=1000,
    checkpoint_every_steps=1000,
    patience=100,
)
FULL = Scale(
    name="full",
    pool_drops=1500,
    num_groups=120,
    group_size=1024,
    imitation_steps=300,
    training=_TRAINING,
    backbone_training=dataclasses.replace(
        _TRAINING, num_steps=1000, learning_rate=1e-3, validation_every_steps=250
    ),
    test_drops=400,
    repeats=25,
)
_BRIEF = TrainingSpec(
    num_steps=4, batch_size=4, learning_rate=1e-3, validation_every_steps=4, checkpoint_every_steps=4
)
QUICK = Scale(
    name="quick",
    pool_drops=4,
    num_groups=4,
    group_size=8,
    imitation_steps=2,
    training=_BRIEF,
    backbone_training=_BRIEF,
    test_drops=4,
    repeats=1,
)


def downlink_channels(
    model: ChannelModel, num_users: int, array: tuple[int, int], drops: int, seed: int
) -> torch.Tensor:
    """complex64 [drops, num_users, num_bs_ant], each user at unit mean power."""
    placement = ALL_ROUND if model == "uma" else None
    spec = downlink_spec(model, num_users, array, pattern="38.901", placement=placement)
    rows, columns = array
    return unit_power(draw_users(spec, drops, seed).sub_array(columns, rows))
