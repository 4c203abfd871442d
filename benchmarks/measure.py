"""One contestant, once, in a fresh process: tokens per second of real tokens, peak memory, time to first step."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.clock import RECORD, SPAWNED
from benchmarks.workload import Workload

_REPOSITORY = Path(__file__).resolve().parent.parent
AXOLOTL = _REPOSITORY / ".venv-axolotl" / "bin" / "axolotl"
"""In an environment of its own (`make bench-axolotl` makes it): it fixes other versions than ours of everything."""


@dataclass(frozen=True)
class Measurement:
    """What one process showed. Rates are of steady-state steps; times count from when the process was started."""

    tokens_per_second: float
    peak_memory_bytes: int  # of the largest process of the contestant
    first_step_seconds: float  # until the first optimizer step was done
    phases: dict[str, float] = field(default_factory=dict)  # seconds; together they are first_step_seconds
    device_memory_bytes: int = 0  # peak that torch allocated on the GPU
    load_average: float = 0.0  # of the machine when it started: 0 means that nothing else ran
    step_seconds: float = 0.0  # of a steady step, in the mean


def measure(
    contestant: str, workload: Workload, directory: Path, scratch: Path, *, changes: dict[str, Any] | None = None
) -> Measurement:
    """Run `contestant` on the workload in `directory`; what it writes goes to `scratch`, which is new and empty.

    `changes`: keys that replace those of allranks' config; `without` among them names a part to leave out
    (benchmarks.contestants.allranks_without).

    Raises RuntimeError with the end of its output when it fails.
    """
    scratch.mkdir(parents=True)
    record = scratch / "record.jsonl"
    is_ours = contestant == "allranks"
    argv = _command(contestant, workload, directory, scratch, dict(changes or {}))

    load = os.getloadavg()[0]
    # Nobody finds what another has cached, and nobody waits for the network.
    env = {**os.environ, "HF_DATASETS_CACHE": str(scratch / "cache"), "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_REPOSITORY), env.get("PYTHONPATH")]))
    spawned = time.time()
    env |= {SPAWNED: repr(spawned), RECORD: str(record)}
    with (scratch / "output.log").open("wb") as log:
        process = subprocess.Popen(
            argv, env=env, cwd=scratch, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        tail = "\n".join((scratch / "output.log").read_text(errors="replace").splitlines()[-30:])
        raise RuntimeError(f"{contestant} ended with exit code {process.returncode}:\n{tail}")

    phases, steps, device_bytes = _allranks_record(scratch, spawned) if is_ours else _record(record)
    assert len(steps) == workload.num_steps, f"{contestant} took {len(steps)} steps instead of {workload.num_steps}"
    first_step = steps[0][0] - spawned
    phases["first step"] = first_step - sum(phases.values())
    before, measured = steps[workload.warmup_steps - 1], steps[workload.warmup_steps :]
    seconds = measured[-1][0] - before[0]
    return Measurement(
        tokens_per_second=sum(tokens for _, tokens in measured) / seconds,
        peak_memory_bytes=usage.ru_maxrss * 1024,  # Linux counts it in KiB
        first_step_seconds=first_step,
        phases=phases,
        device_memory_bytes=device_bytes,
        load_average=load,
        step_seconds=seconds / len(measured),
    )


def _command(contestant: str, workload: Workload, directory: Path, scratch: Path, changes: dict[str, Any]) -> list[str]:
    if contestant == "allranks":
        left_out = changes.pop("without", None)
        config = scratch / "config.yaml"
        config.write_text(json.dumps(allranks_config(workload, directory, scratch) | changes, indent=1))  # it is YAML
        program = ["benchmarks.contestants.allranks_without", left_out] if left_out else ["allranks"]
        return [sys.executable, "-m", *program, "train", str(config)]
    if contestant == "axolotl":
        config = scratch / "config.yaml"
        config.write_text(json.dumps(axolotl_config(workload, directory, scratch), indent=1))
        # Its quickest way to start: without a launcher in between.
        return [str(AXOLOTL), "train", str(config), "--launcher", "python"]
    record = scratch / "record.jsonl"
    return [sys.executable, "-m", f"benchmarks.contestants.{contestant}", str(directory), str(record)]


Step = tuple[float, int]  # unix seconds at its end, real tokens


def _record(path: Path) -> tuple[dict[str, float], list[Step], int]:
    """Seconds by phase, the steps, and peak bytes on the device, from what a Clock wrote."""
    phases: dict[str, float] = {}
    steps, device_bytes = [], 0
    for line in path.open():
        moment = json.loads(line)
        if "phase" in moment:
            phases[moment["phase"]] = phases.get(moment["phase"], 0.0) + moment["seconds"]
        elif "step" in moment:
            steps.append((moment["t"], moment["tokens"]))
            device_bytes = max(device_bytes, moment["device_bytes"])
    return phases, steps, device_bytes


# What a run's phases are called here: alone on a machine, `rendezvous` and `mesh` are moments before the model.
_PHASES = {"data": "data", "rendezvous": "model", "mesh": "model", "model": "model", "train": None}


def _allranks_record(scratch: Path, spawned: float) -> tuple[dict[str, float], list[Step], int]:
    """The same from what every run of allranks leaves: its manifest and its events.

    The data is prepared before anything heavy is imported, and then the manifest is written: until there it is `data`
    (start of the interpreter included), from there to the first event `imports`.
    """
    from allranks.observe import RunDir, read_events
    from allranks.observe.events import PhaseEvent, StepEvent

    run = RunDir(scratch / "run")
    manifest_written = run.manifest.stat().st_mtime
    phases: dict[str, float] = {"imports": 0.0, "data": manifest_written - spawned}
    steps, device_bytes = [], 0
    current: str | None = "imports"
    since = manifest_written
    for event in read_events(run.events(0)):
        if isinstance(event, PhaseEvent) and current is not None:
            phases[current] = phases.get(current, 0.0) + event.t - since
            current, since = _PHASES.get(event.phase, current), event.t
        elif isinstance(event, StepEvent):
            steps.append((event.t, event.tokens))
            device_bytes = max(device_bytes, event.memory_bytes)
    return phases, steps, device_bytes


def allranks_config(workload: Workload, directory: Path, scratch: Path) -> dict[str, Any]:
    """The run's settings; axolotl reads the same keys."""
    config = {
        "base_model": str(directory / "model"),
        "datasets": [{"path": str(directory / "train.jsonl"), "type": None}],
        "dataset_prepared_path": str(scratch / "prepared"),
        "sequence_len": workload.sequence_len,
        "sample_packing": True,
        "gradient_accumulation_steps": 1,
        "micro_batch_size": workload.blocks_per_step,
        "max_steps": workload.num_steps,
        "learning_rate": workload.learning_rate,
        "lr_scheduler": "constant",
        "optimizer": "adamw_torch_fused",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": workload.seed,
        "bf16": "full" if workload.device == "cuda" else False,
        "gradient_checkpointing": workload.gradient_checkpointing,
        "logging_steps": 1,
        "save_strategy": "no",
        "output_dir": str(scratch / "run"),
    }
    if workload.lora_rank:
        config |= {"adapter": "lora", "lora_r": workload.lora_rank, "lora_alpha": 8, "lora_target_linear": True}
    return config


def axolotl_config(workload: Workload, directory: Path, scratch: Path) -> dict[str, Any]:
    """The same for axolotl, whose defaults for attention and precision are a GPU's."""
    return allranks_config(workload, directory, scratch) | {
        "datasets": [{"path": str(directory / "train.jsonl"), "ds_type": "json", "type": None}],
        "attn_implementation": "sdpa",
        "fp16": False,
        "tf32": False,
        "val_set_size": 0,
        "num_epochs": 1,
        "plugins": ["benchmarks.contestants.axolotl_plugin.MomentsPlugin"],
    }
