"""A replica of LLM4CP (Liu, Liu, Gao, Cheng, Yang: 2406.14440), the usual LLM to compare with.

Built after the published description and the shapes of the authors' code, rewritten. Two departures: the
standardisation is per link and not per batch, so that a prediction does not depend on who else is predicted;
and the delay branch keeps each tap's real and imaginary parts together, which the authors' code mixes up. As
published, both branches share one patch layer.
"""

import math
from typing import cast

import torch
from einops import rearrange
from torch import nn

from airlam.errors import SpecError
from airlam.model.backbone import load_pretrained, seeded
from airlam.model.families import set_child
from airlam.radio.channel import PredictionSetting

_SMALLEST_SCALE = 1e-20


class ChannelAttention(nn.Module):
    """Weighs feature maps by a gate computed from their average and their maximum."""

    def __init__(self, num_maps: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Conv2d(num_maps, num_maps, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(num_maps, num_maps, 1, bias=False),
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """maps: float32 [n, num_maps, num_slots, num_subcarriers]; same shape returned."""
        average = self.gate(maps.mean(dim=(2, 3), keepdim=True))
        largest = self.gate(maps.amax(dim=(2, 3), keepdim=True))
        return maps * torch.sigmoid(average + largest)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, channel attention, and the input added."""

    def __init__(self, num_maps: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(num_maps, num_maps, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(num_maps, num_maps, 3, padding=1),
            ChannelAttention(num_maps),
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """maps: float32 [n, num_maps, num_slots, num_subcarriers]; same shape returned."""
        return cast(torch.Tensor, maps + self.inner(maps))


class Llm4Cp(nn.Module):
    """The whole network: complex history in, complex future out, each antenna port a sequence.

    backbone: ``random`` (GPT-2's shape, weights from ``seed``), or a hub id or local folder with GPT-2's
    weights; ``backbone_weights`` says which it was. Of GPT-2 the norms and the position table train; what is
    new trains wholly. ``width``, ``num_layers`` and ``num_maps`` may be lowered to fit a CPU (random only for
    the width).
    """

    def __init__(
        self,
        setting: PredictionSetting,
        *,
        backbone: str = "random",
        width: int = 768,
        num_layers: int = 6,
        num_maps: int = 64,
        num_residual_blocks: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone_weights = backbone
        with seeded(seed):
            self.gpt2 = _gpt2(backbone, width, num_layers, setting.num_history)
            self._build(setting, num_maps, num_residual_blocks)

    def _build(self, setting: PredictionSetting, num_maps: int, num_blocks: int) -> None:
        num_inputs = 2 * len(setting.history_frequencies_hz)
        num_outputs = 2 * len(setting.target_frequencies_hz)
        width, num_history = _width(self.gpt2), setting.num_history
        self.patch_slots = math.gcd(num_history, 4)
        self.patch = nn.Linear(self.patch_slots, self.patch_slots)
        self.frequency_branch = _branch(num_maps, num_blocks)
        self.delay_branch = _branch(num_maps, num_blocks)
        self.token = nn.Conv1d(num_inputs, width, 3, padding=1, padding_mode="circular", bias=False)
        nn.init.kaiming_normal_(self.token.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.register_buffer("positions", _sinusoids(num_history, width), persistent=False)
        self.dropout = nn.Dropout(0.1)
        self.before = nn.Linear(num_history, num_history)
        self.features_out = nn.Linear(width, num_outputs)
        self.slots_out = nn.Linear(num_history, setting.num_horizon)

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """history: complex64 [batch, num_history, num_user_ant, num_bs_ant, num_history_subcarriers].

        Returns complex64 [batch, num_horizon, num_user_ant, num_bs_ant, num_target_subcarriers].
        """
        batch, _, user_antennas = history.shape[:3]
        parts = torch.view_as_real(history)  # [batch, slots, user_ant, bs_ant, subcarriers, 2]
        mean = parts.mean(dim=(1, 2, 3, 4, 5), keepdim=True)
        std = parts.std(dim=(1, 2, 3, 4, 5), keepdim=True).clamp_min(_SMALLEST_SCALE)
        ports = rearrange((parts - mean) / std, "b t u p f part -> (b u p) t f part")
        predicted = self._ports(ports)  # [num_ports, num_horizon, 2 * num_target_subcarriers]
        parts = rearrange(predicted, "(b u p) t (f part) -> b t u p f part", b=batch, u=user_antennas, part=2)
        return torch.view_as_complex((parts * std + mean).contiguous())

    def _ports(self, ports: torch.Tensor) -> torch.Tensor:
        """float32 [n, num_history, num_subcarriers, 2] to [n, num_horizon, 2 * num_target_subcarriers]."""
        taps = torch.view_as_real(torch.fft.ifft(torch.view_as_complex(ports.contiguous())))
        image = self.frequency_branch(self._patches(ports)) + self.delay_branch(self._patches(taps))
        values = rearrange(image, "n part t f -> n (f part) t")
        tokens = rearrange(self.token(values), "n d t -> n t d") + self.positions
        tokens = _over_time(self.before, self.dropout(tokens))  # [n, num_history, width]
        hidden = self.gpt2(inputs_embeds=tokens, use_cache=False).last_hidden_state
        return _over_time(self.slots_out, self.features_out(hidden))

    def _patches(self, values: torch.Tensor) -> torch.Tensor:
        """Mixes the slots of each patch: [n, slots, subcarriers, 2] to [n, 2, slots, subcarriers]."""
        patches = rearrange(values, "n (patch t) f part -> n part f patch t", t=self.patch_slots)
        mixed: torch.Tensor = self.patch(patches)
        return rearrange(mixed, "n part f patch t -> n part (patch t) f")


def _branch(num_maps: int, num_blocks: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, num_maps, 3, padding=1),
        *(ResidualBlock(num_maps) for _ in range(num_blocks)),
        nn.Conv2d(num_maps, 2, 3, padding=1),
    )


def _over_time(layer: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """A linear map over slots: [n, slots, features] -> [n, new slots, features]."""
    mapped: torch.Tensor = layer(rearrange(values, "n t d -> n d t"))
    return rearrange(mapped, "n d t -> n t d")


def _sinusoids(num_slots: int, width: int) -> torch.Tensor:
    """Vaswani et al.'s position code, float32 [num_slots, width]."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))  # [width / 2]
    angles = torch.arange(num_slots)[:, None] * rates  # [num_slots, width / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]  # [num_slots, width]


def _gpt2(backbone: str, width: int, num_layers: int, num_positions: int) -> nn.Module:
    """GPT-2's first layers without word embeddings, frozen but for norms and position table.

    A random one has only the positions that are used: 1024 rows of which 16 train would flatter its size.
    """
    if backbone == "random":
        from transformers import GPT2Config, GPT2Model

        config = GPT2Config(
            vocab_size=1,
            bos_token_id=0,
            eos_token_id=0,
            n_positions=num_positions,
            n_embd=width,
            n_layer=num_layers,
            n_head=max(width // 64, 1),
        )
        model: nn.Module = GPT2Model(config)
    else:
        model = load_pretrained(backbone)
        if type(model).__name__ != "GPT2Model" or _width(model) != width:
            raise SpecError(
                f"{backbone!r} is a {type(model).__name__} of width {_width(model)}; "
                f"LLM4CP takes a GPT-2 of width {width}"
            )
        set_child(model, "h", model.h[:num_layers])  # type: ignore[index, arg-type]
    set_child(model, "wte", None)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("ln" in name or "wpe" in name)
    return model


def _width(model: nn.Module) -> int:
    return int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
