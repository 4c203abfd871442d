"""`allranks`: turns errors and Ctrl-C into messages and exit codes."""

from __future__ import annotations

import sys

from allranks import interrupt

# Nothing else is imported here: it would take time in which nobody answers Ctrl-C.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry of the console script: runs the command line and exits."""
    if arguments is None:  # else somebody else's process
        interrupt.end_at_once()  # before anything is imported that takes time
        from allranks.quick_imports import import_quickly

        import_quickly()
    from allranks.cli.commands import app
    from allranks.exit_codes import DONE, FAILED
    from allranks.observe.enduring import say, settle_output, unwritten

    code = _run(app, arguments)
    settle_output()
    if why := unwritten():
        say(f"error: a part of what this command printed was not written: {why}", file=sys.stderr)
        if code == DONE and (sys.argv[1:] if arguments is None else arguments)[:1] not in _RUNS:
            code = FAILED
    if arguments is None:
        interrupt.ended(code)
    sys.exit(code)


_RUNS = (["train"], ["run"], ["demo"], ["rehearse"], ["bench-scaling"])
"""What ends as its ranks do: what it prints is also in the run directory. Of all others the output is what they are
for."""
# A rank says for itself what it holds; this is of what a command does without ranks.
_NEEDS = (
    "give it more (Slurm: --mem; PBS: mem=; a container: its memory limit), or ask for less: --dataset-num-proc "
    "prepares data with fewer processes, and `export --merge` holds the whole base model"
)
_LONGEST = 10**6  # characters of a message; most have their own bounds


def _run(app: object, arguments: list[str] | None) -> int:
    import typer

    from allranks.disk import told_to_user
    from allranks.doctor.memory import shortage
    from allranks.exit_codes import DONE, FAILED, INTERRUPTED
    from allranks.listing import printable
    from allranks.observe.enduring import say, settle_output

    assert isinstance(app, typer.Typer)
    try:
        typer.main.get_command(app).main(args=arguments, prog_name="allranks")
    except BaseException as error:
        settle_output()  # what is still buffered belongs before the message
        if isinstance(error, SystemExit) and not error.code:
            return DONE
        if interrupt.was_interrupted(error):
            say(f"\n{interrupt.line()}", file=sys.stderr)
            return INTERRUPTED
        if isinstance(error, MemoryError):
            error.__traceback__ = None  # what it still holds is needed to tell it
        elif told := told_to_user(error, "a file cannot be read or written"):
            message = printable(told, _LONGEST)
            say(f"error: {message}", file=sys.stderr)
            _tell_program(message, told.exit_code, arguments)
            return told.exit_code
        if shortage(error):
            message = f"out of memory on this host; {_NEEDS}"
            say(f"error: {message}", file=sys.stderr)
            _tell_program(message, FAILED, arguments)
            return FAILED
        if isinstance(error, BrokenPipeError):  # the reader (`| head`) has gone
            return FAILED
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            usage = getattr(error.__context__, "format_message", None)  # click's: its words are on stderr already
            if usage is not None:
                _tell_program(printable(usage(), _LONGEST), error.code, arguments)
            return error.code
        raise
    return DONE


def _tell_program(message: str, code: int, arguments: list[str] | None) -> None:
    """For a program that asked for JSON: the same as an object on stdout, so that there always is one."""
    words = sys.argv[1:] if arguments is None else arguments
    if "--json" not in words[: words.index("--") if "--" in words else None]:
        return
    import json

    from allranks.exit_codes import REFUSED
    from allranks.observe.enduring import say

    say(json.dumps({"error": message, "exit_code": code, "refused": code == REFUSED}))


def main_of(command: str) -> NoReturn:
    """`python -m allranks.cli.MODULE …` is `allranks COMMAND …`."""
    sys.argv[1:1] = [command]  # a record of the run tells what to type again
    main()


if __name__ == "__main__":
    main()
