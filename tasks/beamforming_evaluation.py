"""Evaluates a run of beamforming: sum rates beside every classical precoder, then coded blocks over the link.

All precoders know the same of the same test drops. Shares are of the sum rate that WMMSE has after 100
iterations; the dirty-paper bound, of perfect knowledge and of no linear precoder, is the limit.
"""

import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange

from airlam.datasets.layout import software_versions
from airlam.model.precoder_chain import load_precoder
from airlam.radio.beamforming import dirty_paper_bound
from airlam.radio.metrics import mean_interval
from airlam.radio.precoding import sum_rate_bit_per_s_per_hz
from airlam.results import SHARE, SUM_RATE, CostRow, EvaluationResult, GainRow, Kind, LinkRow, Method
from airlam.split.streams import stream_seed
from airlam.tasks.beamforming import unit_power
from airlam.tasks.beamforming_data import Known, PilotCsi, all_drops, read_views
from airlam.tasks.beamforming_methods import (
    BOUND,
    LABELS,
    LAM,
    REFERENCE,
    ROBUST,
    WITH_BACKBONE,
    Precode,
    classical_precoders,
    learned_precoder,
)
from airlam.tasks.channel_prediction import Progress
from airlam.tasks.evaluation import network_rows, settings_of, training_costs, training_rows
from airlam.tasks.runs import LAM_FOLDER
from airlam.tasks.task import Run
from airlam.units import db_to_linear

if TYPE_CHECKING:
    from airlam.tasks.link_level import LinkResult

MAX_GROUPS = 256
TIMED_DOWNLINKS, _TURNS = 64, 5
_AT_ONCE = 64
Rates = dict[str, torch.Tensor]
"""By method: mean sum rate of each group of users, float64 [num_groups]."""
NOTES = (
    "Sum rates are from the SINR, before any overhead, with the total power over noise that is given; each "
    "user's channel is scaled to unit mean power (power control), and its first antenna receives.",
    "Train, validation and test are disjoint drops. All that is fitted or tuned saw training drops only; "
    "training stopped on validation drops.",
    "Intervals are 95 % bootstrap intervals over test drops; differences and shares are paired.",
    "The graph precoder's layers and features are a reconstruction; its head is the structure of every "
    "optimal linear precoder.",
    "Times are of one thread, for 64 downlinks in one batch, from what is known of channels to precoders.",
)
PILOT_NOTE = (
    "All know channels by linear estimation from uplink pilots, with covariances of training drops; robust "
    "methods and the graph precoder are told how far estimates may be wrong. The bound knows the channels."
)
LINK_NOTE = (
    "On the link every stream has the same modulation and code, so a precoder that leaves a user without "
    "power for the sake of the sum rate has all of that user's blocks wrong."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredDownlinks:
    """Groups of users, each at some slots and subcarriers.

    h: the truth, complex64 [num_groups, num_views, num_users, num_bs_ant], of unit mean power. seed: of the
    pilots, where ``pilots`` says that these are what is known.
    """

    h: torch.Tensor
    pilots: PilotCsi | None
    seed: int

    def known(self, downlinks: slice) -> tuple[torch.Tensor, Known]:
        """Truth and knowledge of some of the downlinks, groups and views in one row."""
        h = self.h.flatten(end_dim=1)[downlinks]  # [batch, num_users, num_bs_ant]
        if self.pilots is None:
            return h, Known(h=h)
        seeds = [stream_seed(self.seed, downlinks.start + index, "test pilots") for index in range(len(h))]
        return h, self.pilots.know(h, seeds)


def measure(run: Run, *, link: bool) -> EvaluationResult:
    """See ``Task.measure``, for beamforming."""
    spec = run.spec
    check_groups(run, link=link)
    test = measured_downlinks(run)
    pilots = test.pilots
    num_users, num_bs_ant = test.h.shape[-2:]
    methods = classical_precoders(num_users, num_bs_ant, is_certain=pilots is None)
    precoder = load_precoder(run.folder / LAM_FOLDER)
    methods[LAM] = learned_precoder(precoder)
    rates = rates_of(test, methods, spec.link.snr_db, run.on_progress)
    times_ms = precoding_times_ms(test, methods)
    settings, notes = settings_of(run), list(NOTES)
    rows, gains = rate_rows(rates), gain_rows(rates)
    parts: dict[str, Any] = {}
    if pilots is not None:
        notes.append(PILOT_NOTE)
    if link:
        sent = _send(run, methods, pilots)
        best = REFERENCE if pilots is None else ROBUST
        rows += [row for row in sent.rows() if row.metric != SUM_RATE]
        gains += [row for row in sent.gain_rows(LAM, best) if row.metric != SUM_RATE]
        parts["snr_db_at_target_bler"] = sent.snr_db_at_target_bler
        settings["link level"] = sent.settings
        notes.append(LINK_NOTE)
    times = [
        CostRow(method=name, quantity="precoding", value=value, unit=f"ms for {TIMED_DOWNLINKS}")
        for name, value in times_ms.items()
    ]
    return EvaluationResult(
        task="beamforming",
        settings=settings,
        methods=_methods((*methods, BOUND), has_backbone=precoder.backbone is not None),
        link=tuple(rows),
        gains=tuple(gains),
        training=training_rows(run.folder),
        network=network_rows(run.folder),
        cost=(*training_costs(run.folder, "training"), *times),
        versions=software_versions(),
        notes=tuple(notes),
        **parts,
    )


def _methods(names: Sequence[str], *, has_backbone: bool) -> tuple[Method, ...]:
    labels = LABELS | ({LAM: WITH_BACKBONE} if has_backbone else {})
    return tuple(Method(name=name, label=labels[name], kind=_kind(name)) for name in names)


def _kind(name: str) -> Kind:
    special: dict[str, Kind] = {LAM: "lam", BOUND: "bound"}
    return special.get(name, "classical")


def check_groups(run: Run, *, link: bool) -> None:
    """SpecError now for groups of users that could not be made after long work."""
    from airlam.tasks.link_level import check_link, group_users

    dataset, users = run.dataset, run.dataset.spec.num_users
    num_links = len(all_drops(dataset, "test")) * users
    if link:
        check_link(run.spec.link, num_links, users, dataset.spec.grid.num_uplink_subcarriers)
    else:
        group_users(torch.empty(num_links, 0, 1, 0, 0), run.spec.link.num_users, 0, users)


def measured_downlinks(run: Run) -> MeasuredDownlinks:
    """``link.num_users`` users of each test drop; of single-user drops, as many at random.

    Pilots, where CSI is of these, are estimated as fitted to training drops.
    """
    from airlam.tasks.link_level import group_users

    seed, num_users, users = run.spec.training.seed, run.spec.link.num_users, run.dataset.spec.num_users
    drops = all_drops(run.dataset, "test")[: MAX_GROUPS * (num_users if users == 1 else 1)]
    views = read_views(run.dataset, "test", drops, run.on_progress)
    links = rearrange(views.h, "d u v m -> (d u) v 1 m 1")
    groups = group_users(links, num_users, seed, users)  # [groups, num_users, views, num_bs_ant, 1]
    h = unit_power(rearrange(groups, "g k v m 1 -> g v k m"))
    return MeasuredDownlinks(h=h, pilots=_pilots_of(run), seed=seed)


def _pilots_of(run: Run) -> PilotCsi | None:
    own = run.spec.downlink
    if own.csi != "pilots":
        return None
    drops = all_drops(run.dataset, "train")[: run.spec.training.num_samples]
    return PilotCsi.fit(own, read_views(run.dataset, "train", drops, run.on_progress).h)


def rates_of(
    test: MeasuredDownlinks,
    methods: Mapping[str, Precode],
    levels_db: Sequence[float],
    on_progress: Progress,
) -> dict[float, Rates]:
    """Of every method and of the bound, by SNR."""
    num_groups, num_views = test.h.shape[:2]
    count = num_groups * num_views
    parts: dict[float, dict[str, list[torch.Tensor]]] = {
        snr_db: {name: [] for name in (*methods, BOUND)} for snr_db in levels_db
    }
    for start in range(0, count, _AT_ONCE):
        h, known = test.known(slice(start, start + _AT_ONCE))
        for snr_db, found in parts.items():
            noise_variance = db_to_linear(-snr_db)
            for name, precode in methods.items():
                w = precode(known, noise_variance)
                found[name].append(sum_rate_bit_per_s_per_hz(h, w, noise_variance))
            found[BOUND].append(dirty_paper_bound(h, noise_variance))
        on_progress("sum rates", min(start + _AT_ONCE, count), count, "")
    return {
        snr_db: {
            name: torch.cat(rates).double().reshape(num_groups, num_views).mean(1)
            for name, rates in found.items()
        }
        for snr_db, found in parts.items()
    }


def precoding_times_ms(test: MeasuredDownlinks, methods: Mapping[str, Precode]) -> dict[str, float]:
    """Median of some turns that the methods take in rotation, at 10 dB: milliseconds for all downlinks."""
    repeats = -(-TIMED_DOWNLINKS // test.h.shape[:2].numel())
    h = test.h.repeat(repeats, 1, 1, 1)
    _, known = MeasuredDownlinks(h=h, pilots=test.pilots, seed=test.seed).known(slice(0, TIMED_DOWNLINKS))
    spent: dict[str, list[float]] = {name: [] for name in methods}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(_TURNS + 1):
            for name, precode in methods.items():
                began = time.perf_counter()
                precode(known, 0.1)
                spent[name].append(1e3 * (time.perf_counter() - began))
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(turns[1:]) for name, turns in spent.items()}


def rate_rows(rates: Mapping[float, Rates]) -> list[LinkRow]:
    """Sum rates, and shares of the reference's, at every SNR."""
    return [
        LinkRow(method=name, snr_db=snr_db, metric=metric, **asdict(mean_interval(own, reference)))
        for snr_db, found in rates.items()
        for name, own in found.items()
        for metric, reference in ((SUM_RATE, None), (SHARE, found[REFERENCE]))
    ]


def gain_rows(rates: Mapping[float, Rates]) -> list[GainRow]:
    """The graph precoder minus the classical method that is best there."""
    rows = []
    for snr_db, found in rates.items():
        classical = {name: float(own.mean()) for name, own in found.items() if _kind(name) == "classical"}
        best = max(classical, key=lambda name: classical[name])
        gain = asdict(mean_interval(found[LAM] - found[best]))
        rows.append(GainRow(method=LAM, reference=best, snr_db=snr_db, metric=SUM_RATE, **gain))
    return rows


def _send(run: Run, methods: Mapping[str, Precode], pilots: PilotCsi | None) -> "LinkResult":
    """Coded blocks with the strongest methods and the simplest good one."""
    from airlam.tasks.beamforming_link import link_channels, send_over_link

    chosen = {name: methods[name] for name in (LAM, ROBUST, REFERENCE, "rzf") if name in methods}
    spec = run.spec
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # small arrays are loaded on purpose in small settings
        h = link_channels(run.dataset, spec.link, spec.training.seed)
        return send_over_link(h, chosen, pilots, spec.link, spec.training.seed, run.on_progress)
