"""The options about nodes and launchers, which `train` and `run` have in common."""

from collections.abc import Collection
from typing import Annotated, Any

import typer

from allranks.cli.train_words import is_given

Hosts = Annotated[
    str | None, typer.Option(help="Start on all these nodes, over ssh: node[0-3],gpu7. The first is node 0.")
]
Hostfile = Annotated[str | None, typer.Option(help="The same from a file: a host a line, perhaps with slots=N.")]
RemoteStart = Annotated[str, typer.Option(help="How nodes are started: auto, ssh, srun, pbsdsh or local.")]
Python = Annotated[str | None, typer.Option(help="The interpreter on the nodes. Default: the one here.")]
Export = Annotated[
    list[str] | None, typer.Option(metavar="NAME[=VALUE]", help="Also hand on this variable; may come often.")
]
NprocPerNode = Annotated[
    int | None, typer.Option(help="Processes on this node. Default: its number of GPUs; 1 on a CPU.")
]
Nnodes = Annotated[str | None, typer.Option("--nnodes", "--num-nodes", help="Nodes that take part.")]
NodeRank = Annotated[int | None, typer.Option(help="Number of this node, from 0.")]
MasterAddr = Annotated[str | None, typer.Option(help="Address of node 0.")]
MasterPort = Annotated[int | None, typer.Option(help="Port on node 0. Default: 29500; c10d 29400.")]
Launcher = Annotated[str | None, typer.Option(help="torchrun (default), accelerate, deepspeed or ray.")]
AccelerateConfig = Annotated[
    str | None, typer.Option(help="A file of `accelerate config` of your own (--launcher accelerate).")
]
RdzvBackend = Annotated[str | None, typer.Option(help="static (default) or c10d.")]
RdzvId = Annotated[str | None, typer.Option(help="Name of the job, equal on all nodes (c10d).")]
RdzvEndpoint = Annotated[str | None, typer.Option(help="HOST:PORT where the nodes meet.")]
MaxRestarts = Annotated[int, typer.Option(help="Restart the ranks so often after a crash.")]
GraceSeconds = Annotated[float, typer.Option(help="Time to save after SIGINT, SIGTERM or SIGUSR1.")]
JoinTimeout = Annotated[float, typer.Option(help="Seconds to wait for the other nodes.")]
NodeTimeout = Annotated[float, typer.Option(help="Seconds of silence after which a node is lost.")]
SkipConnectionCheck = Annotated[
    bool,
    typer.Option("--skip-connection-check", help="Start ranks without trying that each node can talk to each other."),
]


def launch_options(ctx: typer.Context, **more: Any) -> Any:
    """The `launch.options.LaunchOptions` that the running command was given, of those it has; `more` are its own."""
    from allranks.launch.spec.options import LaunchOptions

    asked = ctx.params
    same = (
        *("nnodes", "node_rank", "nproc_per_node", "master_addr", "master_port", "rdzv_backend", "rdzv_id"),
        *("rdzv_endpoint", "max_restarts", "launcher", "grace_seconds", "accelerate_config"),
        "skip_connection_check",
    )
    return LaunchOptions(
        **{name: asked[name] for name in same if name in asked},
        join_seconds=asked["join_timeout"],
        silence_seconds=asked["node_timeout"],
        **more,
    )


def node_options(ctx: typer.Context) -> Any:
    """The `launch.where.NodeOptions` that the running command was given."""
    from allranks.launch.spec.where import NodeOptions

    asked = ctx.params
    return NodeOptions(
        asked["hosts"], asked["hostfile"], asked["remote_start"], asked["python"], tuple(asked["export"] or ())
    )


def words_given(ctx: typer.Context, names: Collection[str]) -> list[str]:
    """Those of these parameters that the running command was given, as the words for another command of ours."""
    words: list[str] = []
    for param in ctx.command.params:
        if param.name not in names or not is_given(ctx, param.name):
            continue
        value = ctx.params[param.name]
        if isinstance(value, bool):
            words.append(param.opts[0])
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                words += [param.opts[0], str(one)]
    return words
