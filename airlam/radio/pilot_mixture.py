r"""Channel estimation from pilots under a mixture of Gaussians, where one covariance says too little.

Over a cell a user's row h is far from Gaussian: each place has its own directions. A mixture of zero-mean
complex Gaussians, p(h) = sum_c pi_c CN(h^H; 0, C_c), comes as near as one wants, and keeps the conditional
mean in closed form: the LMMSE estimates of the components, weighted by how well each explains the
observation. Koller, Fesl, Turan, Utschick, IEEE Trans. Signal Process. 70 (2022). A reused pilot adds a row
of the other cell's mixture, so the pairs of components are the components of the sum; that is a
reconstruction, after the same paper.

Conventions are those of ``airlam.radio.pilots``: covariances are E h^H h.
"""

from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.errors import DataError, SpecError
from airlam.radio.pilots import row_covariance

_NUM_STEPS = 60
_SETTLED_NATS = 1e-3  # gain of the mean log-likelihood in a step, below which fitting ends
_FLOOR = 1e-3  # of the pooled mean power, added to each covariance: a component may hold few rows
_ROWS_AT_ONCE = 128  # an estimate holds [rows, pairs, num_bs_ant]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowMixture:
    """Zero-mean mixture of c components.

    shares: float64 [c], summing to 1; covariances: complex128 [c, num_bs_ant, num_bs_ant].
    """

    shares: torch.Tensor
    covariances: torch.Tensor

    @staticmethod
    def fit(rows: torch.Tensor, num_components: int, generator: torch.Generator) -> "RowMixture":
        """Expectation maximisation on training channels, complex [..., num_bs_ant].

        The first partition is by which of ``num_components`` random directions a row has most power in.
        """
        if num_components < 1:
            raise SpecError(f"num_components must be at least 1, got {num_components}")
        flat = rows.reshape(-1, rows.shape[-1]).to(torch.complex128)  # [n, num_bs_ant]
        if len(flat) < num_components:
            raise DataError(
                f"{num_components} components need as many channels at least, there are {len(flat)}"
            )
        pooled = row_covariance(flat)
        floor = _FLOOR * pooled.diagonal().real.mean() * torch.eye(len(pooled), dtype=pooled.dtype)
        directions = torch.randn(flat.shape[-1], num_components, dtype=flat.dtype, generator=generator)
        first = (flat @ directions).abs().argmax(-1)  # [n]
        mixture = _maximised(flat, torch.nn.functional.one_hot(first, num_components).double(), floor)
        last = -torch.inf
        for _ in range(_NUM_STEPS):
            joint = mixture.log_joint(flat)  # [n, c]
            likelihood = float(joint.logsumexp(-1).mean())
            if likelihood - last < _SETTLED_NATS:
                break
            last = likelihood
            mixture = _maximised(flat, joint.softmax(-1), floor)
        return mixture

    def log_joint(self, rows: torch.Tensor) -> torch.Tensor:
        """log(pi_c CN(h^H; 0, C_c)) less the constant N log(pi), of rows [n, num_bs_ant]: float64 [n, c]."""
        factor = torch.linalg.cholesky(self.covariances)  # [c, num_bs_ant, num_bs_ant]
        identity = torch.eye(rows.shape[-1], dtype=rows.dtype)
        inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        # the columns L^-1 h^H, transposed; one component after another stays in the cache
        distance = torch.stack([_squared_norm(rows.conj() @ each.mT) for each in inverse], dim=-1)  # [n, c]
        log_determinant = 2.0 * factor.diagonal(dim1=-2, dim2=-1).real.log().sum(-1)  # [c]
        tiny = torch.finfo(torch.float64).tiny
        joint: torch.Tensor = self.shares.clamp_min(tiny).log() - log_determinant - distance  # [n, c]
        return joint

    def plus(self, other: "RowMixture", noise_variance: float) -> "RowMixture":
        """Of the sum of a row of each and white noise: all pairs of components, the other's fastest."""
        shares = torch.outer(self.shares, other.shares).flatten()
        pairs = self.covariances[:, None] + other.covariances  # [c, c', num_bs_ant, num_bs_ant]
        identity = torch.eye(pairs.shape[-1], dtype=pairs.dtype)
        return RowMixture(shares=shares, covariances=pairs.flatten(0, 1) + noise_variance * identity)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureEstimator:
    """The conditional mean of a user's channel; with one component each it is ``LmmseEstimator``."""

    own: RowMixture
    interfering: RowMixture

    @staticmethod
    def fit(
        own: torch.Tensor, interfering: torch.Tensor, num_components: int, generator: torch.Generator
    ) -> "MixtureEstimator":
        """Fits both mixtures to training channels, complex [..., num_bs_ant] each."""
        return MixtureEstimator(
            own=RowMixture.fit(own, num_components, generator),
            interfering=RowMixture.fit(interfering, num_components, generator),
        )

    def estimate(
        self, observed: torch.Tensor, reused: torch.Tensor, noise_variance: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The channels and the covariance of their error given the observation, E e^H e.

        observed: complex [..., num_users, num_bs_ant], from ``least_squares``; reused: bool [..., num_users];
        noise_variance: of the observation, positive.
        Returns complex [..., num_users, num_bs_ant] and complex [..., num_users, num_bs_ant, num_bs_ant].
        """
        if noise_variance <= 0:
            raise SpecError(f"noise_variance must be positive, got {noise_variance}")
        rows = observed.reshape(-1, observed.shape[-1]).to("cpu", torch.complex128)  # [n, num_bs_ant]
        estimate = torch.empty_like(rows)
        error = torch.empty(*rows.shape, rows.shape[-1], dtype=rows.dtype)  # [n, num_bs_ant, num_bs_ant]
        shared = reused.flatten().cpu()
        for who, interfering in ((~shared, _silence(self.own)), (shared, self.interfering)):
            estimate[who], error[who] = self._conditional(rows[who], interfering, noise_variance)
        matrix_shape = (*observed.shape, observed.shape[-1])
        return estimate.reshape(observed.shape).to(observed), error.reshape(matrix_shape).to(observed)

    def _conditional(
        self, rows: torch.Tensor, interfering: RowMixture, noise_variance: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and covariance of own rows, given their sums with interfering ones and noise, ``rows``."""
        seen = self.own.plus(interfering, noise_variance)
        own = self.own.covariances.repeat_interleave(len(interfering.shares), dim=0)  # [pairs, ...]
        filters = torch.linalg.solve(seen.covariances, own)  # [pairs, num_bs_ant, num_bs_ant]
        left = own - own @ filters  # error covariance of each pair
        means, covariances = [rows[:0]], [left[:0]]
        for part in torch.split(rows, _ROWS_AT_ONCE):
            posterior = seen.log_joint(part).softmax(-1)[..., None].to(part.dtype)  # [n, pairs, 1]
            of_pairs = torch.einsum("na,pab->npb", part, filters)
            mean = (posterior * of_pairs).sum(1)  # [n, num_bs_ant]
            spread = (of_pairs - mean[:, None]) * posterior.real.sqrt()  # [n, pairs, num_bs_ant]
            within = rearrange(posterior[..., 0] @ left.flatten(1), "n (a b) -> n a b", a=rows.shape[-1])
            means.append(mean)
            covariances.append(within + spread.mH @ spread)
        return torch.cat(means), torch.cat(covariances)


def _maximised(rows: torch.Tensor, responsibility: torch.Tensor, floor: torch.Tensor) -> RowMixture:
    """The mixture of most likelihood, rows [n, num_bs_ant] belonging to components by [n, c]."""
    count = responsibility.sum(0)  # [c]
    scatter = torch.stack([rows.mH @ (share[:, None] * rows) for share in responsibility.mT])
    covariances = scatter / count.clamp_min(1e-9)[:, None, None] + floor  # [c, num_bs_ant, num_bs_ant]
    return RowMixture(shares=count / len(rows), covariances=covariances)


def _squared_norm(rows: torch.Tensor) -> torch.Tensor:
    """Complex [n, num_bs_ant] to float [n]."""
    return torch.view_as_real(rows).square().sum(dim=(-2, -1))


def _silence(like: RowMixture) -> RowMixture:
    """A sender that sends nothing."""
    return RowMixture(
        shares=torch.ones(1, dtype=torch.float64), covariances=torch.zeros_like(like.covariances[:1])
    )
