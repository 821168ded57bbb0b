"""The LAM for beam selection: sensor tokens -> backbone -> a distribution over the beams of each sweep ahead.

The embedding joins the tokens of past sweeps and positions behind a token that sums up; the head reads that
token and weighs what several classical regressions expect, so that untuned it chooses as their stack does.
"""

import math
from collections.abc import Callable, Mapping

import torch
from einops import einsum, rearrange, repeat
from torch import nn

from airlam.model.backbone import build_backbone, seeded
from airlam.model.chain import Backbone
from airlam.model.sensor_embedding import SensorEmbedding
from airlam.specs import ModelSpec
from airlam.tokens.modality import ModalityTokens
from airlam.tokens.sensors import SensorTokenizer

_TEMPERATURE = 0.02  # of relative power, to start with: beams that much weaker are e times less likely
_LEAST_WEIGHT = 0.02  # of an expert that the stack leaves out, so that it can come back


class BeamHead(nn.Module):
    r"""Log-odds of each beam: z_b = (1 / T) sum_e g_e(h) r_eb, the experts' powers weighed window by window.

    r_eb is what regression e expects of beam b over the strongest's power; the gate g(h) = softmax(W h + c)
    reads the summary token's hidden state h, for each step ahead. W starts at zero and c at the logarithm of
    the stack's weights, T at 0.02. A reconstruction of a task head that corrects physics; gates after Jacobs
    et al., Adaptive mixtures of local experts, Neural Computation 3 (1991).
    """

    def __init__(self, *, width: int, num_ahead: int, weights: torch.Tensor) -> None:
        """weights: float [experts], those of a ``PowerStack``."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, num_ahead * len(weights))
        self.log_sharpness = nn.Parameter(torch.full((num_ahead, 1), -math.log(_TEMPERATURE)))
        nn.init.zeros_(self.gate.weight)
        start = weights.clamp_min(_LEAST_WEIGHT).log().float()
        with torch.no_grad():
            self.gate.bias.copy_(repeat(start, "e -> (e a)", a=num_ahead))

    def forward(self, summary: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
        """Log-odds, float32 [batch, num_ahead, num_beams].

        summary: float32 [batch, width]; expected: float32 [batch, experts, num_ahead, num_beams].
        """
        gate = rearrange(self.gate(self.norm(summary)), "b (e a) -> b e a", e=expected.shape[1])
        powers = einsum(gate.softmax(dim=1), expected, "b e a, b e a m -> b a m")
        scores: torch.Tensor = self.log_sharpness.exp() * powers  # [batch, num_ahead, num_beams]
        return scores


class BeamLAM(nn.Module):
    """Sensor tokens and what experts expect to log-odds of beams."""

    def __init__(self, embedding: SensorEmbedding, backbone: Backbone, head: BeamHead) -> None:
        super().__init__()
        self.embedding = embedding
        self.backbone = backbone
        self.head = head

    def forward(self, tokens: Mapping[str, ModalityTokens], expected: torch.Tensor) -> torch.Tensor:
        """Log-odds, float32 [batch, num_ahead, num_beams]; tokens by modality, expected as in the head."""
        hidden = self.backbone(*self.embedding(tokens))  # [batch, 1 + all tokens, width]
        scores: torch.Tensor = self.head(hidden[:, 0], expected)
        return scores


def build_beam_lam(
    spec: ModelSpec, tokenizer: SensorTokenizer, head: Callable[[int], BeamHead], *, seed: int
) -> BeamLAM:
    """An untuned LAM, what is random in it drawn from ``seed``; the backbone is tuned as ``spec`` says.

    head: makes the head, given the backbone's width.
    """
    from airlam.model.lora import prepare_tuning

    model = build_backbone(spec, seed=seed)
    with seeded(seed + 1):
        backbone = Backbone(prepare_tuning(model, spec), ordered=False)
        embedding = SensorEmbedding(tokenizer, backbone.width)
        return BeamLAM(embedding, backbone, head(backbone.width))
