"""Pretraining: from a mixture of settings to a backbone that has seen channels of many kinds.

Every setting's channels are drawn with Sionna, tokenised once and dropped. One LAM is then trained from
scratch on all of them, each batch of one setting, by two objectives: the next slots through the physics head
(``prediction_loss``), and the features of hidden path tokens (``Pretrainer.masked_error``). Papers pretrain
foundation models of channels by masks and prediction; this mixture, these tokens' masks and the weights of
the objectives are a reconstruction.

The folder that results is the backbone as Hugging Face writes it (``config.json``, ``model.safetensors``),
with ``embedding_and_heads.safetensors``, from which a LAM on it starts, and ``card.json``. While it is being
made, what a killed run goes on from lies in ``.NAME.unfinished`` beside it.
"""

import dataclasses
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

import airlam
from airlam.datasets.layout import software_versions
from airlam.datasets.mixture import draw_settings
from airlam.errors import DataError, SpecError
from airlam.files import whole_folder, write_json
from airlam.model.backbone import save_backbone
from airlam.model.pretrainer import Pretrainer
from airlam.specs import PretrainingSpec, parse_spec, read_spec, spec_to_dict, spec_to_toml
from airlam.tasks.channel_prediction import (
    Progress,
    TokenSamples,
    nmse_of,
    prediction_loss,
    quiet,
    with_reference,
)
from airlam.tasks.mixture_tokens import (
    SPLITS,
    MixtureSamples,
    PreparedSetting,
    SettingBatch,
    prepare,
    usable_settings,
)
from airlam.tasks.runs import describe
from airlam.tokens.path import NUM_LEVEL_FEATURES, NUM_POSITION_FEATURES, NUM_SETTING_FEATURES
from airlam.training.loop import fit
from airlam.training.metrics import TrainingSummary

CARD_FILE = "card.json"
SCALES = ("two_cores", "tiny")


def resolve_pretraining(name_or_path: str) -> PretrainingSpec:
    """The spec in a TOML file, or a packaged scale: ``two_cores`` or ``tiny``."""
    if Path(name_or_path).suffix == ".toml":
        return read_spec(PretrainingSpec, Path(name_or_path))
    if name_or_path not in SCALES:
        raise SpecError(f"{name_or_path!r} is no packaged scale; take {' or '.join(SCALES)}, or a TOML file")
    text = files("airlam.tasks").joinpath(f"pretraining_{name_or_path}.toml").read_text()
    return parse_spec(PretrainingSpec, text, f"pretraining_{name_or_path}.toml")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingLoss:
    """Next-slot prediction plus the weighted error of hidden tokens: a loss for ``fit``."""

    masked_weight: float

    def __call__(self, model: torch.nn.Module, batch: SettingBatch) -> torch.Tensor:
        """float32 [batch]."""
        assert isinstance(model, Pretrainer)
        predicted = prediction_loss(model.view(batch.setting_index), batch.tokens)
        return predicted + self.masked_weight * model.masked_error(batch.tokens.features, batch.tokens.mask)


def pretrain(spec: PretrainingSpec, folder: Path, on_progress: Progress = quiet) -> Path:
    """Pretrains a backbone into ``folder`` and returns it; a run that was killed goes on where it stopped.

    A folder that was made of this spec is left alone; DataError where it holds anything else. Ray-traced
    settings are left out, with a warning, where no ray tracer runs. KeyboardInterrupt, with a checkpoint,
    where the user interrupts.
    """
    if _is_made(spec, folder):
        return folder
    work = folder.with_name(f".{folder.name}.unfinished") / _digest(spec)
    settings, left_out = usable_settings(draw_settings(spec.mixture))
    prepared = []
    for number, setting in enumerate(settings, 1):
        what = f"setting {number} of {len(settings)}, {setting.name}"
        prepared.append(prepare(setting, spec, work / "settings" / setting.name, what, on_progress))
    model = _model(spec, prepared)
    samples = {
        split: MixtureSamples(parts=tuple(_with_references(model, prepared, split))) for split in SPLITS
    }
    before = _scores(model, samples["validation"])
    summary = fit(
        model,
        PretrainingLoss(masked_weight=spec.masked_weight),
        samples["train"],
        samples["validation"],
        spec.training,
        work,
        lambda step: on_progress("pretraining", step.step, step.num_steps, describe(step)),
        identity=spec_to_toml(spec) + json.dumps([each.facts["data_sha256"] for each in prepared]),
    )
    if summary.stop_reason == "interrupted":
        raise KeyboardInterrupt
    model.cpu()
    scores = _scores(model, samples["validation"])
    with whole_folder(folder) as temporary:
        save_backbone(model.lam.backbone.model, model.lam.tensors_around(), temporary)
        card = _card(spec, model, prepared, summary, before, scores)
        write_json(temporary / CARD_FILE, card | {"left_out": left_out})
    shutil.rmtree(work.parent)
    return folder


def _digest(spec: PretrainingSpec) -> str:
    text = spec_to_toml(spec) + airlam.__version__
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_made(spec: PretrainingSpec, folder: Path) -> bool:
    """Whether the folder is what this spec makes; DataError where something else is in it."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    card = folder / CARD_FILE
    if card.is_file() and json.loads(card.read_text()).get("digest") == _digest(spec):
        return True
    raise DataError(f"{folder} holds something else than this spec makes; take another name or remove it")


def _model(spec: PretrainingSpec, prepared: Sequence[PreparedSetting]) -> Pretrainer:
    """The untrained model, its features standardised by the training tokens of all settings."""
    first, *others = (each.lam for each in prepared)
    _require_like(prepared)
    real = [each.samples["train"].tokens for each in prepared]
    rows = torch.cat([tokens.features[tokens.mask] for tokens in real]).double()  # [tokens, num_features]
    return Pretrainer(
        [first, *others],
        mean=rows.mean(0).float(),
        deviation=rows.std(0).float(),
        told=told_features(rows.shape[1]),
        masked_share=spec.masked_share,
        seed=spec.training.seed,
    )


def _require_like(prepared: Sequence[PreparedSetting]) -> None:
    """SpecError where the tokens of two settings differ in features: one embedding cannot serve both."""
    first = prepared[0]
    for each in prepared:
        sizes = (first.lam.tokenizer.num_features, each.lam.tokenizer.num_features)
        if sizes[0] != sizes[1]:
            raise SpecError(
                f"path tokens of {first.setting.name} have {sizes[0]} features, those of "
                f"{each.setting.name} {sizes[1]}; mix settings whose tokens are alike"
            )


def told_features(num_features: int) -> torch.Tensor:
    """Which features a hidden path token keeps: where the path lies, and the setting. bool [num_features]."""
    told = torch.zeros(num_features, dtype=torch.bool)
    after_position = NUM_LEVEL_FEATURES + NUM_SETTING_FEATURES
    told[-NUM_POSITION_FEATURES - after_position : -after_position] = True
    told[-NUM_SETTING_FEATURES:] = True
    return told


def _with_references(
    model: Pretrainer, prepared: Sequence[PreparedSetting], split: str
) -> list[TokenSamples]:
    """Each setting's samples with what the untrained model scores, which the loss weighs by."""
    return [with_reference(model.view(index), each.samples[split]) for index, each in enumerate(prepared)]


@torch.no_grad()
def _scores(model: Pretrainer, samples: MixtureSamples) -> list[dict[str, float]]:
    """Of each setting, over its validation samples: geometric mean NMSE, and error of hidden features."""
    model.eval()
    found = []
    for index, part in enumerate(samples.parts):
        tokens = part.tokens
        nmse = nmse_of(model.view(index), tokens).clamp_min(1e-12)
        masked = model.masked_error(tokens.features, tokens.mask)
        found.append({"nmse": nmse.log().mean().exp().item(), "masked_error": masked.mean().item()})
    return found


def _card(
    spec: PretrainingSpec,
    model: Pretrainer,
    prepared: Sequence[PreparedSetting],
    summary: TrainingSummary,
    before: list[dict[str, float]],
    after: list[dict[str, float]],
) -> dict[str, Any]:
    """What the backbone was made of, and what that took."""
    settings = [
        {
            "dataset": spec_to_dict(each.setting.dataset),
            "prediction": spec_to_dict(each.setting.prediction),
            **each.facts,
            "validation": {
                "nmse_physics_alone": was["nmse"],
                "nmse": now["nmse"],
                "masked_error_untrained": was["masked_error"],
                "masked_error": now["masked_error"],
            },
        }
        for each, was, now in zip(prepared, before, after, strict=True)
    ]
    around = sum(value.numel() for value in model.lam.tensors_around().values())
    backbone = sum(parameter.numel() for parameter in model.lam.backbone.parameters())
    return {
        "digest": _digest(spec),
        "name": spec.name,
        "description": spec.description,
        "data": "Sionna channels, each setting's drops drawn from its own seed; noise drawn with each view",
        "objectives": {
            "next_slots": "log NMSE + NMSE / (2 physics alone) of the predicted channel, per link",
            "masked": f"squared error of the standardised features of {spec.masked_share:.0%} of the path "
            f"tokens, hidden but for their place; weight {spec.masked_weight:g}",
            "origin": "a reconstruction: no paper states this mixture, these objectives and their weights",
        },
        "spec": spec_to_dict(spec),
        "parameters": {"backbone": backbone, "embedding_and_heads": around},
        "training": summary.to_dict(),
        "seconds": {
            "drawing": round(sum(each.facts["seconds_drawing"] for each in prepared), 1),
            "tokenising": round(sum(each.facts["seconds_tokenising"] for each in prepared), 1),
            "training": round(summary.seconds, 1),
        },
        "validation": {
            "loss": summary.best_validation_loss,
            "nmse": "geometric mean over the links of a setting",
        },
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
        },
        "versions": software_versions() | {"transformers": version("transformers")},
        "settings": settings,
    }
