"""Breaks fine-tunes by TRL and axolotl on purpose, really, and asks the doctor for the cause of each.

    python -m tests.exam.breaking trl PYTHON [NAME…]
    python -m tests.exam.breaking axolotl PYTHON [NAME…]
    python -m tests.exam.breaking axolotl --keep

PYTHON is one that has them: of an environment of their own, as they fix other versions of everything. Two ranks on
this machine's CPU. The whole logs go to `--logs`; `--keep` writes what they show into `tests/exam/own-runs/`.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from allranks.doctor.read_logs import diagnosis_of_text
from benchmarks.workload import Workload, write
from tests.exam.breaking.runs import TRAINERS, Broken
from tests.ports import free_port

HERE = Path(__file__).parent
OWN_RUNS = HERE.parent / "own-runs"
LONGEST_SECONDS = 150.0
MODEL = Workload(vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=2, num_documents=4)
BAR = re.compile(r"\d+/\d+ \[|\d+%\|")
# The lines of programs that tracebacks show, and of configs that are printed.
OF_PROGRAMS = re.compile(r"(\[rank\d+\]: )?(?!\s+\w+ +: )( {4}| {2}[\"}{\]]| {2}\S+: )")
FRAME = re.compile(r'(\[rank\d+\]: )?  File "')


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainer", choices=TRAINERS)
    parser.add_argument("python", nargs="?")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--logs", type=Path, default=Path("broken-runs"), help="where the whole logs go")
    parser.add_argument("--keep", action="store_true", help="keep what they show in tests/exam/own-runs, from --logs")
    options = parser.parse_args(arguments)
    logs = options.logs / options.trainer
    logs.mkdir(parents=True, exist_ok=True)
    if options.keep:
        keep(options.trainer, logs)
        return
    if options.python is None:
        parser.error("PYTHON is missing: the interpreter of the environment that has " + options.trainer)
    for broken in TRAINERS[options.trainer]:
        if options.names and broken.name not in options.names:
            continue
        text = run(options.trainer, options.python, broken)
        (logs / f"{broken.name}.log").write_bytes(text)
        told = diagnosis_of_text(text)
        named = told.cause or told.symptom or "unknown"
        said = told.evidence[0].text[:100] if told.evidence else ""
        print(
            f"{'right' if named == broken.cause else 'WRONG'} {broken.name}: {broken.cause}, rank {broken.rank}; "
            f"told: {named} ({told.certainty}), rank {told.rank} | {said}",
            flush=True,
        )


def run(trainer: str, python: str, broken: Broken) -> bytes:
    """What the run prints, stdout and stderr."""
    with tempfile.TemporaryDirectory() as made, taken_port() as taken:
        folder = Path(made)
        write(MODEL, folder)
        generator = random.Random(7)
        with (folder / "train.jsonl").open("w") as file:
            for _ in range(60):
                words = " ".join(f"w{generator.randrange(3, 64)}" for _ in range(generator.randrange(8, 40)))
                file.write(json.dumps({"text": words}) + "\n")
        broken.prepare(folder)
        launch = broken.launch or ("--nproc-per-node", "2", "--master-port", "{free}")
        words = [word.format(taken=taken, free=free_port()) for word in launch]
        command = [python, "-m", "torch.distributed.run", *words]
        if trainer == "trl":
            output = str(folder / broken.env.get("OUTPUT", "out"))
            command += [str(HERE / "trl_sft.py"), str(folder), output]
        else:
            (folder / "config.yml").write_text(yaml.safe_dump(axolotl_config() | broken.keys))
            command += ["-m", "axolotl.cli.train", "config.yml"]
        env = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(HERE), "AXOLOTL_DO_NOT_TRACK": "1", "ACCELERATE_USE_CPU": "true", **broken.env,
        }  # fmt: skip
        with (folder / "log").open("w+b") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=LONGEST_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            log.seek(0)
            text = log.read()
        subprocess.run(["umount", str(folder / "small")], capture_output=True, check=False)
        return text


def keep(trainer: str, logs: Path) -> None:
    """Write the exam's questions of those logs. What those programs print is cut to the facts it tells."""
    text = [f"# Runs of {trainer} that were broken on purpose: `python -m tests.exam.breaking {trainer} PYTHON`."]
    for broken in TRAINERS[trainer]:
        log = (logs / f"{broken.name}.log").read_text(errors="replace")
        rank = [] if broken.rank is None else [f"rank = {broken.rank}"]
        text += ["", "[[question]]", f'id = "{trainer}-{broken.name}"', f'cause = "{broken.cause}"', *rank]
        text += ["log = '''", shortened(log), "'''"]
    OWN_RUNS.mkdir(exist_ok=True)
    (OWN_RUNS / f"{trainer}.toml").write_text("\n".join(text) + "\n")


def shortened(log: str) -> str:
    """Its lines, of bars their last state, of tracebacks the first and the last frame, of configs nothing."""
    log = re.sub(r"\x1b\[[\d;]*[A-Za-z]|[\x00-\x08\x0b\x0c\x0e-\x1f]", "", log)
    log = re.sub(r"/tmp/tmp\w+", "/job", log)
    log = re.sub(r"/\S*/site-packages", "/venv/site-packages", log)
    log = re.sub(r"(?<!\w)/\S*/bin/python", "/venv/bin/python", log).replace(str(HERE), "/job")
    lines: list[str] = []
    for line in (one.rstrip()[:300].replace("'''", "") for one in log.replace("\r", "\n").splitlines()):
        if not line or OF_PROGRAMS.match(line):
            continue
        if lines and BAR.search(line) and BAR.search(lines[-1]):
            lines.pop()
        if FRAME.match(line) and len(lines) > 1 and FRAME.match(lines[-1]) and FRAME.match(lines[-2]):
            lines.pop()
        lines.append(line)
    return "\n".join(lines)


def axolotl_config() -> dict[str, object]:
    return {
        "base_model": "model",
        "datasets": [{"path": "train.jsonl", "ds_type": "json", "type": "completion"}],
        "dataset_prepared_path": "prepared",
        "sequence_len": 64,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 6,
        "num_epochs": 1,
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "optimizer": "adamw_torch",
        "val_set_size": 0,
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "attn_implementation": "sdpa",
        "logging_steps": 1,
        "save_strategy": "no",
        "output_dir": "out",
        "ddp_timeout": 20,
        "plugins": ["axolotl_fault.FaultPlugin"],
    }


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


if __name__ == "__main__":
    main()
