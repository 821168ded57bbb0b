"""Every predictor on the same drops, setting by setting: what the LAM is worth beside the best of the rest.

Classical predictors are fitted and tuned on training drops of the setting, learned ones were trained on other
drops (see ``airlam.bench.trained``); in each setting all see the same test drops with the same noise.
One module a setting; ``table`` has the rows, ``sources`` the links, ``job`` the sizes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from airlam.bench import trained
from airlam.bench.prediction import csi4cast, latency, quadriga, sca, sumrate, uma
from airlam.bench.prediction.job import FULL_SIZES, QUICK_SIZES, Job, nobody
from airlam.bench.prediction.sources import load_foreign
from airlam.bench.prediction.table import RATIO, Part, worst_cell
from airlam.errors import SpecError
from airlam.tasks.channel_prediction import Progress

SETTINGS: Mapping[str, Callable[[Job], Part]] = {
    "uma_omni": partial(uma.measure, setting="uma_omni"),
    "uma_directional": partial(uma.measure, setting="uma_directional"),
    csi4cast.SETTING: csi4cast.measure,
    sca.SETTING: sca.measure,
    quadriga.TDD: quadriga.measure_tdd,
    quadriga.FDD: quadriga.measure_fdd,
    sumrate.SETTING: sumrate.measure,
    latency.SETTING: latency.measure,
}
OF_FOREIGN_DATA = (quadriga.TDD, quadriga.FDD)
WORST = f"worst_cell_{RATIO}"


def run(
    *,
    quick: bool,
    train: bool,
    data: Path | None,
    only: Sequence[str] = (),
    peers: bool = True,
    on_progress: Progress,
) -> dict[str, Any]:
    """The table: figures by name, rows of one format, and what each setting was measured on.

    ``train`` makes the models anew first; ``data`` is the file of the two QuaDRiGa settings, which are left
    out without it; ``only`` names the settings to run; without ``peers``, learned comparators are left out.
    ``worst_cell_lam_over_best_classical`` is over the cells of all Sionna settings that ran. SpecError for a
    setting that is not there, or lacks its data.
    """
    chosen = choose(tuple(SETTINGS), only, data)
    if data is not None:
        load_foreign(data, "tdd")  # a file that is not there is known before hours of work
    scale = trained.QUICK if quick else trained.FULL
    folder = trained.train_models(scale, on_progress) if train else trained.models_folder(scale)
    job = Job(
        scale=scale,
        sizes=QUICK_SIZES if quick else FULL_SIZES,
        lam=partial(trained.load_lam, folder),
        lam_seed=trained.read_card(folder)["lam_training"]["seed"],
        peers=partial(trained.load_peers, folder) if peers else nobody,
        data=data,
        on_progress=on_progress,
    )
    parts = {name: SETTINGS[name](job) for name in chosen}
    figures = {name: value for part in parts.values() for name, value in part.figures.items()}
    rows = [row for part in parts.values() for row in part.rows]
    worst = worst_cell([row for row in rows if row.setting not in OF_FOREIGN_DATA])
    if worst is not None:
        figures[WORST] = worst.value
        rows.append(dataclasses.replace(worst, metric=WORST))
    return {
        "settings": {
            "models": "made anew in the cache" if folder != trained.shipped_folder() else "shipped",
            "card": trained.read_card(folder),
            "skipped": {name: "no --data" for name in OF_FOREIGN_DATA if name not in chosen and not only},
            "data": [part.about for part in parts.values()],
        },
        "figures": figures,
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def choose(settings: Sequence[str], only: Sequence[str], data: Path | None) -> list[str]:
    """Of ``settings`` those to run, in their order: all that have their data, or those named in ``only``."""
    for name in only:
        if name not in settings:
            raise SpecError(f"no setting is called {name!r}; there are {', '.join(settings)}")
        if name in OF_FOREIGN_DATA and data is None:
            raise SpecError(f"{name} is measured on a QuaDRiGa file; give a *_dev.npz with --data")
    wanted = only or [name for name in settings if data is not None or name not in OF_FOREIGN_DATA]
    return [name for name in settings if name in wanted]
