"""`allranks plan`: does it fit, how fast is it, what does it cost, and which strategy is best on these nodes."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from allranks.cli.config_keys import ConfigKeysCommand, IgnoreUnsupported, given
from allranks.cli.help import new_app

_MOST_NODES, _MOST_GPUS = 4096, 128
"""Of a plan, which goes through the ranks one by one: larger numbers are slips."""

app = new_app()


@app.command(
    cls=ConfigKeysCommand,
    options_metavar="[OPTIONS] [--CONFIG-KEY VALUE]...",
    epilog="Example: allranks plan config.yaml --nodes 4 --gpus-per-node 8 --gpu h100-80gb --link 8xib-ndr",
)
def plan(
    ctx: typer.Context,
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG",
            help="YAML file with Axolotl's keys; or a model alone: its config.json, or the folder that has it.",
            show_default=False,
        ),
    ],
    nodes: Annotated[int, typer.Option(min=1, max=_MOST_NODES, help="Number of nodes.")] = 1,
    gpus_per_node: Annotated[
        int | None,
        typer.Option(
            "--gpus-per-node",
            min=1,
            max=_MOST_GPUS,
            help="GPUs, and so ranks, of each; this machine's, or 8 where --gpu is given.",
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Their kind, such as h100-80gb or l40s; this machine's if not given."),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What joins the nodes: 100gbit (Ethernet of that rate), ib-ndr, 8xib-ndr; if not given what "
            "`allranks check` measured for this config, or else 100gbit.",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="BLOCKS", help="Effective batch to keep on these nodes; the config's if not given."
        ),
    ] = None,
    device_file: Annotated[
        Path | None,
        typer.Option("--device-file", metavar="FILE", help="TOML file with GPUs or links of your own."),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="First measure this machine for a minute or two, and keep what was measured."),
    ] = False,
    trace: Annotated[
        bool,
        typer.Option("--trace", help="Run the real engine on tensors without content for the memory: a minute."),
    ] = False,
    price_per_gpu_hour: Annotated[
        float | None,
        typer.Option("--price-per-gpu-hour", metavar="X", min=0, help="For the cost, in any currency."),
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="Show every micro-batch size, with and without recomputation.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
    ignore_unsupported: IgnoreUnsupported = False,
) -> None:
    """Predict memory, speed and cost of CONFIG on these nodes, under every strategy, the best first.

    It needs no GPU and no weights, and starts nothing. Any key of the config is an option: --sequence-len 4096.
    """
    from allranks.config.overrides import parse_overrides
    from allranks.launch.plan.make import Asked, make_plan
    from allranks.launch.stop import ended_in_order
    from allranks.observe.enduring import say
    from allranks.observe.folding import terminal_width
    from allranks.plan.message import to_json
    from allranks.plan.text import in_full

    asked = Asked(nodes, gpus_per_node, gpu, link, device_file, calibrate, trace, price_per_gpu_hour, batch)
    with ended_in_order():
        made = make_plan(config, parse_overrides(given(ctx).config), asked, ignore_unsupported=ignore_unsupported)
    for line in made.remarks:
        say(line, file=sys.stderr)
    shown = to_json(made) if as_json else in_full(made, shows_all=show_all, width=terminal_width(sys.stdout))
    say(shown)


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("plan")
