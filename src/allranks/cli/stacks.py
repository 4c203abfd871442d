"""`allranks stacks`: what every rank does now."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(epilog="Example: allranks stacks outputs/run")
def stacks(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of the run: the config's output_dir.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
    seconds: Annotated[
        float, typer.Option("--seconds", min=1.0, max=60.0, help="How long ranks may take to answer.")
    ] = 5.0,
    all_threads: Annotated[
        bool, typer.Option("--all-threads", help="Also threads beside the one that trains.")
    ] = False,
) -> None:
    """Show where the ranks of a running RUN are on this machine: their Python stacks, ranks at one place together.

    The run goes on undisturbed. On another node, type the same there. Ends with 1 where no rank runs here.
    """
    from allranks.evidence.on_demand import stacks_here, text_of
    from allranks.observe import say

    told = stacks_here(run, seconds=seconds)
    for line in [json.dumps(told, indent=1)] if as_json else text_of(told, all_threads=all_threads):
        say(line)


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("stacks")
