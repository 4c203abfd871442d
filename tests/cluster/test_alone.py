"""A run of one process, which is the command itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from allranks.launch.node.starters.memory import gives_huge_pages_on_request
from tests.cluster.conftest import ENVIRONMENT
from tests.patience import TIMEOUT_SECONDS

SEEN = """
import os
if os.environ.get("SEEN"):
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(f"{os.getpid()} {'hugetlb' in os.environ.get('GLIBC_TUNABLES', '')}\\n")
"""


@pytest.mark.parametrize("is_piped", [False, True], ids=["a file", "a pipe"])
def test_it_has_the_allocators_settings_but_where_its_config_cannot_be_read_twice(
    base_config: dict, tmp_path: Path, is_piped: bool
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SEEN)
    text = yaml.safe_dump({**base_config, "max_steps": 1, "output_dir": str(tmp_path / "run")})
    (tmp_path / "c.yaml").write_text(text)
    own = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-m", "allranks", "train", "/dev/stdin" if is_piped else "c.yaml"],
        env={**own, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "SEEN": str(tmp_path / "seen")},
        cwd=tmp_path,
        input=text if is_piped else "",
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("done: 1 steps") + done.stdout.count("done: 1 step ") == 1, done.stdout
    first, *others = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    again = [has for pid, has in others if pid == first[0]]
    assert first[1] == "False" and again == ([] if is_piped or not gives_huge_pages_on_request() else ["True"])
