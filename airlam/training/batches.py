"""What the training loop asks of data, and the order in which it draws."""

from typing import Protocol, TypeVar

import torch

BatchT_co = TypeVar("BatchT_co", covariant=True)


class Samples(Protocol[BatchT_co]):
    """Indexed samples. A batch is what the loss understands; on a GPU it needs ``to(device)``."""

    def __len__(self) -> int: ...

    def batch(self, indices: torch.Tensor) -> BatchT_co:
        """The samples at ``indices`` (int64 [n])."""
        ...


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
