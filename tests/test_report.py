"""The report is self-contained, escaped, honest about losses, and reads back equal."""

import dataclasses
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from airlam.errors import DataError, SpecError
from airlam.report import render_html, text_table, write_report
from airlam.results import (
    CostRow,
    EvaluationResult,
    GainRow,
    LinkRow,
    Method,
    PredictionRow,
    TrainingRow,
    headline,
)

NMSE = {"hold": 0.5, "ls": 0.04, "lstm": 0.1, "lam": 0.02, "genie": 0.005}
RATE = {"hold": 10.0, "ls": 20.0, "lstm": 18.0, "lam": 22.0, "genie": 25.0}
NASTY = '<script>alert("x")</script> & $\\frac$'


def example(nmse: dict[str, float] = NMSE, rate: dict[str, float] = RATE) -> EvaluationResult:
    kinds = {"hold": "classical", "ls": "classical", "lstm": "learned", "lam": "lam", "genie": "bound"}
    groups = ("all", "speed_kmh=15", "speed_kmh=45", "step=1", "step=2")
    prediction = [
        PredictionRow(
            method=name, snr_db=snr_db, group=group, metric=metric, value=v, low=0.9 * v, high=1.1 * v
        )
        for name, v in nmse.items()
        for snr_db in (0.0, 10.0, 20.0)
        for group in groups
        for metric in ("nmse_pooled", "nmse_mean", "nmse_median")
    ]
    link = [
        LinkRow(method=name, snr_db=snr_db, metric=metric, value=v, low=0.9 * v, high=1.1 * v)
        for name, r in rate.items()
        for snr_db in (0.0, 10.0, 20.0)
        for metric, v in (
            ("sum_rate_bit_per_s_per_hz", r),
            ("bler", 1 / r if snr_db < 20 else 0.0),
            ("ber", 0.1 / r),
            ("throughput_bit_per_s_per_hz", r / 2),
        )
    ]
    return EvaluationResult(
        task="channel_prediction",
        settings={"data": {"file": "demo.h5", "seed": 1}, "user": NASTY},
        methods=tuple(
            Method(name=n, label=NASTY if n == "lstm" else n.upper(), kind=k)  # type: ignore[arg-type]
            for n, k in kinds.items()
        ),
        prediction=tuple(prediction),
        link=tuple(link),
        snr_db_at_target_bler={"ls": 6.0, "lam": 4.5, "hold": None},
        user_nmse={name: (v, 2 * v, 0.5 * v) for name, v in nmse.items()},
        training=(TrainingRow(step=1, train_loss=0.5), TrainingRow(step=100, validation_loss=0.1)),
        cost=(CostRow(method="lam", quantity="trainable share", value=4.9, unit="%"),),
        versions={"airlam": "0.1.0"},
        notes=("Channels have unit mean power.", NASTY),
    )


def test_page_asks_for_nothing_and_escapes_names() -> None:
    page = render_html(example())
    lowered = page.lower()
    for forbidden in ("http:", "https:", "<script", "<link", "<img", "@import", "url(//"):
        assert forbidden not in lowered
    assert "&lt;script&gt;" in page
    assert page.count("<svg") == 8
    for text in (
        "trainable share",
        "data.seed",
        "outside the simulated SNRs",
        "Channels have unit mean power",
    ):
        assert text in page


def test_page_is_the_same_for_the_same_result() -> None:
    assert render_html(example()) == render_html(example())


def test_ids_of_figures_do_not_collide() -> None:
    page = render_html(example())
    figures = page.split("<svg")[1:]
    clip_ids = [set(part.split('<clipPath id="')[i + 1].split('"')[0] for i in range(part.count("<clipPath")))
                for part in figures]  # fmt: skip
    assert all(clip_ids)
    assert len(set().union(*clip_ids)) == sum(map(len, clip_ids))


def test_headline_compares_with_the_best_classical_method() -> None:
    found = headline(example())
    assert found.figures["nmse.gain_db"] == pytest.approx(10 * math.log10(2))
    assert found.figures["sum_rate.gain"] == pytest.approx(2.0)
    assert found.figures["snr_at_bler.best_classical_db"] - found.figures["snr_at_bler.lam_db"] == 1.5
    prediction, rate, bler = found.sentences
    assert "lowers the error by 3.01 dB against LS" in prediction
    assert "gains 2.00 bit/s/Hz (+10.0 %)" in rate
    assert "needs 1.50 dB less transmit power" in bler


def test_headline_says_so_when_the_lam_loses() -> None:
    found = headline(example(nmse=NMSE | {"lam": 0.08}, rate=RATE | {"lam": 15.0}))
    assert found.figures["nmse.gain_db"] == pytest.approx(-10 * math.log10(2))
    assert "raises the error by 3.01 dB" in found.sentences[0]
    assert "loses 5.00 bit/s/Hz (-25.0 %)" in found.sentences[1]


def test_headline_names_an_unclear_difference() -> None:
    gain = GainRow(
        method="lam",
        reference="ls",
        snr_db=10.0,
        metric="sum_rate_bit_per_s_per_hz",
        value=2.0,
        low=-0.5,
        high=4.5,
    )
    result = dataclasses.replace(example(), gains=(gain,))
    assert "-0.5 to 4.5; no clear difference" in headline(result).sentences[1]
    assert "difference" in render_html(result)


def test_headline_without_a_lam_says_so() -> None:
    full = example()
    result = EvaluationResult(
        task="x",
        settings={},
        methods=full.methods[:1],
        prediction=tuple(row for row in full.prediction if row.method == "hold"),
    )
    assert "no LAM" in headline(result).sentences[0]
    assert "no LAM" in render_html(result)


def test_files_are_written_and_read_back_equal(tmp_path: Path) -> None:
    page = write_report(example(), tmp_path / "run")
    assert page.read_text() == render_html(example())
    metrics = page.with_name("metrics.json")
    assert "NaN" not in metrics.read_text()
    assert json.loads(metrics.read_text())["headline"]["sum_rate.gain"] == pytest.approx(2.0)
    assert EvaluationResult.read(metrics) == example()
    metrics.write_text(metrics.read_text()[:100])
    with pytest.raises(DataError, match="is not an evaluation's metrics"):
        EvaluationResult.read(metrics)


def test_missing_unknown_and_broken_results_are_refused() -> None:
    full = example()
    with pytest.raises(SpecError, match=r"results name \['genie'\]"):
        dataclasses.replace(full, methods=full.methods[:-1])
    with pytest.raises(SpecError, match=r"no result for \['wiener'\]"):
        wiener = Method(name="wiener", label="Wiener", kind="classical")
        dataclasses.replace(full, methods=(*full.methods, wiener))
    with pytest.raises(SpecError, match="not finite"):
        broken = dataclasses.replace(full.link[0], value=math.nan)
        dataclasses.replace(full, link=(broken, *full.link[1:]))
    with pytest.raises(SpecError, match="once"):
        dataclasses.replace(full, methods=(*full.methods, full.methods[0]))


def test_terminal_table_shows_every_method_and_the_gain() -> None:
    output = io.StringIO()
    Console(file=output, width=160).print(text_table(example()))
    text = output.getvalue()
    for expected in ("HOLD", "LS", "LAM", "GENIE", "0.0200", "22.00", "lowers the error by 3.01 dB"):
        assert expected in text


def test_figures_keep_to_few_curves_and_show_the_lam() -> None:
    full = example()
    extra = [Method(name=f"c{i}", label=f"Classical {i}", kind="classical") for i in range(12)]
    rows = [dataclasses.replace(full.prediction[0], method=m.name, value=0.6) for m in extra]
    result = dataclasses.replace(full, methods=(*full.methods, *extra), prediction=(*full.prediction, *rows))
    page = render_html(result)
    assert "Classical 11" in page
    assert "#D55E00" in page.partition("<svg")[2] or "#d55e00" in page.partition("<svg")[2]
