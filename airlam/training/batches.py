"""What the training loop asks of data, and the order in which it draws."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

BatchT_co = TypeVar("BatchT_co", covariant=True)


class Samples(Protocol[BatchT_co]):
    """Indexed samples. A batch is what the loss understands; on a GPU it needs ``to(device)``."""

    def __len__(self) -> int: ...

    def batch(self, indices: torch.Tensor) -> BatchT_co:
        """The samples at ``indices`` (int64 [n])."""
        ...


@runtime_checkable
class GroupedSamples(Samples[BatchT_co], Protocol[BatchT_co]):
    """Samples of which only those of one group fit in a batch; the groups stand one after another."""

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Samples of each group; their sum is the length."""
        ...


def group_sizes(samples: Samples[Any]) -> tuple[int, ...]:
    """Samples of each group; where there are no groups all are one."""
    return samples.group_sizes if isinstance(samples, GroupedSamples) else (len(samples),)


def batches_in_order(samples: Samples[Any], size: int) -> Iterator[torch.Tensor]:
    """Every index once, int64, in batches of at most ``size`` that stay within a group."""
    for group in torch.split(torch.arange(len(samples)), list(group_sizes(samples))):
        yield from torch.split(group, size)


class Sampler:
    """Endless shuffled passes over ``num_samples``; its state fits in a checkpoint.

    A batch may straddle two passes, so every batch is full. ``state`` is what ``restore`` needs to go on with
    the very next batch: the generator as it was before the current pass was drawn, and the place in the pass.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples = num_samples
        self._generator = torch.Generator().manual_seed(seed)
        self._begin_pass()

    def _begin_pass(self) -> None:
        self._before_pass = self._generator.get_state()
        self._order = torch.randperm(self.num_samples, generator=self._generator)  # [num_samples]
        self._place = 0

    def next(self, size: int) -> torch.Tensor:
        """Indices of the next batch, int64 [size]."""
        taken: list[torch.Tensor] = []
        while size:
            if self._place == self.num_samples:
                self._begin_pass()
            part = self._order[self._place : self._place + size]
            taken.append(part)
            self._place += len(part)
            size -= len(part)
        return torch.cat(taken)

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """Generator state (uint8) and place (int64 scalar)."""
        return {"generator": self._before_pass, "place": torch.tensor(self._place)}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Goes on where ``state`` was taken."""
        self._generator.set_state(state["generator"])
        self._begin_pass()
        self._place = int(state["place"])


class GroupSampler:
    """Batches of one group each: the groups take turns in shuffled rounds, each with passes of its own.

    Every group is drawn from as often, however many samples it has. ``state`` is as in ``Sampler``.
    """

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        self._turns = Sampler(len(sizes), seed)
        self._groups = [Sampler(size, seed + index) for index, size in enumerate(sizes, 1)]
        self._starts = [0, *itertools.accumulate(sizes)]

    def next(self, size: int) -> torch.Tensor:
        """Indices of the next batch, int64 [size]."""
        group = int(self._turns.next(1))
        return self._starts[group] + self._groups[group].next(size)

    @property
    def _parts(self) -> dict[str, Sampler]:
        return {"turns": self._turns} | {str(index): part for index, part in enumerate(self._groups)}

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The states of all samplers."""
        states = {name: part.state for name, part in self._parts.items()}
        return {f"{name}/{key}": value for name, state in states.items() for key, value in state.items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Goes on where ``state`` was taken."""
        for name, part in self._parts.items():
            part.restore({key: state[f"{name}/{key}"] for key in part.state})


def make_sampler(samples: Samples[Any], seed: int) -> Sampler | GroupSampler:
    """What draws the batches of ``samples``."""
    sizes = group_sizes(samples)
    return Sampler(sizes[0], seed) if len(sizes) == 1 else GroupSampler(sizes, seed)
