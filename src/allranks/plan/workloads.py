"""What a config would be on some nodes: under its own strategy, and under each other that it could run with."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from allranks.config import RunConfig
from allranks.config.batch import global_batch, num_micro_batches
from allranks.config.load import resolve_mapping
from allranks.config.sections.adapter import AdapterConfig
from allranks.config.stored_quantization import as_stored
from allranks.errors import ConfigError
from allranks.plan.adapter_names import refuse_names
from allranks.plan.adapter_size import misread_names
from allranks.plan.config_lines import changed
from allranks.plan.config_workload import Trained, method_of, workload_of
from allranks.plan.model_shape import shape_of
from allranks.plan.strategies import OF_STRATEGIES, candidates
from allranks.plan.workload import Method, Workload

_METHODS: Mapping[Method, Mapping[str, Any]] = {
    "full": {},
    "lora": {"adapter": "lora"},
    "qlora": {"adapter": "qlora"},
}
# Where the config has no adapter yet: every linear layer, as the QLoRA paper found to be enough (arXiv 2305.14314).
_USUAL_ADAPTER = {"lora_r": 16, "lora_alpha": 32, "lora_target_linear": True}
_OF_ADAPTERS = (*AdapterConfig.model_fields, "adapter")
_MOST_MICRO_BATCHES = 64


def workloads(
    cfg: RunConfig,
    model_config: Mapping[str, Any],
    *,
    num_nodes: int,
    gpus_per_node: int,
    on_cpu: bool = False,
    stored: Mapping[str, tuple[int, ...]] | None = None,
    tokens: int | None = None,
    labelled: float = 1.0,
) -> list[Workload]:
    """The config's own workload first, then every other strategy, method, micro-batch size and recomputation.

    `model_config`: the contents of the model's config.json; `stored`: `stored_size.stored_shapes` of its files, where
    they are there. `tokens` of a row and the part of them that is `labelled`: of the prepared data, where it is there;
    `sequence_len` and all of them otherwise. The global batch is the same in all of them.

    Raises:
        ConfigError: the config's own strategy does not divide so many ranks, or training refuses its adapter, or the
            weights as they are stored.
        UnknownShapeError: `model_config` does not tell the model's tensors.
    """
    shape = shape_of(model_config, stored)
    found: list[Workload] = []
    for method_keys, of_method in _methods(cfg, model_config):
        trained = Trained.of(of_method, model_config, shape)
        if not method_keys:
            refuse_names(of_method.adapter, model_config, shape, trained)
        if misread := misread_names(trained.matrices, shape, of_method.adapter):
            others = sorted({name.rpartition(".")[2] for name in trained.matrices} - misread)
            if not method_keys or not others:
                if not method_keys:
                    raise ConfigError(_refused(of_method.adapter, misread, others))
                continue
            method_keys = {**method_keys, "lora_target_linear": None, "lora_target_modules": others}
            of_method = resolve_mapping(changed(of_method.flat(), method_keys))
            trained = Trained.of(of_method, model_config, shape)
        for name, keys, other in candidates(of_method):
            is_own = not (name or method_keys)
            if not name and method_keys:
                continue  # of another method, every strategy has its name
            try:
                made = workload_of(other, trained, shape, num_nodes, gpus_per_node, on_cpu, tokens, labelled)
            except ConfigError:
                if is_own:
                    raise
                continue  # so many ranks cannot be divided so
            changes = {**_strategy_changes(cfg, name, keys), **method_keys}
            found += _variants(replace(made, name=name or made.name, is_own=is_own, changes=changes), cfg)
    return list(_once(found))


def _refused(adapter: AdapterConfig, misread: Set[str], others: Sequence[str]) -> str:
    key = "peft_use_dora" if adapter.peft_use_dora else f"load_in_{adapter.quantized_bits}bit"
    return (
        f"{key}: PEFT takes {', '.join(sorted(misread))} for its experts, and training refuses them so; "
        f"set lora_target_linear: false and lora_target_modules: [{', '.join(others)}], or leave out {key}"
    )


def _methods(cfg: RunConfig, model_config: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], RunConfig]]:
    """The config itself, and as a full fine-tune, with LoRA and with Q-LoRA where the stored weights allow it, by the
    keys that change."""
    yield {}, as_stored(cfg, model_config)
    flat = cfg.flat()
    without = {key: value for key, value in flat.items() if key not in _OF_ADAPTERS}
    had = {key: value for key, value in flat.items() if key in _OF_ADAPTERS}
    for method, keys in _METHODS.items():
        if method == method_of(cfg) or cfg.optimizer.unfrozen_parameters:
            continue
        changes: dict[str, Any]
        if method == "full":
            other, changes = without, dict.fromkeys(sorted(_given(cfg)))
        else:
            own = {key: value for key, value in had.items() if key not in ("load_in_4bit", "load_in_8bit")}
            changes = {**({} if cfg.adapter.adapter else _USUAL_ADAPTER), **keys}
            changes |= {key: None for key in ("load_in_4bit", "load_in_8bit") if had.get(key)}
            if method == "qlora":
                changes["load_in_4bit"] = None  # it implies true, and the file may say false
            other = {**without, **own, **{key: value for key, value in changes.items() if value is not None}}
        with contextlib.suppress(ConfigError):
            yield changes, as_stored(resolve_mapping(other), model_config)


def _given(cfg: RunConfig) -> set[str]:
    """Keys of the adapter that are not at their defaults."""
    fields = AdapterConfig.model_fields
    return {key for key in fields if getattr(cfg.adapter, key) != fields[key].default}


def _strategy_changes(cfg: RunConfig, name: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    if not name:
        return {}
    default = type(cfg.parallel).model_fields
    given = {key for key in OF_STRATEGIES & set(default) if getattr(cfg.parallel, key) != default[key].default}
    given |= {"deepspeed"} if cfg.deepspeed.settings else set()
    return {**dict.fromkeys(sorted(given), None), **keys}


def _variants(workload: Workload, cfg: RunConfig) -> Iterator[Workload]:
    """It, and the same global batch in other micro-batches, with and without recomputation."""
    whole = global_batch(cfg.optimizer, workload.num_ranks)
    # Of a batch for all ranks some get less than others: the last micro-batch is filled up.
    per_rank = math.ceil(whole / workload.num_ranks)
    yield workload
    for size in _sizes(per_rank, workload.micro_batch_size):
        for recomputes in (False, True):
            if size == workload.micro_batch_size and recomputes == workload.recomputes:
                continue
            accumulated = num_micro_batches(whole, size, workload.num_ranks)
            changes = {**workload.changes, **_batch_changes(cfg, size, accumulated)}
            if recomputes != workload.recomputes:
                changes["gradient_checkpointing"] = recomputes
                if not recomputes and cfg.parallel.fsdp_settings.activation_checkpointing:
                    continue  # which says it in the settings of one strategy
            yield replace(
                workload,
                micro_batch_size=size,
                num_micro_batches=accumulated,
                recomputes=recomputes,
                offloads_activations=workload.offloads_activations and recomputes,
                is_own=False,
                changes=changes,
            )


def _sizes(per_rank: int, own: int) -> Sequence[int]:
    """Micro-batch sizes that divide a rank's batch: powers of two, and the config's own."""
    powers = (2**exponent for exponent in range(_MOST_MICRO_BATCHES.bit_length()))
    return sorted({own, *(size for size in powers if size <= per_rank and per_rank % size == 0)})


def _batch_changes(cfg: RunConfig, size: int, accumulated: int) -> dict[str, Any]:
    if size == cfg.optimizer.micro_batch_size:
        return {}
    sizes = {"micro_batch_size": size}
    return sizes if cfg.optimizer.batch_size else {**sizes, "gradient_accumulation_steps": accumulated}


def _once(found: Sequence[Workload]) -> Iterator[Workload]:
    """Each only once: on one node, HSDP is FSDP2, and the config's own strategy has a name among the others."""
    seen = set()
    for one in found:
        key = (one.layout, one.method, one.micro_batch_size, one.recomputes, one.element, one.offloads_parameters)
        if (*key, one.offloads_optimizer) not in seen:
            seen.add((*key, one.offloads_optimizer))
            yield one
