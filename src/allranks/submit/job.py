"""What a batch job shall be, and whether a scheduler could understand it."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from allranks.errors import UsageError
from allranks.secret_names import is_secret_name
from allranks.secrets import without_secrets
from allranks.submit.quoting import has_control_characters, refuse_control_characters

SIGNAL_BEFORE_SECONDS = 300  # as long as `allranks train` gives its ranks to save
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.+-]*")
_NAME_LENGTH = 64  # OpenPBS takes 236 characters, and squeue shows 8
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+-]*")
_QUEUE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@,+-]*")
_GPUS = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*:)?[1-9][0-9]*")
_MEMORY = re.compile(r"[1-9][0-9]*[KMGT]")
_TIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class JobOptions:
    """The job as asked for; None means that the scheduler's own default holds."""

    nodes: int
    gpus_per_node: str | None = None
    """A number; for Slurm also TYPE:NUMBER."""
    cpus_per_task: int | None = None
    mem: str | None = None
    """Of a node: 512M, 64G."""
    time: str | None = None
    """HH:MM:SS or D-HH:MM:SS: what else the schedulers take, they read differently (`30` is minutes or seconds)."""
    queue: str | None = None
    account: str | None = None
    name: str | None = None
    exclusive: bool = False
    directives: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    venv: str | None = None
    setup: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()
    """NAME=VALUE, or NAME for the value that the variable has here."""
    requeue: bool = False
    signal_before: int = SIGNAL_BEFORE_SECONDS

    @property
    def time_seconds(self) -> int | None:
        if self.time is None:
            return None
        match = _TIME.fullmatch(self.time)
        assert match is not None, "checked"
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds

    @property
    def assigned(self) -> dict[str, str]:
        """The variables whose values are written into the script."""
        pairs = (export.partition("=") for export in self.exports)
        return {name: value for name, equals, value in pairs if equals}

    @property
    def inherited(self) -> list[str]:
        """The variables that the scheduler takes over from where the job is submitted."""
        return [export for export in self.exports if "=" not in export]


@dataclass(frozen=True)
class Job:
    """A checked job with its places. All paths are absolute; `train` are the words after `allranks train`."""

    options: JobOptions
    name: str
    directory: Path
    """Where it was submitted and where it runs, so that relative paths of the config mean the same."""
    run: Path
    """The run directory."""
    python: str
    train: tuple[str, ...]

    @property
    def launch(self) -> Path:
        """Scripts and logs of jobs."""
        return self.run / "launch"


def check(options: JobOptions, env: Mapping[str, str] = os.environ) -> None:
    """Raises UsageError naming the option that no scheduler would understand, or that would not do what it says."""
    if options.nodes < 1:
        raise UsageError(f"--nodes {options.nodes}: expected 1 or more")
    if options.cpus_per_task is not None and options.cpus_per_task < 1:
        raise UsageError(f"--cpus-per-task {options.cpus_per_task}: expected 1 or more")
    _check_form("--job-name", options.name, _NAME, "a letter, then letters, digits and _.+-")
    if options.name is not None and len(options.name) > _NAME_LENGTH:
        raise UsageError(f"--job-name {options.name}: expected at most {_NAME_LENGTH} characters")
    _check_form("--account", options.account, _ACCOUNT, "letters, digits and _.:@+-")
    _check_form("--queue", options.queue, _QUEUE, "letters, digits and _.:@,+-")
    _check_form("--gpus-per-node", options.gpus_per_node, _GPUS, "a number above 0, for Slurm also TYPE:NUMBER")
    _check_form("--mem", options.mem, _MEMORY, "the memory of a node as a number with K, M, G or T, such as 64G")
    _check_form("--time", options.time, _TIME, "HH:MM:SS or D-HH:MM:SS, such as 24:00:00")
    for line in options.setup:
        _check_line(line)
    for directive in options.directives:
        refuse_control_characters("--directive", directive)
        if not directive.startswith("-"):
            raise UsageError(
                f"--directive {directive!r}: expected an option of the scheduler, such as '--constraint=ib'"
            )
    for export in options.exports:
        _check_export(export, env)
    _check_signal(options)


def job_name(options: JobOptions, config: Path) -> str:
    """The name asked for, or one made of the config file's."""
    if options.name is not None:
        return options.name
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", config.stem).strip("-")
    return name[:_NAME_LENGTH] if _NAME.fullmatch(name) else f"allranks-{name}"[:_NAME_LENGTH].rstrip("-")


def _check_form(option: str, value: str | None, form: re.Pattern[str], expected: str) -> None:
    if value is not None and not form.fullmatch(value):
        raise UsageError(f"{option} {value!r}: expected {expected}")


def _check_line(line: str) -> None:
    """A line of shell is meant as such; it must not draw the following ones into it."""
    refuse_control_characters("--setup", line)
    if line.lstrip().startswith("#"):
        raise UsageError(f"--setup {line!r}: a comment does nothing; use --directive for the scheduler's options")
    read = subprocess.run(["bash", "-n"], input=line, capture_output=True, text=True)
    if line.endswith("\\") or read.returncode != 0 or "<<" in line:
        raise UsageError(f"--setup {line!r}: this is no line of shell that is complete by itself")


def _check_export(export: str, env: Mapping[str, str]) -> None:
    name, equals, value = export.partition("=")
    if not _VARIABLE.fullmatch(name):
        raise UsageError(f"--export {export!r}: expected NAME or NAME=VALUE")
    if "\0" in value:
        raise UsageError(f"--export {name}: a variable cannot hold a zero byte")
    if equals and (is_secret_name(name) or without_secrets(value) != value):
        raise UsageError(
            f"--export {name}=…: the script lies in the run directory, and a secret does not belong there; "
            f"set the variable here and give `--export {name}`, or log in on the nodes (`hf auth login`)"
        )
    if not equals and name not in env:
        raise UsageError(f"--export {name}: the variable is not set here; set it, or give --export {name}=VALUE")
    if not equals and has_control_characters(env[name]):
        raise UsageError(f"--export {name}: its value holds line breaks, which schedulers do not hand on intact")


def _check_signal(options: JobOptions) -> None:
    if not 0 <= options.signal_before <= 65535:  # sbatch's own limit
        raise UsageError(f"--signal-before {options.signal_before}: expected 0 (no signal) to 65535 seconds")
    limit = options.time_seconds
    if limit is not None and options.signal_before >= limit:
        raise UsageError(
            f"--signal-before {options.signal_before} is not below --time {options.time} ({limit} s): the run would be "
            "told to stop as it starts; give a smaller one, or 0 for no signal"
        )
