"""`allranks bundle`: what a bug report needs of a run, in one file."""

from pathlib import Path
from typing import Annotated

import typer

from allranks.cli.help import new_app
from allranks.cli.launch_options import Python, RemoteStart
from allranks.cli.run_argument import Run, run_dir

app = new_app()


@app.command(epilog="Example: allranks bundle model-out --output report.tar.gz")
def bundle(
    run: Run,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write; - for standard output. Default: bundle-RUN.tar.gz in this directory."
        ),
    ] = None,
    hosts: Annotated[
        str | None,
        typer.Option(help="Also ask these nodes: node[0-3],gpu7. Default: those that have nothing on this disk."),
    ] = None,
    hostfile: Annotated[str | None, typer.Option(help="The same from a file: a host a line.")] = None,
    remote_start: RemoteStart = "auto",
    python: Python = None,
    only_here: Annotated[bool, typer.Option("--only-here", help="Ask no other node.")] = False,
) -> None:
    """Pack what a bug report needs of a run, without secrets: record, checks, logs, events, evidence, versions.

    Of all nodes: those with disks of their own are asked over ssh, as they are started. A list of what is in it is
    printed, and is in it as CONTENTS; it names the nodes that gave no answer.
    """
    import sys

    from allranks.errors import UsageError
    from allranks.launch.all_nodes.bundle import bundle_of_all
    from allranks.launch.spec.where import NodeOptions
    from allranks.listing import printable
    from allranks.live.look import look
    from allranks.live.picture import picture
    from allranks.observe import say
    from allranks.observe.rundir import has_a_record

    of = run_dir(run)
    if not has_a_record(of):
        raise UsageError(f"{of.path} is no run's output_dir: it has no manifest.json, events, live.json or logs")
    if only_here and (hosts is not None or hostfile is not None):
        raise UsageError("--only-here asks no other node, and --hosts or --hostfile names some: give one of them")
    is_stream = output is not None and str(output) == "-"
    if is_stream and sys.stdout.isatty():
        raise UsageError("--output - writes the archive itself, and standard output is a terminal: name a file")
    target = Path(f"bundle-{of.path.resolve().name}.tar.gz") if output is None else output.expanduser()
    if not is_stream and target.is_dir():
        target /= f"bundle-{of.path.resolve().name}.tar.gz"
    if not target.parent.is_dir():
        raise UsageError(f"--output {target}: there is no folder {target.parent}; make it, or name another file")
    try:
        seen = look(of)
        status = picture(seen.table, width=140, notes=seen.notes)
    except UsageError as error:
        status = str(error)
    asked = NodeOptions(hosts, hostfile, remote_start, python)
    texts = {"status.txt": status + "\n"}
    out = sys.stdout.buffer if is_stream else target
    made = bundle_of_all(of, out, asked, only_here=only_here, more=texts)
    to = sys.stderr if is_stream else sys.stdout
    say(made.contents.rstrip("\n"), file=to)
    if made.path is not None:
        say(f"\n{printable(made.path)}: {made.path.stat().st_size:,} bytes")


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("bundle")
