"""A LAM that chooses beams from any sensors: the beam-selection LAM with a term of its own for each beam."""

import torch
from einops import rearrange
from torch import nn

from airlam.model.beam_selection import BeamHead, BeamLAM, build_beam_lam
from airlam.specs import ModelSpec
from airlam.tokens.sensors import SensorTokenizer


class SensorBeamHead(BeamHead):
    r"""Log-odds z_b = (1 / T) sum_e g_e(h) r_eb + d_b(h): what experts expect, and a correction of it.

    d = D h + c starts at zero, so an untuned head chooses as the experts' stack does. It is what a camera or
    a range scan speaks through, for which there is no expert.
    """

    def __init__(self, *, width: int, num_ahead: int, num_beams: int, weights: torch.Tensor) -> None:
        """weights: float [experts], those of a ``PowerStack``."""
        super().__init__(width=width, num_ahead=num_ahead, weights=weights)
        self.direct = nn.Linear(width, num_ahead * num_beams)
        nn.init.zeros_(self.direct.weight)
        nn.init.zeros_(self.direct.bias)

    def forward(self, summary: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
        """Log-odds, float32 [batch, num_ahead, num_beams]; shapes as in ``BeamHead``."""
        own = rearrange(self.direct(self.norm(summary)), "b (a m) -> b a m", a=expected.shape[2])
        scores: torch.Tensor = super().forward(summary, expected) + own
        return scores


def build_sensor_beam_lam(
    spec: ModelSpec,
    tokenizer: SensorTokenizer,
    *,
    num_ahead: int,
    num_beams: int,
    weights: torch.Tensor,
    seed: int,
) -> BeamLAM:
    """An untuned LAM for the tokeniser's modalities; see ``build_beam_lam``."""
    return build_beam_lam(
        spec,
        tokenizer,
        lambda width: SensorBeamHead(width=width, num_ahead=num_ahead, num_beams=num_beams, weights=weights),
        seed=seed,
    )
