"""What DeepSpeed's settings and the config say about each other, field by field; neither silently wins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from allranks.config.explain import as_yaml
from allranks.config.foreign.deepspeed.keys import AUTO, NO_EFFECT, NUMBER, OPEN, REFUSED, TAKEN, fits, says_nothing
from allranks.config.yaml_lines import KeyPath

if TYPE_CHECKING:
    from allranks.config.run import RunConfig

Broken = Iterator[tuple[KeyPath, str]]

ADAMS = ("adamw_torch_fused", "adamw_torch")
OPTIMIZERS = {"adamw": ADAMS, "adam": ADAMS, "sgd": ("sgd",)}
"""DeepSpeed's optimizers, lower case -> the config's. (Its Adam is AdamW, unless told otherwise.)"""

SCHEDULERS = {"WarmupLR": "constant_with_warmup", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
"""DeepSpeed's schedules -> the config's with the same course after the warm-up."""

DDP_KEYS = ("ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_find_unused_parameters")
FSDP_KEYS = ("fsdp", "fsdp_version", "fsdp_config", "dp_shard_size", "dp_replicate_size")


class Given(Protocol):
    """What was written, and where."""

    @property
    def values(self) -> dict[str, Any]: ...

    def label(self, path: KeyPath) -> str: ...


def deepspeed_rules(config: RunConfig, given: Given) -> Broken:
    """Path of each setting that cannot be used as it is -> why."""
    settings = config.deepspeed.settings
    if not settings:
        return
    wrong = list(_keys(settings, ()))
    yield from wrong
    if wrong:
        return
    yield from _alone(config, given)
    yield from _zero(config)
    yield from _batch(config, given)
    yield from _precision(config, given)
    yield from _optimizer(config, given)
    yield from _scheduler(config, given)


def deepspeed_warnings(config: RunConfig, given: Given) -> list[str]:
    """What a user of transformers' Trainer would not expect."""
    told = [
        f"{given.label(('deepspeed', name))}: has no effect: {why}"
        for name, why in NO_EFFECT.items()
        if not says_nothing((given.values.get("deepspeed") or {}).get(name))
    ]
    kind = _value(config, "scheduler.type")
    written = given.values.get("lr_scheduler")
    if not written or kind in (None, AUTO) or written == SCHEDULERS.get(kind):
        return told
    return [
        *told,
        f"{given.label(('deepspeed', 'scheduler', 'type'))}: {kind} is not taken: {written} runs, as "
        f"{given.label(('lr_scheduler',))} says. (transformers' Trainer takes the JSON's; for that write "
        f"lr_scheduler: {SCHEDULERS.get(kind)})",
    ]


def _keys(settings: dict[str, Any], above: tuple[str, ...]) -> Broken:
    """Keys that do not exist, are not taken, or hold something else than they take."""
    for key, value in settings.items():
        name = ".".join((*above, key))
        at: KeyPath = ("deepspeed", *above, key)
        if name in REFUSED:
            if not says_nothing(value):
                yield at, f"not taken: {REFUSED[name]}"
        elif name in NO_EFFECT:
            switches = value.items() if isinstance(value, dict) else ()
            yield from (
                one for part, on in switches for one in _keys({part: on}, (*above, key)) if f"{name}.{part}" in REFUSED
            )
        elif name not in TAKEN:
            siblings = [known.rpartition(".")[2] for known in TAKEN if known.rpartition(".")[0] == ".".join(above)]
            yield at, f"DeepSpeed has no such setting{_nearest(key, siblings)}"
        elif not fits(value, TAKEN[name]):
            yield at, f"expected {TAKEN[name]}{' or auto' if isinstance(value, str) else ''}, got {as_yaml(value)}"
        elif isinstance(value, dict) and name not in OPEN:
            yield from _keys(value, (*above, key))


def _nearest(key: str, siblings: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(siblings)[:12])}"


def _alone(config: RunConfig, given: Given) -> Broken:
    for key in FSDP_KEYS:
        if given.values.get(key):
            yield ("deepspeed",), f"excludes {key} ({given.label((key,))}): both shard the model; keep one of them"
    for key in DDP_KEYS:
        if given.values.get(key) and config.deepspeed.stage:
            yield (
                (key,),
                f"has no effect on ZeRO ({given.label(('deepspeed',))}), which reduces gradients itself; remove it",
            )
    if config.precision.low_precision_weights:
        key = "bf16" if config.precision.bf16 == "full" else "bfloat16"
        yield ("deepspeed",), f"contradicts {_there(given, key)}: DeepSpeed keeps float32 masters; write `bf16: true`"
    if config.deepspeed.stage == 3 and config.parallel.torch_compile is True:
        why = f"stage 3 gathers parameters in hooks, which cannot be compiled ({given.label(('torch_compile',))})"
        yield ("deepspeed",), f"{why}: set torch_compile: false, or use stage 2 or FSDP2"
    if config.deepspeed.stage == 3 and config.adapter.peft_use_dora:
        why = f"in stage 3 no rank sees a whole matrix, whose norms DoRA needs ({given.label(('peft_use_dora',))})"
        yield ("deepspeed",), f"{why}: use stage 2 or FSDP2"


def _zero(config: RunConfig) -> Broken:
    zero, stage = config.deepspeed.zero, config.deepspeed.stage
    base: KeyPath = ("deepspeed", "zero_optimization")
    if zero.get("stage") == AUTO or stage not in (0, 1, 2, 3):
        yield (*base, "stage"), f"expected 0, 1, 2 or 3, got {as_yaml(zero.get('stage'))}"
        return
    for key, size in zero.items():
        if TAKEN.get(f"zero_optimization.{key}") != NUMBER or isinstance(size, str) or size is None:
            continue
        if not 0 <= size < math.inf:
            yield (*base, key), f"expected a number of at least 0, or auto, got {as_yaml(size)}"
    for kind, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        device = (zero.get(kind) or {}).get("device", "none")
        if device not in ("none", "cpu"):
            nvme = "NVMe offload is not supported, because checkpoints could not be taken of it; " * (device == "nvme")
            yield (*base, kind, "device"), f"{device}: {nvme}expected cpu or none"
        elif device == "cpu" and stage < lowest:
            yield (*base, kind), f"needs stage {lowest}{' or more' if lowest < 3 else ''}, and stage is {stage}"
    for key in ("zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_gradients"):
        value = zero.get(key)
        if stage != 3 and (value is True or (type(value) is int and value > 1)):
            yield (*base, key), f"ZeRO++ belongs to stage 3, and stage is {stage}"
    if config.deepspeed.settings.get("zero_force_ds_cpu_optimizer") is True:
        yield (
            ("deepspeed", "zero_force_ds_cpu_optimizer"),
            ("offloaded steps are made by torch's own fused AdamW, which needs no compiler; remove it"),
        )


def _batch(config: RunConfig, given: Given) -> Broken:
    settings = config.optimizer
    pairs: list[tuple[str, str, Any]] = [
        ("train_micro_batch_size_per_gpu", "micro_batch_size", settings.micro_batch_size),
        ("gradient_clipping", "max_grad_norm", settings.max_grad_norm),
    ]
    if settings.batch_size is None:
        pairs.append(
            ("gradient_accumulation_steps", "gradient_accumulation_steps", settings.gradient_accumulation_steps)
        )
    else:
        pairs.append(("train_batch_size", "batch_size", settings.batch_size))
    for name, key, value in pairs:
        yield from _same(config, given, name, key, value)


def _precision(config: RunConfig, given: Given) -> Broken:
    compute = config.precision.compute
    for name, dtype in (("bf16", "bfloat16"), ("fp16", "float16")):
        asked = _value(config, f"{name}.enabled")
        # With `auto`, the config's own, the JSON decides.
        if asked not in (None, AUTO) and compute != "auto" and asked != (compute == dtype):
            at: KeyPath = ("deepspeed", name, "enabled")
            key = name if given.values.get(name) is not None else "bf16" if compute != "float16" else "fp16"
            yield at, f"{as_yaml(asked)} contradicts {_there(given, key)}, by which the run computes in {compute}"
    if _value(config, "bf16.enabled") is True and _value(config, "fp16.enabled") is True:
        yield ("deepspeed", "fp16", "enabled"), "excludes bf16.enabled: a run computes in one type"


def _optimizer(config: RunConfig, given: Given) -> Broken:
    settings, kind = config.optimizer, _value(config, "optimizer.type")
    if kind not in (None, AUTO):
        ours = OPTIMIZERS.get(str(kind).lower())
        at: KeyPath = ("deepspeed", "optimizer", "type")
        if ours is None:
            yield at, f"{kind} is not supported; expected AdamW, Adam or SGD, or leave it to the config's `optimizer`"
        elif settings.optimizer not in ours:
            yield at, f"{kind} contradicts {_there(given, 'optimizer')}: {settings.optimizer}; change one of them"
        if _value(config, "optimizer.params.adam_w_mode") is False:
            yield (
                ("deepspeed", "optimizer", "params", "adam_w_mode"),
                ("Adam with weight decay in the gradient is not supported; remove it for AdamW"),
            )
    betas = [settings.adam_beta1, settings.adam_beta2]
    for name, key, value in (
        ("lr", "learning_rate", settings.learning_rate),
        ("eps", "adam_epsilon", settings.adam_epsilon),
        ("weight_decay", "weight_decay", settings.weight_decay),
        ("betas", "adam_beta1", betas),
    ):
        yield from _same(config, given, f"optimizer.params.{name}", key, value)


def _scheduler(config: RunConfig, given: Given) -> Broken:
    kind = _value(config, "scheduler.type")
    if kind in (None, AUTO):
        return
    at: KeyPath = ("deepspeed", "scheduler")
    if kind not in SCHEDULERS:
        yield (*at, "type"), f"{kind} is not supported; expected {', '.join(SCHEDULERS)}, or the config's lr_scheduler"
        return
    settings = config.optimizer
    parameters = config.deepspeed.settings["scheduler"].get("params") or {}
    steps = settings.warmup_steps if isinstance(settings.warmup_steps, int) else None
    expected: dict[str, tuple[str, Any]] = {
        "warmup_max_lr": ("learning_rate", settings.learning_rate),
        "warmup_num_steps": ("warmup_steps", steps),
        "total_num_steps": ("max_steps", settings.max_steps),
        "cos_min_ratio": ("cosine_min_lr_ratio", settings.cosine_min_lr_ratio or 0),
    }
    for name, value in parameters.items():
        if value == AUTO:
            continue
        if name in expected:
            yield from _same(config, given, f"scheduler.params.{name}", *expected[name])
        elif name in ("warmup_min_lr", "warmup_min_ratio") and value != 0:
            yield (*at, "params", name), f"{as_yaml(value)}: the warm-up begins at 0 here; write 0 or auto"
        elif name == "warmup_type" and value != "linear":
            yield (*at, "params", name), f"{value}: the warm-up is linear here; write linear"
    written = given.values.get("lr_scheduler")
    numbers = [name for name in expected if parameters.get(name, AUTO) != AUTO]
    if written and written != SCHEDULERS[kind] and numbers:
        yield (
            (*at, "type"),
            (
                f"{kind} with its own {numbers[0]} contradicts {_there(given, 'lr_scheduler')}: {written}; remove the "
                "section, or one of them"
            ),
        )


def _same(config: RunConfig, given: Given, name: str, key: str, ours: Any) -> Broken:
    """A number of the settings that differs from the config's, both places named."""
    theirs = _value(config, name)
    if theirs in (None, AUTO) or theirs == ours:
        return
    at: KeyPath = ("deepspeed", *name.split("."))
    if ours is None:
        yield at, f"{as_yaml(theirs)}: the config gives no {key}; write `{key}: {theirs}` there, or auto here"
        return
    value = ", ".join(map(str, ours)) if isinstance(ours, list) else as_yaml(ours)
    theirs = ", ".join(map(str, theirs)) if isinstance(theirs, list) else as_yaml(theirs)
    yield at, f"{theirs} contradicts {_there(given, key)}: {value}; change one of them, or write auto here"


def _there(given: Given, key: str) -> str:
    return given.label((key,)) if given.values.get(key) is not None else f"{key} (not given in the config)"


def _value(config: RunConfig, name: str) -> Any:
    value: Any = config.deepspeed.settings
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
