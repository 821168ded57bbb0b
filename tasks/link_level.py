"""The gain on the link: a coded multi-user OFDM downlink through Sionna's PHY, precoded from imperfect CSI.

What is simulated, once per method, on the same channels, users, bits and noise:

* a base station serves ``num_users`` users on the same band, one stream and one antenna each, with a
  precoder per subcarrier computed from the method's CSI: regularised zero forcing with equal power per
  stream, or what the caller gives. The total transmit power is 1, ``snr_db`` is that power over the noise of
  one subcarrier, and every user's true channel is scaled to unit mean power (power control; the estimate
  takes the same factor);
* a slot is 14 OFDM symbols on a Sionna resource grid, 2 of them DMRS; the channel holds over a slot, and
  the dataset's subcarriers are the grid's. Each user has its own LDPC codeword(s) in each slot, 5G rate
  matching, Gray QAM;
* each receiver knows its own precoded channel and the interfering ones (as precoded DMRS of all streams
  teach it), so Sionna's LMMSE equaliser takes residual interference as noise of its true variance. With
  ``receiver="dmrs"`` it estimates them instead: least squares on comb DMRS, linear interpolation.

SNRs where the block error rate meets ``TARGET_BLER`` are found by bisection on the same bits and noise. The
decoder runs up to 12 iterations of Sionna's boxplus and stops early on an ideal CRC.

Not simulated: scheduling, HARQ, link adaptation, cyclic prefix, delay of the CSI beyond what the estimates
themselves carry.
"""

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from sionna.phy import config as sionna_config
from sionna.phy.channel import ApplyOFDMChannel
from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
from sionna.phy.mapping import BinarySource, Demapper, Mapper
from sionna.phy.mimo import StreamManagement
from sionna.phy.ofdm import (
    LMMSEEqualizer,
    LSChannelEstimator,
    PilotPattern,
    ResourceGrid,
    ResourceGridMapper,
)

from airlam.errors import DataError, SpecError
from airlam.radio.metrics import mean_interval
from airlam.radio.precoding import effective_channel, regularized_zero_forcing, sum_rate_bit_per_s_per_hz
from airlam.results import TARGET_BLER, GainRow, LinkRow
from airlam.specs import LinkSpec, spec_to_dict
from airlam.units import db_to_linear

Point = dict[str, np.ndarray]  # metric -> float64 [num_groups]
Precode = Callable[[torch.Tensor, float, slice], torch.Tensor]
"""What the base station believes of some groups' channels, complex64 [num_groups, num_slots, num_subcarriers,
num_users, num_bs_ant], each user scaled to unit mean power; noise variance; which groups these are. Gives W
of total power 1, complex64 [num_groups, num_slots, num_subcarriers, num_bs_ant, num_users].
"""
METRICS = ("sum_rate_bit_per_s_per_hz", "ber", "bler", "throughput_bit_per_s_per_hz")

_NUM_OFDM_SYMBOLS = 14
_DMRS_SYMBOLS = (2, 11)
_MAX_BLOCK_BITS = 8448  # largest information block of 5G LDPC (TS 38.212, 5.2.2, base graph 1)
_DECODER_STAGES = (4, 4, 4)  # belief propagation iterations; decoded blocks leave between the stages
_CPU_DECODER_BATCH = 32  # keeps the messages of a slot's codewords in a core's cache
_NUM_BISECTIONS = 2  # of the SNR grid's interval in which a method's BLER meets its target


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkResult:
    """What every method reached on every group of users.

    values: metric -> float64 [num_methods, num_snrs, num_groups], each the group's mean over its users, slots
    and subcarriers (rates are summed over users). Metrics are ``METRICS``: sum rate from the SINR of all
    subcarriers (no overhead), bit and block error rate after decoding, and delivered information bits per
    resource element (DMRS overhead included).
    snr_db_at_target_bler: where each method's mean BLER falls to ``TARGET_BLER``, found by bisection; None
    where it does not do so between the lowest and the highest SNR. If it does so often, the last time counts.
    """

    methods: tuple[str, ...]
    snr_db: tuple[float, ...]
    values: dict[str, np.ndarray]
    snr_db_at_target_bler: dict[str, float | None]
    settings: dict[str, Any]

    @property
    def num_groups(self) -> int:
        """Groups of users simulated."""
        return int(self.values["bler"].shape[-1])

    def rows(self) -> list[LinkRow]:
        """Means over groups with 95 % bootstrap intervals, for every method, SNR and metric."""
        return [
            LinkRow(method=method, snr_db=snr_db, metric=metric, **_interval(self.values[metric][m, s]))
            for metric in METRICS
            for m, method in enumerate(self.methods)
            for s, snr_db in enumerate(self.snr_db)
        ]

    def mean(self, method: str, metric: str) -> np.ndarray:
        """Mean over groups at each SNR, float64 [num_snrs]."""
        return np.asarray(self.values[metric][self._index(method)].mean(axis=-1))

    def gain_rows(self, method: str, reference: str) -> list[GainRow]:
        """``method`` minus ``reference``, group by group: the paired difference and its interval."""
        m, r = self._index(method), self._index(reference)
        return [
            GainRow(
                method=method,
                reference=reference,
                snr_db=snr_db,
                metric=metric,
                **_interval(self.values[metric][m, s] - self.values[metric][r, s]),
            )
            for metric in METRICS
            for s, snr_db in enumerate(self.snr_db)
        ]

    def _index(self, method: str) -> int:
        if method not in self.methods:
            raise SpecError(f"no method {method!r} in this result; it has {', '.join(self.methods)}")
        return self.methods.index(method)


def group_users(links: torch.Tensor, num_users: int, seed: int, users_per_drop: int = 1) -> torch.Tensor:
    """Groups of users that share a band, the same for every tensor grouped with the same seed.

    links: complex64 [num_links, num_slots, num_user_ant, num_bs_ant, num_subcarriers], row by row the users
    of one drop after another. With ``users_per_drop = 1`` a group is ``num_users`` drops taken at random
    without replacement: users of the same cell, drawn independently (their large-scale fading is not
    correlated as a common drop would make it). With more, a group is the first users of a true drop.
    Links beyond the last full group are left out. Only the user's first antenna is used.

    Returns complex64 [num_groups, num_users, num_slots, num_bs_ant, num_subcarriers].
    """
    first_antenna = links[:, :, 0]  # [num_links, num_slots, num_bs_ant, num_subcarriers]
    if users_per_drop > 1:
        if users_per_drop < num_users or len(links) % users_per_drop:
            raise SpecError(
                f"{len(links)} links in drops of {users_per_drop} users cannot form groups of {num_users}; "
                f"set num_users to at most {users_per_drop}"
            )
        drops = rearrange(first_antenna, "(d u) t m f -> d u t m f", u=users_per_drop)
        return drops[:, :num_users]  # [num_drops, num_users, num_slots, num_bs_ant, num_subcarriers]
    num_groups = len(links) // num_users
    if num_groups == 0:
        raise SpecError(f"{num_users} users cannot share a band out of {len(links)} links; lower num_users")
    order = torch.randperm(len(links), generator=torch.Generator().manual_seed(seed))
    chosen = order[: num_groups * num_users].to(links.device)
    return rearrange(first_antenna[chosen], "(g k) t m f -> g k t m f", k=num_users)


def check_link(spec: LinkSpec, num_links: int, users_per_drop: int, num_subcarriers: int) -> None:
    """SpecError now for what ``group_users`` and ``evaluate_link`` would refuse after long work."""
    group_users(torch.empty(num_links, 0, 1, 0, 0), spec.num_users, 0, users_per_drop)
    if spec.num_users > num_subcarriers:
        raise SpecError(
            f"{spec.num_users} users need as many subcarriers for DMRS, there are {num_subcarriers}"
        )
    _block_sizes(spec, (_NUM_OFDM_SYMBOLS - len(_DMRS_SYMBOLS)) * num_subcarriers)


def evaluate_link(
    true: torch.Tensor,
    estimates: dict[str, torch.Tensor],
    spec: LinkSpec,
    seed: int = 1,
    on_progress: Callable[[float], None] | None = None,
    groups_per_chunk: int = 16,
    precoders: Mapping[str, Precode] | None = None,
) -> LinkResult:
    """Simulates the downlink of the module's head with each method's CSI.

    true and each estimate: complex64 [num_groups, num_users, num_slots, num_bs_ant, num_subcarriers], the
    channel in which the slots are sent and what the base station believes it to be; for the bound pass
    ``true`` itself as an estimate. precoders: of methods that have one of their own in the place of
    regularised zero forcing. At most ``spec.num_drops`` groups are used. ``on_progress`` takes the share
    done. Memory grows with ``groups_per_chunk``; results do not depend on it, nor on which other
    methods run beside one. Sionna's random state is left as it was.

    DataError for NaN or mismatched channels, SpecError for settings that no code fits.
    """
    _check_channels(true, estimates, spec)
    true = true[: spec.num_drops]
    num_groups, _, num_slots, _, num_subcarriers = true.shape
    power = true.abs().square().mean(dim=(2, 3, 4), keepdim=True)  # [num_groups, num_users, 1, 1, 1]
    amplitude = power.sqrt()
    h = _per_subcarrier(true / amplitude)  # [num_groups, num_slots, num_subcarriers, num_users, num_bs_ant]
    phy = _Downlink(spec, num_subcarriers, _sionna_device(true.device))
    chunks = phy.draw(num_groups, num_slots, seed).split(groups_per_chunk)

    def simulate(believed: torch.Tensor, precode: Precode, snr_db: float) -> Point:
        """Every metric of every group at one SNR."""
        noise_variance = db_to_linear(-snr_db)
        parts = [
            phy.run(h[rows], precode(believed[rows], noise_variance, rows), noise_variance, own_draws)
            for rows, own_draws in chunks
        ]
        return {metric: np.concatenate([part[metric] for part in parts]) for metric in METRICS}

    curves: list[list[Point]] = []
    thresholds: dict[str, float | None] = {}
    for index, (method, estimate) in enumerate(estimates.items()):
        believed = _per_subcarrier(estimate[:num_groups] / amplitude)
        precode = (precoders or {}).get(method, _zero_forcing)
        curve = []
        for snr_index, snr_db in enumerate(spec.snr_db):
            curve.append(simulate(believed, precode, snr_db))
            if on_progress is not None:
                on_progress((index + (snr_index + 1) / len(spec.snr_db)) / len(estimates))
        curves.append(curve)
        thresholds[method] = _snr_db_at_target(spec.snr_db, curve, partial(simulate, believed, precode))
    values = {
        metric: np.array([[point[metric] for point in curve] for curve in curves]) for metric in METRICS
    }
    return LinkResult(
        methods=tuple(estimates),
        snr_db=spec.snr_db,
        values=values,
        snr_db_at_target_bler=thresholds,
        settings=spec_to_dict(spec)
        | {"seed": seed, "num_groups": num_groups}
        | phy.settings(h, precoders or ()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draws:
    """Bits and noise of some groups: common to all methods and SNRs.

    bits: float32 [batch, 1, num_users, num_blocks, num_information_bits], batch = (group slot).
    grid: complex64 [batch, 1, num_users, num_ofdm_symbols, num_subcarriers], these bits as sent.
    noise: complex64 [batch, num_users, 1, num_ofdm_symbols, num_subcarriers], unit variance.
    """

    bits: torch.Tensor
    grid: torch.Tensor
    noise: torch.Tensor
    num_slots: int

    def split(self, num_groups: int) -> list[tuple[slice, "_Draws"]]:
        """Chunks of ``num_groups`` groups: which groups, and what belongs to them."""
        chunks = []
        for start in range(0, len(self.bits) // self.num_slots, num_groups):
            rows = slice(start * self.num_slots, (start + num_groups) * self.num_slots)
            part = _Draws(
                bits=self.bits[rows], grid=self.grid[rows], noise=self.noise[rows], num_slots=self.num_slots
            )
            chunks.append((slice(start, start + num_groups), part))
        return chunks


class _Downlink:
    """Sionna's blocks for one grid, code and modulation."""

    def __init__(self, spec: LinkSpec, num_subcarriers: int, device: str) -> None:
        self.device = device
        self.receiver = spec.receiver
        self.num_users = spec.num_users
        self.num_subcarriers = num_subcarriers
        num_symbols = (_NUM_OFDM_SYMBOLS - len(_DMRS_SYMBOLS)) * num_subcarriers
        self.num_blocks, self.num_information_bits = _block_sizes(spec, num_symbols)
        self.num_coded_bits = num_symbols // self.num_blocks * spec.num_bits_per_symbol
        grid = ResourceGrid(
            num_ofdm_symbols=_NUM_OFDM_SYMBOLS,
            fft_size=num_subcarriers,
            subcarrier_spacing=30e3,  # only the time-domain blocks, unused here, read it
            num_tx=1,
            num_streams_per_tx=spec.num_users,
            pilot_pattern=_comb_dmrs(spec.num_users, num_subcarriers, device),
            device=device,
        )
        self.source = BinarySource(device=device)
        self.encoder = LDPC5GEncoder(
            self.num_information_bits,
            self.num_coded_bits,
            num_bits_per_symbol=spec.num_bits_per_symbol,
            device=device,
        )
        self.decoder = LDPC5GDecoder(
            self.encoder, cn_update="boxplus", hard_out=True, return_state=True, device=device
        )
        modulation = "pam" if spec.num_bits_per_symbol == 1 else "qam"
        self.mapper = Mapper(modulation, spec.num_bits_per_symbol, device=device)
        self.demapper = Demapper("app", modulation, spec.num_bits_per_symbol, device=device)
        self.grid_mapper = ResourceGridMapper(grid, device=device)
        self.channel = ApplyOFDMChannel(device=device)
        self.estimator = LSChannelEstimator(grid, interpolation_type="lin_time_avg", device=device)
        # every user sees all streams of the one transmitter; stream k is user k's, the others interfere
        streams = StreamManagement(np.ones((spec.num_users, 1)), spec.num_users)
        self.equalizer = LMMSEEqualizer(grid, streams, device=device)

    def settings(self, h: torch.Tensor, precoders: Collection[str]) -> dict[str, Any]:
        """What was simulated on channels h (as in ``run``), for the record; who had a precoder of its own."""
        num_groups, num_slots, num_subcarriers, num_users, num_bs_ant = h.shape
        return {
            "precoder": "regularised zero forcing per subcarrier, equal power per stream"
            + (f"; of {', '.join(sorted(precoders))} their own" if precoders else ""),
            "num_slots": num_slots,
            "num_subcarriers": num_subcarriers,
            "num_bs_ant": num_bs_ant,
            "block_information_bits": self.num_information_bits,
            "block_coded_bits": self.num_coded_bits,
            "num_blocks_per_point": num_groups * num_slots * num_users * self.num_blocks,
            "decoder_iterations": sum(_DECODER_STAGES),
        }

    def draw(self, num_groups: int, num_slots: int, seed: int) -> _Draws:
        """What is sent and what noise is added in each group, from Sionna's source seeded per group."""
        bits, noise = [], []
        shape = (num_slots, 1, self.num_users, self.num_blocks, self.num_information_bits)
        noise_shape = (num_slots, self.num_users, 1, _NUM_OFDM_SYMBOLS, self.num_subcarriers)
        for group in range(num_groups):
            with _seeded_sionna(self.device, seed, group) as generator:
                bits.append(self.source(shape))
                noise.append(
                    torch.randn(noise_shape, dtype=torch.complex64, device=self.device, generator=generator)
                )
        sent = torch.cat(bits)  # [batch, 1, num_users, num_blocks, num_information_bits]
        coded = rearrange(self.encoder(sent), "b 1 k c n -> b 1 k (c n)")
        grid = self.grid_mapper(self.mapper(coded))  # [batch, 1, num_users, num_ofdm_symbols, f]
        return _Draws(bits=sent, grid=grid, noise=torch.cat(noise), num_slots=num_slots)

    def run(self, h: torch.Tensor, w: torch.Tensor, noise_variance: float, draws: _Draws) -> Point:
        """Each metric of each group.

        h: complex64 [num_groups, num_slots, num_subcarriers, num_users, num_bs_ant]; w: complex64, the same
        with the last two axes exchanged.
        """
        num_groups, num_slots = h.shape[:2]
        rate = sum_rate_bit_per_s_per_hz(h, w, noise_variance)  # [g, t, f]
        received = self._receive(effective_channel(h, w), noise_variance, draws)
        wrong = received != draws.bits.flatten(end_dim=-2)  # [blocks, num_information_bits]
        wrong = rearrange(wrong, "(g rest) n -> g rest n", g=num_groups)
        block_wrong = wrong.any(dim=-1)  # [g, blocks of the group]
        delivered_bits = (~block_wrong).sum(dim=-1) * self.num_information_bits  # [g]
        num_elements = num_slots * _NUM_OFDM_SYMBOLS * self.num_subcarriers
        figures = {
            "sum_rate_bit_per_s_per_hz": rate.mean(dim=(1, 2)),
            "ber": wrong.double().mean(dim=(1, 2)),
            "bler": block_wrong.double().mean(dim=1),
            "throughput_bit_per_s_per_hz": delivered_bits / num_elements,
        }
        return {metric: figure.double().cpu().numpy() for metric, figure in figures.items()}

    def _receive(self, effective: torch.Tensor, noise_variance: float, draws: _Draws) -> torch.Tensor:
        """Decoded bits, float32 [blocks, num_information_bits], blocks in the order of ``draws.bits``.

        effective: complex64 [num_groups, num_slots, num_subcarriers, num_users, num_streams].
        """
        h_freq = repeat(effective, "g t f k s -> (g t) k 1 1 s symbols f", symbols=_NUM_OFDM_SYMBOLS)
        no = torch.tensor(noise_variance, device=self.device)
        y = self.channel(draws.grid, h_freq) + draws.noise * no.sqrt()  # [b, num_users, 1, symbols, f]
        if self.receiver == "perfect":
            h_hat, error_variance = h_freq, torch.zeros((), device=self.device)
        else:
            h_hat, error_variance = self.estimator(y, no)
        x_hat, no_eff = self.equalizer(y, h_hat, error_variance, no)  # [b, 1, num_users, data symbols]
        llr = self.demapper(x_hat, no_eff)  # [b, 1, num_users, num_blocks num_coded_bits]
        blocks = rearrange(llr, "b 1 k (c n) -> (b k c) n", c=self.num_blocks)
        return self._decode(blocks, draws.bits.flatten(end_dim=-2))

    def _decode(self, llr: torch.Tensor, sent: torch.Tensor) -> torch.Tensor:
        """Belief propagation, all iterations for blocks that have a chance, in batches fit for the device.

        Blocks whose LLRs carry less information than the code rate are lost to any decoder: they get one
        iteration, which only their bit error rate shows.
        llr: float32 [blocks, num_coded_bits], sent: float32 [blocks, num_information_bits], as returned.
        """
        decodable = _information(llr) >= self.num_information_bits / self.num_coded_bits  # [blocks]
        bits = torch.empty_like(sent)
        for kept, stages in ((decodable, _DECODER_STAGES), (~decodable, (1,))):
            rows = kept.nonzero().flatten()
            batch_size = _CPU_DECODER_BATCH if llr.device.type == "cpu" else max(len(rows), 1)
            for batch in torch.split(rows, batch_size) if len(rows) else ():
                bits[batch] = self._decode_batch(llr[batch], sent[batch], stages)
        return bits

    def _decode_batch(self, llr: torch.Tensor, sent: torch.Tensor, stages: tuple[int, ...]) -> torch.Tensor:
        """Iterations in stages; blocks leave between these once they are right (an ideal CRC tells)."""
        bits, state = self.decoder(llr, num_iter=stages[0])
        rows = torch.arange(len(llr), device=llr.device)  # of the blocks that ``state`` belongs to
        for num_iterations in stages[1:]:
            wrong = (bits[rows] != sent[rows]).any(dim=-1)
            rows, state = rows[wrong], state[wrong]
            if len(rows) == 0:
                break
            bits[rows], state = self.decoder(llr[rows], num_iter=num_iterations, msg_v2c=state)
        decoded: torch.Tensor = bits
        return decoded


def _snr_db_at_target(
    snr_db: tuple[float, ...], curve: list[Point], simulate: Callable[[float], Point]
) -> float | None:
    """The SNR at which the mean BLER falls to ``TARGET_BLER``; None where the grid does not bracket it."""
    order = np.argsort(snr_db)
    grid = [(snr_db[i], float(curve[i]["bler"].mean())) for i in order]
    brackets = [pair for pair in pairwise(grid) if pair[0][1] > TARGET_BLER >= pair[1][1]]
    if not brackets or grid[-1][1] > TARGET_BLER:
        return None
    (low_db, low_bler), (high_db, high_bler) = brackets[-1]
    for _ in range(_NUM_BISECTIONS):
        middle_db = (low_db + high_db) / 2
        bler = float(simulate(middle_db)["bler"].mean())
        if bler > TARGET_BLER:
            low_db, low_bler = middle_db, bler
        else:
            high_db, high_bler = middle_db, bler
    share = (low_bler - TARGET_BLER) / (low_bler - high_bler)
    return float(low_db + share * (high_db - low_db))


def _information(llr: torch.Tensor) -> torch.Tensor:
    """Mean information of a block's bits, 1 - H2(1 / (1 + e^|llr|)); llr float [blocks, n] -> [blocks]."""
    p = torch.sigmoid(-llr.abs())  # probability that the harder decision is wrong
    entropy = torch.special.entr(p) + torch.special.entr(1 - p)  # nats
    information: torch.Tensor = 1 - entropy.mean(dim=-1) / math.log(2)
    return information


def _block_sizes(spec: LinkSpec, num_symbols: int) -> tuple[int, int]:
    """Codewords per user and slot (as few as the code's largest block allows) and their information bits."""
    for num_blocks in (n for n in range(1, num_symbols + 1) if num_symbols % n == 0):
        coded_bits = num_symbols // num_blocks * spec.num_bits_per_symbol
        information_bits = round(spec.coderate * coded_bits)
        if information_bits <= _MAX_BLOCK_BITS and coded_bits <= 3 * _MAX_BLOCK_BITS:
            break
    if information_bits < 12:
        raise SpecError(
            f"a slot of {num_symbols} symbols at coderate {spec.coderate} holds {information_bits} bits, "
            "5G LDPC needs 12; take more subcarriers or num_bits_per_symbol"
        )
    return num_blocks, information_bits


def _comb_dmrs(num_users: int, num_subcarriers: int, device: str) -> PilotPattern:
    """Comb DMRS: stream k sends on every num_users-th subcarrier from k, boosted to unit mean energy.

    In the second DMRS symbol the comb moves by half its spacing, so that averaging both fills its gaps.
    """
    mask = np.zeros((1, num_users, _NUM_OFDM_SYMBOLS, num_subcarriers))
    mask[:, :, _DMRS_SYMBOLS] = 1
    user = np.arange(num_users)[:, None, None]
    shift = (np.arange(len(_DMRS_SYMBOLS)) * (num_users // len(_DMRS_SYMBOLS)))[:, None]
    sends = (np.arange(num_subcarriers) - user - shift) % num_users == 0  # [user, dmrs symbol, subcarrier]
    pilots = rearrange(sends, "k s f -> 1 k (s f)").astype(np.complex64)
    return PilotPattern(mask, pilots, normalize=True, device=device)


@contextmanager
def _seeded_sionna(device: str, seed: int, group: int) -> Iterator[torch.Generator]:
    """Sionna's generator seeded for one group of users, and put back as it was afterwards."""
    generator = sionna_config.torch_rng(device)
    state = generator.get_state()
    generator.manual_seed(int(np.random.SeedSequence((seed, group)).generate_state(1, np.uint64)[0] >> 1))
    try:
        yield generator
    finally:
        generator.set_state(state)


def _sionna_device(device: torch.device) -> str:
    """Sionna's name of a device: it wants the index."""
    return "cpu" if device.type == "cpu" else f"{device.type}:{device.index or 0}"


def _zero_forcing(believed: torch.Tensor, noise_variance: float, rows: slice) -> torch.Tensor:
    """A ``Precode``."""
    return regularized_zero_forcing(believed, noise_variance)


def _per_subcarrier(h: torch.Tensor) -> torch.Tensor:
    """[g, num_users, t, num_bs_ant, f] to the [g, t, f, num_users, num_bs_ant] that precoders take."""
    return rearrange(h, "g k t m f -> g t f k m")


def _interval(values: np.ndarray) -> dict[str, float]:
    """Mean of [num_groups] with its interval."""
    return asdict(mean_interval(torch.from_numpy(values)))


def _check_channels(true: torch.Tensor, estimates: dict[str, torch.Tensor], spec: LinkSpec) -> None:
    """DataError unless channels are finite, alike, not empty, and hold ``spec.num_users`` users."""
    if true.ndim != 5 or true.shape[1] != spec.num_users:
        raise DataError(
            f"true channels are {tuple(true.shape)}; expected [num_groups, {spec.num_users} users, "
            "num_slots, num_bs_ant, num_subcarriers] (group_users makes them)"
        )
    if not estimates:
        raise SpecError("no CSI estimates to compare; give at least one method")
    for name, h in {"true": true, **estimates}.items():
        if h.shape != true.shape:
            raise DataError(f"the {name} channels are {tuple(h.shape)}, the true ones {tuple(true.shape)}")
        if not torch.isfinite(torch.view_as_real(h)).all():
            raise DataError(f"the {name} channels hold NaN or infinity; check the dataset or the predictor")
        if (h.abs().amax(dim=(2, 3, 4)) == 0).any():
            raise DataError(f"the {name} channels hold a user whose channel is all zero; leave that user out")
    if spec.num_users > true.shape[3]:
        warnings.warn(
            f"{spec.num_users} users on {true.shape[3]} antennas: interference cannot be nulled; "
            "lower num_users for an interference-free comparison",
            stacklevel=3,
        )
