"""What a frozen stage made of each sample, kept where the next stage runs, so that it is sent once."""

import torch

from airlam.split.messages import MessageError, TensorField, check_tensor


class SampleCache:
    """Rows and masks by flow and sample."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {}

    @property
    def num_bytes(self) -> int:
        """What the rows and masks take."""
        return sum(part.nbytes for rows in self._rows.values() for pair in rows.values() for part in pair)

    def exchange(
        self,
        flow: str,
        sample_ids: torch.Tensor,
        fresh: torch.Tensor,
        rows: torch.Tensor | None,
        mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes the rows that came and gives those of the whole batch.

        sample_ids: int64 [batch]. fresh: bool [batch], which of them came. rows: float32 [num_fresh,
        num_tokens, size], mask: bool [num_fresh, num_tokens]; None where nothing is fresh.
        Returns float32 [batch, num_tokens, size] and bool [batch, num_tokens]. MessageError where the counts
        do not agree, or a sample is not here: the sender is to send it again.
        """
        check_tensor("fresh", fresh, TensorField.of(torch.bool, None))
        check_tensor("sample_ids", sample_ids, TensorField.of(torch.int64, len(fresh)))
        came, num_rows = sample_ids[fresh].tolist(), 0 if rows is None else len(rows)
        if len(came) != num_rows or (rows is None) != (mask is None):
            raise MessageError(f"{len(came)} samples are fresh, but {num_rows} rows came")
        kept = self._rows.setdefault(flow, {})
        if rows is not None and mask is not None:
            kept.update(zip(came, zip(rows.detach().unbind(), mask.unbind(), strict=True), strict=True))
        unknown = [index for index in sample_ids.tolist() if index not in kept]
        if unknown:
            raise MessageError(f"sample {unknown[0]} of {flow} is not kept here; send its row again")
        pairs = [kept[index] for index in sample_ids.tolist()]
        return torch.stack([row for row, _ in pairs]), torch.stack([mask for _, mask in pairs])
