"""How fine-tuned LAMs are served over HTTP."""

from dataclasses import dataclass

from airlam.specs.reading import require, require_finite


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSpec:
    """Bounds of the server; a link is one row of a batch, a user's antenna pair over time and band.

    Precoders' requests are counted in coefficients: of channels, their inner products and their errors.
    deadline_s: how long a request may take from its arrival to its answer, unless it asks for less.
    """

    host: str = "127.0.0.1"  # reached from this machine only; the server asks nobody who they are
    port: int = 8008  # 0: any that is free
    max_batch_links: int = 32  # that run together; also the most of one request
    max_queued_links: int = 256  # that wait; a request beyond is refused with 429
    max_batch_coefficients: int = 2**18  # of precoding; 4 users of 32 antennas have 144 a downlink
    max_queued_coefficients: int = 2**21
    deadline_s: float = 5.0
    max_sessions: int = 1024
    session_idle_s: float = 60.0  # after which a user's history is forgotten
    max_reading_bytes: int = 2**28  # of all bodies that are being read; beyond others are refused with 429
    read_timeout_s: float = 10.0  # for a request's header, and again for its body
    max_connections: int = 512
    drain_s: float = 30.0  # for requests under way when the server is asked to end

    def __post_init__(self) -> None:
        require_finite(self)
        require(bool(self.host), "host is empty; 127.0.0.1 is this machine alone")
        require(0 <= self.port <= 65535, f"port is {self.port}; expected 0 to 65535")
        for name in (
            "max_batch_links",
            "max_queued_links",
            "max_batch_coefficients",
            "max_queued_coefficients",
            "deadline_s",
            "max_sessions",
            "session_idle_s",
            "max_reading_bytes",
            "read_timeout_s",
            "max_connections",
            "drain_s",
        ):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for unit in ("links", "coefficients"):
            batch, queued = getattr(self, f"max_batch_{unit}"), getattr(self, f"max_queued_{unit}")
            require(
                batch <= queued,
                f"max_queued_{unit} is {queued}; expected at least max_batch_{unit}, {batch}",
            )
