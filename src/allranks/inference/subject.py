"""What `RUN|MODEL` on a command line is: a run's checkpoint, an adapter's folder, or a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from allranks.checkpoint import commit
from allranks.errors import UsageError
from allranks.export.checkpoint import Checkpoint, open_checkpoint
from allranks.export.consent import runs_its_own_code

_WEIGHTS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Subject:
    """`kind` "run": `checkpoint` is it. "adapter": `folder` is PEFT's, `base` its base model. "model": `base` is a
    folder or a name on the Hub.

    `trust_remote_code`: whether the command line of now says that code beside the model may run.
    """

    kind: Literal["run", "adapter", "model"]
    title: str
    base: str
    checkpoint: Checkpoint | None = None
    folder: Path | None = None
    trust_remote_code: bool = False

    @property
    def is_adapter(self) -> bool:
        return self.kind == "adapter" or (self.checkpoint is not None and self.checkpoint.is_adapter)


def find_subject(
    named: str,
    *,
    step: int | None = None,
    base_model: str | None = None,
    trust_remote_code: bool = False,
    verified: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Subject:
    """Find what `named` is: a run directory or its config.yaml, one checkpoint, the folder of an adapter or of a model,
    or a name on the Hub.

    `step`: of the checkpoint; the newest sound one by default. `base_model`: where the base model is now, if it has
    moved. `verified`: somebody else has compared every byte of the checkpoint with its checksum.

    Raises:
        UsageError: nothing of that name, or nothing that can be used; code beside a model without consent to run it.
        CheckpointError: a run without a sound checkpoint.
    """
    path = Path(named).expanduser()
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        from allranks.config import load_config

        path = Path(load_config(path, ignore_unsupported=True).checkpoint.output_dir).expanduser()
        if not path.is_dir():
            raise UsageError(f"{named}: its output_dir, {path}, does not exist yet: train first, or name another run")
    if path.is_dir() and _is_run(path):
        checkpoint = open_checkpoint(path, step=step, verified=verified, report=report)
        return _of_run(replace(checkpoint, trust_remote_code=trust_remote_code), base_model)
    if step is not None:
        raise UsageError(f"--step chooses a checkpoint of a run, and {named} is none: leave it out")
    folder = path if path.is_dir() else _from_hub(named)
    if (folder / "adapter_config.json").is_file():
        base = base_model or _base_of(folder)
        found = Subject("adapter", f"{named}, an adapter on {base}", base, None, folder, trust_remote_code)
    elif (folder / "config.json").is_file():
        if base_model:
            raise UsageError(f"--base-model is the base of an adapter, and {named} is a whole model: leave it out")
        found = Subject("model", named, str(path) if path.is_dir() else named, None, folder, trust_remote_code)
    else:
        raise UsageError(
            f"{named} holds neither a run's checkpoints nor config.json nor adapter_config.json: give a run's "
            "output_dir or config.yaml, one of its checkpoints, or the folder of a model or an adapter"
        )
    check_consent(found)
    return found


def check_consent(subject: Subject) -> None:
    """Raise UsageError where the model is made by code of its own, and the command line does not let it run."""
    if subject.checkpoint is not None:
        trained_with_it = bool(subject.checkpoint.config.get("trust_remote_code"))
        folders = [subject.checkpoint.hf, Path(subject.base)]
    else:
        trained_with_it, folders = False, [Path(subject.base), *([subject.folder] if subject.folder else [])]
    for folder in folders:
        if folder.is_dir():
            runs_its_own_code(folder, trained_with_it=trained_with_it, consent=subject.trust_remote_code)


def _is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir() or path.name.startswith("step-") or (path / commit.MARKER).is_file()


def _of_run(checkpoint: Checkpoint, base_model: str | None) -> Subject:
    base = base_model or str(checkpoint.config.get("base_model"))
    title = f"step {checkpoint.step} of {checkpoint.run_dir}"
    if checkpoint.is_adapter:
        title += f", an adapter on {base}"
    subject = Subject("run", title, base, checkpoint, None, checkpoint.trust_remote_code)
    check_consent(subject)
    return subject


def _base_of(folder: Path) -> str:
    file = folder / "adapter_config.json"
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    if not base or not isinstance(base, str):
        raise UsageError(f"{file} names no base model (base_model_name_or_path): give it with --base-model")
    return base


def _from_hub(name: str) -> Path:
    """The small files of a model on the Hub; of an adapter all files."""
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UsageError(
            f"{name} does not exist; give a run, the folder of a model or an adapter, or a name on the Hub"
        )
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=["config.json", "adapter_config.json"]))
        if (folder / "adapter_config.json").is_file():
            folder = Path(snapshot_download(name, allow_patterns=_WEIGHTS))
    except (OSError, ValueError) as error:  # the Hub's errors derive from these, network failures too
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{name} is neither a folder here nor to be had from the Hub: {reason}") from None
    return folder
