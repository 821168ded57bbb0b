"""One training loop for every model: any loss, any samples, early stopping, resumed on a CPU to the bit."""

import hashlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from airlam.errors import AirlamError, SpecError
from airlam.model.storage import assign_tensors, trainable_tensors
from airlam.specs import TrainingSpec
from airlam.training.batches import Samples, batches_in_order, group_sizes, make_sampler
from airlam.training.checkpoint import Checkpoint, check_settings, newest_checkpoint, save_checkpoint
from airlam.training.metrics import (
    MetricsLog,
    OnProgress,
    Progress,
    StopReason,
    TrainingSummary,
    count_flops,
    peak_memory_bytes,
)
from airlam.training.optimiser import adamw, adamw_options, learning_rate
from airlam.training.precision import choose_device, choose_precision, set_precision

METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FOLDER = "checkpoints"
_MAX_GRADIENT_NORM = 1.0
_FREE = ("device", "checkpoint_every_steps")  # may change between the parts of a run
_log = logging.getLogger(__name__)

BatchT = TypeVar("BatchT")
Loss = Callable[[nn.Module, BatchT], torch.Tensor]


def fit(
    model: nn.Module,
    loss: Loss[BatchT],
    samples: Samples[BatchT],
    validation: Samples[BatchT],
    spec: TrainingSpec,
    folder: Path,
    on_progress: OnProgress = lambda progress: None,
    *,
    identity: str = "",
) -> TrainingSummary:
    """Trains ``model`` in place and leaves the weights in it that validated best.

    loss(model, batch): float32 [batch], the loss of each sample; both its mean over ``validation`` and its
    mean over batches of ``batch_size * accumulation_steps`` samples are of it. AdamW with decay on matrices
    only, linear warm-up then cosine, gradients clipped to norm 1.

    ``folder`` receives ``metrics.jsonl`` and ``checkpoints/``. Where it holds a checkpoint of this same run
    (spec, shapes, numbers of samples and ``identity``, any text) training goes on from there: on a CPU to the
    same bits as if it had never stopped. SIGINT ends the run after its step, with a checkpoint.

    Raises DataError where the folder holds another run's checkpoint; AirlamError naming the step where loss
    or gradients are not finite (the last checkpoint stays).
    """
    if not len(samples) or not len(validation):
        raise SpecError(f"{len(samples)} training and {len(validation)} validation samples; both need some")
    device = choose_device(spec)
    model.to(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _interrupt_flag() as interrupted:
        torch.manual_seed(spec.seed)
        trainer = _Trainer(model, loss, samples, validation, spec, folder, device, identity)
        return trainer.run(on_progress, interrupted)


@dataclass(slots=True)
class _State:
    """Counters that a checkpoint carries."""

    step: int = 0
    seconds: float = 0.0
    loss: float | None = None
    validation_loss: float | None = None
    best_validation_loss: float | None = None
    best_step: int = 0
    num_worse: int = 0  # validations since the best
    stop_reason: StopReason | None = None


class _Trainer:
    def __init__(
        self,
        model: nn.Module,
        loss: Loss[Any],
        samples: Samples[Any],
        validation: Samples[Any],
        spec: TrainingSpec,
        folder: Path,
        device: torch.device,
        identity: str,
    ) -> None:
        self.model, self.loss, self.samples, self.validation = model, loss, samples, validation
        self.spec, self.folder, self.device = spec, folder, device
        self.precision = set_precision(model, choose_precision(spec, device))
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise SpecError("nothing in this model trains; choose another tuning")
        self.optimiser = adamw(self.parameters, **adamw_options(spec))
        self.sampler = make_sampler(samples, spec.seed)
        self.state = _State()
        self.best: dict[str, torch.Tensor] = {}
        self.settings = self._settings(identity)
        self.started = time.monotonic()

    def _settings(self, identity: str) -> dict[str, Any]:
        """What must not change between the parts of a run."""
        shapes = {name: list(t.shape) for name, t in trainable_tensors(self.model).items()}
        return {
            **{name: value for name, value in asdict(self.spec).items() if name not in _FREE},
            "precision": str(self.precision),
            "training samples": len(self.samples),
            "validation samples": len(self.validation),
            "identity (SHA-256)": hashlib.sha256(identity.encode()).hexdigest()[:12],
            "trainable tensors": shapes,
        }

    def run(self, on_progress: OnProgress, interrupted: threading.Event) -> TrainingSummary:
        self._resume()
        flops = self._flops_per_sample()
        first_step, started = self.state.step, time.monotonic()
        self.started = started - self.state.seconds  # as if the parts of the run had followed each other
        log = MetricsLog(self.folder / METRICS_FILE, first_step + 1)
        try:
            while self.state.stop_reason is None:
                self._step()
                self._after_step(log, interrupted)
                pace = (self.state.step - first_step) / (time.monotonic() - started)  # steps per second
                on_progress(self._progress(pace))
        finally:
            log.close()
        if self.state.stop_reason != "interrupted":
            assign_tensors(trainable_tensors(self.model), self.best, "the best weights")
        return self._summary(flops)

    def _step(self) -> None:
        self.model.train()
        step, parts = self.state.step + 1, self.spec.accumulation_steps
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.spec, self.state.step)
        total = 0.0
        for _ in range(parts):
            mean = self._losses(self.sampler.next(self.spec.batch_size), self.samples).mean()
            (mean / parts).backward()  # type: ignore[no-untyped-call]
            total += mean.item() / parts
        norm = nn.utils.clip_grad_norm_(self.parameters, _MAX_GRADIENT_NORM).item()
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise AirlamError(
                f"step {step}: loss {total} and gradient norm {norm} are not finite; lower learning_rate "
                f"(now {self.spec.learning_rate:g}) or look for NaN in the data; the last checkpoint in "
                f"{self.folder / CHECKPOINT_FOLDER} is kept"
            )
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.state.step, self.state.loss = step, total

    def _after_step(self, log: MetricsLog, interrupted: threading.Event) -> None:
        """Validates, decides whether to stop, writes the metrics and the checkpoint."""
        state, spec = self.state, self.spec
        last = state.step >= spec.num_steps
        validated = last or state.step % spec.validation_every_steps == 0
        if validated:
            self._validate()
        state.seconds = time.monotonic() - self.started
        if last:
            state.stop_reason = "finished"
        elif state.num_worse >= spec.patience:
            state.stop_reason = "early"
        elif interrupted.is_set():
            state.stop_reason = "interrupted"
        log.write(
            step=state.step,
            loss=state.loss,
            learning_rate=learning_rate(spec, state.step - 1),
            seconds=round(state.seconds, 3),
            validation_loss=state.validation_loss if validated else None,
        )
        if state.stop_reason or state.step % spec.checkpoint_every_steps == 0:
            self._save()

    def _validate(self) -> None:
        """The mean loss over the validation samples; keeps the weights where it is the best so far."""
        self.model.eval()
        total = 0.0
        with torch.no_grad():
            for indices in batches_in_order(self.validation, self.spec.batch_size):
                total += self._losses(indices, self.validation).sum().item()
        value = total / len(self.validation)
        if not math.isfinite(value):
            raise AirlamError(
                f"step {self.state.step}: validation loss is {value}; look for NaN in the validation data"
            )
        self.state.validation_loss = value
        best = self.state.best_validation_loss
        if best is None or value < best:
            self.state.best_validation_loss, self.state.best_step = value, self.state.step
            self.state.num_worse = 0
            self.best = {name: t.clone() for name, t in trainable_tensors(self.model).items()}
        else:
            self.state.num_worse += 1

    def _losses(self, indices: torch.Tensor, samples: Samples[Any]) -> torch.Tensor:
        return self.loss(self.model, self._batch(indices, samples))

    def _batch(self, indices: torch.Tensor, samples: Samples[Any]) -> Any:
        batch = samples.batch(indices)
        return batch if self.device.type == "cpu" else batch.to(self.device)

    def _flops_per_sample(self) -> float:
        """Forward and backward of one batch over its size; leaves no gradient and no random draw behind."""
        size = min(self.spec.batch_size, group_sizes(self.samples)[0])
        batch = self._batch(torch.arange(size), self.samples)
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        self.model.train()

        def compute() -> None:
            self.loss(self.model, batch).mean().backward()  # type: ignore[no-untyped-call]

        flops = count_flops(compute)
        self.optimiser.zero_grad(set_to_none=True)
        for name, value in self.model.named_buffers():
            value.copy_(buffers[name])
        return flops / size

    def _save(self) -> None:
        moments = {
            f"optimiser/{index}/{name}": value
            for index, values in self.optimiser.state_dict()["state"].items()
            for name, value in values.items()
        }
        tensors = {
            **{f"weights/{name}": t for name, t in trainable_tensors(self.model).items()},
            **{f"best/{name}": t for name, t in self.best.items()},
            **moments,
            **{f"sampler/{name}": t for name, t in self.sampler.state.items()},
            "random/cpu": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.device)
        progress = asdict(self.state)
        checkpoint = Checkpoint(
            step=self.state.step, tensors=tensors, progress=progress, settings=self.settings
        )
        save_checkpoint(self.folder / CHECKPOINT_FOLDER, checkpoint)

    def _resume(self) -> None:
        folder = self.folder / CHECKPOINT_FOLDER
        checkpoint = newest_checkpoint(folder)
        if checkpoint is None:
            return
        check_settings(checkpoint, self.settings, self.folder)
        assign_tensors(trainable_tensors(self.model), checkpoint.part("weights"), str(folder))
        self._restore_moments(checkpoint.part("optimiser"))
        self.sampler.restore(checkpoint.part("sampler"))
        random = checkpoint.part("random")
        torch.set_rng_state(random["cpu"])
        if self.device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], self.device)
        self.best = {name: t.to(self.device) for name, t in checkpoint.part("best").items()}
        self.state = _State(**checkpoint.progress)
        if self.state.stop_reason == "interrupted":
            self.state.stop_reason = None
        _log.info("resumed %s after step %d", self.folder, self.state.step)

    def _restore_moments(self, moments: dict[str, torch.Tensor]) -> None:
        state = self.optimiser.state_dict()
        for key, value in moments.items():
            index, _, name = key.partition("/")
            state["state"].setdefault(int(index), {})[name] = value
        self.optimiser.load_state_dict(state)

    def _progress(self, steps_per_s: float) -> Progress:
        state, spec = self.state, self.spec
        assert state.loss is not None
        return Progress(
            step=state.step,
            num_steps=spec.num_steps,
            loss=state.loss,
            samples_per_s=steps_per_s * spec.batch_size * spec.accumulation_steps,
            seconds_left=0.0 if state.stop_reason else (spec.num_steps - state.step) / steps_per_s,
            validation_loss=state.validation_loss,
            best_validation_loss=state.best_validation_loss,
        )

    def _summary(self, flops_per_sample: float) -> TrainingSummary:
        state, spec = self.state, self.spec
        num_parameters = sum(p.numel() for p in self.model.parameters())
        num_trainable = sum(p.numel() for p in self.parameters)
        assert state.stop_reason is not None
        return TrainingSummary(
            num_parameters=num_parameters,
            num_trainable=num_trainable,
            trainable_share=num_trainable / num_parameters,
            flops_per_sample=flops_per_sample,
            seconds=state.seconds,
            peak_memory_bytes=peak_memory_bytes(self.device),
            num_steps=state.step,
            num_samples_seen=state.step * spec.batch_size * spec.accumulation_steps,
            final_loss=state.loss,
            best_step=state.best_step,
            best_validation_loss=state.best_validation_loss,
            stop_reason=state.stop_reason,
            device=str(self.device),
            precision=str(self.precision).removeprefix("torch."),
        )


@contextmanager
def _interrupt_flag() -> Iterator[threading.Event]:
    """An event that the first SIGINT sets; the second interrupts as usual.

    Outside the main thread signals cannot be caught, and the event stays unset.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        flag.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
