"""`allranks status`: what every rank of a run does now, or did last."""

from typing import Annotated

import typer

from allranks.cli.help import new_app
from allranks.cli.run_argument import Run, run_dir

app = new_app()


@app.command(epilog="Example: allranks status model-out")
def status(
    run: Run,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until the run ends; on a terminal as `top`.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """What every rank of a run does now, or did last, and how the run ended.

    From any terminal of a node that sees the run directory. It changes nothing, and ends with 0 however the run is.
    """
    import json
    import sys

    from allranks.live.look import look
    from allranks.live.picture import picture
    from allranks.observe import say
    from allranks.observe.folding import terminal_width

    if watch:
        from allranks.cli.watch import watch_run

        watch_run(run_dir(run), as_json=as_json)
        return
    seen = look(run_dir(run))
    if as_json:
        say(json.dumps(seen.to_message(), allow_nan=False))
    else:
        say(picture(seen.table, width=terminal_width(sys.stdout) or 80, notes=seen.notes))


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("status")
