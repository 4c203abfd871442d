"""`allranks stacks`: what every rank does now."""

import json
from typing import Annotated

import typer

from allranks.cli.help import new_app
from allranks.cli.run_argument import Run, run_dir

app = new_app()


@app.command(epilog="Example: allranks stacks outputs/run")
def stacks(
    run: Run,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
    seconds: Annotated[
        float, typer.Option("--seconds", min=1.0, max=60.0, help="How long ranks may take to answer.")
    ] = 5.0,
    all_threads: Annotated[
        bool, typer.Option("--all-threads", help="Also threads beside the one that trains.")
    ] = False,
) -> None:
    """Show where all ranks of a running RUN are: their Python stacks, ranks at one place together.

    Asks the run's launcher, from any place that sees node 0's output_dir; the run goes on undisturbed. Where no
    launcher can be asked, the ranks of this machine are shown. Ends with 1 where there is none.
    """
    import sys
    from functools import partial

    from allranks.evidence.on_demand import stacks_everywhere, stacks_here, text_of
    from allranks.evidence.requests import NoLauncher
    from allranks.live.launcher import no_launcher
    from allranks.observe import say

    of = run_dir(run)
    try:
        told = stacks_everywhere(of.path, seconds=seconds, no_launcher=partial(no_launcher, of))
    except NoLauncher as why:
        say(f"note: {why}: only ranks of this machine are looked for", file=sys.stderr)
        told = stacks_here(of.path, seconds=seconds)
    for line in [json.dumps(told, indent=1)] if as_json else text_of(told, all_threads=all_threads):
        say(line)


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("stacks")
