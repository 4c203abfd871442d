"""Every key of DeepSpeed's settings (0.19): what it takes, or why it is not taken. Adding one is adding an entry."""

from typing import Any

AUTO = "auto"

BOOL, WHOLE, NUMBER, TEXT, MAPPING, ANY = (
    "true or false",
    "a whole number",
    "a number",
    "text",
    "a mapping",
    "any value",
)

TAKEN: dict[str, str] = {
    # Compared with the config's own keys: see rules.py.
    "train_batch_size": WHOLE,
    "train_micro_batch_size_per_gpu": WHOLE,
    "gradient_accumulation_steps": WHOLE,
    "gradient_clipping": NUMBER,
    "bf16": MAPPING,
    "fp16": MAPPING,
    "optimizer": MAPPING,
    "scheduler": MAPPING,
    # Passed on.
    "zero_optimization": MAPPING,
    "steps_per_print": WHOLE,
    "wall_clock_breakdown": BOOL,
    "memory_breakdown": BOOL,
    "dump_state": BOOL,
    "communication_data_type": TEXT,
    "prescale_gradients": BOOL,
    "gradient_predivide_factor": NUMBER,
    "data_types": MAPPING,
    "comms_logger": MAPPING,
    "flops_profiler": MAPPING,
    "zero_allow_untested_optimizer": BOOL,
    "zero_force_ds_cpu_optimizer": BOOL,
    "disable_python_gc": BOOL,
    "zero_optimization.stage": WHOLE,
    "zero_optimization.contiguous_gradients": BOOL,
    "zero_optimization.reduce_scatter": BOOL,
    "zero_optimization.reduce_bucket_size": NUMBER,
    "zero_optimization.use_multi_rank_bucket_allreduce": BOOL,
    "zero_optimization.allgather_partitions": BOOL,
    "zero_optimization.allgather_bucket_size": NUMBER,
    "zero_optimization.overlap_comm": BOOL,
    "zero_optimization.offload_param": MAPPING,
    "zero_optimization.offload_optimizer": MAPPING,
    "zero_optimization.sub_group_size": NUMBER,
    "zero_optimization.stage3_prefetch_bucket_size": NUMBER,
    "zero_optimization.stage3_param_persistence_threshold": NUMBER,
    "zero_optimization.stage3_model_persistence_threshold": NUMBER,
    "zero_optimization.stage3_max_live_parameters": NUMBER,
    "zero_optimization.stage3_max_reuse_distance": NUMBER,
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": BOOL,
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": BOOL,
    "zero_optimization.stage3_module_granularity_threshold": NUMBER,
    "zero_optimization.stage3_use_all_reduce_for_fetch_params": BOOL,
    "zero_optimization.stage3_allgather_sequential": BOOL,
    "zero_optimization.ignore_unused_parameters": BOOL,
    "zero_optimization.round_robin_gradients": BOOL,
    "zero_optimization.parameter_alignment": BOOL,
    "zero_optimization.zero_hpz_partition_size": WHOLE,
    "zero_optimization.zero_quantized_weights": BOOL,
    "zero_optimization.zero_quantized_nontrainable_weights": BOOL,
    "zero_optimization.zero_quantized_gradients": BOOL,
    "zero_optimization.memory_efficient_linear": BOOL,
    "zero_optimization.override_module_apply": BOOL,
    "zero_optimization.log_trace_cache_warnings": BOOL,
    "zero_optimization.enable_sanity_checks": BOOL,
    "zero_optimization.load_from_fp32_weights": BOOL,
    **{f"zero_optimization.{kind}.device": TEXT for kind in ("offload_optimizer", "offload_param")},
    **{f"zero_optimization.{kind}.pin_memory": BOOL for kind in ("offload_optimizer", "offload_param")},
    **{f"zero_optimization.{kind}.buffer_count": WHOLE for kind in ("offload_optimizer", "offload_param")},
    **{f"zero_optimization.{kind}.fast_init": BOOL for kind in ("offload_optimizer",)},
    "zero_optimization.offload_param.buffer_size": NUMBER,
    "zero_optimization.offload_param.max_in_cpu": NUMBER,
    "bf16.enabled": BOOL,
    "bf16.immediate_grad_update": BOOL,
    "bf16.check_grad_overflow": BOOL,
    "fp16.enabled": BOOL,
    "fp16.loss_scale": NUMBER,
    "fp16.initial_scale_power": WHOLE,
    "fp16.loss_scale_window": WHOLE,
    "fp16.hysteresis": WHOLE,
    "fp16.consecutive_hysteresis": BOOL,
    "fp16.min_loss_scale": NUMBER,
    "data_types.grad_accum_dtype": TEXT,
    "optimizer.type": TEXT,
    "optimizer.params": MAPPING,
    "optimizer.params.lr": NUMBER,
    "optimizer.params.betas": ANY,
    "optimizer.params.eps": NUMBER,
    "optimizer.params.weight_decay": NUMBER,
    "optimizer.params.torch_adam": BOOL,
    "optimizer.params.adam_w_mode": BOOL,
    "scheduler.type": TEXT,
    "scheduler.params": MAPPING,
    "scheduler.params.warmup_min_lr": NUMBER,
    "scheduler.params.warmup_max_lr": NUMBER,
    "scheduler.params.warmup_num_steps": NUMBER,
    "scheduler.params.warmup_type": TEXT,
    "scheduler.params.total_num_steps": NUMBER,
    "scheduler.params.warmup_min_ratio": NUMBER,
    "scheduler.params.cos_min_ratio": NUMBER,
}
"""Dotted key -> what it takes; `auto` too. Mappings that are not opened here are handed on as they are."""

NO_EFFECT = {
    "compile": "DeepSpeed reads it where its engine compiles the model; here `torch_compile: true` compiles the layers",
}
"""Known, and read by nothing here: accepted with a note."""

OPEN = ("comms_logger", "flops_profiler")
"""Mappings whose keys are DeepSpeed's own business."""

_TRACKERS = "use the config's own trackers (`use_wandb`, `use_tensorboard`), which read the run's events"
_DATA = "the data and its order are allranks'; see `datasets` and `sequence_len`"
REFUSED: dict[str, str] = {
    "amp": "NVIDIA Apex is not used; write `bf16: true`",
    "activation_checkpointing": "it configures a function of DeepSpeed that transformers' models never call; "
    "`gradient_checkpointing: true` in the config recomputes activations",
    "tensorboard": _TRACKERS,
    "wandb": _TRACKERS,
    "comet": _TRACKERS,
    "csv_monitor": _TRACKERS,
    "curriculum_learning": _DATA,
    "data_efficiency": _DATA,
    "dataloader_drop_last": _DATA,
    "checkpoint": "checkpoints are allranks' own, the same for every strategy; see the config's `save_*` keys",
    "managed_gradient_accumulation": "the loop says which micro-batch is a step's last",
    "gradient_allreduce_op": "gradients are averaged, and the loss is weighted for that",
    "torch_autocast": "write `bf16: true`: DeepSpeed then computes in bfloat16 and steps in float32",
    "elasticity": "a run keeps its global batch on any number of ranks by itself (`batch_size`)",
    "pipeline": "pipeline parallelism is not supported",
    "tensor_parallel": "tensor parallelism is not supported",
    "sequence_parallel_size": "sequence parallelism is not supported",
    "expert_parallel": "expert parallelism is not supported",
    "aio": "it belongs to NVMe offload, which is not supported; offload to the cpu",
    "disable_allgather": "DeepSpeed reads it and does nothing",
    "zero_optimization.zenflow": "ZenFlow steps with old gradients, so that losses would depend on timing",
    "zero_optimization.elastic_checkpoint": "every checkpoint can be resumed on any number of ranks",
    "zero_optimization.legacy_stage1": "DeepSpeed itself refuses it",
    "zero_optimization.cpu_offload": "it is now offload_optimizer: {device: cpu}",
    "zero_optimization.cpu_offload_params": "it is now offload_param: {device: cpu}",
    "zero_optimization.cpu_offload_param": "it is now offload_param: {device: cpu}",
    "zero_optimization.cpu_offload_use_pin_memory": "it is now pin_memory in offload_optimizer and offload_param",
    "zero_optimization.pipeline_loading_checkpoint": "pipeline parallelism is not supported",
    "zero_optimization.leaf_module": "not supported",
    "zero_optimization.save_muon_momentum_buffer_in_memory": "the Muon optimizer is not supported",
    "zero_optimization.offload_optimizer.super_offload": "its optimizer's state could not be saved",
    "zero_optimization.offload_optimizer.pipeline_read": "it belongs to NVMe offload, which is not supported",
    "zero_optimization.offload_optimizer.pipeline_write": "it belongs to NVMe offload, which is not supported",
    "zero_optimization.offload_optimizer.nvme_path": "NVMe offload is not supported; offload to the cpu",
    "zero_optimization.offload_param.nvme_path": "NVMe offload is not supported; offload to the cpu",
    "bf16.bf16_master_weights_and_grads": "master weights stay float32, or small updates would be lost",
    "bf16.bf16_optimizer_states": "the optimizer's state stays float32",
    "fp16.fp16_master_weights_and_grads": "master weights stay float32, or small updates would be lost",
    "fp16.auto_cast": "the model computes in float16 as a whole",
    "optimizer.legacy_fusion": "torch's own fused optimizer steps",
    "data_types.param_dtype": "bf16 and fp16 say it",
    "data_types.buffer_dtype": "buffers are computed in float32",
    **dict.fromkeys(
        ("autotuning", "compression_training", "hybrid_engine", "weight_quantization", "sparse_attention", "nebula"),
        "not supported",
    ),
    **dict.fromkeys(("sparse_gradients", "progressive_layer_drop", "eigenvalue", "quantize_training"), "not supported"),
    "compile.deepcompile": "DeepSpeed's own compiler is not supported; `torch_compile: true` compiles the layers",
    "use_data_before_expert_parallelism": "expert parallelism is not supported",
    "seq_parallel_communication_data_type": "sequence parallelism is not supported",
    "log_level": "its messages are shown from warnings on",
}
"""Known and not taken, and why. A value that switches nothing on is left out without a word."""


def says_nothing(value: Any) -> bool:
    """Whether a setting switches nothing on: false, 0, empty, or a mapping that is not enabled."""
    if isinstance(value, dict):
        return value.get("enabled") is False or all(says_nothing(item) for item in value.values())
    return not value or value == "none"


def fits(value: Any, kind: str) -> bool:
    """Whether a value is of a kind of TAKEN."""
    if kind == ANY or value == AUTO:
        return True
    if kind in (WHOLE, NUMBER):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (kind == NUMBER or float(value).is_integer())
    return isinstance(value, {BOOL: bool, TEXT: str, MAPPING: dict}[kind])
