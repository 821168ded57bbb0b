"""What a LAM that is being fine-tuned is worth on the link: the sum rate of validation users served by it."""

import torch
from einops import rearrange

from airlam.model.lam import LAM
from airlam.radio.precoding import regularized_zero_forcing, sum_rate_bit_per_s_per_hz
from airlam.tasks.channel_prediction import NoisyViews
from airlam.tokens.base import TokenBatch
from airlam.training.federated.run import Evaluate
from airlam.units import db_to_linear

RATE_SNR_DB = 20.0  # transmit power over noise, channels of unit power
_EVALUATED_AT_ONCE = 128


def rate_evaluation(views: NoisyViews, tokens: TokenBatch, num_users: int) -> Evaluate:
    """Mean sum rate, bit/s/Hz, of ``num_users`` users served together by RZF on what a LAM predicts for them.

    Users are the links of ``views``, in their order, each scaled to unit power, by their first antenna; the
    rate is that on the true channel at ``RATE_SNR_DB``, over groups, steps and subcarriers. tokens: of these
    views, with targets. What is left of a group is left out; NaN where there is no group.
    """
    truth = views.batch(torch.arange(len(views))).future  # [num_links, t, u, p, f]
    scale = truth.abs().square().mean((1, 2, 3, 4), keepdim=True).rsqrt()  # [num_links, 1, 1, 1, 1]
    noise_variance = db_to_linear(-RATE_SNR_DB)
    true = _by_group(truth * scale, num_users)  # [g, t, f, num_users, p]

    def evaluate(lam: LAM) -> float:
        parts = []
        with torch.no_grad():
            for place in torch.split(torch.arange(len(tokens)), _EVALUATED_AT_ONCE):
                part = tokens.select(place)
                parts.append(lam.head().channel(lam(part), part.context))
        predicted = _by_group(torch.cat(parts) * scale, num_users)
        precoder = regularized_zero_forcing(predicted, noise_variance)
        return float(sum_rate_bit_per_s_per_hz(true, precoder, noise_variance).mean())

    return evaluate


def _by_group(links: torch.Tensor, num_users: int) -> torch.Tensor:
    whole = links[: len(links) // num_users * num_users, :, 0]  # [num_links, t, p, f]
    return rearrange(whole, "(g k) t p f -> g t f k p", k=num_users)
