"""The demo from beginning to end: every step is a command that the user could have typed."""

import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from allranks.demo.commands import Command, run
from allranks.demo.files import DemoFiles, write_files
from allranks.errors import AllranksError
from allranks.exit_codes import PREEMPTED
from allranks.observe import RunDir, libraries_aside, read_events
from allranks.observe.events import StepEvent
from allranks.observe.folding import for_terminal
from allranks.observe.picture import loss_picture

_QUESTIONS = ("What does os.path.join do?", "What is the module json for?")

_ASK = '''\
"""Ask a model: plain transformers, nothing of allranks.   python ask.py FOLDER QUESTION..."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

folder, *questions = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
for question in questions:
    messages = [{"role": "user", "content": question}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**chat, max_new_tokens=48, do_sample=False)
    print("Q:", question)
    print("A:", tokenizer.decode(answer[0, chat["input_ids"].shape[1] :], skip_special_tokens=True))
'''


def run_demo(
    directory: Path | None = None, *, console: Console | None = None, stop_share: float = 2 / 3, **sizes: Any
) -> None:
    """Fine-tune a tiny model as two nodes on this machine, resume it on one process, export it, ask it.

    `directory` is made for it (default: the first free one of `allranks-demo`, `allranks-demo-2`, …); the nodes are
    stopped after `stop_share` of the steps; `sizes` go to `write_files`. Raises AllranksError naming the step that
    failed, with the end of its log. On Ctrl-C or SIGTERM all processes that it started are ended first.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop cleans up as Ctrl-C does

    def say(number: int, text: str) -> None:
        console.print(f"\n[bold]{number}. {text}[/bold]  [dim]({time.monotonic() - started:.0f} s)[/dim]")

    directory = directory or _free_directory()
    say(1, "Make a tokenizer, a data set and a model from this Python installation")
    console.print(f"  $ allranks demo --files-only {shlex.quote(_short(directory))}", markup=False)
    files = _make_files(directory, console, **sizes)
    run_dir = RunDir(files.output)
    stop_after = max(1, round(files.max_steps * stop_share))
    config = _short(files.config)

    say(2, f"Train as two nodes, and stop both after step {stop_after} as a scheduler would")
    nodes = _two_nodes(files, config)
    _run(console, "training on two nodes", nodes, run_dir, files.max_steps, expected=PREEMPTED, stop_after=stop_after)
    two_nodes = _losses(run_dir)
    _tell(
        console, f"  both nodes saved at step {max(two_nodes)} and exited with {PREEMPTED}: preempted, start me again"
    )

    say(3, "Go on from that checkpoint on one process")
    alone = Command("one process", ("allranks", "train", config), _log(files, "train-alone"), _threads())
    _run(console, "going on with one process", [alone], run_dir, files.max_steps)
    losses = _losses(run_dir)
    if min(losses.keys() - two_nodes.keys(), default=None) != max(two_nodes) + 1 or max(losses) != files.max_steps:
        raise AllranksError(
            f"the run did not go on from step {max(two_nodes)} to {files.max_steps}: see {run_dir.path}"
        )

    say(4, "Export to what every Hugging Face tool reads")
    exported = files.directory / "exported"
    export_args = ("allranks", "export", _short(files.output), "--output", _short(exported))
    export = Command("export", export_args, _log(files, "export"))
    _run(console, "the export", [export])

    say(5, "Ask the exported model, with plain transformers")
    ask_file = _write_ask(files)
    ask = Command("ask.py", ("python", _short(ask_file), _short(exported), *_QUESTIONS), _log(files, "ask"))
    _run(console, "asking the exported model", [ask])
    answers = [line for line in ask.log.read_text().splitlines() if line.startswith(("Q: ", "A: "))]
    _tell(console, "\n".join(f"  {line}" for line in answers))
    _tell(
        console,
        "  (Four million parameters after a minute of training: it has the tone of the library, not its facts.)",
    )

    console.print("\nThe loss, step by step:\n")
    ascii_only = not (console.encoding or "").lower().startswith("utf")
    picture = loss_picture(
        losses, max(two_nodes) + 1, before="2 nodes x 1 process", after="1 process", ascii_only=ascii_only
    )
    console.print(picture, markup=False)
    _tell(
        console,
        f"\nDone in {time.monotonic() - started:.0f} s. Everything is in {_short(files.directory)}: "
        "config.yaml to change and train again, run/ with the events and checkpoints, exported/ with the model.",
    )


def write_only(directory: Path, *, console: Console | None = None) -> None:
    """Write the demo's files into `directory` and say what to type next."""
    console = console or Console(highlight=False, soft_wrap=True)
    files = _make_files(directory, console)
    ask, exported = _short(_write_ask(files)), _short(files.directory / "exported")
    question = shlex.quote(_QUESTIONS[0])
    console.print(
        f"\nNext:\n  allranks train {shlex.quote(_short(files.config))}\n"
        f"  allranks generate {shlex.quote(_short(files.output))} {question} --compare base\n"
        f"  allranks export {shlex.quote(_short(files.output))} --output {shlex.quote(exported)}\n"
        f"  python {shlex.quote(ask)} {shlex.quote(exported)} {question}",
        markup=False,
    )


def _tell(console: Console, text: str) -> None:
    console.print(for_terminal(text, console.file), markup=False)  # type: ignore[arg-type]


def _write_ask(files: DemoFiles) -> Path:
    path = files.directory / "ask.py"
    path.write_text(_ASK, encoding="utf-8")
    return path


def _make_files(directory: Path, console: Console, **sizes: Any) -> DemoFiles:
    with libraries_aside():  # saving a model imports all that is installed, and some of it speaks
        files = write_files(directory, **sizes)
    console.print(
        f"  {files.num_records:,} questions and answers, a model of {files.num_parameters / 1e6:.1f} M parameters",
        markup=False,
    )
    return files


def _two_nodes(files: DemoFiles, config: str) -> list[Command]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    rendezvous = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port), "--nproc-per-node", "1")
    return [
        Command(
            f"node {rank}",
            ("allranks", "train", config, "--node-rank", str(rank), *rendezvous),
            _log(files, f"train-node-{rank}"),
            _threads(),
        )
        for rank in (0, 1)
    ]


def _run(
    console: Console,
    what: str,
    commands: Sequence[Command],
    run_dir: RunDir | None = None,
    total_steps: int = 0,
    *,
    expected: int = 0,
    stop_after: int | None = None,
) -> None:
    """Run the commands with their progress shown; with `stop_after`, send SIGTERM to all when that step is done."""
    for command in commands:
        console.print(f"  $ {command.as_typed}{' &' if len(commands) > 1 else ''}", markup=False)
    watch = _watcher(console, run_dir, total_steps, stop_after) if run_dir else lambda processes: None
    try:
        run(commands, expected=expected, while_running=watch)
    except AllranksError as error:
        raise AllranksError(f"{what} failed: {error}") from None
    watch([])


def _watcher(
    console: Console, run_dir: RunDir, total_steps: int, stop_after: int | None
) -> Callable[[Sequence[subprocess.Popen[bytes]]], None]:
    every = max(1, total_steps // 10)
    shown = max(_losses(run_dir), default=0)
    stopped = False

    def watch(processes: Sequence[subprocess.Popen[bytes]]) -> None:
        nonlocal shown, stopped
        losses = _losses(run_dir)
        step = max(losses, default=0)
        # A line at every tenth of the run; the newest step when all processes have ended.
        if step > shown and (step // every > shown // every or shown == 0 or not processes):
            console.print(f"  step {step:>3}/{total_steps}  loss {losses[step]:.3f}", markup=False)
            shown = step
        if stop_after is not None and step >= stop_after and not stopped:
            stopped = True
            for process in processes:
                process.send_signal(signal.SIGTERM)

    return watch


def _losses(run_dir: RunDir) -> dict[int, float]:
    """Loss by step, from the events of rank 0."""
    return {event.step: event.loss for event in read_events(run_dir.events(0)) if isinstance(event, StepEvent)}


def _threads() -> dict[str, str]:
    """Two nodes on one machine share its cores: without this, each would take them all."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # More than four threads make a model this small slower.
    return {"OMP_NUM_THREADS": str(max(1, min(4, cores // 2)))}


def _free_directory() -> Path:
    number, directory = 1, Path("allranks-demo")
    while directory.exists():
        number += 1
        directory = Path(f"allranks-demo-{number}")
    return directory


def _log(files: DemoFiles, name: str) -> Path:
    return files.directory / "logs" / f"{name}.log"


def _short(path: Path) -> str:
    """The path as one would type it here."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
