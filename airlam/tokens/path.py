"""CSI to tokens, one per path: Path-EB's statistics of each path, invariant to the phase of the measurement.

A token has the same features in every setting: Doppler spectra are resampled to cycles per history window,
whatever the slots and the top speed, so that one LAM serves all arrays, grids, histories and horizons. What a
phase-blind token leaves out travels in the context to ``airlam.model.path_head``, which puts the network's
corrections into the closed-form prediction. The context also inverts the mapping exactly.
"""

import math

import torch
from einops import rearrange

from airlam.errors import DataError
from airlam.radio.channel import PredictionSetting
from airlam.radio.paths import NUM_ATOMS, DopplerBasis
from airlam.radio.prediction.path_eb import DEFAULT_NUM_PATHS, PathAnalysis, PathEb, normalise
from airlam.tokens.base import TokenBatch

NUM_ITERATIONS, NUM_EXACT = 4, 1  # of Path-EB before the network takes over
MAX_CYCLES = 9.0  # Doppler shift times the history's duration; half a cycle a slot for 18 slots
KNOTS_PER_CYCLE = 4
NUM_KNOTS = round(2 * MAX_CYCLES * KNOTS_PER_CYCLE) + 1
NUM_POSITION_FEATURES = 14
NUM_LEVEL_FEATURES = 9
NUM_SETTING_FEATURES = 8
NUM_FEATURES = 3 * NUM_KNOTS + NUM_ATOMS + NUM_POSITION_FEATURES + NUM_LEVEL_FEATURES + NUM_SETTING_FEATURES


class PathTokenizer:
    """Path tokens of a prediction setting; implements ``CsiTokenizer``.

    Features of a path: log matched-filter spectrum, log spectrum over noise and its last log ratio (each
    ``NUM_KNOTS``, zero beyond the setting's top Doppler shift), the log ratio of each atom's power to what
    the spread lets expect, sines and cosines of its position, the log variance of its estimate, the SNR, and
    the setting's sizes. Context, powers relative to ``scale`` squared:

    - ``scale``, ``noise_variance``: float32 [batch]; ``position``: float64 [batch, paths, 3];
      ``path_mask``: bool [batch, paths]; ``log_spectrum``: float32 [batch, paths, doppler]; ``spread``:
      float32 [batch, paths, 4]; ``projected``: complex64 [batch, paths, 4, snapshots, rank], A^H y;
    - with ``keep_residual``: ``coefficients``, complex64 [batch, paths, 4, snapshots, slots], and
      ``residual_history``, complex64 as the history, which ``reconstruct_history`` adds up;
    - after ``with_target``: ``target``, complex64 [batch, paths, 4, snapshots, horizon], the future on the
      target's atoms, and ``target_energy``, float32 [batch].
    """

    def __init__(
        self,
        setting: PredictionSetting,
        num_paths: int = DEFAULT_NUM_PATHS,
        keep_residual: bool = False,
    ) -> None:
        self.setting = setting
        self.predictor = PathEb(setting, num_paths, NUM_ITERATIONS, NUM_EXACT)
        self.keep_residual = keep_residual
        self.num_features = NUM_FEATURES
        self._to_knots = to_knots(self.predictor.basis)
        self._sizes = setting_features(setting)

    def tokenise(self, history: torch.Tensor, noise_variance: torch.Tensor) -> TokenBatch:
        """Path tokens of a noisy history; shapes as in ``Predictor.predict``."""
        analysis = self.predictor.analyse(history, noise_variance)
        context = {
            "scale": analysis.scale,
            "noise_variance": analysis.noise_variance,
            "position": analysis.position,
            "path_mask": analysis.mask,
            "log_spectrum": analysis.log_spectrum,
            "spread": analysis.spread.contiguous(),
            "projected": analysis.projected,
        }
        if self.keep_residual:
            coefficients = self._past(analysis)
            paths = self._path_history(coefficients, analysis.position)
            context["coefficients"] = coefficients
            context["residual_history"] = normalise(history, noise_variance)[0] - paths
        return TokenBatch(features=self._features(analysis), mask=analysis.mask, context=context)

    def reconstruct_history(self, tokens: TokenBatch) -> torch.Tensor:
        """The noisy history behind tokens made with ``keep_residual``; DataError without."""
        if "residual_history" not in tokens.context:
            raise DataError(
                "the tokens carry no residual_history; make them with PathTokenizer(..., keep_residual=True)"
            )
        paths = self._path_history(tokens.context["coefficients"], tokens.context["position"])
        history = paths + tokens.context["residual_history"]
        return history * tokens.context["scale"][:, None, None, None, None]

    def _past(self, analysis: PathAnalysis) -> torch.Tensor:
        """Posterior mean of the paths' coefficients: complex64 [batch, paths, 4, snapshots, slots]."""
        modes = self.predictor.modes(analysis)
        compressed = modes.coefficients(modes.solve(analysis.projected))
        return compressed @ self.predictor.basis.compression.to(compressed.device).mT

    def _path_history(self, coefficients: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """History of the paths alone: [batch, num_history, num_user_ant, num_bs_ant, num_subcarriers]."""
        grid = self.predictor.grid
        field = grid.history_waves(position).synthesise(coefficients.flatten(3))
        return grid.links(rearrange(field, "b p (s t) -> b p s t", s=coefficients.shape[3]))

    def with_target(self, tokens: TokenBatch, future: torch.Tensor) -> TokenBatch:
        """Adds the clean future on the target's atoms: the error then costs no full-channel work.

        With A_t the target's atoms and T the future, |T - A_t z|^2 = |T|^2 - 2 Re z^H A_t^H T + z^H A_t^H A_t
        z. What only ``reconstruct_history`` reads is left out. Shapes as in ``Predictor.predict``.
        """
        grid, context = self.predictor.grid, tokens.context
        snapshots = grid.snapshots(future) / context["scale"][:, None, None, None]
        waves = grid.target_waves(context["position"])
        target = rearrange(
            waves.project(snapshots.flatten(2)), "b n a (s h) -> b n a s h", h=snapshots.shape[3]
        )
        energy = torch.view_as_real(snapshots).square().sum((1, 2, 3, 4))  # [batch]
        kept = {k: v for k, v in context.items() if k not in ("coefficients", "residual_history")}
        added = {"target": target, "target_energy": energy}
        return TokenBatch(features=tokens.features, mask=tokens.mask, context={**kept, **added})

    def _features(self, analysis: PathAnalysis) -> torch.Tensor:
        """Features of every path, zero where there is none: float32 [batch, paths, features].

        Each kind is shifted and scaled to roughly unit spread.
        """
        log_noise = analysis.noise_variance.log()[:, None, None]  # [batch, 1, 1]
        log_variance = analysis.coefficient_variance.log().unsqueeze(-1) - log_noise  # [batch, paths, 1]
        num_paths = analysis.mask.shape[1]
        spectra = (
            0.3 * analysis.log_matched,
            0.2 * (analysis.log_spectrum - log_noise + 2),
            0.4 * analysis.log_ratio,
        )
        to_knots = self._to_knots.to(log_noise.device)
        features = torch.cat(
            [
                *(spectrum @ to_knots.mT for spectrum in spectra),
                0.4 * analysis.log_spread_ratio,
                _position_features(analysis.position.float()),
                log_variance,
                _snr_features(log_noise).expand(-1, num_paths, -1),
                self._sizes.to(log_noise.device).expand(len(log_noise), num_paths, -1),
            ],
            dim=-1,
        )  # [batch, paths, features]
        return features * analysis.mask.unsqueeze(-1)


def to_knots(basis: DopplerBasis) -> torch.Tensor:
    """Linear interpolation from the basis' Doppler grid to the knots: float32 [knots, doppler].

    Knots are ``KNOTS_PER_CYCLE`` to a cycle per history window, from -MAX_CYCLES on; those beyond the grid by
    more than half a step get nothing.
    """
    cycles = basis.num_history * basis.doppler_cycles_per_slot  # [doppler]
    step = cycles[1] - cycles[0]
    place = (_knots() - cycles[0]) / step  # [knots], in steps of the grid
    inside = (place > -0.5) & (place < len(cycles) - 0.5)
    distance = place.clamp(0, len(cycles) - 1).unsqueeze(1) - torch.arange(len(cycles))
    return ((1 - distance.abs()).clamp_min(0) * inside.unsqueeze(1)).float()


def from_knots(basis: DopplerBasis) -> torch.Tensor:
    """Linear interpolation from the knots to the basis' Doppler grid: float32 [doppler, knots]."""
    cycles = basis.num_history * basis.doppler_cycles_per_slot  # [doppler]
    place = ((cycles + MAX_CYCLES) * KNOTS_PER_CYCLE).clamp(0, NUM_KNOTS - 1)
    return (1 - (place.unsqueeze(1) - torch.arange(NUM_KNOTS)).abs()).clamp_min(0).float()


def _knots() -> torch.Tensor:
    return torch.linspace(-MAX_CYCLES, MAX_CYCLES, NUM_KNOTS, dtype=torch.float64)


def setting_features(setting: PredictionSetting) -> torch.Tensor:
    """What a setting fixes, at roughly unit spread: float32 [NUM_SETTING_FEATURES].

    Sizes of history, array and grid in octaves, the band's Doppler cells, the horizon over the history, the
    snapshots, and whether the future is wanted on another band.
    """
    array = setting.base_station
    cells = 2 * setting.max_doppler_cycles_per_slot * setting.num_history
    octaves = [
        math.log2(setting.num_history) - 4,
        math.log2(len(setting.history_frequencies_hz)) - 5,
        math.log2(array.num_cols) - 2,
        math.log2(array.num_rows) - 2,
        math.log2(setting.num_user_antennas * array.num_polarizations) - 1,
        math.log2(cells + 1) - 2,
    ]
    return torch.tensor(
        [
            *(0.5 * o for o in octaves),
            4 * setting.num_horizon / setting.num_history - 1,
            float(setting.is_fdd),
        ]
    )


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
