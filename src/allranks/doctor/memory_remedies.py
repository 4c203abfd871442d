"""What to change in a config so that a run fits into memory, what frees most first."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from allranks.config import RunConfig
from allranks.config.strategy import strategy
from allranks.doctor.memory import Held, Shortage, account, gib
from allranks.errors import ConfigError
from allranks.findings import Evidence, Finding
from allranks.observe.events import Event, MemoryEvent, StepEvent

_MOST = 6
# A decoder layer keeps 34 bytes a token and unit of width for its backward pass, its input 2 of them (Korthikanti et
# al. 2022, Reducing Activation Recomputation, equation 1 without the attention matrix, which is not kept today).
_RECOMPUTED = 1 - 2 / 34
_8_BIT = 3 / 4  # of states in float32
_4_BIT = 0.7  # of weights in 16 bits: what 4 bits and their scales leave
_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"


@dataclass(frozen=True)
class Ranks:
    """How many ranks share the work, and how many of them this host. `strategy`: single, ddp, fsdp or zero."""

    strategy: str
    world_size: int = 1
    on_this_host: int = 1


def remedies(
    cfg: RunConfig, held: Held, ranks: Ranks, short: Shortage, env: Mapping[str, str] = os.environ
) -> list[str]:
    """What to change, a line each; nothing that is set already. How much it frees follows from what is `held`."""
    on_gpu = short.where != "host"
    found = [
        *_elsewhere(short, env),
        *_activations(cfg, held, on_gpu),
        *_states(cfg, held, ranks, on_gpu),
        *_shards(cfg, held, ranks, on_gpu),
    ]
    found.sort(key=lambda one: -one[0])
    return [f"{text}: about {gib(saved)} less" if saved else text for saved, text in found[:_MOST]]


def _elsewhere(short: Shortage, env: Mapping[str, str]) -> Iterator[tuple[float, str]]:
    if short.others:
        yield short.others, "end the other processes on this GPU (nvidia-smi names them)"
    settings = env.get(_ALLOCATOR, "") + env.get("PYTORCH_ALLOC_CONF", "")
    if short.unused > (short.tried or 0) and "expandable_segments" not in settings:
        yield short.unused, f"{_ALLOCATOR}=expandable_segments:True (memory is free, but in pieces)"


def _activations(cfg: RunConfig, held: Held, on_gpu: bool) -> Iterator[tuple[float, str]]:
    parallel, batch, rest = cfg.parallel, cfg.optimizer, held.rest
    if not parallel.checkpoints_activations:
        yield rest * _RECOMPUTED, "gradient_checkpointing: true (a third more computation)"
    elif on_gpu and not parallel.offloads_activations:
        yield rest / 3, "gradient_checkpointing: offload (inputs of layers wait in host memory)"
    elif not on_gpu and parallel.offloads_activations:
        yield rest / 3, "gradient_checkpointing: true in place of offload, which fills this host's memory"
    if batch.micro_batch_size > 1:
        half = batch.micro_batch_size // 2
        same = "" if batch.batch_size else f", gradient_accumulation_steps: {_steps(cfg, half)} (the same global batch)"
        yield rest * (1 - half / batch.micro_batch_size), f"micro_batch_size: {half}{same}"
    if cfg.data.sequence_len > 512:  # Axolotl's default; below it little is left to gain
        yield rest / 2, f"sequence_len: {cfg.data.sequence_len // 2} (other data: longer documents are cut or left out)"
    if cfg.kernels.chunked_cross_entropy is False:
        yield rest / 2, "chunked_cross_entropy: true (full logits are never held)"
    if on_gpu and cfg.precision.compute == "float32":
        yield rest / 2, "bf16: true (activations in 16 bits)"


def _steps(cfg: RunConfig, micro_batch_size: int) -> int:
    batch = cfg.optimizer
    return -(-batch.gradient_accumulation_steps * batch.micro_batch_size // micro_batch_size)


def _states(cfg: RunConfig, held: Held, ranks: Ranks, on_gpu: bool) -> Iterator[tuple[float, str]]:
    adapter = cfg.adapter
    if adapter.adapter is None and not cfg.optimizer.unfrozen_parameters:
        yield held.gradients + held.optimizer, "adapter: lora (gradients and states of the adapter only)"
    elif adapter.adapter == "lora" and adapter.quantized_bits is None:
        yield held.parameters * _4_BIT, "adapter: qlora (the frozen weights in 4 bits)"
    if cfg.optimizer.optimizer in ("adamw_torch", "adamw_torch_fused") and ranks.strategy != "zero":
        name = "adamw_torch_8bit" if ranks.strategy == "fsdp" else "adamw_bnb_8bit"
        yield held.optimizer * _8_BIT, f"optimizer: {name}"


def _shards(cfg: RunConfig, held: Held, ranks: Ranks, on_gpu: bool) -> Iterator[tuple[float, str]]:
    states, settings = held.states, cfg.parallel.fsdp_settings
    if ranks.strategy == "ddp":
        yield states * (1 - 1 / ranks.world_size), f"fsdp_version: 2 (each of {ranks.world_size} ranks holds a part)"
    elif ranks.strategy == "fsdp":
        if not settings.reshard_after_forward:
            yield held.parameters * (ranks.world_size - 1), "fsdp_config.reshard_after_forward: true"
        if on_gpu and not settings.offload_params:
            yield states, "fsdp_config.offload_params: true (in host memory; slower)"
        if not on_gpu and settings.offload_params:
            yield states, "fsdp_config.offload_params: false, which fills this host's memory"
    elif ranks.strategy == "zero" and cfg.deepspeed.stage < 3:
        yield held.parameters * (1 - 1 / ranks.world_size), "deepspeed: stage 3"
    if on_gpu and ranks.strategy == "zero" and not cfg.deepspeed.offloads:
        yield held.optimizer, "deepspeed: offload_optimizer to the CPU (in host memory; slower)"
    if not on_gpu and ranks.on_this_host > 1:
        yield held.total, f"--nproc-per-node {ranks.on_this_host - 1} (fewer ranks on this host)"
    if ranks.strategy in ("fsdp", "zero"):
        yield states / 2, f"more nodes ({ranks.world_size} ranks share the states; twice as many hold half each)"
    if not on_gpu:
        yield 0, "more memory for this job (Slurm: --mem; PBS: mem=; a container: its memory limit)"


def listed(lines: Sequence[str]) -> str:
    """The lines of `remedies` under their head; nothing for none."""
    return "\n".join(["to need less, what frees most first:", *(f"  {line}" for line in lines)]) if lines else ""


def with_account(
    killed: Finding,
    events: Iterable[Event],
    cfg: RunConfig,
    world_size: int,
    on_this_host: int,
    limit_bytes: int = 0,
) -> Finding:
    """The finding of a rank that the kernel killed for want of memory, with what it had said that it holds, and what to
    change. `events` are those of this start; `limit_bytes`: what the ranks of this host may hold together."""
    own = [event for event in events if event.rank == killed.who.rank]
    said = next((event for event in reversed(own) if isinstance(event, MemoryEvent)), MemoryEvent())
    states = Held(said.parameters_bytes, said.gradients_bytes, said.optimizer_bytes)
    # A step's memory is that of the device that it is computed on.
    steps = [event for event in own if isinstance(event, StepEvent)] if said.device == "cpu" else []
    # Killed before its first step was told, it held its part of all that may be held.
    total = steps[-1].memory_bytes if steps else limit_bytes // on_this_host
    held = replace(states, rest=max(total - states.total, 0))
    try:
        kind, _, _ = strategy(cfg, world_size)
    except ConfigError:  # where nodes have unequally many ranks, `world_size` is not known here
        return killed
    short = Shortage("host")
    return replace(
        killed,
        evidence=(*map(Evidence, account(held, short)), *killed.evidence),
        remedy=listed(remedies(cfg, held, Ranks(kind, world_size, on_this_host), short)),
    )
