"""Text inside a script: for bash, and for the directives that sbatch and qsub read."""

import shlex

from allranks.errors import UsageError


def for_bash(text: str) -> str:
    """One word of bash that stands for exactly `text`, on one line.

    A line break inside quotes would do for bash, but sbatch reads `#PBS` at the start of any line as an option.
    """
    if not has_control_characters(text):
        return shlex.quote(text)
    escaped = "".join(_ESCAPES.get(char) or (f"\\x{ord(char):02x}" if _is_control(char) else char) for char in text)
    return f"$'{escaped}'"


def for_sbatch(text: str) -> str:
    """A value for `#SBATCH --option=…`, which sbatch splits at spaces, with quotes and backslashes as in a shell."""
    if set(text) <= _PLAIN:
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def refuse_control_characters(option: str, text: str) -> None:
    """Raises UsageError for text that must stay on one line and does not."""
    if has_control_characters(text):
        raise UsageError(f"{option} {text!r}: line breaks and control characters cannot be written into the script")


def has_control_characters(text: str) -> bool:
    return any(map(_is_control, text))


def _is_control(char: str) -> bool:
    return ord(char) < 32 or ord(char) == 127


_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_PLAIN = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./%:@=,+-")
