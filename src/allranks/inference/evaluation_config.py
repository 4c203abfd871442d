"""The config that a model is evaluated under: the run's own where there is one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from allranks.config import RunConfig
from allranks.config.load import resolve_mapping
from allranks.config.run import SECTION_OF
from allranks.config.sections.data import DatasetSpec
from allranks.errors import UsageError
from allranks.inference.subject import Subject

# Of a run's config. The rest is of its training, or of the machines that it ran on.
_SECTIONS = {"model", "data", "adapter", "precision", "kernels"}
_KEYS = {"micro_batch_size", "eval_batch_size", "seed", "unfrozen_parameters", "fsdp_version", "fsdp_config", "fsdp"}
# Which of the records are trained; all of a data set are evaluated.
_CHOOSING = {"val_set_size", "test_datasets", "dataset_shard_num", "dataset_shard_idx", "curriculum_sampling"}
_PACKED = 1  # blocks at once; a block holds several samples


@dataclass(frozen=True)
class EvaluationData:
    """One data set: `config` is the one to prepare it with, and `split` is where its blocks then are."""

    name: str
    config: RunConfig
    split: str = "train"


def model_keys(subject: Subject, *, num_ranks: int) -> dict[str, Any]:
    """The flat keys that build `subject` as its training built it; for a model, on this machine's terms."""
    if subject.checkpoint is None:
        keys: dict[str, Any] = {"base_model": subject.base, "sample_packing": True, "micro_batch_size": _PACKED}
        if subject.kind == "adapter":
            keys |= {"adapter": "lora", "lora_model_dir": str(subject.folder)}
            if (Path(str(subject.folder)) / "tokenizer_config.json").is_file():
                keys["tokenizer_config"] = str(subject.folder)
        keys |= {"bf16": _precision_here()}
    else:
        flat = dict(subject.checkpoint.config)
        keys = {
            key: value
            for key, value in flat.items()
            if SECTION_OF.get(key) in _SECTIONS or key in _KEYS or key.startswith("dp_")
        }
        keys |= _without_deepspeed(flat) | {"base_model": subject.base}
        if num_ranks == 1 or not (keys.get("fsdp_version") or keys.get("fsdp_config") or keys.get("fsdp")):
            keys = {key: value for key, value in keys.items() if not key.startswith(("fsdp", "dp_"))}
        else:
            # The sizes were for another number of ranks; what costs memory in training only is not needed.
            keys = {key: value for key, value in keys.items() if not key.startswith("dp_")}
            keys["fsdp_config"] = {
                key: value
                for key, value in (keys.get("fsdp_config") or {}).items()
                if key != "activation_checkpointing"
            }
    return {**keys, "learning_rate": 1.0, "trust_remote_code": subject.trust_remote_code}


def evaluation_data(
    subject: Subject,
    keys: Mapping[str, Any],
    files: Sequence[str],
    overrides: Mapping[str, str],
    *,
    data_type: str | None,
) -> list[EvaluationData]:
    """The data sets to evaluate on: `files`, else what the run set aside for evaluation.

    Raises:
        UsageError: neither is there.
        ConfigError: a key that does not fit.
    """
    plain = {key: value for key, value in keys.items() if key not in _CHOOSING}
    specs = [dict(spec) for spec in keys.get("datasets") or []]
    if files:
        like = {key: value for key, value in (specs[0] if specs else {}).items() if key not in _WHERE}
        found = []
        for file in files:
            if data_type is not None:
                own = {**(like if like.get("type") == data_type else {}), "type": data_type}
            else:
                own = like or _type_of(file)
            found.append(EvaluationData(file, _resolve(plain, {**own, "path": file}, overrides, subject)))
        return found
    sizes = {"sequence_len": keys.get("eval_sequence_len") or keys.get("sequence_len") or 2048}
    if keys.get("eval_sample_packing") is not None:
        sizes["sample_packing"] = keys["eval_sample_packing"]
    tests = [dict(spec) for spec in keys.get("test_datasets") or []]
    if len(tests) > 1 and keys.get("dataset_exact_deduplication"):
        # A sample that repeats one of another set counts once: only together they are what training evaluates.
        return [EvaluationData("test_datasets", resolve_mapping(dict(keys), subject.title, overrides), "eval")]
    if tests:
        plain |= sizes
        return [
            EvaluationData(_name(spec), _resolve(plain, {**spec, "weight": None}, overrides, subject)) for spec in tests
        ]
    if size := keys.get("val_set_size"):
        told = f"{size:.0%}" if size < 1 else f"{size:g} samples"
        name = f"held out of the training data ({told})"
        return [EvaluationData(name, resolve_mapping(dict(keys), subject.title, overrides), "eval")]
    raise UsageError(
        f"{subject.title} has no evaluation data"
        + (" of its own (val_set_size, test_datasets)" if subject.checkpoint else "")
        + ": give some with --data FILE"
    )


_WHERE = {"path", "data_files", "name", "split", "revision", "ds_type", "shards", "shards_idx", "weight"}


def _resolve(
    plain: Mapping[str, Any], spec: Mapping[str, Any], overrides: Mapping[str, str], subject: Subject
) -> RunConfig:
    spec = {key: value for key, value in spec.items() if value is not None and value is not False}
    return resolve_mapping({**plain, "datasets": [spec]}, subject.title, overrides)


def _name(spec: Mapping[str, Any]) -> str:
    files = spec.get("data_files")
    return ", ".join(files) if isinstance(files, list) else str(files or spec["path"])


def _type_of(file: str) -> dict[str, Any]:
    """The type that fits the first records of a local file; conversations, if that cannot be told."""
    from allranks.data.sources import locate, read

    source = locate(DatasetSpec.model_validate({"path": file}))
    records = [] if source.hub_id is not None else [one.value for one in islice(read(source, "train"), 1)]
    columns = set(records[0]) if records and isinstance(records[0], dict) else set()
    if {"instruction", "output"} <= columns:
        return {"type": "alpaca"}
    if "text" in columns and not columns & {"messages", "conversations"}:
        return {"type": "completion"}
    if {"input_ids", "labels"} <= columns:
        return {}
    return {"type": "chat_template"}


def _without_deepspeed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """FSDP where the run had ZeRO-3, and the types that DeepSpeed's engine computes with."""
    settings = flat.get("deepspeed")
    if not settings:
        return {}
    settings = json.loads(settings) if isinstance(settings, str) else settings
    zero = settings.get("zero_optimization") or {}
    keys: dict[str, Any] = {}
    if zero.get("stage") == 3:
        keys |= {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}
    if zero.get("stage") and flat.get("bf16") is True:
        keys["bf16"] = "full"  # the model itself is in bfloat16 there
    return keys


def _precision_here() -> Any:
    import torch

    return "full" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else False
