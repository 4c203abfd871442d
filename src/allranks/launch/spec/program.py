"""What every rank runs."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from allranks.errors import UsageError

RANK_MODULE = "allranks.train"
RESOLVED = "--resolved"  # the launcher has checked the config and told its warnings: the ranks read it as it is
_LAUNCHERS = ("torchrun", "accelerate", "deepspeed", "mpirun", "mpiexec", "srun")
_AS_A_RANK = "allranks.launch.node.rank"


@dataclass(frozen=True)
class Program:
    """A Python module (`-m NAME`), a Python script or any executable, with its arguments.

    `is_engine`: it is our own engine, which reads a resolved config, writes events and saves when it is signalled.
    """

    kind: Literal["module", "script", "executable"]
    name: str
    arguments: tuple[str, ...] = ()
    is_engine: bool = False

    def words(self, *, module: str = "-m", executable: str = "--no-python") -> list[str]:
        """As the end of a launcher's command line; the parameters are that launcher's options for the two kinds."""
        option = {"module": [module], "script": [], "executable": [executable]}[self.kind]
        return [*option, self.name, *self.arguments]


def engine(config: Path) -> Program:
    """Our engine, training what `config` says, which is resolved."""
    return Program("module", RANK_MODULE, (str(config), RESOLVED), is_engine=True)


def anyones(words: Sequence[str]) -> Program:
    """The program that the words of a command line name, as torchrun reads them: `train.py --lr 1`, `-m module …`.

    An executable needs no `--no-python`. Raises UsageError for what is none of these.
    """
    first, *rest = words or [""]
    if first in ("-m", "--module", "--no-python", "--no_python"):
        if not rest:
            raise UsageError(f"{first} needs a name: allranks run -- {first} NAME [ARGUMENTS]")
        kind: Literal["module", "executable"] = "module" if first in ("-m", "--module") else "executable"
        return _checked(Program(kind, rest[0], tuple(rest[1:])))
    if not first:
        raise UsageError("no program: allranks run [OPTIONS] -- PROGRAM [ARGUMENTS]")
    if first.startswith("-"):
        raise UsageError(f"{first} comes where the program is expected: options of allranks run stand before the `--`")
    return _checked(Program("script" if first.endswith(".py") else "executable", first, tuple(rest)))


def as_a_rank(program: Program) -> Program:
    """The same, after its output has been sent where the rank's log is: see rank.py."""
    if program.is_engine:
        return program
    return Program("module", _AS_A_RANK, (program.kind, program.name, *program.arguments))


def _checked(program: Program) -> Program:
    name = program.name
    if program.kind == "module" and name == RANK_MODULE:
        raise UsageError("allranks run -- -m allranks.train: `allranks train CONFIG` starts allranks' own engine")
    if program.kind == "script" and not Path(name).is_file():
        raise UsageError(f"{name}: no such script here; it must be at the same path on every node")
    if program.kind == "executable":
        if Path(name).name in _LAUNCHERS:
            raise UsageError(
                f"{name} is a launcher, and allranks run starts one itself (--launcher): name the program that "
                f"{Path(name).name} would start"
            )
        if shutil.which(name) is None:
            raise UsageError(
                f"{name}: neither a Python script (its name ends in .py) nor an executable here; `-m {name}` names a "
                "module"
            )
    return program
