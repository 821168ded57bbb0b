"""What Prometheus reads of a server, in a registry of its own."""

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from airlam.serving.histograms import Histogram

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_LINKS = (1, 2, 4, 8, 16, 32, 64, 128)
_TOTALS = {
    "airlam_requests_total": "status",
    "airlam_request_seconds_count": "count",
    "airlam_request_seconds_sum": "seconds",
    "airlam_service_seconds_count": "passes",
    "airlam_service_seconds_sum": "seconds",
    "airlam_batch_links_sum": "links",
    "airlam_batch_seconds_count": "count",
    "airlam_batch_seconds_sum": "seconds",
}
_NO_REQUESTS = {"count": 0.0, "seconds": 0.0, "answered": 0.0, "refused": 0.0}
NO_LAM = "-"  # where a request named none of ours: labels are ours to choose, never a sender's


class Metrics:
    """Counts and times; each label takes as many values as the server has LAMs, services or answers."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "airlam_requests", "Requests by LAM and HTTP status.", ["lam", "status"], registry=self._registry
        )
        self._latency = self._histogram(
            "airlam_request_seconds", "From a request's header to its answer.", _SECONDS, "lam"
        )
        self._service = self._histogram(
            "airlam_service_seconds", "One pass of a service.", _SECONDS, "service"
        )
        self._batch = self._histogram("airlam_batch_links", "Links that ran together.", _LINKS)
        self._batch_time = self._histogram("airlam_batch_seconds", "One batch.", _SECONDS)
        self._renewals = Counter(
            "airlam_renewals", "Exchanges of all LAMs by outcome.", ["outcome"], registry=self._registry
        )
        self._queued = Gauge("airlam_queued_links", "Links that wait.", registry=self._registry)
        self._coefficients = Gauge(
            "airlam_queued_coefficients", "Coefficients that wait for precoders.", registry=self._registry
        )
        self._sessions = Gauge("airlam_sessions", "Users whose history is kept.", registry=self._registry)

    def answered(self, lam: str, status: int, duration_s: float) -> None:
        """A request has its answer."""
        self._requests.labels(lam, str(status)).inc()
        self._latency.observe(duration_s, lam)

    def service_ran(self, service: str, num_links: int, duration_s: float) -> None:
        """A service has run for some links."""
        self._service.observe(duration_s, service)

    def batch_ran(self, num_links: int, duration_s: float) -> None:
        """A batch has run."""
        self._batch.observe(num_links)
        self._batch_time.observe(duration_s)

    def renewed(self, *, succeeded: bool) -> None:
        """The LAMs have been exchanged, or could not be."""
        self._renewals.labels("succeeded" if succeeded else "failed").inc()

    def totals(self) -> dict[str, Any]:
        """Counts and seconds since the start: of ``requests`` by LAM, of ``services``, of ``batches``."""
        requests: dict[str, dict[str, float]] = {}
        services: dict[str, dict[str, float]] = {}
        batches: dict[str, float] = {"count": 0, "links": 0, "seconds": 0}
        for family in self._registry.collect():
            for sample in family.samples:
                place = _TOTALS.get(sample.name)
                if place == "status":
                    kind = "answered" if sample.labels["status"] < "400" else "refused"
                    own = requests.setdefault(sample.labels["lam"], dict(_NO_REQUESTS))
                    own[kind] += sample.value
                elif place is None:
                    continue
                elif "lam" in sample.labels:
                    requests.setdefault(sample.labels["lam"], dict(_NO_REQUESTS))[place] = sample.value
                elif "service" in sample.labels:
                    services.setdefault(sample.labels["service"], {})[place] = sample.value
                else:
                    batches[place] = sample.value
        return {"requests": requests, "services": services, "batches": batches}

    def text(self, *, queued_links: int, num_sessions: int, queued_coefficients: int = 0) -> bytes:
        """All of it in Prometheus' text format, with what holds at this moment."""
        self._queued.set(queued_links)
        self._coefficients.set(queued_coefficients)
        self._sessions.set(num_sessions)
        return generate_latest(self._registry)

    def _histogram(
        self, name: str, about: str, bounds: Sequence[float], label: str | None = None
    ) -> Histogram:
        return Histogram(name=name, about=about, bounds=bounds, label=label).registered(self._registry)
