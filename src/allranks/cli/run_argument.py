"""The argument RUN of commands that look at a run: its folder, or the config that it was started with."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from allranks.observe import RunDir

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run directory (the config's output_dir), or the config.yaml itself.")
]


def run_dir(named: Path) -> "RunDir":
    """The directory of the run that is meant, which is there. Raises UsageError where it is not."""
    from allranks.errors import UsageError
    from allranks.observe import RunDir

    if named.suffix in (".yaml", ".yml") and named.is_file():
        from allranks.config.load import load_config

        named = Path(load_config(named, ignore_unsupported=True).checkpoint.output_dir)
    run = RunDir(named.expanduser())
    if not run.path.is_dir():
        raise UsageError(
            f"{run.path} is no folder on this node: name the run's output_dir or config, on a node whose disk has it"
        )
    return run
