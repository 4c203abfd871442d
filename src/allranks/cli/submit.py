"""`allranks submit`: a batch job that trains."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from allranks.cli.config_keys import IgnoreUnsupported
from allranks.cli.help import new_app
from allranks.cli.train_words import TrainWordsCommand, is_given, read_as_train, train_words
from allranks.errors import UsageError

app = new_app()


@app.command(
    cls=TrainWordsCommand,
    options_metavar="[OPTIONS] [--CONFIG-KEY VALUE]... [-- OPTIONS-OF-TRAIN]",
    epilog="Example: allranks submit config.yaml --scheduler slurm --nodes 4 --gpus-per-node 8 --time 24:00:00",
)
def submit(
    ctx: typer.Context,
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file with Axolotl's keys.", show_default=False)
    ],
    scheduler: Annotated[str, typer.Option(metavar="slurm|pbs", help="Who runs the job.")],
    nodes: Annotated[int, typer.Option(help="Nodes of the job.")],
    gpus_per_node: Annotated[str | None, typer.Option(help="GPUs of each node; for Slurm also TYPE:NUMBER.")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit, HH:MM:SS or D-HH:MM:SS.")] = None,
    queue: Annotated[str | None, typer.Option("--queue", "--partition", help="Queue or partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Whose budget pays.")] = None,
    job_name: Annotated[str | None, typer.Option(help="Default: the config file's name.")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(help="Cores of each node for the job.")] = None,
    mem: Annotated[str | None, typer.Option(help="Memory of each node, such as 64G.")] = None,
    exclusive: Annotated[bool, typer.Option("--exclusive", help="Share the nodes with no other job.")] = False,
    directive: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION", help="Another option of the scheduler, such as '--constraint=ib'. Repeatable."),
    ] = None,
    module: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Environment module to load. Repeatable.")
    ] = None,
    venv: Annotated[
        str | None, typer.Option(help="Virtual environment whose allranks runs. Default: the one of this command.")
    ] = None,
    setup: Annotated[
        list[str] | None, typer.Option(metavar="LINE", help="Shell line to run first, on node 0. Repeatable.")
    ] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="Variable for the job; NAME takes today's value. Repeatable."),
    ] = None,
    requeue: Annotated[
        bool, typer.Option("--requeue", help="When the time is over, go back into the queue and go on from there.")
    ] = False,
    signal_before: Annotated[
        int, typer.Option(help="Seconds before the time limit to save a checkpoint and stop; 0: never.")
    ] = 300,
    pbs_flavour: Annotated[str, typer.Option(metavar="openpbs|torque", help="Which PBS.")] = "openpbs",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script; submit nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print job id, script and log as JSON.")] = False,
    ignore_unsupported: IgnoreUnsupported = False,
) -> None:
    """Check CONFIG, write a batch script that trains it on all nodes of a job, and submit it.

    Any key of the config is an option: --max-steps 2. After a lone -- options of `allranks train` and of its
    launcher are taken: -- --launcher accelerate
    """
    from allranks.config import load_config
    from allranks.observe.enduring import say
    from allranks.submit.job import JobOptions
    from allranks.submit.submit import ENCODING, make_launch_folder, write_script
    from allranks.submit.submit import submit as hand_in

    words = [*(["--ignore-unsupported"] if ignore_unsupported else []), *train_words(ctx)]
    if nodes > 1:
        # What the job's first node gets crosses to the others only if train is told.
        words = [*(word for name in export or () for word in ("--export", name.partition("=")[0])), *words]
    words, overrides, ignore = _as_train_reads(config, words, requeue=requeue, signal_before=signal_before)
    cfg = load_config(config, overrides, ignore_unsupported=ignore)
    for line in cfg.remarks:
        say(line, file=sys.stderr)
    options = JobOptions(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_task=cpus_per_task,
        mem=mem,
        time=time,
        queue=queue,
        account=account,
        name=job_name,
        exclusive=exclusive,
        directives=tuple(directive or ()),
        modules=tuple(module or ()),
        venv=venv,
        setup=tuple(setup or ()),
        exports=tuple(export or ()),
        requeue=requeue,
        signal_before=signal_before,
    )
    written = write_script(scheduler, options, config, cfg, words, pbs_flavour=pbs_flavour)
    if dry_run:
        problem = make_launch_folder(written)
        if problem:
            say(f"warning: {problem}; make it before you submit the script, or the job ends at once", file=sys.stderr)
        typer.echo(written.text.encode(*ENCODING), nl=False)
        return
    done = hand_in(scheduler, written)
    if as_json:
        found = {"job": done.job_id, "script": str(done.script), "log": str(done.log)}
        typer.echo(json.dumps(found, indent=1))
        return
    shown = {"job": done.job_id, "script": done.script, "log": f"tail -F {shlex.quote(str(done.log))}", **done.advice}
    say("\n".join(f"{name + ':':<12}{value}" for name, value in shown.items()))


# What the job's allocation says, and what belongs to other ways of starting.
_OF_THE_ALLOCATION = {
    "nnodes": "--nodes",
    "node_rank": "",
    "master_addr": "",
    "rdzv_endpoint": "",
    "hosts": "--nodes",
    "hostfile": "--nodes",
    "from_manifest": "",
}
_RESUME = "auto_resume_from_checkpoints"


def _as_train_reads(
    config: Path, words: list[str], *, requeue: bool, signal_before: int
) -> tuple[list[str], dict[str, str], bool]:
    """The words after `allranks train`, the config's overrides among them, and whether unsupported keys are left out.

    The command's own parser reads them, so that what is checked here is what the job will do. Raises UsageError.
    """
    from allranks.cli.config_keys import given
    from allranks.config.overrides import parse_overrides

    context = read_as_train([str(config), *words])
    for name, ours in _OF_THE_ALLOCATION.items():
        if context.params.get(name) is not None:
            hint = f"give {ours}" if ours else "leave it out"
            raise UsageError(f"--{name.replace('_', '-')}: the job's nodes are known when it starts; {hint}")
    overrides = parse_overrides(given(context).config)
    added = []
    if requeue:
        if overrides.setdefault(_RESUME, "true") != "true":
            raise UsageError(
                f"--requeue goes on from the newest checkpoint, and --{_RESUME.replace('_', '-')} says not to"
            )
        added += [f"--{_RESUME.replace('_', '-')}", "true"]
    if signal_before != context.params["grace_seconds"] and not is_given(context, "grace_seconds") and signal_before:
        # All the time that there is to save.
        added += ["--grace-seconds", str(signal_before)]
    return [str(config), *added, *words], overrides, bool(context.params.get("ignore_unsupported"))


if __name__ == "__main__":
    from allranks.cli.main import main_of

    main_of("submit")
