"""`allranks init`: write a first config."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from allranks.init import Glance


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
    from allranks.errors import UsageError
    from allranks.init import ask, first_config, glance, unquoted, write_config
    from allranks.init.first_config import METHODS
    from allranks.observe.enduring import say

    if output.exists():
        raise UsageError(f"{output} exists; name a new file with --output")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"{output}: there is no folder {output.absolute().parent}; make it, or name another file")
    asks = sys.stdin.isatty()
    for name, value in (("--model", model), ("--data", data)):
        if value is None and not asks:
            raise UsageError(f"{name} is missing, and stdin is no terminal to ask at; give it")

    def looked_at(path: str) -> tuple[str, "Glance"]:
        return path, glance(path)

    def one_of_the_methods(word: str) -> str:
        if word.lower() not in METHODS:
            raise UsageError(f"--method {word}: expected {', '.join(METHODS)}")
        return word.lower()

    def number_of_nodes(word: str) -> int:
        if not word.isdecimal() or int(word) == 0:
            raise UsageError(f"{word}: expected a whole number of nodes, 1 or more")
        return int(word)

    if method is not None:
        method = one_of_the_methods(method)
    model = model or ask("Model (folder or Hub id)", unquoted)
    if model.startswith((".", "/", "~")) and not Path(model).expanduser().is_dir():
        say(f"note: there is no folder {model} on this machine; the nodes need it", file=sys.stderr)
    data, seen = (
        looked_at(data) if data else ask("Data (file, folder or Hub id)", lambda path: looked_at(unquoted(path)))
    )
    say(f"{data}: {seen.fits}", file=sys.stderr)
    method = method or (ask(f"Method ({', '.join(METHODS)})", one_of_the_methods, "lora") if asks else "lora")
    nodes = nodes or (ask("Number of nodes", number_of_nodes, "1") if asks else 1)
    write_config(output, first_config(model, data, method, nodes, seen))
    name = shlex.quote(str(output))
    say(f"wrote {output}; next: `allranks config show {name}`, then `allranks train {name}`", file=sys.stderr)


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("init")
