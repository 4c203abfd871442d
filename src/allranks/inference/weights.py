"""The weights of a checkpoint, read straight into a model's memory."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from allranks.checkpoint.dcp.reader import planner, reader
from allranks.errors import CheckpointError
from allranks.export.checkpoint import Checkpoint
from allranks.train.checkpoint import refuse_incomplete


def read_weights(state: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Read the tensors that `state` names, in place, each in the dtype that it has there; call it on all ranks.

    Raises:
        CheckpointError: the checkpoint is of another model, or lacks tensors.
    """
    contents = {"model": state}
    try:
        dcp.load(contents, storage_reader=reader(checkpoint.path), planner=planner(), no_dist=not dist.is_initialized())
    except CheckpointException as error:
        raise CheckpointError(
            f"{checkpoint.path} does not fit the model that its config makes: {' '.join(str(error).split())[:400]}. "
            "Is the base model another one now?"
        ) from error
    refuse_incomplete(contents, f"{checkpoint.path} cannot be used", checkpoint.state)
    return contents["model"]
