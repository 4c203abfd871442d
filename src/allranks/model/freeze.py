"""Train chosen parameters of the model, and freeze all others (`unfrozen_parameters`)."""

import re
from collections.abc import Iterable

from torch import nn

from allranks.errors import ConfigError


def freeze_all_but(model: nn.Module, patterns: Iterable[str]) -> None:
    """Freeze every parameter whose name no pattern matches.

    Patterns as in Axolotl: regular expressions that match from the beginning of a name, in which a dot is a dot.
    Raises ConfigError for a pattern that matches nothing, or that names rows of a parameter.
    """
    unused = set(patterns)
    compiled = {pattern: _compiled(pattern) for pattern in unused}
    for name, parameter in model.named_parameters():
        matching = {pattern for pattern, expression in compiled.items() if expression.match(name)}
        parameter.requires_grad_(bool(matching))
        unused -= matching
    if unused:
        names = [name for name, _ in model.named_parameters()]
        raise ConfigError(
            f"unfrozen_parameters: nothing is called {', '.join(sorted(unused))}; names are such as "
            f"{', '.join(names[:3])} … {names[-1]}"
        )


def _compiled(pattern: str) -> re.Pattern[str]:
    if re.search(r"\[\d*:?\d*\]$", pattern):
        raise ConfigError(
            f"unfrozen_parameters: {pattern}: rows of a parameter cannot be chosen: weight decay and the optimizer's "
            "momentum would move the others too; leave out the [from:to]"
        )
    try:
        # `.+` alone keeps its meaning.
        return re.compile(re.sub(r"(?<!\\)\.(?!\+)", r"\\.", pattern))
    except re.error as error:
        raise ConfigError(f"unfrozen_parameters: {pattern} is not a regular expression: {error}") from None
