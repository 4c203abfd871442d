"""This node's part in each size: the run as the user would start it by hand here, but shorter, and timed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from allranks import durable
from allranks.cluster.timed import TIMED
from allranks.config import RunConfig
from allranks.demo.commands import Command, error_in, log_tail
from allranks.errors import AllranksError
from allranks.exit_codes import DONE, FAILED
from allranks.launch.short_run import short_run
from allranks.launch.spec.by_hand import by_hand
from allranks.launch.spec.options import Launch
from allranks.observe import RunDir
from allranks.scaling.child import run_child
from allranks.scaling.measured import measured
from allranks.scaling.report import Outcome
from allranks.scaling.sizes import batch_keys

GRACE_SECONDS = 10.0
"""For ranks to end their step when they are stopped; they save nothing."""
_END_SECONDS = 2 * GRACE_SECONDS


def configs_of(cfg: RunConfig, sizes: Sequence[int], *, num_steps: int, keep_batch: bool) -> Mapping[int, RunConfig]:
    """What is run on each number of nodes. Raises UsageError for a batch that one of them cannot share equally."""
    return {
        nodes: short_run(
            cfg,
            output_dir=str(RunDir(cfg.checkpoint.output_dir).scaling / f"nodes-{nodes}"),
            max_steps=num_steps,
            save_strategy="no",
            **batch_keys(cfg, nodes, sizes[-1], keep_batch=keep_batch),
        )
        for nodes in sizes
    }


def run_here(
    launch: Launch,
    configs: Mapping[int, RunConfig],
    words: Sequence[str],
    *,
    warm_up: int,
    begins: Callable[[int, Path], None],
) -> Iterator[Outcome]:
    """What came of each size that this node takes part in, the largest first: so nobody waits for sizes of fewer nodes.

    `words` are options for `allranks train`. Each size has a port of its own: of the one before some node may not be
    done yet. `begins` is told each size, and where its output goes. Only node 0 measures; the others' outcomes say how
    their own part ended.
    """
    node = launch.node_rank or 0
    for place, (nodes, cfg) in enumerate(sorted(configs.items(), reverse=True)):
        if node >= nodes:
            continue
        run = RunDir(cfg.checkpoint.output_dir)
        begins(nodes, _log(run, node))
        yield _run(launch, cfg, words, run, nodes=nodes, node=node, port=launch.port + place, warm_up=warm_up)


def _run(
    launch: Launch,
    cfg: RunConfig,
    words: Sequence[str],
    run: RunDir,
    *,
    nodes: int,
    node: int,
    port: int,
    warm_up: int,
) -> Outcome:
    file = run.path / "config.yaml"  # where nodes share a disk, each of them writes the same
    durable.write(file, cfg.yaml(), make_parents=True)
    place = by_hand(
        ["allranks", "train", str(file), "--grace-seconds", f"{GRACE_SECONDS:g}", *words],
        num_nodes=nodes,
        node_rank=node,
        address=launch.address,
        port=port,
        nproc_per_node=launch.nproc_per_node,
    )
    command = Command(f"node {node}", tuple(place), _log(run, node), {TIMED: "1"})
    code = run_child(command, seconds_to_end=_END_SECONDS)
    if code != DONE:
        error = error_in(command.log) or f"it said nothing of its end:\n{log_tail(command.log, 5)}"
        return Outcome(nodes, None, error, code if code > 0 else FAILED)
    if node:
        return Outcome(nodes)
    try:
        return Outcome(nodes, measured(run, nodes, warm_up=warm_up))
    except (AllranksError, FileNotFoundError) as error:
        return Outcome(nodes, None, f"its record cannot be read: {error}", FAILED)


def remove(configs: Mapping[int, RunConfig], node: int) -> None:
    """Remove the run directories, and the output_dir where nothing else is in it.

    On a disk that all share, where node 0's log is seen, node 0 does: it reads them first, also of a run that failed
    before it had a record.
    """
    for cfg in configs.values():
        run = RunDir(cfg.checkpoint.output_dir)
        if node == 0 or not _log(run, 0).exists():
            shutil.rmtree(run.path, ignore_errors=True)
        for folder in run.path.parents[:2]:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def _log(run: RunDir, node: int) -> Path:
    """What `allranks train` prints on a node."""
    return run.path / f"node-{node}.log"
