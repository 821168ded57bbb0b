"""A whole run of rounds: validation, the best weights, checkpoints from which a killed run goes on."""

import hashlib
import logging
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from airlam.errors import AirlamError
from airlam.model.lam import LAM
from airlam.model.storage import assign_tensors, trainable_tensors
from airlam.specs import require, spec_to_dict
from airlam.training.checkpoint import Checkpoint, check_settings, newest_checkpoint, save_checkpoint
from airlam.training.federated.engine import Federation
from airlam.training.federated.report import CurvePoint, RoundLog, RoundReport, accuracy_curve
from airlam.training.federated.setup import Setup
from airlam.training.metrics import StopReason

CHECKPOINTS = "checkpoints"
_log = logging.getLogger(__name__)
Evaluate = Callable[[LAM], float]
"""Of a LAM in evaluation mode on validation samples: its NMSE, or its sum rate in bit/s/Hz."""
OnRound = Callable[[RoundReport], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FederatedResult:
    """What came of a run. lam: the best on validation, of the first device where each has its own."""

    lam: LAM
    reports: tuple[RoundReport, ...]
    first_nmse: float
    best_nmse: float
    best_round: int
    stop_reason: StopReason
    first_rate: float | None = None

    @property
    def curve(self) -> list[CurvePoint]:
        """Validation NMSE, and rate where one was asked for, against virtual time."""
        return accuracy_curve(self.reports, self.first_nmse, self.first_rate)


@dataclass(slots=True)
class _Best:
    """The validations so far, as a checkpoint carries them."""

    first_nmse: float
    nmse: float
    first_rate: float | None = None
    round_index: int = 0  # rounds before it
    num_worse: int = 0
    stop_reason: StopReason | None = None


def train_together(
    setup: Setup,
    evaluate: Evaluate,
    *,
    rate: Evaluate | None = None,
    folder: Path | None = None,
    on_round: OnRound = lambda report: None,
    identity: str = "",
) -> FederatedResult:
    """Runs ``setup.num_rounds`` rounds; fewer where ``training.patience`` validations bring nothing better.

    evaluate: of devices with modules of their own, the mean of all; it chooses the weights. rate: reported
    beside it. folder: keeps ``rounds.jsonl`` and
    checkpoints, from which a killed run of the same ``identity`` goes on to the same bits; DataError where it
    holds another run's. Without it nothing is written.
    """
    run = _Run(setup, evaluate, rate, folder, identity)
    try:
        return run.run(on_round)
    finally:
        run.federation.close()


class _Run:
    def __init__(
        self, setup: Setup, evaluate: Evaluate, rate: Evaluate | None, folder: Path | None, identity: str
    ) -> None:
        steps = setup.federated.steps_per_round
        require(
            setup.training.num_steps % steps == 0,
            f"num_steps {setup.training.num_steps} is no multiple of steps_per_round {steps}",
        )
        self.setup, self.evaluate, self.rate, self.folder = setup, evaluate, rate, folder
        self.federation = Federation(setup)
        self.reports: list[RoundReport] = []
        self.settings = {
            **spec_to_dict(setup.training),
            "federated": spec_to_dict(setup.federated),
            "identity (SHA-256)": hashlib.sha256(identity.encode()).hexdigest()[:12],
        }

    def run(self, on_round: OnRound) -> FederatedResult:
        """To the end, from where it stopped."""
        best, kept = self._resumed()
        log = None if self.folder is None else RoundLog(self.folder, self.reports)
        while best.stop_reason is None:
            report = self.federation.run_round()
            if self._is_due(self.setup.training.validation_every_steps):
                report, kept = self._validated(report, best, kept)
            if self.federation.round_index >= self.setup.num_rounds:
                best.stop_reason = "finished"
            elif best.num_worse >= self.setup.training.patience:
                best.stop_reason = "early"
            self.reports.append(report)
            if log is not None:
                log.write(report)
            if best.stop_reason or self._is_due(self.setup.training.checkpoint_every_steps):
                self._save(best, kept)
            on_round(report)
        lam = next(iter(self.federation.models().values()))
        assign_tensors(trainable_tensors(lam), kept, "the best weights")
        return FederatedResult(
            lam=lam.eval(),
            reports=tuple(self.reports),
            first_nmse=best.first_nmse,
            best_nmse=best.nmse,
            best_round=best.round_index,
            stop_reason=best.stop_reason,
            first_rate=best.first_rate,
        )

    def _is_due(self, every_steps: int) -> bool:
        """Whether the rounds so far have passed another multiple of so many steps, or are all."""
        steps = self.setup.federated.steps_per_round
        done = self.federation.round_index * steps
        return done // every_steps > (done - steps) // every_steps or done >= self.setup.training.num_steps

    def _validated(
        self, report: RoundReport, best: _Best, kept: dict[str, torch.Tensor]
    ) -> tuple[RoundReport, dict[str, torch.Tensor]]:
        models = self.federation.models()
        nmse, rate = self._scores(list(models.values()))
        if not math.isfinite(nmse):
            raise AirlamError(f"round {report.round_index}: validation NMSE is {nmse}; lower learning_rate")
        if nmse < best.nmse:
            best.nmse, best.round_index, best.num_worse = nmse, self.federation.round_index, 0
            kept = _trained(next(iter(models.values())))
        else:
            best.num_worse += 1
        return replace(report, nmse=nmse, sum_rate_bit_per_s_per_hz=rate), kept

    def _scores(self, models: list[LAM]) -> tuple[float, float | None]:
        """Mean NMSE and mean rate."""
        ready = [lam.eval() for lam in models]
        nmse = statistics.mean(map(self.evaluate, ready))
        return nmse, None if self.rate is None else statistics.mean(map(self.rate, ready))

    def _resumed(self) -> tuple[_Best, dict[str, torch.Tensor]]:
        """Where the folder's newest checkpoint left off, or the start."""
        found = None if self.folder is None else newest_checkpoint(self.folder / CHECKPOINTS)
        if self.folder is None or found is None:
            first = next(iter(self.federation.models().values())).eval()
            nmse, rate = self._scores([first])
            return _Best(first_nmse=nmse, nmse=nmse, first_rate=rate), _trained(first)
        check_settings(found, self.settings, self.folder)
        self.federation.resume(found.tensors, found.progress["federation"])
        self.reports = [RoundReport.of(values) for values in found.progress["reports"]]
        _log.info("resumed %s after round %d", self.folder, self.federation.round_index)
        return _Best(**found.progress["best"]), found.part("best")

    def _save(self, best: _Best, kept: Mapping[str, torch.Tensor]) -> None:
        if self.folder is None:
            return
        tensors, values = self.federation.state()
        checkpoint = Checkpoint(
            step=self.federation.round_index,
            tensors=tensors | {f"best/{name}": value for name, value in kept.items()},
            progress={
                "federation": values,
                "best": asdict(best),
                "reports": [asdict(report) for report in self.reports],
            },
            settings=self.settings,
        )
        save_checkpoint(self.folder / CHECKPOINTS, checkpoint)


def _trained(lam: LAM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainable_tensors(lam).items()}
