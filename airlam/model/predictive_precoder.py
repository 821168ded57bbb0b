"""Predictor and precoder as one module: from the tokens of users' histories to the beams of the slots ahead.

A LAM predicts the users' channels, the graph precoder makes beams of them and is told how far they may be
wrong, and the gradient of any rate reaches both through the closed-form posterior in the LAM's head. The
predictor's classical front end, tokens and error covariance included, is not tuned. How large errors are,
against what the front end believes, is learned, one level for each step ahead. A reconstruction: the papers
name the chain of channel prediction and beamforming, and no training of it.
"""

from pathlib import Path

import torch
from einops import rearrange, repeat
from torch import nn

from airlam.files import whole_folder
from airlam.model.build import lam_for
from airlam.model.graph_precoder import GraphPrecoder
from airlam.model.lam import LAM, read_model_spec
from airlam.model.precoder_chain import load_precoder, save_precoder
from airlam.model.storage import assign_tensors, read_tensors, write_tensors
from airlam.radio.channel import PredictionSetting
from airlam.tokens.base import TokenBatch
from airlam.tokens.path_error import ERROR_COVARIANCE, POWER

LEVEL_SCALE = 10.0  # of the levels' logarithm over its parameter: it has further to go than other weights
_PREDICTOR, _PRECODER, _LEVELS = "predictor", "precoder", "levels.safetensors"


class PredictivePrecoder(nn.Module):
    """lam: of path tokens. levels: of the error covariance, one a step ahead, 1 at first."""

    def __init__(self, lam: LAM, precoder: GraphPrecoder, setting: PredictionSetting) -> None:
        super().__init__()
        self.lam, self.precoder = lam, precoder
        self.setting = setting
        self.log_level = nn.Parameter(torch.zeros(setting.num_horizon))

    @property
    def levels(self) -> torch.Tensor:
        """What the covariance is multiplied by: float32 [num_horizon]."""
        return (LEVEL_SCALE * self.log_level).exp()

    def predict(self, links: TokenBatch, subcarriers: torch.Tensor) -> torch.Tensor:
        """The first user antenna's future at unit mean power: complex64 [links, horizon, num_bs_ant, f].

        links: tokens of a ``PathErrorTokenizer`` on ``subcarriers``, int64 [f], with their power.
        """
        future = self.lam.head().channel(self.lam(links), links.context)[:, :, 0]
        return future[..., subcarriers] * links.context[POWER].rsqrt()[:, None, None, None]

    def error_covariance(self, links: TokenBatch) -> torch.Tensor:
        """Of these, as ``GraphPrecoder.precode`` takes it: complex64 [links, horizon, f, n, n]."""
        scale = self.levels[:, None] / links.context[POWER][:, None, None]  # [links, horizon, 1]
        ports = links.context[ERROR_COVARIANCE].conj() * scale[..., None, None]
        return whole_array(ports, self.setting.base_station.num_polarizations)

    def forward(
        self, links: TokenBatch, subcarriers: torch.Tensor, noise_variance: torch.Tensor, num_users: int
    ) -> torch.Tensor:
        """W of total power 1: complex64 [batch, horizon, f, num_bs_ant, num_users].

        links: of each sample's users, one after another; noise_variance over the total power: float32
        [batch].
        """
        h = rearrange(self.predict(links, subcarriers), "(b k) t n f -> (b t f) k n", k=num_users)
        errors = rearrange(self.error_covariance(links), "(b k) t f n m -> (b t f) k n m", k=num_users)
        places = (self.setting.num_horizon, len(subcarriers))
        noise = repeat(noise_variance, "b -> (b places)", places=places[0] * places[1])
        w = self.precoder.precode(h, noise, error_covariance=errors)
        return w.view(-1, *places, *w.shape[1:])  # [batch, horizon, f, num_bs_ant, num_users]

    def save(self, folder: Path) -> None:
        """Writes both models and the levels; the folder appears whole or not at all."""
        with whole_folder(folder) as temporary:
            self.lam.save(temporary / _PREDICTOR)
            save_precoder(self.precoder, precoder_folder(temporary))
            write_tensors(temporary / _LEVELS, {"log_level": self.log_level})

    @staticmethod
    def load(folder: Path, setting: PredictionSetting, seed: int) -> "PredictivePrecoder":
        """What ``save`` wrote, ready for use; DataError where the folder holds none, or another setting's.

        seed: from which the LAM's weights were drawn.
        """
        lam = lam_for(read_model_spec(folder / _PREDICTOR), setting, seed)
        lam.load(folder / _PREDICTOR)
        found = PredictivePrecoder(lam, load_precoder(precoder_folder(folder)), setting)
        path = folder / _LEVELS
        assign_tensors({"log_level": found.log_level}, read_tensors(path), str(path))
        return found.eval()


def precoder_folder(folder: Path) -> Path:
    """Where a folder of ``PredictivePrecoder.save`` has the graph precoder."""
    return folder / _PRECODER


def whole_array(ports: torch.Tensor, num_polarizations: int) -> torch.Tensor:
    """Covariance over all ports, polarisations erring alike and independently: complex [..., n, n].

    ports: complex [..., m, m] of one polarisation; n = num_polarizations * m.
    """
    between = torch.eye(num_polarizations, dtype=ports.dtype, device=ports.device)
    spread = between[:, None, :, None] * ports[..., None, :, None, :]  # [..., p, m, p, m]
    return spread.flatten(-4, -3).flatten(-2)  # [..., n, n]
