"""Keys that are known and not (or not yet) supported: one entry a key, or a key's prefix ending in `*`."""

from fnmatch import fnmatchcase
from typing import Any

from allranks.secret_names import is_secret_name

LATER = {
    "gptq": "GPTQ weights; use the model that they were made from with `adapter: qlora`",
    "wandb_watch": "gradients by layer in Weights & Biases, whose process has no model; the norm is there",
    "wandb_log_model": "uploads of models; `wandb artifact put OUTPUT_DIR/adapter` (or `model`) after the run",
    "hf_mlflow_log_artifacts": "copies of checkpoints in MLflow; `mlflow artifacts log-artifacts` after the run",
    "use_comet": "the Comet tracker",
    "comet_*": "the Comet tracker",
    "use_otel_metrics": "OpenTelemetry metrics",
    "otel_*": "OpenTelemetry metrics",
    "swanlab_*": "the SwanLab tracker",
    "use_swanlab": "the SwanLab tracker",
    "liger_cross_entropy": "Liger's cross entropy of full logits, which are never made here; "
    "`liger_fused_linear_cross_entropy` or no key at all saves more",
    "cut_cross_entropy_*": "options of Cut Cross Entropy; it runs with its own",
    "liger_use_token_scaling": "a loss scaled token by token",
    "liger_rms_norm_gated": "Liger's gated RMSNorm",
    "liger_kernel_impl": "other implementations of Liger's kernels; set LIGER_KERNEL_IMPL in the environment",
    "lora_mlp_kernel": "fused LoRA kernels",
    "lora_qkv_kernel": "fused LoRA kernels",
    "lora_o_kernel": "fused LoRA kernels",
    "lora_embedding_kernel": "fused LoRA kernels",
    "unsloth_*": "Unsloth kernels",
    "flash_attn_*": "fused kernels of flash-attn",
    "flash_optimum": "BetterTransformer",
    "xformers_attention": "xFormers attention; without the key packed documents already take the fastest there is",
    "s2_attention": "shifted sparse attention",
    "sage_attention": "SageAttention",
    "tiled_mlp*": "tiled MLP",
    "use_kernels": "kernels of the Hub",
    "fp8*": "fp8: its kernels and scales depend on the GPU; use `bf16: true`",
    "peft_layer_replication": "layer replication",
    "peft_trainable_token_indices": "training single tokens; use `lora_modules_to_save: [embed_tokens]`",
    "peft_ensure_weight_tying": "tied adapters",
    "peft": "PEFT's further settings",
    "relora*": "ReLoRA",
    "jagged_restart_*": "ReLoRA",
    "lisa_*": "LISA",
    "optim_target_modules": "GaLore",
    "auto_find_batch_size": "finding the batch size",
    "multipack_real_batches": "Axolotl's batch layout",
    "batch_flattening": "Axolotl's batch layout; micro-batches are always flattened",
    "push_dataset_to_hub": "uploads to the Hub",
    "push_to_hub": "uploads to the Hub",
    "hub_*": "uploads to the Hub; run `allranks export` and upload its result",
    "hf_use_auth_token": "a switch for the Hub's token; log in with `hf auth login` or set HF_TOKEN",
    "save_on_each_node": "copies of checkpoints on each node",
    "dynamic_checkpoint": "saving on demand by file; send SIGUSR1 instead",
    "eval_table_size": "tables of generated text",
    "do_causal_lm_eval": "generation while evaluating",
    "eval_causal_lm_metrics": "generation while evaluating",
    "generate_samples": "generation while training",
    "generation_*": "generation while training",
    "num_generation_samples": "generation while training",
    "do_bench_eval": "benchmark evaluation",
    "bench_*": "benchmark evaluation",
    "fix_untrained_tokens": "repairing untrained tokens",
    "mean_resizing_embeddings": "choosing how new embeddings start",
    "shrink_embeddings": "shrinking the embedding",
    "tokenizer_use_mistral_common": "mistral-common tokenizers",
    "cls_model_config": "choosing the configuration class",
    "overrides_of_model_kwargs": "arguments of from_pretrained",
    "model_kwargs": "arguments of from_pretrained",
    "model_quantization_config*": "quantized base models",
    "quantize_moe_experts": "quantized experts",
    "quantization": "quantization after training",
    "qat": "quantization-aware training",
    "llama4_linearized_experts": "linearized experts",
    "heads_k_stride": "context parallelism",
    "ring_attn_func": "context parallelism",
    "max_memory": "placing layers on devices by hand",
    "gpu_memory_limit": "placing layers on devices by hand",
    "device_map": "placing layers on devices by hand",
    "device": "choosing the device in the config; set CUDA_VISIBLE_DEVICES",
    "use_pose": "PoSE",
    "pose_*": "PoSE",
    "flex_attn_compile_kwargs": "options of FlexAttention",
    "scaling_softmax*": "scaled softmax",
    "skip_prepare_dataset": "training without preparing the data",
    "streaming": "streaming data",
    "streaming_*": "streaming data",
    "accelerator_config": "Accelerate's settings",
    "torchdistx_path": "torchdistx",
    "datasets.*.input_format": "variants of a prompt by name; use `type`",
    "datasets.*.input_transform": "transforms of records",
    "datasets.*.field_human": "prompt formats of old types",
    "datasets.*.field_model": "prompt formats of old types",
    "context_parallel": "context parallelism",
    "context_parallel_*": "context parallelism",
    "expert_parallel_*": "expert parallelism",
    "expert_backend": "kernels for mixtures of experts",
    "experts_implementation": "kernels for mixtures of experts",
    "moe_*": "kernels for mixtures of experts",
    "use_scattermoe": "kernels for mixtures of experts",
    "use_sonicmoe": "kernels for mixtures of experts",
    "autotune_*": "kernels for mixtures of experts",
    "use_dsv4_kernels": "kernels of one model",
    "use_glm_dsa_kernels": "kernels of one model",
    "dsv4_*": "kernels of one model",
    "gemma4_*": "kernels of one model",
    "fused_attn_kernel": "kernels of one model",
    "large_head_attention": "kernels of one model; use `attn_implementation`",
    "ple_cpu_offload": "offloading parts of one model",
    "nvfp4_*": "quantized training in NVFP4",
    "nonexpert_quantization": "quantized base models",
    "nf4_backend": "choosing the library of 4-bit weights",
    "use_onebitllms": "1.58-bit models",
    "llmcompressor": "LLM Compressor",
    "recipe": "LLM Compressor",
    "save_compressed": "LLM Compressor",
    "mixlora_*": "MixLoRA",
    "dense_mixer": "DenseMixer",
    "mora": "MoRA",
    "lora_alpha_pattern": "an alpha of each module",
    "lora_rank_pattern": "a rank of each module",
    "lora_fp32_gradients": "float32 gradients of adapters",
    "dion_*": "Dion",
    "qgalore_*": "Q-GaLore",
    "grokfast_*": "Grokfast",
    "spectrum_*": "Spectrum; list what is to be trained in `unfrozen_parameters`",
    "use_dft": "other losses than cross entropy",
    "use_eaft": "other losses than cross entropy",
    "eaft_*": "other losses than cross entropy",
    "fp32_norms": "norms in float32",
    "fp32_norm_classes": "norms in float32",
    "full_determinism": "deterministic kernels",
    "deepcompile": "DeepSpeed's compiler",
    "torch_compile_options": "options of the compiler",
    "layer_offloading": "offloading of layers; use `fsdp_config.offload_params`",
    "selective_checkpointing": "choosing what is recomputed; use `gradient_checkpointing: true`",
    "torch_empty_cache_steps": "emptying the cache by steps",
    "gc_collect_steps": "garbage collection by steps",
    "sync_profiler_*": "the profiler",
    "pad_to_multiple_of": "padding to a multiple; use `pad_to_sequence_len: true`",
    "balance_labels": "balancing labels; ranks get about as many tokens each, and each label counts the same",
    "label_balance_window_optim_steps": "balancing labels",
    "reinit_weights": "training from random weights",
    "trainer_cls": "trainers of your own",
    "export": "other formats than safetensors; run `allranks export`, and convert its result",
    "lm_eval_*": "benchmark evaluation",
    "max_packed_sequence_len": "an old key; use `sample_packing: true` with `sequence_len`",
}
"""Not supported yet: key or prefix -> what it is."""

OUT_OF_SCOPE = {
    "rl": "preference training",
    "rl_beta": "preference training",
    "trl": "preference training",
    "vllm": "preference training",
    "dpo*": "preference training",
    "ipo*": "preference training",
    "kto*": "preference training",
    "orpo*": "preference training",
    "rpo*": "preference training",
    "cpo*": "preference training",
    "simpo*": "preference training",
    "grpo*": "preference training",
    "gdpo*": "preference training",
    "max_prompt_len": "preference training",
    "reward_model": "reward models",
    "process_reward_model": "reward models",
    "num_labels": "classification",
    "processor_type": "multimodal models",
    "image_*": "multimodal models",
    "freeze_mm_modules": "multimodal models",
    "pretraining_dataset": "pretraining streams",
    "pretraining_sample_concatenation": "pretraining streams",
    "pretrain_multipack_*": "pretraining streams",
    "gradio_*": "chatting with the model",
    "datasets.*.logprobs_field": "distillation",
    "datasets.*.temperature": "distillation",
    "kd_*": "distillation",
    "ebft": "reinforcement learning",
    "hatchery": "reinforcement learning",
    "coreweave": "reinforcement learning",
    "nemo_gym_*": "reinforcement learning",
    "precompute_ref_log_probs": "preference training",
    "center_rewards_coefficient": "reward models",
    "processor_kwargs": "multimodal models",
    "role_boundaries": "multimodal models",
    "diffusion": "diffusion language models",
    "diffusion_*": "diffusion language models",
}
"""Not supervised fine-tuning: key or prefix -> what it belongs to."""

NO_EFFECT = {
    "strict": "unknown keys are always errors",
    "is_falcon_derived_model": "the architecture is found from the model",
    "is_llama_derived_model": "the architecture is found from the model",
    "is_mistral_derived_model": "the architecture is found from the model",
    "is_qwen_derived_model": "the architecture is found from the model",
    "tokenizer_use_fast": "the tokenizer decides",
    "tokenizer_legacy": "the tokenizer decides",
    "tokenizer_save_jinja_files": "the tokenizer decides",
    "experimental_skip_move_to_device": "weights always go straight to where they belong",
    "low_cpu_mem_usage": "weights always go straight to where they belong",
    "qlora_sharded_model_loading": "weights always go straight to where they belong",
    "remove_unused_columns": "only what is trained is prepared",
    "sample_packing_group_size": "packing looks at all samples",
    "sample_packing_bin_size": "packing looks at all samples",
    "embeddings_skip_upcast": "frozen weights are never upcast",
    "lora_on_cpu": "weights always go straight to where they belong",
    "dataloader_*": "blocks are read by memory map, without worker processes",
    "include_tkps": "tokens per second are always reported",
    "include_tokens_per_second": "tokens per second are always reported",
    "dataset_keep_in_memory": "blocks are read by memory map",
    "ddp": "the strategy follows from the number of ranks and the fsdp keys",
    "world_size": "it is told by the launcher",
    "local_rank": "it is told by the launcher",
    "merge_lora": "run `allranks export`",
    "merge_method": "run `allranks export`",
    "debug": "`allranks preprocess CONFIG --show 3` prints samples",
    "eval_max_new_tokens": "only tables of generated text (`eval_table_size`) need it",
    "logging_nan_inf_filter": "a loss that is not finite always stops the run",
    "torch_compile_regional": "layers are always compiled one by one",
    "sdpa_varlen": "packed samples never see each other, whatever `attn_implementation` is",
    "fa_varlen_kwargs_in_collator": "packed samples never see each other, whatever `attn_implementation` is",
    "datasets.*.preprocess_shards": "records are always prepared one batch after the other",
    "preprocess_iterable": "records are always prepared one batch after the other",
    "is_preprocess": "run `allranks preprocess`",
    "num_dataset_shards_to_save": "prepared data is read by memory map",
    "sample_packing_mp_start_method": "packing takes one process",
    "sample_packing_eff_est": "what packing gives is counted",
    "total_num_tokens": "tokens are counted",
    "total_supervised_tokens": "tokens are counted",
    "axolotl_config_path": "the config is the one that is named",
}
"""Axolotl's keys that steer something which does not exist here: key or prefix -> why. Accepted with a note."""


FSDP1 = {
    "fsdp_config.backward_prefetch": "an FSDP1 setting; FSDP2 always prefetches in the backward pass; remove it",
    "fsdp_config.backward_prefetch_policy": "an FSDP1 setting; FSDP2 always prefetches in the backward pass; remove it",
    "fsdp_config.forward_prefetch": "an FSDP1 setting; FSDP2 overlaps communication by itself; remove it",
    "fsdp_config.use_orig_params": "an FSDP1 setting; FSDP2 always keeps the original parameters; remove it",
    "fsdp_config.sharding_strategy": "an FSDP1 setting; use `reshard_after_forward` (true is FULL_SHARD, false is "
    "SHARD_GRAD_OP) and `dp_replicate_size` (HYBRID_SHARD)",
    "fsdp_config.min_num_params": "an FSDP1 setting; FSDP2 shards layer by layer; remove it",
}
"""Settings of FSDP1 -> what to do instead."""

FSDP1_SAME: dict[str, Any] = {
    "fsdp_config.backward_prefetch": "BACKWARD_PRE",
    "fsdp_config.backward_prefetch_policy": "BACKWARD_PRE",
    "fsdp_config.use_orig_params": True,
    "fsdp_config.sharding_strategy": "FULL_SHARD",
}
"""Settings of FSDP1 -> the value that says what FSDP2 does anyway, which nobody need be told."""

_SHARDED = "FSDP2 has no such form; use SHARDED_STATE_DICT (every rank writes its shard) or FULL_STATE_DICT"
_PARALLEL = "not supported yet; only 1 is"
_OFFLOAD = "only host memory is supported; use `gradient_checkpointing: offload`"

_PROMPTS = (
    *("concisechoice", "explainchoice", "jeopardy", "metharme", "orcamini", "pygmalion", "reflection", "summarizetldr"),
    *("alpaca_chat.load_concise", "alpaca_chat.load_no_prompt", "alpaca_instruct.load_no_prompt"),
    *("context_qa", "context_qa.load_404", "context_qa.load_v2"),
    *("creative_acr.load_answer", "creative_acr.load_critique", "creative_acr.load_revise"),
)

REFUSED_VALUES: dict[str, dict[Any, str]] = {
    "bnb_config_kwargs.llm_int8_has_fp16_weight": {
        True: "16-bit weights under an 8-bit product are for training them, and the base model is frozen; remove it"
    },
    "bnb_config_kwargs.llm_int8_enable_fp32_cpu_offload": {
        True: "layers are not placed by hand; use `fsdp_config.offload_params: true` with 4-bit weights"
    },
    "fsdp_version": {1: "FSDP1 is deprecated and cannot reshard its checkpoints; use `fsdp_version: 2`"},
    "fsdp_config.state_dict_type": {"LOCAL_STATE_DICT": _SHARDED},
    "fsdp_config.final_state_dict_type": {"LOCAL_STATE_DICT": _SHARDED},
    "fsdp_config.auto_wrap_policy": {
        "SIZE_BASED_WRAP": "sharding by size is FSDP1's; use TRANSFORMER_BASED_WRAP",
        "NO_WRAP": "without wrapping the whole model is gathered at once; use TRANSFORMER_BASED_WRAP",
    },
    "fsdp_config.mixed_precision_policy": {
        "fp16": "float16 needs loss scaling, which does not work with FSDP; use bf16"
    },
    "fsdp_config.cpu_ram_efficient_loading": {False: "weights always go straight into the shards; remove it"},
    "fsdp_config.sync_module_states": {False: "all ranks always start from the same weights; remove it"},
    "fsdp_config.limit_all_gathers": {False: "FSDP2 always limits them; remove it"},
    "fsdp.*": {
        "shard_grad_op": "say it with `fsdp_config.reshard_after_forward: false`",
        "no_shard": "leave out all fsdp keys: several ranks then use DDP",
        "hybrid_shard": "say it with `dp_replicate_size`",
        "hybrid_shard_zero2": "say it with `dp_replicate_size` and `fsdp_config.reshard_after_forward: false`",
        "offload": "say it with `fsdp_config.offload_params: true`",
        "size_based_auto_wrap": "layers are always wrapped one by one; use auto_wrap",
    },
    "gradient_checkpointing": {"offload_disk": _OFFLOAD, "disk": _OFFLOAD},
    "activation_offloading": {"disk": _OFFLOAD},
    "peft_init_lora_weights": dict.fromkeys(
        ["pissa", "pissa_niter_4", "pissa_niter_16", "olora", "loftq", "corda", "eva", "lora_ga", "orthogonal"],
        "such first values change the base weights or need data, which an adapter's file cannot tell; leave it out, or "
        "use gaussian",
    ),
    "peft_autocast_adapter_dtype": {False: "an adapter in the base model's type is `bf16: full`; remove it"},
    "gradient_checkpointing_kwargs.use_reentrant": {
        True: "the reentrant form fails with FSDP2 and with frozen weights; use `use_reentrant: false`"
    },
    "tensor_parallel_size": dict.fromkeys((2, 4, 8, 16, 32, 64), _PARALLEL),
    "context_parallel_size": dict.fromkeys((2, 4, 8, 16, 32, 64), _PARALLEL),
    "expert_parallel_size": dict.fromkeys((2, 4, 8, 16, 32, 64), _PARALLEL),
    "attn_implementation": {
        "xformers": "not supported; remove it: packed documents then take the fastest attention there is",
        "sage": "SageAttention has no backward pass that is exact; remove it",
        "fp8": "attention in fp8 is not supported; remove it",
        "s2": "shifted sparse attention is not supported; remove it",
    },
    "plugins.*": {
        f"axolotl.integrations.{name}": f"this plugin ({what}) is not supported; remove it"
        for name, what in {
            "spectrum.SpectrumPlugin": "Spectrum; name the layers in `unfrozen_parameters`",
            "kd.KDPlugin": "distillation",
            "grokfast.GrokfastPlugin": "Grokfast",
            "lm_eval.LMEvalPlugin": "lm-eval after training; run it on what `allranks export` writes",
            "llm_compressor.LLMCompressorPlugin": "LLM Compressor",
            "kernels.KernelsPlugin": "kernels for mixtures of experts",
            "diffusion.DiffusionPlugin": "diffusion language models",
            "densemixer.DenseMixerPlugin": "DenseMixer",
            "swanlab.SwanLabPlugin": "the SwanLab tracker",
        }.items()
    },
    "greater_is_better": {True: "`best` is the smallest evaluation loss; remove it"},
    "datasets.*.trust_remote_code": {True: "code of data sets is never run; use a data set in Parquet or JSON"},
    "save_safetensors": {False: "models are always written as safetensors; remove it"},
    "datasets.*.type": {
        "sharegpt": "use `type: chat_template` with `field_messages: conversations` and "
        "`message_property_mappings: {role: from, content: value}`",
        "llama2_chat": "use `type: chat_template` with the tokenizer's own template",
        "stepwise_supervised": "reward models are out of scope; allranks does supervised fine-tuning",
        "_synthetic": "data of random numbers; leave `type` out and give `input_ids` and `labels`",
        **dict.fromkeys(
            _PROMPTS, "a prompt of one data set; write it as a mapping under `type`, with `format` and fields"
        ),
    },
    "optimizer": {
        **dict.fromkeys(
            [
                *("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise"),
                *("galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"),
                *("apollo_adamw", "apollo_adamw_layerwise"),
            ],
            "gradients projected to a low rank are not supported; use `adapter: lora`, or `adamw_torch_8bit`",
        ),
        **dict.fromkeys(
            ["lomo", "adalomo"],
            "it updates weights within the backward pass, so there is no gradient norm of the global batch to clip or "
            "to report; use `adafactor`, or `fsdp_config.offload_params: true`",
        ),
        **dict.fromkeys(
            ["schedule_free_radam", "schedule_free_radamw", "schedule_free_adamw", "schedule_free_sgd"],
            "its weights must be swapped for evaluations and checkpoints, which is not supported; use "
            "`lr_scheduler: constant` or `warmup_stable_decay` with another optimizer",
        ),
        **dict.fromkeys(
            ["optimi_adamw", "stable_adamw", "grokadamw"],
            "its library keeps state where a checkpoint does not find it, so a run could not be resumed; use "
            "adamw_torch_fused",
        ),
        **dict.fromkeys(["adamw_anyprecision", "adamw_apex_fused"], "no longer maintained; use adamw_torch_fused"),
        **dict.fromkeys(["adamw_torch_xla", "adamw_torch_npu_fused"], "for other devices; use adamw_torch_fused"),
        **dict.fromkeys(["adopt_adamw", "dion"], "not supported; use adamw_torch_fused or muon"),
    },
    "lr_scheduler": {
        **dict.fromkeys(
            ["reduce_lr_on_plateau", "greedy"],
            "its rates depend on the losses seen so far, not on the step alone; use cosine, rex or warmup_stable_decay",
        ),
    },
}
"""Values that deserve a better answer than the list of what is allowed: key -> value -> what to do."""


def lookup(table: dict[str, str], key: str) -> str | None:
    """The entry for a key in one of the tables above."""
    if key in table:
        return table[key]
    return next((text for pattern, text in table.items() if "*" in pattern and fnmatchcase(key, pattern)), None)


def is_known(key: str) -> bool:
    """Whether a top-level key is in one of the tables, or names a secret."""
    tables = (LATER, OUT_OF_SCOPE, NO_EFFECT)
    return any(lookup(table, key) for table in tables) or secret_variable(key) is not None


def secret_variable(key: str) -> str | None:
    """The environment variable that a secret belongs in, if the key names one."""
    if key in ("hub_token", "hf_token", "hf_auth_token", "use_auth_token"):
        return "HF_TOKEN"
    return key.upper() if is_secret_name(key) else None
