"""The graph precoder: its size, and the backbone behind it."""

from dataclasses import dataclass

from airlam.specs.model import ModelSpec
from airlam.specs.reading import require


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecoderSpec:
    """A graph network over users; backbone: what its nodes pass as tokens, None for the graph alone."""

    width: int = 16  # of a node
    num_edge_channels: int = 8  # values of the message that a pair of users sends
    num_layers: int = 1  # rounds of messages a stage
    num_stages: int = 2
    backbone: ModelSpec | None = None

    def __post_init__(self) -> None:
        for name in ("width", "num_edge_channels", "num_layers", "num_stages"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
