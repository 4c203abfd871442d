"""Whole runs on this machine: real torchrun, real gloo groups, a tiny model and data made here."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from allranks.demo.files import DemoFiles, write_files
from allranks.observe import RunDir, read_events
from tests.cluster import struck_rank
from tests.cluster.forked import ForkedRanks
from tests.cluster.lab import Lab, missing
from tests.patience import TIMEOUT_SECONDS
from tests.ports import free_port

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TERM": "dumb"}


@dataclass
class Run:
    """One finished `allranks train`: its exit code, what it printed, and its run directory."""

    code: int
    output: str
    directory: RunDir

    def losses(self) -> dict[int, float]:
        """Loss by step, as rank 0 recorded it; of a step done twice, the later one."""
        return {int(event.step): float(event.loss) for event in self.events("step")}

    def events(self, kind: str, rank: int = 0) -> list[dict]:
        return [event for event in read_events(self.directory.events(rank)) if event.kind == kind]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    """A two-layer model with untied weights, its tokenizer, and 300 records."""
    return write_files(
        tmp_path_factory.mktemp("tiny"),
        num_records=300,
        vocab_size=512,
        hidden_size=32,
        num_layers=2,
        tie_word_embeddings=False,
    )


@pytest.fixture(scope="session")
def base_config(tiny: DemoFiles) -> dict:
    return {
        "base_model": str(tiny.model),
        "datasets": [{"path": str(tiny.data), "type": "chat_template"}],
        "dataset_prepared_path": str(tiny.directory / "prepared"),
        "sequence_len": 128,
        "excess_length_strategy": "drop",
        "sample_packing": True,
        "batch_size": 8,
        "micro_batch_size": 2,
        "max_steps": 20,
        "learning_rate": 0.01,
        "lr_scheduler": "cosine",
        "warmup_steps": 3,
        "max_grad_norm": 1.0,
        "weight_decay": 0.01,
        "optimizer": "adamw_torch_fused",
        "save_strategy": "no",
        "logging_steps": 5,
        "seed": 7,
    }


@pytest.fixture
def qwen_data(tiny: DemoFiles, tmp_path: Path) -> Path:
    """64 conversations as Qwen's scripts take them."""
    records = [json.loads(line) for line in tiny.data.read_text().splitlines()[:64]]
    turns = [[{"from": turn["role"], "value": turn["content"]} for turn in record["messages"]] for record in records]
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"id": str(i), "conversations": each} for i, each in enumerate(turns)]))
    return path


def start_allranks(*words: str, cwd: Path) -> subprocess.Popen:
    """Start the command line on this machine; stdout and stderr in one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "allranks", *words],
        env=ENVIRONMENT,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )


def _write_config(path: Path, base: dict, directory: Path, keys: dict) -> Path:
    config = {**base, "output_dir": str(directory), **keys}
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    return path


@pytest.fixture
def write_config(base_config: dict, tmp_path: Path) -> Callable[..., Path]:
    """Write the base config with `keys`, for a run in `tmp_path`."""
    return lambda **keys: _write_config(tmp_path / "config.yaml", base_config, tmp_path / "run", keys)


@pytest.fixture
def start(base_config: dict, tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Start `allranks train` with the base config and `keys`; extra arguments go to the command line."""

    def start_run(*arguments: str, output_dir: Path | None = None, **keys: object) -> subprocess.Popen:
        directory = output_dir or tmp_path / "run"
        path = _write_config(tmp_path / f"{directory.name}.yaml", base_config, directory, keys)
        return start_allranks("train", str(path), *arguments, cwd=tmp_path)

    return start_run


@pytest.fixture
def run(start: Callable[..., subprocess.Popen], tmp_path: Path) -> Callable[..., Run]:
    """Like `start`, but wait for the end; a code other than `expect` fails the test with the output."""

    def finish(*arguments: str, output_dir: Path | None = None, expect: int = 0, **keys: object) -> Run:
        directory = output_dir or tmp_path / "run"
        process = start(*arguments, output_dir=directory, **keys)
        try:
            output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            process.kill()
        assert process.returncode == expect, f"exit code {process.returncode}:\n{output}\n{_logs(directory)}"
        return Run(process.returncode, output, RunDir(directory))

    return finish


@pytest.fixture
def start_forked(base_config: dict, tmp_path: Path) -> Callable[..., ForkedRanks]:
    """Start the ranks that `allranks train` would start for this config: the engine, without launcher and imports."""

    def start_ranks(world_size: int = 1, *, output_dir: Path | None = None, **keys: object) -> ForkedRanks:
        directory = output_dir or tmp_path / "run"
        path = _write_config(tmp_path / f"{directory.name}.yaml", base_config, directory, keys)
        output = path.with_suffix(".out")
        return ForkedRanks([str(path)], world_size, free_port(), output, ENVIRONMENT)

    return start_ranks


@pytest.fixture
def run_forked(start_forked: Callable[..., ForkedRanks], tmp_path: Path) -> Callable[..., Run]:
    """Like `start_forked`, but wait for the end; a code other than `expect` fails the test with the output."""

    def finish(world_size: int = 1, *, output_dir: Path | None = None, expect: int = 0, **keys: object) -> Run:
        directory = output_dir or tmp_path / "run"
        return _finish_forked(start_forked(world_size, output_dir=directory, **keys), directory, expect)

    return finish


@pytest.fixture
def strike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Have a rank of the next run send itself a signal at a step, once some files are there: see struck_rank.py.

    It does so in one start only; the file that is returned is there once it has.
    """

    def at(step: int, number: signal.Signals = signal.SIGKILL, *, rank: int, awaits: tuple[Path, ...]) -> Path:
        for name, value in strike_variables(tmp_path, step, number, rank=rank, awaits=awaits).items():
            monkeypatch.setitem(ENVIRONMENT, name, value)
        return tmp_path / "struck"

    return at


def strike_variables(
    folder: Path, step: int, number: signal.Signals, *, rank: int, awaits: tuple[Path, ...]
) -> dict[str, str]:
    """The environment of ranks with that strike, of which `folder` will tell."""
    shutil.copy(struck_rank.__file__, folder / "sitecustomize.py")
    told = {"rank": rank, "step": step, "signal": int(number), "awaits": [str(path) for path in awaits]}
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"STRIKE": json.dumps({**told, "once": str(folder / "struck")}), "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture(scope="session")
def losses_alone(base_config: dict, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[int, float]]:
    """The losses of one process with the base config and `keys`, which others must agree with: trained once for all."""
    known: dict[str, dict[int, float]] = {}

    def losses(**keys: object) -> dict[int, float]:
        name = json.dumps(keys, sort_keys=True)
        if name not in known:
            folder = tmp_path_factory.mktemp("alone")
            path = _write_config(folder / "alone.yaml", base_config, folder / "run", keys)
            ranks = ForkedRanks([str(path)], 1, free_port(), path.with_suffix(".out"), ENVIRONMENT)
            known[name] = _finish_forked(ranks, folder / "run").losses()
        return known[name]

    return losses


def _finish_forked(ranks: ForkedRanks, directory: Path, expect: int = 0) -> Run:
    code = ranks.wait(TIMEOUT_SECONDS)
    output, *others = (path.read_text() for path in ranks.outputs)
    assert code == expect, "\n--- next rank\n".join([f"exit code {code}:\n{output}", *others])
    return Run(code, output, RunDir(directory))


@pytest.fixture(scope="session")
def _session_lab() -> Iterator[Lab]:
    if reason := missing():
        if os.environ.get("ALLRANKS_REQUIRE_LAB"):
            pytest.fail(f"{reason} (ALLRANKS_REQUIRE_LAB is set)")
        pytest.skip(reason)
    with Lab(nodes=3) as lab:
        yield lab


@pytest.fixture
def lab(_session_lab: Lab) -> Iterator[Lab]:
    """Three nodes, the same for all tests; what a test broke, or left running, is put right after it."""
    yield _session_lab
    _session_lab.restore()


def _logs(directory: Path) -> str:
    return "\n".join(f"--- {path}\n{path.read_text()[-4000:]}" for path in sorted(directory.glob("logs/**/*.log")))


def largest_difference(losses: dict[int, float], reference: dict[int, float]) -> float:
    """The largest relative difference of two runs' losses; infinite unless they have the same steps."""
    if losses.keys() != reference.keys():
        return math.inf
    return max(abs(losses[step] / reference[step] - 1) for step in reference)
