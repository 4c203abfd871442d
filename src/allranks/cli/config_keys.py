"""Commands that take any config key as an option: `allranks train c.yaml --max-steps 2`."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from allranks.errors import UsageError

IgnoreUnsupported = Annotated[
    bool, typer.Option("--ignore-unsupported", help="Go on without Axolotl keys that allranks does not support.")
]


class ConfigKeysCommand(TyperCommand):
    """Sorts the words of the command line before the parser sees them; the rest is in `given(ctx)`."""

    after_dashes = False
    """Whether a lone `--` may follow, with torchrun's options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from allranks.launch.spec.arguments import sort_arguments

        if "--" in args and not self.after_dashes:
            raise UsageError(f"`{ctx.command_path}` takes nothing after `--`; give config keys as --key value")
        own = {name: not getattr(param, "is_flag", False) for param in self.get_params(ctx) for name in param.opts}
        sorted_arguments = sort_arguments(args, own)
        ctx.meta[__name__] = sorted_arguments
        return super().parse_args(ctx, sorted_arguments.own)


def given(ctx: Any) -> Any:
    """The sorted arguments (`launch.spec.arguments.SortedArguments`) of the running command."""
    return ctx.meta[__name__]
