"""The process that traces: a request as JSON on standard input, its answer as JSON on standard output."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from allranks.errors import AllranksError
from allranks.parent import die_with_parent
from allranks.trace.asked import Asked


def main(parent_pid: int) -> None:
    """Answer {"parts": …} or {"error": …}."""
    die_with_parent(parent_pid=parent_pid)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    asked = Asked(**json.load(sys.stdin))
    try:
        answer: dict[str, Any] = {"parts": trace(asked)}
    except AllranksError as error:
        answer = {"error": str(error)}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    json.dump(answer, answers)
    answers.flush()


def trace(asked: Asked) -> dict[str, float]:
    """Bytes by kind (see `recorder`) when the rank holds most, and what the optimizer needs that is not traced."""
    from allranks.trace.layers import FEW, equal_layers, largest, peaks_of_many, with_layers

    num_layers = None if asked.every_layer else equal_layers(asked)
    if num_layers is None or num_layers <= FEW[1]:
        return {**largest(peaks(asked, asked.model))}
    few, more = (peaks(asked, with_layers(asked.model, num_layers, number)) for number in FEW)
    return {**largest(peaks_of_many(few, more, num_layers))}


def peaks(
    asked: Asked, model_config: Mapping[str, Any], *, gloo: bool | None = None
) -> dict[tuple[str, int], Counter[str]]:
    """Bytes by kind in each phase of a step of the model of `model_config`; with the copy that gloo makes of what it
    gathers, if `gloo` (on the CPU, if not given). Of replicas also `layers.SENT`, before the first step."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from allranks.config import RunConfig
    from allranks.config.strategy import strategy
    from allranks.model.build import build_model
    from allranks.model.placement import place
    from allranks.trace.layers import SENT
    from allranks.trace.nothing import (
        answer_reductions,
        as_on_gpu,
        fake_experts,
        fake_placements,
        fake_replicas,
        fake_world,
    )
    from allranks.trace.recorder import Recorder
    from allranks.trace.step import batch_of, peaks_of_steps

    # What CUDA's allocator rounds to: https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management
    recorder = Recorder(granule=1 if asked.on_cpu else 512, gloo=asked.on_cpu if gloo is None else gloo)
    fake = FakeTensorMode(allow_non_fake_inputs=True)

    @contextmanager
    def recorded() -> Iterator[None]:
        with fake, recorder:
            yield

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(model_config), encoding="utf-8")
        cfg = RunConfig.from_resolved({**asked.keys, "base_model": folder})
        on_gpu = nullcontext() if asked.on_cpu else as_on_gpu()
        with fake_world(asked.num_ranks), fake_placements(), fake_replicas(), fake_experts(), on_gpu:
            nodes = [rank // asked.ranks_per_node for rank in range(asked.num_ranks)]
            placement = place(cfg, torch.device("cpu"), 0, asked.num_ranks, nodes)
            model = build_model(cfg, placement, without_values=recorded)
            answer_reductions(model.module)
            with fake:
                batch = batch_of(asked.lengths, asked.labelled)
                parameters = [one.numel() * one.element_size() for one in model.module.parameters()]
                found = peaks_of_steps(cfg, model, recorder, batch, num_micro_batches=asked.num_micro_batches)
                if asked.num_ranks > 1 and strategy(cfg, asked.num_ranks, asked.ranks_per_node)[0] == "ddp":
                    found[SENT] = Counter(parameters=sum(parameters))
                return found
