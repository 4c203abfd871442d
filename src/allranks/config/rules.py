"""What keys say about each other: pairs that exclude each other, and keys that need another."""

import re
from collections.abc import Iterator
from typing import Any, Protocol

from allranks.config.data_rules import sample_rules, template_rules, type_rules
from allranks.config.foreign.deepspeed import deepspeed_rules
from allranks.config.optimizers import NOT_WITH_FSDP, SAVED_AT_ONCE, WITH_FSDP, WITH_ZERO
from allranks.config.quantization import refusals
from allranks.config.run import RunConfig
from allranks.config.yaml_lines import KeyPath

Broken = Iterator[tuple[str | KeyPath, str]]
"""Key (or path) -> what is wrong with it."""


class Given(Protocol):
    """What was written, and where."""

    values: dict[str, Any]

    def label(self, path: KeyPath) -> str: ...


EXCLUSIVE = [
    ("batch_size", "gradient_accumulation_steps", "`batch_size` fixes the global batch, the other follows from it"),
    ("warmup_steps", "warmup_ratio", "both set the length of the warm-up"),
    ("save_steps", "saves_per_epoch", "both set how often is saved"),
    ("eval_steps", "evals_per_epoch", "both set how often is evaluated"),
    ("test_datasets", "val_set_size", "both name the evaluation data"),
    ("embedding_lr", "embedding_lr_scale", "both set the learning rate of the embedding"),
    ("curriculum_sampling", "shuffle_merged_datasets", "one keeps the data in its order, the other mixes it"),
    ("curriculum_sampling", "group_by_length", "both choose the order of the data"),
    ("bf16", "fp16", "a run computes in one type"),
    ("float32", "bf16", "a run computes in one type"),
    ("float32", "fp16", "a run computes in one type"),
    ("float32", "bfloat16", "a run computes in one type"),
    ("unfrozen_parameters", "adapter", "an adapter freezes the whole model; `lora_modules_to_save` trains modules too"),
    ("fp16", "bfloat16", "a run computes in one type"),
    ("chunked_cross_entropy", "cut_cross_entropy", "both make the loss"),
    ("chunked_cross_entropy", "liger_fused_linear_cross_entropy", "both make the loss"),
    ("cut_cross_entropy", "liger_fused_linear_cross_entropy", "both make the loss"),
    ("load_in_4bit", "load_in_8bit", "both choose the bits of a frozen weight"),
    ("resume_from_checkpoint", "auto_resume_from_checkpoints", "both choose the checkpoint to go on from"),
]
"""Two keys of which only one may be switched on, and why."""

OPTIMIZER_ARGUMENTS = {"betas": ("adam_beta1", "adam_beta2"), "eps": ("adam_epsilon",)}
"""Arguments of optimizers -> the config's own keys for them."""

WITHOUT_BETAS = ("sgd", "adafactor", "adagrad", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit")

MODULE_NAME = re.compile(r"[\w.-]+")
"""A name of modules, such as `q_proj` or `mlp.down_proj`; anything else is a regular expression."""


def broken_rules(config: RunConfig, given: Given) -> list[str]:
    """One line for each rule that the config breaks."""
    checks = (
        *(_exclusive, _adapter, _quantization, _optimizer, _schedule, _saving, _evaluation),
        *(template_rules, type_rules, sample_rules, _precision, _parallel, _network, _launch, _watchdog),
        *(_kernels, deepspeed_rules),
    )
    broken = [entry for check in checks for entry in check(config, given)]
    return [f"{given.label(at if isinstance(at, tuple) else (at,))}: {message}" for at, message in broken]


def _exclusive(config: RunConfig, given: Given) -> Broken:
    for first, second, why in EXCLUSIVE:
        if given.values.get(first) and given.values.get(second):
            yield second, f"excludes {first} ({given.label((first,))}): {why}; keep one of them"


def _adapter(config: RunConfig, given: Given) -> Broken:
    adapter = config.adapter
    if adapter.adapter is None:
        return
    modules = adapter.lora_target_modules
    if adapter.lora_target_linear and isinstance(modules, str) and not MODULE_NAME.fullmatch(modules):
        at = given.label(("lora_target_linear",))
        yield "lora_target_modules", f"a pattern excludes lora_target_linear ({at}), to which only names can be added"
    for key in ("lora_r", "lora_alpha"):
        if getattr(adapter, key) is None and adapter.lora_model_dir is None:
            yield key, f"required by `adapter: {adapter.adapter}`"
    if adapter.lora_target_parameters:
        if config.deepspeed.stage:
            yield "lora_target_parameters", "is not supported with DeepSpeed ZeRO; use `fsdp_version: 2`"
        for key in ("lora_dropout", "peft_use_dora", "lora_fan_in_fan_out"):
            if getattr(adapter, key):
                yield (
                    key,
                    "does not go with `lora_target_parameters`: PEFT adds those products to the weights themselves",
                )
    if adapter.peft_layers_pattern and not adapter.peft_layers_to_transform:
        yield "peft_layers_pattern", "needs `peft_layers_to_transform`"


def _quantization(config: RunConfig, given: Given) -> Broken:
    yield from refusals(config, given.values)


def _optimizer(config: RunConfig, given: Given) -> Broken:
    settings = config.optimizer
    # Not "given": a resolved config, which the ranks read, gives every key.
    changed = [key for key, field in type(settings).model_fields.items() if getattr(settings, key) != field.default]
    name = settings.optimizer
    for key in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        if key in changed and name in WITHOUT_BETAS:
            yield key, f"has no effect: {name} has no such number; remove it, or choose an AdamW as `optimizer`"
    for key, owners in (("adam_beta3", ("came", "ademamix")), ("adam_epsilon2", ("came",))):
        if key in changed and not any(owner in name for owner in owners):
            yield key, f"has no effect: {name} has no such number; it is for {' and '.join(owners)}"
    if "adam_epsilon" in changed and "lion" in name:
        yield "adam_epsilon", f"has no effect: {name} divides by nothing; remove it"
    if config.parallel.uses_fsdp and name in NOT_WITH_FSDP and name not in WITH_FSDP:
        yield "optimizer", f"{name} does not work with FSDP: {NOT_WITH_FSDP[name]}; use adamw_torch_fused"
    if config.deepspeed.stage and name not in WITH_ZERO:
        yield "optimizer", f"{name} does not work on the flat pieces that ZeRO makes; use one of {', '.join(WITH_ZERO)}"
    if config.checkpoint.save_async and name in SAVED_AT_ONCE:
        yield "save_async", f"the state of {name} cannot be written behind the training; remove it"
    for argument in settings.optim_args or {}:
        at = ("optim_args", argument)
        for key in OPTIMIZER_ARGUMENTS.get(argument, ()):
            if key in changed:
                yield at, f"excludes {key} ({given.label((key,))}): both set the same; keep one of them"
        for key in ("lr", "weight_decay"):
            if argument == key:
                yield at, f"has no effect: `{'learning_rate' if key == 'lr' else key}` sets it for every parameter"


def _schedule(config: RunConfig, given: Given) -> Broken:
    scheduler = config.optimizer.lr_scheduler
    for key in ("cosine_min_lr_ratio", "cosine_constant_lr_ratio"):
        allowed = ("cosine", "rex") if key == "cosine_min_lr_ratio" else ("cosine",)
        if given.values.get(key) and scheduler not in allowed:
            yield key, f"belongs to `lr_scheduler: {' or '.join(allowed)}`, not to {scheduler}"
    if config.optimizer.cosine_constant_lr_ratio and config.optimizer.cosine_min_lr_ratio is None:
        yield "cosine_constant_lr_ratio", "needs `cosine_min_lr_ratio`, the rate that it stays at"
    if given.values.get("lr_div_factor") and scheduler != "one_cycle":
        yield "lr_div_factor", f"belongs to `lr_scheduler: one_cycle`, not to {scheduler}"
    if given.values.get("lr_quadratic_warmup"):
        if scheduler in ("one_cycle", "cosine_warmup_with_min_lr"):
            yield "lr_quadratic_warmup", f"{scheduler} has a warm-up of its own"
        elif 0 in (config.optimizer.warmup_steps, config.optimizer.warmup_ratio):
            yield "lr_quadratic_warmup", "needs a warm-up, and `warmup_steps` or `warmup_ratio` is 0"


def _saving(config: RunConfig, given: Given) -> Broken:
    checkpoint = config.checkpoint
    for key in ("save_steps", "saves_per_epoch"):
        if getattr(checkpoint, key) and checkpoint.save_strategy not in (None, "steps"):
            yield key, f"needs `save_strategy: steps`, not {checkpoint.save_strategy}"
    if checkpoint.save_strategy == "steps" and not (checkpoint.save_steps or checkpoint.saves_per_epoch):
        yield "save_strategy", "`steps` needs `save_steps` or `saves_per_epoch`"
    wanting_best = [("save_strategy", "`best` ")] if checkpoint.save_strategy == "best" else []
    wanting_best += [("load_best_model_at_end", "")] if checkpoint.load_best_model_at_end else []
    if checkpoint.metric_for_best_model and not wanting_best:
        yield "metric_for_best_model", "needs `save_strategy: best` or `load_best_model_at_end: true`"
    for key, value in wanting_best:
        if not config.has_evaluation_data:
            yield key, f"{value}needs evaluation data: `val_set_size` or `test_datasets`"
        elif config.evaluation.eval_strategy == "no":
            at = given.label(("eval_strategy",))
            yield key, f"{value}needs evaluations, and `eval_strategy` is no ({at}); remove that key"
    if checkpoint.save_first_step and checkpoint.save_strategy in ("best", "no"):
        why = "saves only after evaluations" if checkpoint.save_strategy == "best" else "saves nothing on the way"
        yield "save_first_step", f"contradicts `save_strategy: {checkpoint.save_strategy}`, which {why}"


def _evaluation(config: RunConfig, given: Given) -> Broken:
    evaluation = config.evaluation
    strategy = evaluation.eval_strategy
    asked = [key for key in ("eval_steps", "early_stopping_patience", "eval_on_start") if getattr(evaluation, key)]
    asked += ["eval_strategy"] if strategy not in (None, "no") else []
    if not config.has_evaluation_data:
        for key in asked:
            yield key, "needs evaluation data: `val_set_size` or `test_datasets`"
        return
    for key in ("eval_steps", "evals_per_epoch"):
        if getattr(evaluation, key) and strategy not in (None, "steps"):
            yield key, f"needs `eval_strategy: steps`, not {strategy}"
    if strategy == "steps" and not (evaluation.eval_steps or evaluation.evals_per_epoch):
        yield "eval_strategy", "`steps` needs `eval_steps` or `evals_per_epoch`"
    for key in ("early_stopping_patience", "eval_on_start"):
        if strategy == "no" and getattr(evaluation, key):
            yield key, "needs an `eval_strategy`"


def _precision(config: RunConfig, given: Given) -> Broken:
    compute = config.precision.compute
    policy = config.parallel.fsdp_settings.mixed_precision_policy
    if policy and compute not in ("auto", "bfloat16" if policy == "bf16" else "float32"):
        yield ("fsdp_config", "mixed_precision_policy"), f"{policy} contradicts {compute}, which bf16 and fp16 ask for"
    if config.precision.float16:
        # torch's GradScaler refuses to unscale float16 gradients, which float16 weights have.
        yield "float16", "weights in float16 cannot be trained: loss scaling needs float32 ones; use `fp16` or `bf16`"
    elif config.precision.fp16 and config.parallel.uses_fsdp:
        yield "fp16", "float16 needs loss scaling, which does not work with FSDP; use `bf16: true`"


def _parallel(config: RunConfig, given: Given) -> Broken:
    parallel = config.parallel
    for key in ("torch_compile_backend", "torch_compile_mode"):
        if given.values.get(key) and not parallel.torch_compile:
            yield key, "needs `torch_compile: true`"
    if parallel.offloads_activations:
        at = "activation_offloading" if parallel.activation_offloading else "gradient_checkpointing"
        if not parallel.checkpoints_activations:
            yield at, "needs `gradient_checkpointing: true`: only the inputs of recomputed layers are offloaded"
        if parallel.torch_compile:
            yield at, "does not work with torch_compile, which has to see the recomputation; remove one of them"
    if parallel.gradient_checkpointing_kwargs and not parallel.checkpoints_activations:
        yield "gradient_checkpointing_kwargs", "needs `gradient_checkpointing: true`"
    yield from _comm_hook(config)


def _comm_hook(config: RunConfig) -> Broken:
    parallel, hook = config.parallel, config.parallel.ddp_comm_hook
    low_rank = "power_sgd" in hook
    if parallel.ddp_comm_state_option and not low_rank:
        yield "ddp_comm_state_option", "belongs to `ddp_comm_hook: power_sgd` and `batched_power_sgd`"
    if hook == "none":
        return
    if config.deepspeed.stage:
        yield "ddp_comm_hook", "is a hook of DDP, and ZeRO reduces gradients itself; remove one of them"
    elif parallel.uses_fsdp:
        yield "ddp_comm_hook", "is a hook of DDP; with FSDP set `fsdp_config.reduce_dtype: bfloat16`"
    elif low_rank and config.precision.compute == "float16":
        # Loss scaling finds its level by gradients that overflow; error feedback would keep them for ever.
        yield "ddp_comm_hook", f"{hook} does not work with fp16's loss scaling; use `bf16: true`"


def _kernels(config: RunConfig, given: Given) -> Broken:
    kernels = config.kernels
    if kernels.chunked_cross_entropy_num_chunks and kernels.chunked_cross_entropy is False:
        yield "chunked_cross_entropy_num_chunks", "has no effect with `chunked_cross_entropy: false`"
    if kernels.chunked_cross_entropy_num_chunks and (
        kernels.cut_cross_entropy or kernels.liger_fused_linear_cross_entropy
    ):
        yield "chunked_cross_entropy_num_chunks", "has no effect where another library makes the loss; remove it"


def _network(config: RunConfig, given: Given) -> Broken:
    network = config.network.settings
    for key in ("hcas", "gid_index"):
        if getattr(network, key) is not None and network.infiniband == "off":
            yield ("network", key), "has no effect with `infiniband: off`; remove one of them"
    if network.debug_subsystems and network.debug not in ("INFO", "TRACE"):
        yield ("network", "debug_subsystems"), "needs `debug: INFO` or `debug: TRACE`"


def _launch(config: RunConfig, given: Given) -> Broken:
    if (config.launch.resources_per_worker or {}).get("GPU", 0) not in (0, 1):
        yield ("resources_per_worker", "GPU"), "a rank uses one GPU, or none: 1 or 0"


def _watchdog(config: RunConfig, given: Given) -> Broken:
    if config.tracking.profiler_steps_start and not config.tracking.profiler_steps:
        yield "profiler_steps_start", "needs `profiler_steps`, how many steps to record"
    if given.values.get("loss_watchdog_patience") and config.tracking.loss_watchdog_threshold is None:
        yield "loss_watchdog_patience", "needs `loss_watchdog_threshold`"
