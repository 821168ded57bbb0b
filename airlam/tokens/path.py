"""CSI to tokens, one per path: Path-EB's statistics of each path, invariant to the phase of the measurement.

What a phase-blind token leaves out travels in the context to ``airlam.model.path_head``, which puts the
network's corrections into the closed-form prediction. The context also inverts the mapping exactly.
"""

import math

import torch
from einops import rearrange

from airlam.errors import DataError
from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction.path_eb import DEFAULT_NUM_PATHS, PathAnalysis, PathEb, normalise
from airlam.tokens.base import TokenBatch

NUM_POSITION_FEATURES = 14
NUM_LEVEL_FEATURES = 9
NOT_FOR_THE_ERROR = ("residual_future", "residual_history", "coefficients")  # most of the bytes


class PathTokenizer:
    """Path tokens of a prediction setting; implements ``CsiTokenizer``.

    Features of a path: log matched-filter spectrum, log spectrum over noise and its last log ratio (each
    num_doppler), the normalised covariance of its compressed coefficients (rank^2), sines and cosines of its
    position, the log variance of its estimate, and the SNR. Context, powers relative to ``scale`` squared:

    - ``scale``, ``noise_variance``: float32 [batch]; ``position``: float32 [batch, paths, 3];
      ``path_mask``: bool [batch, paths]; ``log_spectrum``: float32 [batch, paths, doppler];
      ``factor``: complex64 [batch, paths, paths]; ``observation``: complex64 [batch, snapshots, paths, rank];
      ``residual_future``: complex64 [batch, target points, snapshots, horizon];
    - with ``keep_residual``: ``coefficients``, complex64 [batch, snapshots, paths, rank], and
      ``residual_history``, complex64 as the history, which ``reconstruct_history`` adds up;
    - after ``with_target``, instead of the last three: ``target``, complex64 [batch, snapshots, paths,
      horizon], ``target_factor``, complex64 [batch, paths, paths], ``target_outside`` and ``target_energy``,
      float32 [batch].
    """

    def __init__(
        self,
        setting: PredictionSetting,
        num_paths: int = DEFAULT_NUM_PATHS,
        keep_residual: bool = False,
    ) -> None:
        self.setting = setting
        self.predictor = PathEb(setting, num_paths=num_paths)
        self.keep_residual = keep_residual
        basis = self.predictor.basis
        self.num_features = 3 * basis.num_doppler + basis.rank**2 + NUM_POSITION_FEATURES + NUM_LEVEL_FEATURES

    def tokenise(self, history: torch.Tensor, noise_variance: torch.Tensor) -> TokenBatch:
        """Path tokens of a noisy history; shapes as in ``Predictor.predict``."""
        analysis = self.predictor.analyse(history, noise_variance)
        context = {
            "scale": analysis.scale,
            "noise_variance": analysis.noise_variance,
            "position": analysis.position,
            "path_mask": analysis.mask,
            "log_spectrum": analysis.log_spectrum,
            "factor": analysis.factor,
            "observation": analysis.observation,
            "residual_future": analysis.residual_future,
        }
        if self.keep_residual:
            normalised = normalise(history, noise_variance)[0]
            context["coefficients"] = analysis.coefficients
            context["residual_history"] = normalised - self._path_history(
                analysis.coefficients, analysis.position
            )
        return TokenBatch(features=path_features(analysis), mask=analysis.mask, context=context)

    def reconstruct_history(self, tokens: TokenBatch) -> torch.Tensor:
        """The noisy history behind tokens made with ``keep_residual``; DataError without."""
        if "residual_history" not in tokens.context:
            raise DataError(
                "the tokens carry no residual_history; make them with PathTokenizer(..., keep_residual=True)"
            )
        paths = self._path_history(tokens.context["coefficients"], tokens.context["position"])
        history = paths + tokens.context["residual_history"]
        return history * tokens.context["scale"][:, None, None, None, None]

    def _path_history(self, coefficients: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """History of the paths alone: [batch, num_history, num_user_ant, num_bs_ant, num_subcarriers]."""
        basis, grid = self.predictor.basis, self.predictor.grid
        slots = (
            coefficients @ basis.compression.to(coefficients.device).mT
        )  # [batch, snapshots, paths, slots]
        flat = rearrange(slots, "b s n t -> b n (s t)")
        field = grid.history_atoms(position) @ flat  # [batch, points, snapshots * slots]
        return grid.links(rearrange(field, "b m (s t) -> b m s t", t=basis.num_history))

    def with_target(self, tokens: TokenBatch, future: torch.Tensor) -> TokenBatch:
        """Adds the clean future, projected on the target's atoms: the error then costs no full-channel work.

        What only ``channel`` and ``reconstruct_history`` read is left out: a training set stays small.

        With A_t = Q_t R_t the paths' target atoms and T the future less the residual's prediction,
        |T - A_t x|^2 = |Q_t^H T - R_t x|^2 + |T - Q_t Q_t^H T|^2. Shapes as in ``Predictor.predict``.
        """
        grid, context = self.predictor.grid, tokens.context
        snapshots = grid.snapshots(future) / context["scale"][:, None, None, None]
        wanted = (snapshots - context["residual_future"]).flatten(2)  # [batch, points, snapshots * horizon]
        basis, factor = torch.linalg.qr(grid.target_atoms(context["position"]))
        inside = basis.mH @ wanted  # [batch, paths, snapshots * horizon]
        outside = wanted - basis @ inside
        target = rearrange(inside, "b n (s h) -> b s n h", h=snapshots.shape[3])
        added = {
            "target": target,
            "target_factor": factor,
            "target_outside": _energy(outside),
            "target_energy": _energy(snapshots.flatten(2)),
        }
        kept = {name: value for name, value in context.items() if name not in NOT_FOR_THE_ERROR}
        return TokenBatch(features=tokens.features, mask=tokens.mask, context={**kept, **added})


def _energy(field: torch.Tensor) -> torch.Tensor:
    """Sum of |.|^2 over complex [batch, a, b]: float32 [batch]."""
    return torch.view_as_real(field).square().sum((1, 2, 3))


def path_features(analysis: PathAnalysis) -> torch.Tensor:
    """Features of every path, zero where it was dropped: float32 [batch, paths, features].

    Each kind is shifted and scaled to roughly unit spread.
    """
    log_noise = analysis.noise_variance.log()[:, None, None]  # [batch, 1, 1]
    log_variance = analysis.coefficient_variance.log().unsqueeze(-1) - log_noise  # [batch, paths, 1]
    features = torch.cat(
        [
            0.3 * analysis.log_matched,
            0.2 * (analysis.log_spectrum - log_noise + 2),
            0.4 * analysis.log_ratio,
            _covariance_features(analysis.coefficients),
            _position_features(analysis.position),
            log_variance,
            _snr_features(log_noise).expand(-1, analysis.mask.shape[1], -1),
        ],
        dim=-1,
    )  # [batch, paths, features]
    return features * analysis.mask.unsqueeze(-1)


def _covariance_features(coefficients: torch.Tensor) -> torch.Tensor:
    """Upper triangle of each path's covariance over snapshots, at unit trace: [batch, paths, rank^2]."""
    per_path = coefficients.transpose(1, 2)  # [batch, paths, snapshots, rank]
    covariance = per_path.mT @ per_path.conj()  # [batch, paths, rank, rank]
    trace = covariance.diagonal(dim1=-2, dim2=-1).real.sum(-1)[..., None, None]
    covariance = covariance / trace.clamp_min(1e-9)
    rank = covariance.shape[-1]
    with_diagonal = torch.triu_indices(rank, rank, device=covariance.device)
    above = torch.triu_indices(rank, rank, 1, device=covariance.device)
    real = covariance.real[..., with_diagonal[0], with_diagonal[1]]
    imaginary = covariance.imag[..., above[0], above[1]]
    return 2 * torch.cat([real, imaginary], dim=-1)


def _position_features(position: torch.Tensor) -> torch.Tensor:
    """Sines and cosines at octaves, three of delay and two of each angle: [batch, paths, 14]."""
    octaves = [(0, 1), (0, 2), (0, 4), (1, 1), (1, 2), (2, 1), (2, 2)]
    phases = torch.stack([2 * math.pi * scale * position[..., axis] for axis, scale in octaves], dim=-1)
    return torch.cat([phases.sin(), phases.cos()], dim=-1)


def _snr_features(log_noise: torch.Tensor) -> torch.Tensor:
    """The SNR in decades, its square, and sines and cosines of it: [batch, 1, 8]."""
    decades = -log_noise / math.log(10)
    phases = decades * torch.tensor([1.0, 2.0, 4.0], device=decades.device)
    return torch.cat([decades, decades.square() / 3, phases.sin(), phases.cos()], dim=-1)
