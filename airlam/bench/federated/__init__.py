"""Fine-tuning by many: twenty devices of a radio cell, and edge servers with 5 % of the samples each."""

import tempfile
from pathlib import Path
from typing import Any

from airlam.bench.federated import cell, servers
from airlam.tasks.channel_prediction import Progress


def run(quick: bool, on_progress: Progress) -> dict[str, Any]:
    """The benchmark's JSON object, without the machine.

    ``speedup_vs_NAME``: virtual time of NAME to the target over ours (split, fp32, drift plus penalty),
    geometric mean over the seeds. ``equal_bandwidth``: all devices, equal shares; ``ours_equal_bandwidth``:
    our devices, equal shares; ``random``: ten, equal shares. ``speedup_int8_vs_fp32``: of split.
    ``uplink_bytes_vs_NAME``: bytes up to the target, of NAME over ours; ``..._int8_vs_...`` over ours in
    int8. ``nmse_over_centralised``: ratio of the test NMSEs; ``share_of_gain``: of what centralised training
    gains on the test drops. ``unreached.NAME``: seeds that did not get to the target. ``servers.NAME_K``: K
    edge servers, see ``servers``.
    """
    scales = (cell.QUICK, servers.QUICK) if quick else (cell.FULL, servers.FULL)
    with tempfile.TemporaryDirectory() as folder:
        rows = cell.run_cell(scales[0], Path(folder), on_progress)
        of_servers, their_settings = servers.run_servers(scales[1], Path(folder), on_progress)
    return {
        "settings": cell.settings_of(scales[0]) | {"servers": their_settings},
        "figures": cell.figures_of(rows) | servers.servers_figures(of_servers),
        "rows": rows + of_servers,
    }
