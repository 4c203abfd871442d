"""What a run is about to do, in a few lines, before it does it."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from allranks.checkpoint.commit import complete_checkpoints, step_of
from allranks.config import RunConfig
from allranks.config.strategy import strategy
from allranks.exit_codes import DONE, PREEMPTED
from allranks.launch.spec.options import Launch
from allranks.observe import RunDir

# Set for the nodes of a start from one place: what is the same for all is then read once, from node 0.
ONE_VOICE = "ALLRANKS_ONE_VOICE"


def speaks_for_all(launch: Launch, env: Mapping[str, str] = os.environ) -> bool:
    """Whether this node says what a start is about to do."""
    return not launch.node_rank or ONE_VOICE not in env


def place_of_node(launch: Launch, ranks: range | None, logs: Path, env: Mapping[str, str] = os.environ) -> str:
    """For the terminal of a node that rank 0 is not on, where else nothing would appear; "" for any other."""
    if not launch.node_rank or ONE_VOICE in env:
        return ""
    these = "its ranks" if not ranks else f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    return (
        f"{f'node {launch.node_rank}:':<12}runs {these}, whose logs are in {logs}; node 0's terminal shows the progress"
    )


def end_of_node(launch: Launch, code: int, env: Mapping[str, str] = os.environ) -> str:
    """How it ended, for the same terminal."""
    if not launch.node_rank or ONE_VOICE in env or code not in (DONE, PREEMPTED):
        return ""
    how = "its ranks are done" if code == DONE else "its ranks have saved a checkpoint and stopped"
    return f"{f'node {launch.node_rank}:':<12}{how}"


def what_came_before_ranks(launch: Launch, node: int | str) -> str:
    """What a launcher that started no rank was waiting for, and what to look at."""
    if launch.is_elastic:
        return (
            f"node {node} started no rank: {launch.min_nodes} nodes did not meet at {launch.endpoint} within "
            f"{launch.join_seconds:.0f} s (c10d rendezvous). Is `allranks` running on the machine that --rdzv-endpoint "
            "names, is the port open to this node, and do all nodes say the same --nnodes, --rdzv-endpoint and "
            "--rdzv-id?"
        )
    if launch.max_nodes > 1:
        return (
            f"node {node} started no rank: the {launch.max_nodes} nodes did not meet at {launch.endpoint} "
            f"({launch.backend} rendezvous). Is node 0 running there, is the port open to this node, do all nodes say "
            f"--nnodes {launch.max_nodes} --nproc-per-node {launch.nproc_per_node}, and has each its own --node-rank?"
        )
    return "no rank reported anything before it ended"


def describe(cfg: RunConfig, launch: Launch, run: RunDir) -> str:
    """Config file, strategy, world size, run directory and what resuming does, one line each."""
    return _lines(
        {
            "config": cfg.source,
            "strategy": strategy_name(cfg, launch.world_size, launch.nproc_per_node),
            "world size": _world_size(launch),
            "run": run.path,
            "resume": resume_line(cfg, run, is_restarted=launch.num_restarts > 0),
        }
    )


def describe_program(words: Sequence[str], launch: Launch, run: RunDir) -> str:
    """The same of a program that is not ours."""
    return _lines({"program": shlex.join(words), "world size": _world_size(launch), "run": run.path})


def _lines(named: Mapping[str, object]) -> str:
    return "\n".join(f"{name + ':':<12}{value}" for name, value in named.items())


def _world_size(launch: Launch) -> str:
    nodes = (
        f"{launch.max_nodes}" if launch.min_nodes == launch.max_nodes else f"{launch.min_nodes} to {launch.max_nodes}"
    )
    gpus = f"{launch.num_gpus} GPU(s) here" if launch.num_gpus else "no GPU here: training on the CPU"
    node = f", this is node {launch.node_rank}" if launch.max_nodes > 1 and launch.node_rank is not None else ""
    return f"{launch.world_size} = {nodes} node(s) x {launch.nproc_per_node} process(es) ({gpus}{node})"


def strategy_name(cfg: RunConfig, world_size: int, node_size: int | None = None) -> str:
    """Such as "FSDP2, LoRA". Raises ConfigError where the config's sizes do not fit the world size.

    `node_size`: ranks of each node, where that is known.
    """
    method = {None: "", "lora": ", LoRA", "qlora": ", Q-LoRA"}[cfg.adapter.adapter]
    if cfg.parallel.dp_shard_size == "node" and node_size is None:
        return f"HSDP (one replica a node){method}"
    kind, replicas, shards = strategy(cfg, world_size, node_size)
    zero = f"DeepSpeed ZeRO-{cfg.deepspeed.stage}"
    name = {"single": "one process", "ddp": "DDP", "fsdp": "FSDP2", "zero": zero}[kind]
    if kind == "fsdp" and replicas > 1:
        name = f"HSDP ({replicas} replicas x {shards} shards)"
    return name + method


def resume_line(cfg: RunConfig, run: RunDir, *, is_restarted: bool = False) -> str:
    """What a start goes on from; where all ranks are started again, it is what they have saved."""
    found = complete_checkpoints(run.checkpoints)
    if cfg.checkpoint.resume_from_checkpoint and not (is_restarted and found):
        return f"from {cfg.checkpoint.resume_from_checkpoint}"
    if not cfg.checkpoint.auto_resume_from_checkpoints and not is_restarted:
        return "no, starts at step 0"
    if not found:
        return "automatic: no complete checkpoint yet, starts at step 0"
    return f"automatic: from step {step_of(found[0])}, if its checksums hold"
