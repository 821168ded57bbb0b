r"""The prediction head of path tokens: corrections to Path-EB, put through its closed-form posterior.

Heads start at zero, so that a fresh head predicts exactly what Path-EB does. For each path the network
corrects the log Doppler spectrum and the spread in delay and angle; for each link it scales the noise
variance that the posterior assumes. Its parameters have the same shapes in every setting.
"""

import typing
from collections.abc import Callable

import torch
from torch import nn

from airlam.model.base import Context
from airlam.radio.channel import PredictionSetting
from airlam.radio.parallel import on_all_cores
from airlam.radio.paths import NUM_ATOMS, DopplerBasis, PathGrid, doppler_basis
from airlam.radio.prediction.path_eb import future_coefficients, synthesise
from airlam.radio.prediction.path_posterior import PathModes, links_of_like_noise
from airlam.tokens.path import NUM_KNOTS, from_knots

SPECTRUM_SCALE = 0.5  # of the head's output
NUM_SPREADS = NUM_ATOMS - 1


class _PosteriorWeights(torch.autograd.Function):
    """q = A^H C^-1 y within the modes; the gradient takes one more solve with the same Cholesky factor.

    C = sum rho_na gamma_nd (A_na D_d)(A_na D_d)^H + s2 I. With g = dL/dq and q' = A^H C^-1 A g:
    dL/d(rho_na gamma_nd) = -Re sum_s conj(D_d^H q'_nas) D_d^H q_nas, and dL/ds2 = -Re <g, A^H C^-2 y>. The
    measurement and the atoms are data and get no gradient. Modes that were dropped count as zero, so the
    gradient is exact but for them.
    """

    @staticmethod
    def forward(
        ctx: typing.Any,
        spectrum: torch.Tensor,
        spread: torch.Tensor,
        noise_variance: torch.Tensor,
        projected: torch.Tensor,
        gram: torch.Tensor,
        basis: DopplerBasis,
    ) -> torch.Tensor:
        def solved(links: torch.Tensor) -> tuple[PathModes, torch.Tensor]:
            modes = PathModes.of(gram[links], spectrum[links], spread[links], noise_variance[links], basis)
            return modes, modes.weights(modes.solve(projected[links]))

        groups = list(links_of_like_noise(noise_variance))
        modes, parts = zip(*on_all_cores(solved, groups), strict=True)
        weights = torch.cat(parts)[torch.cat(groups).argsort()]
        ctx.groups, ctx.modes, ctx.basis = groups, modes, basis
        ctx.save_for_backward(spectrum, spread, gram, weights)
        return weights

    @staticmethod
    def backward(ctx: typing.Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        spectrum, spread, gram, weights = ctx.saved_tensors
        gradient = gradients[0]
        seen = (gram @ gradient.flatten(3).flatten(1, 2)).view_as(gradient)
        both = torch.cat([seen, weights], dim=3)  # [batch, paths, 4, 2 * snapshots, rank]
        solved = torch.empty_like(both)
        for links, modes in zip(ctx.groups, ctx.modes, strict=True):
            solved[links] = modes.weights(modes.solve(both[links]))
        adjoint, twice = solved.chunk(2, dim=3)
        atoms = ctx.basis.atoms.to(weights).conj()
        prior = -((adjoint @ atoms).conj() * (weights @ atoms)).real.sum(3)  # [batch, paths, 4, doppler]
        return (
            (spread.unsqueeze(-1) * prior).sum(2),
            (spectrum.unsqueeze(2) * prior).sum(3),
            -(gradient.conj() * twice).real.sum((1, 2, 3, 4)),
            None,
            None,
            None,
        )


def posterior_weights(
    spectrum: torch.Tensor,
    spread: torch.Tensor,
    noise_variance: torch.Tensor,
    projected: torch.Tensor,
    gram: torch.Tensor,
    basis: DopplerBasis,
) -> torch.Tensor:
    """A^H C^-1 y, differentiable in the first three: complex [batch, paths, 4, snapshots, rank].

    Shapes as in ``PathModes.of`` and ``PathModes.solve``; either precision.
    """
    apply = typing.cast(Callable[..., torch.Tensor], _PosteriorWeights.apply)
    return apply(spectrum, spread, noise_variance, projected, gram, basis)


class PathHead(nn.Module):
    """Implements ``PredictionHead`` on the context of ``airlam.tokens.path.PathTokenizer``."""

    compression: torch.Tensor
    atoms: torch.Tensor
    future_atoms: torch.Tensor
    interpolation: torch.Tensor

    def __init__(self, setting: PredictionSetting, width: int) -> None:
        super().__init__()
        basis = doppler_basis(setting)
        self._doppler = basis.doppler_cycles_per_slot
        self.grid = PathGrid.of(setting)
        for name in ("compression", "atoms", "future_atoms"):  # constants, which follow the module's device
            self.register_buffer(name, getattr(basis, name), persistent=False)
        self.register_buffer("interpolation", from_knots(basis), persistent=False)
        self.correction = nn.Linear(width, NUM_KNOTS + NUM_SPREADS + 1)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    @property
    def basis(self) -> DopplerBasis:
        """The setting's Doppler basis on the module's device."""
        return DopplerBasis(
            compression=self.compression,
            atoms=self.atoms,
            future_atoms=self.future_atoms,
            doppler_cycles_per_slot=self._doppler,
        )

    def forward(self, hidden: torch.Tensor, context: Context) -> Context:
        """Posterior path coefficients at the horizon.

        hidden: float [batch, paths, width]. Returns ``coefficients``, complex64 [batch, paths, 4, snapshots,
        horizon], relative to the context's scale.
        """
        with torch.autocast(hidden.device.type, enabled=False):  # the solve needs single precision
            return {"coefficients": self._coefficients(hidden.float(), context)}

    def _coefficients(self, hidden: torch.Tensor, context: Context) -> torch.Tensor:
        mask = context["path_mask"]
        raw = self.correction(hidden) * SPECTRUM_SCALE  # [batch, paths, knots + 4]
        knots, spread, votes = raw.split([NUM_KNOTS, NUM_SPREADS, 1], dim=-1)
        log_spectrum = context["log_spectrum"] + (knots @ self.interpolation.mT).clamp(-8, 6)
        spectrum = log_spectrum.exp() * mask.unsqueeze(-1)  # [batch, paths, doppler]
        ones = torch.ones_like(votes)
        spread = context["spread"] * torch.cat([ones, spread.clamp(-3, 3).exp()], dim=-1)
        vote = (votes[..., 0] * mask).sum(1) / mask.sum(1).clamp_min(1)  # [batch]
        noise_variance = context["noise_variance"] * vote.clamp(-3, 3).exp()
        gram = self.grid.history_waves(context["position"]).gram()
        weights = posterior_weights(spectrum, spread, noise_variance, context["projected"], gram, self.basis)
        return future_coefficients(weights, spectrum, spread, self.atoms, self.future_atoms)

    def channel(self, output: Context, context: Context) -> torch.Tensor:
        """The predicted future from the context of ``tokenise``; shapes as in ``PredictionHead.channel``."""
        return synthesise(output["coefficients"], context["position"], context["scale"], self.grid)

    def squared_error(self, output: Context, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        """Error and target energy of each link, float32 [batch], from the context of ``with_target``."""
        gram = self.grid.target_waves(context["position"]).gram().to(torch.complex128)
        fitted = output["coefficients"].flatten(3).flatten(1, 2).to(torch.complex128)
        target = context["target"].flatten(3).flatten(1, 2)  # [batch, paths * 4, snapshots * horizon]
        added = ((gram @ fitted - 2 * target) * fitted.conj()).real.sum((1, 2))  # [batch]
        power, energy = context["scale"].square(), context["target_energy"]
        return (energy + added).clamp_min(0).float() * power, energy * power
