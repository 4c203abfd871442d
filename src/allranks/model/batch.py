"""A micro-batch as tensors on this rank's device."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TorchBatch:
    """One flattened row of packed documents.

    Shapes: `input_ids`, `position_ids` int64 [1, T]; `label_positions`, `labels` int64 [L]. `lengths` (on the host) are
    the documents' lengths in order and sum to T; `block_lengths` those of the blocks, without padding. The output at
    `label_positions[i]` predicts `labels[i]`.
    """

    input_ids: Tensor
    position_ids: Tensor
    lengths: tuple[int, ...]
    label_positions: Tensor
    labels: Tensor
    num_tokens: int
    block_lengths: tuple[int, ...]


def to_device(micro_batch: Any, device: torch.device) -> TorchBatch:
    """Copy a `data.MicroBatch` to `device`, without waiting for the copy on CUDA.

    A micro-batch without any token becomes one padding token without a label: every rank must run the model equally
    often, or collectives would not meet.
    """
    input_ids, position_ids, lengths = micro_batch.input_ids, micro_batch.position_ids, tuple(micro_batch.lengths)
    if input_ids.size == 0:
        input_ids, position_ids, lengths = np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64), (1,)

    def copy(array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
        if device.type == "cuda":
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor.to(device)

    return TorchBatch(
        copy(input_ids),
        copy(position_ids),
        tuple(int(n) for n in lengths),
        copy(micro_batch.label_positions),
        copy(micro_batch.labels),
        int(micro_batch.num_tokens),
        tuple(int(n) for n in micro_batch.block_lengths),
    )
