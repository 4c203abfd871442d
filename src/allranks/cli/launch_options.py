"""The options about nodes and launchers, which `train`, `run`, `check` and `bench-scaling` have in common."""

import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from allranks.cli.train_words import is_given

Command = TypeVar("Command", bound=Callable[..., None])
RemoteStart = Annotated[str, typer.Option(help="How nodes are started: auto, ssh, srun, pbsdsh or local.")]
Python = Annotated[str | None, typer.Option(help="The interpreter on the nodes. Default: the one here.")]


class _Shared:
    """The options with their defaults, in the order of the help."""

    hosts: Annotated[
        str | None, typer.Option(help="Start on all these nodes, over ssh: node[0-3],gpu7. The first is node 0.")
    ] = None
    hostfile: Annotated[
        str | None, typer.Option(help="The same from a file: one host a line, perhaps with slots=N.")
    ] = None
    remote_start: RemoteStart = "auto"
    python: Python = None
    export: Annotated[
        list[str] | None, typer.Option(metavar="NAME[=VALUE]", help="Also hand on this variable; may come often.")
    ] = None
    nproc_per_node: Annotated[
        int | None, typer.Option(help="Processes on this node. Default: its number of GPUs; 1 on a CPU.")
    ] = None
    nnodes: Annotated[str | None, typer.Option("--nnodes", "--num-nodes", help="Nodes that take part.")] = None
    node_rank: Annotated[int | None, typer.Option(help="Number of this node, from 0.")] = None
    master_addr: Annotated[str | None, typer.Option(help="Address of node 0.")] = None
    master_port: Annotated[int | None, typer.Option(help="Port on node 0. Default: 29500; c10d 29400.")] = None
    launcher: Annotated[str | None, typer.Option(help="torchrun (default), accelerate, deepspeed or ray.")] = None
    accelerate_config: Annotated[
        str | None, typer.Option(help="A file of `accelerate config` of your own (--launcher accelerate).")
    ] = None
    rdzv_backend: Annotated[str | None, typer.Option(help="static (default) or c10d.")] = None
    rdzv_id: Annotated[str | None, typer.Option(help="Name of the job, equal on all nodes (c10d).")] = None
    rdzv_endpoint: Annotated[str | None, typer.Option(help="HOST:PORT where the nodes meet.")] = None
    max_restarts: Annotated[int, typer.Option(help="Restart the ranks so often after a crash.")] = 0
    grace_seconds: Annotated[float, typer.Option(help="Time to save after SIGINT, SIGTERM or SIGUSR1.")] = 300.0
    join_timeout: Annotated[float, typer.Option(help="Seconds to wait for the other nodes.")] = 600.0
    node_timeout: Annotated[float, typer.Option(help="Seconds of silence after which a node is lost.")] = 10.0
    skip_connection_check: Annotated[
        bool,
        typer.Option(
            "--skip-connection-check", help="Start ranks without trying that each node can talk to each other."
        ),
    ] = False


def with_launch_options(*, without: Collection[str] = (), **defaults: Any) -> Callable[[Command], Command]:
    """Give a command these options in the place of its last parameter, `**launch`.

    `without`: the names of those that it has not; `defaults`: where its own are others.
    """
    hints = {name: hint for name, hint in get_type_hints(_Shared, include_extras=True).items() if name not in without}

    def extend(command: Command) -> Command:
        own = list(inspect.signature(command).parameters.values())[:-1]
        shared = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=hint,
                default=defaults.get(name, getattr(_Shared, name)),
            )
            for name, hint in hints.items()
        ]
        # Where typer reads them.
        command.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared)}
        return command

    return extend


def launch_options(ctx: typer.Context, **more: Any) -> Any:
    """The `launch.spec.options.LaunchOptions` that the running command was given; `more` are its own."""
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
    """The `launch.spec.where.NodeOptions` that the running command was given."""
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
