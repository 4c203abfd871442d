"""`allranks train`: start a run."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from allranks.cli.config_keys import ConfigKeysCommand, IgnoreUnsupported, given
from allranks.cli.help import new_app
from allranks.cli.launch_options import launch_options, node_options, with_launch_options
from allranks.cli.train_words import is_given
from allranks.errors import UsageError


class TrainCommand(ConfigKeysCommand):
    after_dashes = True


app = new_app()


@app.command(
    cls=TrainCommand,
    options_metavar="[OPTIONS] [--CONFIG-KEY VALUE]... [-- LAUNCHER-OPTIONS]",
    epilog="Example: allranks train config.yaml --nnodes 2 --node-rank 0 --master-addr 10.0.0.1 --max-steps 20",
)
@with_launch_options()
def train(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="YAML file with Axolotl's keys.", show_default=False)
    ] = None,
    from_manifest: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Start the run of this manifest.json again, into OUTPUT_DIR-again."),
    ] = None,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="Only two steps, judged: go or no-go (3), with a certificate for the real start."),
    ] = False,
    ignore_unsupported: IgnoreUnsupported = False,
    **launch: Any,
) -> None:
    """Train what CONFIG says: alone, on several processes of this machine, or as one node of several.

    On all nodes at once with --hosts or --hostfile, or inside a job of Slurm or PBS that has several nodes.

    Any key of the config is an option: --max-steps 2, --fsdp-config.offload-params true.
    After a lone -- the launcher's own options and config keys are taken.
    """
    from allranks.config.overrides import parse_overrides
    from allranks.launch.start import start

    words = given(ctx)
    options = launch_options(ctx, launcher_args=tuple(words.launcher), accelerate_options=words.settings)
    overrides = parse_overrides(words.config)
    nodes = node_options(ctx)
    fingerprint = None
    if from_manifest is not None:
        config, options, fingerprint = _again(ctx, config, from_manifest, overrides, options, nodes)
    if config is None:
        raise UsageError("which config? `allranks train CONFIG`, or `allranks train --from-manifest FILE`")
    raise typer.Exit(
        start(
            config,
            overrides,
            options,
            nodes,
            argv=sys.argv[1:],
            ignore_unsupported=ignore_unsupported,
            fingerprint=fingerprint,
            smoke=smoke,
        )
    )


def _again(ctx: typer.Context, config: Path | None, manifest: Path, *asked: Any) -> tuple[Path, Any, str | None]:
    from allranks.launch.rerun import from_manifest

    if config is not None:
        raise UsageError(f"{config} and --from-manifest {manifest} both say what is trained: give one of them")
    fields = {"join_timeout": "join_seconds", "node_timeout": "silence_seconds"}
    chosen = {fields.get(name, name) for name in ctx.params if is_given(ctx, name)}
    if given(ctx).launcher:
        chosen.add("launcher_args")
    again = from_manifest(manifest, *asked, chosen=chosen)
    return again.config, again.options, again.fingerprint


def as_module() -> NoReturn:
    """`python -m allranks.cli.train CONFIG`, Axolotl's older form: one rank under a launcher, else `allranks train`."""
    from allranks.cluster.identity import is_numbered

    if is_numbered(os.environ):
        from allranks.train.__main__ import main as train_as_rank

        train_as_rank(sys.argv[1:])
    from allranks.cli.main import main_of

    main_of("train")


if __name__ == "__main__":
    as_module()
