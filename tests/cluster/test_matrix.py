"""Every method under every strategy on two processes: train, save, resume on two and on one, export; or be refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from allranks.config import RunConfig
from allranks.errors import ConfigError
from allranks.observe import RunDir, read_events
from tests.cluster.conftest import ENVIRONMENT, free_port, largest_difference
from tests.cluster.matrix import SEQUENCE, Job, write_jobs

STEPS, SAVED = 6, 3
# All cells run in the fixture: about 90 seconds on two quiet cores.
DEADLINE_SECONDS = 480
pytestmark = pytest.mark.timeout(DEADLINE_SECONDS + 20)

LORA: dict[str, Any] = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
METHODS: dict[str, dict[str, Any]] = {"full": {}, "lora": {**LORA, "learning_rate": 0.005}}


@dataclass(frozen=True)
class Strategy:
    """`kind`: what two processes become. `tolerance`: relative, of the losses, to one process of PyTorch's own."""

    keys: dict[str, Any]
    kind: str
    processes: int = 2
    tolerance: float = 1e-5
    refused: dict[str, str] = field(default_factory=dict)
    """Method -> what the refusal says."""


def zero(stage: int) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": {"stage": stage}}}


STRATEGIES = {
    "single": Strategy({}, "single", processes=1),
    "ddp": Strategy({}, "ddp"),
    "fsdp2": Strategy({"fsdp_version": 2}, "fsdp"),
    # Of two processes HSDP makes two replicas of one shard each, and that is DDP; test_invariance has 2 x 2.
    "hsdp": Strategy({"fsdp_version": 2, "dp_replicate_size": 2, "dp_shard_size": 1}, "ddp"),
    "zero1": Strategy(zero(1), "zero", tolerance=1e-4),
    "zero2": Strategy(zero(2), "zero", tolerance=1e-4),
    "zero3": Strategy(zero(3), "zero", tolerance=1e-4),
}

CELLS = [(method, strategy) for method in METHODS for strategy in STRATEGIES]


def is_refused(cell: tuple[str, str]) -> bool:
    return cell[0] in STRATEGIES[cell[1]].refused


@dataclass
class Results:
    folder: Path
    base: dict[str, Any]

    def keys(self, method: str, strategy: str, run: str) -> dict[str, Any]:
        name = f"{method}-{strategy}-{run}"
        return {**self.base, **METHODS[method], **STRATEGIES[strategy].keys, "output_dir": str(self.folder / name)}

    def losses(self, method: str, strategy: str, run: str) -> dict[int, float]:
        name = f"{method}-{strategy}-{run}"
        code = self.folder / f"{name}.code"
        codes = code.read_text().split() if code.exists() else ["never started"]
        assert set(codes) == {"0"}, f"{name}: exit codes {codes}\n{self.logs(name)}"
        events = read_events(RunDir(self.folder / name).events(0))
        return {int(event["step"]): float(event["loss"]) for event in events if event["kind"] == "step"}

    def logs(self, name: str) -> str:
        files = [*self.folder.glob(f"{name}-*.log"), *(self.folder / name).glob("logs/**/*.log")]
        return "\n".join(f"--- {file}\n{file.read_text()[-3000:]}" for file in sorted(files))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, base_config: dict[str, Any]) -> Results:
    """All cells, run by one process that imports the libraries once."""
    folder = tmp_path_factory.mktemp("matrix")
    base = {**base_config, "max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVED, "ddp_timeout": 45}
    base |= {"save_async": False, "bf16": False}
    found = Results(folder, base)
    trained, on_two, on_one, exports = [], [], [], []
    for method, strategy in [cell for cell in CELLS if not is_refused(cell)]:
        name, processes = f"{method}-{strategy}", STRATEGIES[strategy].processes
        logits = str(folder / f"{name}.pt")
        trained.append(Job(f"{name}-run", processes, found.keys(method, strategy, "run"), logits, ports=[free_port()]))
        saved = folder / f"{name}-run" / "checkpoints" / f"step-{SAVED:08d}"
        for run, ranks, jobs in (("two", 2, on_two), ("one", 1, on_one)):
            keys = {**found.keys(method, strategy, run), "resume_from_checkpoint": str(saved)}
            if ranks == 1 and strategy == "hsdp":
                keys["dp_replicate_size"] = 1
            jobs.append(Job(f"{name}-{run}", ranks, keys, ports=[free_port()]))
        options = {"out": str(folder / f"{name}-export"), "merge": method != "full"}
        exports.append(Job(f"{name}-export", 1, options, export=str(folder / f"{name}-run")))
    write_jobs(folder / "jobs.json", [*trained, *on_two, *on_one, *exports])
    words = [sys.executable, "-m", "tests.cluster.matrix", str(folder / "jobs.json")]
    with (folder / "runner.log").open("w") as log:
        process = subprocess.Popen(
            words, env=ENVIRONMENT, cwd=Path(__file__).parents[2], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            code = "time is up"
        finally:
            process.kill()
    assert code == 0, f"{code}\n{(folder / 'runner.log').read_text()[-4000:]}"
    return found


@pytest.mark.parametrize(("method", "strategy"), CELLS)
def test_cell(results: Results, method: str, strategy: str) -> None:
    settings = STRATEGIES[strategy]
    if is_refused((method, strategy)):
        with pytest.raises(ConfigError, match=settings.refused[method]):
            RunConfig.from_flat(results.keys(method, strategy, "run"))
        return
    alone, losses = results.losses(method, "single", "run"), results.losses(method, strategy, "run")
    assert losses[STEPS] < losses[1], "it does not learn, so equal losses would mean little"
    assert largest_difference(losses, alone) < settings.tolerance
    rest = {step: loss for step, loss in losses.items() if step > SAVED}
    for run in ("two", "one"):
        assert largest_difference(results.losses(method, strategy, run), rest) < settings.tolerance, run

    results_of_training = torch.load(results.folder / f"{method}-{strategy}.pt")
    assert results_of_training["kind"] == settings.kind
    code = (results.folder / f"{method}-{strategy}-export.code").read_text()
    assert code == "0", results.logs(f"{method}-{strategy}-export")
    model = AutoModelForCausalLM.from_pretrained(results.folder / f"{method}-{strategy}-export", dtype=torch.float32)
    with torch.no_grad():
        logits = model.eval()(torch.tensor([SEQUENCE])).logits
    base = AutoModelForCausalLM.from_pretrained(results.base["base_model"])
    with torch.no_grad():
        before = base.eval()(torch.tensor([SEQUENCE])).logits
    assert (before - logits).abs().max() > 1e-3, "training changed nothing that could be compared"
    torch.testing.assert_close(logits, results_of_training["logits"], rtol=1e-4, atol=1e-5)
