"""Run commands as a user would, several at a time; whatever happens, none of their processes is left behind."""

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from allranks.errors import AllranksError

# A process that was asked to stop saves a checkpoint first; a demo's takes well under this.
_STOP_SECONDS = 10.0
_LOG_TAIL_LINES = 25


@dataclass(frozen=True)
class Command:
    """One command line. `args` begins with `allranks` or `python`; `log` takes all that it prints."""

    title: str
    args: tuple[str, ...]
    log: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def as_typed(self) -> str:
        """The command as one can type it."""
        words = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return " ".join([*words, shlex.join(self.args)])

    @property
    def argv(self) -> list[str]:
        """The same with this interpreter, so that it works whether or not its scripts are on PATH."""
        program, *rest = self.args
        prefix = {"allranks": [sys.executable, "-m", "allranks"], "python": [sys.executable]}[program]
        return [*prefix, *rest]


def run(
    commands: Sequence[Command],
    *,
    expected: int = 0,
    timeout_seconds: float = 900.0,
    while_running: Callable[[Sequence[subprocess.Popen[bytes]]], None] = lambda processes: None,
) -> None:
    """Start all commands together and wait until each has exited with code `expected`.

    `while_running(processes)` is called about five times a second. Raises AllranksError with the end of the logs when
    one exits otherwise or when `timeout_seconds` have passed; the others are stopped first.
    """
    deadline = time.monotonic() + timeout_seconds
    with _started(commands) as processes:
        while True:
            codes = [process.poll() for process in processes]
            if any(code not in (None, expected) for code in codes):
                # The command that broke is not always the one that exits first: let the others say what they saw.
                time.sleep(1.0)
                codes = [process.poll() for process in processes]
                raise _failed(_failure(commands, codes, expected), codes, expected)
            if all(code == expected for code in codes):
                return
            if time.monotonic() > deadline:
                raise AllranksError(
                    f"no end after {timeout_seconds:.0f} seconds\n" + _failure(commands, codes, expected)
                )
            while_running(processes)
            time.sleep(0.2)


def log_tail(path: Path, lines: int = _LOG_TAIL_LINES) -> str:
    """The last lines of a log, or a remark that there is none."""
    try:
        text = path.read_text(errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return "\n".join(text[-lines:]) or "(empty)"


def first_error(commands: Sequence[Command]) -> str:
    """The `error_in` the log of the first command that has one, with what was started; "" where none has."""
    for command in commands:
        if error := error_in(command.log):
            return f"{command.title}: {error}\n  $ {command.as_typed}"
    return ""


def error_in(log: Path) -> str:
    """From the first line with `error:` on, in a log; "" where there is none."""
    lines = log_tail(log, 200).splitlines()
    first = next((number for number, line in enumerate(lines) if line.startswith("error:")), None)
    if first is None:
        return ""
    return "\n  ".join([lines[first].removeprefix("error: "), *lines[first + 1 : first + 12]])


@contextlib.contextmanager
def _started(commands: Sequence[Command]) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            command.log.parent.mkdir(parents=True, exist_ok=True)
            with command.log.open("ab") as log:
                # A session of its own: Ctrl-C in the terminal reaches us alone, and we end the children in order.
                processes.append(
                    subprocess.Popen(
                        command.argv,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, **command.env},
                        start_new_session=True,
                    )
                )
        yield processes
    finally:
        stop(processes)


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the processes and everything they started: asked first, killed when they take too long."""
    family: list[psutil.Process] = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.poll() is None:
                parent = psutil.Process(process.pid)
                # Listed before the parent ends: torchrun puts its workers into sessions of their own.
                family += [parent, *parent.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(alive, timeout=_STOP_SECONDS)
    for process in processes:
        process.wait()


def _failed(message: str, codes: Sequence[int | None], expected: int) -> AllranksError:
    """With the exit code of the first command that ended by itself with another one."""
    error = AllranksError(message)
    error.exit_code = next((code for code in codes if code is not None and code not in (expected, 0) and code > 0), 1)
    return error


def _failure(commands: Sequence[Command], codes: Sequence[int | None], expected: int) -> str:
    parts = []
    for command, code in zip(commands, codes, strict=True):
        if code == expected and len(commands) > 1:
            continue
        ended = "was still running" if code is None else f"ended with exit code {code}, expected {expected}"
        parts.append(
            f"{command.title} {ended}\n  $ {command.as_typed}\n  the end of {command.log}:\n"
            + "\n".join(f"  | {line}" for line in log_tail(command.log).splitlines())
        )
    return "\n".join(parts)
