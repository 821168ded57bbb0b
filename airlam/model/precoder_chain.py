"""The graph precoder with the face of a LAM, so that nodes, rounds and checkpoints take it for one.

``tokenizer.csi`` makes one token a user of the Gram matrix, ``embedding`` and ``norm`` pass on what they are
given, and ``head.beamforming`` is the whole precoder, with its backbone where it has one. All of it belongs
where the channels are known: devices average its weights, and tokens, which hold the channels, stay.
"""

from pathlib import Path
from typing import cast

import torch
from einops import rearrange
from torch import nn

from airlam.errors import DataError, SpecError
from airlam.files import whole_folder
from airlam.model.base import Context
from airlam.model.chain import Backbone
from airlam.model.graph_precoder import GraphPrecoder, Shares, build_precoder, gram_of
from airlam.model.lam import LAM
from airlam.model.storage import load_tuned, save_tuned
from airlam.specs import ModelSpec, PrecoderSpec, read_spec, spec_to_toml
from airlam.tokens.base import CsiTokenizer, TokenBatch

BEAMFORMING = "beamforming"
GRAM = "gram"  # in the context
_SPEC_FILE = "precoder.toml"
_STAGE = "stage."


class GramTokenizer:
    """One token a user: its row of the Gram matrix, real parts then imaginary ones; no weights.

    max_users: to which rows are filled up with zeros, so that all batches have features of one size.
    """

    def __init__(self, max_users: int) -> None:
        self.max_users = max_users
        self.num_features = 2 * max_users

    def tokenise(self, history: torch.Tensor, noise_variance: torch.Tensor) -> TokenBatch:
        """history: the channels as known, complex64 [batch, num_users, num_bs_ant]; noise_variance over the
        total power: float32 [batch]. The context has the Gram matrix itself.
        """
        gram = gram_of(history, noise_variance)  # [batch, num_users, num_users]
        num_users = gram.shape[-1]
        if num_users > self.max_users:
            raise SpecError(f"{num_users} users for rows of {self.max_users}; schedule fewer")
        parts = torch.stack([gram.real, gram.imag], dim=2)  # [batch, num_users, 2, num_users]
        filled = nn.functional.pad(parts, (0, self.max_users - num_users))
        features = rearrange(filled, "b k part j -> b k (part j)")
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=gram.device)
        return TokenBatch(features=features, mask=mask, context={GRAM: gram})


class PrecoderHead(nn.Module):
    """The precoder as a task head; what comes out are the logarithms of each stage's shares."""

    def __init__(self, precoder: GraphPrecoder) -> None:
        super().__init__()
        self.precoder = precoder

    def forward(self, hidden: torch.Tensor, context: Context) -> Context:
        """``stage.I.dual`` and ``stage.I.stream``: float32 [batch, num_users] each; hidden is not read."""
        named: Context = {}
        for index, answer in enumerate(self.precoder(context[GRAM])):
            named[f"{_STAGE}{index}.dual"] = answer.log_dual
            named[f"{_STAGE}{index}.stream"] = answer.log_stream
        return named


def answers_of(output: Context) -> tuple[Shares, ...]:
    """The stages' answers in a head's output, first stage first."""
    return tuple(
        Shares(
            log_dual=output[f"{_STAGE}{index}.dual"],
            log_stream=output[f"{_STAGE}{index}.stream"],
        )
        for index in range(len(output) // 2)
    )


class _NoBackbone(nn.Module):
    """A chain of no blocks, as ``Backbone`` is one of some."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.num_blocks = width, 0
        self.autocast_dtype: torch.dtype | None = None

    def parts(self) -> dict[str, nn.Module]:
        """None."""
        return {}

    def part_of(self, tensor_name: str) -> str | None:
        """It has no tensors."""
        return None

    def enter(self, embedded: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, list[None]]:
        """float32 [batch, num_tokens, width] as it came."""
        return embedded, []

    def norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """As it came."""
        return hidden

    def forward(self, embedded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """As it came."""
        return embedded


class PrecoderLam(LAM):
    """A graph precoder as a LAM of one task; ``spec`` is its backbone's, or says that all of it trains."""

    def __init__(self, precoder: GraphPrecoder, max_users: int) -> None:
        tokenizer = GramTokenizer(max_users)
        super().__init__(
            precoder.spec.backbone or ModelSpec(tuning="full"),
            cast(CsiTokenizer, tokenizer),  # it predicts nothing, so it has no setting
            cast(Backbone, _NoBackbone(tokenizer.num_features)),
            {BEAMFORMING: PrecoderHead(precoder)},
        )
        self.embedding = nn.Sequential()

    @property
    def precoder(self) -> GraphPrecoder:
        """What it is."""
        return cast(PrecoderHead, self.heads[BEAMFORMING]).precoder

    def save(self, folder: Path) -> None:
        """As ``save_precoder``."""
        save_precoder(self.precoder, folder)

    def load(self, folder: Path) -> None:
        """Takes the weights that ``save`` wrote; DataError where they are another precoder's."""
        saved = _read_precoder_spec(folder)
        if saved != self.precoder.spec:
            raise DataError(
                f"{folder} holds a precoder of another spec: {saved}; this one is {self.precoder.spec}"
            )
        load_tuned(self.precoder, saved.backbone, folder)


def save_precoder(precoder: GraphPrecoder, folder: Path) -> None:
    """Writes spec and weights, LoRA in peft's format; the folder appears whole or not at all."""
    with whole_folder(folder) as temporary:
        (temporary / _SPEC_FILE).write_text(spec_to_toml(precoder.spec))
        save_tuned(precoder, precoder.spec.backbone, temporary)


def load_precoder(folder: Path) -> GraphPrecoder:
    """The precoder that ``save_precoder`` wrote, ready for use; DataError where the folder has none."""
    precoder = build_precoder(_read_precoder_spec(folder))
    load_tuned(precoder, precoder.spec.backbone, folder)
    return precoder.eval()


def _read_precoder_spec(folder: Path) -> PrecoderSpec:
    if not (folder / _SPEC_FILE).is_file():
        raise DataError(f"{folder} holds no {_SPEC_FILE}; expected a folder that a run of beamforming wrote")
    return read_spec(PrecoderSpec, folder / _SPEC_FILE)
