"""A client of the server in plain Python: one connection, tensors in and out."""

import json
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

import torch

from airlam.errors import AirlamError, SpecError
from airlam.radio.beam_selection import BeamHistory
from airlam.serving.arrays import BINARY
from airlam.serving.beam_bodies import BeamChoice, read_choice, write_sweeps
from airlam.serving.bodies import measurement_parts, read_future, read_futures, write_slot
from airlam.serving.connection import Connection
from airlam.serving.downlink_bodies import Users, read_precoder, write_downlinks, write_users
from airlam.serving.downlinks import Downlinks
from airlam.serving.measurement import Measurement

_IDLE_S = 30.0  # well within what the server keeps an idle connection for
_TENSORS = f"Content-Type: {BINARY}\r\nAccept: {BINARY}\r\n"
_HTTP_PORT = 80


class RequestRefused(AirlamError):
    """The server did not answer with a prediction; status: HTTP's. retry_after_s: where it says when."""

    def __init__(self, status: int, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"the server refused with {status}: {reason}")
        self.status, self.retry_after_s = status, retry_after_s


class ServerLost(AirlamError):
    """There is no answer; whether the server got the request is not known."""


class Client:
    """A connection to a server at ``url`` (http://HOST:PORT). Not for several threads at once."""

    def __init__(self, url: str, timeout_s: float = 30.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise SpecError(f"url is {url!r}; expected http://HOST:PORT")
        self._connection = Connection(parts.hostname, parts.port or _HTTP_PORT, timeout_s)
        self._used_s = time.monotonic()

    def lams(self) -> dict[str, Any]:
        """The LAMs that are served, with the shapes that they take and give."""
        found: dict[str, Any] = json.loads(self.get("/v1/lams"))
        return found

    def get(self, path: str) -> bytes:
        """What a path without a body answers: /metrics, /readyz, /v1/graph."""
        return bytes(self._ask("GET", path))

    def predict(
        self, lam: str, history: torch.Tensor, noise_variance: torch.Tensor, deadline_ms: float | None = None
    ) -> torch.Tensor:
        """The future of some links; shapes as in ``Predictor.predict``. RequestRefused where none."""
        measurement = Measurement(lam=lam, history=history, noise_variance=noise_variance)
        path = f"/v1/lams/{_name(lam)}/predict{_query(deadline_ms=deadline_ms)}"
        return read_future(self._ask("POST", path, *measurement_parts(measurement)))

    def predict_all(
        self,
        lams: Sequence[str],
        history: torch.Tensor,
        noise_variance: torch.Tensor,
        deadline_ms: float | None = None,
    ) -> dict[str, torch.Tensor]:
        """What several LAMs of one kind of history predict from one measurement, by their names."""
        measurement = Measurement(lam=lams[0], history=history, noise_variance=noise_variance)
        query = _query(lam=list(lams), deadline_ms=deadline_ms)
        body = self._ask("POST", f"/v1/predict{query}", *measurement_parts(measurement))
        return read_futures(body, lams)

    def precoders(self) -> dict[str, Any]:
        """The precoders that are served, with what they take and give."""
        found: dict[str, Any] = json.loads(self.get("/v1/precoders"))
        return found

    def precode(
        self,
        precoder: str,
        channel: torch.Tensor,
        noise_variance: torch.Tensor,
        error_covariance: torch.Tensor | None = None,
        deadline_ms: float | None = None,
    ) -> torch.Tensor:
        """Precoders of total power 1: complex64 [downlinks, num_bs_ant, num_users].

        channel: complex64 [downlinks, num_users, num_bs_ant]. noise_variance: float32 [downlinks], of the
        users' receivers over the total power. error_covariance: as of ``Downlinks``, where channels are
        estimates. RequestRefused where there is none; SpecError for what has none anywhere.
        """
        downlinks = Downlinks(
            precoder=precoder, h=channel, noise_variance=noise_variance, error_covariance=error_covariance
        )
        path = f"/v1/precoders/{_name(precoder)}/precode{_query(deadline_ms=deadline_ms)}"
        return read_precoder(self._ask("POST", path, write_downlinks(downlinks)))

    def predict_and_precode(
        self,
        lam: str,
        precoder: str,
        history: torch.Tensor,
        noise_variance: torch.Tensor,
        receiver_noise_variance: float,
        deadline_ms: float | None = None,
    ) -> torch.Tensor:
        """Precoders for what ``lam`` predicts of users who are served together, a user a row of the history.

        Of a run that tuned both together, both have its name.
        Histories as in ``predict``, of which each user's first antenna receives. receiver_noise_variance: of
        the users' receivers over the total power of 1. Returns complex64 [num_horizon, num_subcarriers,
        num_bs_ant, num_users].
        """
        measurement = Measurement(lam=lam, history=history, noise_variance=noise_variance)
        users = Users(measurement=measurement, receiver_noise_variance=receiver_noise_variance)
        query = _query(deadline_ms=deadline_ms)
        path = f"/v1/lams/{_name(lam)}/precoders/{_name(precoder)}/precode{query}"
        return read_precoder(self._ask("POST", path, write_users(users)))

    def precode_sessions(
        self,
        lam: str,
        precoder: str,
        sessions: Sequence[str],
        receiver_noise_variance: float,
        deadline_ms: float | None = None,
    ) -> torch.Tensor:
        """``predict_and_precode`` from the whole histories that users' sessions keep at the server."""
        query = _query(
            session=list(sessions), receiver_noise_variance=receiver_noise_variance, deadline_ms=deadline_ms
        )
        path = f"/v1/lams/{_name(lam)}/precoders/{_name(precoder)}/precode_sessions{query}"
        return read_precoder(self._ask("POST", path))

    def beam_lams(self) -> dict[str, Any]:
        """The LAMs of beam selection that are served, with what they take and give."""
        found: dict[str, Any] = json.loads(self.get("/v1/beams"))
        return found

    def choose_beams(
        self,
        lam: str,
        power: torch.Tensor,
        position_m: torch.Tensor,
        top: int | None = None,
        deadline_ms: float | None = None,
    ) -> BeamChoice:
        """The likeliest ``top`` beams of the sweeps after some windows; None: three of each.

        power: float [windows, num_past, num_beams], of each beam of the last sweeps, linear, oldest first.
        position_m: float [windows, num_past, 3], the user's measured positions at these sweeps. Raises
        RequestRefused where there is no choice.
        """
        body = write_sweeps(BeamHistory(power=power, position_m=position_m))
        path = f"/v1/beams/{_name(lam)}/choose{_query(top=top, deadline_ms=deadline_ms)}"
        return read_choice(self._ask("POST", path, body))

    def open_session(self, lam: str) -> str:
        """A session's name, for ``add_slot``."""
        name: str = json.loads(self._ask("POST", f"/v1/lams/{_name(lam)}/sessions"))["session"]
        return name

    def add_slot(
        self,
        session: str,
        channel: torch.Tensor,
        noise_variance: float,
        slot: int | None = None,
        deadline_ms: float | None = None,
        predict: bool = True,
    ) -> torch.Tensor | None:
        """Sends a slot's measurement, complex64 [num_user_ant, num_bs_ant, num_history_subcarriers].

        Returns the future of this one link [1, num_horizon, ...]; None while slots are missing, or where no
        prediction is wanted.
        """
        query = _query(slot=slot, deadline_ms=deadline_ms, predict=None if predict else "false")
        body = self._ask(
            "POST", f"/v1/sessions/{_name(session)}/slots{query}", write_slot(channel, noise_variance)
        )
        return None if body.startswith(b"{") else read_future(body)

    def close_session(self, session: str) -> None:
        """Has the server forget a session."""
        self._ask("DELETE", f"/v1/sessions/{_name(session)}")

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, method: str, path: str, *body: bytes | memoryview) -> bytearray:
        if time.monotonic() - self._used_s > _IDLE_S:
            self.close()  # the server may have closed its end; the next request connects anew
        try:
            answer = self._connection.ask(method, path, _TENSORS if body else "", *body)
        except OSError as error:
            where = f"{self._connection.host}:{self._connection.port}"
            raise ServerLost(f"no answer from {where}: {error}") from error
        self._used_s = time.monotonic()
        if answer.status >= 400:
            waits = answer.headers.get("retry-after")
            raise RequestRefused(answer.status, _reason(answer.body), None if waits is None else float(waits))
        return answer.body


def _name(part: str) -> str:
    """As one part of a path, whatever is in it."""
    return quote(part, safe="")


def _query(**values: float | str | list[str] | None) -> str:
    given = {name: value for name, value in values.items() if value is not None}
    return f"?{urlencode(given, doseq=True)}" if given else ""


def _reason(body: bytearray) -> str:
    """What the server says is wrong."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace") or "no reason given"
