"""What is known of a downlink with targets, in units of its own, and the numbers of its optimal structure.

Products of rows only, so that the number of antennas and the phases of channels and targets do not matter.
"""

import math
from dataclasses import dataclass, fields

import torch

from airlam.radio.beamforming.power import Scalar, per_link, squared_magnitude

_FLOOR = 1e-7  # of powers
_WHOLE_SHARE = 0.05  # of the most a target can have: one that asks for less counts less
_MOST_SURPLUS = 1e3
_LOGIT, _RAISED = -2.5, -3.0  # at first


@dataclass(frozen=True, slots=True, kw_only=True)
class SensingDownlinks:
    """Products of channels and targets, all with noise, power and responses of norm 1.

    gram, cross, targets: products of users' rows, of users with targets, and of targets, complex64 [batch,
    num_users, num_users], [batch, num_users, num_targets], [batch, num_targets, num_targets]. share: what is
    asked, of the most that one target can have, float32 [batch, num_targets]. beam_heard, beam_seen: what
    users and targets receive of the beam that illuminates all targets best, complex64 [batch, ...,
    num_streams]. surplus: what that beam gives over what is asked, float32 [batch, 1], 1 or more.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    targets: torch.Tensor
    share: torch.Tensor
    beam_heard: torch.Tensor
    beam_seen: torch.Tensor
    surplus: torch.Tensor

    @staticmethod
    def of(
        white: torch.Tensor, towards: torch.Tensor, share: torch.Tensor, beam: torch.Tensor
    ) -> "SensingDownlinks":
        """white, towards, share: see ``normalised``; beam: ``full_power_beam`` of power 1."""
        seen = towards @ beam
        surplus = squared_magnitude(seen).sum(-1) / share.clamp_min(_FLOOR)  # [batch, num_targets]
        least = torch.where(share > 0, surplus, torch.inf).amin(-1, keepdim=True).clamp(1.0, _MOST_SURPLUS)
        return SensingDownlinks(
            gram=white @ white.mH,
            cross=white @ towards.mH,
            targets=towards @ towards.mH,
            share=share,
            beam_heard=white @ beam,
            beam_seen=seen,
            surplus=least,
        )

    def __getitem__(self, rows: torch.Tensor) -> "SensingDownlinks":
        """Those at ``rows``, int64 [n]."""
        return SensingDownlinks(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def to(self, device: torch.device) -> "SensingDownlinks":
        """The same on another device."""
        return SensingDownlinks(
            **{field.name: getattr(self, field.name).to(device) for field in fields(self)}
        )

    @property
    def weight(self) -> torch.Tensor:
        """How much each target counts, 0 where it asks for nothing: float32 [batch, num_targets], up to 1."""
        return self.share.clamp_max(_WHOLE_SHARE) / _WHOLE_SHARE


def normalised(
    h: torch.Tensor,
    targets: torch.Tensor,
    illumination: torch.Tensor,
    noise_variance: torch.Tensor,
    total_power: Scalar = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Users' and targets' rows with noise, power and responses of norm 1, and the shares asked for.

    h: complex [batch, num_users, num_bs_ant]; targets: complex [batch, num_targets, num_bs_ant];
    illumination: float [batch, num_targets]; noise_variance: float [batch].
    """
    noise = per_link(noise_variance, h, "noise_variance")
    size = torch.linalg.vector_norm(targets, dim=-1, keepdim=True)  # [batch, num_targets, 1]
    white = h * (total_power / noise).sqrt()[:, None, None]
    return white, targets / size, illumination / (total_power * size[..., 0].square())


@dataclass(frozen=True, slots=True, kw_only=True)
class SensingNumbers:
    """Of the structure.

    log_dual: float32 [batch, num_users], of shares of sum 1. log_content: of each user's squared factor in
    C, up to one for all, float32 [batch, num_users]. level: of the duals in all, float32 [batch, 1], in (0,
    1]. logit: of mu_t Q_tt, float32 [batch, num_targets], where the search for the mu starts. raised: how
    much more than is asked it aims at, as a logit, float32 [batch, 1]: from nothing to the most that is
    possible.
    """

    log_dual: torch.Tensor
    log_content: torch.Tensor
    level: torch.Tensor
    logit: torch.Tensor
    raised: torch.Tensor

    @staticmethod
    def even(links: SensingDownlinks) -> "SensingNumbers":
        """Of regularised zero forcing, one factor for all streams."""
        level = links.share.new_ones(len(links.share), 1)
        zeros = links.share.new_zeros(links.gram.shape[:-1])
        return SensingNumbers(
            log_dual=zeros - math.log(links.gram.shape[-1]),
            log_content=zeros,
            level=level,
            logit=torch.full_like(links.share, _LOGIT),
            raised=_RAISED * level,
        )
