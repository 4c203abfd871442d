"""`allranks run`: start anyone's program."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

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
from allranks.errors import UsageError


class RunCommand(TyperCommand):
    """Everything after a lone `--` is the program's, whatever it looks like."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [self.options_metavar or ""]  # `stray` is not for use

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        cut = args.index("--") if "--" in args else len(args)
        ctx.meta[__name__] = args[cut + 1 :]
        return super().parse_args(ctx, [_spelt(word) for word in args[:cut]])


def _spelt(word: str) -> str:
    """Options with `_` for `-`, as launchers take them."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(
    cls=RunCommand,
    options_metavar="[OPTIONS] -- PROGRAM [ARGUMENTS]...",
    epilog="Example: allranks run --hosts node[0-3] --nproc-per-node 8 -- -m axolotl.cli.train config.yaml",
)
def run(
    ctx: typer.Context,
    stray: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    output_dir: Annotated[Path, typer.Option(help="Where logs and the record of the run are kept.")] = Path(
        "allranks-run"
    ),
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
    launcher: Launcher = "torchrun",
    accelerate_config: AccelerateConfig = None,
    rdzv_backend: RdzvBackend = None,
    rdzv_id: RdzvId = None,
    rdzv_endpoint: RdzvEndpoint = None,
    max_restarts: MaxRestarts = 0,
    grace_seconds: GraceSeconds = 300.0,
    join_timeout: JoinTimeout = 600.0,
    node_timeout: NodeTimeout = 10.0,
    skip_connection_check: SkipConnectionCheck = False,
    hang_timeout: Annotated[
        float | None,
        typer.Option(help="End it when no rank has written anything for so many seconds, and say what each did."),
    ] = None,
    ask_ranks: Annotated[
        bool,
        typer.Option(help="Ranks that are Python's tell where they are when they hang, on a signal (61)."),
    ] = True,
) -> None:
    """Start any program that torchrun can start, on this machine or on all nodes: anyone's trainer.

    PROGRAM is a Python script, `-m MODULE`, or an executable. Each of its processes gets RANK, LOCAL_RANK, WORLD_SIZE,
    MASTER_ADDR and MASTER_PORT, and a log of its own in OUTPUT_DIR/logs.
    """
    from allranks.launch.run import run_program

    program = ctx.meta[__name__]
    if stray or not program:
        found = f", found {' '.join(stray)}" if stray else ""
        raise UsageError(f"the program and its arguments follow a lone `--`{found}: allranks run [OPTIONS] -- train.py")
    raise typer.Exit(
        run_program(
            program,
            launch_options(ctx),
            node_options(ctx),
            output_dir,
            argv=sys.argv[1:],
            hang_seconds=hang_timeout,
            asks=ask_ranks,
        )
    )


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("run")
