"""The checkpoint to export, and reading tensors out of it without the ranks that wrote it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from allranks.checkpoint import commit
from allranks.checkpoint.dcp.reader import planner, reader
from allranks.checkpoint.state import RunState, read_state
from allranks.errors import CheckpointError, UsageError
from allranks.listing import few

# Tensors of the model lie under this key beside the optimizer's.
_MODEL = "model."
# Running means of squared gradients, as AdamW keeps them for the tensor of this name.
_SQUARES = "optimizer.state.{}.exp_avg_sq"


@dataclass(frozen=True)
class Checkpoint:
    """A sound checkpoint. `tensors`: shape and dtype of every tensor of the model that is in it, by name.

    `squares`: the same for AdamW's running means of squared gradients, by the names of the model's tensors.
    `trust_remote_code`: who exports consents to running code that lies beside the model; the run cannot.
    """

    path: Path
    step: int
    state: RunState
    tensors: dict[str, tuple[torch.Size, torch.dtype]]
    squares: dict[str, tuple[torch.Size, torch.dtype]]
    trust_remote_code: bool = False

    @property
    def hf(self) -> Path:
        return self.path / "hf"

    @property
    def is_adapter(self) -> bool:
        return self.state.is_adapter

    @property
    def run_dir(self) -> Path:
        return self.path.parent.parent

    @property
    def config(self) -> Mapping[str, Any]:
        """The flat keys of the config that the run was started with."""
        return self.state.config

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read these tensors whole, onto the CPU, in the dtype that they were saved in."""
        wanted = list(names)
        return self._load({_MODEL + name: self.tensors[name] for name in wanted}, wanted)

    def read_squares(self) -> dict[str, Tensor]:
        """Read AdamW's running means of squared gradients, by the names of the tensors; empty where there are none."""
        return self._load({_SQUARES.format(name): shape for name, shape in self.squares.items()}, self.squares)

    def _load(self, keys: dict[str, tuple[torch.Size, torch.dtype]], names: Iterable[str]) -> dict[str, Tensor]:
        if not keys:
            return {}
        wanted = {key: torch.empty(size, dtype=dtype) for key, (size, dtype) in keys.items()}
        try:
            dcp.load(wanted, storage_reader=reader(self.path), planner=planner(), no_dist=True)
        except (CheckpointException, OSError, RuntimeError) as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from error
        return dict(zip(names, wanted.values(), strict=True))


def open_checkpoint(
    path: Path,
    *,
    step: int | None = None,
    verified: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Checkpoint:
    """Open one checkpoint, or the newest sound one of a run (of step `step`, if given); every byte is checked first.

    `verified`: the caller knows that what is committed there is sound (it has just written it), so skip that.

    Raises:
        UsageError: there is none, or none of the step.
        CheckpointError: the one that was asked for, or every one, is incomplete or damaged.
    """

    def problems_of(checkpoint: Path) -> list[str]:
        return [] if verified else commit.verify(checkpoint)

    if (path / commit.MARKER).is_file() or path.name.startswith("step-"):
        commit.read_marker(path)
        return _read(path, problems_of(path))
    checkpoints = path / "checkpoints"
    complete = commit.complete_checkpoints(checkpoints)
    if step is not None:
        wanted = [found for found in complete if commit.step_of(found) == step]
        if not wanted:
            have = ", ".join(str(commit.step_of(found)) for found in complete) or "none"
            raise UsageError(f"{path} has no complete checkpoint of step {step}; complete ones: {have}")
        return _read(wanted[0], problems_of(wanted[0]))
    damage = []
    for found in complete:
        problems = problems_of(found)
        if not problems:
            return _read(found, [])
        report(f"{found.name} is damaged ({problems[0]}): not used, taking the one before it")
        damage.append(f"{found.name}: {problems[0]}")
    if complete:
        raise CheckpointError(f"every complete checkpoint in {checkpoints} is damaged: {few(damage, 4)}")
    raise UsageError(f"{path} holds no complete checkpoint; give a run's output_dir or one of its checkpoints")


def _read(path: Path, problems: list[str]) -> Checkpoint:
    if problems:
        hint = ""
        if any(problem.endswith("missing") for problem in problems):
            hint = " (if nodes have disks of their own, copy this folder of every node into one first)"
        raise CheckpointError(f"{path} is damaged: {'; '.join(problems[:4])}{hint}")
    state = read_state(path)
    metadata = reader(path).read_metadata().state_dict_metadata
    tensors = {
        key.removeprefix(_MODEL): (entry.size, entry.properties.dtype)
        for key, entry in metadata.items()
        if key.startswith(_MODEL) and isinstance(entry, TensorStorageMetadata)
    }
    squares = {
        name: (size, entry.properties.dtype)
        for name, (size, _) in tensors.items()
        if isinstance(entry := metadata.get(_SQUARES.format(name)), TensorStorageMetadata) and entry.size == size
    }
    return Checkpoint(path.resolve(), commit.step_of(path), state, tensors, squares)
