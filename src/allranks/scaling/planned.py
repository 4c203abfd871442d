"""What the plan expects of more nodes, from the smallest size's measured step: it adds what the link has to carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from allranks.config import RunConfig
from allranks.errors import UsageError
from allranks.model.files import stored_config
from allranks.plan.config_workload import own_workload
from allranks.plan.described import UnknownShapeError
from allranks.plan.hardware import Link, find_link, find_reported
from allranks.plan.overlap import exchange
from allranks.plan.workload import Workload
from allranks.scaling.efficiency import work_per_forward
from allranks.scaling.measured import Measured

_ROUNDS = 20
"""What is exposed depends on what is computed, and that is what is left of the measured step: this settles at once."""


def planned(
    configs: Mapping[int, RunConfig], sizes: Sequence[Measured], between: Link | None
) -> tuple[Mapping[int, float], str]:
    """Seconds of a step by nodes, and what they are based on, or why there are none.

    `configs`: what was run on each number of nodes; `between` joins them. What the first of `sizes` does beside
    communicating is taken as measured; the rest is the plan's (`plan.overlap`).
    """
    if len(sizes) < 2:
        return {}, ""
    if between is None:
        return {}, "not compared: `allranks check` measures what joins the nodes, or --link names it: 100gbit, 8xib-ndr"
    base = sizes[0]
    try:
        of_size = {one.nodes: _workload(configs[one.nodes], one) for one in sizes}
    except UsageError as error:
        return {}, f"not compared: {error}"
    within = _within(base)
    own = base.seconds
    for _ in range(_ROUNDS):
        own = max(0.0, base.seconds - _exposed(of_size[base.nodes], own, configs[base.nodes], within, between))
    seconds = {}
    for one in sizes:
        share = (one.tokens / one.ranks) / (base.tokens / base.ranks)
        computed = share * own
        exposed = _exposed(of_size[one.nodes], computed, configs[one.nodes], within, between)
        seconds[one.nodes] = computed + exposed
    first = f"{base.nodes} node{'s' * (base.nodes > 1)}"
    return seconds, f"the measured step of {first}, and what has to go over {between.title}"


def _workload(cfg: RunConfig, size: Measured) -> Workload:
    """Raises UsageError where it cannot be told."""
    read = stored_config(cfg)
    if not read:
        raise UsageError(f"base_model: {cfg.model.base_model} has no config.json on this machine")
    try:
        return own_workload(
            cfg,
            read,
            num_nodes=size.nodes,
            gpus_per_node=size.ranks // size.nodes,
            on_cpu=not size.on_gpu,
        )
    except UnknownShapeError as error:
        raise error.found_in(cfg.model.base_model_config or cfg.model.base_model) from None


def _exposed(workload: Workload, computed: float, cfg: RunConfig, within: Link, between: Link) -> float:
    """Of a step in which `computed` seconds are spent on computing: a backward pass takes its part of them."""
    of_micro_batch = computed / workload.num_micro_batches
    full = not cfg.adapter.adapter
    passes = work_per_forward(on_gpu=True, trains_all=full, recomputes=cfg.parallel.checkpoints_activations)
    forward = of_micro_batch / passes
    return exchange(workload, within, between, forward=forward, backward=of_micro_batch - forward).exposed


def _within(size: Measured) -> Link:
    """What joins the ranks of a node: by the GPU's name, where that is known, else PCIe."""
    device = find_reported(size.gpu)
    return find_link(device.link if device is not None else "pcie4")
