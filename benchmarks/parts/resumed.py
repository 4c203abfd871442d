"""Whole runs of the engine: one with a checkpoint half-way, and one that goes on from it; and what saving cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import allranks.train.main as engine
from allranks.checkpoint.commit import checkpoint_path
from allranks.config.load import resolve_mapping
from allranks.observe import RunDir, read_events
from allranks.observe.events import CheckpointEvent, StepEvent
from benchmarks.measure import allranks_config
from benchmarks.parts.part import Place, Row, agreement
from benchmarks.workload import Workload, write

_STEPS, _SAVED = 6, 3
_METHODS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "LoRA": {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True},
}


def run(place: Place) -> Iterator[Row]:
    workload = Workload(
        name="resumed",
        vocab_size=2000,
        hidden_size=128,
        intermediate_size=256,
        num_layers=2,
        num_heads=2,
        num_key_value_heads=2,
        num_documents=60,
        median_tokens=60,
        sequence_len=256,
        blocks_per_step=2,
        warmup_steps=0,
        measured_steps=_STEPS,
        device=place.device,
    )
    write(workload, place.scratch / "workload")
    for method, keys in _METHODS.items():
        folder = place.scratch / method.replace(" ", "-")
        base = allranks_config(workload, place.scratch / "workload", folder) | keys
        # bfloat16 with float32 weights, as most train: what is saved is then not what is computed with.
        base |= {"bf16": place.device == "cuda", "save_strategy": "steps", "save_steps": _SAVED}
        first = _train(base | {"output_dir": str(folder / "first")})
        checkpoint = checkpoint_path(RunDir(folder / "first").checkpoints, _SAVED)
        second = _train(base | {"output_dir": str(folder / "second"), "resume_from_checkpoint": str(checkpoint)})
        straight = {event.step: event.loss for event in _steps(first)}
        resumed = {event.step: event.loss for event in _steps(second)}
        steps = list(range(_SAVED + 1, _STEPS + 1))
        is_rest = list(resumed) == steps
        yield Row(f"{method}: steps of the resumed run", f"{list(resumed)}", f"{steps}", is_rest)
        if is_rest:
            # Kernels whose sums come in another order at each run leave the last digits open.
            tolerance = 1e-6 if place.device == "cpu" else 1e-3
            yield agreement(
                f"{method}: its losses", list(resumed.values()), [straight[step] for step in steps], tolerance
            )
        saves = [one for one in read_events(first.events(0)) if isinstance(one, CheckpointEvent)]
        blocked = [one.blocked_seconds for one in saves if one.blocked_seconds is not None]
        size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
        told = f"{size / 2**20:.1f} MiB, training waited {max(blocked, default=0):.2f} s at most"
        yield Row(f"{method}: a checkpoint", told)


def _train(keys: dict[str, Any]) -> RunDir:
    """Train in this process. Raises RuntimeError when the run fails; its own words are in the output."""
    started = time.monotonic()
    code = engine.main_rank(resolve_mapping(keys))
    if code != 0:
        raise RuntimeError(f"the run ended with exit code {code} after {time.monotonic() - started:.0f} s")
    return RunDir(Path(keys["output_dir"]))


def _steps(run: RunDir) -> list[StepEvent]:
    return [event for event in read_events(run.events(0)) if isinstance(event, StepEvent)]
