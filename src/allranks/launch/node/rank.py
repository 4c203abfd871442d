"""One rank of anyone's program: sends its output where the rank's log is, and then becomes the program.

Started by launchers as `python -m allranks.launch.node.rank KIND NAME [ARGUMENTS]`; see program.py."""

import os
import sys
from typing import NoReturn

from allranks.entry_points import refuse_by_hand
from allranks.evidence.hook import hooked
from allranks.launch.node.temporary import give_back_temporary_folder
from allranks.observe.enduring import say
from allranks.observe.output import redirect_rank_output
from allranks.parent import die_with_parent


def main(words: list[str]) -> NoReturn:
    if len(words) < 2 or "RANK" not in os.environ:
        refuse_by_hand("allranks.launch.node.rank", "`allranks run`")
    kind, name, *arguments = words
    # Kept by exec: no rank goes on alone, holding its GPU, after its launcher was killed.
    die_with_parent()
    redirect_rank_output(int(os.environ["RANK"]))
    give_back_temporary_folder(os.environ)
    python = [sys.executable, "-u"]  # unbuffered, as launchers start Python: the last words of a killed rank are kept
    command = {"module": [*python, "-m", name], "script": [*python, name], "executable": [name]}[kind]
    try:
        os.execvpe(command[0], [*command, *arguments], hooked(os.environ))
    except OSError as error:
        say(f"error: {name}: {error.strerror}", file=sys.stderr)
        sys.exit(127)  # as shells do


if __name__ == "__main__":
    main(sys.argv[1:])
