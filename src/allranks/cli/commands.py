"""The commands of `allranks`: finds the one that is asked for, and imports only that."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from allranks import interrupt
from allranks.cli.help import HelpContext, new_app, with_our_help

# name -> (module, one line of help). The module has `app`, a typer.Typer, or a function named like the command.
# Commands are imported when they are run, so that none makes another slow or breaks it.
COMMANDS = {
    "init": ("allranks.cli.init", "Write a first config: looks at your data, asks for what is not given."),
    "train": ("allranks.cli.train", "Train: alone, on several processes, or as one node of several."),
    "plan": ("allranks.cli.plan", "Does it fit, how fast, what does it cost: every strategy on these nodes."),
    "check": ("allranks.cli.check", "Check all nodes before a run, and start nothing."),
    "verify": ("allranks.cli.verify", "Is a run really distributed, and what was asked: ranks, GPUs, network, data."),
    "rehearse": ("allranks.cli.rehearse", "Rehearse a run of several nodes on this CPU, with a shrunken model."),
    "bench-scaling": (
        "allranks.cli.bench_scaling",
        "Time a config on 1, 2, 4 nodes: how it scales, what it loses where.",
    ),
    "stacks": ("allranks.cli.stacks", "Where every rank of a running run is now: Python stacks, folded."),
    "doctor": ("allranks.cli.doctor", "Why it failed: the first cause in a run's record or in anyone's logs."),
    "submit": ("allranks.cli.submit", "Submit a batch job of Slurm or PBS that trains; --dry-run prints it."),
    "qwen": ("allranks.cli.qwen", "Fine-tune as Qwen's scripts do, with their arguments and variables."),
    "run": ("allranks.cli.run", "Start anyone's program on all nodes, with our rendezvous, logs and clean-up."),
    "status": ("allranks.cli.status", "What every rank of a run does now, or did last, and how it ended."),
    "top": ("allranks.cli.top", "Every rank of a run, live, until it ends."),
    "bundle": ("allranks.cli.bundle", "Pack what a bug report needs of a run in one file, without secrets."),
    "preprocess": (
        "allranks.cli.preprocess",
        "Make the prepared data set, and show what is trained and what is masked.",
    ),
    "export": ("allranks.cli.export", "Write a checkpoint as Hugging Face safetensors: adapter, merged or full model."),
    "merge-lora": ("allranks.cli.export", "Axolotl's name for export."),
    "merge-sharded-fsdp-weights": ("allranks.cli.export", "Axolotl's name for export."),
    "evaluate": ("allranks.cli.evaluate", "The loss and perplexity of a run, an adapter or a model on data sets."),
    "generate": ("allranks.cli.generate", "Answers of a run, an adapter or a model to prompts, before and after."),
    "chat": ("allranks.cli.chat", "Talk to a run, an adapter or a model in the terminal."),
    "demo": ("allranks.cli.demo", "Fine-tune a tiny model on this machine as two nodes; no download."),
    "config": ("allranks.cli.config", "Show the resolved config or the schema of all keys; import others' configs."),
}

_AS_IT_WAS = "the run and its checkpoints are as they were"
# What Ctrl-C leaves undone while a command works, until it says otherwise; the others only read and print.
UNDONE = {
    "init": "no config was written",
    "train": "no rank was started; checkpoints are as they were",
    "run": "the program was not started",
    "qwen": "no rank was started; checkpoints are as they were",
    "check": "the nodes were not checked; nothing was started",
    "plan": "no plan was made; what was measured of this machine so far is kept",
    "rehearse": "nothing was rehearsed",
    "bench-scaling": "nothing was timed",
    "submit": "no job was submitted",
    "bundle": f"no bundle was written; {_AS_IT_WAS}",
    "preprocess": "the data set was not prepared; those that were prepared before are kept",
    "export": f"nothing was exported; {_AS_IT_WAS}",
    "merge-lora": f"nothing was merged; {_AS_IT_WAS}",
    "merge-sharded-fsdp-weights": f"nothing was merged; {_AS_IT_WAS}",
    "generate": f"not all prompts were answered; {_AS_IT_WAS}",
    "chat": f"the model was not loaded; {_AS_IT_WAS}",
    "evaluate": f"the evaluation was not finished; {_AS_IT_WAS}",
    "demo": "the demo was not finished; what it made is kept in its folder",
}


class LazyCommands(TyperGroup):
    """A group whose commands live in modules that are imported on demand."""

    context_class = HelpContext

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return load_command(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from allranks.cli.command_words import meant_command
            from allranks.errors import UsageError

            meant = meant_command(args[0], COMMANDS)
            near = f"did you mean `allranks {meant}`? " if meant else ""
            raise UsageError(f"{args[0]}: no such command; {near}`allranks --help` lists all")
        return super().resolve_command(ctx, args)

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
    command = with_our_help(typer.main.get_command(app))
    command.name = name
    if name in UNDONE and command.callback is not None:
        command.callback = _interruptible(name, command.callback)
    return command


def _interruptible(name: str, callback: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def work(*arguments: Any, **options: Any) -> Any:
        interrupt.means(UNDONE[name])
        with interrupt.interruptible():
            return callback(*arguments, **options)

    return work


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
