"""The batch script: what the schedulers share. It names no node, so its size does not grow with their number."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from allranks import __version__
from allranks.exit_codes import PREEMPTED
from allranks.observe import RunDir
from allranks.submit.job import Job
from allranks.submit.lost_hosts import LOST_HOSTS
from allranks.submit.quoting import for_bash


@dataclass(frozen=True)
class Dialect:
    """What a scheduler adds to the script."""

    directives: Sequence[str]
    """Lines such as `#SBATCH --nodes=4`."""
    beginning: Sequence[str] = ()
    """The first commands."""
    before_training: Sequence[str] = ()
    prefix: str = ""
    """Words before the training command."""
    requeue: Sequence[str] = ()
    """Commands that put the job back into the queue."""
    scheduler: str = ""
    """Its name for `lost_node`."""
    job_id: str = ""
    """The job's number, as the shell knows it."""
    script: Path | None = None
    """The script itself, which the number of lost nodes is kept beside."""


def render(job: Job, dialect: Dialect) -> str:
    """The whole script. The scheduler runs it on the first node; `allranks train` starts the others from there."""
    parts = [
        ["#!/bin/bash", *dialect.directives],
        [
            f"# Written by allranks submit {__version__}. This runs on the first node of the job, from where `allranks",
            "# train` starts the others: node ranks, address and port come from the job, whichever nodes it gets.",
            "# What is quoted is meant as it stands:",
            "# shellcheck disable=SC2016,SC2088",
            "set -euo pipefail",
            *dialect.beginning,
            f"cd {for_bash(str(job.directory))}",
        ],
        _setup(job),
        [f"export {name}={for_bash(value)}" for name, value in job.options.assigned.items()],
        _newest_checkpoint(job) if job.options.requeue else [],
        _ask_for_lost_hosts(job, dialect) if _outlives_nodes(job) else [],
        _train(job, dialect),
        _requeue(dialect) if job.options.requeue else [],
        _after_lost_node(job, dialect) if _outlives_nodes(job) else [],
        ['exit "$code"'],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def train_command(job: Job) -> list[str]:
    """The command that the job runs."""
    return [job.python, "-m", "allranks", "train", *job.train]


def _setup(job: Job) -> list[str]:
    options = job.options
    lines = [f"module load {for_bash(module)}" for module in options.modules]
    if options.venv is not None:
        lines += ["# shellcheck source=/dev/null", f"source {for_bash(options.venv + '/bin/activate')}"]
    lines += options.setup
    if not lines:
        return []
    if options.modules:
        # A batch shell is no login shell: where the submitting shell did not export the function, it is missing.
        find = "if ! type module >/dev/null 2>&1; then source /etc/profile || true; fi"
        lines = ["# shellcheck source=/dev/null", find, *lines]
    # Set-up scripts of modules, conda and sites read variables that may not be set.
    return ["set +u", *lines, "set -u"]


def _newest_checkpoint(job: Job) -> list[str]:
    complete = for_bash(f"{RunDir(job.run).checkpoints}/")
    return [
        "newest_checkpoint() {",
        '  local marker found=""',
        f"  for marker in {complete}step-*/COMPLETE; do",
        '    if [ -e "$marker" ]; then found=$marker; fi',
        "  done",
        '  echo "$found"',
        "}",
        'before="$(newest_checkpoint)"',
    ]


def _train(job: Job, dialect: Dialect) -> list[str]:
    remember = "cancelled=1; " if job.options.requeue else ""
    return [
        *dialect.before_training,
        *(['cancelled=""'] if job.options.requeue else []),
        """trap 'interrupted=1; kill -s USR1 "$!" 2>/dev/null || true' USR1""",
        f"""trap 'interrupted=1; {remember}kill -s TERM "$!" 2>/dev/null || true' TERM INT""",
        f"{dialect.prefix}{' '.join(map(for_bash, train_command(job)))} &",
        f"# A signal ends `wait`, not the run, which saves a checkpoint and then exits with {PREEMPTED}.",
        "while true; do",
        '  interrupted="" code=0',
        '  wait "$!" || code=$?',
        '  if [ -z "$interrupted" ]; then break; fi',
        "done",
    ]


def _outlives_nodes(job: Job) -> bool:
    return job.options.requeue and job.options.nodes > 1


def _ask_for_lost_hosts(job: Job, dialect: Dialect) -> list[str]:
    path = f'{for_bash(str(job.launch))}/"lost-hosts-{dialect.job_id}.json"'
    return [f"export {LOST_HOSTS}={path}", f'rm -f "${LOST_HOSTS}"']


def _after_lost_node(job: Job, dialect: Dialect) -> list[str]:
    """Before the scheduler has noticed the loss, this script ends, and the job would count as failed."""
    again = [job.python, "-m", "allranks.submit.lost_node", dialect.scheduler]
    words = [*map(for_bash, again), f'"{dialect.job_id}"', str(job.options.nodes), f'"${LOST_HOSTS}"']
    return [
        'if [ "$code" -ne 0 ] && [ -z "$cancelled" ] && [ -e "$' + LOST_HOSTS + '" ]; then',
        "  trap '' TERM  # requeueing ends this script, and is not all there is to do",
        f"  {' '.join(words)} {for_bash(str(dialect.script))} || true",
        "fi",
    ]


def _requeue(dialect: Dialect) -> list[str]:
    """Only after PREEMPTED, never after a failure; not where somebody wants the job gone (TERM); and not for ever: a
    start that saved nothing new would be followed by another of the same."""
    return [
        f'if [ "$code" -eq {PREEMPTED} ] && [ -z "$cancelled" ]; then',
        '  if [ "$(newest_checkpoint)" = "$before" ]; then',
        '    echo "allranks: not requeued: this start saved no new checkpoint; is the time limit too short?" >&2',
        "  else",
        *(f"    {line}" for line in dialect.requeue),
        "  fi",
        "fi",
    ]
