"""`allranks check`: look at all nodes before a run."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from allranks.cli.config_keys import IgnoreUnsupported, given
from allranks.cli.help import new_app
from allranks.cli.launch_options import launch_options, node_options, with_launch_options
from allranks.cli.train import TrainCommand

app = new_app()


@app.command(
    cls=TrainCommand,
    options_metavar="[OPTIONS] [--CONFIG-KEY VALUE]... [-- LAUNCHER-OPTIONS]",
    epilog="Example: allranks check config.yaml --hosts node[0-3] --write-hosts lists",
)
@with_launch_options(join_timeout=60.0)
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
    ignore_unsupported: IgnoreUnsupported = False,
    **launch: Any,
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
