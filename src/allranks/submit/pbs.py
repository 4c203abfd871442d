"""OpenPBS and Torque: what both document, and what each does where they differ. Source: their qsub(1B), qrerun(1B)."""

import re
from collections.abc import Callable
from pathlib import Path

from allranks.errors import AllranksError, UsageError
from allranks.submit.directives import Letters, options_in
from allranks.submit.job import Job
from allranks.submit.quoting import for_bash
from allranks.submit.script import Dialect

NAME = "PBS"
SUBMIT = "qsub"
QUEUE = "`qstat -u $USER`"
FLAVOURS = ("openpbs", "torque")

_TORQUE_NAME_LENGTH = 15
_OURS = {
    "N": "--job-name",
    "q": "--queue",
    "A": "--account",
    "r": "--requeue",
    "v": "--export",
    "V": "--export",
    "j": None,
    "S": None,
    "J": None,
    "t": None,
    # Torque's other way to ask for nodes; the prefix of directives; the number of the job, which is read.
    "L": "--nodes",
    "C": None,
    "z": None,
}
_OUR_RESOURCES = {
    "walltime": "--time",
    "select": "--nodes",
    "nodes": "--nodes",
    "nodect": "--nodes",
    "procs": "--nodes",
    "ncpus": "--cpus-per-task",
    "ngpus": "--gpus-per-node",
    "gpus": "--gpus-per-node",
    "mpiprocs": None,
    "place": "--nodes and --exclusive",
}
_LETTERS = Letters(alone="fhIVxXzE", with_value="aAbcCdDeFjJkKlLmMnNopPqrRStTuvwW")


def dialect(job: Job, script: Path, flavour: str) -> Dialect:
    """The script's part for PBS. Raises UsageError for what qsub could not read."""
    options = job.options
    for directive in options.directives:
        _check_directive(directive)
    lines = [
        f"-N {job.name}",
        *_CHUNKS[flavour](job),
        *([f"-l walltime={_walltime(options.time_seconds)}"] if options.time_seconds else []),
        *([f"-q {options.queue}"] if options.queue else []),
        *([f"-A {options.account}"] if options.account else []),
        *([f"-v {','.join(options.inherited)}"] if options.inherited else []),
        f"-r {'y' if options.requeue else 'n'}",
        "-j oe",
        # Else the user's login shell reads the script, which may be csh.
        "-S /bin/bash",
        *options.directives,
    ]
    before_training, prefix = _timer(job)
    return Dialect(
        directives=[f"#PBS {line}" for line in lines],
        beginning=[
            # PBS shows its own copy of the output only when the job has ended.
            f"mkdir -p {for_bash(str(job.launch))}",
            f'exec >>{for_bash(str(job.launch))}/"pbs-$PBS_JOBID.log" 2>&1',
            # OpenPBS sets it to all cores of the node, and a node has several ranks.
            *(["unset OMP_NUM_THREADS"] if "OMP_NUM_THREADS" not in options.inherited else []),
        ],
        before_training=before_training,
        prefix=prefix,
        requeue=[
            # On most sites qrerun is for operators; then the same script becomes a new job that waits for the end of
            # this one.
            'if ! qrerun "$PBS_JOBID" 2>/dev/null; then',
            f'  qsub -W "depend=afterany:$PBS_JOBID" {for_bash(str(script))} || true',
            "fi",
        ],
        scheduler="pbs",
        job_id="$PBS_JOBID",
        script=script,
    )


def log(job: Job, job_id: str) -> Path:
    return job.launch / f"pbs-{job_id}.log"


def command(script: Path) -> list[str]:
    return [SUBMIT, str(script)]


def environment(job: Job, env: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Directives must be read under their own prefix, whatever the user's default is."""
    dropped = sorted({"PBS_DPREFIX"} & env.keys())
    return {name: value for name, value in env.items() if name not in dropped}, dropped


def job_id(output: str) -> str:
    """Of what qsub printed: `123.server`."""
    found = output.strip().rpartition("\n")[2].strip()
    if not re.fullmatch(r"\d+[\w.:-]*", found):
        raise AllranksError(f"qsub printed {output.strip()!r} instead of a job id; `qstat -u $USER` shows your jobs")
    return found


def advice(job_id: str) -> dict[str, str]:
    """What to type next. `qsig` is not among it: it may reach every process of the job, or the shell alone."""
    return {"state": f"qstat -f {job_id}", "stop": f"qdel {job_id}"}


def _openpbs_chunks(job: Job) -> list[str]:
    options = job.options
    chunk = [f"{options.nodes}"]
    chunk += [f"ncpus={options.cpus_per_task}"] if options.cpus_per_task else []
    chunk += [f"ngpus={_num_gpus(job)}"] if options.gpus_per_node else []
    chunk += [f"mem={options.mem.lower()}b"] if options.mem else []
    # One process a chunk, and no two chunks on one node: PBS_NODEFILE then names each node once.
    select = ":".join([*chunk, "mpiprocs=1"])
    return [f"-l select={select}", f"-l place=scatter{':exclhost' if options.exclusive else ''}"]


def _torque_chunks(job: Job) -> list[str]:
    options = job.options
    if len(job.name) > _TORQUE_NAME_LENGTH:
        raise UsageError(f"--job-name {job.name}: Torque takes at most {_TORQUE_NAME_LENGTH} characters")
    if options.exclusive or options.mem:
        given = "--exclusive" if options.exclusive else "--mem"
        raise UsageError(
            f"{given}: Torque has no option of its own that says this of a node; give your site's with "
            "--directive, such as '-l naccesspolicy=singlejob' or '-l pmem=64gb'"
        )
    gpus = f":gpus={_num_gpus(job)}" if options.gpus_per_node else ""
    return [f"-l nodes={options.nodes}:ppn={options.cpus_per_task or 1}{gpus}"]


_CHUNKS: dict[str, Callable[[Job], list[str]]] = {"openpbs": _openpbs_chunks, "torque": _torque_chunks}


def _num_gpus(job: Job) -> str:
    gpus = job.options.gpus_per_node
    assert gpus is not None
    if not gpus.isdecimal():
        raise UsageError(
            f"--gpus-per-node {gpus}: PBS takes a number here; name the type with --directive, as your site has it"
        )
    return gpus


def _walltime(seconds: int) -> str:
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _timer(job: Job) -> tuple[list[str], str]:
    """Neither PBS sends a signal ahead of the limit, so `timeout` does. $SECONDS is how long this shell has run."""
    limit, before = job.options.time_seconds, job.options.signal_before
    if limit is None or not before:
        return [], ""
    lines = [f"time_left=$(({limit - before} - SECONDS))", 'if [ "$time_left" -lt 1 ]; then time_left=1; fi']
    return lines, 'timeout --foreground --preserve-status --signal=USR1 "$time_left" '


def _check_directive(directive: str) -> None:
    for name, value in options_in(directive, _LETTERS):
        if name == "l":
            asked = [(one.partition("=")[0].strip(), _OUR_RESOURCES) for one in value.split(",")]
        else:
            asked = [(name, _OURS)]
        for one, ours in asked:
            if one in ours:
                hint = f"use {ours[one]} of `allranks submit`" if ours[one] else "the script sets it, and relies on it"
                raise UsageError(f"--directive {directive!r}: {hint}")
