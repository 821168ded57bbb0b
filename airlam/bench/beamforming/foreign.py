"""The multi-cell example of Schynol and Pesavento's GCN-WMMSE, from a user's copy of it."""

import math
from pathlib import Path

import numpy as np
import torch

from airlam.datasets.foreign_files import READER_ERRORS
from airlam.errors import DataError
from airlam.radio.beamforming import Cells, multicell_rates_bit_per_s_per_hz, multicell_wmmse

FILE = "gcnwmmse_3bs_9ue.npz"
_FIELDS = ("channels", "users_assign", "users_noise_pow", "bss_pow")


def gcnwmmse_figures(path: Path, num_iterations: int) -> dict[str, float]:
    """Mean sum rate of WMMSE from a maximum ratio start: three base stations, nine users of two antennas.

    The example's own figures are in nat/s/Hz, without saying so: ``gcnwmmse.wmmse_mrc`` is comparable to
    them.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: torch.from_numpy(file[name]) for name in _FIELDS}
    except (*READER_ERRORS, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not GCN-WMMSE's example ({reason}); give the file as published") from None
    cells = Cells(
        h=found["channels"].permute(2, 0, 1, 3, 4),  # [scenario, bs, user, user antenna, bs antenna]
        serving_index=found["users_assign"],
        noise_variance=found["users_noise_pow"],
        station_power=found["bss_pow"],
    )
    w = multicell_wmmse(cells, num_iterations=num_iterations)
    bits = float(multicell_rates_bit_per_s_per_hz(cells, w).sum(-1).mean())
    return {"gcnwmmse.wmmse_mrc": bits * math.log(2), "gcnwmmse.wmmse_mrc_bit_per_s_per_hz": bits}
