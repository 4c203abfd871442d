"""`allranks demo`: fine-tune a tiny model on this machine as two nodes, with no download."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            help="Folder to make for the demo. Default: the first free one of allranks-demo, allranks-demo-2, …",
        ),
    ] = None,
    files_only: Annotated[
        Path | None,
        typer.Option("--files-only", help="Only write the model, tokenizer, data and config.yaml into this folder."),
    ] = None,
) -> None:
    """Fine-tune a tiny model on this machine as two nodes, resume it on one process, export it, ask it.

    Tokenizer, data and model are made from this Python installation: nothing is downloaded. About two minutes.

    Example: allranks demo --files-only my-experiment
    """
    from allranks.demo.story import run_demo, write_only
    from allranks.errors import UsageError

    if files_only is not None:
        if directory is not None:
            raise UsageError("give either --dir (run the demo there) or --files-only (write its files there), not both")
        write_only(files_only)
    else:
        run_demo(directory)


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("demo")
