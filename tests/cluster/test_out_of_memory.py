"""Whole runs that really run out of memory: of a limit of the process, and killed by the kernel for their cgroup's."""

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import ENVIRONMENT
from tests.patience import TIMEOUT_SECONDS

# Scores of eager attention over one row of all blocks: 16,000 squared for each head, several times what is allowed.
LARGE = {"eager_attention": True, "batch_size": 128, "micro_batch_size": 128, "max_steps": 2, "save_strategy": "no"}


@pytest.fixture
def train(base_config, tmp_path):
    def run(*words: str, limit=lambda: None) -> tuple[int, str]:
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({**base_config, **LARGE, "output_dir": str(tmp_path / "run")}))
        done = subprocess.run(
            [sys.executable, "-m", "allranks", "train", str(tmp_path / "c.yaml"), *words],
            env=ENVIRONMENT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_SECONDS,
            preexec_fn=limit,
        )
        return done.returncode, done.stdout

    return run


def test_a_limit_of_the_process(train):
    code, output = train(limit=lambda: resource.setrlimit(resource.RLIMIT_DATA, (900_000_000, 900_000_000)))
    assert code == 1 and "Traceback" not in output, output
    assert output.count("error: ") == 1
    assert "error: out of memory on this host, of which ulimit -d allows 0.8 GiB: " in output
    assert "  | parameters " in output and "  | activations and the rest " in output
    advice = output.partition("to need less, what frees most first:\n")[2].splitlines()
    assert "gradient_checkpointing: true" in advice[0] and "micro_batch_size: 64" in advice[1], output


@contextlib.contextmanager
def cgroup(num_bytes: int) -> Iterator[Path]:
    """A cgroup of this test's with a limit of memory. Skips where none can be made."""
    top = Path("/sys/fs/cgroup/memory")
    own = next(
        (line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line), ""
    )
    group = top / own.strip("/") / f"allranks-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(num_bytes))
    except OSError as error:
        pytest.skip(f"no cgroup of memory (version 1) can be made here: {error}")
    try:
        yield group
    finally:
        group.rmdir()


@pytest.mark.thorough
def test_ranks_that_the_kernel_kills_for_their_cgroup(train):
    with cgroup(1_200_000_000) as group:
        enter = lambda: (group / "tasks").write_text(str(os.getpid()))  # noqa: E731
        code, output = train("--nproc-per-node", "2", "--micro-batch-size", "64", limit=enter)
    assert code == 1 and "Traceback" not in output, output
    assert "of which its process takes" in output and "[plan.memory]" in output, output  # warned of before it started
    assert "failed first: killed by SIGKILL (pid" in output
    assert ") by the kernel: its cgroup ran out of memory (the cgroup's limit: 1.1 GiB)" in output
    assert "  | parameters " in output and "  | activations and the rest " in output
    advice = output.partition("to need less, what frees most first:\n")[2].splitlines()
    assert len(advice) > 3 and any("micro_batch_size: 32" in line for line in advice[:3]), output


@pytest.mark.thorough
@pytest.mark.parametrize(("num_bytes", "warned"), [(300_000_000, True), (1_000_000_000, False)])
def test_near_the_border_what_is_said_to_fit_trains_and_what_is_killed_was_warned_of(train, num_bytes, warned):
    with cgroup(num_bytes) as group:
        enter = lambda: (group / "tasks").write_text(str(os.getpid()))  # noqa: E731
        code, output = train("--micro-batch-size", "1", "--batch-size", "4", limit=enter)
    assert ("[plan.memory]" in output, code != 0) == (warned, warned), output
