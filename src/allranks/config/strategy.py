"""Which strategy a config asks for on so many ranks."""

from typing import Literal

from allranks.config.batch import global_batch, num_micro_batches
from allranks.config.run import RunConfig
from allranks.errors import ConfigError

Kind = Literal["single", "ddp", "fsdp", "zero"]


def strategy(cfg: RunConfig, world_size: int, node_size: int | None = None) -> tuple[Kind, int, int]:
    """(kind, replicas, shards) that the config asks for on `world_size` ranks. FSDP with several replicas is HSDP.

    `node_size`: ranks of each node, for `dp_shard_size: node`; all, if not given.

    One process that asks for FSDP gets "single", so that a config written for many ranks also runs alone (a smoke test,
    a resume on one process), unless it also asks for `offload_params`, which only FSDP can do. "zero" is DeepSpeed's
    ZeRO 1 to 3, also on one process; its stage 0 shards nothing, which is "ddp".

    Raises:
        ConfigError: the sizes do not multiply to the world size, or DeepSpeed's settings say otherwise.
    """
    if cfg.deepspeed.settings:
        _check_batch(cfg, world_size)
    if cfg.deepspeed.stage:
        part = cfg.deepspeed.zero.get("zero_hpz_partition_size") or 1
        if world_size % part:
            raise ConfigError(
                f"zero_hpz_partition_size: {part} ranks keep a copy of the parameters together, and {world_size} ranks "
                "cannot be divided so; the number of processes of a node is the sensible value"
            )
        return "zero", 1, world_size
    parallel = cfg.parallel
    replicas, shards = parallel.dp_replicate_size, parallel.dp_shard_size
    if shards == "node":
        shards = node_size or world_size
    if shards is None:
        shards = max(1, world_size // (replicas or 1)) if parallel.uses_fsdp else 1
    if replicas is None:
        replicas = max(1, world_size // shards)
    if replicas * shards != world_size:
        raise ConfigError(
            f"dp_replicate_size x dp_shard_size is {replicas} x {shards}, but there are {world_size} ranks (nodes x "
            "processes per node): change one of the two keys, or start another number of processes"
        )
    if shards > 1 or (parallel.uses_fsdp and parallel.fsdp_settings.offload_params):
        return "fsdp", replicas, shards
    return ("single", 1, 1) if world_size == 1 else ("ddp", replicas, 1)


def _check_batch(cfg: RunConfig, world_size: int) -> None:
    """Compare the batch sizes of DeepSpeed's settings that depend on the number of ranks."""
    settings, ours = cfg.deepspeed.settings, cfg.optimizer
    whole = global_batch(ours, world_size)
    accumulated = num_micro_batches(whole, ours.micro_batch_size, world_size)
    for key, value in (("train_batch_size", whole), ("gradient_accumulation_steps", accumulated)):
        if settings.get(key, "auto") not in ("auto", value):
            raise ConfigError(
                f"deepspeed: {key}: {settings[key]} contradicts the config, which on {world_size} ranks makes it "
                f"{value} (a global batch of {whole}, micro_batch_size {ours.micro_batch_size}); change one of them"
            )
