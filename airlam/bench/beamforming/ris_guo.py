"""The published channels of Guo, Liang, Chen and Larsson's surface, from a user's copy of them.

IEEE Trans. Wireless Commun. 19 (2020), Fig. 4 b, as the authors' repository has it: 100 channels, four users,
four antennas, 100 elements, 0 dBm. From their random start their own curves end, after 100 iterations, at
0.9294 (alternating optimisation) and 0.9351 nat/s/Hz (their Algorithm 2), at 0.5880 with random phases and at
0.5813 without a surface, as weighted sum rates.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from scipy.io import loadmat

from airlam.datasets.foreign_files import READER_ERRORS
from airlam.errors import DataError
from airlam.radio.beamforming import wmmse
from airlam.radio.precoding import sum_rate_bit_per_s_per_hz
from airlam.radio.ris import SurfaceLinks, accelerated, alternating

FILE, NUM_ITERATIONS = "user_channel.mat", 100
_SPREAD = ("Hd_w", "G_sig", "Hr_sig", "theta_init")  # channels last
_PLAIN = ("pd", "ps", "eb1", "eb2", "AP_angle", "IRS_angle", "User_angle", "path_d")


def guo_figures(path: Path, num_iterations: int) -> dict[str, float]:
    """Mean weighted sum rates in nat/s/Hz, as theirs are; both optimisations from their random start."""
    links, start, weights = read_guo(path)
    noise = 1.0  # their gains are over the noise
    rates = {
        "alternating": alternating(links, noise, num_iterations=num_iterations, start=start, weights=weights),
        "accelerated": accelerated(links, noise, num_iterations=num_iterations, start=start, weights=weights),
    }
    found = {name: joint.rates[-1] for name, joint in rates.items()}
    for name, h in (("random_phases", links.effective(start)), ("no_surface", links.direct)):
        w = wmmse(h, noise, num_iterations=num_iterations, weights=weights)
        found[name] = sum_rate_bit_per_s_per_hz(h, w, noise, weights)
    return {f"ris_guo.{name}": float(rate.mean()) * math.log(2) for name, rate in found.items()}


def read_guo(path: Path) -> tuple[SurfaceLinks, torch.Tensor, torch.Tensor]:
    """Links over a noise of variance 1 at a power of 1, complex64; their start; users' weights, of sum 1.

    DataError where the file is another.
    """
    try:
        file = loadmat(path)
        spread = {name: np.moveaxis(file[name], -1, 0) for name in _SPREAD}  # channels first
        plain = {name: file[name] for name in _PLAIN}
        arrays = _links(spread, plain)
    except READER_ERRORS as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} is not the published channels ({reason}); give the file as published"
        ) from None
    links = SurfaceLinks(
        **{name: torch.from_numpy(array).to(torch.complex64) for name, array in arrays.items()}
    )
    start = torch.from_numpy(spread["theta_init"][..., 0].conj()).to(torch.complex64)
    weights = torch.from_numpy(1 / plain["path_d"][0]).float()
    return links, start, (weights / weights.sum()).expand(len(start), -1)


def _links(spread: dict[str, Any], plain: dict[str, Any]) -> dict[str, NDArray[np.complex128]]:
    """Rician links of uniform linear arrays, as their scripts make them of what the file has."""
    direct, scattered = plain["eb1"].item(), plain["eb2"].item()
    num_elements, num_bs_ant = spread["G_sig"].shape[1:]
    arriving = _steering(plain["IRS_angle"].ravel(), num_elements)  # [1, elements]
    leaving = _steering(plain["AP_angle"].ravel(), num_bs_ant)  # [1, antennas]
    users = _steering(plain["User_angle"].ravel(), num_elements)  # [users, elements]
    return {
        "direct": plain["pd"] * spread["Hd_w"],
        "surface_users": plain["ps"] * (direct * users.conj() + scattered * spread["Hr_sig"]),
        "base_surface": direct * rearrange(arriving, "1 n -> n 1") * leaving.conj()
        + scattered * spread["G_sig"],
    }


def _steering(angles: NDArray[np.float64], num_elements: int) -> NDArray[np.complex128]:
    """exp(i pi n sin(angle)): complex128 [angles, num_elements]."""
    steering: NDArray[np.complex128] = np.exp(1j * np.pi * np.sin(angles)[:, None] * np.arange(num_elements))
    return steering
