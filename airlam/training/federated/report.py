"""What each round did: who ran and why not, how long it took, what it sent and spent."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from airlam.files import whole_file

ROUNDS_FILE = "rounds.jsonl"
TABLE_FILE = "rounds.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """One round.

    ran: devices whose updates were used. status: of every device, why it did or did not take part. shares: of
    the uplink's band, by device. planned_s, delay_s: what the policy counted on, and what the round took;
    now_s: since the start. backlog: of the policy's delay queue after the round, in budgets of a round.
    energy_j: of all devices, work and transmission as planned. loss: mean over the devices that ran, None
    where none did. nmse, sum_rate_bit_per_s_per_hz: on validation samples, where the round was validated (and
    its rate is asked for). product_gap: of the averaged
    LoRA factors, see ``heterogeneous_ranks``, where ranks differ. epsilon: largest of any device so far,
    where privacy is on.
    """

    round_index: int
    ran: tuple[str, ...]
    status: Mapping[str, str]
    shares: Mapping[str, float]
    planned_s: float
    delay_s: float
    now_s: float
    backlog: float
    uplink_bytes: int
    downlink_bytes: int
    energy_j: float
    loss: float | None
    nmse: float | None = None
    sum_rate_bit_per_s_per_hz: float | None = None
    product_gap: float | None = None
    epsilon: float | None = None

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, values: dict[str, Any]) -> "RoundReport":
        """From what ``to_json`` wrote."""
        return cls(**{**values, "ran": tuple(values["ran"])})


class RoundLog:
    """JSON lines, one a round, flushed as they come."""

    def __init__(self, folder: Path, reports: Iterable[RoundReport]) -> None:
        """Starts ``folder``'s file anew with the rounds so far."""
        self._path = folder / ROUNDS_FILE
        with whole_file(self._path) as temporary:
            temporary.write_text("".join(report.to_json() + "\n" for report in reports))

    def write(self, report: RoundReport) -> None:
        """Appends a round."""
        with self._path.open("a") as file:
            file.write(report.to_json() + "\n")


def read_rounds(folder: Path) -> list[RoundReport]:
    """The rounds of a run's folder; a line cut short by a kill ends them."""
    path = folder / ROUNDS_FILE
    reports: list[RoundReport] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            reports.append(RoundReport.of(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            break
    return reports


def write_table(reports: Iterable[RoundReport], path: Path) -> None:
    """The rounds as CSV: one row a round, the devices left out with their reasons in one column."""
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                *("round", "now_s", "delay_s", "planned_s", "backlog", "uplink_bytes", "downlink_bytes"),
                *("energy_j", "loss", "nmse", "sum_rate_bit_per_s_per_hz", "ran", "left_out"),
            ]
        )
        for one in reports:
            left_out = "; ".join(f"{name}: {why}" for name, why in one.status.items() if name not in one.ran)
            numbers = (one.now_s, one.delay_s, one.planned_s, one.backlog)
            sent = (one.uplink_bytes, one.downlink_bytes, f"{one.energy_j:.6g}")
            scores = (one.loss, one.nmse, one.sum_rate_bit_per_s_per_hz)
            writer.writerow([one.round_index, *numbers, *sent, *scores, " ".join(one.ran), left_out])


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Accuracy, and rate where it was asked for, when so much time had passed and been sent up."""

    num_rounds: int
    now_s: float
    uplink_bytes: int
    nmse: float
    sum_rate_bit_per_s_per_hz: float | None = None


def accuracy_curve(
    reports: Sequence[RoundReport], first_nmse: float, first_rate: float | None = None
) -> list[CurvePoint]:
    """Validation NMSE and rate against virtual time, from before the first round."""
    points = [
        CurvePoint(
            num_rounds=0,
            now_s=0.0,
            uplink_bytes=0,
            nmse=first_nmse,
            sum_rate_bit_per_s_per_hz=first_rate,
        )
    ]
    sent = 0
    for one in reports:
        sent += one.uplink_bytes
        if one.nmse is not None:
            points.append(
                CurvePoint(
                    num_rounds=one.round_index + 1,
                    now_s=one.now_s,
                    uplink_bytes=sent,
                    nmse=one.nmse,
                    sum_rate_bit_per_s_per_hz=one.sum_rate_bit_per_s_per_hz,
                )
            )
    return points


def first_at(points: Sequence[CurvePoint], target_nmse: float) -> CurvePoint | None:
    """The first point at or below a target; None where it is never reached."""
    return next((point for point in points if point.nmse <= target_nmse), None)
