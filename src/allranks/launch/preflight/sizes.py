"""How much a run will write and hold at least, by its config and its model's shapes, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from allranks.config import RunConfig
from allranks.errors import AllranksError
from allranks.model.files import stored_config
from allranks.plan.adapter_size import num_adapter_elements
from allranks.plan.config_workload import own_workload
from allranks.plan.fit import Expected
from allranks.plan.optimizer_state import state_bytes
from allranks.plan.step import PlannedStep
from allranks.plan.stored_size import num_stored_elements, stored_shapes
from allranks.plan.strategies import planned_steps

_FILES_OF_A_RANK = 2  # its part of a checkpoint, and its state of random numbers
_FILES_OF_A_CHECKPOINT = 10  # the folder itself, what says what is in it, and the marker


@dataclass(frozen=True)
class Sizes:
    """Lower bounds, None where nothing is known before the model is there: what is more a run tells before step 1."""

    checkpoint_bytes: int | None = None
    checkpoint_files: int | None = None
    load_bytes: int | None = None
    """Of one node's memory."""
    steps: Sequence[PlannedStep] = ()
    """Of the config's strategy and of others, where there are several nodes."""
    expected: Expected | None = None
    """What a rank will do, for what it will hold."""


def sizes(cfg: RunConfig, *, num_nodes: int, num_processes: int | None, on_cpu: bool) -> Sizes:
    """Of a run of `num_processes` ranks a node. Only of a model that is on this disk, in a folder or in the Hub's
    cache; of one that is trained in part without an adapter only the number of files."""
    folder = folder_of_model(cfg)
    files = None if num_processes is None else _FILES_OF_A_CHECKPOINT + _FILES_OF_A_RANK * num_processes
    if cfg.optimizer.unfrozen_parameters or folder is None:
        return Sizes(checkpoint_files=files)
    will = None
    if num_processes is not None:
        will = expected(cfg, num_nodes=num_nodes, num_processes=num_processes, on_cpu=on_cpu)
    config = stored_config(cfg)
    each = 2 if cfg.precision.low_precision_weights else 4
    elements = num_stored_elements(folder)
    trained = num_adapter_elements(folder, cfg.adapter, config) if cfg.adapter.adapter else elements
    # Shards of all nodes together are at least one model; on GPUs it is not the host's memory that holds them.
    is_loaded = on_cpu and elements is not None and not cfg.adapter.adapter
    load = elements * each // num_nodes if is_loaded and elements is not None else None
    found = Sizes(_checkpoint_bytes(cfg, trained, each), files, load, expected=will)
    shapes = stored_shapes(folder)
    if trained is None or shapes is None or num_nodes < 2 or num_processes is None:
        return found
    steps = planned_steps(
        cfg,
        shapes,
        trained,
        config,
        num_nodes=num_nodes,
        num_processes=num_processes,
        on_cpu=on_cpu,
    )
    return replace(found, steps=steps)


def expected(cfg: RunConfig, *, num_nodes: int, num_processes: int, on_cpu: bool) -> Expected | None:
    """What a rank will do, with rows as long as they may be; None where that is not known, or `plan: off`."""
    described = stored_config(cfg)
    if not cfg.plan.predicts or not described or cfg.optimizer.unfrozen_parameters:
        return None
    try:
        own = own_workload(
            cfg,
            described,
            num_nodes=num_nodes,
            gpus_per_node=num_processes,
            on_cpu=on_cpu,
        )
    except AllranksError:
        return None  # a strategy that cannot be on so many ranks is refused elsewhere
    is_full = cfg.data.sample_packing or cfg.data.pad_to_sequence_len
    return Expected(own, own.tokens if is_full else 1)


def folder_of_model(cfg: RunConfig) -> Path | None:
    """The model's, if its files are here already."""
    folder = Path(cfg.model.base_model).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(cfg.model.base_model, "config.json", revision=cfg.model.revision_of_model)
    except HFValidationError:
        return None  # it is no name of the Hub: the start says so
    return Path(found).parent if isinstance(found, str) else None


def _checkpoint_bytes(cfg: RunConfig, num_trained: int | None, each: int) -> int | None:
    """With `num_trained` elements of `each` so many bytes."""
    if num_trained is None or cfg.checkpoint.save_strategy == "no":
        return None
    # As if all were matrices, of which Muon keeps less: it is a lower bound.
    state = 0.0 if cfg.checkpoint.save_only_model else state_bytes(cfg.optimizer.optimizer, each, is_matrix=True)
    return int(num_trained * (each + state))
