"""What a checkpoint knows beside its tensors, `state.json`: one type, versioned, readable by every later version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from allranks.checkpoint import commit
from allranks.errors import CheckpointError
from allranks.json_types import is_a

STATE_FILE = "state.json"
VERSION = 1
"""Raised when a key gets another meaning, never for a new key: those have defaults. What had no version is 0."""


@dataclass(frozen=True)
class RunState:
    """All that is not a tensor, and what the checkpoint was made with.

    A key with a default may be missing: an older version did not write it. `other` holds keys that this version does
    not know; they are written again as they were.
    """

    step: int
    """How many are done."""
    config: Mapping[str, Any]
    """The flat keys of the run's config that have a value."""
    num_steps: int | None = None
    """How many the run is to do."""
    global_batch: int | None = None
    """Blocks a step; None: as many as the config asks for."""
    tokens: int = 0
    """That the model has read so far, without padding."""
    loss: float | None = None
    """Of the last step."""
    best_loss: float | None = None
    """The lowest evaluation loss so far."""
    best_checkpoint: str | None = None
    """The folder's name of the checkpoint that had it."""
    evals_without_improvement: int = 0
    """Since that."""
    fingerprint: str | None = None
    """Of the prepared data."""
    data_seed: int | None = None
    """That the order of the data was drawn with."""
    world_size: int | None = None
    """That saved it; another one may go on."""
    adapter: bool | None = None
    """Whether an adapter was trained; None in a state that does not say: its config does."""
    only_model: bool = False
    """Whether the optimizer's state was left out (`save_only_model`)."""
    scaler: Mapping[str, Any] | None = None
    """Of float16: the state of the loss scaler."""
    other: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_adapter(self) -> bool:
        return self.config.get("adapter") is not None if self.adapter is None else self.adapter

    def to_json(self) -> str:
        known = {key: getattr(self, key) for key in _TYPES}
        return json.dumps({"version": VERSION, **self.other, **known}, indent=1)


_TYPES = {key: kind for key, kind in get_type_hints(RunState).items() if key != "other"}
_REQUIRED = [each.name for each in fields(RunState) if each.default is MISSING and each.default_factory is MISSING]


def parse_state(text: str | bytes, where: str | Path) -> RunState:
    """The state that a version of ours wrote, this one or an earlier one. Raises CheckpointError, naming `where`."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} cannot be read: it holds no keys")
    version = found.pop("version", 0)
    if not is_a(version, int) or version > VERSION:
        raise CheckpointError(
            f"{where} is of version {version}; this allranks reads up to {VERSION}: use the allranks that wrote it, or "
            "a later one"
        )
    for key, kind in _TYPES.items():
        if key not in found:
            if key in _REQUIRED:
                raise CheckpointError(f"{where} does not say {key}, which every version writes: use another checkpoint")
        elif not is_a(found[key], kind):
            raise CheckpointError(f"{where}: {key} is {str(found[key])[:80]!r}, which no version writes")
    known = {key: found[key] for key in _TYPES if key in found}
    return RunState(**known, other={key: value for key, value in found.items() if key not in _TYPES})


def read_state(checkpoint: Path) -> RunState:
    """The state of a committed checkpoint. Raises CheckpointError."""
    commit.read_marker(checkpoint)
    path = checkpoint / STATE_FILE
    try:
        return parse_state(path.read_bytes(), path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
