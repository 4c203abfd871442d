"""`allranks check`: look at all nodes before a run."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from allranks.cli.config_keys import given
from allranks.cli.launch_options import (
    AccelerateConfig,
    Export,
    GraceSeconds,
    Hostfile,
    Hosts,
    JoinTimeout,
    Launcher,
    MasterAddr,
    MasterPort,
    MaxRestarts,
    Nnodes,
    NodeRank,
    NodeTimeout,
    NprocPerNode,
    Python,
    RdzvBackend,
    RdzvEndpoint,
    RdzvId,
    RemoteStart,
    SkipConnectionCheck,
    launch_options,
    node_options,
)
from allranks.cli.train import TrainCommand

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(
    cls=TrainCommand,
    options_metavar="[OPTIONS] [--CONFIG-KEY VALUE]... [-- LAUNCHER-OPTIONS]",
    epilog="Example: allranks check config.yaml --hosts node[0-3] --write-hosts lists",
)
def check(
    ctx: typer.Context,
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with Axolotl's keys.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Only what every start of several nodes checks by itself.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Compare every byte of the model's weights, however large they are.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
    write_hosts: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write lists of the nodes that pass and fail, for ssh, Slurm and PBS."),
    ] = None,
    hosts: Hosts = None,
    hostfile: Hostfile = None,
    remote_start: RemoteStart = "auto",
    python: Python = None,
    export: Export = None,
    nproc_per_node: NprocPerNode = None,
    nnodes: Nnodes = None,
    node_rank: NodeRank = None,
    master_addr: MasterAddr = None,
    master_port: MasterPort = None,
    launcher: Launcher = None,
    accelerate_config: AccelerateConfig = None,
    rdzv_backend: RdzvBackend = None,
    rdzv_id: RdzvId = None,
    rdzv_endpoint: RdzvEndpoint = None,
    max_restarts: MaxRestarts = 0,
    grace_seconds: GraceSeconds = 300.0,
    join_timeout: JoinTimeout = 60.0,
    node_timeout: NodeTimeout = 10.0,
    skip_connection_check: SkipConnectionCheck = False,
    ignore_unsupported: Annotated[
        bool, typer.Option("--ignore-unsupported", help="Go on without Axolotl keys that allranks does not support.")
    ] = False,
) -> None:
    """Check all nodes that `allranks train` with the same options would start on, and start nothing.

    From one node with --hosts or --hostfile, inside a job of Slurm or PBS without them, or by hand on each node.
    Ends with 0 where the run could start, and with 3 where a check fails.
    """
    from allranks.config.overrides import parse_overrides
    from allranks.launch.check import CheckOptions
    from allranks.launch.check import check as check_nodes

    words = given(ctx)
    options = launch_options(ctx, launcher_args=tuple(words.launcher), accelerate_options=words.settings)
    code = check_nodes(
        config,
        parse_overrides(words.config),
        options,
        node_options(ctx),
        CheckOptions(quick, deep, as_json, write_hosts),
        argv=sys.argv[1:],
        ignore_unsupported=ignore_unsupported,
    )
    raise typer.Exit(code)


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("check")
