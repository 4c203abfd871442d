"""How much a run will write and hold at least, by its config and its model's shapes, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from allranks.config import RunConfig
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
    """Of a run of `num_processes` ranks a node. Only of a model that is in a folder here, and is trained as a whole."""
    folder = Path(cfg.model.base_model).expanduser()
    files = None if num_processes is None else _FILES_OF_A_CHECKPOINT + _FILES_OF_A_RANK * num_processes
    trains_all = not cfg.adapter.adapter and not cfg.optimizer.unfrozen_parameters
    elements = num_stored_elements(folder) if trains_all and folder.is_dir() else None
    if elements is None:
        return Sizes(checkpoint_files=files)
    each = 2 if cfg.precision.low_precision_weights else 4
    # As if all were matrices, of which Muon keeps less: it is a lower bound.
    state = 0.0 if cfg.checkpoint.save_only_model else state_bytes(cfg.optimizer.optimizer, each, is_matrix=True)
    saves = cfg.checkpoint.save_strategy != "no"
    return Sizes(
        int(elements * (each + state)) if saves else None,
        files,
        # Shards of all nodes together are at least one model; on GPUs it is not the host's memory that holds them.
        elements * each // num_nodes if on_cpu else None,
    )
