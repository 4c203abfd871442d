"""Export a checkpoint: adapter, merged model or full model. Read `export` from top to bottom."""

import dataclasses
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from allranks.errors import UsageError
from allranks.export.checkpoint import Checkpoint, open_checkpoint
from allranks.export.full import empty_model, stored_dtype, write_full_model
from allranks.export.publish import new_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# The shard size of transformers' own `save_pretrained`: what hubs, mirrors and file systems handle well.
DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written: `kind` is "adapter", "merged model" or "model"."""

    kind: str
    folder: Path
    checkpoint: Path
    step: int
    num_bytes: int


def export(
    run_or_checkpoint: Path,
    out: Path | None = None,
    *,
    merge: bool = False,
    step: int | None = None,
    dtype: str | None = None,
    base_model: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    replace: bool = False,
    verified: bool = False,
    trust_remote_code: bool = False,
    compare_logits: bool | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Write a checkpoint as a Hugging Face folder. Runs on one process without a GPU.

    `run_or_checkpoint`: a run directory (its newest sound checkpoint, or the one of `step`), or one checkpoint.
    `out`: a folder that does not exist or is empty; by default `export` in the run directory. It appears whole or not
    at all. `merge`: add a trained adapter to its base model and write the result (else the adapter alone; no effect
    without an adapter). `dtype`: of the written model ("float32", "bfloat16", "float16"); by default the one that it
    was computed in while training; adapters keep the one they were trained in. `base_model`: where the base model of
    an adapter is now, if it has moved. `max_shard_bytes`: size of one safetensors file. `replace`: an `out` with
    something in it is replaced, not refused. `verified`: do not read the whole checkpoint once more to compare it with
    its checksums; for a caller that has just committed it. `trust_remote_code`: run the Python code that a
    model brings along, if it needs it; the run's own word for that is not taken. `compare_logits`: load what was
    written as its user will, and compare its logits with the trained model's; by default where the model is small
    (`forward.SMALL_PARAMETERS`) and its base model is here.

    What is written is compared with what was trained, tensor by tensor. `report` gets a line for each thing that is
    done or compared.

    Raises:
        CheckpointError: no complete and sound checkpoint, or what was written is not what was trained.
        UsageError: `out` is not empty, options that do not go together, or code that needs `trust_remote_code`.
    """
    # DCP says so on every load of a single process, where it is no news.
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype {dtype} is not one of {', '.join(DTYPES)}")
    checkpoint = open_checkpoint(run_or_checkpoint, step=step, verified=verified, report=report)
    checkpoint = dataclasses.replace(checkpoint, trust_remote_code=trust_remote_code)
    if checkpoint.is_adapter and not merge and dtype is not None:
        raise UsageError("dtype applies to a model, and this exports an adapter: merge it, or leave dtype out")
    out = out or checkpoint.run_dir / "export"
    wanted = DTYPES[dtype] if dtype else None

    report(f"exporting {checkpoint.path}")
    with new_folder(out, replace=replace) as folder:
        _copy_tokenizer(checkpoint, folder)
        computed = wanted or stored_dtype(empty_model(checkpoint))
        if not checkpoint.is_adapter:
            kind = "model"
            write_full_model(checkpoint, folder, dtype=wanted, max_shard_bytes=max_shard_bytes, report=report)
        elif merge:
            from allranks.export.merge import write_merged_model  # PEFT: seconds that a full model need not wait

            kind = "merged model"
            write_merged_model(
                checkpoint,
                folder,
                dtype=wanted,
                base_model=base_model,
                max_shard_bytes=max_shard_bytes,
                report=report,
            )
        else:
            from allranks.export.adapter import write_adapter

            kind = "adapter"
            write_adapter(checkpoint, folder, base_model=base_model, report=report)
            changed = [key for key in ("base_model_config", "overrides_of_model_config") if checkpoint.config.get(key)]
            if changed:
                report(
                    f"warning: trained with {' and '.join(changed)}, which an adapter cannot tell its base model: load "
                    f"that with the config in {checkpoint.hf}, or export with --merge"
                )
        if compare_logits is not False:
            from allranks.export import forward

            forward.compare_logits(
                checkpoint,
                folder,
                kind=kind,
                dtype=computed,
                base_model=base_model,
                asked=compare_logits,
                report=report,
            )
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return Exported(kind, out, checkpoint.path, checkpoint.step, size)


# Written by whoever writes the weights, because they depend on them.
_NOT_COPIED = {"config.json", "generation_config.json", "adapter_config.json"}


def _copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    for file in sorted(checkpoint.hf.iterdir()):
        if file.name in _NOT_COPIED:
            continue
        copy = shutil.copytree if file.is_dir() else shutil.copy2
        copy(file, folder / file.name)
