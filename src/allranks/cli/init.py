"""`allranks init`: write a first config."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def init(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Folder or Hub id of the model.")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="File, folder or Hub id of the data.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="lora, qlora or full. Default: lora.")] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Number of nodes. Default: 1.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The config to write.")] = Path("config.yaml"),
) -> None:
    """Write a commented config: asks for what is not given (never where stdin is no terminal), and looks at the data.

    Example: allranks init --model Qwen/Qwen2.5-7B --data train.jsonl --method lora
    """
    from allranks import durable
    from allranks.config.load import load_config
    from allranks.config.schema import EDITOR_LINE, write_schema
    from allranks.errors import ConfigError, UsageError
    from allranks.init import first_config, glance
    from allranks.init.first_config import METHODS

    if output.exists():
        raise UsageError(f"{output} exists; name a new file with --output")
    asks = sys.stdin.isatty()
    for name, value in (("--model", model), ("--data", data)):
        if value is None and not asks:
            raise UsageError(f"{name} is missing, and stdin is no terminal to ask at; give it")
    model = model or typer.prompt("Model (folder or Hub id)")
    data = data or typer.prompt("Data (file, folder or Hub id)")
    seen = glance(data)
    print(f"{data}: {seen.fits}", file=sys.stderr)
    method = method or (typer.prompt(f"Method ({', '.join(METHODS)})", default="lora") if asks else "lora")
    if method not in METHODS:
        raise UsageError(f"--method {method}: expected {', '.join(METHODS)}")
    nodes = nodes or (typer.prompt("Number of nodes", default=1, type=int) if asks else 1)
    text = first_config(model, data, method, nodes, seen)
    durable.write(output, f"{EDITOR_LINE}\n{text}")
    try:
        load_config(output)
    except ConfigError:
        output.unlink()
        raise
    write_schema(output.parent)
    print(f"wrote {output}; next: allranks config show {output}, then allranks train {output}", file=sys.stderr)


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("init")
