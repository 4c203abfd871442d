"""No test reaches the network, and no test takes more than one core per process."""

import atexit
import gc
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

# Before torch, tokenizers or the Hub client are imported; child processes inherit them.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
# Trackers' libraries report about themselves.
os.environ["WANDB_ERROR_REPORTING"] = "false"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Images of containers set it; every process of a test would compile each file that it imports, a second for a rank.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# What runs remember of this machine is neither the user's nor an earlier session's. DeepSpeed's helper is built once.
if "PYTEST_XDIST_WORKER" not in os.environ:  # the processes of xdist inherit it
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(users / "torch_extensions"))
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="allranks-tests-cache-")
    Path(os.environ["XDG_CACHE_HOME"]).chmod(0o1777)  # tests of users without root write there, too
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
# A visible GPU would change which strategy and precision a test runs.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Launched from inside a job, the tests are not ranks of that job.
_OF_A_JOB = ("SLURM_", "PBS_", "OMPI_", "PMI_", "ALLRANKS_", "PET_", "NNODES", "NODE_RANK", "MASTER_ADDR", "SSH_")
for name in [name for name in os.environ if name.startswith(_OF_A_JOB)]:
    if name != "ALLRANKS_REQUIRE_LAB":
        del os.environ[name]

# Started under nohup, or by a CI that ignores them, the tests would hand that on to the runs they send signals to.
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

CLUSTER = Path(__file__).parent / "cluster"
OF_THE_LAB = {path.name for path in CLUSTER.glob("test_*.py") if re.search(r"\blab\b", path.read_text())}
# More at once would leave runs of several ranks too little to keep their deadlines: further processes are nice to them,
# and have what they leave of the cores.
PROCESSES_FOR_WHOLE_RUNS = 2
NICE = 5
_STARTS = re.compile(r"\b(subprocess|warm_processes|multiprocessing)\b")
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0", "::")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    connect = socket.socket.connect

    def only_this_machine(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(LOOPBACK):
            raise RuntimeError(f"a test connects to {address}: tests must run without a network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_this_machine)


@pytest.fixture(autouse=True, scope="module")
def _libraries_are_no_garbage():
    """What the tests before have imported, or thawed as the end of a run does, is not looked through again, either."""
    gc.collect()
    gc.freeze()


def _is_for_whole_runs(worker: str) -> bool:
    """Of the names that xdist gives: gw0, gw1, …"""
    return int(worker.removeprefix("gw")) < PROCESSES_FOR_WHOLE_RUNS


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") and not _is_for_whole_runs(config.workerinput["workerid"]):
        os.nice(NICE)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`: a file's tests stay in one process, which keeps what they share; so do all that need the lab.

    xdist has marks for this, which it loses with pytest 9.2 (it writes an attribute that pytest does not read).
    """
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # by the number of a file's tests; see below

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "lab" if Path(file).name in OF_THE_LAB else file

        def _assign_work_unit(self, node: Any) -> None:
            # Further processes begin at the other end: unit tests fill the time in which whole runs wait.
            if not _is_for_whole_runs(node.gateway.id):
                self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
            super()._assign_work_unit(node)

    return Scheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Any:
    """What is imported and collected stays to the end: no garbage is looked for in it, now or in any test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `-n`: what takes longest begins first, at both ends: of whole runs those of the lab, which one process does;
    of unit tests the files that start processes. What is short fills the end.
    """
    if hasattr(config, "workerinput"):
        starting = {path: bool(_STARTS.search(path.read_text())) for path in {item.path for item in items}}
        items.sort(
            key=lambda item: (
                CLUSTER not in item.path.parents,
                item.path.name not in OF_THE_LAB,
                CLUSTER not in item.path.parents and starting[item.path],
            )
        )
