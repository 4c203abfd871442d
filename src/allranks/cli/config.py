"""`allranks config`: the resolved config, the schema of all keys, other trainers' configs as ours."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from allranks.cli.config_keys import ConfigKeysCommand, IgnoreUnsupported, given
from allranks.cli.help import new_app

app = new_app(
    no_args_is_help=True,
    help="Show the resolved config or the schema of all keys; import another trainer's config.",
    epilog="Example: allranks config show config.yaml --learning-rate 1e-4",
)


@app.command(
    cls=ConfigKeysCommand,
    short_help="Check a config, and print it with every default filled in.",
    options_metavar="[OPTIONS] [--CONFIG-KEY VALUE]...",
    epilog="Example: allranks config show config.yaml --learning-rate 1e-4 --json",
)
def show(
    ctx: typer.Context,
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file with Axolotl's keys.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")] = False,
    ignore_unsupported: IgnoreUnsupported = False,
) -> None:
    """Check CONFIG and print it as it will be used, every default filled in. The output is itself a config."""
    from allranks.config import load_config
    from allranks.config.overrides import parse_overrides
    from allranks.observe.enduring import say

    overrides = parse_overrides(given(ctx).config)
    resolved = load_config(config, overrides, ignore_unsupported=ignore_unsupported)
    for line in resolved.remarks:
        say(line, file=sys.stderr)
    print(json.dumps(resolved.flat(), indent=2) if as_json else resolved.yaml(), end="\n" if as_json else "")


@app.command(
    short_help="Print the JSON schema of a config, for editors and programs.",
    epilog="Example: allranks config schema > allranks.schema.json",
)
def schema() -> None:
    """Print the JSON schema of a config file, for editors and programs."""
    from allranks.config.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command(
    "import",
    short_help="Turn a config of another trainer into one of ours.",
    epilog="Example: allranks config import qwen_lora_sft.yaml -o config.yaml",
)
def import_(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="YAML, JSON or shell script of the other trainer.", show_default=False),
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- ARGUMENTS", help="Its arguments, which win over the file.", show_default=False),
    ] = None,
    tool: Annotated[
        str | None, typer.Option("--from", metavar="TOOL", help="trl, llama-factory or ms-swift; found if not given.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the config there.")] = None,
) -> None:
    """Turn a config of TRL, LLaMA-Factory or ms-swift into one of ours that means the same.

    Each key that could not be carried over is a line on stderr, and a comment in the config.
    """
    from allranks.errors import UsageError
    from allranks.importing import import_config
    from allranks.importing.write import written
    from allranks.observe.enduring import say

    given_words = list(words or [])
    if file is not None and not file.exists() and file.suffix == "":
        given_words, file = [str(file), *given_words], None
    if file is not None and not file.is_file():
        raise UsageError(f"{file}: no such file")
    imported = import_config(file, given_words, tool)
    for line in imported.lost:
        say(f"not carried over: {line}", file=sys.stderr)
    for line in imported.notes:
        say(f"note: {line}", file=sys.stderr)
    text = written(imported)
    if output is None:
        print(text, end="")
    elif output.exists():
        raise UsageError(f"{output} exists; name a new file")
    else:
        from allranks import durable
        from allranks.config.schema import EDITOR_LINE, write_schema

        durable.write(output, f"{EDITOR_LINE}\n{text}")
        write_schema(output.parent)


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("config")
