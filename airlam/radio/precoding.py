"""Linear multi-user precoders for a downlink, and the rate they give on the channel that is really there.

One base station with ``num_bs_ant`` antennas serves ``num_users`` single-antenna users on one subcarrier:
y = H W x + n, with H [num_users, num_bs_ant] (row k is user k's downlink response, not conjugated), W
[num_bs_ant, num_users] and unit-power streams. The precoder comes from an estimate of H, the rate from H.

Every precoder gives each stream the same power, as Sionna's ``rzf_precoding_matrix`` does: column k of W has
norm sqrt(total_power / num_users), so the total power is met exactly. A user whose estimate is exactly zero
has no direction; it gets a zero column. ``airlam.radio.beamforming`` has those that share power out, too.
"""

import torch

from airlam.errors import SpecError


def maximum_ratio(h: torch.Tensor, total_power: float = 1.0) -> torch.Tensor:
    r"""Maximum ratio transmission: w_k along h_k^H, which maximises the user's own received power.

    h: complex [..., num_users, num_bs_ant]. Returns complex [..., num_bs_ant, num_users].
    Lo, IEEE Trans. Commun. 47 (1999).
    """
    return equal_stream_power(h.mH, total_power)  # [..., num_bs_ant, num_users]


def zero_forcing(h: torch.Tensor, total_power: float = 1.0) -> torch.Tensor:
    r"""Zero forcing: W along H^H (H H^H)^-1, no interference where the estimate is right.

    Solved by the QR of H^H = Q R, W = Q R^-H, which does not square the condition number as H H^H would.
    SpecError where there are more users than antennas: no such W exists.

    h: complex [..., num_users, num_bs_ant]. Returns complex [..., num_bs_ant, num_users].
    Spencer, Swindlehurst, Haardt, IEEE Trans. Signal Process. 52 (2004), sec. II.
    """
    num_users, num_bs_ant = h.shape[-2:]
    if num_users > num_bs_ant:
        raise SpecError(
            f"zero forcing of {num_users} users needs as many antennas, there are {num_bs_ant}; "
            "schedule fewer users or take regularised zero forcing"
        )
    q, r = torch.linalg.qr(h.mH)  # [..., num_bs_ant, num_users], [..., num_users, num_users]
    identity = torch.eye(num_users, dtype=h.dtype, device=h.device)
    inverse = torch.linalg.solve_triangular(r.mH, identity.expand_as(r), upper=False)
    return equal_stream_power(q @ inverse, total_power)  # [..., num_bs_ant, num_users]


def regularized_zero_forcing(
    h: torch.Tensor, noise_variance: torch.Tensor | float, total_power: float = 1.0
) -> torch.Tensor:
    r"""Regularised zero forcing (the MMSE precoder): W along H^H (H H^H + K sigma^2 / P I)^-1.

    K users, noise variance sigma^2, total power P. Without noise it is zero forcing, in much noise maximum
    ratio. Peel, Hochwald, Swindlehurst, IEEE Trans. Commun. 53 (2005), eq. (9) and sec. III-B.

    h: complex [..., num_users, num_bs_ant]. noise_variance: positive, a number or float [...].
    Returns complex [..., num_bs_ant, num_users].
    """
    num_users = h.shape[-2]
    variance = torch.as_tensor(noise_variance, dtype=h.real.dtype, device=h.device)
    regularisation = (num_users * variance / total_power)[..., None, None]  # [..., 1, 1]
    identity = torch.eye(num_users, dtype=h.dtype, device=h.device)
    loaded = h @ h.mH + regularisation * identity  # [..., num_users, num_users]
    # num_users right-hand sides rather than num_bs_ant: several times faster where antennas outnumber users
    inverse = torch.linalg.solve(loaded, identity.expand_as(loaded))  # [..., num_users, num_users]
    return equal_stream_power(h.mH @ inverse, total_power)  # [..., num_bs_ant, num_users]


def effective_channel(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """H W: what each user receives of each stream.

    h: complex [..., num_users, num_bs_ant], w: complex [..., num_bs_ant, num_users].
    Returns complex [..., num_users, num_streams].
    """
    return h @ w


def sinr(h: torch.Tensor, w: torch.Tensor, noise_variance: torch.Tensor | float) -> torch.Tensor:
    r"""Signal to interference and noise of each user: |g_kk|^2 / (sum_{j != k} |g_kj|^2 + sigma^2), G = H W.

    h: complex [..., num_users, num_bs_ant], the true channel; w: complex [..., num_bs_ant, num_users],
    whatever it was computed from; noise_variance: a number or float [...].
    Returns float [..., num_users], linear.
    """
    power = effective_channel(h, w).abs().square()  # [..., num_users, num_streams]
    signal = power.diagonal(dim1=-2, dim2=-1)  # [..., num_users]
    # the interference is summed on its own: subtracting the signal from the total would lose its digits
    own = torch.eye(power.shape[-1], dtype=torch.bool, device=power.device)
    interference = power.masked_fill(own, 0.0).sum(dim=-1)  # [..., num_users]
    variance = torch.as_tensor(noise_variance, dtype=power.dtype, device=power.device)[..., None]
    return signal / (interference + variance)  # [..., num_users]


def sum_rate_bit_per_s_per_hz(
    h: torch.Tensor,
    w: torch.Tensor,
    noise_variance: torch.Tensor | float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over users of a log2(1 + SINR), interference treated as noise; arguments as in ``sinr``.

    weights a: float [..., num_users], 1 where not given. Returns float [...], bit/s/Hz.
    """
    rates = torch.log2(1 + sinr(h, w, noise_variance))  # [..., num_users]
    return (rates if weights is None else weights * rates).sum(dim=-1)  # [...]


def equal_stream_power(w: torch.Tensor, total_power: float) -> torch.Tensor:
    """Columns of w [..., num_bs_ant, num_users] scaled to the same power, ``total_power`` in all."""
    if total_power <= 0:
        raise SpecError(f"total_power must be positive, got {total_power}")
    norm = torch.linalg.vector_norm(w, dim=-2, keepdim=True)  # [..., 1, num_users]
    tiny = torch.finfo(norm.dtype).tiny
    stream_amplitude = (total_power / w.shape[-1]) ** 0.5
    scaled: torch.Tensor = w * (stream_amplitude / norm.clamp_min(tiny))  # [..., num_bs_ant, num_users]
    return scaled
