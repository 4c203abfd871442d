"""Base models whose experts lie in MXFP4 (gpt-oss), read as what the numbers say.

Format: OCP Microscaling Formats 1.0: blocks of 32 numbers of 4 bits (E2M1), two a byte, and an exponent a block.
A number is made exactly in bfloat16, so it does not matter in which dtype it is made.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from allranks.model.weights import MadeTensor, StoredTensor, read_rows

_BLOCKS, _SCALES = "_blocks", "_scales"
_PER_BLOCK = 32


@dataclass(frozen=True)
class Mxfp4Tensor(MadeTensor):
    """A tensor [experts, inputs, outputs], stored as `blocks` [experts, outputs, blocks, 16] and `scales` of these."""

    blocks: StoredTensor
    scales: StoredTensor

    def make_rows(self, first: int, num: int) -> Tensor:
        """Experts `first` ... `first + num`, as transformers reads them."""
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        parts = [torch.empty((num, *part.shape[1:]), dtype=part.dtype) for part in (self.blocks, self.scales)]
        for stored, part in zip((self.blocks, self.scales), parts, strict=True):
            read_rows(stored, first, part)
        return convert_moe_packed_tensors(*parts, dtype=self.dtype)


def gather_blocks(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint with each one in MXFP4 under the name that it has in the model."""
    gathered: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        base = name.removesuffix(_BLOCKS)
        scales = stored.get(base + _SCALES)
        if name.endswith(_SCALES) and name.removesuffix(_SCALES) + _BLOCKS in stored:
            continue
        if base == name or scales is None or tensor.shape != (*scales.shape, _PER_BLOCK // 2):
            gathered[name] = tensor
            continue
        experts, outputs, blocks, _ = tensor.shape
        shape = (experts, blocks * _PER_BLOCK, outputs)
        gathered[base] = Mxfp4Tensor(tensor.file, base, torch.bfloat16, shape, tensor.offset, tensor, scales)
    return gathered
