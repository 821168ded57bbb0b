r"""The prediction head of path tokens: corrections to Path-EB, put through its closed-form LMMSE layer.

Heads start at zero, so that a fresh head predicts exactly what Path-EB does. For each path the network
corrects the log spectrum and maps the posterior coefficients of the history to a correction of the future;
for each link it scales the noise variance that the filter assumes.
"""

import typing
from collections.abc import Callable

import torch
from einops import rearrange
from torch import nn

from airlam.model.base import Context
from airlam.radio.channel import PredictionSetting
from airlam.radio.paths import DopplerBasis, PathGrid, doppler_basis
from airlam.radio.prediction.path_eb import synthesise
from airlam.radio.prediction.path_spectra import (
    covariance_cholesky,
    dictionary_adjoint,
    dictionary_apply,
    solve_covariance,
)

SPECTRUM_SCALE = 0.5  # of the log-spectrum head's output
CORRECTION_SCALE = 0.1  # of the coefficient head's


class _LmmseWeights(torch.autograd.Function):
    """q = A^H C^-1 y with one Cholesky; the gradient takes one more solve.

    With g = A dL/dq and lambda = C^-1 g: dL/dgamma = -Re(conj(A^H lambda) q) and dL/ds2 = -Re(lambda^H z),
    z = C^-1 y. The observation and the factor are data and get no gradient.
    """

    @staticmethod
    def forward(
        ctx: typing.Any,
        spectrum: torch.Tensor,
        noise_variance: torch.Tensor,
        observation: torch.Tensor,
        factor: torch.Tensor,
        basis: DopplerBasis,
    ) -> torch.Tensor:
        lower = covariance_cholesky(factor, spectrum, noise_variance, basis)
        solved = solve_covariance(lower, observation)
        weights = dictionary_adjoint(factor, solved, basis)
        ctx.save_for_backward(lower, solved, weights, factor)
        ctx.basis = basis
        return weights

    @staticmethod
    def backward(ctx: typing.Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        lower, solved, weights, factor = ctx.saved_tensors
        adjoint = solve_covariance(lower, dictionary_apply(factor, gradients[0], ctx.basis))
        projected = dictionary_adjoint(factor, adjoint, ctx.basis)
        spectrum_gradient = -(projected.conj() * weights).real.sum(1)  # [batch, paths, doppler]
        noise_gradient = -(adjoint.conj() * solved).real.sum((1, 2, 3))  # [batch]
        return spectrum_gradient, noise_gradient, None, None, None


def lmmse_weights(
    spectrum: torch.Tensor,
    noise_variance: torch.Tensor,
    observation: torch.Tensor,
    factor: torch.Tensor,
    basis: DopplerBasis,
) -> torch.Tensor:
    """A^H C^-1 y, differentiable in spectrum and noise: complex [batch, snapshots, paths, doppler].

    spectrum: real [batch, paths, doppler]; noise_variance: real [batch]; observation: complex
    [batch, snapshots, paths, rank]; factor: complex [batch, paths, paths]. Either precision.
    """
    apply = typing.cast(Callable[..., torch.Tensor], _LmmseWeights.apply)
    return apply(spectrum, noise_variance, observation, factor, basis)


class PathHead(nn.Module):
    """Implements ``PredictionHead`` on the context of ``airlam.tokens.path.PathTokenizer``."""

    compression: torch.Tensor
    atoms: torch.Tensor
    future_atoms: torch.Tensor

    def __init__(self, setting: PredictionSetting, width: int) -> None:
        super().__init__()
        basis = doppler_basis(setting)
        self.grid = PathGrid.of(setting)
        self.horizon = setting.num_horizon
        for name in ("compression", "atoms", "future_atoms"):  # constants, which follow the module's device
            self.register_buffer(name, getattr(basis, name), persistent=False)
        self.spectrum = nn.Linear(width, basis.num_doppler + 1)
        self.correction = nn.Linear(width, setting.num_horizon * basis.rank * 2)
        for layer in (self.spectrum, self.correction):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def basis(self) -> DopplerBasis:
        """The setting's Doppler basis on the module's device."""
        return DopplerBasis(compression=self.compression, atoms=self.atoms, future_atoms=self.future_atoms)

    def forward(self, hidden: torch.Tensor, context: Context) -> Context:
        """Posterior path coefficients at the horizon.

        hidden: float [batch, paths, width]. Returns ``coefficients``, complex64 [batch, snapshots, paths,
        horizon], relative to the context's scale.
        """
        with torch.autocast(hidden.device.type, enabled=False):  # the solve needs single precision
            return {"coefficients": self._coefficients(hidden.float(), context)}

    def _coefficients(self, hidden: torch.Tensor, context: Context) -> torch.Tensor:
        mask = context["path_mask"]
        raw = self.spectrum(hidden) * SPECTRUM_SCALE  # [batch, paths, doppler + 1]
        log_spectrum = context["log_spectrum"] + raw[..., :-1].clamp(-8, 6)
        spectrum = log_spectrum.exp() * mask.unsqueeze(-1)  # [batch, paths, doppler]
        votes = (raw[..., -1] * mask).sum(1) / mask.sum(1).clamp_min(1)  # [batch]
        noise_variance = context["noise_variance"] * votes.clamp(-3, 3).exp()
        weights = lmmse_weights(
            spectrum, noise_variance, context["observation"], context["factor"], self.basis
        )
        posterior = spectrum.unsqueeze(1) * weights  # [batch, snapshots, paths, doppler]
        future = posterior @ self.future_atoms.mT  # [batch, snapshots, paths, horizon]
        past = posterior @ self.atoms.mT  # [batch, snapshots, paths, rank]
        matrix = rearrange(self.correction(hidden), "b n (h r c) -> b n h r c", h=self.horizon, c=2)
        matrix = matrix * mask[..., None, None, None] * CORRECTION_SCALE
        correction = torch.view_as_complex(matrix).unsqueeze(1) @ past.unsqueeze(-1)
        coefficients: torch.Tensor = future + correction.squeeze(-1)  # [batch, snapshots, paths, horizon]
        return coefficients

    def channel(self, output: Context, context: Context) -> torch.Tensor:
        """The predicted future from the context of ``tokenise``; shapes as in ``PredictionHead.channel``."""
        return synthesise(
            output["coefficients"],
            context["position"],
            context["residual_future"],
            context["scale"],
            self.grid,
        )

    def squared_error(self, output: Context, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        """Error and target energy of each link, float32 [batch], from the context of ``with_target``."""
        fitted = context["target_factor"].unsqueeze(1) @ output["coefficients"]
        inside = torch.view_as_real(context["target"] - fitted).square().sum((1, 2, 3, 4))  # [batch]
        power = context["scale"].square()
        return (inside + context["target_outside"]) * power, context["target_energy"] * power
