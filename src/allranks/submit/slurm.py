"""Slurm: sbatch's directives, its signal before the time limit, requeueing. Source: sbatch(1), scontrol(1)."""

import re
from pathlib import Path

from allranks.errors import AllranksError, UsageError
from allranks.submit.directives import Letters, is_one_of, options_in
from allranks.submit.job import Job, JobOptions
from allranks.submit.quoting import for_sbatch, refuse_control_characters
from allranks.submit.script import Dialect

NAME = "Slurm"
SUBMIT = "sbatch"
QUEUE = "`squeue --me`"

# Options of `allranks submit`, and what the script relies on: a directive of the user's must not say them again.
_OURS = {
    "nodes": "--nodes",
    "N": "--nodes",
    "gpus-per-node": "--gpus-per-node",
    "cpus-per-task": "--cpus-per-task",
    "c": "--cpus-per-task",
    "mem": "--mem",
    "time": "--time",
    "t": "--time",
    "partition": "--partition",
    "p": "--partition",
    "account": "--account",
    "A": "--account",
    "job-name": "--job-name",
    "J": "--job-name",
    "exclusive": "--exclusive",
    "requeue": "--requeue",
    "no-requeue": "--requeue",
    "signal": "--signal-before",
    "export": "--export",
    "export-file": "--export",
    "ntasks": None,
    "n": None,
    "ntasks-per-node": None,
    "tasks-per-node": None,
    "ntasks-per-core": None,
    "ntasks-per-socket": None,
    "ntasks-per-gpu": None,
    "nodefile": "--nodes",
    "F": "--nodes",
    "output": None,
    "o": None,
    "open-mode": None,
    "chdir": None,
    "workdir": None,
    "D": None,
    "wrap": None,
    "array": None,
    "a": None,
}
# Names of their own that are the beginning of one of ours.
_OTHERS = ("gpus",)
_LETTERS = Letters(alone="hHIKOQsuvVkW", with_value="aAbBcCdDeFGiJLmMnNopPqStTwx")
# Letters whose option has a variable of sbatch that would win over the directive.
_LONG = {"C": "constraint", "q": "qos", "G": "gpus", "M": "clusters", "d": "dependency", "m": "distribution"}
_LONG |= {"e": "error", "i": "input", "k": "no-kill", "O": "overcommit", "s": "oversubscribe", "W": "wait"}
_LONG |= {"w": "nodelist", "x": "exclude", "L": "licenses", "S": "core-spec", "B": "extra-node-info", "b": "begin"}
# sbatch's variable of an option, where it is not its name in capitals.
_VARIABLES = {"time": "SBATCH_TIMELIMIT", "mem": "SBATCH_MEM_PER_NODE"}


def dialect(job: Job, script: Path) -> Dialect:
    """The script's part for Slurm. Raises UsageError for what sbatch could not read."""
    options = job.options
    refuse_control_characters("output_dir", str(job.run))
    if "\\" in str(job.run):
        raise UsageError(f"output_dir: {job.run}: Slurm does not find a log in a folder with a backslash in its name")
    for directive in options.directives:
        _check_directive(directive, options)
    beginning = []
    if options.cpus_per_task is not None:
        # From 22.05 on srun does not take it over from the job, and gives each task one core.
        beginning.append(f"export SRUN_CPUS_PER_TASK={options.cpus_per_task}")
    return Dialect(
        directives=[f"#SBATCH {line}" for line in (*_directives(job), *options.directives)],
        beginning=beginning,
        requeue=['scontrol requeue "$SLURM_JOB_ID" || true'],
        scheduler="slurm",
        job_id="$SLURM_JOB_ID",
        script=script,
    )


def log(job: Job, job_id: str) -> Path:
    return job.launch / f"slurm-{job_id}.log"


def command(script: Path) -> list[str]:
    return [SUBMIT, "--parsable", str(script)]


def environment(job: Job, env: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The environment for sbatch without the variables that would win over the script, and the names of those."""
    lines = (*_directives(job), *job.options.directives)
    said = [_LONG.get(name, name) for line in lines for name, _ in options_in(line, _LETTERS)]
    variables = {_VARIABLES.get(name, "SBATCH_" + name.upper().replace("-", "_")) for name in said}
    variables |= {"SBATCH_REQUEUE", "SBATCH_NO_REQUEUE", "SBATCH_ARRAY_INX"}
    dropped = sorted(variables & env.keys())
    return {name: value for name, value in env.items() if name not in dropped}, dropped


def job_id(output: str) -> str:
    """Of what `sbatch --parsable` printed: `123` or `123;cluster`."""
    found = re.fullmatch(r"(\d+)(;\S+)?", output.strip().rpartition("\n")[2])
    if not found:
        raise AllranksError(f"sbatch printed {output.strip()!r} instead of a job number; `squeue --me` shows your jobs")
    return found[1]


def advice(job_id: str) -> dict[str, str]:
    """What to type next."""
    saves = f"  (scancel --batch --signal=USR1 {job_id} saves a checkpoint first)"
    return {"state": f"squeue --jobs {job_id}", "stop": f"scancel {job_id}{saves}"}


def _directives(job: Job) -> list[str]:
    options = job.options
    pairs: list[tuple[str, object]] = [
        ("job-name", job.name),
        ("nodes", options.nodes),
        ("ntasks-per-node", 1),
        ("gpus-per-node", options.gpus_per_node),
        ("cpus-per-task", options.cpus_per_task),
        ("mem", options.mem),
        ("time", options.time),
        ("partition", options.queue),
        ("account", options.account),
        # The shell only, which hands it on; allranks tells its ranks itself.
        ("signal", f"B:USR1@{options.signal_before}" if options.signal_before else None),
        # A job that Slurm restarts by itself must go on from its checkpoints, which --requeue asks for.
        ("requeue" if options.requeue else "no-requeue", ""),
        ("export", "ALL"),
        # `%j` is the job's number; a `%` of the folder's own is doubled.
        ("output", for_sbatch(str(job.launch).replace("%", "%%") + "/slurm-%j.log")),
        ("open-mode", "append"),
    ]
    if options.exclusive:
        pairs.append(("exclusive", ""))
    return [f"--{name}={value}" if value != "" else f"--{name}" for name, value in pairs if value is not None]


def _check_directive(directive: str, options: JobOptions) -> None:
    for name, value in options_in(directive, _LETTERS):
        ours = is_one_of(name, _OURS, _OTHERS)
        if ours is not None:
            hint = f"use {_OURS[ours]} of `allranks submit`" if _OURS[ours] else "the script sets it, and relies on it"
            raise UsageError(f"--directive {directive!r}: {hint}")
        is_gpus = name == "G" or "gpus".startswith(name) or name.startswith("gpus-per-")
        if options.gpus_per_node is not None and (is_gpus or ("gres".startswith(name) and "gpu" in value)):
            raise UsageError(f"--directive {directive!r}: --gpus-per-node of `allranks submit` says it already")
