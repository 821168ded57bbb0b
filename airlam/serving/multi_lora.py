"""Several adapters on one set of frozen weights, each for its own rows of a batch (multi-LoRA).

y = W x + (alpha_k / r_k) B_k A_k x for the rows x of adapter k: the frozen product is done once a batch, the
low-rank ones adapter by adapter; ranks may differ. Norms are trained with an adapter, so each brings its own.
After Chen et al., Punica, 2310.18547, whose kernel gathers rows; here a batch is sorted by adapter before it
enters, so that rows are slices.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

Rows = tuple[tuple[int, slice], ...]


class AdapterRows:
    """Which rows of the batch under way belong to which adapter; its layers all read the same one."""

    def __init__(self) -> None:
        self.of: Rows = ()

    @contextmanager
    def split(self, counts: Sequence[int]) -> Iterator[None]:
        """Within this, the batch's rows stand in the order of the adapters, ``counts[k]`` of adapter k."""
        ends = torch.tensor(counts).cumsum(0).tolist()
        before, self.of = (
            self.of,
            tuple((k, slice(e - n, e)) for k, (n, e) in enumerate(zip(counts, ends, strict=True)) if n),
        )
        try:
            yield
        finally:
            self.of = before


@dataclass(frozen=True, slots=True)
class LowRank:
    """An adapter of one projection, scaled: ``down`` float [d_in, rank], ``up`` float [rank, d_out]."""

    down: torch.Tensor
    up: torch.Tensor


class MultiLora(nn.Module):
    """A frozen projection and the adapters put on it; None where a LAM was tuned without."""

    def __init__(self, base: nn.Module, adapters: Sequence[LowRank | None], rows: AdapterRows) -> None:
        super().__init__()
        self.base = base
        self._rows = rows
        self._adapters = tuple(adapters)

    def adapter_tensors(self) -> Iterator[torch.Tensor]:
        """The adapters' weights, which are no parameters: nothing trains here."""
        for adapter in self._adapters:
            if adapter is not None:
                yield from (adapter.down, adapter.up)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: float32 [batch, num_tokens, d_in]; returns float32 [batch, num_tokens, d_out]."""
        output = cast(torch.Tensor, self.base(hidden))
        for index, rows in self._rows.of:
            adapter = self._adapters[index]
            if adapter is not None:
                low = hidden[rows].flatten(0, -2) @ adapter.down  # [rows * num_tokens, rank]
                output[rows].view(-1, output.shape[-1]).addmm_(
                    low, adapter.up
                )  # in place, on consecutive rows
        return output


class PerAdapter(nn.Module):
    """A module of which each adapter has its own copy, as norms are."""

    def __init__(self, copies: Sequence[nn.Module], rows: AdapterRows) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copies)
        self._rows = rows

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: float32 [batch, num_tokens, width], in and out."""
        if len(self._rows.of) == 1:
            return cast(torch.Tensor, self.copies[self._rows.of[0][0]](hidden))
        return torch.cat([self.copies[index](hidden[rows]) for index, rows in self._rows.of])
