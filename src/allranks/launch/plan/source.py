"""What a plan is made from: the config, its model's config.json, the prepared data. Needs neither torch nor weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allranks.config import RunConfig, load_config
from allranks.config.load import resolve_mapping
from allranks.config.yaml_lines import parse_yaml, read_yaml
from allranks.errors import AllranksError, UsageError
from allranks.launch.preflight.sizes import folder_of_model
from allranks.model.known_names import refuse_unknown_overrides
from allranks.plan.families import FAMILIES
from allranks.plan.lengths import Lengths, full, of_blocks
from allranks.plan.stored_size import stored_shapes
from allranks.train.step_schedule import StepSchedule, lay_out

if TYPE_CHECKING:
    from allranks.data.blocks import BlockSet

_PLACEHOLDER = "DATA"
"""Where a config of a model alone names its data."""


@dataclass(frozen=True)
class Source:
    """`config_json` is what is in the model's, which is `config_file`. `given`: the keys that the user's file has;
    `usual`: where there is none but the model, those that stand for it."""

    cfg: RunConfig
    config_json: Mapping[str, Any]
    config_file: Path
    given: frozenset[str] = frozenset()
    usual: Mapping[str, Any] | None = None

    def stored_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Of the tensors in the model's files, where its config.json does not tell them and they are there."""
        folder = None if self.config_json.get("model_type") in FAMILIES else folder_of_model(self.cfg)
        return None if folder is None else stored_shapes(folder)

    def place_of(self, key: str) -> str:
        """Where a key of config.json has its value from."""
        if key in (self.cfg.model.overrides_of_model_config or {}):
            return f"{self.cfg.source}: overrides_of_model_config"
        return str(self.config_file)


def source_of(
    path: Path,
    overrides: Mapping[str, str],
    *,
    flags: Mapping[str, str] | None = None,
    ignore_unsupported: bool = False,
) -> Source:
    """Of a YAML config whose model is on this disk, or of a model alone: its config.json, or the folder that has it.
    `flags`: key of an override -> the option that was written, where it is not named after the key.

    Raises ConfigError for a config that is wrong, UsageError where no config.json is found.
    """
    if path.is_dir() or path.suffix == ".json":
        folder = path if path.is_dir() else path.parent
        usual = _of_model_alone(folder, overrides)
        cfg = resolve_mapping(usual, str(path), overrides, flags=flags)
        file = folder / "config.json" if path.is_dir() else path
        return Source(cfg, _read(file, cfg), file, usual=_with(usual, overrides))
    if not path.exists():
        raise UsageError(f"{path}: no such file; give a YAML config, or a model's config.json or its folder")
    cfg = load_config(path, overrides, flags=flags, ignore_unsupported=ignore_unsupported)
    at = Path(cfg.model.base_model_config).expanduser() if cfg.model.base_model_config else folder_of_model(cfg)
    if at is None:
        if cfg.model.base_model.startswith(("/", "./", "../", "~")):
            raise UsageError(
                f"{path}: base_model: {cfg.model.base_model} is no folder on this node. A plan needs the model's "
                "config.json alone, no weights: give a folder that has it, or a name on the Hub, by --base-model"
            )
        revision = f" --revision {cfg.model.revision_of_model}" if cfg.model.revision_of_model else ""
        raise UsageError(
            f"{path}: base_model: {cfg.model.base_model} is neither a folder here nor in the Hub's cache"
            f"{revision and ' in this revision'}. A plan needs its config.json alone, no weights: "
            f"`hf download {cfg.model.base_model} config.json{revision}`, or give a folder that has it by --base-model"
        )
    if cfg.model.base_model_config and not at.exists():
        raise UsageError(
            f"{path}: base_model_config: {cfg.model.base_model_config} is neither a folder here nor a config.json; "
            "give one that is by --base-model-config"
        )
    data, _ = read_yaml(path)
    given = {str(key) for key in data} | {key.partition(".")[0].replace("-", "_") for key in overrides}
    file = at / "config.json" if at.is_dir() else at
    return Source(cfg, _read(file, cfg), file, frozenset(given))


def _of_model_alone(folder: Path, overrides: Mapping[str, str]) -> dict[str, Any]:
    """A usual config: full blocks, FSDP2, the whole model trained in bfloat16, or what the options say."""
    usual: dict[str, Any] = {
        "base_model": str(folder),
        "datasets": [{"path": _PLACEHOLDER, "type": "chat_template"}],
        "sequence_len": 2048,
        "sample_packing": True,
        "learning_rate": 1e-5,
        "bf16": "auto",
    }
    named = {key.partition(".")[0].replace("-", "_") for key in overrides}
    if not named & {"deepspeed", "fsdp", "fsdp_version", "dp_shard_size", "ddp_comm_hook"}:
        usual["fsdp_version"] = 2
    if not named & {"micro_batch_size", "gradient_accumulation_steps", "batch_size"}:
        usual["gradient_accumulation_steps"] = 4
    if "adapter" in named:
        usual |= {"lora_r": 16, "lora_alpha": 32, "lora_target_linear": True}
    return usual


def _with(usual: Mapping[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """The usual keys, with those of the options."""
    keys = dict(usual)
    for dotted, text in overrides.items():
        value, _ = parse_yaml(text, dotted)
        first, *rest = dotted.replace("-", "_").split(".")
        for key in reversed(rest):
            value = {key: value}
        keys[first] = {**keys[first], **value} if rest and isinstance(keys.get(first), dict) else value
    return {key: value for key, value in keys.items() if value is not None}


def _read(file: Path, cfg: RunConfig) -> dict[str, Any]:
    if not file.exists():
        raise UsageError(
            f"{file.parent}: has no {file.name}; a plan needs a YAML config, or a model's config.json or its folder"
        )
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read as JSON: {error}; a plan needs the model's config.json") from None
    if not isinstance(read, dict) or not ("model_type" in read or "hidden_size" in read):
        raise UsageError(f"{file}: is no model's config.json: it has no model_type")
    refuse_unknown_overrides(cfg, read)
    return cfg.model.overridden(read)


def lengths_of(source: Source) -> Lengths:
    """Of the prepared data where it is there, else full blocks. Nothing is prepared, and the Hub is not asked."""
    data = source.cfg.data
    if source.usual is None and (blocks := _prepared(source.cfg)) is not None:
        return of_blocks(
            blocks.token_counts.tolist(),
            int(blocks.target_counts.sum()),
            blocks.document_counts(),
            source.cfg.optimizer.micro_batch_size,
            padded_to=data.sequence_len if data.pad_to_sequence_len else None,
        )
    return full(data.sequence_len)


def _prepared(cfg: RunConfig) -> BlockSet | None:
    """What a run would train on, where it is there."""
    folder = Path(cfg.data.dataset_prepared_path).expanduser()
    specs = [*cfg.data.datasets, *(cfg.data.test_datasets or ())]
    if not any(folder.glob("*/manifest.json")) or not all(Path(one.path).expanduser().exists() for one in specs):
        return None
    from allranks.data.fingerprint import fingerprint
    from allranks.data.store import folder_of, open_prepared

    try:
        known = fingerprint(cfg)
    except AllranksError:
        return None  # data or tokenizer that is not there: the start says so
    prepared = open_prepared(folder_of(cfg.data.dataset_prepared_path, known), known, lambda _: None)
    return prepared.train if prepared is not None and len(prepared.train) else None


def schedule(cfg: RunConfig, wanted: int, lengths: Lengths) -> StepSchedule | None:
    """The steps of a run whose batch is `wanted`, as training lays them out, without evaluations; None where nobody
    knows how many blocks there are. If `max_steps` are said, those are then taken for the epochs."""
    num_blocks, settings = lengths.num_blocks, cfg.optimizer
    if num_blocks is None and settings.max_steps:
        num_blocks = max(1, round(settings.max_steps * wanted / settings.num_epochs))
    if num_blocks is None:
        return None
    return lay_out(cfg, num_blocks=num_blocks, global_batch=wanted, has_eval=False)
