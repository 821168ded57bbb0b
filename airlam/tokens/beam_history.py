"""Past and expected sweeps, and the user's track, as tokens: what the LAM for beam selection reads."""

from dataclasses import dataclass

import torch

from airlam.radio.beam_selection import BeamHistory, BeamWindows
from airlam.specs import require
from airlam.specs.reading import require_finite
from airlam.tokens.beams import BeamTokenizer
from airlam.tokens.modality import ModalityTokens
from airlam.tokens.position import PositionTokenizer
from airlam.tokens.sensors import SensorTokenizer
from airlam.tokens.track import TrackTokenizer

FLOOR_DB = 12.0  # below the strongest beam of a measured sweep little but side lobes and noise is left
_LEAST_EXPECTED = 1e-3  # a regression may expect less than no power
_NEAREST_M = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamScales:
    """Sizes of a window, and the scales of a site's positions: all that decides its tokens.

    center_m, scale_m: of the training positions' area, horizontal. step_m: about what a user covers in a
    window.
    """

    num_past: int
    num_ahead: int
    num_beams: int
    center_m: tuple[float, float]
    scale_m: tuple[float, float]
    step_m: float

    def __post_init__(self) -> None:
        require_finite(self)
        sizes = (self.num_past - 1, self.num_ahead, self.num_beams, *self.scale_m, self.step_m)
        require(
            min(sizes) > 0,
            f"sizes and scales are {self}; expected num_past of at least 2 and the others above 0",
        )

    @staticmethod
    def of(training: BeamWindows) -> "BeamScales":
        """Those of training windows."""
        history = training.history
        position_m = history.position_m[..., :2].flatten(0, 1)  # [n * num_past, 2]
        low, high = position_m.amin(dim=0), position_m.amax(dim=0)
        center, half = (low + high) / 2, ((high - low) / 2).clamp_min(_NEAREST_M)
        step_m = (history.position_m[:, -1] - history.position_m[:, 0]).norm(dim=-1).mean().item()
        return BeamScales(
            num_past=history.power.shape[1],
            num_ahead=training.num_ahead,
            num_beams=training.num_beams,
            center_m=(center[0].item(), center[1].item()),
            scale_m=(half[0].item(), half[1].item()),
            step_m=max(step_m, _NEAREST_M),
        )

    def tokenizer(self) -> SensorTokenizer:
        """The sensor-to-token mapper of the task.

        A token is a sweep, those ahead as the stack expects them, or the user's track.
        """
        position = PositionTokenizer(
            center_m=(*self.center_m, 0.0),
            scale_m=(*self.scale_m, _NEAREST_M),
            array_height_m=0.0,
            array_yaw_rad=0.0,
        )
        return SensorTokenizer(
            {
                "beams": BeamTokenizer(
                    num_past=self.num_past + self.num_ahead, num_beams=self.num_beams, floor_db=FLOOR_DB
                ),
                "position": TrackTokenizer(position=position, num_past=self.num_past, step_m=self.step_m),
            },
            {"beams": 1.0, "position": 1.0},
        )


def tokenise_history(
    tokenizer: SensorTokenizer, history: BeamHistory, expected: torch.Tensor
) -> dict[str, ModalityTokens]:
    """Tokens of past sweeps, of expected ones, and of the track; expected: float64 [n, num_ahead, beams]."""
    past = history.power / history.power.amax(dim=(1, 2), keepdim=True)
    sweeps = torch.cat([past, expected.clamp_min(_LEAST_EXPECTED)], dim=1).float()
    num_windows = len(history)
    readings: dict[str, torch.Tensor] = {
        "beam_power": sweeps[:, None],
        "gnss_position_m": history.position_m.float()[:, None],
    }
    for stem in ("beam", "gnss"):
        readings[f"{stem}_present"] = torch.ones(num_windows, 1, dtype=torch.bool)
        readings[f"{stem}_age_s"] = torch.zeros(num_windows, 1)
    return tokenizer.tokenise_readings(readings, num_windows, 1)
