"""A commented first config."""

from pathlib import Path

import yaml

from allranks import durable
from allranks.config.load import load_config
from allranks.config.schema import EDITOR_LINE, write_schema
from allranks.errors import ConfigError
from allranks.init.glance import Glance

METHODS = ("lora", "qlora", "full")
_LEARNING_RATES = {"lora": "2e-4", "qlora": "2e-4", "full": "1e-5"}


def first_config(model: str, data: str, method: str, num_nodes: int, seen: Glance, output_dir: str = "./out") -> str:
    """The YAML of a config for `model` on `data` by `method` ("lora", "qlora", "full")."""
    spec = yaml.safe_dump([{"path": data, **seen.spec}], sort_keys=False, allow_unicode=True, width=120)
    found = ""
    if seen.num_records:
        found = (
            f"# The first {seen.num_records} records: {seen.median} characters in the median, {seen.longest} at most.\n"
        )
    parts = [
        "# Try it:    allranks config show THIS, then allranks preprocess THIS --show 3\n"
        f"# Train it:  {_start(num_nodes)}\n",
        f"# Folder or Hugging Face Hub id.\n{_line('base_model', model)}",
        f"# {_one_line(seen.fits)}.\n{found}datasets:\n{spec}",
        "# Part of the data that is never trained, for the evaluation loss.\nval_set_size: 0.05\n",
        f"# The most tokens of a sample; several samples share a block of so many.\nsequence_len: {seen.sequence_len}\n"
        "sample_packing: true\n",
        _method(method),
        "# The global batch is micro_batch_size x gradient_accumulation_steps x ranks.\n"
        "micro_batch_size: 1\ngradient_accumulation_steps: 8\nnum_epochs: 3\n"
        f"learning_rate: {_LEARNING_RATES[method]}\nlr_scheduler: cosine\n",
        "# bfloat16 where the device has it; recompute activations to save memory.\n"
        "bf16: auto\ngradient_checkpointing: true\n",
        f"# The run directory: checkpoints, events, logs.\n{_line('output_dir', output_dir)}logging_steps: 1\n",
    ]
    return "\n".join(part for part in parts if part)


def write_config(path: Path, text: str) -> None:
    """Write a config and, beside it, the schema for editors. Raises ConfigError, and leaves nothing, if it is none."""
    durable.write(path, f"{EDITOR_LINE}\n{text}")
    try:
        load_config(path)
    except ConfigError:
        path.unlink()
        raise
    write_schema(path.parent)


def _method(method: str) -> str:
    if method == "full":
        what = "# All weights are trained, and sharded over all ranks."
        return f"{what}\nfsdp_version: 2\nfsdp_config:\n  reshard_after_forward: true\n"
    what = "An adapter on 4-bit weights" if method == "qlora" else "An adapter"
    return (
        f"# {what}: rank, scale, and to which layers.\nadapter: {method}\nlora_r: 16\nlora_alpha: 32\n"
        "lora_dropout: 0.05\nlora_target_linear: true\n"
    )


def _one_line(text: str) -> str:
    """A sentence for a comment; names of columns may hold anything."""
    text = " ".join(text.split())
    return text[0].upper() + text[1:]


def _start(num_nodes: int) -> str:
    return "allranks train THIS" if num_nodes == 1 else f"allranks train THIS --hosts node[0-{num_nodes - 1}]"


def _line(key: str, value: str) -> str:
    return yaml.safe_dump({key: value}, allow_unicode=True, width=1000)
