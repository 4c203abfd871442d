"""Whole trainings by the Python API, in programs of a user's."""

import json
import shutil
import signal
import subprocess
import sys

import allranks
from allranks.observe import RunDir
from tests.cluster.conftest import ENVIRONMENT
from tests.patience import TIMEOUT_SECONDS
from tests.ports import free_port

ALONE = """
import json, os, signal, sys
import allranks

config = json.load(open(sys.argv[1]))
before = dict(os.environ), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
stopped = allranks.train(config)
try:
    allranks.train(config)
except allranks.UsageError as error:
    refused = str(error)
last = max(e.step for e in allranks.read_events(stopped.run_dir) if isinstance(e, allranks.StepEvent))
done = allranks.train(config, {"auto_resume_from_checkpoints": True, "max_steps": last})
assert before == (dict(os.environ), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)])
ends = [stopped.exit_code, stopped.is_preempted, refused, done.exit_code, done.is_preempted]
print(json.dumps(ends), file=sys.stderr)
"""

RANK = """
import json, os, sys
import allranks

config, broken = json.load(open(sys.argv[1])), sys.argv[2]
first = allranks.train(config)
second = allranks.train(config, {"output_dir": config["output_dir"] + "-2"})
try:
    allranks.train(config, {"output_dir": config["output_dir"] + "-3", "base_model": broken})
except allranks.UsageError as error:
    ends = [first.exit_code, second.exit_code, error.exit_code, str(error)]
    with open(f"{sys.argv[1]}-{os.environ['RANK']}", "w") as file:
        json.dump(ends, file)
    os._exit(error.exit_code)
"""


def write(path, base_config, **keys):
    path.write_text(json.dumps({**base_config, "output_dir": str(path.parent / "run"), **keys}))
    return path


def test_a_training_is_stopped_refused_and_gone_on_with_in_one_process(base_config, tmp_path):
    config = write(tmp_path / "config.json", base_config, max_steps=5000, lr_scheduler="constant")
    program = subprocess.Popen(
        [sys.executable, "-c", ALONE, config],
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdout is not None
    for line in program.stdout:
        if line.startswith("step "):
            program.send_signal(signal.SIGTERM)
            break
    _, errors = program.communicate(timeout=TIMEOUT_SECONDS)
    assert program.returncode == 0, errors
    code, is_preempted, refused, *done = json.loads(errors.splitlines()[-1])
    assert (code, is_preempted) == (75, True)
    assert "holds checkpoints of an earlier run" in refused
    assert done == [0, False]


def test_ranks_of_the_users_torchrun(base_config, tiny, tmp_path):
    config = write(tmp_path / "config.json", base_config, max_steps=2)
    broken = shutil.copytree(tiny.model, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (tmp_path / "rank.py").write_text(RANK)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        f"{free_port()}",
    ]
    done = subprocess.run(
        [*torchrun, tmp_path / "rank.py", config, broken],
        env=ENVIRONMENT,
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
    )
    for rank in (0, 1):
        path = tmp_path / f"config.json-{rank}"
        assert path.exists(), done.stdout + done.stderr
        *codes, message = json.loads(path.read_text())
        assert codes == [0, 0, 2]
        assert message.startswith("rank ") and f"{weights}: tensor" in message
    losses = [
        [event.loss for event in allranks.read_events(RunDir(tmp_path / name).path, rank=0) if event.kind == "step"]
        for name in ("run", "run-2")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 2
