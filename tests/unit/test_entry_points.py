"""`python -m MODULE` does what its name says or ends with 2: none of our modules does nothing and exits with 0."""

import ast
import gc
import importlib.util
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import allranks
from allranks.cluster.identity import is_numbered
from allranks.entry_points import ENTRY_POINTS, begin_as_program

MODULES = ["allranks", *(module.name for module in pkgutil.walk_packages(allranks.__path__, "allranks."))]


def python(*arguments, **settings):
    settings = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": 50} | settings
    return subprocess.run([sys.executable, *arguments], **settings)


def runs_as_a_program(module):
    """Whether its file does something only when it is started: a statement `if __name__ == "__main__"`."""
    spec = importlib.util.find_spec(module)
    if spec.submodule_search_locations is not None:
        return f"{module}.__main__" in MODULES
    tests = [node.test for node in ast.parse(Path(spec.origin).read_text()).body if isinstance(node, ast.If)]
    return module.endswith("__main__") or any("__main__" in ast.unparse(test) for test in tests)


def test_exactly_the_modules_that_are_programs_are_entry_points():
    assert {module for module in MODULES if runs_as_a_program(module)} == ENTRY_POINTS


@pytest.mark.parametrize("spelt", [["-m", "{}"], ["-m{}"], ["-P", "-um{}"], ["-X", "dev", "-m", "{}"]], ids=str)
def test_every_other_module_is_refused_with_the_command_that_was_meant(spelt, capsys, monkeypatch):
    monkeypatch.setattr("allranks.interrupt.end_at_once", lambda: None)  # this process is no program of ours
    for module in [*MODULES, "allranks.cli.inference", "allranks.nothing.of.the.kind"]:
        orig_argv = ["python", *(word.format(module) for word in spelt), "c.yaml", "-m", "x"]
        argv = ["-m", "c.yaml", "-m", "x"]
        if module in ENTRY_POINTS:
            begin_as_program(argv, orig_argv)
        else:
            with pytest.raises(SystemExit) as exit:
                begin_as_program(argv, orig_argv)
            assert exit.value.code == 2
            message = capsys.readouterr().err
            assert f"-m {module}:" in message and ("`allranks " in message) and message.count("\n") == 1
    begin_as_program(["-m"], ["python", "-m", "torch.distributed.run"])


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "allranks.launch.start", "c.yaml"],
        ["-um", "allranks.train.main", "c.yaml"],
        ["-mallranks.cli.train_words"],
        ["-P", "-m", "allranks.errors"],
        ["-m", "allranks.cli.inference", "c.yaml"],
        ["-m", "allranks.demo"],
    ],
    ids=" ".join,
)
def test_python_itself_runs_into_it(words):
    done = python(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: python -m allranks.") and done.stderr.count("\n") == 1


DO_WITHOUT_ARGUMENTS = {
    "allranks.cli.demo",
    "allranks.config.reference",
    "allranks.preflight.reference",
    "allranks.reference",
}


@pytest.mark.parametrize("module", sorted(ENTRY_POINTS - DO_WITHOUT_ARGUMENTS))
def test_a_program_without_arguments_is_refused_or_explains_itself(module):
    done = python("-m", module)
    assert "Traceback" not in done.stderr
    assert done.returncode == 2 if done.stdout == "" else "Usage: allranks" in done.stdout


def test_a_module_that_only_imports_ours_is_left_alone(tmp_path):
    (tmp_path / "mine.py").write_text("import allranks.errors\nprint('went on')")
    assert python("-m", "mine", cwd=tmp_path).stdout == "went on\n"


@pytest.mark.parametrize("module", sorted(name for name in ENTRY_POINTS if name.startswith("allranks.cli.")))
def test_a_commands_module_is_the_command(module):
    command = module.rpartition(".")[2].replace("_", "-")
    by_name = python("-m", "allranks", *([] if command == "main" else [command]), "--help")
    done = python("-m", module, "--help")
    assert (done.returncode, done.stdout) == (0, by_name.stdout)


MPI = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
ONE_TASK = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}
ONE_TASK |= {"SLURM_STEP_NODELIST": "node0"}


@pytest.mark.parametrize(
    ("variables", "is_rank"),
    [
        ({}, False),
        (ONE_TASK, False),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, True),
        (MPI, True),
        ({**MPI, "OMPI_COMM_WORLD_SIZE": "1"}, True),
        ({**ONE_TASK, "SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, True),
    ],
)
def test_axolotls_older_form_is_a_rank_under_a_launcher_and_the_command_otherwise(variables, is_rank):
    """The rank's parser and that of the command tell apart which of them got the words."""
    assert is_numbered(variables) == is_rank
    done = python("-m", "allranks.cli.train", "--help", env={**os.environ, **variables})
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m allranks.train" if is_rank else "Usage: allranks train")


def test_programs_of_ours_look_for_garbage_rarely(monkeypatch):
    monkeypatch.setattr("allranks.interrupt.end_at_once", lambda: None)
    before = gc.get_threshold()
    try:
        for module, rarely in {
            "allranks.train": True,
            "allranks.cluster.agent": True,
            "torch.distributed.run": False,
        }.items():
            gc.set_threshold(700, 10, 10)
            begin_as_program(["-m"], ["python", "-m", module])
            assert (gc.get_threshold()[0] >= 50_000) == rarely, module
    finally:
        gc.set_threshold(*before)
    script = "import gc, sys\nsys.argv = ['allranks', '--version']\nfrom allranks.cli.main import main\n"
    script += "try:\n    main()\nexcept SystemExit:\n    print(gc.get_threshold()[0])"
    assert int(python("-c", script).stdout.splitlines()[-1]) >= 50_000
