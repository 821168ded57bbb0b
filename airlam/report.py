"""An evaluation as metrics.json, as tables for the terminal, and as one self-contained HTML page.

The page holds its figures as inline SVG, asks for nothing over the network, and prints.
"""

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Group
from rich.table import Table
from rich.text import Text

from airlam.files import whole_file, write_json
from airlam.pictures import pictures
from airlam.results import (
    BLER,
    POWER_LOSS,
    SHARE,
    SUM_RATE,
    TARGET_BLER,
    THROUGHPUT,
    BeamRow,
    EvaluationResult,
    Method,
    Row,
    headline,
)

_METRIC_LABELS = {
    "nmse_pooled": "NMSE, pooled (error energy over channel energy, all users together)",
    "nmse_mean": "NMSE, mean of the users' own ratios",
    "nmse_median": "NMSE, median user",
    SUM_RATE: "Sum rate, bit/s/Hz",
    SHARE: "Sum rate over that of WMMSE after 100 iterations",
    THROUGHPUT: "Throughput, bit/s/Hz",
    BLER: "Block error rate",
    "ber": "Bit error rate after decoding",
    POWER_LOSS: "Power lost against the best beam, dB",
    "top1": "Share of sweeps whose best beam is chosen",
    "top3": "Share of sweeps whose best beam is among the first three",
    "within_one": "Share of sweeps whose best beam is chosen or next to the chosen one",
}


def write_report(result: EvaluationResult, folder: Path) -> Path:
    """Writes metrics.json and report.html into ``folder``; returns the page's path."""
    write_json(folder / "metrics.json", result.to_dict())
    page = folder / "report.html"
    with whole_file(page) as temporary:
        temporary.write_text(render_html(result))
    return page


def text_table(result: EvaluationResult) -> Group:
    """The report for a rich console: errors, rates, block errors, beams, then the headline."""
    parts: list[Table | Text] = []
    for metric in ("nmse_pooled", SUM_RATE, SHARE, BLER, POWER_LOSS, "top1"):
        columns, lines = _table(result, metric)
        if not lines:
            continue
        table = Table(title=_METRIC_LABELS[metric], title_justify="left")
        table.add_column("method")
        for column in columns:
            table.add_column(column, justify="right")
        for method, cells in lines:
            texts = ["" if row is None else _number(row.value) for row in cells]
            table.add_row(Text(method.label), *texts, style="bold" if method.kind == "lam" else None)
        parts.append(table)
    parts += [Text(sentence) for sentence in headline(result).sentences]
    return Group(*parts)


def render_html(result: EvaluationResult) -> str:
    """The page, as text; whatever comes from the result is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"] = _number
    template = environment.from_string(files("airlam").joinpath("report.html").read_text())
    tables = [(_METRIC_LABELS[metric], *_table(result, metric)) for metric in _METRIC_LABELS]
    return template.render(
        result=result,
        task=result.task.replace("_", " ").capitalize(),
        headline=headline(result),
        target_bler=TARGET_BLER,
        figures=pictures(result),
        tables=[table for table in tables if table[2]],
        settings=list(_flat(result.settings)),
    )


def _table(
    result: EvaluationResult, metric: str
) -> tuple[list[str], list[tuple[Method, list[Row | BeamRow | None]]]]:
    """What the columns are of, and for each method that has the metric its rows there."""
    overall = [row for row in result.prediction if row.group == "all"]
    scores: list[Row] = [*overall, *result.link]
    beams = [row for row in result.beams if row.reference is None]
    rows: dict[tuple[str, float], Row | BeamRow] = {
        (row.method, row.snr_db): row for row in scores if row.metric == metric
    }
    rows |= {(row.method, row.step): row for row in beams if row.metric == metric}
    grid = sorted({place for _, place in rows})
    ahead = any(row.metric == metric for row in beams)
    columns = [f"{place:g} ahead" if ahead else f"{place:g} dB" for place in grid]
    lines = [(method, [rows.get((method.name, place)) for place in grid]) for method in result.methods]
    return columns, [line for line in lines if any(line[1])]


def _number(value: float) -> str:
    """Three significant digits, without an exponent where a short decimal does."""
    if value != 0 and abs(value) < 1e-4:
        return f"{value:.2e}"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:#.3g}"


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """Dotted names and texts of nested settings."""
    if not isinstance(value, dict):
        yield name, str(value)
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{name}.{key}" if name else str(key))
