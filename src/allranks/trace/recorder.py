"""Every storage that comes and goes while a program runs, in order: what is alive at any moment, and what it is."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from allranks.trace.gradient_sums import IN_PLACE, is_in_place, uses_of_one

# Whose code asked for a storage, by the file of the nearest frame that says it.
_ASKED_BY = {
    "/torch/distributed/fsdp/": "communication",
    "/deepspeed/": "communication",
    "/allranks/model/comm_hooks.py": "communication",
    "/allranks/model/chunked.py": "logits",
    "/torch/nn/modules/linear_cross_entropy.py": "logits",
    "/allranks/model/head.py": "logits",
    "/torch/optim/": "optimizer",
    "/torch/nn/utils/clip_grad.py": "gradients",
}
_GLOO_GATHERS = "c10d::_allgather_base_"
"""gloo gathers into a tensor of its own, as large as what is gathered (torch's ProcessGroupGloo.cpp). It has no
reduce-scatter, and what PyTorch does in its place leaves no peak."""
_FRAMES = 24  # from an operation up to whoever asked for it; FSDP's collectives take about ten
OTHERWISE = "activations"

Phase = tuple[str, int]
"""A part of a step (`forward`, `head`, `backward`, `step`), and the layer that it is about."""


@dataclass(eq=False)
class Held:
    """One storage: how large it is now, and what it belongs to."""

    num_bytes: int
    kind: str


class Recorder(TorchDispatchMode):
    """Within it, storages that operations make are counted until nothing refers to them, on real and on fake tensors.

    What becomes known of a storage later (`mark`) holds from its beginning, so every change is kept: some hundred a
    layer. `phase` is whatever the program does now. What a kernel takes and gives back by itself is not seen.
    `granule`: sizes are rounded up to its multiples, as an allocator does. `gloo`: gathers that are fake are counted
    with the copy that gloo makes.
    """

    def __init__(self, *, granule: int = 1, gloo: bool = False) -> None:
        super().__init__()
        self._gloo = gloo
        self.phase: Phase = ("start", 0)
        self._granule = granule
        self._changes: list[tuple[Held, int, Phase]] = []
        self._held: dict[int, tuple[Held, weakref.ref[Any]]] = {}
        self._fake: list[Any] = []
        self._resize: list[Any] = []
        uses_of_one()
        self._bodies = _bodies()

    def __enter__(self) -> Recorder:
        self._fake.append(_fake_mode())
        resize = torch.UntypedStorage.resize_
        self._resize.append(resize)

        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            done = resize(storage, size)
            self._see(storage)
            return done

        # FSDP gives and takes the memory of what it gathers so, and no mode hears of it.
        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign, assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.UntypedStorage.resize_ = self._resize.pop()  # type: ignore[method-assign]
        self._fake.pop()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it calls again with the shards
        if (body := self._bodies.get(func)) is not None:
            with self:
                return body(*args, **(kwargs or {}))
        if is_in_place(func, args):
            func = IN_PLACE
        made = func(*args, **(kwargs or {}))
        if self._gloo and func.name() == _GLOO_GATHERS:
            self._pass(args[0].untyped_storage().size())
        # DTensors ask for the shape of the whole in a fake mode of their own.
        if _fake_mode() is self._fake[-1]:
            for one in tree_iter(made):
                if isinstance(one, Tensor):
                    self._see(one.untyped_storage())
        return made

    def mark(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Say what these are, from their beginning on."""
        for tensor in tensors:
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            self._see(local.untyped_storage()).kind = kind

    def mark_left(self, kind: str) -> None:
        """Say so of all that is alive and was taken for an activation."""
        for held, _ in self._held.values():
            if held.kind == OTHERWISE:
                held.kind = kind

    def now(self) -> int:
        """Bytes that are alive."""
        return sum(held.num_bytes for held, _ in self._held.values())

    def peaks(self, since: str = "") -> dict[Phase, Counter[str]]:
        """Of each phase the bytes by kind when most were alive in it, from the first phase named `since` on."""
        best: dict[Phase, tuple[int, int]] = {}
        total, begun = 0, not since
        for index, (_, change, phase) in enumerate(self._changes):
            before, total = total, total + change
            begun = begun or phase[0] == since
            if begun and max(before, total) > best.get(phase, (-1, 0))[0]:
                best[phase] = (total, index + 1) if total > before else (before, index)
        wanted = {at: phase for phase, (_, at) in best.items()}
        by_index: dict[int, Counter[str]] = {}
        parts: Counter[str] = Counter()
        for index in range(len(self._changes) + 1):
            if index in wanted:
                by_index[index] = Counter({kind: size for kind, size in parts.items() if size})
            if index < len(self._changes):
                held, change, _ = self._changes[index]
                parts[held.kind] += change
        return {phase: by_index[at] for phase, (_, at) in best.items()}

    def _see(self, storage: torch.UntypedStorage) -> Held:
        key, size = storage._cdata, -(-storage.size() // self._granule) * self._granule
        known = self._held.get(key)
        if known is not None and known[1]() is storage:
            self._change(known[0], size - known[0].num_bytes)
            return known[0]
        held = Held(0, _kind())

        def gone(reference: weakref.ref[Any]) -> None:
            self._change(held, -held.num_bytes)
            if key in self._held and self._held[key][1] is reference:
                del self._held[key]

        self._held[key] = (held, weakref.ref(storage, gone))
        self._change(held, size)
        return held

    def _pass(self, num_bytes: int) -> None:
        """What is there for a moment only."""
        copy = Held(0, "communication")
        self._change(copy, num_bytes)
        self._change(copy, -num_bytes)

    def _change(self, held: Held, num_bytes: int) -> None:
        if num_bytes:
            held.num_bytes += num_bytes
            self._changes.append((held, num_bytes, self.phase))


def _bodies() -> dict[Any, Any]:
    """Operations of torch's that are written in Python, and take much for themselves, with what they run."""
    try:
        from torch.nn.modules.linear_cross_entropy import _linear_cross_entropy_batch_chunked as chunked
    except ImportError:  # it came with torch 2.13
        return {}
    return {chunked._opoverload: chunked._init_fn}


def _kind() -> str:
    """What a new storage is, by whose code runs."""
    frame = sys._getframe(2)
    for _ in range(_FRAMES):
        for part, kind in _ASKED_BY.items():
            if part in frame.f_code.co_filename:
                return kind
        if frame.f_back is None:
            break
        frame = frame.f_back
    return OTHERWISE


def _fake_mode() -> Any:
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
