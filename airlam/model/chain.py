"""A Hugging Face model as a chain of parts that run together or apart: entrance, blocks, final norm.

Attention is bidirectional for decoders too: CSI tokens are one measurement, not a text to continue.
"""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from airlam.errors import SpecError
from airlam.model.families import final_norm, find_layers


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What a backbone passes to one of its layers besides the hidden states."""

    arguments: tuple[Any, ...]
    options: dict[str, Any]


class _Recorder(nn.Module):
    """Stands in for a layer: keeps what it is called with and returns the hidden states as they came."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.call: LayerCall | None = None
        # some models look up attributes of a layer (its attention type) before they call it
        self._layer = (layer,)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"][0], name)

    def forward(self, hidden: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        self.call = LayerCall(arguments, options)
        return hidden


class _Entrance:
    """The model with recorders for layers: runs what comes before them and sees what they would be given.

    It shares every weight with the model, and is no ``nn.Module`` so that they are not registered twice.
    """

    def __init__(self, model: nn.Module, path: str, layers: nn.ModuleList) -> None:
        self.recorders = nn.ModuleList(_Recorder(layer) for layer in layers)
        self.shell = _shallow_copy(model, path, self.recorders)
        taken = inspect.signature(model.forward).parameters
        self.options = {"use_cache": False} if "use_cache" in taken else {}
        self.takes_positions = "position_ids" in taken

    def __call__(
        self, embedded: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, list[LayerCall]]:
        options: dict[str, Any] = dict(self.options)
        if self.takes_positions:
            options["position_ids"] = positions
        first: list[torch.Tensor] = []
        hook = self.recorders[0].register_forward_pre_hook(lambda _, inputs: first.append(inputs[0]))
        try:
            self.shell(inputs_embeds=embedded, attention_mask=_attention_mask(mask), **options)
        finally:
            hook.remove()
        return first[0], [recorder.call for recorder in self.recorders]  # type: ignore[misc]


def _shallow_copy(module: nn.Module, path: str, leaf: nn.Module) -> nn.Module:
    """``module`` with ``leaf`` at ``path``; everything off that path is shared with the original."""
    if not path:
        return leaf
    name, _, rest = path.partition(".")
    shell = copy.copy(module)
    shell._modules = dict(module._modules)
    shell._modules[name] = _shallow_copy(getattr(module, name), rest, leaf)
    return shell


class Backbone(nn.Module):
    """A Hugging Face model as a chain: ``enter``, one call per block, ``norm``.

    Run in order this is the model's own forward pass with bidirectional attention. Each part is callable on
    its own: what the model would pass to a block (masks, rotary positions) is recorded from the model itself,
    so no family of models needs an adapter.

    ``ordered``: tokens have places 0, 1, 2...; otherwise they are a set and all stand at place 0.
    ``autocast_dtype``: precision of the blocks' matrix products (None: float32); hidden states between
    parts stay float32.
    """

    def __init__(self, model: nn.Module, *, ordered: bool) -> None:
        super().__init__()
        self.model = model
        self.ordered = ordered
        self.autocast_dtype: torch.dtype | None = None
        path, layers = find_layers(model)
        self._layers_path = path
        self._entrance = _Entrance(model, path, layers)
        if not (ordered or self._entrance.takes_positions):
            raise SpecError(
                f"{type(model).__name__} takes no position_ids, so its tokens cannot be a set; "
                "choose another backbone or the patch tokeniser"
            )
        self._norm_path: str | None = None
        self._check()

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return len(self._layers)

    def parts(self) -> dict[str, nn.Module]:
        """What ``block`` and ``norm`` run: ``block.0``, ``block.1``, ..., and ``norm`` where there is one."""
        found: dict[str, nn.Module] = {f"block.{index}": layer for index, layer in enumerate(self._layers)}
        return (
            found if self._norm_path is None else found | {"norm": self.model.get_submodule(self._norm_path)}
        )

    def part_of(self, tensor_name: str) -> str | None:
        """Which of ``parts`` a parameter or buffer is in, by its name here; None for what ``enter`` runs."""
        place = tensor_name.removeprefix("model.")
        if place.startswith(self._layers_path + "."):
            return "block." + place.removeprefix(self._layers_path + ".").partition(".")[0]
        is_norm = self._norm_path is not None and place.startswith(self._norm_path + ".")
        return "norm" if is_norm else None

    @property
    def _layers(self) -> nn.ModuleList:
        layers = self.model.get_submodule(self._layers_path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def enter(self, embedded: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, list[LayerCall]]:
        """What comes before the blocks (positions, a norm, dropout), and what each block is called with.

        embedded: float32 [batch, num_tokens, width]. mask: bool [batch, num_tokens], at least one true a row.
        Returns hidden float32 of the same shape, and one call per block.
        """
        self._entrance.shell.training = self.training
        with self._autocast(embedded):
            hidden, calls = self._entrance(embedded, mask, self._positions(mask))
        return hidden.float(), calls

    def calls(self, hidden: torch.Tensor, mask: torch.Tensor) -> list[LayerCall]:
        """What each block is to be called with, where the embedding ran elsewhere; draws no random number."""
        cuda = [hidden.device] if hidden.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            return self.enter(hidden, mask)[1]

    def block(self, index: int, hidden: torch.Tensor, call: LayerCall) -> torch.Tensor:
        """One block; hidden float32 [batch, num_tokens, width] in and out."""
        with self._autocast(hidden):
            output = self._layers[index](hidden, *call.arguments, **call.options)
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result.float()

    def norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm, where the model has one; hidden float32 [batch, num_tokens, width] in and out."""
        if self._norm_path is None:
            return hidden
        with self._autocast(hidden):
            result: torch.Tensor = self.model.get_submodule(self._norm_path)(hidden)
        return result.float()

    def forward(self, embedded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """All parts in order: float32 [batch, num_tokens, width] in and out."""
        hidden, calls = self.enter(embedded, mask)
        for index, call in enumerate(calls):
            hidden = self.block(index, hidden, call)
        return self.norm(hidden)

    def _positions(self, mask: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(mask.shape[1], device=mask.device)[None]  # [1, num_tokens]
        return positions if self.ordered else torch.zeros_like(positions)

    def _autocast(self, like: torch.Tensor) -> torch.autocast:
        dtype = self.autocast_dtype
        return torch.autocast(like.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def _run_model(self, embedded: torch.Tensor) -> torch.Tensor:
        """The model's own forward pass on a full mask, float32 [batch, num_tokens, width]."""
        mask = torch.ones(embedded.shape[:2], dtype=torch.bool, device=embedded.device)
        options: dict[str, Any] = dict(self._entrance.options)
        if self._entrance.takes_positions:
            options["position_ids"] = self._positions(mask)
        attention = _attention_mask(mask)
        output = self.model(inputs_embeds=embedded, attention_mask=attention, **options)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _check(self) -> None:
        """Finds the final norm and makes sure that the chain gives what the model gives, on a few tokens."""
        weight = next(self.model.parameters())
        size = 3 * self.width
        tokens = torch.linspace(-1, 1, size, device=weight.device).reshape(1, 3, -1)  # [1, 3, width]
        training = self.model.training
        self.eval()
        with torch.no_grad():
            self._norm_path = final_norm(self.model, self._layers_path, lambda: self._run_model(tokens))
            expected = self._run_model(tokens)
            got = self(tokens, torch.ones(1, 3, dtype=torch.bool, device=weight.device))
        self.train(training)
        if not torch.allclose(got, expected, rtol=1e-3, atol=1e-4):
            raise SpecError(
                f"{type(self.model).__name__} is no plain chain of layers and a norm; choose another backbone"
            )


def _attention_mask(mask: torch.Tensor) -> torch.Tensor:
    """Every token sees every real token: bool [batch, num_tokens] to [batch, 1, query, key]."""
    num_tokens = mask.shape[1]
    return mask[:, None, None, :].expand(-1, 1, num_tokens, num_tokens)
