"""On how many nodes a config is timed, and how its batch is divided over each of these numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from allranks.config import RunConfig
from allranks.errors import UsageError


def parse_sizes(text: str) -> tuple[int, ...]:
    """The numbers of nodes of `1,2,4`, the smallest first. Raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part[:9]) > 0 for part in parts):
        raise UsageError(f"--nodes {text}: expected numbers of nodes with commas between them, such as 1,2,4")
    return tuple(sorted({int(part[:9]) for part in parts}))


def refuse_more_than(num_nodes: int, sizes: Sequence[int], *, named: str) -> None:
    """Raises UsageError for a size of more nodes than there are; `named` says where their number is from."""
    too_large = [size for size in sizes if size > num_nodes]
    if too_large:
        asked, left = ",".join(map(str, sizes)), ",".join(str(size) for size in sizes if size <= num_nodes)
        remedy = f"give --nodes {left}, or name more nodes" if left else "name more nodes"
        raise UsageError(f"--nodes {asked}: {named} {num_nodes} node{'s' * (num_nodes > 1)}: {remedy}")


def batch_keys(cfg: RunConfig, nodes: int, largest: int, *, keep_batch: bool) -> dict[str, Any]:
    """The config's keys of its batch on so many nodes, of which `largest` is the most that is timed.

    A rank has the same batch on any number of nodes (weak scaling); with `keep_batch` the global batch stays that of
    `largest`, and fewer nodes accumulate more (strong scaling). Raises UsageError where it cannot be divided equally.
    """
    whole, accumulated = cfg.optimizer.batch_size, cfg.optimizer.gradient_accumulation_steps
    if whole is None:
        if not keep_batch:
            return {}
        steps = accumulated * largest
        if steps % nodes:
            _refuse("gradient_accumulation_steps", accumulated, nodes, largest, "--keep-batch: the micro-batches")
        return {"gradient_accumulation_steps": steps // nodes}
    if keep_batch:
        if whole % nodes:
            _refuse("batch_size", whole, nodes, 1, "--keep-batch: the blocks")
        return {"batch_size": whole}
    if whole * nodes % largest:
        _refuse("batch_size", whole, largest, nodes, f"{nodes} of {largest} nodes: the blocks")
    return {"batch_size": whole * nodes // largest}


def _refuse(key: str, value: int, divided_by: int, times: int, what: str) -> None:
    least = divided_by // math.gcd(divided_by, times)
    raise UsageError(
        f"{key}: {value}, {what} of a step cannot be divided equally over {divided_by} nodes: make it a multiple of "
        f"{least} (--{key.replace('_', '-')} {least * math.ceil(value / least)}), or leave a number out of --nodes"
    )
