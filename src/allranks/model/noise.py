"""NEFTune: noise on the embeddings while training (https://arxiv.org/abs/2310.05914)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class EmbeddingNoise:
    """Adds to each embedded token uniform noise within alpha / sqrt(length of its document x width).

    The documents' own lengths count, not that of the row that they are packed into: else the noise would depend on
    packing and micro-batches. It is drawn as dropout is, by seed, step and rank. None in evaluations.
    """

    def __init__(self, model: PreTrainedModel, alpha: float) -> None:
        self.alpha = alpha
        self._lengths: tuple[int, ...] | None = None
        model.get_input_embeddings().register_forward_hook(self._add)

    @contextmanager
    def over(self, lengths: tuple[int, ...]) -> Iterator[None]:
        """Around the forward pass of documents of these lengths."""
        self._lengths = lengths
        try:
            yield
        finally:
            self._lengths = None

    def _add(self, module: nn.Module, inputs: tuple[Any, ...], embedded: Tensor) -> Tensor:
        if not module.training or self._lengths is None:
            return embedded
        lengths = torch.tensor(self._lengths, device=embedded.device)
        bound = self.alpha / (lengths * embedded.shape[-1]).sqrt()
        noise = torch.empty_like(embedded).uniform_(-1, 1)
        return embedded + noise * torch.repeat_interleave(bound, lengths)[:, None].to(embedded.dtype)
