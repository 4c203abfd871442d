"""The output layer of a model, which can be asked for the loss in place of logits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from allranks.model.chunked import (
    PLAIN,
    RECOMPUTED_COPIES,
    Shaping,
    is_linear,
    linear_cross_entropy,
    module_cross_entropy,
    rows_of_a_chunk,
)
from allranks.model.loss import takes_logits_to_keep


@dataclass(frozen=True)
class Kernel:
    """A library's way to make the loss, in place of ours.

    `run`: (hidden [L, H], weight, bias, labels [L], shaping) -> the sum of cross entropy.
    """

    library: str
    run: Callable[[Tensor, Tensor, Tensor | None, Tensor, Shaping], Tensor]


# The model's code bends whatever the output layer returns, and the loss with it. So near to 0, tanh is the identity to
# the last bit; a power of two, so that going there and back is exact.
_NEAR_ZERO = 2.0**-60


@dataclass(frozen=True)
class LogitsSpec:
    """How a model makes logits of its last hidden states: `shaping` of the output layer's outputs; the layer runs at
    `logits_to_keep` only, if `keeps`."""

    shaping: Shaping
    keeps: bool


class LossHead:
    """Stands in the place of the output layer's `forward`: between `targets` it returns the loss, else logits.

    The loss has to be made *inside* the layer's call: only there does FSDP or ZeRO hold its weight, and only so do the
    hooks of adapters and of DDP see what they expect.
    """

    def __init__(
        self, model: PreTrainedModel, spec: LogitsSpec, *, num_chunks: int | None = None, kernel: Kernel | None = None
    ) -> None:
        self.spec = spec
        self.num_chunks = num_chunks
        self.kernel = kernel
        self._module = _computing(model.get_output_embeddings())
        self._logits = self._module.forward
        self._shrunk = 1.0 if spec.shaping == PLAIN else _NEAR_ZERO
        self._targets: tuple[Tensor, Tensor] | None = None
        self._each = False
        self._module.forward = self._forward

    @property
    def way(self) -> str:
        """How the loss is made, for the user."""
        return "in chunks" if self.kernel is None else f"by {self.kernel.library}"

    @contextmanager
    def targets(self, positions: Tensor, labels: Tensor, *, each: bool = False) -> Iterator[None]:
        """While a model's forward pass runs in it, what it returns as logits is the loss at these positions
        (`loss_of`), or with `each` that of each of them (`losses_of`), without a graph."""
        self._targets, self._each = (positions, labels), each
        try:
            yield
        finally:
            self._targets = None

    def loss_of(self, logits: Tensor) -> Tensor:
        """The loss, a scalar, out of what a forward pass between `targets` returned as logits."""
        return logits.view(()) * (1 / (self._shrunk * self.spec.shaping.scale))

    def losses_of(self, logits: Tensor) -> Tensor:
        """The losses, [L], out of what a forward pass between `targets` with `each` returned as logits."""
        return logits.view(-1) * (1 / (self._shrunk * self.spec.shaping.scale))

    def _forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._targets is None:
            return self._logits(hidden, *args, **kwargs)
        positions, labels = self._targets
        hidden = hidden[0] if self.spec.keeps else hidden[0].index_select(0, positions)
        if self._each:
            return self._losses(hidden, labels).view(1, -1, 1) * self._shrunk
        # The product last: FSDP warns of layers that return a view.
        return self._loss(hidden, labels).view(1, 1, 1) * self._shrunk

    def _loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        module: Any = self._module
        shaping = self.spec.shaping
        # A quantized weight has another shape than the layer.
        size = (len(labels), getattr(module, "out_features", None) or module.weight.shape[0], self.num_chunks)
        if not is_linear(module):
            rows = rows_of_a_chunk(*size, copies=RECOMPUTED_COPIES)
            return module_cross_entropy(self._logits, hidden, labels, rows=rows, shaping=shaping)
        if self.kernel is not None and len(labels):
            return self.kernel.run(hidden, module.weight, module.bias, labels, shaping)
        rows = rows_of_a_chunk(*size)
        return linear_cross_entropy(hidden, module.weight, module.bias, labels, rows=rows, shaping=shaping)

    @torch.no_grad()
    def _losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        vocabulary = getattr(self._module, "out_features", None) or self._module.weight.shape[0]
        rows = rows_of_a_chunk(len(labels), vocabulary, self.num_chunks)
        return torch.cat(
            [
                cross_entropy(self.spec.shaping(self._logits(part).float()), wanted, reduction="none")
                for part, wanted in zip(hidden.split(rows), labels.split(rows), strict=True)
            ]
        )


def logits_spec(model: PreTrainedModel) -> LogitsSpec | None:
    """How `model` makes its logits, found by asking its own code; None where it is none of the ways that are known.

    The model's forward runs with the body and the output layer replaced: both return chosen numbers, and what the
    model returns tells what it did to them. No weight is read: the parameters may be on the meta device.
    """
    head = model.get_output_embeddings()
    if head is None or model.base_model is model or not hasattr(_computing(head), "weight"):
        return None
    hidden = torch.arange(5.0).view(1, 5, 1).expand(1, 5, 3)
    keep = torch.tensor([1, 3])
    # Large ones too, so that a cap shows.
    numbers = torch.linspace(-90, 90, 41).view(1, 1, -1)
    seen: list[Tensor] = []

    def body(*args: Any, **kwargs: Any) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=hidden)

    def layer(given: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(given)
        return numbers.clone()

    options = {"logits_to_keep": keep} if takes_logits_to_keep(model) else {}
    try:
        with replaced(model.base_model, body), replaced(head, layer), torch.no_grad():
            logits = model(input_ids=torch.zeros(1, 5, dtype=torch.int64), use_cache=False, **options).logits
    except Exception:  # whatever a model's code does not find in so little: its logits are then made in full
        return None
    shaping = _shaping(numbers, logits, model)
    if shaping is None or len(seen) != 1:
        return None
    for keeps, expected in ((True, hidden[:, keep]), (False, hidden)):
        if torch.equal(seen[0].float(), expected):
            return LogitsSpec(shaping, keeps)
    return None


def _shaping(numbers: Tensor, logits: Any, model: PreTrainedModel) -> Shaping | None:
    """The shaping that makes `logits` of `numbers`."""
    if not isinstance(logits, Tensor) or logits.shape != numbers.shape or logits.dtype != torch.float32:
        return None
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    found = [PLAIN, Shaping(scale=(logits.flatten()[-1] / numbers.flatten()[-1]).item())]
    found += [Shaping(cap=float(cap))] if cap else []
    return next((one for one in found if torch.allclose(one(numbers), logits, rtol=1e-5, atol=0)), None)


def _computing(head: Any) -> Any:
    """The module that computes: PEFT keeps a trained copy of a module that is saved whole beside the original."""
    if hasattr(head, "modules_to_save"):
        return head.modules_to_save["default"]
    return head


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within it, `forward` runs in place of the module's own."""
    had = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if had is not None:
            module.forward = had
