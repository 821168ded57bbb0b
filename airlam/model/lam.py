"""The LAM: tokens -> embedding -> backbone -> task head, as a graph of named modules.

``tokenizer.csi``, ``embedding``, ``block.0`` ... ``block.L-1``, ``norm``, ``head.channel_prediction``: run
as a whole by ``forward``, or one by one by ``forward_module``, wherever each of them lives.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from airlam.errors import DataError, SpecError
from airlam.files import whole_folder
from airlam.model.backbone import build_backbone, seeded, tensors_around
from airlam.model.base import Context, PredictionHead
from airlam.model.chain import Backbone
from airlam.model.storage import assign_tensors, load_tuned, save_tuned
from airlam.specs import ModelSpec, read_spec, spec_to_toml
from airlam.tokens.base import CsiTokenizer, TokenBatch

CHANNEL_PREDICTION = "channel_prediction"
State = dict[str, torch.Tensor]
_CONTEXT = "context."
_SPEC_FILE = "model.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """Sizes of a model; word embeddings are dropped and not counted."""

    trainable: int
    total: int

    @property
    def trainable_share(self) -> float:
        """Trainable over all."""
        return self.trainable / self.total


def count_parameters(module: nn.Module) -> ParameterCount:
    """Trainable and all parameters of a module."""
    parameters = list(module.parameters())
    return ParameterCount(
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        total=sum(p.numel() for p in parameters),
    )


class LAM(nn.Module):
    """Large AI model on CSI tokens: an embedding MLP, a backbone chain, one head per task.

    The tokeniser has no weights; it is kept so that the graph starts at the measurement.
    """

    def __init__(
        self, spec: ModelSpec, tokenizer: CsiTokenizer, backbone: Backbone, heads: dict[str, nn.Module]
    ) -> None:
        super().__init__()
        self.spec = spec
        self.tokenizer = tokenizer
        self.embedding = nn.Sequential(
            nn.Linear(tokenizer.num_features, backbone.width),
            nn.GELU(),
            nn.Linear(backbone.width, backbone.width),
        )
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)

    @property
    def module_names(self) -> tuple[str, ...]:
        """Names of the graph's modules in the order in which they run."""
        blocks = (f"block.{index}" for index in range(self.backbone.num_blocks))
        return ("tokenizer.csi", "embedding", *blocks, "norm", *(f"head.{task}" for task in self.heads))

    @property
    def task(self) -> str:
        """What it is for where nobody says: its first head's task."""
        return next(iter(self.heads))

    def head(self, task: str | None = None) -> PredictionHead:
        """The head of a task; None: of its first."""
        task = task or self.task
        if task not in self.heads:
            raise SpecError(f"no head for task {task!r}; this LAM has {', '.join(self.heads)}")
        return cast(PredictionHead, self.heads[task])

    def forward(self, tokens: TokenBatch, task: str | None = None) -> Context:
        """The output of a task's head (named tensors, batch first) for a batch of tokens; None: its first."""
        hidden = self.backbone(self.embedding(tokens.features), tokens.mask)  # [batch, num_tokens, width]
        return cast(Context, self.heads[task or self.task](hidden, tokens.context))

    def forward_module(self, name: str, state: State) -> State:
        """What one module makes of what the modules before it made.

        | module | takes | gives |
        |---|---|---|
        | tokenizer.csi | history, noise_variance | features, mask, context.* |
        | embedding | features, mask | hidden |
        | block.i | hidden, mask | hidden |
        | norm | hidden | hidden |
        | head.TASK | hidden, context.* | the head's output |

        hidden: float32 [batch, num_tokens, width]. Merge what is given into the state and go on; the context
        stays where the tokeniser ran, so between embedding and head only hidden and mask travel.
        """
        kind, _, detail = name.partition(".")
        if name not in self.module_names:
            raise SpecError(f"no module {name!r} in this LAM; it has {', '.join(self.module_names)}")
        if kind == "tokenizer":
            tokens = self.tokenizer.tokenise(state["history"], state["noise_variance"])
            context = {_CONTEXT + key: value for key, value in tokens.context.items()}
            return {"features": tokens.features, "mask": tokens.mask, **context}
        if kind == "embedding":
            return {"hidden": self.backbone.enter(self.embedding(state["features"]), state["mask"])[0]}
        if kind == "block":
            index, hidden = int(detail), state["hidden"]
            call = self.backbone.calls(hidden, state["mask"])[index]
            return {"hidden": self.backbone.block(index, hidden, call)}
        if kind == "norm":
            return {"hidden": self.backbone.norm(state["hidden"])}
        context = {
            key.removeprefix(_CONTEXT): value for key, value in state.items() if key.startswith(_CONTEXT)
        }
        return cast(State, self.heads[detail](state["hidden"], context))

    def merged(self) -> "LAM":
        """A copy for inference, its LoRA added to the weights: the same outputs, to rounding, sooner."""
        from airlam.model.lora import merge_adapters

        copied = copy.deepcopy(self).requires_grad_(False)
        merge_adapters(copied)
        return copied

    def save(self, folder: Path) -> None:
        """Writes the LAM's spec and tuned weights; appears whole or not at all."""
        with whole_folder(folder) as temporary:
            write_model_spec(self.spec, temporary)
            save_tuned(self, self.spec, temporary)

    def load(self, folder: Path) -> None:
        """Takes tuned weights from a folder that ``save`` wrote; DataError where they are another model's."""
        saved = read_model_spec(folder)
        if saved != self.spec:
            raise DataError(f"{folder} holds a LAM of another spec: {saved}; this one is {self.spec}")
        load_tuned(self, self.spec, folder)

    def tensors_around(self) -> State:
        """Embedding and heads: all but the backbone."""
        return {name: t for name, t in self.state_dict().items() if not name.startswith("backbone.")}


def write_model_spec(spec: ModelSpec, folder: Path) -> None:
    """Has ``read_model_spec`` find the spec of what is saved in this folder."""
    (folder / _SPEC_FILE).write_text(spec_to_toml(spec))


def read_model_spec(folder: Path) -> ModelSpec:
    """The spec of a saved LAM."""
    if not (folder / _SPEC_FILE).is_file():
        raise DataError(f"{folder} holds no {_SPEC_FILE}; expected a folder that a fine-tuning run wrote")
    return read_spec(ModelSpec, folder / _SPEC_FILE)


def build_lam(
    spec: ModelSpec, tokenizer: CsiTokenizer, head: Callable[[int], nn.Module], *, seed: int = 0
) -> LAM:
    """A LAM for channel prediction, its random weights drawn from ``seed``.

    head: makes the head, given the backbone's width. Path tokens are a set; patch tokens have places. A
    backbone that was pretrained on channels brings embedding and head along; DataError where they do not fit.
    """
    from airlam.model.lora import prepare_tuning

    model = build_backbone(spec, seed=seed)
    with seeded(seed + 1):
        backbone = Backbone(prepare_tuning(model, spec), ordered=spec.tokenizer == "patch")
        lam = LAM(spec, tokenizer, backbone, {CHANNEL_PREDICTION: head(backbone.width)})
    around = tensors_around(spec)
    if around is not None:
        assign_tensors(lam.tensors_around(), around, f"what backbone {spec.backbone!r} was pretrained with")
    return lam
