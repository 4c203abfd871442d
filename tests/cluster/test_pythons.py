"""Two versions of Python go on from each other's checkpoints, as a user without root: Debian's own beside another.

They share their packages, which fit all releases of one minor version. What they pickle may still differ: Python
3.11.0 to 3.11.3 write members of an Enum in another way than later ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import allranks
from allranks.demo.files import DemoFiles
from allranks.observe import RunDir, read_events
from allranks.observe.events import StepEvent
from tests.cluster.conftest import ENVIRONMENT
from tests.patience import TIMEOUT_SECONDS

# Four commands one after the other, each of which imports torch.
pytestmark = pytest.mark.timeout(3 * TIMEOUT_SECONDS)

_NOBODY = 65534
_ORDINARY: dict = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def second_python() -> Path | None:
    """Another release of this minor version of Python, if the machine has one."""
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    of_pyenv = pyenv.glob(f"versions/{minor}.*/bin/python{minor}") if os.access(pyenv, os.R_OK) else []
    candidates = [Path("/usr/bin/python3"), *of_pyenv]
    for python in candidates:
        if os.access(python, os.X_OK):
            version = subprocess.run([python, "--version"], capture_output=True, text=True).stdout.split()[-1]
            if version.startswith(f"{minor}.") and version != sys.version.split()[0]:
                return python
    return None


@dataclass(frozen=True)
class Place:
    """A folder of an ordinary user, with a copy of the model and the data."""

    folder: Path
    config: dict

    def run(self, python: Path, module: str, *words: object) -> str:
        """Run a module of ours with `python`, without root where it can be; fails the test if it fails."""
        done = subprocess.run(
            [python, "-m", module, *map(str, words)],
            env={**ENVIRONMENT, "HOME": str(self.folder / "home"), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_SECONDS,
            **(_ORDINARY if _runs_without_root(python) else {}),
        )
        assert done.returncode == 0, f"{python}:\n{done.stdout}"
        _give_away(self.folder)
        return done.stdout

    def steps(self) -> list[int]:
        return [
            int(event.step)
            for event in read_events(RunDir(self.folder / "run").events(0))
            if isinstance(event, StepEvent)
        ]


@pytest.fixture
def place(tiny: DemoFiles, base_config: dict) -> Iterator[Place]:
    # pytest's own folders belong to who runs the tests, and nobody else may look into them.
    folder = Path(tempfile.mkdtemp(prefix="allranks-pythons-"))
    try:
        shutil.copytree(tiny.model, folder / "model")
        shutil.copy(tiny.data, folder / "train.jsonl")
        (folder / "home").mkdir()
        config = {
            **base_config,
            "base_model": str(folder / "model"),
            "datasets": [{**base_config["datasets"][0], "path": str(folder / "train.jsonl")}],
            "dataset_prepared_path": str(folder / "prepared"),
            "output_dir": str(folder / "run"),
            "lr_scheduler": "constant",
            "auto_resume_from_checkpoints": True,
            "save_strategy": "steps",
            "save_steps": 1,
        }
        (folder / "c.yaml").write_text(yaml.safe_dump(config))
        _give_away(folder)
        yield Place(folder, config)
    finally:
        shutil.rmtree(folder)


def _runs_without_root(python: Path) -> bool:
    """Whether an ordinary user may read this Python and its packages: pyenv's in root's home is root's alone."""
    code = "import allranks, importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    try:
        return subprocess.run([python, "-c", code], cwd="/", stderr=subprocess.DEVNULL, **_ORDINARY).returncode == 0
    except PermissionError:
        return False


def _give_away(folder: Path) -> None:
    if _ORDINARY:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)


def _with_our_packages(python: Path, folder: Path) -> Path:
    """A virtual environment of `python` that has this one's packages and this allranks."""
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    ours = [path for path in sys.path if path.endswith("site-packages")]
    [packages] = folder.glob("lib/python3.*/site-packages")
    (packages / "ours.pth").write_text("\n".join([str(Path(allranks.__file__).parents[1]), *ours]) + "\n")
    return folder / "bin" / "python"


def _versions_of(pythons: Sequence[Path]) -> set[str]:
    return {subprocess.run([each, "--version"], capture_output=True, text=True).stdout for each in pythons}


def test_they_go_on_from_what_the_other_wrote(place: Place) -> None:
    found = second_python()
    if found is None:
        pytest.skip(
            f"no second release of Python {sys.version_info.major}.{sys.version_info.minor} here, only "
            f"{sys.version.split()[0]}: run the tests with another one than /usr/bin/python3 (`pyenv install 3.11`)"
        )
    theirs = _with_our_packages(found, place.folder / "theirs")
    ours = _with_our_packages(Path(sys.executable), place.folder / "ours")
    assert len(_versions_of([ours, theirs])) == 2

    place.run(theirs, "allranks", "train", "c.yaml", "--max-steps", 1)
    place.run(ours, "allranks.train", "c.yaml", "--max-steps", 2)
    place.run(theirs, "allranks.train", "c.yaml", "--max-steps", 3)
    assert place.steps() == [1, 2, 3], "each goes on where the other stopped"
    # They go on from the same files that an export reads.
    place.run(ours, "allranks", "export", "run", "--step", 3, "--output", "exported")
    before, after = (load_file(place.folder / name / "model.safetensors") for name in ("model", "exported"))
    assert before.keys() == after.keys()
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"]), "trained in between"
    written = json.loads((place.folder / "run/checkpoints/step-00000003/metadata.json").read_text())
    assert any(name.startswith("optimizer.") for name in written["tensors"])
