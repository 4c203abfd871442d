"""`allranks top`: every rank of a run, live."""

from typing import Annotated

import typer

from allranks.cli.help import new_app
from allranks.cli.run_argument import Run, run_dir

app = new_app()


@app.command(epilog="Example: allranks top model-out")
def top(
    run: Run,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line, each time it changed.")] = False,
) -> None:
    """Every rank of a run, live: phase, step, speed, waiting for data, memory, GPU, network, and who is slow or hangs.

    From any terminal of a node that sees the run directory; Ctrl-C ends it, not the run. Without a terminal, a line
    each time that the run has come further. It ends by itself when the run does.
    """
    from allranks.cli.watch import watch_run

    watch_run(run_dir(run), as_json=as_json)


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("top")
