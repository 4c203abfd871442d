"""How much a run will write and hold at least, by its config and its model's shapes, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from allranks.config import RunConfig
from allranks.model.adapter_size import num_adapter_elements
from allranks.model.stored_size import num_stored_elements
from allranks.plan.optimizer_state import state_bytes

_FILES_OF_A_RANK = 2  # its part of a checkpoint, and its state of random numbers
_FILES_OF_A_CHECKPOINT = 10  # the folder itself, what says what is in it, and the marker


@dataclass(frozen=True)
class Sizes:
    """Lower bounds, None where nothing is known before the model is there: what is more a run tells before step 1."""

    checkpoint_bytes: int | None = None
    checkpoint_files: int | None = None
    load_bytes: int | None = None
    """Of one node's memory."""


def sizes(cfg: RunConfig, *, num_nodes: int, num_processes: int | None, on_cpu: bool) -> Sizes:
    """Of a run of `num_processes` ranks a node. Only of a model that is in a folder here; of one that is trained in
    part without an adapter only the number of files."""
    folder = Path(cfg.model.base_model).expanduser()
    files = None if num_processes is None else _FILES_OF_A_CHECKPOINT + _FILES_OF_A_RANK * num_processes
    if cfg.optimizer.unfrozen_parameters or not folder.is_dir():
        return Sizes(checkpoint_files=files)
    each = 2 if cfg.precision.low_precision_weights else 4
    if cfg.adapter.adapter:
        return Sizes(_checkpoint_bytes(cfg, num_adapter_elements(folder, cfg.adapter), each), files)
    elements = num_stored_elements(folder)
    # Shards of all nodes together are at least one model; on GPUs it is not the host's memory that holds them.
    load = elements * each // num_nodes if on_cpu and elements is not None else None
    return Sizes(_checkpoint_bytes(cfg, elements, each), files, load)


def _checkpoint_bytes(cfg: RunConfig, num_trained: int | None, each: int) -> int | None:
    """With `num_trained` elements of `each` so many bytes."""
    if num_trained is None or cfg.checkpoint.save_strategy == "no":
        return None
    # As if all were matrices, of which Muon keeps less: it is a lower bound.
    state = 0.0 if cfg.checkpoint.save_only_model else state_bytes(cfg.optimizer.optimizer, each, is_matrix=True)
    return int(num_trained * (each + state))
