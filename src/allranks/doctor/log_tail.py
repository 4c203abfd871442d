"""The end of a log, as far as it helps in a message."""

from pathlib import Path

_LINES = 15


def read_from(path: Path, start: int = 0) -> str:
    """What a log holds from byte `start` on; nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def last_lines(text: str) -> list[str]:
    """The last lines that are not empty."""
    return [line for line in text.splitlines() if line.strip()][-_LINES:]
