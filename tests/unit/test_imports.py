"""The command line must answer at once: nothing it needs to say so may import torch and its like."""

import pkgutil
import subprocess
import sys

import pytest

import allranks

HEAVY = ("torch", "transformers", "peft", "datasets", "pyarrow", "pandas")
# Rooms that exist to work with tensors.
MAY_BE_HEAVY = ("allranks.model.", "allranks.train.", "allranks.export.", "allranks.inference.")
MAY_BE_HEAVY += ("allranks.checkpoint.dcp.",)
# Of the room that runs the engine on nothing, what does so, in a process of its own.
MAY_BE_HEAVY += tuple(f"allranks.trace.{part}" for part in ("gradient_sums", "layers", "nothing", "recorder", "step"))
# Runs inside Ray's own processes, not in the command line's, and needs Ray installed.
MAY_BE_HEAVY += ("allranks.launch.ray_train.trainer",)
# One for each tracker: runs in the tracker's own process, and needs its library installed.
MAY_BE_HEAVY += ("allranks.observe.trackers.to_",)


def heavy_modules(code, *arguments):
    """Run `code` in a fresh interpreter; which of HEAVY did it import?"""
    report = f"\nimport sys\nprint('HEAVY', [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + report, *arguments], capture_output=True, text=True)
    assert "HEAVY" in done.stderr, done.stderr
    return done.stderr.rpartition("HEAVY ")[2].strip(), done


def light_modules():
    modules = [module.name for module in pkgutil.walk_packages(allranks.__path__, "allranks.")]
    return [name for name in modules if not name.startswith(MAY_BE_HEAVY) and name != "allranks.__main__"]


def test_all_modules_that_should_be_light_are():
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    found, _ = heavy_modules(code, *light_modules())
    if found != "[]":
        culprits = [name for name in light_modules() if heavy_modules(code, name)[0] != "[]"]
        raise AssertionError(f"imported at module level: {found} by {culprits}")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("base_model: m\nlearning_rate: 1e-4\ndatasets:\n  - {path: d.jsonl, type: alpaca}\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["preprocess", "--help"], 0),
        (["export", "--help"], 0),
        (["demo", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["generate", "--help"], 0),
        (["chat", "--help"], 0),
        (["config", "--help"], 0),
        (["config", "show", "CONFIG"], 0),
        (["config", "schema"], 0),
        (["status", "no-such-run"], 2),
        (["top", "no-such-run"], 2),
        (["trian"], 2),
        (["train"], 2),
        (["train", "no-such-file.yaml"], 2),
        (["train", "CONFIG", "--learning-rat", "1"], 2),
        (["train", "CONFIG", "--node-rank", "1"], 2),
        (["train", "CONFIG", "--", "stray"], 2),
        (["submit", "CONFIG", "--scheduler", "slurm", "--nodes", "2", "--dry-run"], 0),
        (["submit", "CONFIG", "--scheduler", "pbs", "--nodes", "2", "--dry-run"], 0),
        (["train", "CONFIG", "--hosts", "no-such-host.invalid"], 3),
        (["run", "--hosts", "no-such-host.invalid", "--", "-m", "http.server"], 3),
        (["qwen", "lora", "--help"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_help_config_and_usage_errors_import_nothing_heavy(config, arguments, exit_code, monkeypatch):
    monkeypatch.chdir(config.parent)
    code = """
import sys
from allranks.cli.main import main
try:
    main()
except SystemExit as exit:
    print("EXIT", exit.code, file=sys.stderr)
"""
    found, done = heavy_modules(code, *(str(config) if word == "CONFIG" else word for word in arguments))
    assert found == "[]"
    assert f"EXIT {exit_code}\n" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
