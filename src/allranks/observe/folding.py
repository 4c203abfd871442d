"""Long lines on a terminal: folded between words, where the terminal itself would cut through them."""

import os
import re
from typing import TextIO

# What is copied from the screen must arrive in one piece: a command, from its first word on.
_PROGRAM = r"(?:\w+=\S+ )*(?:\S*/)?(?:allranks|python[\d.]*|torchrun|accelerate|deepspeed|ssh|kill) "
_COMMAND = re.compile(rf"`[^`\n]+`|(?:(?<=\$ )|(?<= {{2}})|^){_PROGRAM}.*$")
# "strategy:   one process" goes on under its value; anything else under its first word, and two further in.
_COLUMN = re.compile(r" *\S+(?: \S+)? {2,}")
_WIDEST_LABEL = 20
# Stands for a space where no line may end; nothing that is printed holds it.
_JOINED = "\ue000"


def for_terminal(text: str, stream: TextIO | None) -> str:
    """`text` as it is for files and pipes; for a terminal with its lines folded to the width that it has now."""
    width = terminal_width(stream)
    return folded(text, width) if width else text


def terminal_width(stream: TextIO | None) -> int | None:
    """The columns of the terminal behind `stream`; None where there is none, or where it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):
        return None


def folded(text: str, width: int) -> str:
    """Lines of more than `width` characters broken at spaces; a word or a command that is longer stays whole."""
    return "\n".join(_fold(line, width) if len(line) > width and line.strip() else line for line in text.split("\n"))


def _fold(line: str, width: int) -> str:
    label = _COLUMN.match(line)
    indent = len(line) - len(line.lstrip(" ")) + 2
    if label and label.end() <= _WIDEST_LABEL and label.end() < len(line):
        indent = label.end()
    line = _COMMAND.sub(lambda command: command[0].replace(" ", _JOINED), line)
    first, *words = re.findall(r" *[^ ]+", line)
    lines = [first]
    for word in words:
        fits = len(lines[-1]) + len(word) <= width
        # One that is too long for any line begins where it stands, and the terminal goes on with it.
        if fits or indent + len(word.lstrip()) > width:
            lines[-1] += word
        else:
            lines.append(" " * indent + word.lstrip())
    return "\n".join(lines).replace(_JOINED, " ")
