"""What a launcher is given and what it asks for."""

from dataclasses import dataclass, field
from pathlib import Path

from allranks.config import RunConfig
from allranks.observe import RunDir


@dataclass(frozen=True)
class Place:
    """Where a launcher starts: the run's directory, this node's name in it, and the config, where there is one.

    `processes` of every node, by node rank.
    """

    run: RunDir
    node: int | str
    processes: tuple[int, ...]
    cfg: RunConfig | None = None


@dataclass(frozen=True)
class Starting:
    """The command, the files that it reads (path -> content), and variables that matter to the training."""

    command: list[str]
    files: dict[Path, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
