"""Values of keys that are known and cannot be used as they are: refused with a better answer, or taken with a note."""

from fnmatch import fnmatchcase
from typing import Any

FSDP1 = {
    "fsdp_config.sharding_strategy": "an FSDP1 setting; use `reshard_after_forward` (true is FULL_SHARD, false is "
    "SHARD_GRAD_OP) and `dp_replicate_size` (HYBRID_SHARD)",
    "fsdp_config.forward_prefetch": "an FSDP1 setting; FSDP2 overlaps communication by itself; remove it",
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

_PREFETCH = "FSDP2 overlaps communication by itself: the result is the same, at another speed"

SAME_RESULT: dict[str, dict[Any, str]] = {
    "gradient_checkpointing_kwargs.use_reentrant": {
        True: "the non-reentrant form recomputes the same numbers, also with FSDP2 and with frozen weights"
    },
    "fsdp_config.cpu_ram_efficient_loading": {False: "weights always go straight into the shards"},
    "fsdp_config.sync_module_states": {False: "all ranks always start from the same weights"},
    "fsdp_config.limit_all_gathers": {False: "FSDP2 always limits them"},
    "fsdp_config.forward_prefetch": {True: _PREFETCH},
    "fsdp_config.use_orig_params": {False: "FSDP2 always keeps the original parameters"},
    **{
        f"fsdp_config.{key}": dict.fromkeys(("BACKWARD_POST", "NO_PREFETCH"), _PREFETCH)
        for key in ("backward_prefetch", "backward_prefetch_policy")
    },
    "attn_implementation": {
        "xformers": "packed documents take the fastest attention that the device has: the result is the same"
    },
    "plugins.*": {
        "axolotl.integrations.kernels.KernelsPlugin": "transformers' own code computes the experts: the result is the "
        "same, at another speed"
    },
}
"""Values whose wish makes no difference to the result here: key -> value -> why. Left out, with a note."""

_SHARDED = "FSDP2 has no such form; use SHARDED_STATE_DICT (every rank writes its shard) or FULL_STATE_DICT"
_PARALLEL = {
    "tensor_parallel_size": "not supported yet, only 1 is; `fsdp_version: 2` divides all weights over the ranks",
    "context_parallel_size": "one sequence over several GPUs is not supported yet, only 1 is; a shorter `sequence_len` "
    "and `gradient_checkpointing: offload` save memory",
    "expert_parallel_size": "not supported yet, only 1 is; `fsdp_version: 2` divides experts over the ranks",
}
_MULTIMODAL = (
    "a class for images or sound beside text, which are not trained here; remove it: the text model is loaded, whose "
    "layers are called `model.layers.…`"
)
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
    "model_quantization_config": {
        "FineGrainedFP8Config": "weights in fp8 cannot be trained, and its kernels depend on the GPU; remove it, and "
        "use a model that is stored in bfloat16"
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
    **{key: dict.fromkeys(range(2, 1025), reason) for key, reason in _PARALLEL.items()},
    "model_type": {
        **dict.fromkeys(("*ForConditionalGeneration", "AutoModelForImageTextToText"), _MULTIMODAL),
        "Mamba*LMHeadModel": "a class of the library mamba_ssm; remove it, and use a model of transformers (…-hf)",
    },
    "attn_implementation": {
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
            "diffusion.DiffusionPlugin": "diffusion language models",
            "densemixer.DenseMixerPlugin": "DenseMixer",
            "expert_parallel.ExpertParallelPlugin": "expert parallelism; `fsdp_version: 2` divides experts, too",
            "mora.MoraPlugin": "MoRA; use `adapter: lora`",
            "nemo_gym.NemoGymPlugin": "reinforcement learning",
            "hatchery.HatcheryPlugin": "reinforcement learning",
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
"""Values that deserve a better answer than the list of what is allowed: key -> value, or a pattern with `*` -> what to
do."""


def refused_value(key: str, value: str | int) -> str | None:
    """The answer to a value of the table above."""
    known = REFUSED_VALUES.get(key, {})
    if value in known:
        return known[value]
    patterns = (pattern for pattern in known if isinstance(value, str) and "*" in str(pattern))
    return next((known[pattern] for pattern in patterns if fnmatchcase(str(value), pattern)), None)
