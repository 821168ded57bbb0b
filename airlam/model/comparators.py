"""Learned predictors that others use, of any size: RNN, LSTM, GRU, CNN, Transformer.

As in LLM4CP (Liu et al., 2406.14440) each antenna port is a sequence of its own, real and imaginary parts of
all subcarriers at each slot; the ports of a link share one network. Unlike there the input is divided by the
link's root mean square, so that weak users count. The layer plans are reconstructions: the papers print none.
"""

from collections.abc import Callable
from typing import Literal, Protocol, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from airlam.errors import SpecError
from airlam.model.backbone import seeded
from airlam.radio.channel import PredictionSetting

_SMALLEST_SCALE = 1e-20


class LinkSamples(Protocol):
    """What the comparators' loss reads of a batch: complex64, shaped as in ``Predictor.predict``."""

    @property
    def history(self) -> torch.Tensor: ...

    @property
    def future(self) -> torch.Tensor: ...


class PortwiseNet(nn.Module):
    """A network over real sequences, applied to each antenna port of a link.

    sequence: float32 [num_sequences, num_history, 2 * num_history_subcarriers] ->
    [num_sequences, num_horizon, 2 * num_target_subcarriers].
    """

    def __init__(self, sequence: nn.Module) -> None:
        super().__init__()
        self.sequence = sequence

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """history: complex64 [batch, num_history, num_user_ant, num_bs_ant, num_history_subcarriers].

        Returns complex64 [batch, num_horizon, num_user_ant, num_bs_ant, num_target_subcarriers].
        """
        batch, _, user_antennas = history.shape[:3]
        scale = history.abs().square().mean(dim=(1, 2, 3, 4), keepdim=True).sqrt().clamp_min(_SMALLEST_SCALE)
        parts = torch.view_as_real(history / scale)  # [batch, slots, user_ant, bs_ant, subcarriers, 2]
        sequences = rearrange(parts, "b t u p f part -> (b u p) t (f part)")
        predicted = self.sequence(sequences)  # [num_sequences, num_horizon, 2 * num_target_subcarriers]
        parts = rearrange(predicted, "(b u p) t (f part) -> b t u p f part", b=batch, u=user_antennas, part=2)
        return torch.view_as_complex(parts.contiguous()) * scale


def portwise_nmse(model: nn.Module, links: LinkSamples) -> torch.Tensor:
    """NMSE of each link, float32 [batch]: the loss that the comparators are trained with."""
    error = (model(links.history) - links.future).abs().square().sum(dim=(1, 2, 3, 4))  # [batch]
    energy = links.future.abs().square().sum(dim=(1, 2, 3, 4))  # [batch]
    return cast(torch.Tensor, error / energy.clamp_min(torch.finfo(torch.float32).tiny))


class RecurrentNet(nn.Module):
    """RNN, LSTM or GRU that reads the history and feeds its own predictions back for later slots."""

    def __init__(
        self, setting: PredictionSetting, width: int, cell: Callable[..., nn.Module], num_layers: int = 2
    ) -> None:
        super().__init__()
        num_inputs, num_outputs = _sequence_sizes(setting)
        self.num_horizon = setting.num_horizon
        self.encoder = nn.Linear(num_inputs, width)
        self.feedback = nn.Linear(num_outputs, width)
        self.recurrent = cell(width, width, num_layers, batch_first=True)
        self.decoder = nn.Linear(width, num_outputs)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        """Shapes as in ``PortwiseNet``."""
        hidden, state = self.recurrent(self.encoder(sequence))  # [num_sequences, num_history, width]
        outputs = [self.decoder(hidden[:, -1:])]
        for _ in range(self.num_horizon - 1):
            hidden, state = self.recurrent(self.feedback(outputs[-1]), state)
            outputs.append(self.decoder(hidden))
        return torch.cat(outputs, dim=1)  # [num_sequences, num_horizon, num_outputs]


class ConvolutionNet(nn.Module):
    """3x3 convolutions over the slot x subcarrier image: two levels down, two up, then over time and band."""

    def __init__(self, setting: PredictionSetting, width: int) -> None:
        super().__init__()
        num_inputs, num_outputs = _sequence_sizes(setting)
        self.enter = nn.Conv2d(2, width, 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(maps, 2 * maps, 3, stride=2, padding=1) for maps in (width, 2 * width)
        )
        self.up = nn.ModuleList(nn.Conv2d(2 * maps, maps, 3, padding=1) for maps in (2 * width, width))
        self.leave = nn.Conv2d(width, 2, 3, padding=1)
        self.time = nn.Conv1d(setting.num_history, setting.num_horizon, 3, padding=1)
        self.band = nn.Identity() if num_inputs == num_outputs else nn.Linear(num_inputs, num_outputs)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        """Shapes as in ``PortwiseNet``."""
        image = rearrange(sequence, "n t (f part) -> n part t f", part=2)
        levels = [F.gelu(self.enter(image))]
        for layer in self.down:
            levels.append(F.gelu(layer(levels[-1])))  # half the slots and subcarriers, twice the maps
        hidden = levels.pop()
        for layer, level in zip(self.up, reversed(levels), strict=True):
            hidden = level + F.gelu(layer(F.interpolate(hidden, level.shape[2:])))
        image = image + self.leave(hidden)
        return cast(torch.Tensor, self.band(self.time(rearrange(image, "n part t f -> n t (f part)"))))


class TransformerNet(nn.Module):
    """Pre-norm Transformer encoder over the slots of the history and one learned query per future slot."""

    num_heads = 4

    def __init__(self, setting: PredictionSetting, width: int, num_layers: int = 4) -> None:
        super().__init__()
        num_inputs, num_outputs = _sequence_sizes(setting)
        self.num_horizon = setting.num_horizon
        self.encoder = nn.Linear(num_inputs, width)
        self.positions = nn.Parameter(0.02 * torch.randn(setting.num_history, width))
        self.queries = nn.Parameter(0.02 * torch.randn(setting.num_horizon, width))
        layer = nn.TransformerEncoderLayer(
            width,
            self.num_heads,
            4 * width,
            dropout=0.05,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, num_outputs)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        """Shapes as in ``PortwiseNet``."""
        past = self.encoder(sequence) + self.positions  # [num_sequences, num_history, width]
        queries = self.queries.expand(len(sequence), -1, -1)  # [num_sequences, num_horizon, width]
        hidden = self.layers(torch.cat([past, queries], dim=1))[:, -self.num_horizon :]
        return cast(torch.Tensor, self.decoder(self.norm(hidden)))


def _sequence_sizes(setting: PredictionSetting) -> tuple[int, int]:
    """Real values per slot in and out."""
    return 2 * len(setting.history_frequencies_hz), 2 * len(setting.target_frequencies_hz)


Comparator = Literal["rnn", "lstm", "gru", "cnn", "transformer"]

_NETS: dict[str, tuple[Callable[[PredictionSetting, int], nn.Module], int]] = {  # and the width's step
    "rnn": (lambda setting, width: RecurrentNet(setting, width, nn.RNN), 1),
    "lstm": (lambda setting, width: RecurrentNet(setting, width, nn.LSTM), 1),
    "gru": (lambda setting, width: RecurrentNet(setting, width, nn.GRU), 1),
    "cnn": (ConvolutionNet, 1),
    "transformer": (TransformerNet, TransformerNet.num_heads),
}
COMPARATORS: tuple[Comparator, ...] = ("rnn", "lstm", "gru", "cnn", "transformer")


def build_comparator(name: str, setting: PredictionSetting, width: int, *, seed: int = 0) -> PortwiseNet:
    """A comparator of a given width, its weights drawn from ``seed``."""
    if name not in _NETS:
        raise SpecError(f"no comparator {name!r}; expected one of {', '.join(COMPARATORS)}")
    with seeded(seed):
        return PortwiseNet(_NETS[name][0](setting, width))


def matched(name: str, setting: PredictionSetting, num_parameters: int, *, seed: int = 0) -> PortwiseNet:
    """The comparator whose number of parameters is nearest to ``num_parameters``."""
    step = _NETS[name][1] if name in _NETS else 1

    def size(steps: int) -> int:
        with torch.device("meta"):
            net = build_comparator(name, setting, steps * step)
        return sum(p.numel() for p in net.parameters())

    high = 1
    while size(high) < num_parameters:
        high *= 2
    low = max(high // 2, 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < num_parameters else (low, middle)
    best = min((low, high), key=lambda steps: abs(size(steps) - num_parameters))
    return build_comparator(name, setting, best * step, seed=seed)


class LearnedPredictor:
    """A trained network as a ``Predictor``; the noise variance is not used, as in the papers.

    ``batch_size`` links at a time: two keep the convolutions' maps in a core's cache, in half the time.
    """

    def __init__(self, name: str, module: nn.Module, *, batch_size: int = 2) -> None:
        self.name = name
        self.module = module
        self.batch_size = batch_size

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """The future of each link; shapes as in ``Predictor.predict``."""
        self.module.eval()
        device = next(self.module.parameters()).device
        with torch.no_grad():
            parts = [
                self.module(part.to(device)).to(history.device)
                for part in torch.split(history, self.batch_size)
            ]
        return torch.cat(parts)
