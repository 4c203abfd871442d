"""`allranks submit`: write the batch script, hand it to the scheduler, say what comes next."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from allranks import durable, interrupt
from allranks.config import RunConfig
from allranks.errors import AllranksError, UsageError
from allranks.observe import say
from allranks.submit import pbs, slurm
from allranks.submit.job import Job, JobOptions, check, job_name
from allranks.submit.script import render

SCHEDULERS = {"slurm": slurm, "pbs": pbs}
ENCODING = ("utf-8", "surrogateescape")  # a file name need not be UTF-8


@dataclass(frozen=True)
class Written:
    """A script, where it is (or would be) kept, and what it says."""

    job: Job
    path: Path
    text: str


@dataclass(frozen=True)
class Submitted:
    job_id: str
    script: Path
    log: Path
    advice: dict[str, str]


def write_script(
    scheduler: str,
    options: JobOptions,
    config: Path,
    cfg: RunConfig,
    train: Sequence[str],
    *,
    pbs_flavour: str = "openpbs",
) -> Written:
    """The batch script for a checked config; writes nothing. Raises UsageError for what the scheduler would not take.

    `train` are the words after `allranks train`.
    """
    if scheduler not in SCHEDULERS:
        raise UsageError(f"--scheduler {scheduler}: expected {' or '.join(SCHEDULERS)}")
    if pbs_flavour not in pbs.FLAVOURS:
        raise UsageError(f"--pbs-flavour {pbs_flavour}: expected {' or '.join(pbs.FLAVOURS)}")
    check(options)
    if options.venv is not None:
        options = replace(options, venv=str(Path(options.venv).expanduser()))
    directory = _here()
    job = Job(
        options,
        name=job_name(options, config),
        directory=directory,
        run=directory / cfg.checkpoint.output_dir,
        python=_python(options),
        train=tuple(train),
    )

    def text_for(path: Path) -> str:
        if scheduler == "pbs":
            return render(job, pbs.dialect(job, path, pbs_flavour))
        return render(job, slurm.dialect(job, path))

    # The script names itself, to be submitted again; what it says gives it its name, so that jobs in the queue keep
    # theirs whatever is submitted after them.
    digest = hashlib.sha256(text_for(Path("submit.sh")).encode(*ENCODING)).hexdigest()[:8]
    path = job.launch / f"submit-{digest}.sh"
    return Written(job, path, text_for(path))


def make_launch_folder(written: Written) -> str | None:
    """Make the folder of scripts and logs, without which Slurm ends a job and says nothing. Returns why it cannot."""
    try:
        written.job.launch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"output_dir: {written.job.launch} cannot be made here: {error.strerror}"
    return None


def submit(scheduler: str, written: Written) -> Submitted:
    """Keep the script and hand it in. Raises UsageError if the scheduler is not here, AllranksError if it refuses."""
    parts: Any = SCHEDULERS[scheduler]
    job = written.job
    if shutil.which(parts.SUBMIT) is None:
        raise UsageError(
            f"{parts.SUBMIT} is not here: run this where {parts.NAME} jobs are submitted, or look at it with --dry-run"
        )
    problem = make_launch_folder(written)
    if problem:
        raise UsageError(f"{problem}; choose another with --output-dir")
    durable.write(written.path, written.text.encode(*ENCODING))
    env, dropped = parts.environment(job, dict(os.environ))
    if dropped:
        say(f"note: {', '.join(dropped)} would change what the script asks for: not handed on", file=sys.stderr)
    interrupt.means(f"{parts.SUBMIT} was asked already: {parts.QUEUE} shows whether the job is in the queue")
    done = subprocess.run(
        parts.command(written.path),
        cwd=job.directory,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.stderr.strip():
        say(done.stderr.strip(), file=sys.stderr)
    if done.returncode != 0:
        raise AllranksError(
            f"{parts.SUBMIT} refused the job for the reason above (exit code {done.returncode}); script: {written.path}"
        )
    job_id = parts.job_id(done.stdout)
    interrupt.means(f"job {job_id} is submitted")
    return Submitted(job_id, written.path, parts.log(job, job_id), parts.advice(job_id))


def _python(options: JobOptions) -> str:
    """The interpreter that runs this command, which has allranks, or that of the environment asked for."""
    return f"{options.venv}/bin/python" if options.venv is not None else sys.executable


def _here() -> Path:
    """The working directory by the name that the user knows: an automounter's own name may not exist on other nodes."""
    shown = os.environ.get("PWD", "")
    if shown.startswith("/") and Path(shown).is_dir() and Path(shown).samefile("."):
        return Path(shown)
    return Path.cwd()
