"""`allranks bench-scaling`: time a config on several numbers of nodes."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from allranks.cli.config_keys import ConfigKeysCommand, IgnoreUnsupported, given
from allranks.cli.help import new_app
from allranks.cli.launch_options import launch_options, node_options, with_launch_options, words_given

app = new_app()

# Each size is one start, without a restart, and a rendezvous of its own.
_NOT_HERE = ("rdzv_backend", "rdzv_id", "rdzv_endpoint", "max_restarts", "grace_seconds")
_FOR_TRAIN = ("launcher", "accelerate_config", "join_timeout", "node_timeout", "skip_connection_check")
_FOR_NODES = ("remote_start", "python", "export", "nproc_per_node", "master_addr")


@app.command(
    cls=ConfigKeysCommand,
    options_metavar="[OPTIONS] [--CONFIG-KEY VALUE]...",
    epilog="Example: allranks bench-scaling config.yaml --nodes 1,2,4 --hosts node[0-3]",
)
@with_launch_options(without=_NOT_HERE)
def bench_scaling(
    ctx: typer.Context,
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with Axolotl's keys.")],
    nodes: Annotated[str, typer.Option(help="Numbers of nodes, the first ones that there are: 1,2,4.")] = "1",
    steps: Annotated[int, typer.Option(help="Steps that are timed of each, after 5 of warm-up.")] = 30,
    keep_batch: Annotated[
        bool,
        typer.Option(
            "--keep-batch",
            help="Keep the global batch of most nodes: fewer accumulate more. Default: each rank keeps its batch.",
        ),
    ] = False,
    link: Annotated[
        str | None, typer.Option(help="What joins the nodes, to compare with the plan: 100gbit, 8xib-ndr.")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the table here too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the run directories in OUTPUT_DIR/bench-scaling.")
    ] = False,
    ignore_unsupported: IgnoreUnsupported = False,
    **launch: Any,
) -> None:
    """Time a few steps of CONFIG on each number of nodes: tokens/s, efficiency, and where the rest is lost.

    From one node with --hosts or --hostfile, inside a job of Slurm or PBS without them, or by hand on each node.
    Nothing is saved or evaluated. A size that fails is named, and the others are told all the same.
    """
    from allranks.config.overrides import parse_overrides
    from allranks.scaling import ScalingBench
    from allranks.scaling import bench_scaling as bench
    from allranks.scaling.sizes import parse_sizes

    asked = ScalingBench(
        config,
        parse_overrides(given(ctx).config),
        sizes=parse_sizes(nodes),
        steps=steps,
        keep_batch=keep_batch,
        keep=keep,
        csv=csv,
        as_json=as_json,
        ignore_unsupported=ignore_unsupported,
        launch=launch_options(ctx),
        nodes=node_options(ctx),
        link=link,
        words=words_given(ctx, _FOR_TRAIN),
        node_words=words_given(ctx, _FOR_NODES),
        argv=sys.argv[1:],
    )
    raise typer.Exit(bench(asked))


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("bench-scaling")
