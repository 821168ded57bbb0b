"""Every predictor on the same drops: LLM4CP's setting made with Sionna, or foreign data scored as published.

Classical predictors are fitted and tuned on training drops, learned ones were trained on others (see
``airlam.bench.trained``); all are measured on the same test drops with the same noise. "Best" of a kind is
the best on the test drops themselves, so the comparison favours whoever is compared with the LAM.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from airlam.bench import trained
from airlam.datasets.exchange import ForeignLinks, load_quadriga
from airlam.datasets.shards import one_thread, plan_blocks, plan_shards
from airlam.datasets.stochastic.synthesis import draw_drops_with_rays
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError
from airlam.radio.channel import PredictionSetting
from airlam.radio.metrics import LinkErrors, compare_nmse, summarise_nmse
from airlam.radio.prediction import classical_predictors
from airlam.radio.prediction.base import Predictor, TrainingLinks
from airlam.radio.prediction.genie import genie_bound
from airlam.tasks.channel_prediction import DatasetLinks, LinkSource, Progress, split_links
from airlam.tasks.comparison import BATCH_LINKS, Comparison, compare, training_links
from airlam.tasks.evaluation import speed_groups
from airlam.units import KMH_PER_M_PER_S, db_to_linear

SNRS_DB = (0.0, 10.0, 20.0, 30.0)
PUBLISHED_SNR_DB = 18.0  # of LLM4CP's tables
BOUND = "genie"


def run(*, quick: bool, train: bool, data: Path | None, on_progress: Progress) -> dict[str, Any]:
    """The table on Sionna's two settings, or on ``data``; ``train`` makes the models anew first."""
    scale = trained.QUICK if quick else trained.FULL
    foreign = None if data is None else _load_foreign(data)
    folder = trained.train_models(scale, on_progress) if train else trained.models_folder(scale)
    card = trained.read_card(folder)
    parts = (
        [_sionna(setting, scale, folder, on_progress) for setting in trained.SETTINGS]
        if foreign is None
        else [_foreign(*foreign, folder, on_progress)]
    )
    figures = {name: value for part in parts for name, value in part["figures"].items()}
    settings = {"models": "made anew in the cache" if folder != trained.shipped_folder() else "shipped"}
    return {
        "settings": {**settings, "card": card, "data": [part["settings"] for part in parts]},
        "figures": figures,
        "rows": [row for part in parts for row in part["rows"]],
    }


def _sionna(setting: str, scale: trained.Scale, folder: Path, on_progress: Progress) -> dict[str, Any]:
    """One of the settings that Sionna draws: at each SNR, and as published at 18 dB below the set's power."""
    with trained.cached_dataset(setting, scale, "test", on_progress) as dataset:
        fitting = DatasetLinks(dataset, "train", trained.PREDICTION)
        test = DatasetLinks(dataset, "test", trained.PREDICTION)
        on_progress(f"{setting}: fitting the classical predictors", 0, 1, "")
        classical = classical_predictors(test.setting, training_links(fitting, scale.fit, seed=1))
        learned = trained.load_models(folder, test.setting)
        everyone = [*classical, *learned]
        comparison = compare(everyone, test, SNRS_DB, on_progress)
        power = _link_power(test).mean().expand(len(test))
        published = compare(everyone, test, [PUBLISHED_SNR_DB], on_progress, power=power)
        genie = _genie(dataset, test.setting, scale.genie, on_progress)
    names = [predictor.name for predictor in classical]
    figures = {f"{setting}.{name}": value for name, value in _contest(comparison, names).items()}
    figures |= {f"{setting}.{snr:g}db.genie": nmse for snr, nmse in genie.items()}
    figures |= {
        f"{setting}.as_published.{n}": v for n, v in _pooled(published, PUBLISHED_SNR_DB, True).items()
    }
    sizes = trained.trainable_of(learned)
    rows = [
        *_rows(setting, comparison, names, sizes),
        *_rows(f"{setting}, noise against the set's power", published, names, sizes),
        *(
            {"setting": setting, "snr_db": snr, "predictor": BOUND, "kind": "bound", "nmse_pooled": v}
            for snr, v in genie.items()
        ),
    ]
    about = {
        "setting": setting,
        "dataset": dataset.spec.name,
        "test_drops": len(test),
        "fitting_drops": len(fitting),
        "seed": dataset.spec.seed,
        "genie_drops": scale.genie,
        "nmse": "pooled over links, against the clean channel; the genie's over the first of them",
    }
    return {"figures": figures, "rows": rows, "settings": about}


def _genie(
    dataset: ChannelDataset, setting: PredictionSetting, num_drops: int, on_progress: Progress
) -> dict[float, float]:
    """Pooled NMSE on the first test drops that knowing every ray but its amplitude would leave."""
    shard = next(shard for shard in plan_shards(dataset.spec) if shard.split == "test")
    error: list[torch.Tensor] = []
    energy: list[torch.Tensor] = []
    for seed, size in plan_blocks(dataset.spec, shard):
        with one_thread():  # as the file was drawn
            batch, rays = draw_drops_with_rays(dataset.spec, seed, size)
        stored = dataset.batch("test", np.arange(len(error), len(error) + size)).h_freq
        if not torch.equal(stored, batch.h_freq):
            raise DataError(f"{dataset.path} was drawn by other software; remove it to have it drawn anew")
        histories = batch.links()[:, 0, : setting.num_history]  # [size, slots, 1, ports, subcarriers]
        for drop, history in zip(rays, histories, strict=True):
            power = float(history.abs().square().mean())
            levels = [power * db_to_linear(-snr) for snr in SNRS_DB]
            bound = genie_bound(drop, levels, setting)
            error.append(bound.error)  # [snrs, horizon]
            energy.append(bound.energy)
            on_progress("genie bound", len(error), num_drops, "")
            if len(error) == num_drops:
                pooled = torch.stack(error).sum((0, 2)) / torch.stack(energy).sum()
                return dict(zip(SNRS_DB, pooled.tolist(), strict=True))
    raise DataError(f"the first test shard holds fewer than {num_drops} drops")


def _contest(comparison: Comparison, classical: Sequence[str]) -> dict[str, float]:
    """Pooled NMSE of the LAM, the best classical predictor and the best learned peer at every SNR."""
    figures: dict[str, float] = {}
    for snr_db, scored in comparison.scored.items():
        pooled = _pooled(comparison, snr_db, False)
        best = comparison.best(classical, snr_db)
        peer = comparison.best(trained.PEERS, snr_db)
        ratio = compare_nmse(scored[trained.LAM].clean, scored[best].clean).pooled
        figures |= {
            f"{snr_db:g}db.lam": pooled[trained.LAM],
            f"{snr_db:g}db.best_classical": pooled[best],
            f"{snr_db:g}db.best_learned_peer": pooled[peer],
            f"{snr_db:g}db.lam_over_best_classical": ratio.value,
            f"{snr_db:g}db.lam_over_best_classical_low": ratio.low,
            f"{snr_db:g}db.lam_over_best_classical_high": ratio.high,
        }
    return figures


def _pooled(comparison: Comparison, snr_db: float, noisy: bool) -> dict[str, float]:
    scored = comparison.scored[snr_db]
    errors = {name: each.noisy if noisy else each.clean for name, each in scored.items()}
    return {name: float(e.error.sum() / e.energy.sum()) for name, e in errors.items()}


def _rows(
    setting: str, comparison: Comparison, classical: Sequence[str], trainable: dict[str, int]
) -> list[dict[str, Any]]:
    """The full table: one row a predictor and SNR."""
    rows = []
    groups = speed_groups(comparison.speed_m_per_s)
    for snr_db, scored in comparison.scored.items():
        for name, each in scored.items():
            by_speed = {group: each.clean.select(members) for group, members in groups.items()}
            kind = "classical" if name in classical else "lam" if name == trained.LAM else "learned"
            rows.append(
                {
                    "setting": setting,
                    "snr_db": snr_db,
                    "predictor": name,
                    "kind": kind,
                    "clean_target": {g: summarise_nmse(e).to_dict() for g, e in by_speed.items()},
                    "noisy_target_pooled": dataclasses.asdict(summarise_nmse(each.noisy).pooled),
                    "trainable_parameters": trainable.get(name),
                    "ms_per_link": 1000 * comparison.seconds_per_link[name],
                }
            )
    return rows


class ForeignSource:
    """Foreign links as a source for comparisons: history and future, one after the other in time."""

    def __init__(self, links: ForeignLinks) -> None:
        self.setting = links.setting("tdd")
        self.links_per_drop = 1
        self._links = links

    def __len__(self) -> int:
        return len(self._links.history)

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """complex64 [num_indices, num_slots, num_user_ant, num_bs_ant, num_subcarriers]."""
        chosen = torch.from_numpy(indices)
        return torch.cat([self._links.history[chosen], self._links.future_tdd[chosen]], dim=1)

    def speeds_m_per_s(self, indices: np.ndarray) -> torch.Tensor:
        """float32 [num_indices]."""
        return self._links.speed_m_per_s[torch.from_numpy(indices)]


def _load_foreign(path: Path) -> tuple[Path, ForeignLinks, ForeignLinks]:
    """The set to measure on, and the set beside it to fit classical predictors on."""
    test = load_quadriga(path)
    beside = path.with_name(path.name.replace("_dev", "_train").replace("_test", "_train"))
    if beside == path or not beside.exists():
        raise DataError(
            f"{beside} is not there; classical predictors are fitted on it: give a *_dev.npz or *_test.npz "
            "with its *_train.npz beside it"
        )
    return path, test, load_quadriga(beside)


def _foreign(
    path: Path, links: ForeignLinks, fitting: ForeignLinks, folder: Path, on_progress: Progress
) -> dict[str, Any]:
    """LLM4CP's table on a QuaDRiGa set: noise on history and target, 18 dB below the mean power of the links
    of the same speed, as the authors' test script has it.

    The learned predictors have seen Sionna's channels only.
    """
    test = ForeignSource(links)
    on_progress("data: fitting the classical predictors", 0, 1, "")
    training = TrainingLinks(history=fitting.history, future=fitting.future_tdd)
    classical: list[Predictor] = classical_predictors(test.setting, training)
    learned = trained.load_models(folder, test.setting)
    power = _mean_by_speed(_link_power(test), links.speed_m_per_s)
    comparison = compare([*classical, *learned], test, [PUBLISHED_SNR_DB], on_progress, power=power)
    names = [predictor.name for predictor in classical]
    rows = _rows("data", comparison, names, trained.trainable_of(learned))
    figures = {f"data.{name}": value for name, value in _contest(comparison, names).items()}
    for target in ("as_published", "clean"):
        for name, each in comparison.scored[PUBLISHED_SNR_DB].items():
            errors = each.noisy if target == "as_published" else each.clean
            by_speed = _by_speed(errors, comparison.speed_m_per_s)
            figures[f"data.{target}.{name}"] = float(np.mean(list(by_speed.values())))
            rows += [
                {
                    "setting": "data",
                    "scoring": target,
                    "predictor": name,
                    "speed_kmh": speed,
                    "nmse_pooled": value,
                }
                for speed, value in by_speed.items()
            ]
    about = {
        "setting": "data",
        "file": path.name,
        "fitting_drops": len(fitting.history),
        "test_drops": len(test),
        "nmse": "pooled over the links of each speed, then the mean over speeds",
        "learned": "trained on Sionna's channels only, tested here as they are",
    }
    return {"figures": figures, "rows": rows, "settings": about}


def _link_power(source: LinkSource) -> torch.Tensor:
    """Mean power of each link's history, float32 [num_links]."""
    starts = range(0, len(source), BATCH_LINKS)
    parts = [source.read(np.arange(start, min(start + BATCH_LINKS, len(source)))) for start in starts]
    histories = (split_links(part, source.setting)[0] for part in parts)
    return torch.cat([history.abs().square().mean(dim=(1, 2, 3, 4)) for history in histories])


def _mean_by_speed(power: torch.Tensor, speed_m_per_s: torch.Tensor) -> torch.Tensor:
    """For each link the mean over the links of its speed, float32 [num_links]."""
    same = speed_m_per_s[:, None] == speed_m_per_s  # [num_links, num_links]
    return (same * power).sum(1) / same.sum(1)


def _by_speed(errors: LinkErrors, speed_m_per_s: torch.Tensor) -> dict[int, float]:
    """Pooled NMSE of each speed in km/h."""
    speed_kmh = (speed_m_per_s * KMH_PER_M_PER_S).round().int()
    chosen = {speed: errors.select(speed_kmh == speed) for speed in sorted(set(speed_kmh.tolist()))}
    return {speed: float(part.error.sum() / part.energy.sum()) for speed, part in chosen.items()}
