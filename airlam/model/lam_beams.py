"""The LAM for beam selection behind its regressions, as one thing that chooses, is saved and is loaded."""

from dataclasses import dataclass
from pathlib import Path

import torch

from airlam.errors import DataError
from airlam.files import whole_folder
from airlam.model.beam_selection import BeamHead, BeamLAM, build_beam_lam
from airlam.model.lam import read_model_spec, write_model_spec
from airlam.model.storage import load_tuned, read_tensors, save_tuned, write_tensors
from airlam.radio.beam_regression import PowerStack
from airlam.radio.beam_selection import BeamHistory
from airlam.specs import ModelSpec, read_spec, spec_to_toml
from airlam.tokens.beam_history import BeamScales, tokenise_history
from airlam.tokens.modality import ModalityTokens

_PREDICT_BATCH = 512
_SCALES_FILE, _EXPERTS_FILE = "scales.toml", "experts.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class LamBeams:
    """The LAM behind its experts; implements ``BeamPredictor``. spec: its backbone's, and how it is tuned."""

    stack: PowerStack
    scales: BeamScales
    lam: BeamLAM
    spec: ModelSpec
    name: str = "lam"

    @staticmethod
    def untuned(stack: PowerStack, scales: BeamScales, spec: ModelSpec, *, seed: int) -> "LamBeams":
        """Chooses as the stack does; what is random in the LAM is drawn from ``seed``."""
        lam = build_beam_lam(
            spec,
            scales.tokenizer(),
            lambda width: BeamHead(width=width, num_ahead=scales.num_ahead, weights=stack.weights),
            seed=seed,
        )
        return LamBeams(stack=stack, scales=scales, lam=lam, spec=spec)

    def inputs(self, history: BeamHistory) -> tuple[dict[str, ModalityTokens], torch.Tensor]:
        """What the LAM takes: tokens by modality; what experts expect, float32 [n, experts, num_ahead,
        num_beams].
        """
        expected = self.stack.expect(history)
        combined = self.stack.combine(expected)
        return tokenise_history(self.scales.tokenizer(), history, combined), expected.float()

    def predict(self, history: BeamHistory) -> torch.Tensor:
        """See ``BeamPredictor``; scores are log-odds."""
        tokens, expected = self.inputs(history)
        scores = torch.empty(len(history), *expected.shape[2:], dtype=torch.float64)
        self.lam.eval()
        with torch.no_grad():
            for start in range(0, len(history), _PREDICT_BATCH):
                index = torch.arange(start, min(start + _PREDICT_BATCH, len(history)))
                some = {name: each.select(index) for name, each in tokens.items()}
                scores[index] = self.lam(some, expected[index]).double()
        return scores

    def save(self, folder: Path) -> None:
        """Writes all that ``load`` needs but pretrained weights; appears whole or not at all."""
        with whole_folder(folder) as temporary:
            write_model_spec(self.spec, temporary)
            (temporary / _SCALES_FILE).write_text(spec_to_toml(self.scales))
            write_tensors(temporary / _EXPERTS_FILE, self.stack.tensors())
            save_tuned(self.lam, self.spec, temporary)

    @staticmethod
    def load(folder: Path) -> "LamBeams":
        """What ``save`` wrote; DataError where the folder holds something else."""
        spec, scales = read_model_spec(folder), read_spec(BeamScales, folder / _SCALES_FILE)
        path = folder / _EXPERTS_FILE
        stack = PowerStack.from_tensors(read_tensors(path), str(path))
        history = stack.experts[0].known.history
        sizes = (*history.power.shape[1:], *stack.experts[0].mean.constant.shape)
        if sizes != (scales.num_past, scales.num_beams, scales.num_ahead, scales.num_beams):
            raise DataError(f"{path} holds regressions of sizes {sizes}; {_SCALES_FILE} says {scales}")
        found = LamBeams.untuned(stack, scales, spec, seed=0)
        load_tuned(found.lam, spec, folder)
        found.lam.eval()
        return found
