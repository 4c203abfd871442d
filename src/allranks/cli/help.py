"""How help looks: a word that can be typed stays whole at the end of a line, and usage shows what to type."""

import re
from collections.abc import Sequence
from typing import Any

import typer

# Click cuts lines at hyphens too, and `--gpus-per-` with `node` below is nothing that one can copy.
_HYPHEN = "\u2011"
# Wider lines are harder to read than a longer page.
_MOST_COLUMNS = 120


_TypersOwn: Any = typer.Context.formatter_class


class _Formatter(_TypersOwn):
    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        # `{CONFIG}` is typer's for what must be given; braces are for choices.
        super().write_usage(prog, _whole(re.sub(r"\{([A-Z|]+)\}", r"\1", args)), prefix)

    def write_text(self, text: str) -> None:
        super().write_text(_whole(text))

    def write_dl(self, rows: Sequence[tuple[str, str]], *layout: Any, **named: Any) -> None:
        super().write_dl([(term, _whole(text)) for term, text in rows], *layout, **named)

    def getvalue(self) -> str:
        return str(super().getvalue()).replace(_HYPHEN, "-")


class HelpContext(typer.Context):
    """The context of all our commands."""

    formatter_class = _Formatter

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{"max_content_width": _MOST_COLUMNS, **settings})


def new_app(**settings: Any) -> typer.Typer:
    """A typer app in our style: plain help (rich's costs 0.1 s at every start), no completion options."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, **settings)


def with_our_help(command: Any) -> Any:
    """`command` and its subcommands with help that looks so."""
    command.context_class = HelpContext
    for one in getattr(command, "commands", {}).values():
        with_our_help(one)
    return command


def _whole(text: str) -> str:
    return text.replace("-", _HYPHEN)
