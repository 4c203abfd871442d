"""The loss in chunks beside the loss in one piece, PyTorch's own chunks and Liger's: how exact, how fast, how small."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.loss_memory import WAYS, Case, inputs, lack, loss_by, measured
from benchmarks.parts.part import Place, Row, not_tried

# Shares of the loss and of the gradients' norms. The sum of the loss is made in float32, whatever the type.
_LOSS_WITHIN = {"float32": 1e-5, "bfloat16": 1e-3}
_GRADIENT_WITHIN = {"float32": 1e-4, "bfloat16": 2e-2}


def run(place: Place) -> Iterator[Row]:
    on_gpu = place.device == "cuda"
    # On a GPU those of an 8B Llama: full logits in float32 are 4.2 GB.
    sizes = (8192, 128_256, 4096) if on_gpu else (256, 2000, 64)
    for dtype in ("float32", "bfloat16"):
        exact = None
        for way, name in WAYS.items():
            if reason := lack(way, place.device):
                if dtype == "float32":
                    yield not_tried(name, reason)
                continue
            try:
                if exact is None:
                    exact = _in_float64(place.device, dtype)
                yield _exactness(way, f"{name}, {dtype}", place.device, dtype, exact)
                if not on_gpu or dtype == "bfloat16":
                    peak, seconds = measured(way, Case(*sizes, place.device, dtype), repeats=5 if on_gpu else 1)
                    # What a CPU process gave back it may still hold: there each way needs a process of its own.
                    memory = f", {peak / 2**20:.0f} MiB beyond gradients" if on_gpu else " of the CPU"
                    yield Row(f"{name}, {dtype}: {sizes[0]} labels of {sizes[1]}", f"{1000 * seconds:.1f} ms{memory}")
            except RuntimeError as error:  # of a library: the other ways are still worth trying
                verdict = None if way.startswith("torch") else False
                yield Row(f"{name}, {dtype}", f"{type(error).__name__}: {str(error)[:300]}", "runs", verdict)


_SMALL = (300, 2000, 64)


def _made(device: str, dtype: str) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return inputs(Case(*_SMALL, device, dtype))


def _in_float64(device: str, dtype: str) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Loss and gradients, of hidden states and of the weight, of the numbers that `dtype` has left of the inputs."""
    layer, hidden, labels = _made(device, dtype)
    layer, hidden = layer.double(), hidden.detach().double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(layer(hidden), labels, reduction="sum")
    loss.backward()
    return loss.item(), hidden.grad, layer.weight.grad


def _exactness(way: str, name: str, device: str, dtype: str, exact: tuple[float, torch.Tensor, torch.Tensor]) -> Row:
    layer, hidden, labels = _made(device, dtype)
    loss = loss_by(way, layer, hidden, labels)
    loss.backward()
    of_loss = abs(loss.item() - exact[0]) / exact[0]
    gradients = ((hidden.grad, exact[1]), (layer.weight.grad, exact[2]))
    of_gradients = max(((found.double() - want).norm() / want.norm()).item() for found, want in gradients)
    told = f"loss {of_loss:.1e}, gradients {of_gradients:.1e}"
    values: dict[str, float | str | None] = {"of_loss": of_loss, "of_gradients": of_gradients}
    if way.startswith("torch"):  # known to round its sums to 16 bits, and taken in float32 only
        return Row(f"{name}: off from float64", told, values=values)
    within = _LOSS_WITHIN[dtype], _GRADIENT_WITHIN[dtype]
    return Row(
        f"{name}: off from float64",
        told,
        f"within {within[0]:.0e} and {within[1]:.0e}",
        of_loss <= within[0] and of_gradients <= within[1],
        values,
    )
