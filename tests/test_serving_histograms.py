"""Our histograms tell a registry what prometheus_client's would."""

import re

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from airlam.serving.histograms import Histogram

BOUNDS = (0.1, 0.5, 2.0)
VALUES = (0.05, 0.1, 0.3, 0.5, 0.51, 7.0)


def text_of(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if not re.search(r"_created", line)]


@pytest.mark.parametrize("label", [None, "service"])
def test_the_text_is_that_of_prometheus_client(label: str | None) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    found = Histogram(name="h", about="About.", bounds=BOUNDS, label=label).registered(ours)
    labels = [] if label is None else [label]
    expected = prometheus_client.Histogram("h", "About.", labels, buckets=BOUNDS, registry=theirs)
    assert text_of(ours) == text_of(theirs)
    for number, value in enumerate(VALUES):
        of = "" if label is None else "ab"[number % 2]
        found.observe(value, of)
        (expected.labels(of) if label else expected).observe(value)
    assert text_of(ours) == text_of(theirs)
