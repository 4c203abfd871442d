"""`allranks rehearse`: a whole run of several nodes on this machine's CPU, with a shrunken model."""

from pathlib import Path
from typing import Annotated

import typer

from allranks.cli.config_keys import ConfigKeysCommand, IgnoreUnsupported, given
from allranks.cli.help import new_app

app = new_app()


@app.command(
    cls=ConfigKeysCommand,
    options_metavar="[OPTIONS] [--CONFIG-KEY VALUE]...",
    epilog="Example: allranks rehearse config.yaml --nnodes 4",
)
def rehearse(
    ctx: typer.Context,
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with Axolotl's keys.")],
    nnodes: Annotated[int, typer.Option("--nnodes", "--num-nodes", help="Nodes, all on this machine.")] = 2,
    nproc_per_node: Annotated[int, typer.Option(help="Processes of each node.")] = 1,
    launcher: Annotated[str | None, typer.Option(help="torchrun (default), accelerate or deepspeed.")] = None,
    rdzv_backend: Annotated[str | None, typer.Option(help="static (default) or c10d.")] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Leave model, config, run and logs in this new folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
    ignore_unsupported: IgnoreUnsupported = False,
) -> None:
    """Rehearse the whole run on this machine's CPU, as several nodes, with a small random copy of the model.

    Nodes meet, data is prepared, two steps are made and saved, another number of ranks goes on from there, the result
    is exported. Only a part of the data is read, no weights are, and nothing is written to output_dir.
    """
    from allranks.config.overrides import parse_overrides
    from allranks.launch.spec.local_nodes import words_for_local_nodes
    from allranks.rehearse import Rehearsal
    from allranks.rehearse import rehearse as play

    asked = Rehearsal(
        config,
        parse_overrides(given(ctx).config),
        num_nodes=nnodes,
        nproc_per_node=nproc_per_node,
        words=words_for_local_nodes(launcher, rdzv_backend),
        keep=keep,
        as_json=as_json,
        ignore_unsupported=ignore_unsupported,
    )
    raise typer.Exit(play(asked))


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("rehearse")
