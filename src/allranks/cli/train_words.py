"""Commands that hand words on to `allranks train`."""

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand


class TrainWordsCommand(TyperCommand):
    """Keeps the words that are not its own: config keys, options of train, and a lone `--` with what follows."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from allranks.launch.spec.arguments import sort_arguments

        cut = args.index("--") if "--" in args else len(args)
        own = {name: not getattr(param, "is_flag", False) for param in self.get_params(ctx) for name in param.opts}
        words = sort_arguments(args[:cut], own)
        ctx.meta[__name__] = [*words.config, *args[cut:]]
        return super().parse_args(ctx, words.own)


def train_words(ctx: Any) -> list[str]:
    """The words for train of the running command."""
    return ctx.meta[__name__]


def read_as_train(words: Sequence[str]) -> Any:
    """The context of `allranks train` with these words: its own parser reads them, so that what is checked is what it
    will do. Raises what that raises."""
    from allranks.cli.commands import load_command

    return load_command("train").make_context("allranks train", list(words))


def is_given(context: Any, name: str) -> bool:
    """Whether a parameter was given, rather than left to its default."""
    return bool(context.get_parameter_source(name).name != "DEFAULT")
