"""A world of any number of ranks in which nothing is computed and nothing is sent: this process is its rank 0."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, _meta_registrations
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import _sharding_prop
from torch.nn.parallel import DistributedDataParallel, distributed
from torch.optim import optimizer
from torch.utils import _foreach_utils

from allranks.model import varlen


@contextmanager
def fake_world(num_ranks: int) -> Iterator[None]:
    """Process groups of `num_ranks` whose collectives end at once (torch's backend "fake")."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=num_ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def fake_placements() -> Iterator[None]:
    """Let DTensors find their placements in a fake mode of their own, also within one: what they make in the present
    one has the shape of the whole, and would be counted."""
    with _replaced(_sharding_prop, "detect_fake_mode", lambda *_: None):
        yield


@contextmanager
def fake_replicas() -> Iterator[None]:
    """Let DDP wrap a model without having the ranks compare their shapes, which it reads from memory."""
    with _replaced(distributed, "_verify_param_shape_across_processes", lambda *_, **__: None):
        yield


@contextmanager
def fake_experts() -> Iterator[None]:
    """Let products of grouped matrices have a shape in float32, too: torch knows it for bfloat16 alone."""

    def product(mat_a: Tensor, mat_b: Tensor, *, offs: Tensor | None, out_dtype: torch.dtype | None, **_: Any) -> Any:
        return _meta_registrations._create_grouped_mm_output_tensor(mat_a, mat_b, offs, out_dtype)

    with _replaced(_meta_registrations, "_meta_grouped_mm_common", product):
        yield


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Choose what a GPU would run, where torch and allranks choose by the device: fake tensors are on the CPU, for FSDP
    asks a GPU for streams. It is FlashAttention over packed rows, and optimizers over all parameters at once."""
    devices = _foreach_utils._get_foreach_kernels_supported_devices
    with (
        _replaced(varlen, "DEVICE", "cpu"),
        _replaced(_foreach_utils, "_get_foreach_kernels_supported_devices", lambda: [*devices(), "cpu"]),
        _replaced(optimizer, "_get_foreach_kernels_supported_devices", lambda: [*devices(), "cpu"]),
        _replaced(optimizer, "_foreach_supported_types", [*optimizer._foreach_supported_types, FakeTensor]),
    ):
        yield


@contextmanager
def _replaced(where: Any, name: str, value: Any) -> Iterator[None]:
    had = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, had)


def answer_reductions(module: torch.nn.Module) -> None:
    """Let DDP's buckets be reduced at once and in place, as NCCL does: a fake collective gives DDP no result. They stay
    as they are laid at first: the order in which gradients come is read from memory, and changes no size."""
    if not isinstance(module, DistributedDataParallel):
        return

    def reduced(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    module.register_comm_hook(None, reduced)
    replicas: Any = module
    replicas.reducer = _AsLaid(module.reducer)


class _AsLaid:
    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        return False
