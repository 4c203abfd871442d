"""A rank's memory, by running the engine itself in a process of its own, on tensors without values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from allranks.config import RunConfig
from allranks.errors import AllranksError
from allranks.plan.workload import RankMemory
from allranks.trace.asked import Asked, refuse, traced_keys

DEADLINE_SECONDS = 600.0
"""Some twenty seconds are usual, and a minute or two where layers differ; on a busy machine more."""


def traced_memory(
    cfg: RunConfig,
    config_json: Mapping[str, Any],
    *,
    num_ranks: int,
    ranks_per_node: int,
    micro_batch_size: int | None = None,
    num_micro_batches: int = 1,
    lengths: tuple[int, ...] | None = None,
    labelled: float = 1.0,
    on_cpu: bool = False,
    every_layer: bool = False,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> RankMemory:
    """What rank 0 of `num_ranks` holds when it holds most, from the model's config.json alone; rank 0's shards are the
    largest.

    The code of model/ and train/ builds the model and takes two steps, under torch's fake tensors and fake process
    group. `lengths`: the documents of a micro-batch, of which the last part is `labelled`; `micro_batch_size` times
    `sequence_len` if not given. With several micro-batches two are taken a step, for the second finds the gradients of
    the first. `every_layer`: of models whose layers are equal, too, which are else known from two with few.

    `reserve` and `host` are 0, and so is the state of optimizers that are not among `asked.OPTIMIZERS`. Layers are not
    compiled, and Liger's kernels are not used, which both hold less.

    Raises:
        ConfigError: what cannot be run without values (DeepSpeed, weights in 4 or 8 bits, offloading).
        AllranksError: the engine failed, or did not end within the deadline.
    """
    refuse(cfg, num_ranks, ranks_per_node)
    size = micro_batch_size or cfg.optimizer.micro_batch_size
    asked = Asked(
        keys=traced_keys(cfg, micro_batch_size=size, on_cpu=on_cpu),
        model=dict(config_json),
        num_ranks=num_ranks,
        ranks_per_node=ranks_per_node,
        num_micro_batches=min(num_micro_batches, 2),
        lengths=lengths or (cfg.data.sequence_len,) * size,
        labelled=labelled,
        on_cpu=on_cpu,
        every_layer=every_layer,
    )
    parts = _ask(asked, deadline_seconds)
    adapter = parts.get("adapter", 0.0)
    return RankMemory(
        parameters=parts.get("parameters", 0.0) + adapter,
        gradients=parts.get("gradients", 0.0),
        optimizer=parts.get("optimizer", 0.0),
        activations=parts.get("activations", 0.0),
        logits=parts.get("logits", 0.0),
        communication=parts.get("communication", 0.0),
        reserve=0.0,
        adapter=adapter,
    )


def _ask(asked: Asked, deadline_seconds: float) -> dict[str, float]:
    code = f"from allranks.trace.child import main; main({os.getpid()})"
    # No GPU is to be woken up, and none chosen by.
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    try:
        with tempfile.TemporaryDirectory(prefix="allranks-trace-", ignore_cleanup_errors=True) as folder:
            done = subprocess.run(
                [sys.executable, "-c", code],
                input=json.dumps(asdict(asked), default=str),
                capture_output=True,
                text=True,
                env={**env, "TMPDIR": folder},  # a process that is killed removes nothing
                timeout=deadline_seconds,
            )
    except subprocess.TimeoutExpired:
        raise AllranksError(
            f"the trace of this config did not end within {deadline_seconds:.0f} s; `allranks plan` without --trace "
            "answers at once"
        ) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise AllranksError(f"the trace of this config ended with exit code {done.returncode}: {last}") from None
    if "error" in answer:
        raise AllranksError(f"this config cannot be traced: {answer['error']}")
    return answer["parts"]
