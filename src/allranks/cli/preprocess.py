"""`allranks preprocess`: make the prepared data set, and show what is trained and what is masked."""

import json
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from allranks import interrupt
from allranks.cli.config_keys import ConfigKeysCommand, IgnoreUnsupported, given
from allranks.cli.help import new_app

app = new_app()


@app.command(
    cls=ConfigKeysCommand,
    options_metavar="[OPTIONS] [--CONFIG-KEY VALUE]...",
    epilog="Example: allranks preprocess config.yaml --show 3 --sequence-len 1024",
)
def preprocess(
    ctx: typer.Context,
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file with Axolotl's keys.", show_default=False)
    ],
    show: Annotated[
        int, typer.Option(min=0, help="Print this many samples, with what is trained and what is masked.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print path, fingerprint and counts as JSON.")] = False,
    ignore_unsupported: IgnoreUnsupported = False,
) -> None:
    """Make the prepared data set of CONFIG, or open it if it was made before.

    Any key of the config is an option: --sequence-len 1024, --sample-packing true.
    """
    from allranks.config import load_config
    from allranks.config.overrides import parse_overrides
    from allranks.data import load_tokenizer, prepare
    from allranks.data.show import show_samples, stats_lines
    from allranks.model.files import stored_config
    from allranks.model.positions import position_warning
    from allranks.model.stored_kind import stored_kind_warning
    from allranks.observe import libraries_aside, say

    overrides = parse_overrides(given(ctx).config)
    cfg = load_config(config, overrides, ignore_unsupported=ignore_unsupported)
    for line in cfg.remarks:
        say(line, file=sys.stderr)
    # SIGTERM (of a scheduler, or `timeout`) cleans up as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    try:
        with libraries_aside():
            prepared = prepare(cfg, report=lambda line: say(line, file=sys.stderr))
    finally:
        signal.signal(signal.SIGTERM, before)
    stored = stored_config(cfg)
    for told in filter(None, (position_warning(stored, cfg), stored_kind_warning(stored, cfg))):
        say(f"warning: {told}", file=sys.stderr)
    interrupt.means(f"not all was shown; the prepared data set is whole: {prepared.path}")
    if as_json:
        found = {"path": str(prepared.path), "fingerprint": prepared.fingerprint, "stats": prepared.stats}
        typer.echo(json.dumps(found, indent=1))
        return
    if show:
        show_samples(prepared, load_tokenizer(cfg), show)
    for line in stats_lines(prepared.stats):
        say(line)
    say(f"prepared: {prepared.path} (fingerprint {prepared.fingerprint[:16]})")


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("preprocess")
