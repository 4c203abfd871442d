"""Tokens per second, utilisation and peak memory of a shape with one contestant, and how that compares with Trainer's.

The argument names both: `8b-allranks`. The first contestant of a shape writes its weights for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from allranks.plan.flops import peak_flops, training_flops_per_token
from benchmarks.measure import Measurement, measure
from benchmarks.parts.part import Place, Row
from benchmarks.parts.prediction import predicted
from benchmarks.workload import Workload, write

# Sizes from the models' published config.json files (Llama 3.2 1B, Llama 3 8B).
_LLAMA: dict[str, Any] = {"model_type": "llama", "vocab_size": 128_256, "num_heads": 32, "num_key_value_heads": 8}
_ON_GPU: dict[str, Any] = {
    "num_documents": 400,
    "median_tokens": 900,
    "sequence_len": 4096,
    "blocks_per_step": 2,
    "documents_per_step": 7,  # as many real tokens as in two blocks
    "gradient_checkpointing": True,
    "warmup_steps": 2,
    "measured_steps": 6,
}
SHAPES: dict[str, Workload] = {
    "8b": Workload(
        **{**_LLAMA, **_ON_GPU, "hidden_size": 4096, "intermediate_size": 14_336, "num_layers": 32},
        name="llama-3-8b-lora",
        lora_rank=16,
    ),
    "1b": Workload(
        **{**_LLAMA, **_ON_GPU, "hidden_size": 2048, "intermediate_size": 8192, "num_layers": 16},
        name="llama-3.2-1b-full",
    ),
    "tiny": Workload(num_documents=300, measured_steps=3, warmup_steps=1),
}

# Contestant -> who runs, and keys that replace those of allranks' config.
_CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "allranks": ("allranks", {}),
    "compiled": ("allranks", {"torch_compile": "auto"}),
    "stored": ("allranks", {"torch_compile": "auto", "gradient_checkpointing": False}),
    "liger": ("allranks", {"liger_rope": True, "liger_rms_norm": True, "liger_glu_activation": True}),
    "trainer": ("trainer", {}),
    "trl": ("trl", {}),
}
_BASELINE = "trainer"


def run(place: Place) -> Iterator[Row]:
    shape, _, contestant = place.argument.partition("-")
    workload = replace(SHAPES[shape], device=place.device)
    who, changes = _CONTESTANTS[contestant]
    directory = place.shared / shape
    num_parameters = _written(workload, directory)
    found = measure(who, workload, directory, place.scratch / "run", changes=changes)
    (directory / f"{contestant}.json").write_text(json.dumps(asdict(found)))

    values = {"tokens_per_second": found.tokens_per_second, "device_memory_bytes": found.device_memory_bytes}
    yield Row("real tokens a second", f"{found.tokens_per_second:.0f}", values=values)
    told = predicted(workload, changes) if who == "allranks" and place.device == "cuda" else None
    yield _beside("seconds a step", found.step_seconds, ".3f", told and told.step_seconds)
    yield _utilisation(workload, found, num_parameters)
    if place.device == "cuda":
        held = found.device_memory_bytes / 2**30
        yield _beside("peak of what torch holds on the device, GiB", held, ".2f", told and told.memory_bytes / 2**30)
    yield Row("peak memory on the host", f"{found.peak_memory_bytes / 2**30:.1f} GiB")
    phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in found.phases.items())
    yield Row("seconds to the end of the first step", f"{found.first_step_seconds:.1f} ({phases})")
    yield from _beside_trainer(contestant, directory)


def _beside(what: str, found: float, form: str, predicted: float | None) -> Row:
    """A figure, and the plan's in the next column. It is judged over many machines and not here: `ok` stays open."""
    if predicted is None:
        return Row(what, f"{found:{form}}")
    error = predicted / found - 1
    expected = f"predicted {predicted:{form}} ({error:+.1%})"
    return Row(what, f"{found:{form}}", expected, values={"found": found, "predicted": predicted, "error": error})


def _written(workload: Workload, directory: Path) -> int:
    """Write weights and documents, where no part before has; the number of parameters."""
    told = directory / "num_parameters"
    if not told.exists():
        told_now = write(workload, directory)
        if workload.device == "cuda":
            torch.cuda.empty_cache()  # another process is about to need the memory
        told.write_text(str(told_now))
    return int(told.read_text())


def _utilisation(workload: Workload, found: Measurement, num_parameters: int) -> Row:
    what = "MFU (real tokens, no attention, no recomputation)"
    name = torch.cuda.get_device_name() if workload.device == "cuda" else "a CPU"
    peak = peak_flops(name, half=True)
    if peak is None:
        return Row(what, f"not known: no peak of {name} is")
    # Adapters add well under 1 % to the parameters; without them every parameter is trained.
    flops = training_flops_per_token(num_parameters, 0 if workload.lora_rank else num_parameters)
    share = found.tokens_per_second * flops / peak
    return Row(what, f"{share:.1%}", values={"mfu": share})


def _beside_trainer(contestant: str, directory: Path) -> Iterator[Row]:
    """Speed and memory of each contestant that was measured, in Trainer's."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))}
    results = {name: one for name, one in results.items() if name in _CONTESTANTS}
    if _BASELINE not in results:
        return
    base = results[_BASELINE]
    for name in results if contestant == _BASELINE else [contestant]:
        if name != _BASELINE:
            speed = results[name]["tokens_per_second"] / base["tokens_per_second"]
            told = f"{speed:.2f} times as fast"
            if base["device_memory_bytes"]:
                told += f", {results[name]['device_memory_bytes'] / base['device_memory_bytes']:.2f} of its memory"
            yield Row(f"{name} beside Trainer", told, values={"speed": speed})
