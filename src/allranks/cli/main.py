"""`allranks`: finds the command, imports only that one, and turns errors into messages and exit codes."""

import importlib
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from allranks.errors import AllranksError
from allranks.observe.enduring import say, settle_output

# name -> (module, one line of help). The module has `app`, a typer.Typer, or a function named like the command.
# Commands are imported when they are run, so that none makes another slow or breaks it.
COMMANDS = {
    "train": ("allranks.cli.train", "Train: alone, on several processes, or as one node of several."),
    "submit": ("allranks.cli.submit", "Submit a batch job of Slurm or PBS that trains; --dry-run prints it."),
    "qwen": ("allranks.cli.qwen", "Fine-tune as Qwen's scripts do, with their arguments and variables."),
    "run": ("allranks.cli.run", "Start anyone's program on all nodes, with our meeting, logs and clean-up."),
    "preprocess": (
        "allranks.cli.preprocess",
        "Make the prepared data set, and show what is trained and what is masked.",
    ),
    "export": ("allranks.cli.export", "Write a checkpoint as Hugging Face safetensors: adapter, merged or full model."),
    "merge-lora": ("allranks.cli.export", "Axolotl's name for export."),
    "merge-sharded-fsdp-weights": ("allranks.cli.export", "Axolotl's name for export."),
    "demo": ("allranks.cli.demo", "Fine-tune a tiny model on this machine as two nodes; no download."),
    "config": ("allranks.cli.config", "Show the resolved config, or the schema of all keys."),
}


class LazyCommands(TyperGroup):
    """A group whose commands live in modules that are imported on demand."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return load_command(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def load_command(name: str) -> Any:
    """The click command behind `name`."""
    module = importlib.import_module(COMMANDS[name][0])
    app = getattr(module, "app", None)
    if app is None:
        function = getattr(module, name.replace("-", "_"), None) or getattr(module, module.__name__.rpartition(".")[2])
        app = new_app()
        app.command(name)(function)
    command = typer.main.get_command(app)
    command.name = name
    return command


def new_app(**settings: Any) -> typer.Typer:
    """A typer app in our style: plain help (rich's costs 0.1 s at every start), no completion options."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, **settings)


def _show_version(wanted: bool) -> None:
    if wanted:
        from allranks import __version__

        typer.echo(f"allranks {__version__}")
        raise typer.Exit


app = new_app(cls=LazyCommands, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback(epilog="Example: allranks train config.yaml --nproc-per-node 2 --max-steps 20")
def allranks(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    """Fine-tune a language model on several machines, with every rank accounted for.

    Exit codes: 0 done, 1 the run failed, 2 wrong usage or config, 3 refused before the start,
    75 preempted (a checkpoint is saved; start it again).
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry of the console script: runs the command line and exits."""
    try:
        typer.main.get_command(app).main(args=arguments, prog_name="allranks")
    except AllranksError as error:
        settle_output()  # what is still buffered belongs before the message
        say(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader (`| head`) has gone
        sys.exit(1)
    finally:
        settle_output()
    sys.exit(0)


def main_of(command: str) -> NoReturn:
    """`python -m allranks.cli.MODULE …` is `allranks COMMAND …`."""
    sys.argv[1:1] = [command]  # a record of the run tells what to type again
    main()


if __name__ == "__main__":
    main()
