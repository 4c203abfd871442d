"""A training on the lab: the config in a shared folder, started by real commands on real nodes."""

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from allranks.observe import RunDir, read_events
from allranks.observe.events import StepEvent
from tests.cluster.lab import Lab
from tests.patience import TIMEOUT_SECONDS

TRAIN = (sys.executable, "-m", "allranks", "train", "c.yaml")
# Where nodes are started by hand: values of one node are shown on the others to nodes that know each other only.
TOKEN = {"ALLRANKS_TOKEN": "t" * 32}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TERM": "dumb"}
# After a run was cut off, no rank runs anywhere: 15 s by promise, and more where many tests share two cores.
GONE_AFTER_SECONDS = 60.0


@dataclass
class Training:
    """`config` and `run` lie in a folder that all nodes share; commands start in it."""

    lab: Lab
    config: Path
    run: RunDir

    def start(self, node: int, command: Sequence[object], **env: str) -> Any:
        """Start a command on a node; returns its Popen, stdout and stderr in one pipe."""
        words = [str(word) for word in command]
        return self.lab.node(node).popen(words, env={**ENVIRONMENT, **env}, cwd=str(self.config.parent))

    def finish(self, processes: Iterable[Any], expect: Sequence[int] | None = None) -> list[str]:
        """Wait for the commands; their output. Codes other than `expect` (default: all 0) fail with all logs."""
        processes = list(processes)
        outputs = [process.communicate(timeout=TIMEOUT_SECONDS)[0] for process in processes]
        codes = [process.returncode for process in processes]
        assert codes == list(expect or [0] * len(codes)), "\n".join([f"exit codes {codes}", *outputs, *self._logs()])
        return outputs

    def losses(self, rank: int = 0) -> dict[int, float]:
        events = read_events(self.run.events(rank))
        return {int(event.step): float(event.loss) for event in events if isinstance(event, StepEvent)}

    def wait_for_step(self, step: int, process: Any) -> None:
        """Wait until rank 0 has done that step."""
        self.wait_until(lambda: max(self.losses(), default=0) >= step, process)

    def wait_until(self, condition: Callable[[], bool], process: Any) -> None:
        """Wait for a condition while the process runs."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not condition():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("\n".join([process.communicate(timeout=5)[0], *self._logs()]))
            time.sleep(0.1)

    def processes(self) -> dict[str, list]:
        """What still runs on each node that is up."""
        return {node.name: left for node in self.lab.nodes if (left := [p for p in node.processes() if not _rays(p)])}

    def wait_until_gone(self) -> None:
        """Wait until nothing of the training runs on any node, for as long as it may at most."""
        deadline = time.monotonic() + GONE_AFTER_SECONDS
        while left := self.processes():
            assert time.monotonic() < deadline, left
            time.sleep(0.2)

    def _logs(self) -> list[str]:
        return [f"--- {path}\n{path.read_text()[-3000:]}" for path in self.run.path.glob("logs/**/*.log")]


def _rays(process: Any) -> bool:
    # Ray keeps this actor of its own for as long as the cluster is up.
    return process.argv[0] == "ray::_AutoscalingCoordinatorActor"


def make_training(lab: Lab, name: str, base: dict[str, Any], **keys: Any) -> Training:
    """Copy model and data to where all nodes see them, and write the config."""
    folder = lab.shared / "".join(letter if letter.isalnum() else "-" for letter in name)
    shutil.copytree(base["base_model"], folder / "model")
    shutil.copy(base["datasets"][0]["path"], folder / "train.jsonl")
    config = {
        **base,
        "base_model": str(folder / "model"),
        "datasets": [{**base["datasets"][0], "path": str(folder / "train.jsonl")}],
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / "run"),
        **keys,
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    return Training(lab, folder / "c.yaml", RunDir(folder / "run"))
