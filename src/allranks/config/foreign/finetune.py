"""The argument list of Qwen's finetune.py as a config.

Source: finetune.py, github.com/QwenLM/Qwen; for the defaults that it leaves to transformers, TrainingArguments.
"""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from allranks.config.foreign.finetune_arguments import (
    ARGUMENTS,
    KEYS,
    LISTS,
    MAPPINGS,
    REFUSED,
    SWITCHES,
    WITH_CARE,
    WITHOUT_EFFECT,
)
from allranks.config.foreign.qwen import adapted_modules, modules_trained_whole, why_trained_whole
from allranks.config.names import known_keys
from allranks.config.overrides import parse_overrides
from allranks.config.unsupported import is_known
from allranks.errors import UsageError

DEFAULTS: dict[str, Any] = {
    "base_model": "Qwen/Qwen-7B",
    "sequence_len": 8192,
    "excess_length_strategy": "truncate",
    "bf16": False,
    "micro_batch_size": 8,
    "num_epochs": 3.0,
    "learning_rate": 5e-5,
    "lr_scheduler": "linear",
    "optimizer": "adamw_torch",
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": 0,
    "warmup_ratio": 0.0,
    "logging_steps": 500,
}
"""What finetune.py does without an argument, where it is not what a config without the key does."""

_ADAPTER = {"adapter": "lora", "lora_r": 64, "lora_alpha": 16, "lora_dropout": 0.05}
# Liger's own defaults.
_LIGER = {"rope": True, "rms_norm": True, "swiglu": True, "fused_linear_cross_entropy": True}
_TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", "comet", "swanlab")
_TRACKER_KEYS = {
    "run_name": {"wandb": "wandb_name", "mlflow": "mlflow_run_name", "trackio": "trackio_run_name"},
    "project": {"trackio": "trackio_project_name"},
    "trackio_space_id": {"trackio": "trackio_space_id"},
}
_TRUE, _FALSE = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")


@dataclass
class Finetune:
    """What an argument list stands for: `flat` is its config; `written` says for each key by which argument.

    `notes` are for the user; `environment` must be set before torch and the Hub's client are imported.
    """

    flat: dict[str, Any]
    overrides: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def set(self, key: str, text: str, argument: str) -> None:
        self.overrides[key] = text
        self.written[key] = f"--{argument}"


def read_finetune(words: Sequence[str]) -> Finetune:
    """The config that `finetune.py WORDS` asks for, its values unchecked: `resolve_mapping` does that.

    Arguments that finetune.py does not have may be keys of the config. Raises UsageError for unknown ones, naming the
    nearest, and for what cannot be done.
    """
    given, keys = _split(words)
    asked = Finetune({})
    for name, text in given.items():
        if name in REFUSED:
            if not _asks_for_nothing(text):
                raise UsageError(f"--{name} {text}: {REFUSED[name]}; leave it out")
        elif name in WITHOUT_EFFECT:
            if name != "local_rank" and not _asks_for_nothing(text):
                asked.notes.append(f"--{name}: has no effect: {WITHOUT_EFFECT[name]}")
        elif name in KEYS and text:
            asked.set(KEYS[name], _json(name, text) if name in MAPPINGS else text, name)
    for key, text in keys.items():
        asked.set(key, text, key)
    for name in ("data_path", "output_dir"):
        if KEYS[name] not in asked.overrides:
            raise UsageError(f"--{name} is required")
    _devices_and_folders(given, asked)
    _trackers(given, asked)
    _evaluation(given, asked)
    _optimizer_and_order(given, asked)
    _kernels(given, asked)
    asked.flat = _defaults(asked) | _adapter(given, asked)
    return asked


def _split(words: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """finetune.py's arguments with the text of their values (lists as YAML), and keys of the config.

    As with argparse, `-` and `_` are equal in names, and the last of several values counts.
    """
    given: dict[str, str] = {}
    others: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--") or not name:
            raise UsageError(f"unexpected argument {word!r}; arguments are given as --name value")
        values = [value] if equals else []
        while rest and not rest[0].startswith("--") and (name in LISTS or not values):
            values.append(rest.pop(0))
        if name in ARGUMENTS:
            given[name] = _text(name, values)
        else:
            _check_known(name)
            others += [f"--{name}", *values]
    return given, parse_overrides(others)


def _text(name: str, values: list[str]) -> str:
    if name in SWITCHES:
        return _switch(name, values[0] if values else "true")
    if not values and name in WITHOUT_EFFECT:
        return "true"
    if not values:
        raise UsageError(f"--{name} needs a value, as in `--{name} VALUE`")
    if name == "lora_target_modules":
        return json.dumps([part for value in values for part in value.replace(",", " ").split()])
    return " ".join(values)


def _switch(name: str, text: str) -> str:
    if text.lower() in (*_TRUE, *_FALSE):
        return "true" if text.lower() in _TRUE else "false"
    raise UsageError(f"--{name} {text}: expected True or False")


def _check_known(name: str) -> None:
    top = name.partition(".")[0]
    if top in known_keys() or is_known(top):
        return
    near = difflib.get_close_matches(top, sorted({*ARGUMENTS, *known_keys()}), n=1, cutoff=0.7)
    hint = f"did you mean --{near[0]}?" if near else "`python -m allranks.compat.qwen --help` lists all"
    raise UsageError(f"--{name}: finetune.py has no such argument and the config no such key; {hint}")


def _asks_for_nothing(text: str) -> bool:
    return text.strip().lower() in ("false", "none", "null", "no", "", "0", "0.0", "-1", "[]", "{}")


def _json(name: str, text: str) -> str:
    """A JSON object that is given as text or as the path of a file."""
    path = Path(text)
    try:
        value = json.loads(text if text.lstrip().startswith("{") else path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--{name} {text}: expected a JSON object, or the path of a file with one: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"--{name} {text}: expected a JSON object")
    return json.dumps(value)


def _devices_and_folders(given: dict[str, str], asked: Finetune) -> None:
    if "true" in (given.get("no_cuda"), given.get("use_cpu")):
        asked.environment["CUDA_VISIBLE_DEVICES"] = ""
    if given.get("cache_dir"):
        asked.environment["HF_HUB_CACHE"] = str(Path(given["cache_dir"]).expanduser().absolute())


def _trackers(given: dict[str, str], asked: Finetune) -> None:
    trackers = given.get("report_to", "none").replace(",", " ").lower().split()
    if "all" in trackers:
        raise UsageError(f"--report_to all: name the trackers: {', '.join(_TRACKERS)}; or none")
    for tracker in trackers:
        if tracker not in (*_TRACKERS, "none"):
            raise UsageError(f"--report_to {tracker}: expected none, {', '.join(_TRACKERS)}")
        if tracker != "none":
            asked.set(f"use_{tracker}", "true", "report_to")
    for name, keys in _TRACKER_KEYS.items():
        if name in given:
            heard = [key for tracker, key in keys.items() if tracker in trackers]
            for key in heard:
                asked.set(key, given[name], name)
            if not heard:
                asked.notes.append(f"--{name}: has no effect: --report_to has none of {', '.join(keys)}")


def _evaluation(given: dict[str, str], asked: Finetune) -> None:
    """Without a word on when, finetune.py does not evaluate; by steps, as often as it reports if not told how often."""
    if KEYS["eval_data_path"] not in asked.overrides:
        return
    asked.flat["test_datasets"] = [{"type": "qwen"}]
    strategy = asked.overrides.setdefault("eval_strategy", "no").lower()
    if strategy == "steps" and "eval_steps" not in asked.overrides:
        asked.set("eval_steps", asked.overrides.get("logging_steps", str(DEFAULTS["logging_steps"])), "logging_steps")
    if strategy in ("no", "false"):
        asked.notes.append("--eval_data_path: nothing is evaluated with --evaluation_strategy no, which is the default")


def _optimizer_and_order(given: dict[str, str], asked: Finetune) -> None:
    if given.get("adafactor") == "true":
        asked.set("optimizer", "adafactor", "adafactor")
    sampling = given.get("train_sampling_strategy", "random")
    if sampling == "group_by_length":
        asked.set("group_by_length", "true", "train_sampling_strategy")
    elif sampling != "random":
        raise UsageError(f"--train_sampling_strategy {sampling}: expected random or group_by_length")
    if given.get("logging_strategy", "steps").lower() != "steps":
        raise UsageError(f"--logging_strategy {given['logging_strategy']}: only steps, as --logging_steps says")
    if asked.overrides.get("resume_from_checkpoint", "").lower() in _TRUE:
        asked.set("auto_resume_from_checkpoints", "true", "resume_from_checkpoint")
        del asked.overrides["resume_from_checkpoint"]


def _kernels(given: dict[str, str], asked: Finetune) -> None:
    """What transformers hands on to Liger, by the config's keys."""
    if given.get("use_liger_kernel") != "true":
        return
    wanted = _LIGER | json.loads(_json("liger_kernel_config", given.get("liger_kernel_config", "{}")))
    names = {"swiglu": "glu_activation", "geglu": "glu_activation"}
    for name, value in wanted.items():
        asked.set(f"liger_{names.get(name, name)}", json.dumps(value), "use_liger_kernel")


def _defaults(asked: Finetune) -> dict[str, Any]:
    flat = {key: value for key, value in DEFAULTS.items() if key not in asked.overrides}
    if asked.overrides.get("save_strategy", "steps") != "steps" or "saves_per_epoch" in asked.overrides:
        flat.pop("save_steps", None)
    return {**flat, "datasets": [{"type": "qwen"}], **asked.flat}


def _adapter(given: dict[str, str], asked: Finetune) -> dict[str, Any]:
    if given.get("lora_bias", "none") != "none":
        raise UsageError(f"--lora_bias {given['lora_bias']}: training biases beside an adapter is not supported; none")
    quantized = given.get("q_lora") == "true"
    if given.get("use_lora") != "true":
        if quantized:
            raise UsageError("--q_lora needs --use_lora: without it finetune.py trains the whole model")
        for key in [key for key in asked.overrides if key.startswith("lora_") and key in KEYS.values()]:
            # finetune.py has them in every argument list, whatever is trained.
            asked.notes.append(f"{asked.written[key]}: has no effect without --use_lora")
            del asked.overrides[key]
        return {}
    model = asked.overrides.get("base_model", DEFAULTS["base_model"])
    flat: dict[str, Any] = {**_ADAPTER, "lora_target_modules": adapted_modules(model)}
    if quantized:
        flat |= {"adapter": "qlora", "load_in_4bit": True}
    elif whole := modules_trained_whole(model):
        flat["lora_modules_to_save"] = whole
        if "lora_modules_to_save" not in asked.overrides:
            asked.notes.append(why_trained_whole(model, whole))
    return {key: value for key, value in flat.items() if key not in asked.overrides}


def in_our_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words of a command line with finetune.py's arguments replaced by keys of the config, and notes for the user.

    Raises UsageError for arguments of what cannot be done.
    """
    translated: list[str] = []
    notes: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = name.removeprefix("--").replace("-", "_") if name.startswith("--") else ""
        if name in KEYS:
            translated.append(f"--{KEYS[name]}{equals}{value}")
            if KEYS[name].startswith("test_datasets"):
                translated[-1:-1] = ["--test_datasets.0.type=qwen"]
        elif name in ARGUMENTS and name not in known_keys():
            # It has no key: what it asks for is told by a reading of it alone.
            value = value if equals else (rest.pop(0) if rest and not rest[0].startswith("--") else "true")
            if name in ("use_lora", "q_lora"):
                raise UsageError(f"--{name}: the command says it: allranks qwen full, lora or qlora")
            asked = read_finetune(["--data_path=-", "--output_dir=-", f"--{name}={value}"])
            if asked.environment:
                raise UsageError(
                    f"--{name}: set {' and '.join(f'{k}={v}' for k, v in asked.environment.items())} instead"
                )
            translated += [
                f"--{key}={text}" for key, text in asked.overrides.items() if asked.written[key] == f"--{name}"
            ]
            notes += asked.notes
        else:
            translated.append(word)
    return translated, notes


def arguments_help() -> str:
    """A line for each argument: what it is here."""
    lines = [f"  --{name:<42} {'' if name == key else key}" for name, key in KEYS.items()]
    lines += [f"  --{name:<42} {what}" for name, what in WITH_CARE.items()]
    lines += ["", "accepted without effect:", *(f"  --{name:<42} {why}" for name, why in WITHOUT_EFFECT.items())]
    lines += ["", "refused:", *(f"  --{name:<42} {why}" for name, why in REFUSED.items())]
    return "\n".join(lines)
