"""`allranks bundle`: what a bug report needs of a run, in one file."""

from pathlib import Path
from typing import Annotated

import typer

from allranks.cli.run_argument import Run, run_dir

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(epilog="Example: allranks bundle model-out --output report.tar.gz")
def bundle(
    run: Run,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write. Default: bundle-RUN.tar.gz in the current directory."),
    ] = None,
) -> None:
    """Pack what a bug report needs of a run, without secrets: record, checks, logs, events, evidence, versions.

    Of all nodes whose files are on this disk. A list of what is in it is printed, and is in it as CONTENTS.
    """
    from allranks.bundle.pack import pack
    from allranks.errors import UsageError
    from allranks.listing import printable
    from allranks.live.look import look
    from allranks.live.picture import picture
    from allranks.observe import say

    of = run_dir(run)
    if not (of.manifest.exists() or of.all_events() or of.live.exists() or (of.path / "logs").is_dir()):
        raise UsageError(f"{of.path} is no run's output_dir: it has no manifest.json, events, live.json or logs")
    target = Path(f"bundle-{of.path.resolve().name}.tar.gz") if output is None else output.expanduser()
    if target.is_dir():
        target /= f"bundle-{of.path.resolve().name}.tar.gz"
    if not target.parent.is_dir():
        raise UsageError(f"--output {target}: there is no folder {target.parent}; make it, or name another file")
    try:
        seen = look(of)
        status = picture(seen.table, width=140, notes=seen.notes)
    except UsageError as error:
        status = str(error)
    made = pack(of, target, more={"status.txt": status + "\n"})
    say(made.contents.rstrip("\n"))
    say(f"\n{printable(made.path)}: {made.path.stat().st_size:,} bytes")


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("bundle")
