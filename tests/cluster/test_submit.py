"""`allranks submit` on a cluster: real Slurm and the stand-in for PBS, from a folder with a hostile name."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from allranks.observe import RunDir
from tests.cluster.conftest import largest_difference
from tests.cluster.lab import Lab
from tests.cluster.training import ENVIRONMENT, Training, make_training
from tests.patience import TIMEOUT_SECONDS

ALLRANKS = [sys.executable, "-m", "allranks"]
HOSTILE = 'it\'s a "$(touch injected)"; folder'
# So little that the rounding of one and of two ranks does not grow over many steps.
SLOW = {"learning_rate": 1e-5, "lr_scheduler": "constant", "num_epochs": 1000}

pytestmark = pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")


def make_hostile(lab: Lab, name: str, base: dict, **keys: object) -> Training:
    """A training whose folder, config file and run directory have hostile names."""
    training = make_training(lab, name, base, **SLOW, output_dir=HOSTILE, **keys)
    folder = training.config.parent.rename(lab.shared / f"{HOSTILE} {name}")
    config = (folder / "c.yaml").rename(folder / f"{HOSTILE}.yaml")
    config.write_text(config.read_text().replace(str(lab.shared / name), "."))
    return Training(lab, config, RunDir(folder / HOSTILE))


def submit(training: Training, *words: str) -> dict:
    """What `allranks submit --json` says of the job, whose script shellcheck and sbatch have nothing against."""
    exports = [word for variable in ENVIRONMENT for word in ("--export", variable)]
    command = [*ALLRANKS, "submit", training.config.name, "--nodes", "2", "--time", "1:00:00", *exports, *words]

    def run(argv: list[str], **options: str) -> str:
        node, folder = training.lab.node(0), str(training.config.parent)
        return node.run(argv, cwd=folder, env=ENVIRONMENT, check=True, **options).stdout

    script = run([*command, "--dry-run"])
    checked = subprocess.run(["shellcheck", "-"], input=script, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    if "slurm" in words:
        run(["sbatch", "--test-only"], input=script)
    return json.loads(run([*command, "--json"]))


def assert_nothing_is_left(training: Training) -> None:
    assert not list(training.lab.shared.rglob("injected"))
    assert training.processes() == {}


def test_a_job_of_slurm_is_stopped_and_requeued_and_loses_no_step(lab, base_config, losses_alone):
    slurm = lab.slurm()
    training = make_hostile(lab, "slurm", base_config, max_steps=200)
    job = submit(training, "--scheduler", "slurm", "--requeue")
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while max(training.losses(), default=0) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    lab.node(0).run(["scancel", "--batch", "--signal=USR1", job["job"]], check=True)
    ended = slurm.wait(job["job"], timeout=TIMEOUT_SECONDS)
    log = Path(job["log"]).read_text()
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), log
    port = 20000 + int(job["job"])
    assert f"2 over srun: node0, node1\nrendezvous: 10.77.0.1 port {port} of node0" in log
    step = log.partition("preempted (SIGUSR1) at step ")[2].partition(":")[0]
    assert f"at step {step} of 200" in log.partition("preempted (SIGUSR1)")[2], log
    assert largest_difference(training.losses(), losses_alone(**SLOW, max_steps=200)) < 1e-5
    assert_nothing_is_left(training)


def test_a_job_of_pbs_trains_to_the_same_losses(lab, base_config, losses_alone):
    pbs = lab.pbs()
    training = make_hostile(lab, "pbs", base_config, max_steps=4)
    job = submit(training, "--scheduler", "pbs", "--cpus-per-task", "2")
    ended = pbs.wait(job["job"], timeout=TIMEOUT_SECONDS)
    log = Path(job["log"]).read_text()
    assert ended.exit_code == 0 and "2 over pbsdsh: node0, node1" in log, log
    assert largest_difference(training.losses(), losses_alone(**SLOW, max_steps=4)) < 1e-5
    assert_nothing_is_left(training)


@pytest.mark.thorough
@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_a_job_that_loses_a_node_goes_on_with_a_spare_one_from_its_newest_checkpoint(lab, base_config, scheduler):
    jobs = getattr(lab, scheduler)()
    keys = {"save_strategy": "steps", "save_steps": 5, "save_total_limit": 2}
    training = make_hostile(lab, f"lost-{scheduler}", base_config, max_steps=40, **keys)
    more = ["--cpus-per-task", "2"] if scheduler == "pbs" else []
    job = submit(training, "--scheduler", scheduler, "--requeue", *more)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not list(training.run.checkpoints.glob("step-*/COMPLETE")) and time.monotonic() < deadline:
        time.sleep(0.1)
    lab.power_off(1)
    ended = jobs.wait(job["job"], timeout=TIMEOUT_SECONDS)
    log = Path(job["log"]).read_text()
    assert ended.exit_code == 0, log
    without = " without it" if scheduler == "slurm" else ""
    assert f"allranks: node1 was lost: the job is requeued{without} (1 of at most 5 times)" in log
    assert f"over {'srun' if scheduler == 'slurm' else 'pbsdsh'}: node0, node2" in log
    assert "resumed " in log and max(training.losses()) == 40
    lab.restart(1)
    assert_nothing_is_left(training)
