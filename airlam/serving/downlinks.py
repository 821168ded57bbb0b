"""What a request asks of a precoder."""

from dataclasses import dataclass
from typing import Literal

import torch

from airlam.specs import require

Csi = Literal["perfect", "pilots", "predicted"]
"""What a precoder was trained on: channels, estimates from pilots with their errors, or what the LAM of its
own run predicts, with its errors.
"""
_ROUNDING = 1e-3  # of a covariance's largest entry, by which it may differ from a Hermitian one above zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Downlinks:
    """What one request asks: precoders of some downlinks, by one graph precoder.

    h: complex64 [downlinks, num_users, num_bs_ant], row k user k's channel as known. noise_variance: float32
    [downlinks], of each user's receiver over the total power of 1. error_covariance: complex64 [downlinks,
    num_users, num_ports, num_ports], of what is known of the channels; None where they are certain. Where
    ports are fewer than antennas, errors are independent between groups of so many antennas and alike in
    each, as between polarisations. SpecError for what has no precoder.
    """

    precoder: str
    h: torch.Tensor
    noise_variance: torch.Tensor
    error_covariance: torch.Tensor | None = None

    def __post_init__(self) -> None:
        require(
            self.h.ndim == 3 and self.h.dtype == torch.complex64 and bool(self.h.numel()),
            f"h is {tuple(self.h.shape)} {self.h.dtype}; expected complex64 [downlinks, num_users, "
            "num_bs_ant]",
        )
        require(
            self.noise_variance.shape == (len(self.h),) and self.noise_variance.dtype == torch.float32,
            f"noise_variance is {tuple(self.noise_variance.shape)} {self.noise_variance.dtype}; expected "
            f"float32 [{len(self.h)}]",
        )
        power = self.h.abs().square().sum(dim=-1) / self.noise_variance[:, None]  # [downlinks, num_users]
        sound = bool(power.isfinite().all()) and bool((power > 0).all())
        require(sound, "every user's channel over the noise must be finite and above 0; leave others out")
        if self.error_covariance is not None:
            _check_covariance(self.error_covariance, self.h)

    def __len__(self) -> int:
        return len(self.h)

    @property
    def name(self) -> str:
        """Of whom it asks."""
        return self.precoder

    @property
    def size(self) -> int:
        """Coefficients: of the channels, of their inner products and of the errors."""
        num_errors = 0 if self.error_covariance is None else self.error_covariance.numel()
        return len(self) * num_coefficients(*self.h.shape[1:]) + num_errors

    @property
    def num_error_ports(self) -> int | None:
        """Ports that errors are told of; None where channels are certain."""
        return None if self.error_covariance is None else self.error_covariance.shape[-1]

    def parts(self, max_size: int) -> list["Downlinks"]:
        """The same downlinks as requests that are no larger, where one downlink is not."""
        step = max(1, max_size // (self.size // len(self)))
        errors = self.error_covariance
        return [
            Downlinks(
                precoder=self.precoder,
                h=self.h[start : start + step],
                noise_variance=self.noise_variance[start : start + step],
                error_covariance=None if errors is None else errors[start : start + step],
            )
            for start in range(0, len(self), step)
        ]


def num_coefficients(num_users: int, num_bs_ant: int) -> int:
    """Of a downlink: channels, and the inner products of these."""
    return num_users * (num_bs_ant + num_users)


def _check_covariance(error_covariance: torch.Tensor, h: torch.Tensor) -> None:
    """SpecError where ``h`` can have no such errors; whether it is above zero, its Cholesky factor tells."""
    num_ports = error_covariance.shape[-1] if error_covariance.ndim else 0
    divides = num_ports > 0 and h.shape[-1] % num_ports == 0
    is_square = error_covariance.shape == (*h.shape[:2], num_ports, num_ports)
    require(
        divides and is_square and error_covariance.dtype == torch.complex64,
        f"error_covariance is {tuple(error_covariance.shape)} {error_covariance.dtype}; expected complex64 "
        f"{[*h.shape, h.shape[-1]]}, or with the ports of one polarisation",
    )
    largest = error_covariance.abs().amax()
    skew = (error_covariance - error_covariance.mH).abs().amax()
    power = error_covariance.diagonal(dim1=-2, dim2=-1).real.amin()
    off = _ROUNDING * largest
    sound = bool(largest.isfinite()) and bool(skew <= off) and bool(power >= -off)
    require(sound, "error_covariance must be finite, Hermitian and without a negative variance")
