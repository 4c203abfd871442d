"""`allranks run`: start anyone's program."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from allranks.cli.help import new_app
from allranks.cli.launch_options import launch_options, node_options, with_launch_options
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


app = new_app()


@app.command(
    cls=RunCommand,
    options_metavar="[OPTIONS] -- PROGRAM [ARGUMENTS]...",
    epilog="Example: allranks run --hosts node[0-3] --nproc-per-node 8 -- -m axolotl.cli.train config.yaml",
)
@with_launch_options(launcher="torchrun")
def run(
    ctx: typer.Context,
    stray: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    output_dir: Annotated[Path, typer.Option(help="Where logs and the record of the run are kept.")] = Path(
        "allranks-run"
    ),
    hang_timeout: Annotated[
        float | None,
        typer.Option(help="End it when no rank has written anything for so many seconds, and say what each did."),
    ] = None,
    ask_ranks: Annotated[
        bool,
        typer.Option(help="Ranks that are Python's tell where they are when they hang, on a signal (61)."),
    ] = True,
    **launch: Any,
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
