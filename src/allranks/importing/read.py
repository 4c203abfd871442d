"""Find out which trainer a file or a command line is for, and hand its keys to the one who knows them."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from allranks.config import load
from allranks.config.yaml_lines import read_yaml
from allranks.errors import ConfigError, UsageError
from allranks.importing.imported import Foreign, Imported
from allranks.importing.llama_factory import read_llama_factory
from allranks.importing.ms_swift import read_ms_swift
from allranks.importing.shell import Command, commands
from allranks.importing.trl import read_trl

TOOLS: dict[str, Callable[[Foreign], Imported]] = {
    "trl": read_trl,
    "llama-factory": read_llama_factory,
    "ms-swift": read_ms_swift,
}

# Keys that only one of them has.
_MARKS = {
    "llama-factory": {
        *("finetuning_type", "stage", "cutoff_len", "dataset_dir", "lora_target", "neat_packing", "quantization_bit"),
        *("mask_history", "additional_target", "preprocessing_num_workers"),
    },
    "ms-swift": {
        *("tuner_type", "train_type", "sft_type", "torch_dtype", "model_author", "split_dataset_ratio", "attn_impl"),
        *("target_modules", "quant_bits", "quant_method", "loss_scale", "truncation_strategy", "use_hf", "val_dataset"),
    },
    "trl": {
        *("dataset_name", "use_peft", "dataset_train_split", "dataset_text_field", "assistant_only_loss", "max_length"),
        *("completion_only_loss", "packing_strategy", "dataset_config", "use_bnb_nested_quant", "max_seq_length"),
    },
}
_LLAMA_FACTORY_V1 = {"model_class", "peft_config", "dist_config", "train_dataset", "kernel_config"}
_COMMANDS = (
    ("ms-swift", re.compile(r"(^|/)(swift|megatron)$"), re.compile(r"sft|pt|rlhf|infer|export")),
    ("ms-swift", re.compile(r"(^|/)swift/cli/(sft|pt)(\.py)?$|^swift\.cli\.(sft|pt)$"), None),
    ("llama-factory", re.compile(r"(^|/)(llamafactory-cli|lmf)$"), re.compile(r"\w+")),
    ("llama-factory", re.compile(r"(^|/)(train|train_bash|llamafactory/launcher|src/train)\.py$"), None),
    ("trl", re.compile(r"(^|/)trl$"), re.compile(r"\w+")),
    ("trl", re.compile(r"(^|/)sft\w*\.py$|^trl\.scripts\.sft$"), None),
)
"""Trainer, its program, and the word behind it."""


def import_config(file: Path | None, words: Sequence[str] = (), tool: str | None = None) -> Imported:
    """The config of ours that means what another trainer's file, command line, or both say.

    `words` win over the file. Raises ConfigError for what cannot be read, and for another kind of training than ours.
    """
    if file is None and not words:
        raise UsageError("give a file, or a command line after --: allranks config import -- trl sft --learning_rate …")
    foreign = _read(file, list(words), tool)
    if not foreign.tool:
        foreign.tool = tool or _tool_of(foreign)
    if foreign.tool not in TOOLS:
        raise UsageError(f"--from {foreign.tool}: expected one of {', '.join(TOOLS)}")
    imported = TOOLS[foreign.tool](foreign)
    imported.lost += [f"{foreign.label(key)}: not known" for key in foreign.values if foreign.given(key)]
    _launch_note(foreign, imported)
    _accepted(imported)
    return imported


def _read(file: Path | None, words: list[str], tool: str | None) -> Foreign:
    source = str(file) if file else "the command line"
    folders = [] if file is None else [folder for folder in file.absolute().parents if folder != Path("/")]
    foreign = Foreign(tool or "", source, {}, {}, folders)
    if file is not None and file.suffix.lower() in (".yaml", ".yml", ".json"):
        _add_file(file, foreign)
    elif file is not None:
        _add_command(_training_command(file, tool), foreign)
    if words:
        command = Command(0, words, [0] * len(words))
        if _program(command) or file is None:
            _add_command(command, foreign)
        else:
            _add_words(words, [0] * len(words), foreign)
    return foreign


def _add_file(path: Path, foreign: Foreign) -> None:
    if path.suffix.lower() != ".json":
        values, lines = read_yaml(path)
        foreign.values |= values
        foreign.places |= {str(key[0]): f"{path}:{line}" for key, line in lines.items() if len(key) == 1}
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None
    if isinstance(found, list) and all(isinstance(word, str | int | float) for word in found):
        _add_command(Command(0, [str(word) for word in found], [0] * len(found)), foreign)
    elif isinstance(found, dict):
        foreign.values |= found
        foreign.places |= dict.fromkeys(found, str(path))
    else:
        raise ConfigError(f"{path}: expected a JSON object of arguments, or a list of words")


def _training_command(path: Path, tool: str | None) -> Command:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    found = [command for command in commands(text, str(path)) if _program(command)]
    if not found:
        expected = "swift sft, llamafactory-cli train or trl sft"
        raise ConfigError(f"{path}: no command of a trainer is in it; expected one such as {expected}")
    return found[0]


def _program(command: Command) -> tuple[str, int] | None:
    """Which trainer a command starts, and where its arguments begin."""
    for index, word in enumerate(command.words):
        following = command.words[index + 1] if index + 1 < len(command.words) else ""
        for tool, program, subcommand in _COMMANDS:
            if program.search(word) and (subcommand is None or subcommand.fullmatch(following)):
                return tool, index + (1 if subcommand is None else 2)
    return None


def _add_command(command: Command, foreign: Foreign) -> None:
    program = _program(command)
    start = 0
    if program:
        foreign.tool, start = foreign.tool or program[0], program[1]
        foreign.command = command.words[start - 1]
    _check_subcommand(foreign)
    before = _pairs(command.words[: max(start - 1, 0)], command.lines[: max(start - 1, 0)])
    launch = {name: str(value) for name, (value, _) in before.items()} | {
        name.lower(): value for name, value in command.environment.items()
    }
    nodes, each = _count(launch, "nnodes", "num_machines"), _count(launch, "nproc_per_node")
    foreign.num_nodes = nodes
    foreign.num_ranks = _count(launch, "num_processes") or (each and each * (nodes or 1))
    _add_words(command.words[start:], command.lines[start:], foreign)


def _check_subcommand(foreign: Foreign) -> None:
    trains = {"ms-swift": ("sft", "pt"), "llama-factory": ("train",), "trl": ("sft",)}.get(foreign.tool, ())
    word = foreign.command
    if word.isalpha() and word not in trains:
        raise ConfigError(
            f"{foreign.source}: {word} is not supervised fine-tuning; only {' and '.join(trains)} is read"
        )


def _add_words(words: list[str], lines: list[int], foreign: Foreign) -> None:
    """Arguments; a file of arguments (`--config X`, or the first word) comes first, and what is written here wins."""
    rest = list(words)
    if foreign.tool != "trl" and rest and rest[0].endswith((".yaml", ".yml", ".json")):
        _add_named_file(rest[0], foreign)
        words, lines = words[1:], lines[1:]
    if foreign.tool == "llama-factory":  # as OmegaConf takes them
        words = [f"--{word}" if re.match(r"[a-z_]+=", word) else word for word in words]
    given = _pairs(words, lines)
    if "config" in given and foreign.tool != "ms-swift":
        _add_named_file(str(given.pop("config")[0]), foreign)
    for name, (value, line) in given.items():
        place = f"{foreign.source}:{line}" if line else "the command line"
        texts = value if isinstance(value, list) else [value]
        if unset := next((text for text in texts if isinstance(text, str) and re.search(r"\$[\w{(@*]|`", text)), None):
            raise ConfigError(
                f"{place}: {name}: {unset} has no value in the script; give it after --, as in `-- --{name} VALUE`"
            )
        foreign.values[name] = value
        foreign.places[name] = place


def _add_named_file(name: str, foreign: Foreign) -> None:
    path = foreign.find(name)
    if path is None:
        raise ConfigError(f"{foreign.source}: {name}, a file of arguments, does not exist")
    foreign.folders += [folder for folder in path.absolute().parents if folder != Path("/")]
    _add_file(path, foreign)


def _pairs(words: Sequence[str], lines: Sequence[int]) -> dict[str, tuple[Any, int]]:
    """`--name value …` as name -> value (True, a text or several) and line; what stands before a name is left out."""
    found: dict[str, tuple[Any, int]] = {}
    name = ""
    for word, line in zip(words, lines, strict=True):
        if re.match(r"--?[A-Za-z]", word):
            name, equals, value = word.lstrip("-").partition("=")
            name = name.replace("-", "_")
            found[name] = (value if equals else True, line)
        elif name:
            before, at = found[name]
            found[name] = (word if before is True else [*(before if isinstance(before, list) else [before]), word], at)
    return found


def _count(launch: dict[str, str], *names: str) -> int | None:
    return next((int(launch[name]) for name in names if launch.get(name, "").isdecimal()), None)


def _tool_of(foreign: Foreign) -> str:
    keys = set(foreign.values)
    if len(keys & _LLAMA_FACTORY_V1) > 1:
        raise ConfigError(f"{foreign.source}: LLaMA-Factory's new form (v1) is not read yet, only the one with `stage`")
    scores = {tool: len(keys & marks) for tool, marks in _MARKS.items()}
    if "model" in keys and "model_name_or_path" not in keys:
        scores["ms-swift"] += 1
    best = max(scores, key=lambda tool: scores[tool])
    if not scores[best] and {"model_name_or_path", "datasets"} <= keys:
        best, scores["trl"] = "trl", 1
    if not scores[best]:
        raise UsageError(f"{foreign.source}: cannot tell which trainer it is for; say it: --from {' or '.join(TOOLS)}")
    return best


def _launch_note(foreign: Foreign, imported: Imported) -> None:
    """What the command says about processes is no key of a config: it is said how to start as many."""
    flat, ranks, nodes = imported.flat, foreign.num_ranks or 1, foreign.num_nodes or 1
    if ranks > 1:
        options = f"--nproc-per-node {ranks // nodes}" + (f" on each of {nodes} nodes" if nodes > 1 else "")
        same = ""
        if "batch_size" not in flat:
            whole = flat["micro_batch_size"] * flat.get("gradient_accumulation_steps", 1) * ranks
            same = f"; the global batch is then {whole}, as there"
        imported.notes.append(f"{foreign.source}: it starts {ranks} processes: allranks train CONFIG {options}{same}")


# Without one of these it would be another training, or none.
_NEEDED = ("base_model", "datasets", "learning_rate", "micro_batch_size", "adapter", "sequence_len")


def _accepted(imported: Imported) -> None:
    """Take out what a config of ours cannot hold, one key at a time, each with the reason."""
    while problem := _problem(imported.flat):
        better = [key for key in imported.flat if key not in _NEEDED and _problem(_without(imported.flat, key)) is None]
        named = [key for key in imported.flat if key not in _NEEDED and re.search(rf"(: |^){key}\b", problem)]
        if not (better or named):
            raise ConfigError(f"imported from {imported.source}, but the config cannot be run: {problem}")
        key = (better or named)[0]
        imported.lost.append(f"{imported.source}: {key}: {imported.flat[key]}: {problem}")
        imported.flat = _without(imported.flat, key)


def _without(flat: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in flat.items() if name != key}


def _problem(flat: dict[str, Any]) -> str | None:
    try:
        load.resolve_mapping(flat, source="config")
    except ConfigError as error:
        return str(error).removeprefix("config: ")
    return None
