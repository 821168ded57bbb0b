"""A LAM: tokeniser, backbone, and how it is tuned."""

from dataclasses import dataclass
from typing import Literal

from airlam.specs.reading import require


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The LAM: tokeniser, backbone, how it is tuned."""

    backbone: str = "small"  # small, mlp, airlam, minilm, smollm2, a hub id, a local folder
    tokenizer: Literal["path", "patch"] = "path"
    num_layers: int | None = None  # depth cut; None keeps all
    tuning: Literal["lora", "full", "head", "scratch"] = "lora"
    lora_rank: int = 8
    lora_alpha: float = 16.0
    num_paths: int = 32  # tokens of the path tokeniser
    random_weights: bool = False  # of the named backbone take the shape only

    def __post_init__(self) -> None:
        require(self.lora_rank >= 1, f"lora_rank must be at least 1, got {self.lora_rank}")
        require(self.num_paths >= 1, f"num_paths must be at least 1, got {self.num_paths}")
        require(
            self.num_layers is None or self.num_layers >= 1,
            f"num_layers must be at least 1, got {self.num_layers}",
        )

    @property
    def is_drawn(self) -> bool:
        """Whether the backbone's weights start at random, so that no file has them but the LAM's own."""
        return self.random_weights or self.tuning == "scratch" or self.backbone in ("small", "mlp")
