"""Every argument of Qwen's finetune.py, and what becomes of it here.

finetune.py reads its own arguments and all of transformers' TrainingArguments, of the version that its user has
installed: those of 4.32, when it was written, and those of 5.x are both in these tables.
"""

KEYS = {
    # finetune.py's own
    "model_name_or_path": "base_model",
    "data_path": "datasets.0.path",
    "eval_data_path": "test_datasets.0.path",
    "model_max_length": "sequence_len",
    "lora_r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "lora_target_modules",
    "lora_weight_path": "lora_model_dir",
    # the run and its length
    "output_dir": "output_dir",
    "max_steps": "max_steps",
    "num_train_epochs": "num_epochs",
    "seed": "seed",
    "data_seed": "data_seed",
    "resume_from_checkpoint": "resume_from_checkpoint",
    # the batch
    "per_device_train_batch_size": "micro_batch_size",
    "per_gpu_train_batch_size": "micro_batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "per_gpu_eval_batch_size": "eval_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "auto_find_batch_size": "auto_find_batch_size",
    "group_by_length": "group_by_length",
    # the optimizer
    "optim": "optimizer",
    "optim_args": "optim_args",
    "optim_target_modules": "optim_target_modules",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
    "max_grad_norm": "max_grad_norm",
    "lr_scheduler_type": "lr_scheduler",
    "lr_scheduler_kwargs": "lr_scheduler_kwargs",
    "warmup_ratio": "warmup_ratio",
    "warmup_steps": "warmup_steps",
    "neftune_noise_alpha": "neftune_noise_alpha",
    # number formats, memory and speed
    "bf16": "bf16",
    "fp16": "fp16",
    "tf32": "tf32",
    "gradient_checkpointing": "gradient_checkpointing",
    "activation_checkpointing": "gradient_checkpointing",
    "gradient_checkpointing_kwargs": "gradient_checkpointing_kwargs",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
    "torch_compile": "torch_compile",
    "torch_compile_backend": "torch_compile_backend",
    "torchdynamo": "torch_compile_backend",
    "torch_compile_mode": "torch_compile_mode",
    # several ranks
    "deepspeed": "deepspeed",
    "fsdp": "fsdp",
    "fsdp_config": "fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "fsdp_config.transformer_layer_cls_to_wrap",
    "fsdp_min_num_params": "fsdp_config.min_num_params",
    "ddp_timeout": "ddp_timeout",
    "ddp_bucket_cap_mb": "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers": "ddp_broadcast_buffers",
    "ddp_find_unused_parameters": "ddp_find_unused_parameters",
    "accelerator_config": "accelerator_config",
    # when to report, evaluate and save
    "logging_steps": "logging_steps",
    "eval_strategy": "eval_strategy",
    "evaluation_strategy": "eval_strategy",
    "eval_steps": "eval_steps",
    "eval_on_start": "eval_on_start",
    "save_strategy": "save_strategy",
    "save_steps": "save_steps",
    "save_total_limit": "save_total_limit",
    "save_only_model": "save_only_model",
    "save_safetensors": "save_safetensors",
    "save_on_each_node": "save_on_each_node",
    "load_best_model_at_end": "load_best_model_at_end",
    "metric_for_best_model": "metric_for_best_model",
    "greater_is_better": "greater_is_better",
    "push_to_hub": "push_to_hub",
    "hub_model_id": "hub_model_id",
    "push_to_hub_model_id": "hub_model_id",
    "hub_strategy": "hub_strategy",
    "hub_token": "hub_token",
    "push_to_hub_token": "hub_token",
}
"""Argument -> the key of the config that it is. What the key allows and what it refuses, the config says."""

WITH_CARE = {
    "use_lora": "train an adapter",
    "q_lora": "train it on 4-bit weights",
    "lora_bias": "only none",
    "cache_dir": "folder of models from the Hub",
    "adafactor": "the same as --optim adafactor",
    "report_to": "trackers, or none",
    "run_name": "name of the run in W&B, MLflow and Trackio",
    "project": "Trackio's project",
    "trackio_space_id": "Trackio's space of the Hub",
    "train_sampling_strategy": "random or group_by_length",
    "logging_strategy": "only steps",
    "use_liger_kernel": "Liger's kernels: rope, rms_norm, glu_activation, fused_linear_cross_entropy",
    "liger_kernel_config": "which of them, as JSON",
    "no_cuda": "train on the CPU",
    "use_cpu": "train on the CPU",
}
"""Arguments that are more, or less, than one key -> what they do."""

_EVAL = "evaluation is the mean loss over the evaluation data, computed as the training loss is"
_LOG = "progress, warnings and every step's numbers are always written, once a run"
_BLOCKS = "blocks are read by memory map, without worker processes"
_TOLD = "the launcher tells it, by the environment"
_CHOSEN = "it follows from the device"

WITHOUT_EFFECT = {
    "lazy_preprocess": "the data is prepared once, and read by memory map",
    "do_train": "training is what this does",
    "do_eval": "--evaluation_strategy decides",
    "do_predict": "finetune.py does not predict either",
    "overwrite_output_dir": "a run never deletes another's checkpoints; a new one starts from the beginning",
    "use_cache": "it is always off in training",
    "average_tokens_across_devices": "the loss is always a mean over the tokens of all ranks",
    "logging_dir": "TensorBoard's files go into trackers/tensorboard of the run directory",
    "logging_first_step": _LOG,
    "logging_nan_inf_filter": _LOG,
    "log_level": _LOG,
    "log_level_replica": _LOG,
    "log_on_each_node": _LOG,
    "disable_tqdm": _LOG,
    "include_num_input_tokens_seen": _LOG,
    "include_tokens_per_second": _LOG,
    "skip_memory_metrics": _LOG,
    "prediction_loss_only": _EVAL,
    "eval_do_concat_batches": _EVAL,
    "eval_use_gather_object": _EVAL,
    "eval_accumulation_steps": _EVAL,
    "past_index": _EVAL,
    "batch_eval_metrics": _EVAL,
    "include_inputs_for_metrics": _EVAL,
    "include_for_metrics": _EVAL,
    "dataloader_num_workers": _BLOCKS,
    "dataloader_pin_memory": _BLOCKS,
    "dataloader_persistent_workers": _BLOCKS,
    "dataloader_prefetch_factor": _BLOCKS,
    "dataloader_multiprocessing_context": _BLOCKS,
    "dataloader_in_order": _BLOCKS,
    "dispatch_batches": _BLOCKS,
    "split_batches": _BLOCKS,
    "remove_unused_columns": "only what is trained is prepared",
    "length_column_name": "lengths are known from the prepared data",
    "local_rank": _TOLD,
    "ddp_backend": _CHOSEN + ": NCCL on GPUs, gloo on the CPU",
    "half_precision_backend": _CHOSEN,
    "fp16_opt_level": "it is Apex's, which is not used",
    "use_legacy_prediction_loop": _EVAL,
    "fp16_backend": _CHOSEN,
    "restore_callback_states_from_checkpoint": "there are no callbacks; a resumed run goes on exactly",
    "hub_always_push": "nothing is pushed",
    "hub_private_repo": "nothing is pushed",
    "hub_revision": "nothing is pushed",
    "push_to_hub_organization": "nothing is pushed",
    "trackio_bucket_id": "it is a place on the Hub beside --trackio_space_id",
    "trackio_static_space_id": "it is a place on the Hub beside --trackio_space_id",
    "ray_scope": "it is for searching hyperparameters",
    "torch_empty_cache_steps": "nothing grows from step to step that this would free",
}
"""Arguments that steer something which does not exist here -> why. Accepted, with a note unless switched off."""

_TPU = "TPUs are not supported"

REFUSED = {
    "label_smoothing_factor": "label smoothing is not supported: the loss is plain cross entropy",
    "label_names": "the labels are always those that finetune.py makes",
    "dataloader_drop_last": "no sample is ever dropped at the end of an epoch",
    "bf16_full_eval": "evaluation computes as training does; use --bf16 True",
    "fp16_full_eval": "evaluation computes as training does; use --fp16 True",
    "eval_delay": "the first evaluation cannot be put off",
    "ignore_data_skip": "a resumed run always goes on with the sample after the last one",
    "full_determinism": "deterministic kernels cannot be asked for; data order and first values are always the seed's",
    "enable_jit_checkpoint": "SIGTERM always saves",
    "ddp_static_graph": "DDP's static graph is not supported",
    "parallelism_config": "say it by the config's keys, such as --dp_shard_size",
    "debug": "finding overflows is not supported; --loss_watchdog_threshold stops a run whose loss explodes",
    "mp_parameters": "SageMaker's model parallelism is not supported",
    "sharded_ddp": "FairScale is not supported; use --deepspeed or --fsdp",
    "use_ipex": "Intel's extension is not supported",
    "use_mps_device": "Apple's GPUs are not supported",
    "jit_mode_eval": "TorchScript is not supported",
    "tpu_num_cores": _TPU,
    "tpu_metrics_debug": _TPU,
    "xpu_backend": "it follows from the device",
}
"""Arguments that ask for what cannot be done -> why. Accepted where their value asks for nothing."""

_SWITCHES = """
    activation_checkpointing adafactor auto_find_batch_size average_tokens_across_devices batch_eval_metrics bf16
    bf16_full_eval dataloader_drop_last dataloader_in_order dataloader_persistent_workers dataloader_pin_memory
    ddp_broadcast_buffers ddp_find_unused_parameters ddp_static_graph disable_tqdm dispatch_batches do_eval do_predict
    do_train enable_jit_checkpoint eval_do_concat_batches eval_on_start eval_use_gather_object fp16 fp16_full_eval
    full_determinism gradient_checkpointing greater_is_better group_by_length hub_always_push hub_private_repo
    ignore_data_skip include_inputs_for_metrics include_tokens_per_second jit_mode_eval lazy_preprocess
    load_best_model_at_end log_on_each_node logging_first_step logging_nan_inf_filter no_cuda overwrite_output_dir
    prediction_loss_only push_to_hub q_lora remove_unused_columns restore_callback_states_from_checkpoint
    save_on_each_node save_only_model save_safetensors skip_memory_metrics split_batches tf32 torch_compile
    tpu_metrics_debug use_cache use_cpu use_ipex use_legacy_prediction_loop use_liger_kernel use_lora
    use_mps_device
"""
SWITCHES = frozenset(_SWITCHES.split())
"""Arguments that are true or false, and true without a value."""

LISTS = frozenset(["lora_target_modules", "label_names", "report_to", "include_for_metrics", "debug", "fsdp"])
"""Arguments that take several words."""

MAPPINGS = frozenset(
    [
        *("fsdp_config", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        *("lr_scheduler_kwargs", "accelerator_config", "liger_kernel_config"),
    ]
)
"""Arguments that take a JSON object, or the path of a JSON file with one."""

ARGUMENTS = frozenset([*KEYS, *WITH_CARE, *WITHOUT_EFFECT, *REFUSED])
"""All arguments."""
