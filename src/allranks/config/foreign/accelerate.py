"""What Accelerate's settings must say to agree with a config: one table, for the file that is written and for checks.

The settings have the names of `accelerate launch`'s options (accelerate 1.15): `fsdp_config.fsdp_version` of a file is
`fsdp_version` here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from allranks.config.run import RunConfig


@dataclass(frozen=True)
class Wanted:
    """What a setting must be, and the config key that says so. `value` None: nothing to say, and nothing is wrong."""

    value: Any
    key: str


@dataclass(frozen=True)
class Contradiction:
    """A setting that says otherwise than the config; `text` goes behind its name and place."""

    setting: str
    text: str


ALWAYS: dict[str, tuple[tuple[Any, ...], str]] = {
    "fsdp_auto_wrap_policy": (("TRANSFORMER_BASED_WRAP",), "the engine shards layer by layer"),
    "fsdp_cpu_ram_efficient_loading": ((True,), "weights always go straight into the shards"),
    "fsdp_sync_module_states": ((True,), "all ranks always start from the same weights"),
    "fsdp_use_orig_params": ((True,), "FSDP2 always does"),
    "fsdp_forward_prefetch": ((False,), "it belongs to FSDP1"),
    "fsdp_backward_prefetch": (("BACKWARD_PRE", "NO_PREFETCH"), "FSDP2 gathers ahead by itself"),
    "fsdp_min_num_params": ((0, 100_000_000), "it belongs to SIZE_BASED_WRAP; the engine shards layer by layer"),
    "fsdp_activation_checkpointing_offload": ((False,), "the engine does not offload activations"),
    "fsdp_ignored_modules": ((), "the engine shards every module"),
    "parallelism_config_tp_size": ((1,), "tensor parallelism is not supported"),
    "parallelism_config_cp_size": ((1,), "context parallelism is not supported"),
    "parallelism_config_sp_size": ((1,), "sequence parallelism is not supported"),
}
"""Settings whose value the engine fixes: what they may say, and why nothing else."""

DEEPSPEED = (
    *("zero_stage", "offload_optimizer_device", "offload_param_device", "gradient_accumulation_steps"),
    *("gradient_clipping", "zero3_init_flag", "zero3_save_16bit_model", "deepspeed_multinode_launcher"),
)
"""Settings for DeepSpeed that can agree with a config. The two of zero3 agree with any: weights always go straight into
the pieces, and are exported from the checkpoint."""

_NODES = "allranks starts the nodes, see --nnodes and --hosts; remove it"
_NVME = "NVMe offload is not supported; offload to the cpu in the config's `deepspeed`"
DEEPSPEED_REFUSED = {
    "deepspeed_config_file": "it belongs into the config: write `deepspeed: FILE` there, and remove it here",
    "deepspeed_hostfile": _NODES,
    "deepspeed_inclusion_filter": _NODES,
    "deepspeed_exclusion_filter": _NODES,
    "deepspeed_moe_layer_cls_names": "the engine gathers experts like all other modules; remove it",
    "offload_optimizer_nvme_path": _NVME,
    "offload_param_nvme_path": _NVME,
}
"""Settings for DeepSpeed that are not taken, and why."""

NO_OF_YAML = ("distributed_type", "mixed_precision", "dynamo_backend", "downcast_bf16")
"""Settings with the value `no`, which YAML 1.1 reads as false."""

LEFT_TO_ACCELERATE = {
    "fsdp_version": (1,),
    "fsdp_offload_params": (False,),
    "fsdp_reshard_after_forward": (True,),
    "fsdp_activation_checkpointing": (False,),
    "mixed_precision": ("no",),
    "dynamo_backend": ("no",),
    "fsdp_sharding_strategy": ("full_shard",),
    "offload_optimizer_device": ("none",),
    "offload_param_device": ("none",),
    "parallelism_config_dp_replicate_size": (1,),
    "parallelism_config_dp_shard_size": (1,),
}
"""What `accelerate launch` tells its ranks of settings that nobody gave: there, these values contradict nothing."""


def wanted_settings(cfg: RunConfig) -> dict[str, Wanted]:
    """The settings that agree with the config, in the order of a file."""
    parallel, fsdp = cfg.parallel, cfg.parallel.fsdp_settings
    precision = {"bfloat16": "bf16", "float16": "fp16", "float32": "no", "auto": None}[cfg.precision.compute]
    found = {
        "distributed_type": Wanted("FSDP" if parallel.uses_fsdp else "MULTI_GPU", "fsdp_version"),
        "mixed_precision": Wanted(precision, "fp16" if precision == "fp16" else "bf16"),
        "gradient_accumulation_steps": Wanted(_accumulation(cfg), "gradient_accumulation_steps"),
        "gradient_clipping": Wanted(cfg.optimizer.max_grad_norm, "max_grad_norm"),
        "dynamo_backend": Wanted(_compiler(cfg), "torch_compile"),
    }
    if parallel.uses_fsdp:
        found |= {
            "fsdp_version": Wanted(2, "fsdp_version"),
            "fsdp_reshard_after_forward": Wanted(fsdp.reshard_after_forward, "fsdp_config.reshard_after_forward"),
            "fsdp_offload_params": Wanted(fsdp.offload_params, "fsdp_config.offload_params"),
            "fsdp_state_dict_type": Wanted(fsdp.state_dict_type, "fsdp_config.state_dict_type"),
            "fsdp_transformer_layer_cls_to_wrap": Wanted(
                fsdp.transformer_layer_cls_to_wrap, "fsdp_config.transformer_layer_cls_to_wrap"
            ),
            "fsdp_activation_checkpointing": Wanted(parallel.checkpoints_activations, "gradient_checkpointing"),
        }
    if cfg.deepspeed.settings:
        found["zero_stage"] = Wanted(cfg.deepspeed.stage, "deepspeed.zero_optimization.stage")
        found["deepspeed_multinode_launcher"] = Wanted("standard", "--launcher")
        for kind in ("offload_optimizer", "offload_param"):
            device = (cfg.deepspeed.zero.get(kind) or {}).get("device") or "none"
            found[f"{kind}_device"] = Wanted(device, f"deepspeed.zero_optimization.{kind}.device")
    if parallel.dp_replicate_size or parallel.dp_shard_size:
        found["parallelism_config_dp_replicate_size"] = Wanted(parallel.dp_replicate_size, "dp_replicate_size")
        # How many `node` means is known only where the ranks are counted.
        shards = None if parallel.dp_shard_size == "node" else parallel.dp_shard_size
        found["parallelism_config_dp_shard_size"] = Wanted(shards, "dp_shard_size")
    return found


def contradictions(said: Mapping[str, Any], cfg: RunConfig) -> list[Contradiction]:
    """The settings (by name; `true` and `"true"` are alike) that say otherwise than the config.

    Those about nodes and processes are no business of the config."""
    wanted = wanted_settings(cfg)
    found = []
    for setting, value in said.items():
        value = plain(value)
        if value is False and setting in NO_OF_YAML:
            value = "no"
        if value is None and setting.endswith("_device"):
            value = "none"
        text = _wrong(setting, value, wanted, cfg)
        if text:
            found.append(Contradiction(setting, f"{as_written(value)} {text}"))
    return found


def _wrong(setting: str, value: Any, wanted: Mapping[str, Wanted], cfg: RunConfig) -> str | None:
    if setting == "distributed_type":
        return _wrong_type(value, wanted[setting].value, cfg)
    if setting in DEEPSPEED_REFUSED:
        return None if value in (None, "none") else f"is not taken: {DEEPSPEED_REFUSED[setting]}"
    if value == "auto" and setting in DEEPSPEED:
        return None
    if setting in ALWAYS:
        allowed, why = ALWAYS[setting]
        return None if value in allowed else f"cannot be done: {why}"
    if setting == "fsdp_sharding_strategy":
        return _wrong_sharding(value, cfg)
    if setting == "mixed_precision" and wanted[setting].value is None:
        # bf16: auto. bfloat16 where the device has it is what `bf16` asks for too; it never becomes the others.
        return None if value == "bf16" else f"contradicts {_place(cfg, 'bf16')}: auto; write `bf16: {value == 'bf16'}`"
    if setting not in wanted:
        if setting.startswith("fsdp_") and not cfg.parallel.uses_fsdp:
            return f"is for FSDP, which {cfg.source} does not ask for (`fsdp_version: 2`)"
        return None
    right = wanted[setting]
    if right.value is None or _same(setting, value, right.value):
        return None
    return f"contradicts {_place(cfg, right.key)}: {as_written(right.value)}; change one of them"


def _wrong_type(value: Any, right: str, cfg: RunConfig) -> str | None:
    value = str(value).upper()
    if value == right or (value == "DEEPSPEED" and cfg.deepspeed.settings):
        return None
    if value in ("FSDP", "MULTI_GPU"):
        other = "asks for FSDP" if right == "FSDP" else "does not ask for FSDP (`fsdp_version: 2`)"
        return f"contradicts the config, which {other}; write {right}, or change the config"
    if value in ("NO", "MULTI_CPU"):
        return f"makes `accelerate launch` start one process, whatever num_processes says; write {right}"
    if value == "DEEPSPEED":
        return (
            f"asks for DeepSpeed's engine, which the config does not; write {right}, or `deepspeed: "
            "{zero_optimization: {stage: 2}}` into the config"
        )
    return f"is not supported; write {right}"


def _wrong_sharding(value: Any, cfg: RunConfig) -> str | None:
    """The strategies of FSDP1, as far as FSDP2 has the like."""
    reshard, replicas = cfg.parallel.fsdp_settings.reshard_after_forward, cfg.parallel.dp_replicate_size or 1
    strategy = ("HYBRID_SHARD" if reshard else "HYBRID_SHARD_ZERO2") if replicas > 1 else "FULL_SHARD"
    strategy = "SHARD_GRAD_OP" if replicas == 1 and not reshard else strategy
    names = {"1": "FULL_SHARD", "2": "SHARD_GRAD_OP", "3": "NO_SHARD", "4": "HYBRID_SHARD", "5": "HYBRID_SHARD_ZERO2"}
    if names.get(str(value), value) == strategy:
        return None
    return (
        f"contradicts the config, which asks for {strategy} (fsdp_config.reshard_after_forward: {as_written(reshard)}, "
        f"dp_replicate_size: {replicas}); change one of them"
    )


def _same(setting: str, value: Any, right: Any) -> bool:
    if setting == "fsdp_reshard_after_forward" and isinstance(value, str):
        value = {"FULL_SHARD": True, "SHARD_GRAD_OP": False}.get(value.upper(), value)
    if setting == "fsdp_transformer_layer_cls_to_wrap":
        return {name.strip() for name in str(value).split(",")} == {name.strip() for name in right.split(",")}
    if isinstance(right, str):
        return str(value).upper() == right.upper()
    return isinstance(value, bool) == isinstance(right, bool) and value == right


def _accumulation(cfg: RunConfig) -> int | None:
    return None if cfg.optimizer.batch_size is not None else cfg.optimizer.gradient_accumulation_steps


def _compiler(cfg: RunConfig) -> str | None:
    if not cfg.parallel.torch_compile:
        return "no"
    return None if cfg.parallel.torch_compile == "auto" else cfg.parallel.torch_compile_backend or "inductor"


def _place(cfg: RunConfig, key: str) -> str:
    return f"{key} of {cfg.source}"


def plain(value: Any) -> Any:
    """A value as YAML would have read it: Accelerate takes `true` and `"true"`, and gives its ranks text only."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    known = {"true": True, "false": False, "none": None, "null": None, "": None}
    if text.lower() in known:
        return known[text.lower()]
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


def as_written(value: Any) -> str:
    """As YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
