"""Channel prediction: noisy slots of history in, clean slots of future out.

Here are the samples (noisy views of clean links), the loss, and the LAM as a predictor among predictors.
How predictors are measured against each other is in ``airlam.tasks.comparison``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from einops import rearrange

from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError
from airlam.files import whole_file
from airlam.model.lam import LAM
from airlam.model.storage import read_tensors, write_tensors
from airlam.radio.channel import PredictionSetting
from airlam.radio.inference import without_autograd
from airlam.specs import PredictionSpec
from airlam.tokens.base import CsiTokenizer, TokenBatch
from airlam.training.batches import Samples

CHUNK_SAMPLES = 128  # tokenised and written at a time, so that a killed run loses little
Progress = Callable[[str, int, int, str], None]


def quiet(what: str, done: int, total: int, detail: str = "") -> None:
    """Progress that goes nowhere."""


class LinkSource(Protocol):
    """Clean links of one split, and what they are for; links of one drop stand one after another."""

    setting: PredictionSetting
    links_per_drop: int

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """complex64 [num_indices, num_slots, num_user_ant, num_bs_ant, num_subcarriers] of the whole band."""
        ...

    def speeds_m_per_s(self, indices: np.ndarray) -> torch.Tensor:
        """float32 [num_indices]."""
        ...


class DatasetLinks:
    """The links of one split of a dataset: each user of each drop is one."""

    def __init__(self, dataset: ChannelDataset, split: str, spec: PredictionSpec) -> None:
        self.setting = PredictionSetting.from_dataset(
            dataset.spec, spec.num_history, spec.num_horizon, spec.duplex
        )
        self._dataset, self._split = dataset, split
        self.links_per_drop = dataset.spec.num_users
        if not len(self):
            raise DataError(f"{dataset.spec.name} has no {split} drops; generate it with drops.{split} > 0")

    def __len__(self) -> int:
        return self._dataset.num_drops(self._split) * self.links_per_drop

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """The links at ``indices``; NaN or infinite channels raise DataError."""
        links = self._dataset.batch(self._split, indices // self.links_per_drop).links()
        chosen = links[torch.arange(len(indices)), torch.from_numpy(indices % self.links_per_drop)]
        if not torch.isfinite(torch.view_as_real(chosen)).all():
            raise DataError(
                f"{self._dataset.spec.name}: NaN or infinite channels in split {self._split}; "
                "airlam dataset verify names the shard, airlam generate draws it anew"
            )
        return chosen  # [num_indices, num_slots, num_user_ant, num_bs_ant, num_subcarriers]

    def speeds_m_per_s(self, indices: np.ndarray) -> torch.Tensor:
        """Speeds of the users at ``indices``."""
        speeds = self._dataset.field(self._split, "speed_m_per_s")  # [num_drops, num_users]
        return speeds[
            torch.from_numpy(indices // self.links_per_drop), torch.from_numpy(indices % self.links_per_drop)
        ]


class MixedLinks:
    """Several sources of one setting, one after another."""

    def __init__(self, sources: Sequence[LinkSource]) -> None:
        self.setting = sources[0].setting
        if any(source.setting != self.setting for source in sources):
            raise DataError("the datasets differ in grid, arrays or top speed; mix those that agree")
        self.links_per_drop = sources[0].links_per_drop
        if any(source.links_per_drop != self.links_per_drop for source in sources):
            raise DataError("the datasets differ in users per drop; mix those with the same num_users")
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """The links at ``indices``, each from its source."""
        return self._gather(indices, lambda source, own: source.read(own))

    def speeds_m_per_s(self, indices: np.ndarray) -> torch.Tensor:
        """Speeds of the users at ``indices``."""
        return self._gather(indices, lambda source, own: source.speeds_m_per_s(own))

    def _gather(
        self, indices: np.ndarray, read: Callable[[LinkSource, np.ndarray], torch.Tensor]
    ) -> torch.Tensor:
        owners = np.searchsorted(self._ends, indices, side="right")
        parts, places = [], []
        for owner in np.unique(owners):
            chosen = np.flatnonzero(owners == owner)
            start = self._ends[owner] - len(self._sources[owner])
            parts.append(read(self._sources[owner], indices[chosen] - start))
            places.append(chosen)
        order = np.argsort(np.concatenate(places), kind="stable")
        return torch.cat(parts)[torch.from_numpy(order)]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyLinks:
    """What a predictor is given and what it should have said.

    history: complex64 [batch, num_history, num_user_ant, num_bs_ant, num_history_subcarriers], noisy.
    future: complex64 [batch, num_horizon, ..., num_target_subcarriers], clean.
    noise_variance, snr_db: float32 [batch].
    """

    history: torch.Tensor
    noise_variance: torch.Tensor
    future: torch.Tensor
    snr_db: torch.Tensor

    def __len__(self) -> int:
        return len(self.history)

    def to(self, device: torch.device) -> "NoisyLinks":
        """The same links on another device."""
        return NoisyLinks(
            history=self.history.to(device),
            noise_variance=self.noise_variance.to(device),
            future=self.future.to(device),
            snr_db=self.snr_db.to(device),
        )


def split_links(links: torch.Tensor, setting: PredictionSetting) -> tuple[torch.Tensor, torch.Tensor]:
    """History (on the history's subcarriers) and future (on the target's) of the first slots of clean links.

    links: complex64 [batch, num_slots, num_user_ant, num_bs_ant, num_subcarriers], uplink then downlink.
    """
    num_uplink = len(setting.history_frequencies_hz)
    band = (
        slice(num_uplink, num_uplink + len(setting.target_frequencies_hz))
        if setting.is_fdd
        else slice(num_uplink)
    )
    last = setting.num_history + setting.num_horizon
    return links[:, : setting.num_history, ..., :num_uplink], links[:, setting.num_history : last, ..., band]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyViews:
    """Training samples: sample ``i`` is always the same noisy view of the same link, drawn from (seed, i).

    The SNR is uniform in dB over the spec's range; a window in time and, for TDD, in frequency is drawn where
    the links are longer and wider than the setting. ``augment`` adds the symmetries of ``reflect``.
    """

    source: LinkSource
    spec: PredictionSpec
    num_samples: int
    seed: int
    augment: bool = True
    num_ports: int | None = None  # base station ports a sample keeps, drawn at random; None keeps all

    def __len__(self) -> int:
        return self.num_samples

    def batch(self, indices: torch.Tensor) -> NoisyLinks:
        """The samples at ``indices`` (int64 [n])."""
        generators = [np.random.default_rng([self.seed, int(index)]) for index in indices]
        links = self.source.read(np.array([g.integers(len(self.source)) for g in generators]))
        clean = torch.stack([self._view(link, g) for link, g in zip(links, generators, strict=True)])
        history, future = split_links(clean, self.source.setting)
        power = history.abs().square().mean(dim=(1, 2, 3, 4))  # [n], over all ports
        if self.num_ports is not None:
            ports = np.stack([g.choice(clean.shape[3], self.num_ports, replace=False) for g in generators])
            chosen = torch.from_numpy(ports)[:, None, None, :, None]  # [n, 1, 1, num_ports, 1]
            history, future = (torch.take_along_dim(part, chosen, dim=3) for part in (history, future))
        snr_db = torch.tensor(
            [g.uniform(self.spec.min_snr_db, self.spec.max_snr_db) for g in generators]
        ).float()
        variance = power * 10 ** (-snr_db / 10)  # [n]
        noise = torch.stack([_complex_normal(history.shape[1:], g) for g in generators])
        noisy = history + noise * variance.sqrt().view(-1, 1, 1, 1, 1)
        return NoisyLinks(history=noisy, noise_variance=variance, future=future, snr_db=snr_db)

    def _view(self, link: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """link: [num_slots, num_user_ant, num_bs_ant, num_subcarriers] -> the drawn window of it."""
        setting = self.source.setting
        num_slots = setting.num_history + setting.num_horizon
        start = generator.integers(link.shape[0] - num_slots + 1)
        link = link[start : start + num_slots]
        if not setting.is_fdd:
            num_subcarriers = len(setting.history_frequencies_hz)
            link = (
                link[..., :num_subcarriers] if not self.augment else _band(link, num_subcarriers, generator)
            )
        return reflect(link, setting, generator) if self.augment else link


def _band(link: torch.Tensor, num_subcarriers: int, generator: np.random.Generator) -> torch.Tensor:
    """A window of subcarriers within the uplink or the downlink band, never across a gap between them."""
    bands = [link[..., :num_subcarriers], link[..., num_subcarriers:]]
    bands = [band for band in bands if band.shape[-1] >= num_subcarriers]
    return bands[generator.integers(len(bands))][..., :num_subcarriers]


def _complex_normal(shape: torch.Size, generator: np.random.Generator) -> torch.Tensor:
    """Unit-variance circular Gaussian noise, complex64."""
    parts = torch.from_numpy(generator.standard_normal((*shape, 2), dtype=np.float32)) * 0.5**0.5
    return torch.view_as_complex(parts)


def reflect(link: torch.Tensor, setting: PredictionSetting, generator: np.random.Generator) -> torch.Tensor:
    """A random symmetry of the propagation: each turns a sum of plane waves into another one.

    Conjugating and reversing rows, columns and subcarriers keeps angles and delays and reverses every Doppler
    shift (the user drives backwards); reversing time too restores them. Reversing columns and swapping the
    polarisations mirrors the street. FDD keeps to the mirror, since reversing frequency would swap the bands.

    link: complex64 [num_slots, num_user_ant, num_bs_ant, num_subcarriers]; same shape returned.
    """
    array = setting.base_station
    grid = rearrange(link, "t u (p c r) f -> t u p c r f", c=array.num_cols, r=array.num_rows)
    conjugate, backwards, mirror = generator.random(3) < 0.5
    if conjugate and not setting.is_fdd:
        grid = grid.conj().flip(3, 4, 5)
        grid = grid.flip(0) if backwards else grid
    if mirror:
        grid = grid.flip(2, 3)
    return rearrange(grid.resolve_conj(), "t u p c r f -> t u (p c r) f")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSamples:
    """Tokenised samples, with their targets, in memory; what the training loop draws from."""

    tokens: TokenBatch

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: torch.Tensor) -> TokenBatch:
        """The samples at ``indices`` (int64 [n])."""
        return self.tokens.select(indices)


def tokenise_views(
    tokenizer: CsiTokenizer, views: Samples[NoisyLinks], folder: Path, what: str, on_progress: Progress
) -> TokenSamples:
    """Tokenises every view once, chunk by chunk into ``folder``; chunks that are already there are read."""
    chunks = []
    for start in range(0, len(views), CHUNK_SAMPLES):
        path = folder / f"{start:08d}.safetensors"
        if not path.exists():
            indices = torch.arange(start, min(start + CHUNK_SAMPLES, len(views)))
            with whole_file(path) as temporary:
                write_tensors(temporary, _flatten(_tokenise(tokenizer, views.batch(indices))))
        chunks.append(_unflatten(read_tensors(path)))
        on_progress(what, min(start + CHUNK_SAMPLES, len(views)), len(views), "")
    return TokenSamples(tokens=concatenate(chunks))


def read_tokens(folder: Path) -> TokenSamples:
    """What ``tokenise_views`` left in a folder, when it came to its end."""
    paths = sorted(folder.glob("*.safetensors"))
    return TokenSamples(tokens=concatenate([_unflatten(read_tensors(path)) for path in paths]))


def _tokenise(tokenizer: CsiTokenizer, views: NoisyLinks) -> TokenBatch:
    tokens = tokenizer.tokenise(views.history, views.noise_variance)
    tokens = tokenizer.with_target(tokens, views.future)
    return TokenBatch(
        features=tokens.features, mask=tokens.mask, context={**tokens.context, "snr_db": views.snr_db}
    )


def _flatten(tokens: TokenBatch) -> dict[str, torch.Tensor]:
    named = {"features": tokens.features, "mask": tokens.mask}
    named |= {f"context.{name}": value for name, value in tokens.context.items()}
    return named


def _unflatten(named: dict[str, torch.Tensor]) -> TokenBatch:
    context = {name.removeprefix("context."): value for name, value in named.items() if "." in name}
    return TokenBatch(features=named["features"], mask=named["mask"], context=context)


def concatenate(batches: list[TokenBatch]) -> TokenBatch:
    """One batch of all."""
    return TokenBatch(
        features=torch.cat([batch.features for batch in batches]),
        mask=torch.cat([batch.mask for batch in batches]),
        context={name: torch.cat([batch.context[name] for batch in batches]) for name in batches[0].context},
    )


def nmse_of(lam: LAM, tokens: TokenBatch) -> torch.Tensor:
    """Error energy over target energy of each link, float32 [batch]; the tokens carry their target."""
    head = lam.head()
    error, energy = head.squared_error(lam(tokens), tokens.context)
    return error / energy.clamp_min(torch.finfo(torch.float32).tiny)


def with_reference(lam: LAM, samples: TokenSamples, batch_size: int = 128) -> TokenSamples:
    """Adds ``reference_nmse`` to the context: what the untrained LAM's physics scores at each sample's SNR.

    log NMSE is fitted as a quadratic in the SNR over the samples, so that the loss weighs every SNR alike.
    """
    lam.eval()
    with torch.no_grad():
        scores = [
            nmse_of(lam, samples.batch(torch.arange(start, min(start + batch_size, len(samples)))))
            for start in range(0, len(samples), batch_size)
        ]
    snr_db = samples.tokens.context["snr_db"].double()
    powers = torch.stack([snr_db**0, snr_db, snr_db**2], dim=1)  # [num_samples, 3]
    logs = torch.cat(scores).double().clamp_min(1e-9).log()
    fit = torch.linalg.lstsq(powers, logs[:, None], driver="gelsd").solution
    context = {**samples.tokens.context, "reference_nmse": (powers @ fit)[:, 0].exp().float()}
    return TokenSamples(
        tokens=TokenBatch(features=samples.tokens.features, mask=samples.tokens.mask, context=context)
    )


def prediction_loss(lam: torch.nn.Module, tokens: TokenBatch) -> torch.Tensor:
    """log NMSE + NMSE / (2 reference): the logarithm moves every user, the ratio minds the bad ones.

    float32 [batch]; the weights are the prototype's that was measured, not a paper's.
    """
    assert isinstance(lam, LAM)
    nmse = nmse_of(lam, tokens)
    return torch.log(nmse + 1e-5) + 0.5 * nmse / tokens.context["reference_nmse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LamPredictor:
    """A LAM with its tokeniser, as a predictor; merged: a copy of the LAM that predicts in its place."""

    tokenizer: CsiTokenizer
    lam: LAM
    name: str = "lam"
    merged: LAM | None = None

    @staticmethod
    def of(lam: LAM) -> "LamPredictor":
        """Of a LAM that is trained; one with LoRA takes its memory a second time, for a merged copy."""
        merged = lam.eval().merged() if lam.spec.tuning == "lora" else None
        return LamPredictor(tokenizer=lam.tokenizer, lam=lam, merged=merged)

    @without_autograd
    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``."""
        tokens = self.tokenizer.tokenise(history, noise_variance)
        lam = self.merged or self.lam
        return lam.head().channel(lam(tokens), tokens.context)
