"""Beamforming: what a precoder is trained and measured on."""

from dataclasses import dataclass, fields
from typing import Literal

from airlam.specs.reading import require, require_finite

_OF_PILOTS = ("pilot_snr_db", "reused_share", "interferer_db")


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamformingSpec:
    """A downlink to some users of one array, at one subcarrier and slot, each user at unit mean power.

    With ``csi = "pilots"`` the base station knows what orthogonal uplink pilots tell it, some of which a user
    of another cell sends, too. With ``csi = "predicted"`` it serves the slots after a noisy history, by what
    a fine-tuned LAM predicts of them; precoder and LAM are then tuned together, through the rate. It is
    measured with the link's ``num_users`` at the link's SNRs.
    """

    min_users: int = 2  # scheduled together, in training
    max_users: int = 8
    min_snr_db: float = 0.0  # total power over noise, in training
    max_snr_db: float = 20.0
    smaller_arrays: bool = True  # in training corners of the array serve, too, where CSI is perfect
    # of WMMSE, before the rate itself is raised; 0: none. Predictor and precoder together imitate nothing
    imitation_steps: int = 200
    start: str | None = None  # a run's folder, whose precoder is tuned on without imitation
    csi: Literal["perfect", "pilots", "predicted"] = "perfect"
    predictor: str | None = None  # a run's folder, whose LAM predicts the channels
    pilot_snr_db: float = 10.0  # of a user's pilot at one antenna
    reused_share: float = 0.0  # of the pilots that a user of another cell sends
    interferer_db: float = -3.0  # that user's power over this cell's own

    def __post_init__(self) -> None:
        require_finite(self)
        require(
            1 <= self.min_users <= self.max_users,
            f"users are {self.min_users} to {self.max_users}; expected 1 <= min <= max",
        )
        require(
            self.min_snr_db <= self.max_snr_db,
            f"SNRs are {self.min_snr_db} to {self.max_snr_db} dB; expected min <= max",
        )
        require(
            self.imitation_steps >= 0, f"imitation_steps must not be negative, got {self.imitation_steps}"
        )
        require(0 <= self.reused_share <= 1, f"reused_share is {self.reused_share}; expected 0 to 1")
        for each in fields(self):
            is_read = self.csi == "pilots" or each.name not in _OF_PILOTS
            require(
                is_read or getattr(self, each.name) == each.default,
                f'{each.name} is of csi = "pilots"; csi is "{self.csi}", so drop it',
            )
        require(
            (self.csi == "predicted") == (self.predictor is not None),
            f'csi is "{self.csi}", predictor {self.predictor!r}; csi = "predicted" and predictor, a run of '
            "channel prediction, go together",
        )
