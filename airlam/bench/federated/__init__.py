"""Fine-tuning by many: twenty devices of one radio cell."""

import tempfile
from pathlib import Path
from typing import Any

from airlam.bench.federated import cell
from airlam.tasks.channel_prediction import Progress


def run(quick: bool, on_progress: Progress) -> dict[str, Any]:
    """The benchmark's JSON object, without the machine.

    ``speedup_vs_NAME``: virtual time of NAME to the target over ours (split, fp32, drift plus penalty),
    geometric mean over the seeds. ``equal_bandwidth``: all devices, equal shares; ``ours_equal_bandwidth``:
    our devices, equal shares; ``random``: ten, equal shares. ``speedup_int8_vs_fp32``: of split.
    ``uplink_bytes_vs_NAME``: bytes up to the target, of NAME over ours; ``..._int8_vs_...`` over ours in
    int8. ``nmse_over_centralised``: ratio of the test NMSEs; ``share_of_gain``: of what centralised training
    gains on the test drops. ``unreached.NAME``: seeds that did not get to the target.
    """
    scale = cell.QUICK if quick else cell.FULL
    with tempfile.TemporaryDirectory() as folder:
        rows = cell.run_cell(scale, Path(folder), on_progress)
    return {"settings": cell.settings_of(scale), "figures": cell.figures_of(rows), "rows": rows}
