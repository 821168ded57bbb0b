"""A run of beamforming with a ``[network]``: its devices, which are base stations here, train one precoder.

Each has drops of its own, schedules its own number of users and keeps its channels; what goes up are trained
weights: the adapters and the graph's own where a backbone stands behind it (``federated_lora``), all of them
where none does (``fedavg``). Nothing is split between device and server, since the tokens of this precoder
are rows of the Gram matrix, from which channels could be told. All steps raise the rate.
"""

import copy
import math

import numpy as np
import torch

from airlam.model.graph_precoder import sum_rates
from airlam.model.lam import LAM
from airlam.model.precoder_chain import GRAM, PrecoderLam, answers_of
from airlam.radio.beamforming import wmmse
from airlam.radio.precoding import sum_rate_bit_per_s_per_hz
from airlam.specs import FederatedSpec, RunSpec, require
from airlam.split.messages import Tensors
from airlam.split.streams import stream_seed
from airlam.tasks.beamforming import DownlinkBatch, shortfall
from airlam.tasks.beamforming_data import PilotCsi, Source, Views
from airlam.tasks.channel_prediction import concatenate
from airlam.tasks.device_data import divide_drops
from airlam.tasks.drawn_network import drawn
from airlam.tasks.federated import devices_of, run_rounds, setup_of
from airlam.tasks.task import Outcome, Run
from airlam.tokens.base import TokenBatch
from airlam.training.batches import GroupedSamples, batches_in_order
from airlam.training.federated.run import Evaluate
from airlam.training.federated.setup import Setup

MEASURE = "share of WMMSE's sum rate that is missing"
REFERENCE_ITERATIONS = 100
_AT_ONCE = 128


def tune_together(run: Run, lam: PrecoderLam, train: Views, validation: Views) -> Outcome:
    """Trains ``lam`` in place, rounds in the run's folder. SpecError for what this task cannot do."""
    own, seed = run.spec.downlink, run.spec.training.seed
    require(run.ray_address is None, "runs of beamforming train in one process; drop --transport")
    setup = precoder_setup(run, lam, train)
    pilots = PilotCsi.fit(own, train.h) if own.csi == "pilots" else None
    held = Source.of(run.dataset, validation, own, pilots).validation(seed=2 * seed + 1)
    summary, found = run_rounds(
        setup, missing_share(held), lam, run.folder, run.on_progress, run.identity, measure=MEASURE
    )
    return Outcome(model=lam, summary=summary, own=found)


def precoder_setup(run: Run, lam: PrecoderLam, train: Views) -> Setup:
    """Everything that takes part in the rounds of a run."""
    spec, federated = run.spec, federated_spec(run.spec, lam)
    assert spec.network is not None
    samples = device_tokens(run, lam, train, devices_of(spec.network), federated)
    # what a run freezes is frozen in its own copy: the precoder that is saved keeps what it calls frozen
    return setup_of(spec, copy.deepcopy(lam), samples, drawn(spec.network), federated, loss=precoder_loss)


def federated_spec(spec: RunSpec, lam: PrecoderLam) -> FederatedSpec:
    """The run's, or what fits its precoder."""
    has_backbone = lam.precoder.backbone is not None
    fitting = FederatedSpec(method="federated_lora" if has_backbone else "fedavg", freeze_embedding=False)
    return spec.federated or fitting


def device_tokens(
    run: Run, lam: PrecoderLam, train: Views, devices: tuple[str, ...], federated: FederatedSpec
) -> dict[str, TokenBatch]:
    """Samples by device, ``num_samples`` in all, each device with its own drops and number of users."""
    own, training = run.spec.downlink, run.spec.training
    speeds = None
    if federated.partition == "speed":
        every = run.dataset.field("train", "speed_m_per_s").numpy()  # [num_drops, num_users]
        speeds = every[train.drops].mean(axis=1)
    owned = divide_drops(len(train.drops), devices, speeds, training.seed)
    size = math.ceil(training.num_samples / len(devices))
    # from the fewest users to the most, as evenly as devices allow
    num_users = np.linspace(own.min_users, own.max_users, len(devices)).round().astype(int).tolist()
    found = {}
    for number, (device, drops) in enumerate(owned.items()):
        source = Source.of(run.dataset, train.select(drops), own)
        seed = stream_seed(training.seed, 0, device, "downlinks")
        found[device] = tokens_of(lam, source.of_users(num_users[number], size, seed))
        run.on_progress("samples of the devices", number + 1, len(devices), device)
    return found


def tokens_of(lam: PrecoderLam, samples: GroupedSamples[DownlinkBatch]) -> TokenBatch:
    """All samples of one group as tokens."""
    batches = [samples.batch(indices) for indices in batches_in_order(samples, _AT_ONCE)]
    return concatenate([lam.tokenizer.tokenise(batch.h, batch.noise_variance) for batch in batches])


def precoder_loss(lam: LAM, output: Tensors, context: Tensors) -> torch.Tensor:
    """``airlam.tasks.beamforming.rate_loss`` where the head is; float32 [batch]."""
    return shortfall(context[GRAM], answers_of(output))


def missing_share(samples: GroupedSamples[DownlinkBatch]) -> Evaluate:
    """1 less the sum rate of a precoder over that of WMMSE after 100 iterations, on the same samples."""
    grams, reference = [], 0.0
    for indices in batches_in_order(samples, _AT_ONCE):
        batch = samples.batch(indices)
        w = wmmse(batch.h, batch.noise_variance, num_iterations=REFERENCE_ITERATIONS)
        reference += float(sum_rate_bit_per_s_per_hz(batch.h, w, batch.noise_variance).sum())
        grams.append(batch.gram)

    def evaluate(lam: LAM) -> float:
        assert isinstance(lam, PrecoderLam)
        with torch.no_grad():
            found = sum(float(sum_rates(gram, lam.precoder(gram)[-1]).sum()) for gram in grams)
        return 1 - found / reference

    return evaluate
