"""Every method under every strategy on two processes: train, save, resume on two and on one, export; or be refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from allranks.config.load import resolve_mapping
from allranks.errors import ConfigError
from allranks.observe import RunDir, read_events
from allranks.observe.events import EvalEvent, StepEvent
from allranks.verify.run import verify_run
from tests.cluster.conftest import ENVIRONMENT, largest_difference
from tests.cluster.matrix import SEQUENCE, Job, write_jobs
from tests.ports import free_port

STEPS, SAVED = 6, 3
JOBS = ("run", "two", "one", "export")
"""Of each cell: trained, resumed on two processes and on one, exported."""
# All runs are made in the fixture: about three minutes on two quiet cores, two without the thorough ones.
DEADLINE_SECONDS = 900
pytestmark = pytest.mark.timeout(DEADLINE_SECONDS + 20)

LORA: dict[str, Any] = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {**LORA, "learning_rate": 0.005},
    "qlora": {**LORA, "adapter": "qlora", "learning_rate": 0.005},
}


@dataclass(frozen=True)
class Strategy:
    """`kind`: what two processes become. `tolerance`: relative, of the losses, to one process of PyTorch's own."""

    keys: dict[str, Any]
    kind: str
    processes: int = 2
    tolerance: float = 1e-5
    refused: dict[str, str] = field(default_factory=dict)
    """Method -> what the refusal says."""


def zero(stage: int, **settings: Any) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": {"stage": stage, **settings}}}


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
# Each strategy with all parameters, where there is most to shard (HSDP of two is DDP, see above, and DeepSpeed has one
# code for ZeRO-1 and ZeRO-2), and each adapter with one of the two libraries that shard.
FAST = [
    *(("full", strategy) for strategy in STRATEGIES if strategy not in ("hsdp", "zero1")),
    *(("qlora", "fsdp2"), ("lora", "zero3")),
]

ON_CPU = {"device": "cpu"}
EXAMPLES = Path(__file__).parents[2] / "examples" / "deepspeed"
# Of full fine-tuning: settings of DeepSpeed that must not change the losses.
VARIANTS: dict[str, dict[str, Any]] = {
    "zero2.json": {"deepspeed": str(EXAMPLES / "zero2.json"), "lr_scheduler": "cosine"},
    "zero3.json": {"deepspeed": str(EXAMPLES / "zero3.json"), "lr_scheduler": "cosine"},
    "offload": {**zero(3, offload_optimizer=ON_CPU, offload_param=ON_CPU), "gradient_checkpointing": True},
    # No parameter small enough to stay gathered, several groups of the optimizer, copies kept by two ranks (ZeRO++).
    "small pieces": zero(3, stage3_param_persistence_threshold=0, sub_group_size=1000, zero_hpz_partition_size=2),
}
# From the checkpoint of one strategy to another, full fine-tuning: (from, to).
CHANGES = [("zero2", "fsdp2"), ("fsdp2", "zero3"), ("zero3", "ddp")]
# Cells whose runs evaluate too, on two data sets, and one that holds part of its data out.
EVALUATED = [("qlora", "zero2"), ("lora", "zero3")]
HELD_OUT = {**zero(3), "val_set_size": 0.2}


def is_refused(cell: tuple[str, str]) -> bool:
    return cell[0] in STRATEGIES[cell[1]].refused


@dataclass
class Results:
    folder: Path
    base: dict[str, Any]

    def keys(self, name: str, method: str, strategy: str) -> dict[str, Any]:
        keys = {**self.base, **METHODS[method], **STRATEGIES[strategy].keys, "output_dir": str(self.folder / name)}
        if (method, strategy) in EVALUATED:
            keys |= {"test_datasets": _test_datasets(self), "eval_steps": STEPS}
        return keys

    def checkpoint(self, method: str, strategy: str) -> str:
        return str(self.folder / f"{method}-{strategy}-run" / "checkpoints" / f"step-{SAVED:08d}")

    def losses(self, name: str, field: str = "loss") -> dict[int, float]:
        """Losses (or gradients' norms) by step of a run that went well."""
        code = self.folder / f"{name}.code"
        codes = code.read_text().split() if code.exists() else ["never started"]
        assert set(codes) == {"0"}, f"{name}: exit codes {codes}\n{self.logs(name)}"
        events = read_events(RunDir(self.folder / name).events(0))
        return {int(event.step): float(getattr(event, field)) for event in events if isinstance(event, StepEvent)}

    def evaluated(self, name: str, ranks: int) -> dict[str, float]:
        """The losses by data set that `allranks evaluate` found of a run on so many ranks."""
        found = self.folder / f"{name}-evaluated-by-{ranks}.json"
        assert found.exists(), self.logs(f"{name}-evaluated-by-{ranks}")
        return dict(json.loads(found.read_text()))

    def logs(self, name: str) -> str:
        files = [*self.folder.glob(f"{name}-*.log"), *(self.folder / name).glob("logs/**/*.log")]
        return "\n".join(f"--- {file}\n{file.read_text()[-3000:]}" for file in sorted(files))


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, base_config: dict[str, Any]
) -> Results:
    """The runs that the selected tests look at, by one process that imports the libraries once."""
    folder = tmp_path_factory.mktemp("matrix")
    base = {**base_config, "max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVED, "ddp_timeout": 45}
    found = Results(folder, {**base, "bf16": False})
    needed = _needed(item for item in request.session.items if item.path == request.path)
    write_jobs(folder / "jobs.json", [job for job in _jobs(found) if job.name in needed])
    words = [sys.executable, "-m", "tests.cluster.matrix", str(folder / "jobs.json")]
    with (folder / "runner.log").open("w") as log:
        process = subprocess.Popen(
            words, env=ENVIRONMENT, cwd=Path(__file__).parents[2], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            code: int | str = process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            code = "time is up"
        finally:
            process.kill()
    assert code == 0, f"{code}\n{(folder / 'runner.log').read_text()[-4000:]}"
    return found


def _needed(tests: Iterable[pytest.Item]) -> set[str]:
    """Names of the jobs whose results these tests look at, or whose checkpoints those jobs do."""
    names = {"full-single-run"}
    for test in tests:
        assert isinstance(test, pytest.Function)
        given = test.callspec.params
        match given:
            case {"method": method, "strategy": strategy}:
                names |= {f"{method}-single-run", *(f"{method}-{strategy}-{job}" for job in JOBS)}
            case {"variant": variant}:
                names.add(variant)
            case {"before": before, "after": after}:
                names |= {f"full-{before}-run", f"{before} to {after}"}
            case {"name": name}:
                names |= {f"{name}-run", f"{name}-evaluated-by-1", f"{name}-evaluated-by-2"}
            case _:
                raise AssertionError(f"{test.name}: which runs does it look at?")
    return names


def _jobs(results: Results) -> list[Job]:
    """Trainings first; those of one rank at the end, where they go two at a time."""
    trained, on_two, on_one = [], [], []
    for method, strategy in [cell for cell in CELLS if not is_refused(cell)]:
        name, processes = f"{method}-{strategy}", STRATEGIES[strategy].processes
        keys, logits = results.keys(f"{name}-run", method, strategy), str(results.folder / f"{name}.pt")
        trained.append(Job(f"{name}-run", processes, keys, logits, ports=[free_port()]))
        resumed = {"resume_from_checkpoint": results.checkpoint(method, strategy)}
        keys = {**results.keys(f"{name}-two", method, strategy), **resumed}
        on_two.append(Job(f"{name}-two", 2, keys, ports=[free_port()]))
        keys = {**results.keys(f"{name}-one", method, strategy), **resumed}
        on_one.append(Job(f"{name}-one", 1, keys | ({"dp_replicate_size": 1} if strategy == "hsdp" else {})))
        options = {"out": str(results.folder / f"{name}-export"), "merge": method == "lora"}
        on_one.append(Job(f"{name}-export", 1, options, export=str(results.folder / f"{name}-run")))
    for variant, settings in VARIANTS.items():
        keys = {**results.base, **settings, "output_dir": str(results.folder / variant)}
        on_two.append(Job(variant, 2, keys, ports=[free_port()]))
    keys = {**results.base, **HELD_OUT, "output_dir": str(results.folder / "held-out-run"), "eval_steps": STEPS}
    on_two.append(Job("held-out-run", 2, keys, ports=[free_port()]))
    evaluated = [*(f"{method}-{strategy}" for method, strategy in EVALUATED), "held-out"]
    for name, ranks in [(name, ranks) for ranks in (2, 1) for name in evaluated]:
        out = {"out": str(results.folder / f"{name}-evaluated-by-{ranks}.json")}
        ports = [free_port()] if ranks > 1 else []
        run = str(results.folder / f"{name}-run")
        (on_two if ranks > 1 else on_one).append(
            Job(f"{name}-evaluated-by-{ranks}", ranks, out, evaluate=run, ports=ports)
        )
    for before, after in CHANGES:
        name = f"{before} to {after}"
        keys = {**results.keys(name, "full", after), "resume_from_checkpoint": results.checkpoint("full", before)}
        on_two.append(Job(name, 2, keys, ports=[free_port()]))
    return [*trained, *on_two, *on_one]


def thorough_but(fast: Sequence[Any], every: Iterable[Any]) -> list[Any]:
    """Cases of which all but the `fast` ones are thorough."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=[] if case in fast else pytest.mark.thorough
        )
        for case in every
    ]


@pytest.mark.parametrize(("method", "strategy"), thorough_but(FAST, CELLS))
def test_cell(results: Results, method: str, strategy: str) -> None:
    name, settings = f"{method}-{strategy}", STRATEGIES[strategy]
    if is_refused((method, strategy)):
        with pytest.raises(ConfigError, match=settings.refused[method]):
            resolve_mapping(results.keys(name, method, strategy))
        return
    alone, losses = results.losses(f"{method}-single-run"), results.losses(f"{name}-run")
    assert losses[STEPS] < losses[1], "it does not learn, so equal losses would mean little"
    assert largest_difference(losses, alone) < settings.tolerance
    norms = [results.losses(run, "grad_norm") for run in (f"{name}-run", f"{method}-single-run")]
    assert largest_difference(*norms) < 1e-4
    _, checks = verify_run(results.folder / f"{name}-run")
    assert [check for check in checks if check.result != "ok"] == []
    rest = {step: loss for step, loss in losses.items() if step > SAVED}
    for run in ("two", "one"):
        assert largest_difference(results.losses(f"{name}-{run}"), rest) < settings.tolerance, run

    trained = torch.load(results.folder / f"{name}.pt")
    assert trained["kind"] == settings.kind
    code = (results.folder / f"{name}-export.code").read_text()
    assert code == "0", results.logs(f"{name}-export")
    base = _load(results.base["base_model"], quantized=method == "qlora")
    before, export = _logits(base), results.folder / f"{name}-export"
    # Of Q-LoRA the adapter, on the base model that transformers quantizes; of the others a plain model.
    exported = _logits(PeftModel.from_pretrained(base, export) if method == "qlora" else _load(export))
    assert (exported - before).abs().max() > 1e-3, "training changed nothing"
    torch.testing.assert_close(exported, trained["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", thorough_but(["offload"], VARIANTS))
def test_settings_of_deepspeed_do_not_change_the_losses(results: Results, variant: str) -> None:
    assert largest_difference(results.losses(variant), results.losses("full-single-run")) < 1e-4
    kept = RunDir(results.folder / variant).deepspeed.read_text()
    assert '"train_micro_batch_size_per_gpu": 2,' in kept and "auto" not in kept


@pytest.mark.parametrize(("before", "after"), thorough_but(CHANGES[1:2], CHANGES))
def test_a_checkpoint_goes_on_under_another_strategy(results: Results, before: str, after: str) -> None:
    rest = {step: loss for step, loss in results.losses("full-single-run").items() if step > SAVED}
    assert largest_difference(results.losses(f"{before} to {after}"), rest) < 1e-4


@pytest.mark.parametrize(
    "name",
    thorough_but(["lora-zero3"], [*(f"{method}-{strategy}" for method, strategy in EVALUATED), "held-out"]),
)
def test_runs_under_zero_are_evaluated_as_they_evaluated_themselves(results: Results, name: str) -> None:
    events = read_events(RunDir(results.folder / f"{name}-run").events(0))
    own = {event.step: event.eval_loss for event in events if isinstance(event, EvalEvent)}
    for ranks in (1, 2):
        found = results.evaluated(name, ranks)
        assert list(found)[:-1] == ([] if name == "held-out" else [spec["path"] for spec in _test_datasets(results)])
        assert largest_difference({STEPS: list(found.values())[-1]}, own) < 1e-5  # of all data sets together
        assert len(set(found.values())) == len(found)


def _test_datasets(results: Results) -> list[dict[str, str]]:
    """Two data sets of unequal size, with records that are in no other."""
    records = [json.loads(line) for line in Path(results.base["datasets"][0]["path"]).read_text().splitlines()]
    for record in records:
        record["messages"][-1]["content"] += " and no more"
    found = []
    for name, part in (("first", records[:23]), ("second", records[23:40])):
        path = results.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in part))
        found.append({"path": str(path), "type": "chat_template", "split": "train"})
    return found


def _load(folder: str | Path, *, quantized: bool = False) -> torch.nn.Module:
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    config = BitsAndBytesConfig(load_in_4bit=True, **options) if quantized else None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)
    for layer in model.modules():  # in eval mode bitsandbytes' packing for AVX512 computes in bfloat16
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return model


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([SEQUENCE])).logits
