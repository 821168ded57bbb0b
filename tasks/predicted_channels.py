"""What a base station foresees of test links, by whom, and how far each says that it may be wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from airlam.model.lam import LAM
from airlam.model.predictive_precoder import PredictivePrecoder
from airlam.radio.prediction.base import Predictor
from airlam.radio.prediction.path_covariance import PathBeliefs, port_covariance
from airlam.radio.prediction.path_eb import PathEb
from airlam.tasks.beamforming_predicted import error_tokenizer
from airlam.tasks.channel_prediction import LinkSource, Progress
from airlam.tasks.comparison import BATCH_LINKS, Observed, observe
from airlam.tokens.path_error import ERROR_COVARIANCE, POWER

CLASSICAL_ERROR, LAM_ERROR = "classical_error", "lam_error"
TRUTH = "truth"


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """Of some links, each at unit mean power over its true future, first user antenna.

    futures: by whose they are, and ``TRUTH``: complex64 [num_links, num_horizon, num_bs_ant,
    num_subcarriers]. errors: covariances over the ports of one polarisation, ``CLASSICAL_ERROR`` as Path-EB
    has them and ``LAM_ERROR`` as the LAM's front end has: complex64 [num_links, num_horizon,
    num_subcarriers, m, m].
    """

    futures: dict[str, torch.Tensor]
    errors: dict[str, torch.Tensor]

    def __len__(self) -> int:
        return len(self.futures[TRUTH])


def foresee(
    test: LinkSource,
    predictors: Sequence[Predictor],
    lam: LAM,
    tuned: Mapping[str, PredictivePrecoder],
    snr_db: float,
    num_links: int,
    on_progress: Progress,
) -> Foreseen:
    """All from the same noisy histories of the first links. lam: whose front end ``tuned`` have, too."""
    parts: list[Foreseen] = []
    physics = PathEb(test.setting)
    for start in range(0, num_links, BATCH_LINKS):
        indices = np.arange(start, min(start + BATCH_LINKS, num_links))
        seen = observe(test.read(indices), test, snr_db, start)
        futures = {each.name: each.predict(seen.history, seen.noise_variance) for each in predictors}
        parts.append(_of_batch(seen, futures, lam, tuned, physics))
        on_progress("predicting", start + len(indices), num_links, "")
    return Foreseen(
        futures={name: torch.cat([part.futures[name] for part in parts]) for name in parts[0].futures},
        errors={name: torch.cat([part.errors[name] for part in parts]) for name in parts[0].errors},
    )


def _of_batch(
    seen: Observed,
    futures: Mapping[str, torch.Tensor],
    lam: LAM,
    tuned: Mapping[str, PredictivePrecoder],
    physics: PathEb,
) -> Foreseen:
    every = torch.arange(seen.future.shape[-1])  # subcarriers
    tokenizer = error_tokenizer(lam, every)
    tokens = tokenizer.with_target(tokenizer.tokenise(seen.history, seen.noise_variance), seen.future)
    power = tokens.context[POWER]  # [links]
    gain = power.rsqrt()[:, None, None, None]
    found = {name: future[:, :, 0] * gain for name, future in {**futures, TRUTH: seen.future}.items()}
    with torch.no_grad():
        found |= {name: each.predict(tokens, every) for name, each in tuned.items()}
    analysis = physics.analyse(seen.history, seen.noise_variance)
    beliefs = PathBeliefs(
        position=analysis.position,
        spectrum=analysis.spectrum,
        spread=analysis.spread,
        noise_variance=analysis.noise_variance,
        scale=analysis.scale,
    )
    errors = {
        CLASSICAL_ERROR: port_covariance(beliefs, physics.grid, physics.basis, every),
        LAM_ERROR: tokens.context[ERROR_COVARIANCE],
    }
    per_link = power[:, None, None, None, None]
    return Foreseen(futures=found, errors={name: each / per_link for name, each in errors.items()})


def user_rows(num_links: int, num_users: int, seed: int, users_per_drop: int = 1) -> torch.Tensor:
    """Rows of the links that ``group_users`` groups: int64 [num_groups, num_users]."""
    from airlam.tasks.link_level import group_users

    rows = torch.arange(num_links).view(-1, 1, 1, 1, 1)
    return group_users(rows, num_users, seed, users_per_drop)[:, :, 0, 0, 0]
