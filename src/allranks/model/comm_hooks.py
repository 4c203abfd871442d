"""What DDP does to gradients before they travel: round them to 16 bits, or approximate them by low-rank matrices."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from allranks.config import RunConfig

ROUNDING = {"bf16": torch.bfloat16, "fp16": torch.float16}
LOW_RANK = {"power_sgd": powerSGD_hook.powerSGD_hook, "batched_power_sgd": powerSGD_hook.batched_powerSGD_hook}
"""PowerSGD: Vogels et al. 2019, arXiv 1905.13727. The batched one takes a bucket's gradients as one square matrix."""


def add_comm_hook(replicas: DistributedDataParallel, cfg: RunConfig) -> None:
    """Register the hook that `cfg` asks for. Every one of them ends in the mean over ranks, as without a hook.

    Hooks run where DDP would reduce, so that micro-batches that are not the last of their step send nothing with them
    either. PowerSGD's memory (what the last approximation left out) lives as long as the process: it differs from rank
    to rank, and means nothing to another number of ranks, so that a checkpoint does not hold it.
    """
    name = comm_hook(cfg)
    if name in ROUNDING:
        replicas.register_comm_hook(dist.group.WORLD, round_to(ROUNDING[name]))
    elif name in LOW_RANK:
        options = cfg.parallel.comm_state_option.model_dump()
        state = powerSGD_hook.PowerSGDState(process_group=None, **options)
        replicas.register_comm_hook(state, in_order(LOW_RANK[name]))


def round_to(dtype: torch.dtype) -> Callable[[dist.ProcessGroup, dist.GradBucket], Future[torch.Tensor]]:
    """A hook that sums gradients in `dtype`. (PyTorch's own refuses bfloat16 on gloo, which can do it.)"""

    def hook(group: dist.ProcessGroup, bucket: dist.GradBucket) -> Future[torch.Tensor]:
        # Divided before it is rounded: in float16 the sum over many ranks could overflow where the mean does not.
        rounded = (bucket.buffer() / group.size()).to(dtype)
        work = dist.all_reduce(rounded, group=group, async_op=True)
        assert work is not None
        return work.get_future().then(lambda summed: bucket.buffer().copy_(summed.value()[0]))

    return hook


def in_order(hook: Callable[[Any, dist.GradBucket], Future[torch.Tensor]]) -> Callable[..., Future[torch.Tensor]]:
    """PowerSGD's hook, one bucket after the other on CPU.

    It starts its second and third collective from callbacks. gloo runs those on threads, and with several buckets each
    rank in an order of its own: collectives then meet others, and the run crashes. NCCL's callbacks run at once.
    """

    def ordered(state: Any, bucket: dist.GradBucket) -> Future[torch.Tensor]:
        future = hook(state, bucket)
        if bucket.buffer().device.type == "cpu":
            future.wait()
        return future

    return ordered


def comm_hook(cfg: RunConfig) -> str:
    """The hook of a config, "none" if none.

    Sharding over one rank, as `dp_shard_size: node` with one rank a node, is DDP; its `reduce_dtype` is then a hook.
    """
    if cfg.parallel.ddp_comm_hook != "none":
        return cfg.parallel.ddp_comm_hook
    return "bf16" if cfg.parallel.fsdp_settings.reduce_dtype == "bfloat16" else "none"


def compression_starts(cfg: RunConfig) -> int | None:
    """After how many steps of a start gradients are approximated; None where the hook does not wait, or there is none.

    A resumed run waits as long again, because PowerSGD's memory is empty again.
    """
    return cfg.parallel.comm_state_option.start_powerSGD_iter if comm_hook(cfg) in LOW_RANK else None


def compression_warnings(cfg: RunConfig, step: int, last: int) -> list[str]:
    """What the user should know of a start that goes on from `step`, and ends with `last`."""
    begins = compression_starts(cfg)
    if begins is None:
        return []
    hook = f"ddp_comm_hook: {cfg.parallel.ddp_comm_hook}"
    if step + begins >= last:
        return [
            f"{hook} begins after {begins} steps, and this start has {last - step}: nothing will be compressed; lower "
            "ddp_comm_state_option.start_powerSGD_iter (a tenth of the run is usual)"
        ]
    if step:
        return [
            f"{hook} keeps what it left out in memory, not in checkpoints: it starts anew, {begins} steps from here, "
            "and losses will differ a little from those of a run that was not stopped"
        ]
    return []
