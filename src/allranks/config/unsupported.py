"""Keys that are known and not (or not yet) supported: one entry a key, or a key's prefix ending in `*`."""

from fnmatch import fnmatchcase
from functools import lru_cache

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
    "cut_cross_entropy_*": "options of Cut Cross Entropy; it runs with its own",
    "liger_use_token_scaling": "a loss scaled token by token",
    "s2_attention": "shifted sparse attention",
    "sage_attention": "SageAttention",
    "tiled_mlp*": "the MLP in tiles; `gradient_checkpointing: offload` saves memory for long sequences, too",
    "fp8*": "fp8: its kernels and scales depend on the GPU; use `bf16: true`",
    "peft_layer_replication": "layer replication",
    "peft_trainable_token_indices": "training single tokens; use `lora_modules_to_save: [embed_tokens]`",
    "peft_ensure_weight_tying": "tied adapters",
    "peft": "PEFT's further settings (LoftQ)",
    "relora*": "ReLoRA; use `adapter: lora`",
    "jagged_restart_*": "ReLoRA; use `adapter: lora`",
    "lisa_*": "LISA; layers that are always the same ones can be trained with `unfrozen_parameters`",
    "optim_target_modules": "GaLore",
    "auto_find_batch_size": "finding the batch size",
    "push_dataset_to_hub": "uploads to the Hub",
    "push_to_hub": "uploads to the Hub",
    "hub_*": "uploads to the Hub; run `allranks export` and upload its result",
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
    "tokenizer_use_mistral_common": "prompts that mistral-common makes, without a chat template that tells what is "
    "trained; use a `tokenizer_config` that has a tokenizer.json, with `chat_template`",
    "cls_model_config": "choosing the configuration class; it is found from the model",
    "overrides_of_model_kwargs": "arguments of from_pretrained",
    "model_kwargs": "arguments of from_pretrained",
    "quantization": "quantization after training; quantize what is exported",
    "qat": "training with the rounding of a later quantization; train as usual, and quantize what is exported",
    "llama4_linearized_experts": "experts taken apart into linear layers; `quantize_moe_experts: true` packs them, "
    "and `lora_target_parameters` adapts them",
    "heads_k_stride": "context parallelism",
    "ring_attn_func": "context parallelism",
    "max_memory": "placing layers on devices by hand; `fsdp_version: 2` divides the model over all ranks",
    "gpu_memory_limit": "placing layers on devices by hand; `fsdp_version: 2` divides the model over all ranks",
    "device_map": "placing layers on devices by hand; `fsdp_version: 2` divides the model over all ranks",
    "device": "choosing the device in the config; set CUDA_VISIBLE_DEVICES",
    "use_pose": "PoSE",
    "pose_*": "PoSE",
    "scaling_softmax*": "scaled softmax",
    "skip_prepare_dataset": "training without preparing the data",
    "streaming": "streaming data; it is prepared once and read from disk, so it need not fit into memory",
    "streaming_*": "streaming data; it is prepared once and read from disk, so it need not fit into memory",
    "accelerator_config": "settings of Accelerate, which only launches here",
    "torchdistx_path": "torchdistx",
    "datasets.*.input_format": "variants of a prompt by name; use `type`",
    "datasets.*.input_transform": "transforms of records",
    "datasets.*.field_human": "prompt formats of old types",
    "datasets.*.field_model": "prompt formats of old types",
    "context_parallel": "context parallelism",
    "context_parallel_*": "context parallelism",
    "expert_parallel_*": "expert parallelism; `fsdp_version: 2` divides experts over the ranks, too",
    "use_dsv4_kernels": "kernels of one model",
    "dsv4_*": "kernels of one model",
    "ple_cpu_offload": "offloading parts of one model",
    "nvfp4_*": "quantized training in NVFP4, by kernels of some GPUs; use `adapter: qlora` with `quantize_moe_experts`",
    "gemma4_*_nonexpert": "quantized weights of one model",
    "nonexpert_quantization": "bits for the rest than the experts' own; `quantize_moe_experts` takes the same for both",
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

_SAME = "the result is the same, at another speed"
_KERNELS = f"this kernel is not used: {_SAME}"

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
    # Only speed differs.
    **dict.fromkeys(
        (
            *("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel", "use_kernels"),
            *("fused_attn_kernel", "gemma4_hybrid_attn_impl", "large_head_attention", "use_glm_dsa_kernels"),
            *("flash_attn_*", "flash_optimum", "unsloth_*", "liger_rms_norm_gated", "liger_kernel_impl"),
            "flex_attn_compile_kwargs",
        ),
        _KERNELS,
    ),
    **dict.fromkeys(
        (*("use_scattermoe", "use_sonicmoe", "experts_implementation", "expert_backend", "moe_*", "autotune_*"),),
        f"transformers' own code computes the experts: {_SAME}",
    ),
    "xformers_attention": f"packed documents take the fastest attention that the device has: {_SAME}",
    "liger_cross_entropy": "the loss is made without ever holding all logits, which saves more",
    "multipack_real_batches": "micro-batches are always laid end to end, without padding",
    "batch_flattening": "micro-batches are always laid end to end, without padding",
    "pad_to_multiple_of": "micro-batches are laid end to end; `pad_to_sequence_len: true` makes blocks equally long",
    "hf_use_auth_token": "the Hub's token is used wherever there is one (`hf auth login`, HF_TOKEN)",
}
"""Axolotl's keys that steer something which does not exist here: key or prefix -> why. Accepted with a note."""


def lookup(table: dict[str, str], key: str) -> str | None:
    """The entry for a key in one of the tables above."""
    if key in table:
        return table[key]
    return next((text for pattern, text in table.items() if "*" in pattern and _fits(key, pattern)), None)


_fits = lru_cache(maxsize=2**14)(fnmatchcase)
"""A plan resolves the same keys for each strategy and method."""


def is_known(key: str) -> bool:
    """Whether a top-level key is in one of the tables, or names a secret."""
    tables = (LATER, OUT_OF_SCOPE, NO_EFFECT)
    return any(lookup(table, key) for table in tables) or secret_variable(key) is not None


def secret_variable(key: str) -> str | None:
    """The environment variable that a secret belongs in, if the key names one."""
    if key in ("hub_token", "hf_token", "hf_auth_token", "use_auth_token"):
        return "HF_TOKEN"
    return key.upper() if is_secret_name(key) else None
