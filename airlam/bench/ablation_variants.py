"""The rows of the ablation: LAMs that differ in one thing, and which two of them say what it is worth."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from airlam.bench import trained
from airlam.specs import ModelSpec, TrainingSpec

Tokenizer = Literal["path", "patch"]
SMOLLM2_LAYERS = 6  # of 30: as many as MiniLM has


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large the benchmark is."""

    name: str
    data: trained.Scale  # whose training and test drops are used
    training: TrainingSpec
    num_validation: int  # views
    num_test: int  # of the test drops of each setting
    max_layers: int | None  # of every backbone; None keeps each as it is


FULL = Scale(
    name="full",
    data=trained.FULL,
    training=TrainingSpec(num_steps=600, num_samples=4096, validation_every_steps=100, patience=100),
    num_validation=256,
    num_test=256,
    max_layers=None,
)
QUICK = Scale(
    name="quick",
    data=trained.QUICK,
    training=TrainingSpec(num_steps=3, num_samples=16, batch_size=8, patience=100),
    num_validation=8,
    num_test=16,
    max_layers=1,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One LAM of the table."""

    name: str
    about: str
    model: ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Two variants that differ in one thing: ``name`` is worth the ratio of their errors."""

    name: str
    variant: str
    without: str


CONTRASTS = (
    Contrast(name="own_pretraining", variant="airlam_lora", without="random_own_lora"),
    Contrast(name="text_pretraining", variant="minilm_lora", without="random_minilm_lora"),
    Contrast(name="lora_on_own", variant="airlam_lora", without="airlam_frozen"),
    Contrast(name="lora_on_minilm", variant="minilm_lora", without="minilm_frozen"),
    Contrast(name="training_the_backbone", variant="own_scratch", without="random_own_lora"),
    Contrast(name="attention", variant="own_scratch", without="mlp"),
    Contrast(name="physics", variant="own_scratch", without="no_physics"),
)


def variants(scale: Scale) -> tuple[Variant, ...]:
    """Every trained row of the table; all but the last have path tokens."""

    def variant(name: str, about: str, backbone: str, **changes: Any) -> Variant:
        depths = [depth for depth in (changes.pop("num_layers", None), scale.max_layers) if depth is not None]
        depth = min(depths, default=None)
        changed = replace(
            scale.data.model, backbone=backbone, num_layers=depth, tokenizer="path", tuning="lora"
        )
        return Variant(name=name, about=about, model=replace(changed, **changes))

    smol = f"SmolLM2-135M's first {SMOLLM2_LAYERS} layers"
    return (
        variant(
            "airlam_lora",
            "own backbone, pretrained on channels with embedding and head; frozen, LoRA",
            "airlam",
        ),
        variant("airlam_frozen", "the same without LoRA", "airlam", tuning="head"),
        variant("minilm_lora", "MiniLM, pretrained on text; frozen, LoRA", "minilm"),
        variant("minilm_frozen", "the same without LoRA", "minilm", tuning="head"),
        variant("smollm2_lora", f"{smol}; frozen, LoRA", "smollm2", num_layers=SMOLLM2_LAYERS),
        variant(
            "random_minilm_lora", "MiniLM's shape at random; frozen, LoRA", "minilm", random_weights=True
        ),
        variant("random_own_lora", "the own backbone's shape at random; frozen, LoRA", "small"),
        variant("own_scratch", "the own backbone's shape, all of it trained", "small", tuning="scratch"),
        variant("mlp", "the same less attention: no backbone", "mlp", tuning="scratch"),
        variant(
            "no_physics",
            "the own shape trained on patches of the angle-delay image, which filters and corrects them",
            "small",
            tuning="scratch",
            tokenizer="patch",
        ),
    )
