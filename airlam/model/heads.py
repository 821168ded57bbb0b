"""Task heads that need no more than the tokens; the physics head of the path tokens is in path_head.py."""

import torch
from einops import einsum, rearrange
from torch import nn

from airlam.model.base import Context
from airlam.tokens.patch import PatchTokenizer


class PatchHead(nn.Module):
    r"""Channel prediction from patch tokens: each token filters its own bins over time and adds a correction.

    y_l = sum_t (w_lt + v_lt(hidden)) x_t + c_l(hidden), for the bins x_t of the token at slot t. The shared
    filter w starts as hold (y_l = x of the last slot), v and c at zero: a fresh head predicts hold. Where
    history and target differ in frequency a bin's phase turns unpredictably, so w starts at zero; where they
    also differ in patch size no filter applies and the correction is all.
    """

    real_bins: torch.Tensor

    def __init__(self, tokenizer: PatchTokenizer, width: int) -> None:
        super().__init__()
        setting = tokenizer.setting
        self.tokenizer = tokenizer
        self.num_horizon = setting.num_horizon
        self.filters_bins = tokenizer.history_patch_bins == tokenizer.target_patch_bins
        start = torch.zeros(setting.num_horizon, setting.num_history, 2)
        if not setting.is_fdd:
            start[:, -1, 0] = 1.0
        self.shared_filter = nn.Parameter(start)
        self.own_filter = nn.Linear(width, start.numel())
        self.correction = nn.Linear(width, setting.num_horizon * tokenizer.target_patch_bins * 2)
        for layer in (self.own_filter, self.correction):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("real_bins", tokenizer.target_bins(), persistent=False)

    def forward(self, hidden: torch.Tensor, context: Context) -> Context:
        """hidden: float32 [batch, num_tokens, width]; context as ``PatchTokenizer.tokenise`` makes it.

        Returns ``future``: complex64 [batch, num_tokens, num_horizon, target_patch_bins], over the scale.
        """
        future = _complex(self.correction(hidden), "b n (l d part) -> b n l d part", l=self.num_horizon)
        if self.filters_bins:
            own = _complex(self.own_filter(hidden), "b n (l t part) -> b n l t part", l=self.num_horizon)
            taps = own + torch.view_as_complex(self.shared_filter)  # [batch, num_tokens, horizon, history]
            future = future + einsum(taps, context["patches"], "b n l t, b n t d -> b n l d")
        return {"future": future * self.real_bins[None, :, None, :]}

    def channel(self, output: Context, context: Context) -> torch.Tensor:
        """The predicted future, complex64 [batch, num_horizon, num_user_ant, num_bs_ant, num_subcarriers]."""
        tokenizer = self.tokenizer
        channel = tokenizer.from_patches(
            output["future"], tokenizer.target_taps_per_patch, tokenizer.num_target_taps
        )
        return channel * context["scale"][:, None, None, None, None]

    def squared_error(self, output: Context, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        """Error energy and target energy of each link, float32 [batch]; the transforms are unitary."""
        power = context["scale"].square()
        error = (output["future"] - context["target"]).abs().square().sum(dim=(1, 2, 3)) * power
        energy = context["target"].abs().square().sum(dim=(1, 2, 3)) * power
        return error, energy


def _complex(values: torch.Tensor, pattern: str, **axes: int) -> torch.Tensor:
    """Real values to complex ones; the pattern's last axis ``part`` holds real and imaginary parts."""
    return torch.view_as_complex(rearrange(values, pattern, part=2, **axes).contiguous())
