"""Beam selection: what a choice is made from, and for how many sweeps."""

from dataclasses import dataclass

from airlam.specs.reading import require


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSelectionSpec:
    """Beams of the next sweeps, from the last ones and the user's measured positions at these."""

    num_past: int = 8  # sweeps
    num_ahead: int = 3  # sweeps

    def __post_init__(self) -> None:
        require(
            self.num_past >= 2 and self.num_ahead >= 1,
            f"num_past and num_ahead are {self.num_past} and {self.num_ahead}; expected >= 2 and >= 1",
        )
