"""Tokens of one measurement for several LAMs: whatever they are to predict, they see the same history.

Tokenisers that agree on array, band, times and top Doppler find the same paths or patches. What is left of
the target in a token are the setting's own features, the last ones of a path token.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from airlam.model.lam import LAM
from airlam.radio.channel import PredictionSetting
from airlam.serving.measurement import history_of
from airlam.tokens.base import CsiTokenizer, TokenBatch
from airlam.tokens.path import NUM_SETTING_FEATURES, PathTokenizer, setting_features


def tokens_identity(lam: LAM) -> str:
    """What decides a LAM's tokens, but for the features that ``for_setting`` writes."""
    return f"{lam.spec.tokenizer} {lam.spec.num_paths} {history_of(lam.tokenizer.setting)}"


def for_setting(tokens: TokenBatch, tokenizer: CsiTokenizer, setting: PredictionSetting) -> TokenBatch:
    """Tokens of ``tokenizer`` as one for ``setting`` makes them; both have the same identity."""
    if setting == tokenizer.setting or not isinstance(tokenizer, PathTokenizer):
        return tokens
    own = setting_features(setting) * tokens.mask.unsqueeze(-1)  # [links, num_tokens, 8]
    features = torch.cat([tokens.features[..., :-NUM_SETTING_FEATURES], own], dim=-1)
    return replace(tokens, features=features)


def distinct(measured: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[list[int], list[torch.Tensor]]:
    """Which of some measurements to tokenise, and the rows of each among these, int64 [links].

    What is asked of several LAMs at once are the same tensors, given several times. measured: history and
    noise variance, links first.
    """
    first: dict[tuple[int, int], tuple[int, torch.Tensor]] = {}
    rows, num_links = [], 0
    for index, (history, variance) in enumerate(measured):
        key = id(history), id(variance)
        if key not in first:
            first[key] = index, torch.arange(num_links, num_links + len(history))
            num_links += len(history)
        rows.append(first[key][1])
    return [index for index, _ in first.values()], rows
